"""Evaluations and objectives. The user's objectives are maximized; signs flip here and nowhere else."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sae_moo.objectives.scores import Score, mean, mean_score, mean_stderr, statistics
from sae_moo.recipe import Recipe

SPARSITY, SPEED = "sparsity", "speed"
SCORE_DIGITS = 6  # scores are rounded once, so that a stored evaluation equals the one the search saw


@dataclass(frozen=True, slots=True)
class Stopped:
    """Why an evaluation ended before all instances were asked: another candidate is ahead, as far as can be told.

    Args:
        rival: digest of the other candidate.
        instances: task name -> how many of its instances were asked.
        expected: objective name -> expected value over all instances.
        bound: objective name -> upper confidence bound of that value; the rival dominates these, given the margin.
    """

    rival: str
    instances: Mapping[str, int]
    expected: Mapping[str, float]
    bound: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Screened:
    """How a candidate was chosen, without labels, among several allocations of one budget of zeros.

    Args:
        candidates: how many allocations there were.
        chosen: which of them is the best, from 0 in the order of the proposal.
        similarity: of the chosen one to its teacher, by the configured measure; None if nothing could be told, since
            logits were not finite: then the first one is chosen.
        tokens: how many tokens models read for it, the teacher's among them.
        seconds: wall time spent, merging included.
    """

    candidates: int
    chosen: int
    similarity: float | None
    tokens: int
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What evaluating one recipe gave; a value.

    Args:
        recipe: what was evaluated, with every pruning scope resolved.
        scores: task name -> score per instance of the search split, each in [0, 1], in the task's fixed order; rounded
            to `SCORE_DIGITS` here.
        sparsity: realised fraction of zeros over all prunable weights, in [0, 1).
        group_sparsity: the same per parameter group, in the pool's order; 0 for a group without prunable weights.
        reason: None if the evaluation went well, else why it failed (then scores may be empty) or was stopped.
        stopped: None unless it was stopped early; then there are no scores, since those of some instances could not be
            compared with those of all.
        seconds_merge: wall time spent materializing.
        seconds_score: wall time spent scoring.
        sparseness: another measure of sparsity than the share of zeros, where the search asks for one: of the whole
            model, then per parameter group; else empty.
        speed: modelled tokens per second of the structured export over those of the base, above 0; at least 1 wherever
            nothing is added to the model. None where nobody asked for it.
        tokens: how many tokens the model read while it was scored, those it wrote among them, and while it was
            repaired; None if that is not known, as in studies of builds that did not count them.
        screened: how the candidate was chosen before; None where it was the only one.
    """

    recipe: Recipe
    scores: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    sparsity: float = 0.0
    group_sparsity: tuple[float, ...] = ()
    reason: str | None = None
    stopped: Stopped | None = None
    seconds_merge: float = 0.0
    seconds_score: float = 0.0
    sparseness: tuple[float, ...] = ()
    speed: float | None = None
    tokens: int | None = None
    screened: Screened | None = None
    _found: dict[str, tuple[float, float]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        scores: dict[str, tuple[float, ...]] = {}
        for task, row in self.scores.items():
            rounded = np.round(np.asarray(row, dtype=np.float64), SCORE_DIGITS)
            if rounded.ndim != 1 or not rounded.size or not ((rounded >= 0.0) & (rounded <= 1.0)).all():
                raise ValueError(f"scores of {task!r}: expected numbers in [0, 1], one per instance")
            scores[task] = tuple(rounded.tolist())
        object.__setattr__(self, "scores", scores)
        object.__setattr__(self, "group_sparsity", tuple(self.group_sparsity))
        object.__setattr__(self, "sparseness", tuple(self.sparseness))
        if self.speed is not None and not 0.0 < self.speed < math.inf:
            raise ValueError(f"speed: expected a finite number above 0, got {self.speed}")

    def with_recipe(self, recipe: Recipe) -> Evaluation:
        """Return a copy that names another recipe; its scores are not checked again, and both share them."""
        other = copy(self)
        object.__setattr__(other, "recipe", recipe)
        return other

    @property
    def ok(self) -> bool:
        """Whether there are scores to use."""
        return self.reason is None

    @property
    def seconds(self) -> float:
        """Wall time in all, of screening, merging and scoring."""
        return self.seconds_merge + self.seconds_score + (0.0 if self.screened is None else self.screened.seconds)

    @property
    def spent(self) -> int | None:
        """Forward tokens in all, of screening, repairing and scoring; None if that is not known."""
        return None if self.tokens is None else self.tokens + (0 if self.screened is None else self.screened.tokens)

    def mean(self, task: str) -> float:
        """Return the mean score of a task, in [0, 1]."""
        return self._statistics(task)[0]

    def stderr(self, task: str) -> float:
        """Return the standard error of a task's mean score; NaN with a single instance."""
        return self._statistics(task)[1]

    def _statistics(self, task: str) -> tuple[float, float]:
        """Return the mean score of a task and its standard error, which many ask for: they are found once."""
        if task not in self._found:
            count = len(self.scores[task])
            alike = {name: row for name, row in self.scores.items() if len(row) == count}  # tables take less time
            table = np.array(list(alike.values()))
            self._found.update(zip(alike, zip(*statistics(table), strict=True), strict=True))
        return self._found[task]


class Objective(ABC):
    """One quantity to maximize: `TaskMean`, `Sparsity` or `Speed`.

    Attributes:
        name: how tables and trials call it.
    """

    __slots__ = ()
    name: str

    @abstractmethod
    def value(self, evaluation: Evaluation) -> float:
        """Return the value in the user's direction (larger is better)."""

    @abstractmethod
    def stderr(self, evaluation: Evaluation) -> float:
        """Return the standard error of the value over instances."""

    def share(self, value: float) -> float:
        """Return where a value lies between nothing (0) and all that could be reached (1), in the order of values.

        Searches, hypervolumes and sums see every objective on this scale, people see values. What is in [0, 1] by
        nature is its own share.
        """
        return value


@dataclass(frozen=True, slots=True)
class TaskMean(Objective):
    """The mean score of tasks, which weigh the same.

    Args:
        name: how tables and trials call it.
        tasks: at least one.
    """

    name: str
    tasks: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError(f"objective {self.name!r}: expected at least one task")

    def value(self, evaluation: Evaluation) -> float:
        """Return the mean of the tasks' mean scores."""
        return mean([evaluation.mean(task) for task in self.tasks])

    def stderr(self, evaluation: Evaluation) -> float:
        """Return the standard error of the value over instances; NaN where that of a task is unknown."""
        return mean_stderr([evaluation.stderr(task) for task in self.tasks])


@dataclass(frozen=True, slots=True)
class Sparsity(Objective):
    """The realised fraction of zeros over all prunable weights."""

    name: str = field(default=SPARSITY, init=False)

    def value(self, evaluation: Evaluation) -> float:
        """Return the fraction."""
        return evaluation.sparsity

    def stderr(self, evaluation: Evaluation) -> float:  # noqa: ARG002  # as every objective's
        """Return 0.0: zeros are counted, not sampled."""
        return 0.0


@dataclass(frozen=True, slots=True)
class Speed(Objective):
    """Modelled tokens per second of the structured export, relative to the base: 1 is as fast, 2 twice as fast."""

    name: str = field(default=SPEED, init=False)

    def value(self, evaluation: Evaluation) -> float:
        """Return the speed.

        Raises:
            ValueError: if nobody asked for it when the evaluation was made.
        """
        if evaluation.speed is None:
            raise ValueError("expected an evaluation whose speed was modelled, got one without")
        return evaluation.speed

    def stderr(self, evaluation: Evaluation) -> float:  # noqa: ARG002  # as every objective's
        """Return 0.0: it is computed from the recipe, not sampled."""
        return 0.0

    def share(self, value: float) -> float:
        """Return the share of the base's time that is saved, in [0, 1); below 0 for what is slower than the base."""
        return 1.0 - 1.0 / value if value > 1.0 else value - 1.0


def scored(objectives: Iterable[Objective]) -> tuple[TaskMean, ...]:
    """Return those objectives that are scored on tasks, in their order."""
    return tuple(objective for objective in objectives if isinstance(objective, TaskMean))


@dataclass(frozen=True, slots=True)
class Constraint:
    """A limit on a task's mean score, an objective, sparsity or speed; violated amounts are positive.

    Args:
        objective: the limited quantity.
        low: smallest allowed value, or None.
        high: largest allowed value, or None.
    """

    objective: Objective
    low: float | None = None
    high: float | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the limits, ``x min`` before ``x max``; one per entry of `violations`."""
        both = (("min", self.low), ("max", self.high))
        return tuple(f"{self.objective.name} {side}" for side, limit in both if limit is not None)

    @property
    def words(self) -> tuple[str, ...]:
        """The limits in words, ``at least x`` before ``at most x``; one per entry of `violations`."""
        both = (("at least", self.low), ("at most", self.high))
        return tuple(f"{side} {limit:g}" for side, limit in both if limit is not None)

    def broken(self, evaluation: Evaluation) -> tuple[str, ...]:
        """Return which of the limits an evaluation that went well breaks, each with its value, a clause."""
        name, value = self.objective.name, self.objective.value(evaluation)
        amounts = zip(self.words, self.violations(evaluation), strict=True)
        return tuple(f"{name} {value:.3g} where the limit is {limit}" for limit, amount in amounts if amount > 0)

    def violations(self, evaluation: Evaluation) -> tuple[float, ...]:
        """Return one number per limit: at most 0 when kept, else by how much it is broken (`Objective.share`)."""
        share = self.objective.share
        value = share(self.objective.value(evaluation))
        low = () if self.low is None else (share(self.low) - value,)
        high = () if self.high is None else (value - share(self.high),)
        return low + high


# pymoo needs finite numbers for a failed evaluation. These lie beyond anything a real one can reach (shares are in [-1,
# 1], violations at most 2), so a failure is last in every comparison and never mistaken for a score of 0.
FAILED_OBJECTIVE = 2.0
FAILED_VIOLATION = 10.0


def flipped(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what is maximized as pymoo and Optuna see it: minimized."""
    return -values


def maximized(objectives: Sequence[Objective], evaluation: Evaluation) -> NDArray[np.float64]:
    """Return the values of an evaluation that went well as shares, larger is better; shape (objectives,)."""
    return np.array([objective.share(objective.value(evaluation)) for objective in objectives])


def minimized(objectives: Sequence[Objective], evaluation: Evaluation) -> NDArray[np.float64]:
    """Return the objectives as the search sees them: minimized; shape (objectives,)."""
    if not evaluation.ok:
        return np.full(len(objectives), FAILED_OBJECTIVE)
    return flipped(maximized(objectives, evaluation))


def violations(constraints: Sequence[Constraint], evaluation: Evaluation) -> NDArray[np.float64]:
    """Return all violations, with one more entry that only a failed evaluation breaks; feasible is at most 0."""
    if not evaluation.ok:
        return np.full(violation_count(constraints), FAILED_VIOLATION)
    return np.array([*(v for constraint in constraints for v in constraint.violations(evaluation)), 0.0])


def feasible(constraints: Sequence[Constraint], evaluation: Evaluation) -> bool:
    """Say whether an evaluation went well and keeps all limits."""
    return evaluation.ok and not (violations(constraints, evaluation) > 0).any()


def loss(
    objectives: Sequence[Objective],
    weights: Mapping[str, float],
    constraints: Sequence[Constraint],
    evaluation: Evaluation,
) -> float:
    """Return one number to minimize, for searches that know a single objective.

    What keeps all limits is ordered by the weighted mean of its shares (`Objective.share`) and comes before what breaks
    one; that is ordered by how much it breaks, and comes before failures (Deb 2000's rules, in numbers).

    Args:
        objectives: what is maximized.
        weights: objective name -> how much it counts, at least 0, not all 0; those not named count nothing.
        constraints: limits.
        evaluation: of one candidate.

    Returns:
        In [-1, 0] for what keeps the limits, above 0 else.
    """
    if not evaluation.ok:
        return FAILED_VIOLATION * (1 + len(constraints))
    broken = sum(max(0.0, amount) for amount in violations(constraints, evaluation))
    if broken > 0:
        return float(broken)
    shares = maximized(objectives, evaluation).tolist()
    value = math.fsum(weights.get(each.name, 0.0) * share for each, share in zip(objectives, shares, strict=True))
    return -value / math.fsum(weights.values())


def violation_count(constraints: Sequence[Constraint]) -> int:
    """Return the length of `violations`."""
    return sum(len(constraint.labels) for constraint in constraints) + 1


def named_quantities(
    tasks: Sequence[str], objectives: Sequence[Objective], speed: bool = False
) -> dict[str, Objective]:
    """Return every quantity a limit or a pick may name: objectives, single tasks, sparsity.

    Args:
        tasks: names of all tasks.
        objectives: what is maximized.
        speed: whether evaluations have a modelled speed, which may then be named, too.
    """
    single: dict[str, Objective] = {task: TaskMean(task, (task,)) for task in tasks}
    counted: list[Objective] = [Sparsity(), *([Speed()] if speed else [])]
    return {each.name: each for each in (*single.values(), *objectives, *counted)}


def objective_scores(scores: Mapping[str, Score], objectives: Sequence[Objective]) -> dict[str, Score]:
    """Return the scores of those objectives that are means of several tasks, by name, from those of tasks."""
    return {each.name: mean_score(scores, each.tasks) for each in scored(objectives) if each.name not in scores}
