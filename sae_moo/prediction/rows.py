"""What a regression reads of merges of two: who they are, what is known of them, what they score by themselves.

Either side may be a mixture of experts: the result of an earlier merge, whose features nobody knows without making it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sae_moo.prediction.observations import Own
from sae_moo.prediction.table import FeatureTable, Numbers

BY_ORDER = ", by order"
"""Of a symmetric operator, what the name of a feature's difference between the two orders ends in."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two models of a merge.

    Args:
        shares: (expert, share) of which it is made; shares add up to 1. An expert is all of itself.
        own: task -> what it scores by itself, in [0, 1], as far as that is known or predicted.
    """

    shares: tuple[tuple[str, float], ...]
    own: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Asked:
    """A merge of two sides on a task."""

    first: Side
    second: Side
    task: str


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Merges by one operator, a row each.

    Args:
        tasks: of each row.
        first, second: share of each expert that was learned from in the two sides; shape (rows, experts); experts
            that were not are in no column. Of a symmetric operator, `first` holds the mean of both, `second` zeros.
        features: shape (rows, features), NaN where one is missing. Of a symmetric operator: the mean over both orders,
            then the absolute difference between them.
        own: what the two sides score by themselves, shape (rows, 2), NaN where it is not known. Of a symmetric
            operator: the lower, then the higher.
    """

    tasks: tuple[str, ...]
    first: Numbers
    second: Numbers
    features: Numbers
    own: Numbers

    def __len__(self) -> int:
        return len(self.tasks)

    def at(self, places: Sequence[int]) -> Rows:
        """Return some of the rows, in the order asked for."""
        chosen = np.asarray(places, dtype=np.int64)
        tasks = tuple(self.tasks[place] for place in places)
        return Rows(tasks, self.first[chosen], self.second[chosen], self.features[chosen], self.own[chosen])


def side_of(expert: str, own: Own, tasks: Sequence[str]) -> Side:
    """Return an expert as a side of a merge."""
    return Side(((expert, 1.0),), {task: own[expert, task] for task in tasks if (expert, task) in own})


def feature_names(names: Sequence[str], symmetric: bool) -> tuple[str, ...]:
    """Return what the columns of `Rows.features` are called."""
    return (*names, *(name + BY_ORDER for name in names)) if symmetric else tuple(names)


def rows_of(
    asked: Sequence[Asked],
    table: FeatureTable,
    names: Sequence[str],
    columns: Mapping[str, int],
    width: int,
    symmetric: bool,
) -> Rows:
    """Return the rows of merges.

    Args:
        asked: the merges; no expert is in both sides of one.
        table: features of the experts in them.
        names: the features that columns stand for; one that the table lacks is missing.
        columns: expert -> its column in `Rows.first` and `Rows.second`, from 0; one that is not here is in none.
        width: how many such columns there are.
        symmetric: whether the operator makes the same model of both orders.

    Raises:
        InputError: if the table has no features of a pair.
    """
    shares = np.zeros((2, len(asked), width))
    features = np.full((2, len(asked), len(names)), np.nan)
    own = np.full((len(asked), 2), np.nan)
    present = [(column, table.names.index(name)) for column, name in enumerate(names) if name in table.names]
    filled = np.array([column for column, _ in present], dtype=np.int64)
    sources = np.array([source for _, source in present], dtype=np.int64)
    for row, merge in enumerate(asked):
        for which, side in enumerate((merge.first, merge.second)):
            for expert, share in side.shares:
                if expert in columns:
                    shares[which, row, columns[expert]] += share
            own[row, which] = side.own.get(merge.task, np.nan)
        features[0, row, filled] = _mixed(merge.first, merge.second, merge.task, table)[sources]
        if symmetric:
            features[1, row, filled] = _mixed(merge.second, merge.first, merge.task, table)[sources]
    tasks = tuple(merge.task for merge in asked)
    if not symmetric:
        return Rows(tasks, shares[0], shares[1], features[0], own)
    both = np.concatenate([(features[0] + features[1]) / 2.0, np.abs(features[0] - features[1])], axis=1)
    return Rows(tasks, (shares[0] + shares[1]) / 2.0, np.zeros_like(shares[0]), both, np.sort(own, axis=1))


def _mixed(first: Side, second: Side, task: str, table: FeatureTable) -> Numbers:
    """Return the features of two sides: those of the pairs of experts in them, by their shares."""
    if len(first.shares) == len(second.shares) == 1:
        return table.of(first.shares[0][0], second.shares[0][0], task)
    total = np.zeros(len(table.names))
    for one, share in first.shares:
        for other, part in second.shares:
            total += share * part * table.of(one, other, task)
    return total
