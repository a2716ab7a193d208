"""The contract of what evaluates: jobs go out, answers come back in whatever order they are ready."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from sae_moo.objectives import Evaluation
from sae_moo.objectives.front import Front
from sae_moo.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Job:
    """One candidate to evaluate; weights never travel.

    Args:
        number: what to call it: the number of its trial.
        recipes: the candidate, or several of which the best is evaluated, the one that was asked for first.
        rivals: the front it races against; None: it is asked everything.
    """

    number: int
    recipes: tuple[Recipe, ...]
    rivals: Front[Evaluation] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a job.

    Args:
        number: the job's.
        evaluation: of its candidate.
        began: when it was taken up, seconds since the epoch by the clock of whoever evaluated it; None: not known.
        worker: who evaluated it, several names with ", " between them where they shared it; empty: this process.
        losses: workers that were lost over it before.
    """

    number: int
    evaluation: Evaluation
    began: float | None = None
    worker: str = ""
    losses: int = 0


@dataclass(frozen=True, slots=True)
class Crewed:
    """Who evaluates, as it stands now; told whenever that changes.

    Args:
        size: how many workers there are to be, without those that were given up.
        ready: name of each that has opened experts and tasks -> facts about it, for people (`crew.Ready`).
        busy: how many of these evaluate.
        waiting: candidates that no worker has yet.
        lost: workers that were lost so far.
    """

    size: int
    ready: Mapping[str, Mapping[str, str]]
    busy: int
    waiting: int
    lost: int

    @property
    def starting(self) -> int:
        """How many are still to come."""
        return max(0, self.size - len(self.ready))


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """A worker is gone.

    Args:
        worker: its name.
        why: as far as can be told, a clause.
        number: the trial that it evaluated; None: it had none.
        again: whether another worker gets that trial; else it has failed.
        replaced: whether another worker begins in its place.
    """

    worker: str
    why: str
    number: int | None
    again: bool
    replaced: bool


class Executor(Protocol):
    """Evaluates jobs, here or elsewhere.

    Promises: every submitted job comes back from `wait` exactly once, in any order; `free` says whether another job may
    be submitted now, `busy` whether any has not come back yet; with nothing out it is free. What comes of a candidate
    does not depend on who evaluates it or on what else is out. A candidate's fault is an evaluation with a reason,
    one of ours is raised by `wait`. After `close` nothing runs on, however `wait` was left; closing twice is once.
    """

    @property
    def free(self) -> bool:
        """Whether a job can be submitted."""

    @property
    def busy(self) -> bool:
        """Whether a job is out."""

    def submit(self, job: Job) -> None:
        """Take a job.

        Raises:
            RuntimeError: if it is not free, or has a job of that number.
        """

    def wait(self) -> Answer:
        """Return what came of one job, when it is there.

        Raises:
            RuntimeError: if no job is out.
            RunError: if nobody is left to evaluate it, or a worker cannot go on.
            InputError: if a worker has other experts or tasks than this process, or cannot open them.
            StorageError: if a place that a worker writes to has no room.
        """

    def close(self) -> None:
        """End whatever evaluates; jobs that are out are given up."""
