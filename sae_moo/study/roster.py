"""A crew whose lost workers are replaced, as long as there is hope."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from heapq import heappop, heappush

from sae_moo.errors import RunError
from sae_moo.study.crew import Crew, Lost, Ready, Refused, Replied
from sae_moo.study.executor import WorkerLost

log = logging.getLogger(__name__)

STARTS = 3
"""Workers that may be lost in a row before they are ready, for each that there is to be; then no more are begun."""
PAUSE = 2.0
"""Seconds until another is begun, for every time that so many were lost in a row before they were ready."""


class Roster:
    """Hears a crew and replaces who is lost; where worker after worker is lost before it is ready there are fewer.

    Args:
        crew: the workers; they begin when they are heard first.
        clock: seconds, from whenever.
    """

    def __init__(self, crew: Crew, clock: Callable[[], float] = time.monotonic) -> None:
        self._crew = crew
        self._clock = clock
        self._begun = self._closed = False
        self._ready: set[str] = set()
        self._given_up = 0  # of the workers that there are to be
        self._lost_early = 0  # in a row
        self._why = ""  # the last of these was lost
        self._due: list[tuple[float, str]] = []  # a heap: when a lost worker is replaced

    @property
    def size(self) -> int:
        """How many workers there are to be, without those that were given up."""
        return self._crew.size - self._given_up

    def begin(self) -> None:
        """Let the workers begin, if they have not; see `Crew.begin`."""
        if not self._begun:
            self._begun = True
            self._crew.begin()

    def send(self, worker: str, letter: bytes) -> None:
        """Send a letter to a worker that is ready."""
        self._crew.send(worker, letter)

    def hear(self) -> Sequence[Ready | Replied | WorkerLost]:
        """Return what was heard since, once there is anything, or a worker was replaced.

        Raises:
            RunError: if no worker is left.
            SaeMooError: what a worker raises that cannot do what it is for: `InputError`, `StorageError`, `RunError`;
                RuntimeError with its traceback where the fault is ours.
        """
        if not self.size:
            raise RunError(
                f"no worker is left: {self._lost_early} in a row were lost before they were ready, the last one: "
                f"{self._why}"
            )
        return [self._taken(heard) for heard in self._crew.hear(self._until_due())]

    def close(self) -> None:
        """End all workers."""
        if not self._closed:
            self._closed = True
            self._crew.close()

    def _taken(self, heard: Ready | Replied | Lost | Refused) -> Ready | Replied | WorkerLost:
        match heard:
            case Ready(worker, facts):
                log.info("%s is ready: %s", worker, facts)
                self._ready.add(worker)
                self._lost_early = 0
                return heard
            case Replied():
                return heard
            case Refused(worker, message, kind):
                raise RuntimeError(f"{worker}:\n{message}") if kind is None else kind(f"{worker}: {message}")
            case Lost(worker, why):
                log.info("%s is lost: %s", worker, why)
                return WorkerLost(worker, why, None, again=False, replaced=self._replace(worker, why))

    def _replace(self, worker: str, why: str) -> bool:
        """Let another worker begin in the place of a lost one, now or later; return whether one does."""
        if worker in self._ready:
            self._ready.discard(worker)
            self._crew.replace(worker)
            return True
        rounds = self._lost_early // self._crew.size
        self._lost_early += 1
        self._why = why
        if rounds >= STARTS:
            self._given_up += 1
            if self.size:
                others = f"{self.size} worker{'' if self.size == 1 else 's'}"
                log.warning("%s could not be begun (%s); the work goes on with %s", worker, why, others)
            return False
        heappush(self._due, (self._clock() + PAUSE * rounds, worker))
        return True

    def _until_due(self) -> float | None:
        """Replace lost workers whose time has come; return how long it is until the next one's, None if there is none.

        Nobody else may be heard meanwhile.
        """
        while self._due and self._due[0][0] <= self._clock():
            self._crew.replace(heappop(self._due)[1])
        return max(0.0, self._due[0][0] - self._clock()) if self._due else None
