"""What a learned generator did in a search, as numbers: how it learned over time, and where it moved candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sae_moo.explore.draw.numbers import MOST_DOTS, Array, Axis, axes_of
from sae_moo.explore.view import View
from sae_moo.recipe import BASE
from sae_moo.recipe.mixing import mixing_weights
from sae_moo.searchers.learning import CYCLE, OFFSPRING, POPULATION, PULL, SHARE
from sae_moo.study.record import Ended, told

MOST_MOVES = 400  # moves drawn in a figure; more of them hide each other


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """Numbers of the generator that share a scale.

    Args:
        title: what they are.
        logarithmic: whether the scale is.
        curves: name -> after how many evaluations the number changed, ascending, and what it was from then on.
    """

    title: str
    logarithmic: bool
    curves: Mapping[str, tuple[NDArray[np.int64], Array]]


def panels_of(view: View) -> list[Panel]:
    """Return losses, spreads and the generator's share against evaluations; nothing where no generator was at work."""
    records = told(view.records)
    panels = []
    for title, logarithmic, names in (
        ("loss at the end of training", True, (CYCLE, PULL)),
        ("spread of vectors (-1 to 1)", False, (POPULATION, OFFSPRING)),
        ("share of the children", False, (SHARE,)),
    ):
        known = {name: [(i, r.params[name]) for i, r in enumerate(records, 1) if name in r.params] for name in names}
        curves = {name: _changes(np.array(pairs)) for name, pairs in known.items() if pairs}
        if curves:
            panels.append(Panel(title, logarithmic, curves))
    return panels


def _changes(pairs: Array) -> tuple[NDArray[np.int64], Array]:
    """Return where a number changes and what to, and its end; pairs of place and value, shape (any, 2)."""
    keep = np.flatnonzero(np.diff(pairs[:, 1], prepend=np.nan) != 0)
    keep = np.union1d(keep, [len(pairs) - 1])
    return pairs[keep, 0].astype(np.int64), pairs[keep, 1]


@dataclass(frozen=True, slots=True, eq=False)
class Moves:
    """Where a generator moved candidates, in the plane in which all that was evaluated scatters most.

    Args:
        right, up: the first two principal axes of the trials' mixing weights and sparsities, group by group.
        height: what trials are coloured by: accuracy, or the first objective where nothing is scored.
        trials: those to draw a dot for.
        pairs: (what it was given, what it made of it), at most `MOST_MOVES`, evenly spread over the search.
        total: how many moves there were.
        gained: of how many of these the child is better in `height`.
    """

    right: Axis
    up: Axis
    height: Axis
    trials: Sequence[Ended]
    pairs: Sequence[tuple[Ended, Ended]]
    total: int
    gained: int

    def better(self, wanted: bool) -> list[tuple[Ended, Ended]]:
        """Return the pairs whose child is better than its parent in `height`, or those whose child is not."""
        return [(a, b) for a, b in self.pairs if (self.height.value(b) > self.height.value(a)) == wanted]

    @property
    def caption(self) -> str:
        """What is to be seen, in sentences."""
        drawn = "" if len(self.pairs) == self.total else f" {len(self.pairs):,} of them are drawn."
        return (
            "Where the generator moves candidates: arrows lead from a member of the population to what is made of it, "
            f"green where that has more {self.height.name}: {self.gained:,} of {self.total:,}.{drawn} The axes are the "
            "two directions in which mixing weights and sparsities of all candidates scatter most. Square: the base; "
            "diamonds: the experts; star: their uniform average."
        )


def moves_of(view: View) -> Moves | None:
    """Return where a generator moved candidates; None if it made none with a result, or all are alike."""
    place = {record.number: i for i, record in enumerate(view.done)}
    made = [record for record in view.done if OFFSPRING in record.params]
    pairs = [(view.done[place[r.parents[0]]], r) for r in made if len(r.parents) == 1 and r.parents[0] in place]
    if not pairs:
        return None
    coordinates, shares = _principal(_vectors(view))
    if not shares[0] > 0:
        return None
    kept = [pairs[i] for i in _evenly(len(pairs), MOST_MOVES)]
    numbers = {record.number for pair in kept for record in pair}
    numbers |= {view.done[i].number for i in _evenly(len(view.done), MOST_DOTS)}
    right, up = (
        Axis(
            name,
            f"{name} principal axis ({share:.0%} of the variance)",
            lambda record, column=column: float(coordinates[place[record.number], column]),  # type: ignore[misc]
            lambda record: 0.0,
        )
        for column, (name, share) in enumerate(zip(("first", "second"), shares, strict=True))
    )
    height = axes_of(view)[0]
    if view.shares:
        height = Axis("accuracy", "accuracy (mean score, 0 to 1)", view.accuracy, view.accuracy_error)
    gained = sum(height.value(child) > height.value(parent) for parent, child in pairs)
    dots = [record for record in view.done if record.number in numbers]
    return Moves(right, up, height, dots, kept, len(pairs), gained)


def _evenly(count: int, most: int) -> list[int]:
    """Return at most so many places of a sequence, evenly spread."""
    return [int(i) for i in np.linspace(0, count - 1, min(most, count))]


def _vectors(view: View) -> Array:
    """Return every trial with a result as numbers that mean the same in all of them; shape (trials, any).

    Vectors that were searched are over the experts of their round, so these are over the original ones.
    """
    experts = [i for i, name in enumerate(view.experts) if name != BASE]
    nothing = (0.0,) * len(view.groups)
    rows = [
        np.concatenate(
            [
                mixing_weights(record.recipe, view.experts, len(view.groups), view.mixing)[:, experts].ravel(),
                record.evaluation.group_sparsity or nothing,
            ]
        )
        for record in view.done
    ]
    return np.array(rows, dtype=np.float64).reshape(len(rows), -1)


def _principal(vectors: Array) -> tuple[Array, Array]:
    """Return rows in their first two principal axes, and what share of the variance each has; 0 where there is none.

    The largest part of an axis points up, so that its direction is not left to rounding.
    """
    places, shares = np.zeros((len(vectors), 2)), np.zeros(2)
    if len(vectors) < 2:
        return places, shares
    centred = vectors - vectors.mean(axis=0)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    total = float((sizes**2).sum())
    if total < 1e-12:
        return places, shares
    axes = axes[:2] * np.sign([axis[np.abs(axis).argmax()] for axis in axes[:2]])[:, None]
    places[:, : len(axes)] = centred @ axes.T
    shares[: len(axes)] = sizes[:2] ** 2 / total
    return places, shares
