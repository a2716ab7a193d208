"""Workers that answer letters with what they are told: quick to begin, since they import next to nothing."""

from __future__ import annotations

import errno
import os
import signal
import time
from dataclasses import dataclass

from sae_moo.errors import InputError, StorageError, TaskError

WRONG = {
    "input": InputError("items of a are others"),
    "room": StorageError("/cache: no space left"),
    "no room": OSError(errno.ENOSPC, "No space left on device", "/cache/scores.json"),
    "run": TaskError("task a: the logits are not finite"),
}
"""What opening raises."""


@dataclass(frozen=True)
class Echo:
    """Opens a worker that answers a letter with itself, and does what certain letters say; can be pickled.

    Args:
        wrong: how opening it goes wrong.
    """

    wrong: str = ""

    def __call__(self):
        if self.wrong in WRONG:
            raise WRONG[self.wrong]
        if self.wrong == "death":
            os._exit(3)
        return answer, {"seen": os.environ.get("SEEN", "")}


class Unreadable:
    """Can be pickled, and not be read again."""

    def __reduce__(self):
        return int, ("no number",)


def answer(letter: bytes) -> bytes:
    if letter == b"die":
        os.kill(os.getpid(), signal.SIGKILL)
    if letter == b"fault":
        raise ZeroDivisionError("a fault of ours")
    if letter.decode() in WRONG:
        raise WRONG[letter.decode()]
    if letter == b"wait":
        time.sleep(60)
    return letter
