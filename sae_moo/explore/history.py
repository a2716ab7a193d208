"""A study over time, and where a trial comes from."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sae_moo.objectives import Objective
from sae_moo.objectives.front import Front
from sae_moo.study.record import Ended, TrialRecord, ended, told

Array = NDArray[np.float64]


def hypervolumes(records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> Array:
    """Return the hypervolume of the front above the origin after each evaluation; shape (evaluations,), ascending.

    Args:
        records: all trials.
        objectives: what is maximized; measured as shares (`Objective.share`).
    """
    front: Front[Ended] = Front(objectives)
    gains = []
    for record in told(records):
        gains.append(front.gain(record))
        front = front.after(record)
    return np.cumsum(gains)


@dataclass(frozen=True, slots=True, eq=False)
class Generations:
    """Numbers of each generation that has a trial with a result.

    Args:
        number: of the generation, shape (generations,).
        sparsity: lower quartile, median and upper quartile of the realised sparsity, shape (generations, 3).
        ratio: median annealed pruning ratio, shape (generations,); NaN where nothing was pruned at one.
    """

    number: NDArray[np.int64]
    sparsity: Array
    ratio: Array


def generations(records: Sequence[TrialRecord], ratio: str) -> Generations:
    """Return realised sparsity and pruning ratio by generation.

    Args:
        records: all trials; those without a result are left out.
        ratio: the parameter that says what ratio a candidate was pruned at.
    """
    rows: dict[int, list[tuple[float, float]]] = {}
    for record in ended(records):
        if record.values:
            pair = record.evaluation.sparsity, record.params.get(ratio, np.nan)
            rows.setdefault(record.generation, []).append(pair)
    numbers = sorted(rows)
    sparsities = [np.quantile([pair[0] for pair in rows[n]], (0.25, 0.5, 0.75)) for n in numbers]
    drawn = [np.array([pair[1] for pair in rows[n] if pair[1] == pair[1]]) for n in numbers]
    return Generations(
        np.array(numbers, dtype=np.int64),
        np.array(sparsities).reshape(-1, 3),
        np.array([float(np.median(each)) if len(each) else np.nan for each in drawn]),
    )


@dataclass(frozen=True, slots=True)
class Lineage:
    """A trial and its nearest ancestors.

    Args:
        numbers: trial numbers, ascending; the trial itself is the last.
        edges: (parent, child) trial numbers among these.
        hidden: how many further ancestors there are.
    """

    numbers: tuple[int, ...]
    edges: tuple[tuple[int, int], ...]
    hidden: int


def lineage(records: Sequence[TrialRecord], number: int, most: int = 24) -> Lineage:
    """Return where a trial comes from.

    Args:
        records: all trials, in order of their numbers.
        number: the trial.
        most: how many trials to show, the trial among them; the fewest steps away come first, older ones last.
    """
    steps = {number: 0}
    queue = deque([number])
    while queue:
        now = queue.popleft()
        for parent in records[now].parents:
            if parent not in steps:
                steps[parent] = steps[now] + 1
                queue.append(parent)
    shown = sorted(sorted(steps, key=lambda n: (steps[n], -n))[:most])
    edges = [(parent, child) for child in shown for parent in dict.fromkeys(records[child].parents) if parent in shown]
    return Lineage(tuple(shown), tuple(edges), len(steps) - len(shown))
