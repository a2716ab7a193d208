"""Methods held against each other on the test split: what each reached, over seeds, and whether differences are real.

A method's model is always chosen by the search split and judged by the test split. Two kinds of chance are in every
number: which instances were asked, the same for all methods, and which seeds were run. Intervals of a method's own mean
are over seeds (Student's t); differences from a reference method are bootstrapped over both, paired in both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sae_moo.objectives import Objective
from sae_moo.pareto import hypervolume

Array = NDArray[np.float64]
ACCURACY, HYPERVOLUME, SPARSITY_OF_CHOSEN = "accuracy", "hypervolume", "sparsity"


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """One model of a front, judged.

    Args:
        number: its trial.
        chosen_by: mean of the objectives scored on tasks, on the search split.
        sparsity: its realised sparsity.
        scores: task name -> score per instance of the test split, shape (instances,).
    """

    number: int
    chosen_by: float
    sparsity: float
    scores: Mapping[str, Array]


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """One search of one method: its front, judged on the test split, and what it took.

    Args:
        method: name of the method.
        seed: seed of the search.
        front: the models that nothing dominated on the search split; may be empty.
        evaluations: trials made.
        seconds: spent merging and scoring in them.
        progress: after each evaluation, hypervolume of the front and best mean of the objectives scored on tasks, both
            on the search split; shape (evaluations, 2).
    """

    method: str
    seed: int
    front: tuple[Point, ...]
    evaluations: int
    seconds: float
    progress: Array


@dataclass(frozen=True, slots=True)
class Difference:
    """A method minus the reference method.

    Args:
        mean: over seeds.
        low, high: ends of its 95 % interval, bootstrapped over instances and seeds.
        p: two-sided; the share of resamples on the other side of zero, doubled.
    """

    mean: float
    low: float
    high: float
    p: float


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
    difference: Difference | None


def threshold_name(threshold: float) -> str:
    """Return what the accuracy of the best model at or above a sparsity is called."""
    return f"accuracy at sparsity >= {threshold:g}"


def compare(
    cells: Sequence[Cell],
    objectives: Sequence[Objective],
    reference: str,
    thresholds: Sequence[float] = (0.0, 0.3, 0.5, 0.6),
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, dict[str, Summary]]:
    """Return method -> quantity -> what it was, on the test split.

    Quantities: ``accuracy`` of the chosen model (mean of the objectives scored on tasks), its ``sparsity``, ``accuracy
    on TASK`` of the chosen model, ``accuracy at sparsity >= t`` of the best model that sparse, ``hypervolume`` of the
    front above the origin. Which model is chosen, or best, is said by the search split. Where a front holds no model
    that sparse the accuracy is 0: there is none to serve.

    Args:
        cells: in the order of the methods; all scored on the same instances.
        objectives: what was maximized.
        reference: name of the method that the others are held against.
        thresholds: sparsities, ascending, each in [0, 1).
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: if the reference has no cell, or cells were scored on different instances.
    """
    methods = list(dict.fromkeys(cell.method for cell in cells))
    if reference not in methods:
        raise ValueError(f"reference: expected one of {', '.join(methods)}, got {reference!r}")
    first = next((point for cell in cells for point in cell.front), None)
    sizes = {} if first is None else {task: len(row) for task, row in first.scores.items()}
    rng = np.random.default_rng(seed)
    weights = {task: rng.multinomial(n, np.full(n, 1 / n), size=resamples).T / n for task, n in sizes.items()}
    whole = {task: np.full((n, 1), 1 / n) for task, n in sizes.items()}
    found: dict[str, dict[int, tuple[dict[str, Array], dict[str, Array]]]] = {name: {} for name in methods}
    for cell in cells:
        if any({t: len(r) for t, r in point.scores.items()} != sizes for point in cell.front):
            raise ValueError(f"{cell.method}, seed {cell.seed}: scored on other instances than the first method")
        quantities = (_quantities(cell, objectives, thresholds, w) for w in (whole, weights))
        found[cell.method][cell.seed] = tuple(quantities)  # type: ignore[assignment]
    seeds = sorted({cell.seed for cell in cells})
    drawn = rng.integers(len(seeds), size=(resamples, len(seeds)))
    return {
        name: {
            quantity: _summary(found[name], None if name == reference else found[reference], quantity, seeds, drawn)
            for quantity in next(iter(found[name].values()))[0]
        }
        for name in methods
    }


def _quantities(
    cell: Cell, objectives: Sequence[Objective], thresholds: Sequence[float], weights: Mapping[str, Array]
) -> dict[str, Array]:
    """Return quantity -> value under each column of instance weights, shape (columns,)."""
    columns = next(iter(weights.values())).shape[1] if weights else 1
    tasks = {task: np.stack([p.scores[task] for p in cell.front]) @ w for task, w in weights.items() if cell.front}
    sparsity = np.array([point.sparsity for point in cell.front])
    values = [  # (points, columns) per objective
        np.mean([tasks[task] for task in objective.tasks], axis=0)
        if objective.tasks
        else np.repeat(sparsity[:, None], columns, axis=1)
        for objective in objectives
        if cell.front
    ]
    scored = [value for value, objective in zip(values, objectives, strict=False) if objective.tasks]
    accuracy = np.mean(scored, axis=0) if scored else np.zeros((len(cell.front), columns))
    order = sorted(range(len(cell.front)), key=lambda i: (-cell.front[i].chosen_by, -cell.front[i].sparsity))
    nothing = np.zeros(columns)
    chosen = order[0] if order else None
    result = {
        ACCURACY: nothing if chosen is None else accuracy[chosen],
        SPARSITY_OF_CHOSEN: nothing if chosen is None else np.full(columns, sparsity[chosen]),
    }
    for task in weights:
        result[f"accuracy on {task}"] = nothing if chosen is None else tasks[task][chosen]
    for threshold in thresholds:
        able = [i for i in order if cell.front[i].sparsity >= threshold]
        result[threshold_name(threshold)] = accuracy[able[0]] if able else nothing
    result[HYPERVOLUME] = np.array(
        [hypervolume(np.stack([value[:, b] for value in values], axis=1)) if values else 0.0 for b in range(columns)]
    )
    return result


Found = Mapping[int, tuple[Mapping[str, Array], Mapping[str, Array]]]


def _summary(
    method: Found, reference: Found | None, quantity: str, seeds: Sequence[int], drawn: NDArray[np.int64]
) -> Summary:
    own = [float(method[seed][0][quantity][0]) for seed in sorted(method)]
    half = math.nan
    if len(own) > 1:
        half = float(stats.t.ppf(0.975, len(own) - 1) * np.std(own, ddof=1) / math.sqrt(len(own)))
    difference = None
    if reference is not None:
        pairs = [seed for seed in seeds if _of(method, seed) is not None and _of(reference, seed) is not None]
        if pairs:
            rows = [(_of(method, seed), _of(reference, seed)) for seed in pairs]
            now = [float(a[0][quantity][0] - b[0][quantity][0]) for a, b in rows]  # type: ignore[index]
            resampled = np.stack([a[1][quantity] - b[1][quantity] for a, b in rows])  # type: ignore[index]
            picks = drawn[:, : len(pairs)] % len(pairs)
            means = resampled[picks.T, np.arange(len(drawn))].mean(axis=0)
            low, high = (float(each) for each in np.quantile(means, (0.025, 0.975)))
            tail = min((means <= 0).sum(), (means >= 0).sum())
            p = min(1.0, 2.0 * (int(tail) + 1) / (len(means) + 1))
            difference = Difference(float(np.mean(now)), low, high, p)
    return Summary(tuple(own), float(np.mean(own)), half, difference)


def _of(found: Found, seed: int) -> tuple[Mapping[str, Array], Mapping[str, Array]] | None:
    """Return a method's result for a seed; its only one where the seed changes nothing."""
    return next(iter(found.values())) if len(found) == 1 else found.get(seed)
