"""What every search stands on: experts, parameter groups, and how candidates are pruned."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sae_moo.recipe import BASE, BLOCKS, STRUCTURED, Cast, Expert, Merge, Prune, Recipe, pattern_sparsity
from sae_moo.recipe.criteria import USUAL
from sae_moo.recipe.rows import Scalar

Array = NDArray[np.float64]
ARITHMETIC = "task_arithmetic"  # the merge method that children are made by unless there are others
AVERAGE = "weighted average"  # what made the uniform average
RANDOM = "random merge"  # what made a random one

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
        scope: the pruning scope that `pruned` asks in; None where only whole parts go (`structured`).
        calibration: digest of the activation norms that the criterion weighs by, or None.
        most: largest sparsity ever asked for, in (0, 1).
        rescale: whether what pruning leaves of a tensor is multiplied so that it keeps its L2 norm.
        submodels: what is pruned beside the text model.
        tensors: parameter group and number of prunable weights of each tensor, in the pool's order; empty where they
            are not known: every prunable group is then taken to hold as many.
        structured: scopes of whole parts that are searched beside `scope`, in the order of pruning: see
            `structure.Structure`.
        blocks: the groups that are transformer blocks, in order; they are what whole parts are of.
        protected: how many blocks are never removed, of the first and of the last ones.
        units: how many units a block has, by scope of `structured`, of those that are units of blocks.
        staying: how many of them have to stay in each block, by scope; one, where it is not said.
    """

    experts: tuple[str, ...]
    prunable: tuple[bool, ...]
    dtype: str = "float32"
    granularity: str = "block"
    criterion: str = USUAL
    scope: str | None = "tensor"
    calibration: str | None = None
    most: float = 0.95
    rescale: bool = False
    submodels: tuple[str, ...] = ()
    tensors: tuple[tuple[int, int], ...] = ()
    structured: tuple[str, ...] = ()
    blocks: tuple[int, ...] = ()
    protected: tuple[int, int] = (0, 0)
    units: tuple[tuple[str, int], ...] = ()
    staying: tuple[tuple[str, int], ...] = ()

    @property
    def sizes(self) -> Array:
        """Number of prunable weights of each group, shape (groups,); what budgets of zeros are kept by."""
        if not self.tensors:
            return np.array(self.prunable, dtype=np.float64)
        sizes = np.zeros(self.groups)
        for group, size in self.tensors:
            sizes[group] += size
        return sizes

    def stay(self, scope: str) -> int:
        """Return how many units of a scope have to stay in each block."""
        return dict(self.staying).get(scope, 1)

    @property
    def removable(self) -> range:
        """The positions among the blocks of those that may be removed; empty where none are."""
        first, last = self.protected
        return range(first, max(first, len(self.blocks) - last)) if BLOCKS in self.structured else range(0)

    @property
    def most_removed(self) -> int:
        """The largest number of blocks that are removed together: half of them, whatever is protected."""
        return min(len(self.removable), len(self.blocks) // 2)

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
        return self.summed(ARITHMETIC, weights)

    def summed(self, method: str, weights: Array, settings: tuple[tuple[str, Scalar], ...] = ()) -> Recipe:
        """Return a merge of all experts by a method that adds task vectors, not yet a candidate; see above."""
        return Merge(method, _experts(self.experts), self.weights(weights), settings)

    def weights(self, rows: Array) -> tuple[float, ...] | tuple[tuple[float, ...], ...]:
        """Return the weights of a `Merge` from an array of shape (rows, inputs)."""
        written = tuple(map(tuple, np.round(rows, DIGITS).tolist()))
        return written if self.granularity == "block" else written[0]

    def pruned(self, recipe: Recipe, sparsity: Array) -> Recipe:
        """Return the recipe pruned to a sparsity per group; unchanged where none is asked for, or there is no `scope`.

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
        rows = tuple(np.where(self.prunable, asked, 0.0).tolist())
        if self.one_ratio:
            rows = (round(float(asked[list(self.prunable)].mean()), DIGITS),)
        return self._pruned(recipe, rows, self.one_ratio)

    def pruned_by_tensor(self, recipe: Recipe, sparsity: Array) -> Recipe:
        """Return the recipe pruned to a sparsity per tensor; see `pruned`.

        Args:
            recipe: what to prune.
            sparsity: shape (tensors,), clipped to [0, most]; tensors without prunable weights are ignored.
        """
        asked = np.round(np.clip(sparsity, 0.0, self.most), DIGITS)
        rows = tuple(float(value) if size else 0.0 for value, (_, size) in zip(asked, self.tensors, strict=True))
        return self._pruned(recipe, rows, one=False)

    def _pruned(self, recipe: Recipe, rows: tuple[float, ...], one: bool) -> Recipe:
        if self.scope is None:
            return recipe
        fixed = pattern_sparsity(self.scope)
        if fixed is not None:
            rows = tuple(fixed if value >= fixed / 2 else 0.0 for value in rows)
        if not any(rows):
            return recipe
        return Prune(
            recipe,
            rows[0] if one else rows,
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
        average = Merge("linear", _experts(self.experts), (1.0 / count,) * count)
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
        return _depth(self.prunable)

    def random_merge(self, rng: np.random.Generator, sparsest: float, tilt: float | None = None) -> tuple[str, Recipe]:
        """Draw a merge of all experts, pruned, with what made it.

        Args:
            rng: the generator drawn from.
            sparsest: largest pruning ratio drawn.
            tilt: weights are one scale for each expert, ratios one level with a slope ~ N(0, `tilt`) over depth; None:
                every group has weights of its own, and a ratio of its own.
        """
        merged = self.task_arithmetic(self.random_weights(rng, tilt))
        return RANDOM, self.candidate(self.pruned(merged, self.random_levels(rng, sparsest, tilt)))

    def random_levels(self, rng: np.random.Generator, sparsest: float, tilt: float | None) -> Array:
        """Draw a sparsity per group, shape (groups,), not clipped; see `random_merge`."""
        if tilt is None:
            return rng.uniform(0.0, sparsest, self.groups)
        levels: Array = rng.uniform(0.0, sparsest) + rng.normal(0.0, tilt) * self.depth
        return levels

    def random_weights(self, rng: np.random.Generator, tilt: float | None = None) -> Array:
        """Draw mixing weights around one level per expert, none apart from it with a `tilt`; shape (rows, experts)."""
        count = len(self.experts)
        if tilt is not None:
            return np.tile(rng.uniform(0.0, 1.2, count), (self.rows, 1))
        level = rng.uniform(0.0, 1.2, count)
        return np.clip(level + rng.normal(0.0, 0.2, (self.rows, count)), 0.0, 1.5)


@lru_cache(maxsize=64)
def _depth(prunable: tuple[bool, ...]) -> Array:
    """Return `Ground.depth`, which nobody may write into."""
    here = list(prunable)
    depth = np.zeros(len(prunable))
    depth[here] = np.linspace(-0.5, 0.5, sum(here)) if sum(here) > 1 else 0.0
    depth.flags.writeable = False
    return depth


@lru_cache(maxsize=64)
def _experts(names: tuple[str, ...]) -> tuple[Recipe, ...]:
    """Return the recipes of experts as they are, which every candidate is made of."""
    return tuple(map(Expert, names))
