"""What of a candidate goes whole, beside its scattered zeros: blocks, and units of those that stay.

Each part is inherited apart from the others, from the recipes of the parents. That a removed stretch of blocks is best
contiguous is what searches over layers have found (Guan et al. 2025, arXiv 2506.20480); blocks that keep different
numbers of units are worth more than blocks that keep as many (Li et al. 2025, arXiv 2503.09657).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sae_moo.recipe import BLOCKS, MOE_EXPERTS, STRUCTURED, Prune, Recipe, pattern_sparsity
from sae_moo.recipe.rows import Rows
from sae_moo.recipe.structure import chain, removed_blocks
from sae_moo.searchers.allocation import STEP, inherited, switched
from sae_moo.searchers.breeding import Operators
from sae_moo.searchers.ground import DIGITS, Array, Ground

Rng = np.random.Generator


@dataclass(frozen=True, slots=True, eq=False)
class Structure:
    """What of a candidate goes whole, and how sparse the rest is.

    Args:
        removed: positions among the blocks of those that go.
        shares: scope -> share of its units that go of each group, shape (groups,); without scopes of which none go.
        levels: sparsity asked of each group, shape (groups,), zeros of its units counted; None: none is asked. What it
            says of groups that are removed or not prunable is not read.
        offsets: by how much each tensor's sparsity differs from its group's, shape (tensors,); None: not at all.
    """

    removed: frozenset[int] = frozenset()
    shares: Mapping[str, Array] = field(default_factory=dict)
    levels: Array | None = None
    offsets: Array | None = None


def structure_of(recipe: Recipe, ground: Ground) -> Structure:
    """Return what a candidate's own prunings ask for."""
    removed = removed_blocks(recipe)
    shares: dict[str, Array] = {}
    levels = offsets = None
    for node in chain(recipe):
        if node.scope == BLOCKS:
            continue
        rows = Rows.of_places(node.sparsity)
        if node.scope in STRUCTURED:
            shares[node.scope] = rows.per_group(ground.groups)[:, 0].copy()
        elif rows.placed and len(rows.rows) != ground.groups:
            levels, offsets = _by_group(np.array(node.sparsity), ground)
        else:
            levels, offsets = rows.per_group(ground.groups)[:, 0].copy(), None
            if node.scope == "global":
                levels = 1.0 - (1.0 - levels) / (1.0 - _share(ground, removed))
    gone = _groups(ground, removed)
    stay = _prunable(ground) & ~gone
    for values in (*shares.values(), *(() if levels is None else (levels,))):
        values[gone] = values[stay].mean()  # what a block that comes back begins at
    return Structure(removed, shares, levels, offsets)


def built(recipe: Recipe, structure: Structure, ground: Ground) -> Recipe:
    """Return a merge without what goes whole, and pruned: blocks first, then units, then scattered weights."""
    count, removed = len(ground.blocks), structure.removed
    if removed:
        rows = tuple((0,) if block in removed else () for block in range(count))
        recipe = Prune(recipe, len(removed) / count, scope=BLOCKS, units=rows)
    gone = _groups(ground, removed)
    for scope, units in ground.units:
        if scope in structure.shares:
            shares, outside = structure.shares[scope], gone | ~_in_blocks(ground)
            if scope == MOE_EXPERTS:  # which takes one number for all mixtures
                shares = np.full(ground.groups, shares[~outside].mean())
            asked = whole(shares, units, ground.stay(scope))
            asked[outside] = 0.0
            if asked.any():
                given = float(asked.max()) if scope == MOE_EXPERTS else tuple(float(value) for value in asked)
                recipe = Prune(recipe, given, ground.criterion, scope, calibration=ground.calibration)
    if structure.levels is None:
        return recipe
    levels = np.where(gone, 0.0, np.clip(structure.levels, 0.0, ground.most))
    if structure.offsets is not None:
        place = np.array([group for group, _ in ground.tensors], dtype=np.int64)
        by_tensor = np.where(gone[place], 0.0, levels[place] + structure.offsets)
        return ground.pruned_by_tensor(recipe, by_tensor)
    if ground.one_ratio:
        stay = _prunable(ground) & ~gone
        level = float(levels[stay].mean())
        if ground.scope == "global":  # which asks for a share of all weights, removed blocks counted
            level = min(ground.most, 1.0 - (1.0 - level) * (1.0 - _share(ground, removed)))
        levels = np.full(ground.groups, level)
    return ground.pruned(recipe, levels)


def whole(shares: Array, units: int, stay: int = 1) -> Array:
    """Return shares that are whole numbers of units, of which so many stay at least."""
    number = np.clip(np.round(shares * units), 0, units - stay)
    return (number / units).round(DIGITS)


class Structures:
    """Draws structures: new ones, and those of children.

    Args:
        ground: blocks, units, scopes.
        settings: see `Operators`.
    """

    def __init__(self, ground: Ground, settings: Operators) -> None:
        self.ground = ground
        self.settings = settings
        self.most_removed = min(ground.most_removed, max(1, int(settings.removable * len(ground.blocks))))

    def first(self, number: int, sparsest: float, tilt: float | None, rng: Rng) -> Structure:
        """Draw a structure of a first population: of one scope alone, or of all that there are, by its number."""
        ground = self.ground
        alone = [*ground.structured, *(() if ground.scope is None else (ground.scope,))]
        turn = number % (len(alone) + (len(alone) > 1))
        scopes = alone if turn == 0 and len(alone) > 1 else [alone[turn - (len(alone) > 1)]]
        removed = self._drawn(rng) if BLOCKS in scopes else frozenset()
        shares = {scope: self._new_shares(sparsest, rng) for scope, _ in ground.units if scope in scopes}
        levels = ground.random_levels(rng, sparsest, tilt) if ground.scope in scopes else None
        return Structure(removed, shares, levels)

    def child(self, parents: Sequence[Structure], ratio: float, level: float, rng: Rng) -> Structure:
        """Draw the structure of a child.

        Args:
            parents: those of its parents, the first one's first; may be empty.
            ratio: largest share of units that a new draw removes.
            level: scattered sparsity, where it is not inherited.
            rng: the generator drawn from.
        """
        ground = self.ground
        removed = self._removed(parents, rng)
        here = _prunable(ground) & ~_groups(ground, removed)
        shares = {}
        for scope, units in ground.units:
            drawn = self._shares(scope, units, parents, here, ratio, rng)
            if drawn is not None:
                shares[scope] = drawn
        if ground.scope is None:
            return Structure(removed, shares)
        levels, offsets = self.scattered(parents, here, level, rng)
        return Structure(removed, shares, levels, offsets)

    def scattered(
        self, parents: Sequence[Structure], here: NDArray[np.bool_], level: float, rng: Rng
    ) -> tuple[Array, Array | None]:
        """Draw the scattered zeros of a child: a sparsity per group, and what tensors differ by from it."""
        ground, settings = self.ground, self.settings
        zeros = np.zeros(ground.groups)
        asked = [zeros if each.levels is None else each.levels for each in parents]
        offsets = parents[0].offsets if parents else None
        if settings.switch and parents and parents[0].levels is not None and rng.random() < settings.switch:
            if settings.tensors and rng.random() < 0.5:
                return asked[0], self._switched_inside(asked[0], offsets, here, rng)
            fixed = None if ground.scope is None else pattern_sparsity(ground.scope)
            most, step = (ground.most, STEP) if fixed is None else (fixed, fixed)  # a block has the pattern or not
            return switched(asked[0], ground.sizes * here, most, rng, step=step), offsets
        return inherited(asked, here, ground.depth, rng, settings, level), offsets

    def _switched_inside(self, levels: Array, offsets: Array | None, here: NDArray[np.bool_], rng: Rng) -> Array:
        """Return offsets after a level switch between the tensors of one block."""
        ground = self.ground
        place, sizes = np.array(ground.tensors, dtype=np.int64).T
        own = np.zeros(len(place)) if offsets is None else offsets.copy()
        group = int(rng.choice(np.flatnonzero(here)))
        inside = np.flatnonzero(place == group)
        own[inside] = switched(levels[group] + own[inside], sizes[inside], ground.most, rng) - levels[group]
        return own

    def _shares(
        self,
        scope: str,
        units: int,
        parents: Sequence[Structure],
        here: NDArray[np.bool_],
        ratio: float,
        rng: Rng,
    ) -> Array | None:
        """Draw the share of units that go of each group; None: none go."""
        settings, ground = self.settings, self.ground
        if not parents or rng.random() < settings.restructure:
            return self._new_shares(ratio, rng) if rng.random() < settings.narrow else None
        source = self._source(parents, rng)
        if scope not in source.shares:
            return None
        own, most = source.shares[scope], (units - ground.stay(scope)) / units
        if scope == MOE_EXPERTS:
            return np.full(
                ground.groups, np.clip(own.mean() + rng.normal(0.0, max(settings.shift, 0.5 / units)), 0, most)
            )
        if settings.switch and rng.random() < settings.switch:
            sizes = (_in_blocks(ground) & here).astype(float)
            return switched(own, sizes, most, rng, step=max(STEP, 1.0 / units))
        asked = [own, *(each.shares[scope] for each in parents if each is not source and scope in each.shares)]
        noise = max(settings.noise, 0.3 / units) if settings.noise else 0.0  # less moves none where a block has few
        return np.clip(inherited(asked, here, ground.depth, rng, settings, noise=noise), 0.0, most)

    def _new_shares(self, ratio: float, rng: Rng) -> Array:
        settings, ground = self.settings, self.ground
        level = rng.uniform(0.0, min(ratio, settings.narrowest))
        return np.clip(level + rng.normal(0.0, settings.tilt * level) * ground.depth, 0.0, 1.0)

    def _source(self, parents: Sequence[Structure], rng: Rng) -> Structure:
        """Return the parent that a part is inherited from: the first, or with probability 1 - `keep` any."""
        return parents[0] if rng.random() < self.settings.keep else parents[int(rng.integers(len(parents)))]

    def _removed(self, parents: Sequence[Structure], rng: Rng) -> frozenset[int]:
        """Draw the blocks that go of a child."""
        settings = self.settings
        if not self.most_removed:
            return frozenset()
        if not parents or rng.random() < settings.restructure:
            return self._drawn(rng) if rng.random() < settings.remove else frozenset()
        removed = set(parents[0].removed)
        if rng.random() >= settings.keep:  # where parents differ, as either
            other = parents[int(rng.integers(len(parents)))].removed
            removed = {block for block in sorted(removed | other) if block in removed & other or rng.random() < 0.5}
        removed &= set(self.ground.removable)
        if rng.random() < settings.edit:
            removed = self._edited(removed, rng)
        while len(removed) > self.most_removed:
            removed.remove(_one(self._ends(removed), rng))
        return frozenset(removed)

    def _drawn(self, rng: Rng) -> frozenset[int]:
        """Draw blocks anew, one at least: few rather than many, a contiguous stretch or single ones."""
        where = self.ground.removable
        count = int(rng.integers(1, self.most_removed + 1, size=2).min())
        if rng.random() < self.settings.contiguous:
            start = int(rng.integers(where.start, where.stop - count + 1))
            return frozenset(range(start, start + count))
        return frozenset(int(block) for block in rng.choice(np.array(where), count, replace=False))

    def _edited(self, removed: set[int], rng: Rng) -> set[int]:
        """Return blocks of which one more goes, one less, a stretch lies one further, or all are drawn anew."""
        free = [block for block in self.ground.removable if block not in removed]
        moves = ["anew", *(["less", "moved"] if removed else []), *(["more"] if free else [])]
        match moves[int(rng.integers(len(moves)))]:
            case "more":
                beside = [block for block in free if {block - 1, block + 1} & removed]
                return removed | {_one(beside if beside and rng.random() < self.settings.contiguous else free, rng)}
            case "less":
                return removed - {_one(self._ends(removed), rng)}
            case "moved":
                low = _one([block for block in sorted(removed) if block - 1 not in removed], rng)
                high = next(block for block in range(low, max(removed) + 1) if block + 1 not in removed)
                leave, come = (low, high + 1) if rng.random() < 0.5 else (high, low - 1)
                return removed - {leave} | {come} if come in self.ground.removable else removed
            case _:
                return set(self._drawn(rng))

    def _ends(self, removed: set[int]) -> list[int]:
        """Return the blocks at the ends of removed stretches, in order."""
        return [block for block in sorted(removed) if block - 1 not in removed or block + 1 not in removed]


def _one(blocks: Sequence[int], rng: Rng) -> int:
    return blocks[int(rng.integers(len(blocks)))]


def _prunable(ground: Ground) -> NDArray[np.bool_]:
    return np.array(ground.prunable, dtype=bool)


def _in_blocks(ground: Ground) -> NDArray[np.bool_]:
    return _groups(ground, frozenset(range(len(ground.blocks))))


def _groups(ground: Ground, removed: frozenset[int]) -> NDArray[np.bool_]:
    """Return which groups are the blocks at some positions, shape (groups,)."""
    found = np.zeros(ground.groups, dtype=bool)
    found[[ground.blocks[block] for block in sorted(removed)]] = True
    return found


def _share(ground: Ground, removed: frozenset[int]) -> float:
    """Return the share of all prunable weights that removed blocks hold."""
    return float(ground.sizes[_groups(ground, removed)].sum() / ground.sizes.sum())


def _by_group(sparsity: Array, ground: Ground) -> tuple[Array, Array]:
    """Return a sparsity per group, of a sparsity per tensor, and what is left of each tensor's."""
    place, sizes = np.array(ground.tensors, dtype=np.int64).T
    zeros = np.bincount(place, weights=sizes * sparsity, minlength=ground.groups)
    levels = np.divide(zeros, ground.sizes, out=np.zeros(ground.groups), where=ground.sizes > 0).round(DIGITS)
    return levels, np.where(sizes > 0, sparsity - levels[place], 0.0)
