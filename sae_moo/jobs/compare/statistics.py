"""Methods held against each other on the test split: what each reached, over seeds, and whether differences are real.

A method's model is always chosen by the search split and judged by the test split. Two kinds of chance are in every
number: which instances were asked, the same for all methods, and which seeds were run. Intervals of a method's own mean
are over seeds (Student's t). Differences from a reference method are paired in both, and their variance is a sum of
two: of the mean over seeds, from the differences of single seeds, and over instances, by bootstrap. Few seeds have few
degrees of freedom (Welch 1947, Satterthwaite 1946), so that three that agree are no proof.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from sae_moo.objectives import SPARSITY, SPEED, Objective, Speed, TaskMean
from sae_moo.objectives.front import Accuracy
from sae_moo.objectives.pareto import hypervolume

Array = NDArray[np.float64]
Found: TypeAlias = Mapping[int, tuple[Mapping[str, Array], Mapping[str, Array]]]
"""Seed -> quantity -> value, as it is and under resampled instances."""
ACCURACY, HYPERVOLUME, SPARSITY_OF_CHOSEN = "accuracy", "hypervolume", SPARSITY
ON_TASK = "accuracy on "  # what begins the name of a quantity that one task has


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """One model of a front, judged.

    Args:
        number: its trial.
        chosen_by: mean of the objectives scored on tasks, on the search split.
        sparsity: its realised sparsity.
        scores: task name -> score per instance of the test split, shape (instances,).
        speed: its modelled speed, where that is an objective.
    """

    number: int
    chosen_by: float
    sparsity: float
    scores: Mapping[str, Array]
    speed: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """One search of one method: its front, judged on the test split, and what it took.

    Args:
        method: name of the method.
        seed: seed of the search.
        front: the models that nothing dominated on the search split; may be empty.
        evaluations: trials made.
        seconds: spent screening, merging and scoring in them.
        progress: after each evaluation, hypervolume of the front and best mean of the objectives scored on tasks, both
            on the search split; shape (evaluations, 2).
        tokens: forward tokens that they took, of screening and of scoring; None where these were not counted.
    """

    method: str
    seed: int
    front: tuple[Point, ...]
    evaluations: int
    seconds: float
    progress: Array
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Contrast:
    """A method minus the reference method.

    Args:
        mean: over seeds.
        low, high: ends of its 95 % interval, over seeds and instances; over instances alone for a single seed.
        p: two-sided, of the same statistic.
        seeds: how many seeds were paired.
    """

    mean: float
    low: float
    high: float
    p: float
    seeds: int


@dataclass(frozen=True, slots=True)
class Summary:
    """One quantity of one method.

    Args:
        values: one per seed; a single one where the seed changes nothing.
        mean: over seeds.
        half: half the width of the 95 % t interval over seeds; NaN for a single value.
        difference: from the reference method; None for the reference itself.
    """

    values: tuple[float, ...]
    mean: float
    half: float
    difference: Contrast | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What a comparison found.

    Args:
        name: the study's name.
        folder: where everything lies.
        reference: the method that others are held against.
        methods: method -> quantity -> what it was on the test split; see `summaries`.
        outcomes: every search that ended.
        failed: search -> why it failed.
        objectives: names of the objectives; the hypervolume is above the origin of these.
        files: what was written.
    """

    name: str
    folder: Path
    reference: str
    methods: Mapping[str, Mapping[str, Summary]]
    outcomes: tuple[Outcome, ...]
    failed: Mapping[str, str]
    objectives: tuple[str, ...]
    files: tuple[Path, ...]


def threshold_name(threshold: float) -> str:
    """Return what the accuracy of the best model at or above a sparsity is called."""
    return f"accuracy at sparsity >= {threshold:g}"


def summaries(
    outcomes: Sequence[Outcome],
    objectives: Sequence[Objective],
    reference: str,
    thresholds: Sequence[float] = (0.0, 0.3, 0.5, 0.6),
    resamples: int = 2000,
    seed: int = 0,
    unseeded: Collection[str] = (),
) -> dict[str, dict[str, Summary]]:
    """Return method -> quantity -> what it was, on the test split.

    Quantities: ``accuracy`` of the chosen model (mean of the objectives scored on tasks), its ``sparsity``, its
    ``speed`` where that is an objective, ``accuracy on TASK`` of the chosen model, ``accuracy at sparsity >= t`` of the
    best model that sparse, ``hypervolume`` of the front above the origin (`Objective.share`). Which model is chosen, or
    best, is said by the search split. Where a front holds no model that sparse the accuracy is 0: there is none to
    serve.

    Args:
        outcomes: in the order of the methods; all scored on the same instances.
        objectives: what was maximized.
        reference: name of the method that the others are held against.
        thresholds: sparsities, ascending, each in [0, 1).
        resamples: of the bootstrap.
        seed: of the bootstrap.
        unseeded: methods whose seed changes nothing: their one outcome stands beside every seed of the others.

    Raises:
        ValueError: if the reference has no outcome, or outcomes were scored on different instances.
    """
    methods = list(dict.fromkeys(outcome.method for outcome in outcomes))
    if reference not in methods:
        raise ValueError(f"reference: expected one of {', '.join(methods)}, got {reference!r}")
    first = next((point for outcome in outcomes for point in outcome.front), None)
    sizes = {} if first is None else {task: len(row) for task, row in first.scores.items()}
    rng = np.random.default_rng(seed)
    weights = {task: rng.multinomial(n, np.full(n, 1 / n), size=resamples).T / n for task, n in sizes.items()}
    whole = {task: np.full((n, 1), 1 / n) for task, n in sizes.items()}
    found: dict[str, dict[int, tuple[Mapping[str, Array], Mapping[str, Array]]]] = {name: {} for name in methods}
    for outcome in outcomes:
        if any({t: len(r) for t, r in point.scores.items()} != sizes for point in outcome.front):
            raise ValueError(f"{outcome.method}, seed {outcome.seed}: scored on other instances than the first method")
        now = _quantities(outcome, objectives, thresholds, whole, 1)
        found[outcome.method][outcome.seed] = now, _quantities(outcome, objectives, thresholds, weights, resamples)
    seeds = sorted({outcome.seed for outcome in outcomes})

    def beside_all(name: str) -> Found:
        own = found[name]
        return dict.fromkeys(seeds, next(iter(own.values()))) if name in unseeded else own

    return {
        name: {
            quantity: Summary(
                values := tuple(float(found[name][s][0][quantity][0]) for s in sorted(found[name])),
                float(np.mean(values)),
                _half(values),
                None if name == reference else _difference(beside_all(name), beside_all(reference), quantity),
            )
            for quantity in next(iter(found[name].values()))[0]
        }
        for name in methods
    }


def _quantities(
    outcome: Outcome,
    objectives: Sequence[Objective],
    thresholds: Sequence[float],
    weights: Mapping[str, Array],
    columns: int,
) -> dict[str, Array]:
    """Return quantity -> value under each column of instance weights, shape (columns,)."""
    tasks = {
        task: np.stack([p.scores[task] for p in outcome.front]) @ w for task, w in weights.items() if outcome.front
    }
    sparsity = np.array([point.sparsity for point in outcome.front])
    counted = {SPARSITY: sparsity, SPEED: np.array([point.speed for point in outcome.front], dtype=np.float64)}
    values = {  # as shares, of shape (points, columns)
        objective.name: np.mean([tasks[task] for task in objective.tasks], axis=0)
        if isinstance(objective, TaskMean)
        else np.repeat(np.array([[objective.share(value)] for value in counted[objective.name]]), columns, axis=1)
        for objective in objectives
        if outcome.front
    }
    accuracy = Accuracy(objectives).of(values) if outcome.front else np.zeros((0, columns))
    order = sorted(range(len(outcome.front)), key=lambda i: (-outcome.front[i].chosen_by, -outcome.front[i].sparsity))
    nothing = np.zeros(columns)
    chosen = order[0] if order else None
    result = {
        ACCURACY: nothing if chosen is None else accuracy[chosen],
        SPARSITY_OF_CHOSEN: nothing if chosen is None else np.full(columns, sparsity[chosen]),
    }
    if any(isinstance(objective, Speed) for objective in objectives):
        result[SPEED] = nothing if chosen is None else np.full(columns, counted[SPEED][chosen])
    for task in weights:
        result[f"{ON_TASK}{task}"] = nothing if chosen is None else tasks[task][chosen]
    for threshold in thresholds:
        able = [i for i in order if outcome.front[i].sparsity >= threshold]
        result[threshold_name(threshold)] = accuracy[able[0]] if able else nothing
    result[HYPERVOLUME] = np.array(
        [
            hypervolume(np.stack([value[:, b] for value in values.values()], axis=1)) if values else 0.0
            for b in range(columns)
        ]
    )
    return result


def _half(values: Sequence[float]) -> float:
    """Return half the width of a mean's 95 % t interval; NaN for a single value."""
    if len(values) < 2:
        return math.nan
    from scipy import stats  # here: it takes a second, and most commands compare nothing

    return float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))


def _difference(method: Found, reference: Found, quantity: str) -> Contrast | None:
    """Return a method minus the reference over the seeds that both have; None if they share none."""
    seeds = [seed for seed in method if seed in reference]
    if not seeds:
        return None
    now = np.array([method[seed][0][quantity][0] - reference[seed][0][quantity][0] for seed in seeds])
    resampled = np.mean([method[seed][1][quantity] - reference[seed][1][quantity] for seed in seeds], axis=0)
    mean, count = float(now.mean()), len(seeds)
    over_instances = float(resampled.var(ddof=1))
    over_seeds = float(now.var(ddof=1)) / count if count > 1 else 0.0
    spread = math.sqrt(over_instances + over_seeds)
    if spread == 0.0:
        return Contrast(mean, mean, mean, 1.0 if mean == 0.0 else 0.0, count)
    from scipy import stats

    # Welch-Satterthwaite; the bootstrap's own degrees of freedom are beyond count
    freedom = math.inf if over_seeds == 0.0 else spread**4 / (over_seeds**2 / (count - 1))
    reach = float(stats.t.ppf(0.975, freedom)) * spread
    return Contrast(mean, mean - reach, mean + reach, float(2 * stats.t.sf(abs(mean) / spread, freedom)), count)
