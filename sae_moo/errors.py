"""The errors a user can meet. Each carries one message that says what was expected, what came and where."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable, Sequence
from enum import Enum
from itertools import islice


class Hint(Enum):
    """What may be done about an error, as arguments of this library say it; `cli` has its own words for each."""

    RENAME = "use another study.name"
    FRESH = "use another study.name, or fresh=True to put the old run aside"
    ANEW = "start anew with fresh=True, or under another study.name"


class SaeMooError(Exception):
    """Base of every error this library raises on purpose; the command line shows its text without a traceback.

    Args:
        message: what was expected, what came and where.
        hint: what may be done about it; None: the message says all.
    """

    exit_code = 1

    def __init__(self, message: str = "", hint: Hint | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else self.advising(self.hint.value)

    def advising(self, advice: str) -> str:
        """Return the message with words of one's own for the hint."""
        return self.message + ("\n  " if "\n" in self.message else "; ") + advice


class InputError(SaeMooError, ValueError):
    """The input (configuration, recipe, folder, flag) cannot be used as it is; nothing was computed or written."""

    exit_code = 2


class RunError(SaeMooError, RuntimeError):
    """The work began and failed; everything finished before is kept."""


class TaskError(RunError):
    """A task could not score a model, e.g. because its logits are not finite. Ends one evaluation, not the search."""


class WeightsError(RunError):
    """A candidate's weights are not finite, e.g. after an overflow. Ends one evaluation, not the search."""


class StorageError(SaeMooError):
    """A place that is written to takes no more: its disk is full or broken, its database is gone.

    The message names the place. Everything finished before is kept, and the same call goes on once there is room.
    """


class Interrupted(SaeMooError):
    """The user pressed Ctrl-C; every finished evaluation is in the study, and no half of a file is left."""

    exit_code = 130


def out_of_memory(error: BaseException) -> bool:
    """Say whether an error is about memory: torch has a class for it on GPUs and only words for it on CPUs."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return any(words in str(error) for words in ("DefaultCPUAllocator", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED"))


def shown(value: object, most: int = 80) -> str:
    """Return a value as it is shown in a message: in one line, cut where it is long."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_ROOM_WORDS = (*map(os.strerror, NO_ROOM), "disk is full", "Not enough disk space")  # SQLite, datasets


def no_room(error: BaseException) -> str | None:
    """Return why, in one line, if an error or what caused it is a disk without room; None if it is something else.

    Libraries that write files of their own (safetensors, databases, pictures) have only words for it.
    """
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        if isinstance(link, OSError) and link.errno in NO_ROOM:
            return link.strerror or str(link)
        for words in _NO_ROOM_WORDS:
            if words in str(link):
                return words
        links.append(link)
        link = link.__cause__
    return None


MOST_WORDS = 1000
"""How many known words a misspelt one is compared with, ..."""
LONGEST_WORD = 200
"""... and how long it may be: the comparison takes time with both."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the closest known word, or an empty string when none is close."""
    if len(word) > LONGEST_WORD:
        return ""
    likely = [str(each) for each in islice(known, MOST_WORDS)]
    matches = difflib.get_close_matches(str(word), likely, n=1, cutoff=0.5)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


MOST_FAULTS = 8
"""How many faults of one kind are told of."""


def first_few(faults: Sequence[str]) -> list[str]:
    """Return as many faults as are told of, and how many there are besides."""
    more = len(faults) - MOST_FAULTS
    return [*faults[:MOST_FAULTS], *([f"... and {more} more like this"] if more > 0 else [])]


def itemized(title: str, faults: Iterable[object], within: bool = False) -> str:
    """Return a title and under it the faults, a line each.

    Args:
        title: what is wrong with all of them.
        faults: each as text.
        within: whether the whole is itself a fault of such a list, and stands deeper than that.
    """
    before = "\n      " if within else "\n  - "
    return f"{title}:" + "".join(f"{before}{fault}" for fault in faults)
