"""What of a candidate is told to a surrogate: its recipe as numbers, whatever space it is from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sae_moo.prediction.table import FeatureTable
from sae_moo.recipe import BASE, STRUCTURED, Merge, Recipe
from sae_moo.recipe.mixing import mixing_weights
from sae_moo.recipe.structure import merged
from sae_moo.searchers.ground import Array, Ground
from sae_moo.searchers.structure import Structure, structure_of

AXES = 3  # in which pairs of experts differ most, of all their features


class Coordinates:
    """Turns candidates into rows of numbers.

    Of each these are the mixing weights, the sparsities asked of groups, what goes whole of them, the merge method
    where there are several, and, where features of pairs of experts are known, these mixed by the shares of the
    experts.

    Args:
        ground: experts, groups, pruning.
        features: of the ordered pairs of experts; None: there are none.
        methods: names of the merge methods that candidates may differ in; empty where all are merged alike.
    """

    def __init__(self, ground: Ground, features: FeatureTable | None = None, methods: Sequence[str] = ()) -> None:
        self.ground = ground
        self._methods = tuple(methods)
        self._here = list(ground.prunable)
        self._mixing: dict[Recipe, Array] = {}
        self._pairs = None if features is None else pair_axes(features, ground.experts)

    def of(self, recipe: Recipe) -> Array:
        """Return the numbers of a candidate, shape (columns,); as many of each."""
        ground = self.ground
        mixing = mixing_weights(recipe, (BASE, *ground.experts), ground.groups, self._mixing)[:, 1:]
        weights = mixing if ground.rows > 1 else mixing.mean(axis=0, keepdims=True)
        asked = structure_of(recipe, ground)
        parts = [weights.ravel(), self._levels(asked)[self._here]]
        parts += [asked.shares.get(scope, np.zeros(ground.groups))[self._here] for scope in self._scopes]
        parts += [np.isin(np.arange(len(ground.blocks)), sorted(asked.removed)).astype(np.float64)]
        if self._methods:
            made = merged(recipe)
            parts.append(np.array([isinstance(made, Merge) and made.method == each for each in self._methods], float))
        if self._pairs is not None:
            amounts = np.abs(mixing.mean(axis=0))
            shares = amounts / max(float(amounts.sum()), 1e-12)
            parts.append(np.einsum("i,ijk,j->k", shares, self._pairs, shares))
        return np.concatenate(parts)

    def asked(self, recipe: Recipe) -> float:
        """Return the sparsity that a candidate asks for, of what is not removed, and counting what is; in [0, 1).

        It comes to that, up to rounding, where it is merged anew and no units of its blocks go.
        """
        ground, asked = self.ground, structure_of(recipe, self.ground)
        levels = self._levels(asked)
        gone = [ground.blocks[block] for block in sorted(asked.removed)]
        levels[gone] = 1.0
        return float((levels * ground.sizes).sum() / max(float(ground.sizes.sum()), 1e-12))

    @property
    def _scopes(self) -> tuple[str, ...]:
        ground = self.ground
        alone = (ground.scope,) if ground.scope in STRUCTURED else ()
        return (*alone, *(scope for scope, _ in ground.units))

    def _levels(self, asked: Structure) -> Array:
        return np.zeros(self.ground.groups) if asked.levels is None else asked.levels.copy()


def pair_axes(features: FeatureTable, experts: tuple[str, ...]) -> Array:
    """Return where every pair of experts stands along the few axes in which pairs differ most.

    Args:
        features: of the pairs; their mean over tasks is taken, and the mean over both orders.
        experts: names, in order.

    Returns:
        Shape (experts, experts, axes), symmetric, 0 for an expert with itself; at most `AXES` axes, as long as they
        are telling, the first of deviation 1. The pair that is farthest out along an axis is above 0.

    Raises:
        InputError: if a pair has no features.
    """
    count, tasks = len(experts), features.tasks
    first, second = np.triu_indices(count, 1)
    rows = np.array(
        [
            np.mean([features.of(*pair, task) for task in tasks for pair in ((a, b), (b, a))], axis=0)
            for a, b in ((experts[i], experts[j]) for i, j in zip(first, second, strict=True))
        ]
    ).reshape(len(first), len(features.names))
    rows = rows[:, np.isfinite(rows).all(axis=0)]
    deviation = rows.std(axis=0)
    standing = ((rows - rows.mean(axis=0)) / np.where(deviation > 1e-12, deviation, 1.0))[:, deviation > 1e-12]
    axes = np.zeros((count, count, 0))
    if standing.size:
        left, lengths, _ = np.linalg.svd(standing, full_matrices=False)
        kept = lengths[:AXES] > 1e-9 * lengths[0]
        places = (left * lengths)[:, :AXES][:, kept]
        farthest = np.argmax(np.round(np.abs(places) / np.abs(places).max(axis=0), 6), axis=0)
        places *= np.sign(places[farthest, np.arange(places.shape[1])]) / places[:, 0].std()
        axes = np.zeros((count, count, places.shape[1]))
        axes[first, second] = axes[second, first] = places
    return axes
