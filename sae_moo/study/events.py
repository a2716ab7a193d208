"""What a study tells whoever listens: what it was begun with, every trial that begins and ends, why it is over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sae_moo.searchers.searcher import Proposal
from sae_moo.study.executor import Crewed, WorkerLost
from sae_moo.study.record import Ended, TrialRecord


@dataclass(frozen=True, slots=True)
class PutAside:
    """An earlier run of the same name was put aside, to start anew.

    Args:
        folder: where it lies now.
    """

    folder: Path


@dataclass(frozen=True, slots=True)
class Opened:
    """Models and tasks are open.

    Args:
        merging: how recipes become weights here, for people: by which form of the arithmetic, on which device.
    """

    merging: str


@dataclass(frozen=True, slots=True)
class Resumed:
    """The study's earlier trials were replayed.

    Args:
        records: the trials.
        seconds: wall time of the replay.
    """

    records: Sequence[TrialRecord]
    seconds: float


@dataclass(frozen=True, slots=True)
class Begun:
    """One more candidate is being evaluated.

    Args:
        number: of its trial.
        proposal: what the search asked for.
    """

    number: int
    proposal: Proposal


@dataclass(frozen=True, slots=True)
class Finished:
    """One more trial ended.

    Args:
        record: the trial.
    """

    record: Ended


@dataclass(frozen=True, slots=True)
class Exhausted:
    """The search has nothing left to try before its budget is used up.

    Args:
        evaluations: trials it made.
        budget: trials it might have made.
        unproposed: how many of those that it did not make its algorithm had no candidate for.
        unrepaired: for how many of them the front has no member that could be repaired.
    """

    evaluations: int
    budget: int
    unproposed: int = 0
    unrepaired: int = 0


@dataclass(frozen=True, slots=True)
class Spent:
    """The budget of forward tokens is used up before that of evaluations.

    Args:
        evaluations: trials that were made.
        tokens: forward tokens that they took.
        budget: forward tokens that they might take.
    """

    evaluations: int
    tokens: int
    budget: int


@dataclass(frozen=True, slots=True)
class Arrived:
    """A trial of a study that searches beside this one was taken over.

    Args:
        record: the trial, as it stands in this study.
    """

    record: Ended


Event = PutAside | Opened | Resumed | Crewed | Begun | WorkerLost | Finished | Arrived | Exhausted | Spent
Listener = Callable[[Event], None]
