"""Candidates held against each other: how accurate each is, in one number, and the front of those nobody dominates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from sae_moo.objectives.evaluation import Constraint, Evaluation, Objective, feasible, maximized, scored
from sae_moo.objectives.pareto import hypervolume, non_dominated

Array = NDArray[np.float64]


class Trial(Protocol):
    """What a study's trial says of itself; see `study.record.TrialRecord`."""

    @property
    def values(self) -> Mapping[str, float]:
        """Objective name -> value, larger is better; empty without a result."""

    @property
    def stderr(self) -> Mapping[str, float]:
        """Objective or task name -> standard error over instances."""

    @property
    def feasible(self) -> bool:
        """Whether it has a result that keeps all limits."""

    @property
    def repeats(self) -> int | None:
        """Number of the trial whose weights and result it shares, or None."""


Candidate = TypeVar("Candidate", bound=Evaluation | Trial)


class Accuracy:
    """The mean of the objectives that are scored on tasks: how good a candidate is, in one number.

    These objectives weigh the same, and within one so do its tasks; a task may count in several. Where no objective is
    scored on tasks, but sparsity or speed alone, nothing says what is accurate: every value and error is 0.0, the
    shares are empty, and the accuracy is false.

    Args:
        objectives: what is maximized, sparsity and speed among it or not.

    Attributes:
        objectives: those of them that are scored on tasks.
        shares: what each task counts, with the sum 1; those that count nothing are left out.
    """

    def __init__(self, objectives: Iterable[Objective]) -> None:
        self.objectives = scored(objectives)
        self.shares: dict[str, float] = {}
        for objective in self.objectives:
            share = 1 / (len(objective.tasks) * len(self.objectives))
            for task in objective.tasks:
                self.shares[task] = self.shares.get(task, 0.0) + share

    def __bool__(self) -> bool:
        return bool(self.objectives)

    @property
    def weights(self) -> dict[str, float]:
        """The weights that make `objectives.loss` this mean; empty if there is none."""
        return {objective.name: 1.0 for objective in self.objectives}

    def value(self, candidate: Evaluation | Trial) -> float:
        """Return how accurate a candidate with a result is, in [0, 1]."""
        if isinstance(candidate, Evaluation):
            return float(self.of({each.name: each.value(candidate) for each in self.objectives}))
        return float(self.of(candidate.values))

    def stderr(self, candidate: Evaluation | Trial) -> float:
        """Return the standard error of `value` over instances; NaN if that of a task is unknown.

        Tasks share no instances and are taken as independent; objectives that share a task are not.
        """
        if isinstance(candidate, Evaluation):
            errors = {task: candidate.stderr(task) for task in self.shares}
        else:
            errors = {task: candidate.stderr.get(task, math.nan) for task in self.shares}
        return math.sqrt(sum((share * errors[task]) ** 2 for task, share in self.shares.items()))

    def of(self, values: Mapping[str, Array | float]) -> Array:
        """Return the mean of values of many candidates.

        Args:
            values: objective name -> value; all of the same shape.

        Returns:
            That shape.
        """
        if not self.objectives:
            return np.zeros(np.shape(next(iter(values.values()), 0.0)))
        mean: Array = np.mean([np.asarray(values[each.name]) for each in self.objectives], axis=0)
        return mean


class Front(Generic[Candidate]):
    """Candidates that none of the others dominates; a value.

    A candidate contends if it has a result that keeps all limits and, being a trial, repeats no other one. Of
    candidates with equal values all are kept.

    Args:
        objectives: what is maximized.
        constraints: limits that an evaluation must keep; a trial says itself whether it keeps them.
        members: who stands on it already, none dominated by another, in the order they were taken in.
        points: their values as shares (`Objective.share`) if these are known, shape (members, objectives).
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        constraints: Sequence[Constraint] = (),
        members: Iterable[Candidate] = (),
        points: Array | None = None,
    ) -> None:
        self.objectives = tuple(objectives)
        self.constraints = tuple(constraints)
        self.members = tuple(members)
        if points is None:
            rows = [_shares(self.objectives, member) for member in self.members]
            points = np.array(rows, dtype=np.float64).reshape(len(rows), len(self.objectives))
        self.points = points

    @cached_property
    def ranked(self) -> tuple[Candidate, ...]:
        """The members, best in the first objective first; of equal ones whoever was taken in first."""
        return tuple(self.members[i] for i in self._ranking)

    @cached_property
    def volume(self) -> float:
        """The hypervolume above the origin, in [0, 1]."""
        return hypervolume(self.points[self._ranking])

    @property
    def _ranking(self) -> NDArray[np.int64]:
        return np.argsort(-self.points[:, 0], kind="stable")

    def point(self, candidate: Candidate) -> Array | None:
        """Return a candidate's values as shares, shape (objectives,); None if it does not contend."""
        if isinstance(candidate, Evaluation):
            contends = feasible(self.constraints, candidate)
        else:
            contends = candidate.feasible and candidate.repeats is None
        return _shares(self.objectives, candidate) if contends else None

    def after(self, candidate: Candidate) -> Front[Candidate]:
        """Return the front once one more candidate is known: this very front unless the candidate stands on it."""
        point = self.point(candidate)
        if point is None or self._dominates(point):
            return self
        kept = ~(self.points <= point).all(axis=1) | self._equal(point)
        members = (*(member for member, keep in zip(self.members, kept, strict=True) if keep), candidate)
        return Front(self.objectives, self.constraints, members, np.vstack([self.points[kept], point]))

    def gain(self, candidate: Candidate) -> float:
        """Return the hypervolume that a candidate would add.

        That is its box less what the front dominates of it, so that it costs a hypervolume of the few points that
        matter inside that box.
        """
        point = self.point(candidate)
        if point is None or self._dominates(point) or self._equal(point).any():
            return 0.0
        inside = np.minimum(self.points, point)
        return float(point.prod()) - hypervolume(inside[non_dominated(inside)])

    def _equal(self, point: Array) -> NDArray[np.bool_]:
        equal: NDArray[np.bool_] = (self.points == point).all(axis=1)
        return equal

    def _dominates(self, point: Array) -> bool:
        return bool(((self.points >= point).all(axis=1) & ~self._equal(point)).any())


def front_of(
    candidates: Iterable[Candidate], objectives: Sequence[Objective], constraints: Sequence[Constraint] = ()
) -> Front[Candidate]:
    """Return the front of many candidates, taken in in their order; see `Front`."""
    empty: Front[Candidate] = Front(objectives, constraints)
    placed = [(each, point) for each in candidates if (point := empty.point(each)) is not None]
    points = np.array([point for _, point in placed]).reshape(len(placed), len(empty.objectives))
    best = non_dominated(points)
    members = [each for (each, _), keep in zip(placed, best, strict=True) if keep]
    return Front(objectives, constraints, members, points[best])


def _shares(objectives: Sequence[Objective], candidate: Evaluation | Trial) -> Array:
    """Return the values of a candidate with a result as shares, shape (objectives,), larger is better."""
    if isinstance(candidate, Evaluation):
        return maximized(objectives, candidate)
    return np.array([objective.share(candidate.values[objective.name]) for objective in objectives])
