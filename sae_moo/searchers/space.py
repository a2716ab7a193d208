"""Where the search looks: recipes bred from recipes (lineage), or merges of all experts by numbers (coefficients)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sae_moo.recipe import Recipe
from sae_moo.searchers.ground import SCALES, Array, Ground
from sae_moo.searchers.structure import Structure, built

MOST_WHOLE = 0.5  # largest coordinate of a share of units: what loses more of them has collapsed
TRIES = 5  # how often noise is added to what was seen before; then it is taken as it is


class LineageSpace:
    """Candidates are recipes themselves: one pymoo variable, an object.

    Args:
        ground: experts, groups, dtype, pruning.
    """

    vtype = object
    n_var = 1
    bounds: tuple[Array | None, Array | None] = (None, None)

    def __init__(self, ground: Ground) -> None:
        self.ground = ground

    def decode(self, x: Sequence[Recipe]) -> Recipe:
        """Return the recipe in a row of the population."""
        return x[0]


class CoefficientSpace:
    """Candidates are real vectors: mixing weights per row and expert, then a sparsity per prunable group.

    Where whole parts go there are further coordinates: for each scope of units of blocks the share of them that goes of
    every block; for blocks, the share of these and where their contiguous stretch lies, from 0 (the first ones) to 1.

    Args:
        ground: experts, groups, dtype, pruning.
        low: smallest mixing weight.
        high: largest mixing weight.
        sparsest: largest sparsity coordinate.
        sparsity: what every candidate is pruned to, in [0, 1), instead of by coordinates; None: by coordinates.
    """

    vtype = float

    def __init__(
        self,
        ground: Ground,
        low: float = -0.25,
        high: float = 1.5,
        sparsest: float = 0.8,
        sparsity: float | None = None,
    ) -> None:
        self.ground = ground
        self.sparsity = sparsity = 0.0 if ground.most == 0.0 else sparsity
        self.weights = ground.rows * len(ground.experts)
        fixed = sparsity is not None
        ratios = 1 if ground.one_ratio else sum(ground.prunable)
        self.ratios = 0 if fixed or ground.scope is None else ratios
        self.shares = {} if fixed else {scope: (units - ground.stay(scope)) / units for scope, units in ground.units}
        self.places = 2 if not fixed and ground.most_removed else 0
        self.n_var = self.weights + self.ratios + len(self.shares) + self.places
        most = [min(MOST_WHOLE, share) for share in self.shares.values()]
        most += [ground.most_removed / len(ground.blocks), 1.0] if self.places else []
        self.bounds = (
            np.array([low] * self.weights + [0.0] * (self.n_var - self.weights)),
            np.array([high] * self.weights + [min(sparsest, ground.most)] * self.ratios + most),
        )

    def decode(self, x: Array) -> Recipe:
        """Return the candidate a vector of shape (n_var,) stands for."""
        ground = self.ground
        merged = ground.task_arithmetic(x[: self.weights].reshape(ground.rows, len(ground.experts)))
        sparsity = np.zeros(ground.groups)
        ratios, whole = np.split(x[self.weights :], [self.ratios])
        if self.ratios or self.sparsity is not None:
            sparsity[list(ground.prunable)] = ratios if self.sparsity is None else self.sparsity
        if not ground.structured:
            return ground.candidate(ground.pruned(merged, sparsity))
        shares = {scope: np.full(ground.groups, share) for scope, share in zip(self.shares, whole, strict=False)}
        structure = Structure(self._removed(*whole[-2:]) if self.places else frozenset(), shares, sparsity)
        return ground.candidate(built(merged, structure, ground))

    def _removed(self, share: float, place: float) -> frozenset[int]:
        """Return the contiguous stretch of blocks that two coordinates stand for."""
        where = self.ground.removable
        count = min(self.ground.most_removed, round(float(share) * len(self.ground.blocks)))
        start = where.start + round(float(place) * (len(where) - count))
        return frozenset(range(start, start + count))

    def encode(self, weights: Array, sparsity: float = 0.0, whole: Sequence[float] = ()) -> Array:
        """Return the vector for mixing weights (rows, experts) or (experts,) and one sparsity, within bounds.

        Args:
            weights: mixing weights.
            sparsity: of every block.
            whole: the coordinates of what goes whole; none of it goes unless they are given.
        """
        rows = np.broadcast_to(weights, (self.ground.rows, len(self.ground.experts)))
        low, high = self.bounds
        rest = np.zeros(self.n_var - self.weights - self.ratios)
        rest[: len(whole)] = whole
        vector: Array = np.clip(np.concatenate([rows.ravel(), np.full(self.ratios, sparsity), rest]), low, high)
        return vector

    def first(self, count: int, rng: np.random.Generator, sparsest: float) -> Array:
        """Return a first population, shape (count, n_var): that of `Ground.first`, as far as vectors can say it."""
        experts = len(self.ground.experts)
        levels = [*np.eye(experts), np.zeros(experts), np.full(experts, 1 / experts)]
        levels += [np.full(experts, scale) for scale in SCALES]
        vectors = [self.encode(level) for level in levels][:count]
        while len(vectors) < count:
            vectors.append(self.random(rng, sparsest))
        return np.array(vectors)

    def random(self, rng: np.random.Generator, sparsest: float) -> Array:
        """Draw one vector, shape (n_var,): weights around a level per expert, one sparsity up to `sparsest`.

        Of what goes whole each is there with probability 1/2.
        """
        weights, sparsity = self.ground.random_weights(rng), rng.uniform(0.0, sparsest)
        high = self.bounds[1][self.weights + self.ratios :]
        if not len(high):
            return self.encode(weights, sparsity)
        whole = rng.uniform(0.0, high) * (rng.random(len(high)) < 0.5)
        if self.places:  # where a stretch lies is said whether there is one or not
            whole[-1] = rng.random()
        return self.encode(weights, sparsity, whole.tolist())

    def scaled(self, x: Array) -> Array:
        """Return vectors with the range of every coordinate mapped to [-1, 1]; shape (..., n_var)."""
        low, high = self.bounds
        u: Array = (x - (low + high) / 2) / self._half
        return u

    def unscaled(self, u: Array) -> Array:
        """Return the vectors, within bounds, that `scaled` maps to `u`."""
        low, high = self.bounds
        x: Array = np.clip((low + high) / 2 + self._half * u, low, high)
        return x

    @property
    def _half(self) -> Array:
        low, high = self.bounds
        return np.where(high > low, (high - low) / 2, 1.0)

    def moved(self, x: Array, noise: float, rng: np.random.Generator) -> Array:
        """Return a vector with normal noise, within bounds; `noise` is its deviation as a share of each range."""
        low, high = self.bounds
        vector: Array = np.clip(x + noise * (high - low) * rng.standard_normal(len(x)), low, high)
        return vector

    def apart(self, x: Array, seen: Callable[[Array], bool], noise: float, rng: np.random.Generator) -> Array:
        """Return a vector that was not seen before: itself, or with noise, each time twice as much, a few times."""
        for step in range(TRIES):
            if not seen(x):
                break
            x = self.moved(x, 2**step * noise, rng)
        return x


def spread(u: Array) -> float:
    """Return how far rows scatter: the root mean square of their coordinates' standard deviations."""
    return float(np.sqrt(u.var(axis=0).mean()))


Space = LineageSpace | CoefficientSpace
