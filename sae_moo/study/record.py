"""One trial as the study holds it, and trials in the order of events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Literal, TypeAlias

from sae_moo.objectives import Evaluation
from sae_moo.recipe import Recipe


def weight_of(expert: str) -> str:
    """Return what a trial's parameters call the mean mixing weight of an expert."""
    return f"weight {expert}"


@dataclass(frozen=True, slots=True)
class Inherited:
    """Where a trial was evaluated that a study took over: an earlier study, or one that searches beside it.

    Args:
        study: name of that study.
        number: its trial there.
    """

    study: str
    number: int

    def __str__(self) -> str:
        return f"trial {self.number} of {self.study}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is known of a trial from its beginning: what the search asked for.

    Args:
        number: Optuna's trial number, from 0.
        asked: what the search proposed.
        asked_digest: identity of `asked`.
        operator, generation, parents: where the candidate comes from; parents are trial numbers.
        asked_after: how many evaluations had been told when this one was asked for.
        params: the numbers worth plotting.
        vector: the coordinates that the searcher knows the recipe by, where the search is over vectors; else empty.
        allocations: identity of `asked` with its alternatives in their order; None where it had none.
    """

    number: int
    asked: Recipe
    asked_digest: str
    operator: str
    generation: int
    parents: tuple[int, ...]
    asked_after: int
    params: Mapping[str, float] = field(default_factory=dict)
    vector: tuple[float, ...] = ()
    allocations: str | None = None

    @property
    def identity(self) -> str:
        """What proposals with the same result have in common: one that was screened is none that was not."""
        return self.allocations or self.asked_digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Running(Asked):
    """A trial that has begun and not ended: it is being evaluated, or its search was killed meanwhile."""

    @property
    def state(self) -> Literal["running"]:
        """What tables call it."""
        return "running"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended(Asked):
    """A trial that was evaluated: with a result, failed, or stopped in a race.

    Args:
        recipe: `asked` with every pruning scope resolved, or that alternative to it which was chosen; else they differ
            for group and global scopes only.
        digest: identity of `recipe`.
        evaluation: what came of it.
        values: objective name -> value in the user's direction; empty unless complete.
        stderr: objective or task name -> standard error of the mean over instances.
        feasible: whether all limits are kept; False unless complete.
        told: position of this evaluation among those told.
        repeats: number of the trial whose weights and result this one shares, or None.
        inherited: the trial of another study that this one is, or None. It took nothing of this study's budget.
        worker: who evaluated it, several names with commas between them where they shared it; empty: the process that
            searched.
        began: when it was taken up, seconds since the epoch; None: not known, or nobody had to evaluate it.
        losses: workers that were lost over it.
    """

    recipe: Recipe
    digest: str
    evaluation: Evaluation
    values: Mapping[str, float]
    stderr: Mapping[str, float]
    feasible: bool
    told: int
    repeats: int | None = None
    inherited: Inherited | None = None
    worker: str = ""
    began: float | None = None
    losses: int = 0

    @property
    def workers(self) -> tuple[str, ...]:
        """Each who evaluated it; several where they shared it, none where the process that searched did."""
        return tuple(self.worker.split(", ")) if self.worker else ()

    @property
    def state(self) -> Literal["complete", "failed", "stopped", "partial"]:
        """What tables call it.

        ``stopped`` in a race, see `objectives.Stopped`; ``partial`` where it is of an earlier study that did not have
        all of the tasks.
        """
        if self.evaluation.ok:
            return "complete"
        if self.inherited is not None:
            return "partial"
        return "failed" if self.evaluation.stopped is None else "stopped"


TrialRecord: TypeAlias = Running | Ended
"""One trial as the study holds it."""


def ended(records: Iterable[TrialRecord]) -> list[Ended]:
    """Return the trials that have ended, in the order given."""
    return [record for record in records if isinstance(record, Ended)]


def told(records: Iterable[TrialRecord]) -> list[Ended]:
    """Return the trials that have ended, in the order in which the search was told of them."""
    return sorted(ended(records), key=lambda record: record.told)


def inherited(records: Iterable[TrialRecord]) -> list[Ended]:
    """Return the trials that were evaluated by other studies, in the order given."""
    return [record for record in ended(records) if record.inherited is not None]


def founding(records: Iterable[TrialRecord]) -> list[Ended]:
    """Return the trials that a study took over before it made any itself, in the order in which they were told."""
    return list(takewhile(lambda record: record.inherited is not None, told(records)))


def own(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Return the trials that a study made itself, in the order given."""
    return [record for record in records if isinstance(record, Running) or record.inherited is None]


def evaluations(records: Iterable[TrialRecord]) -> int:
    """Return how many evaluations of a study's own have ended: with a result, failed or stopped."""
    return len(ended(own(records)))


def tokens(records: Iterable[TrialRecord]) -> int | None:
    """Return how many forward tokens a study's own evaluations took, repeated ones once; None if one does not tell."""
    spent = [record.evaluation.spent for record in ended(own(records)) if record.repeats is None]
    known = [count for count in spent if count is not None]
    return sum(known) if len(known) == len(spent) else None
