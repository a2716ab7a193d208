"""Where the search looks: recipes bred from recipes (lineage), or merges of all experts by numbers (coefficients)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sae_moo.recipe import BASE, STRUCTURED, Cast, Expert, Merge, Prune, Recipe, pattern_sparsity
from sae_moo.recipe.criteria import USUAL

Array = NDArray[np.float64]
AVERAGE = "weighted average"  # what made the uniform average

# Digits of drawn numbers: finer than a search can tell apart, and a trial stays small.
DIGITS = 4
# Scales of "base + scale * sum of task vectors" in every first population.
SCALES = (0.3, 0.5, 0.7, 1.0)


@dataclass(frozen=True, slots=True)
class Ground:
    """What every space stands on.

    Args:
        experts: names of the experts, the base not among them.
        prunable: per parameter group in the pool's order, whether it holds prunable weights.
        dtype: what every candidate ends in a `Cast` to: a dtype, or ``stored``.
        granularity: ``block`` gives every group its own numbers, ``model`` shares one set.
        criterion: pruning criterion.
        scope: pruning scope.
        calibration: digest of the activation norms that the criterion weighs by, or None.
        most: largest sparsity ever asked for, in (0, 1).
        rescale: whether what pruning leaves of a tensor is multiplied so that it keeps its L2 norm.
        submodels: what is pruned beside the text model.
        tensors: parameter group and number of prunable weights of each tensor, in the pool's order; empty where they
            are not known: every prunable group is then taken to hold as many.
    """

    experts: tuple[str, ...]
    prunable: tuple[bool, ...]
    dtype: str = "float32"
    granularity: str = "block"
    criterion: str = USUAL
    scope: str = "tensor"
    calibration: str | None = None
    most: float = 0.95
    rescale: bool = False
    submodels: tuple[str, ...] = ()
    tensors: tuple[tuple[int, int], ...] = ()

    @property
    def sizes(self) -> Array:
        """Number of prunable weights of each group, shape (groups,); what budgets of zeros are kept by."""
        if not self.tensors:
            return np.array(self.prunable, dtype=np.float64)
        sizes = np.zeros(self.groups)
        for group, size in self.tensors:
            sizes[group] += size
        return sizes

    @property
    def groups(self) -> int:
        """Number of parameter groups."""
        return len(self.prunable)

    @property
    def rows(self) -> int:
        """Number of independent sets of mixing coefficients: one per group, or one."""
        return self.groups if self.granularity == "block" else 1

    @property
    def one_ratio(self) -> bool:
        """Whether one sparsity is asked of all groups."""
        return self.granularity == "model" or self.scope in ("global", *STRUCTURED)

    def expert(self, name: str) -> Recipe:
        """Return an expert, or the base, as a candidate."""
        return Cast(Expert(name), self.dtype)

    def task_arithmetic(self, weights: Array) -> Recipe:
        """Return ``base + sum w_i (x_i - base)`` of all experts, not yet a candidate; weights (rows, experts)."""
        return Merge("task_arithmetic", tuple(Expert(name) for name in self.experts), self.weights(weights))

    def weights(self, rows: Array) -> tuple[float, ...] | tuple[tuple[float, ...], ...]:
        """Return the weights of a `Merge` from an array of shape (rows, inputs)."""
        written = tuple(tuple(float(value) for value in row) for row in np.round(rows, DIGITS))
        return written if self.granularity == "block" else written[0]

    def pruned(self, recipe: Recipe, sparsity: Array) -> Recipe:
        """Return the recipe pruned to a sparsity per group; unchanged where none is asked for.

        Args:
            recipe: what to prune.
            sparsity: shape (groups,), clipped to [0, most]; groups without prunable weights are ignored. With the scope
                ``global``, a structured one (as many units in every block) or one set of numbers their mean over
                prunable groups is asked of all. With a scope ``N:M`` a group asked for half of its sparsity or more
                gets the pattern, others are left alone.
        """
        asked = np.round(np.clip(sparsity, 0.0, self.most), DIGITS)
        if not asked[list(self.prunable)].any():
            return recipe
        rows = tuple(float(value) if here else 0.0 for value, here in zip(asked, self.prunable, strict=True))
        if self.one_ratio:
            rows = (round(float(asked[list(self.prunable)].mean()), DIGITS),)
        fixed = pattern_sparsity(self.scope)
        if fixed is not None:
            rows = tuple(fixed if value >= fixed / 2 else 0.0 for value in rows)
            if not any(rows):
                return recipe
        given = rows[0] if self.one_ratio else rows
        return Prune(
            recipe,
            given,
            self.criterion,
            self.scope,
            calibration=self.calibration,
            rescale=self.rescale,
            submodels=self.submodels,
        )

    def candidate(self, recipe: Recipe) -> Recipe:
        """Return the recipe rounded to the model's dtype, as every candidate is."""
        return recipe if isinstance(recipe, Cast) and recipe.dtype == self.dtype else Cast(recipe, self.dtype)

    def starting_recipes(self) -> list[tuple[str, Recipe]]:
        """Return the merges every first population holds, most telling first, with what made them.

        Every expert, the base, the uniform average, task arithmetic at a few scales. All are real models: an archive
        seeded with zeros would breed zeros.
        """
        count = len(self.experts)
        average = Merge("linear", tuple(Expert(name) for name in self.experts), (1.0 / count,) * count)
        named = [("expert", self.expert(name)) for name in (*self.experts, BASE)]
        named.append((AVERAGE, self.candidate(average)))
        ones = np.ones((self.rows, count))
        named += [("task arithmetic", self.candidate(self.task_arithmetic(scale * ones))) for scale in SCALES]
        return named

    def first(
        self, count: int, rng: np.random.Generator, sparsest: float, ladder: int = 0, tilt: float | None = None
    ) -> list[tuple[str, Recipe]]:
        """Return a first population with what made each: `starting_recipes`, then random merges pruned at random.

        Args:
            count: its size.
            rng: the generator drawn from.
            sparsest: largest pruning ratio drawn; 0.0 prunes nothing.
            ladder: how many of the random ones give way to the uniform average pruned to evenly spaced ratios, the
                largest being `sparsest`.
            tilt: see `random_merge`.
        """
        drawn = self.starting_recipes()[:count]
        for rung in range(min(ladder, count - len(drawn))):
            ratio = np.full(self.groups, sparsest * (rung + 1) / ladder)
            drawn.append(("pruned average", self.candidate(self.pruned(dict(drawn)[AVERAGE], ratio))))
        while len(drawn) < count:
            drawn.append(self.random_merge(rng, sparsest, tilt))
        return drawn

    @property
    def depth(self) -> Array:
        """Where each prunable group stands from the first, -0.5, to the last, 0.5; 0 for others; shape (groups,)."""
        here = list(self.prunable)
        depth = np.zeros(self.groups)
        depth[here] = np.linspace(-0.5, 0.5, sum(here)) if sum(here) > 1 else 0.0
        return depth

    def random_merge(self, rng: np.random.Generator, sparsest: float, tilt: float | None = None) -> tuple[str, Recipe]:
        """Draw a merge of all experts, pruned, with what made it.

        Args:
            rng: the generator drawn from.
            sparsest: largest pruning ratio drawn.
            tilt: weights are one scale for each expert, ratios one level with a slope ~ N(0, `tilt`) over depth; None:
                every group has weights of its own, and a ratio of its own.
        """
        if tilt is None:
            weights, ratio = self.random_weights(rng), rng.uniform(0.0, sparsest, self.groups)
        else:
            weights = np.tile(rng.uniform(0.0, 1.2, len(self.experts)), (self.rows, 1))
            ratio = rng.uniform(0.0, sparsest) + rng.normal(0.0, tilt) * self.depth
        return "random merge", self.candidate(self.pruned(self.task_arithmetic(weights), ratio))

    def random_weights(self, rng: np.random.Generator) -> Array:
        """Draw mixing weights around one level per expert; shape (rows, experts)."""
        count = len(self.experts)
        level = rng.uniform(0.0, 1.2, count)
        return np.clip(level + rng.normal(0.0, 0.2, (self.rows, count)), 0.0, 1.5)


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
        self.ratios = 0 if sparsity is not None else 1 if ground.one_ratio else sum(ground.prunable)
        self.n_var = self.weights + self.ratios
        self.bounds = (
            np.array([low] * self.weights + [0.0] * self.ratios),
            np.array([high] * self.weights + [min(sparsest, ground.most)] * self.ratios),
        )

    def decode(self, x: Array) -> Recipe:
        """Return the candidate a vector of shape (n_var,) stands for."""
        ground = self.ground
        merged = ground.task_arithmetic(x[: self.weights].reshape(ground.rows, len(ground.experts)))
        sparsity = np.zeros(ground.groups)
        sparsity[list(ground.prunable)] = x[self.weights :] if self.sparsity is None else self.sparsity
        return ground.candidate(ground.pruned(merged, sparsity))

    def encode(self, weights: Array, sparsity: float = 0.0) -> Array:
        """Return the vector for mixing weights (rows, experts) or (experts,) and one sparsity, within bounds."""
        rows = np.broadcast_to(weights, (self.ground.rows, len(self.ground.experts)))
        low, high = self.bounds
        vector: Array = np.clip(np.concatenate([rows.ravel(), np.full(self.ratios, sparsity)]), low, high)
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
        """Draw one vector, shape (n_var,): weights around a level per expert, one sparsity up to `sparsest`."""
        return self.encode(self.ground.random_weights(rng), rng.uniform(0.0, sparsest))


Space = LineageSpace | CoefficientSpace
