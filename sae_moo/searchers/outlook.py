"""What is expected of candidates before they are evaluated, learned from those that were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sae_moo.objectives import Constraint, Evaluation, Objective, Sparsity
from sae_moo.prediction.improvement import probability_between
from sae_moo.prediction.surrogate import LEAST, Surrogate
from sae_moo.recipe import Recipe
from sae_moo.searchers.coordinates import Coordinates
from sae_moo.searchers.ground import Array

EXACT = 1e-3  # sparsities that all came as close to what was asked for are known


@dataclass(frozen=True, slots=True, eq=False)
class Outlook:
    """What is expected of some candidates.

    Args:
        means: of the objectives, as shares, shape (candidates, objectives).
        spreads: standard deviations of that; 0 for what is known.
        keeping: how probable it is that each keeps all limits, shape (candidates,).
    """

    means: Array
    spreads: Array
    keeping: Array


class Outlooks:
    """Says what is to be expected of candidates; a value, that depends on what it learned from alone.

    Sparsity is known from the recipe, but for what it came to beyond that in what was evaluated; every other objective,
    and what else is limited, is predicted from the coordinates of a candidate.

    Args:
        coordinates: of candidates.
        objectives: what is maximized.
        constraints: limits.
        evaluations: what is learned from, in the order in which it came; failures are left out.
        lot: how many candidates are chosen at once; see `Surrogate`.
    """

    def __init__(
        self,
        coordinates: Coordinates,
        objectives: Sequence[Objective],
        constraints: Sequence[Constraint],
        evaluations: Sequence[Evaluation],
        lot: int,
    ) -> None:
        self._coordinates = coordinates
        self._objectives, self._constraints = tuple(objectives), tuple(constraints)
        usable = [each for each in evaluations if each.ok]
        self._quantities = {each.name: each for each in (*(limit.objective for limit in constraints), *objectives)}
        self._expected: dict[str, Callable[[Array, Array], tuple[Array, Array]]] = {}
        if len(usable) < LEAST:
            return
        rows = np.array([coordinates.of(each.recipe) for each in usable])
        asked = np.array([coordinates.asked(each.recipe) for each in usable])
        for name, quantity in self._quantities.items():
            values = np.array([quantity.share(quantity.value(each)) for each in usable])
            self._expected[name] = _learned(quantity, rows, asked, values, lot)

    def __bool__(self) -> bool:
        return bool(self._expected)

    def __call__(self, recipes: Sequence[Recipe]) -> Outlook:
        """Return what is expected of candidates; of nothing unless it is true, having seen enough."""
        rows = np.array([self._coordinates.of(recipe) for recipe in recipes])
        asked = np.array([self._coordinates.asked(recipe) for recipe in recipes])
        known = {name: expected(rows, asked) for name, expected in self._expected.items()}
        keeping = np.ones(len(recipes))
        for limit in self._constraints:
            share = limit.objective.share
            low, high = (None if each is None else share(each) for each in (limit.low, limit.high))
            keeping = keeping * probability_between(*known[limit.objective.name], low, high)
        means, spreads = (np.stack([known[each.name][i] for each in self._objectives], axis=1) for i in range(2))
        return Outlook(means, spreads, keeping)


def _learned(
    quantity: Objective, rows: Array, asked: Array, values: Array, lot: int
) -> Callable[[Array, Array], tuple[Array, Array]]:
    """Return what maps coordinates, and sparsities asked for, to means and spreads of a quantity."""
    if not isinstance(quantity, Sparsity):
        surrogate = Surrogate(rows, values, lot)
        return lambda rows, asked: surrogate(rows)
    beyond = values - asked
    if np.abs(beyond).max() <= EXACT:
        more = float(beyond.mean())
        return lambda rows, asked: (asked + more, np.zeros(len(asked)))
    rest = Surrogate(rows, beyond, lot)

    def expected(rows: Array, asked: Array) -> tuple[Array, Array]:
        means, spreads = rest(rows)
        return asked + means, spreads

    return expected
