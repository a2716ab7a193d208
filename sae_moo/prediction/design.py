"""From rows to the columns that a regression reads: on one scale, with what is missing said.

Numbers are centred for each task and scaled by what they vary within tasks: that one task's merges score higher, or its
texts are longer, says nothing of which pair to merge. Missing features are taken as average, and a column tells that
they were, if some were missing in what was learned from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sae_moo.prediction.rows import Rows
from sae_moo.prediction.table import Numbers

EFFECTS, OWN, FEATURES = "effects", "own", "features"
"""The blocks of columns: which experts are in, what they score by themselves, what they have in common."""
OWN_SCORES = "own scores"
"""Name of the columns of `OWN`."""
ABSENT = ", missing"
"""What the name of a column ends in that tells whether a feature is missing."""
OWN_WEIGHT = 5.0
"""Unit of own scores among features: what was measured on the very task is held back less by a penalty."""
FLAT = 1e-9
"""Columns that vary less than this, relative to their largest number, are constant."""


@dataclass(frozen=True, slots=True, eq=False)
class Centred:
    """Means for each task, and of all for a task that is none of them."""

    tasks: Mapping[str, Numbers]
    overall: Numbers

    @classmethod
    def of(cls, tasks: Sequence[str], numbers: Numbers) -> Centred:
        """Return the means of numbers, a row each or a number each; missing ones left out."""
        groups = {task: [row for row, each in enumerate(tasks) if each == task] for task in sorted(set(tasks))}
        means = {task: _mean(numbers[rows]) for task, rows in groups.items()}
        overall = _mean(np.stack(list(means.values())))
        return cls({task: np.where(np.isnan(mean), overall, mean) for task, mean in means.items()}, overall)

    def at(self, tasks: Sequence[str]) -> Numbers:
        """Return the mean that holds for each row."""
        place = {task: i for i, task in enumerate(self.tasks)}
        means = np.stack([*self.tasks.values(), self.overall])
        return np.asarray(means[[place.get(task, -1) for task in tasks]])


def _mean(numbers: Numbers) -> Numbers:
    """Return means over rows, NaN where all are missing."""
    known = ~np.isnan(numbers)
    count = known.sum(axis=0)
    total = np.where(known, numbers, 0.0).sum(axis=0)
    return np.asarray(np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0))


@dataclass(frozen=True, slots=True, eq=False)
class Scale:
    """Where columns have their zero and how long their unit is, as the rows that were learned from have it.

    Args:
        means: of each column by task.
        units: standard deviation within tasks.
        kept: which columns vary at all.
        absent: which columns were missing in some rows, and known in others.
    """

    means: Centred
    units: Numbers
    kept: NDArray[np.int64]
    absent: NDArray[np.int64]

    @classmethod
    def of(cls, tasks: Sequence[str], numbers: Numbers) -> Scale:
        """Return the scale of some rows, shape (rows, columns)."""
        means = Centred.of(tasks, numbers)
        units = np.sqrt(_mean((numbers - means.at(tasks)) ** 2))
        known = ~np.isnan(numbers)
        largest = np.where(known, np.abs(numbers), 0.0).max(axis=0)
        kept = np.flatnonzero(~np.isnan(units) & (units > FLAT * largest))
        absent = np.flatnonzero((known.mean(axis=0) < 1.0) & known.any(axis=0))
        return cls(means, units, kept, absent)

    def columns(self, tasks: Sequence[str], numbers: Numbers) -> Numbers:
        """Return rows on this scale, missing numbers at the mean, then what is missing, 1 or 0."""
        centred = (numbers - self.means.at(tasks))[:, self.kept] / self.units[self.kept]
        centred = np.where(np.isnan(centred), 0.0, centred)
        return np.concatenate([centred, np.isnan(numbers[:, self.absent]).astype(np.float64)], axis=1)

    def named(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return what the columns are called, of the names of all numbers."""
        return (*(names[place] for place in self.kept), *(names[place] + ABSENT for place in self.absent))


@dataclass(frozen=True, slots=True, eq=False)
class Design:
    """The columns that a regression reads, as the rows that were learned from set them.

    Args:
        blocks: which of `EFFECTS`, `OWN` and `FEATURES`.
        by_task: whether features and own scores have columns for each task besides the common ones, so that they may
            count differently in each.
        names: of each column; columns of one name belong together in what is told of reasons.
        tasks: those that were learned from.
        features, own: scales, None where the block is not read.
    """

    blocks: frozenset[str]
    by_task: bool
    names: tuple[str, ...]
    tasks: tuple[str, ...]
    features: Scale | None
    own: Scale | None

    @classmethod
    def of(
        cls, rows: Rows, blocks: frozenset[str], by_task: bool, features: Sequence[str], experts: Sequence[str]
    ) -> Design:
        """Return the columns for what is learned from some rows; `features` and `experts` name their columns."""
        tasks = tuple(sorted(set(rows.tasks)))
        own = Scale.of(rows.tasks, _own(rows)) if OWN in blocks else None
        scale = Scale.of(rows.tasks, rows.features) if FEATURES in blocks else None
        common: list[str] = []
        if own is not None:
            common += [OWN_SCORES] * len(own.named((OWN_SCORES,) * 3))
        if scale is not None:
            common += scale.named(features)
        names = common * (1 + len(tasks) * by_task)
        if EFFECTS in blocks:
            sides = (*(f"{name} first" for name in experts), *(f"{name} second" for name in experts))
            if not rows.second.any():
                sides = (*(f"{name} in it" for name in experts), *(f"{name} in it" for name in experts))
            names += list(sides) * (1 + len(tasks))
        return cls(blocks, by_task, tuple(names), tasks, scale, own)

    def columns(self, rows: Rows) -> Numbers:
        """Return the columns of rows, shape (rows, columns)."""
        member = (np.array(self.tasks)[:, None] == np.array(rows.tasks)[None, :]).astype(np.float64)
        common = [np.empty((len(rows), 0))]
        if self.own is not None:
            common.append(OWN_WEIGHT * self.own.columns(rows.tasks, _own(rows)))
        if self.features is not None:
            common.append(self.features.columns(rows.tasks, rows.features))
        numbers = np.concatenate(common, axis=1)
        parts = [numbers, *(numbers * each[:, None] for each in member if self.by_task)]
        if EFFECTS in self.blocks:
            # A column of zeros and ones for one of n experts varies by about 1 / sqrt(n); on the scale of the others it
            # is so many times as large.
            sides = np.concatenate([rows.first, rows.second], axis=1) * np.sqrt(max(rows.first.shape[1], 1))
            parts += [sides, *(sides * each[:, None] for each in member)]
        return np.concatenate(parts, axis=1)

    def missing(self, rows: Rows, names: Sequence[str]) -> list[tuple[str, ...]]:
        """Return of each row which features it lacks among those that are read."""
        if self.features is None:
            return [()] * len(rows)
        kept = self.features.kept
        return [tuple(names[place] for place in kept[row]) for row in np.isnan(rows.features[:, kept])]


def _own(rows: Rows) -> Numbers:
    """Return the two own scores and the better of them."""
    return np.concatenate([rows.own, rows.own.max(axis=1, keepdims=True)], axis=1)
