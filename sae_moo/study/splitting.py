"""One candidate over several workers: shares of it go out, and one worker puts together what was found out.

A pool splits where it has fewer jobs than idle workers, or where the last jobs are evaluated by fewer than are idle.
What is asked and how it is put together is the workers' business: findings are bytes here.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import TypeAlias

from sae_moo.objectives import Evaluation
from sae_moo.study.executor import Answer, Job
from sae_moo.study.post import DriverLine, WorkerLine

GAIN = 0.1
"""Part of the time that splitting must save, by what earlier jobs took, to be done."""
REMEMBERED = 16
"""Earlier jobs that this is reckoned by."""
MISFITS = 2
"""Jobs whose shares did not fit together, in a row, after which none is split any more."""


@dataclass(frozen=True, slots=True)
class Share:
    """A share of what a job's only candidate is asked.

    Args:
        job: the job.
        index: which share, from 0.
        count: how many there are.
    """

    job: Job
    index: int
    count: int


@dataclass(frozen=True, slots=True)
class Joining:
    """All that was found out about a job's candidate in shares, to be put together.

    Args:
        job: the job.
        findings: of the shares, in their order.
    """

    job: Job
    findings: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """What a worker found out with its share.

    Args:
        findings: for whoever puts shares together.
        most: among how many shares such jobs can be split; None: not known.
        began: when the share was taken up, seconds since the epoch.
    """

    findings: bytes
    most: int | None
    began: float


@dataclass(frozen=True, slots=True)
class Misfit:
    """Shares cannot be put together: one worker has to evaluate the whole."""


Errand: TypeAlias = Job | Share | Joining
"""What a worker is sent for."""
Reply: TypeAlias = Answer | Found | Misfit


def job_of(errand: Errand) -> Job:
    """Return the job that a worker is sent for."""
    return errand if isinstance(errand, Job) else errand.job


# letters of jobs and answers are pickles, which begin otherwise
_SHARE, _JOINING, _FOUND, _MISFIT = b"share", b"joining", b"found", b"misfit"


def letter_of(line: DriverLine, errand: Errand) -> bytes:
    """Return the letter that sends a worker for something."""
    match errand:
        case Share(job, index, count):
            return _SHARE + pickle.dumps((index, count, line.written(job)))
        case Joining(job, findings):
            return _JOINING + pickle.dumps((findings, line.written(job)))
        case Job():
            return line.written(errand)


def errand_of(line: WorkerLine, letter: bytes) -> Errand:
    """Return what a letter sends a worker for."""
    if letter.startswith(_SHARE):
        index, count, job = pickle.loads(letter[len(_SHARE) :])
        return Share(line.read(job), index, count)
    if letter.startswith(_JOINING):
        findings, job = pickle.loads(letter[len(_JOINING) :])
        return Joining(line.read(job), findings)
    return line.read(letter)


def found(findings: bytes, most: int | None, began: float, batches: Mapping[str, int]) -> bytes:
    """Return as a letter what a worker found out with its share; see `Found` and `WorkerLine.written`."""
    return _FOUND + pickle.dumps((Found(findings, most, began), dict(batches)))


def misfit(batches: Mapping[str, int]) -> bytes:
    """Return as a letter that shares cannot be put together."""
    return _MISFIT + pickle.dumps((Misfit(), dict(batches)))


def reply_of(line: DriverLine, letter: bytes) -> tuple[Reply, Mapping[str, int]]:
    """Return what a worker came back with, and how many tokens it computes at once."""
    for kind in (_FOUND, _MISFIT):
        if letter.startswith(kind):
            reply: tuple[Reply, Mapping[str, int]] = pickle.loads(letter[len(kind) :])
            return reply
    return line.read(letter)


@dataclass(slots=True)
class Split:
    """A job that is out in shares.

    Args:
        job: the job.
        count: how many shares there are.
        found: what came of each, by its index.
        workers: who it came of, likewise.
    """

    job: Job
    count: int
    found: dict[int, Found] = field(default_factory=dict)
    workers: dict[int, str] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether all shares are back."""
        return len(self.found) == self.count

    @property
    def joining(self) -> Joining:
        """What is to be put together."""
        return Joining(self.job, tuple(self.found[i].findings for i in range(self.count)))

    @property
    def began(self) -> float:
        """When the first share was taken up."""
        return min(each.began for each in self.found.values())

    @property
    def names(self) -> str:
        """Who evaluated it, each once, in the order of their shares."""
        return ", ".join(dict.fromkeys(self.workers[i] for i in range(self.count)))


class Shares:
    """Reckons into how many shares jobs are best split, by what earlier ones took.

    It makes no difference to what comes of a candidate but for one: one that races is asked everything in shares, and
    takes more forward tokens.

    Args:
        races: whether candidates that race are split.
    """

    def __init__(self, races: bool = True) -> None:
        self._races = races
        self._merging: list[float] = []
        self._scoring: dict[bool, list[float]] = {False: [], True: []}  # by whether it raced
        self._most: int | None = None
        self._misfits = 0

    def note(self, job: Job, evaluation: Evaluation, shares: int = 1) -> None:
        """Take in what a job took, over so many shares: each merges its candidate."""
        self._misfits = 0 if shares > 1 else self._misfits
        told = evaluation.ok or evaluation.stopped is not None
        if told and evaluation.seconds_score > 0:  # 0: it was known before
            raced = job.rivals is not None and shares == 1  # in shares, everything is asked
            self._merging = [*self._merging, evaluation.seconds_merge / shares][-REMEMBERED:]
            self._scoring[raced] = [*self._scoring[raced], evaluation.seconds_score][-REMEMBERED:]

    def note_most(self, most: int | None) -> None:
        """Take in among how many shares a job can be split."""
        self._most = self._most if most is None else most

    def note_misfit(self) -> None:
        """Take in that shares did not fit together."""
        self._misfits += 1

    def best(self, jobs: Iterable[Job], idle: int, passed: float | None = None) -> int:
        """Return into how many shares each of some jobs is best split, 1 for not at all.

        Args:
            jobs: those nobody has; a job of several recipes is not split, nor are those beside it.
            idle: workers that wait.
            passed: seconds since the first of the jobs was begun, of which another worker each has all, and goes on;
                None: nobody has them. Such are asked twice, which is not done where forward tokens count, nor before
                it is known what jobs take.
        """
        jobs = list(jobs)
        if passed is not None and not (self._races and self._scoring[False]):
            return 1
        if not self._races and any(job.rivals is not None for job in jobs):
            return 1
        most = idle if self._most is None else min(idle, self._most)
        if not 0 < len(jobs) < idle or self._misfits >= MISFITS or any(len(job.recipes) > 1 for job in jobs):
            return 1
        merging, whole = _typical(self._merging, 0.0), _typical(self._scoring[False], 1.0)
        raced = _typical(self._scoring[True], whole) if any(job.rivals is not None for job in jobs) else whole

        def seconds(shares: int) -> float:
            return -(-len(jobs) * shares // idle) * (merging + whole / shares)

        best = min(range(2, most + 1), key=seconds, default=1)
        return best if best > 1 and seconds(best) < (1 - GAIN) * (merging + raced - (passed or 0.0)) else 1


def _typical(seconds: list[float], unknown: float) -> float:
    return median(seconds) if seconds else unknown
