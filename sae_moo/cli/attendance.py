"""The workers of a search as a person reads of them: how many there are, what they do, how busy they were."""

from __future__ import annotations

import time

from sae_moo.cli.pace import Clock
from sae_moo.explore.words import count, listed
from sae_moo.study.executor import Crewed, WorkerLost


class Attendance:
    """Who evaluates, and how much of their time they were busy in this session.

    Args:
        clock: seconds, from anywhere.

    What it holds is replaced as events come, never changed in place, so that a thread that draws it sees it whole.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._held: tuple[Crewed | None, float, float, float] = (
            None,
            0.0,
            0.0,
            0.0,
        )  # and since when, and `_spent` then

    def take(self, now: Crewed) -> None:
        """Take in who evaluates from now on."""
        self._held = now, self._clock(), *self._spent()

    @property
    def now(self) -> Crewed | None:
        """Who evaluates, as was told last; None while there are no workers, as where the search itself evaluates."""
        return self._held[0]

    def _spent(self) -> tuple[float, float]:
        """Return for how many seconds workers were ready, and busy, all of them together."""
        now, since, ready, busy = self._held
        if now is None:
            return 0.0, 0.0
        passed = self._clock() - since
        return ready + passed * len(now.ready), busy + passed * now.busy

    @property
    def opening(self) -> bool:
        """Whether there are to be workers, and none of them is ready."""
        now = self.now
        return now is not None and not now.ready

    @property
    def complete(self) -> bool:
        """Whether there are workers, all that there are to be."""
        now = self.now
        return now is not None and bool(now.ready) and not now.starting

    def there(self) -> str:
        """Return how many workers are ready, of how many, and where; nothing where there are none to be."""
        now = self.now
        if now is None:
            return ""
        facts = now.ready.values()
        devices = list(dict.fromkeys(each["device"] for each in facts if each.get("device")))
        hosts = {each["host"] for each in facts if each.get("host")}
        of = f" of {now.size:,}" if now.starting else ""
        where = [*([listed(devices)] if devices else []), *([count(len(hosts), "machine")] if len(hosts) > 1 else [])]
        return f"{len(now.ready):,}{of}" + "".join(f" on {place}" for place in where)

    def words(self) -> str:
        """Return what the workers do, a row; nothing where there are none to be."""
        now = self.now
        if now is None:
            return ""
        ready, busy = self._spent()
        parts = [self.there()]
        parts += [f"{now.busy:,} busy" + (f", {busy / ready:.0%} of their time" if ready else "")] if now.ready else []
        parts += [f"{now.starting:,} starting"] if now.starting else []
        parts += [f"{count(now.waiting, 'evaluation')} waiting"] if now.waiting else []
        parts += [f"{now.lost:,} lost"] if now.lost else []
        return "   ".join(parts)


def follow_words(event: WorkerLost) -> str:
    """Return what follows the loss of a worker, a clause."""
    if event.number is None:
        return "another begins in its place" if event.replaced else "no other begins in its place"
    return f"trial {event.number} {'goes to another' if event.again else 'has failed'}"
