"""A study over time, and where a trial comes from."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sae_moo.objectives import Objective
from sae_moo.pareto import hypervolume, non_dominated
from sae_moo.storage import TrialRecord

Array = NDArray[np.float64]


class Growing:
    """A front that takes in one trial after another.

    A point's own share of the hypervolume is its box less what the front dominates of it, so that a trial costs a
    hypervolume of the few points that matter inside that box.

    Args:
        objectives: what is maximized, in [0, 1].

    Attributes:
        records: the front, best in the first objective first; of equal points all are kept.
        volume: its hypervolume above the origin.
    """

    def __init__(self, objectives: Sequence[Objective]) -> None:
        self._names = tuple(objective.name for objective in objectives)
        self._points = np.empty((0, len(self._names)))
        self.records: tuple[TrialRecord, ...] = ()
        self.volume = 0.0

    def add(self, record: TrialRecord) -> bool:
        """Take in a trial that ended, and say whether it is on the front now.

        What is infeasible, failed or stopped, or repeats another trial, never is.
        """
        if not record.feasible or record.repeats is not None:
            return False
        point = np.array([record.values[name] for name in self._names])
        equal = (self._points == point).all(axis=1)
        if ((self._points >= point).all(axis=1) & ~equal).any():
            return False
        if not equal.any():
            inside = np.minimum(self._points, point)
            self.volume += float(point.prod()) - hypervolume(inside[non_dominated(inside)])
        kept = ~(self._points <= point).all(axis=1) | equal
        records = [each for each, keep in zip(self.records, kept, strict=True) if keep]
        place = sum(each.values[self._names[0]] >= point[0] for each in records)
        self.records = (*records[:place], record, *records[place:])
        self._points = np.insert(self._points[kept], place, point, axis=0)
        return True


def hypervolumes(records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> Array:
    """Return the hypervolume of the front above the origin after each evaluation; shape (evaluations,), ascending.

    Args:
        records: all trials.
        objectives: what is maximized, in [0, 1].
    """
    front = Growing(objectives)
    found = []
    for record in sorted((r for r in records if r.told is not None), key=lambda r: r.told or 0):
        front.add(record)
        found.append(front.volume)
    return np.array(found)


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
    for record in records:
        if record.values and record.evaluation is not None:
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
