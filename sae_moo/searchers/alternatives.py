"""Other allocations of a child's budget of zeros over its parameter groups, for screening to choose among."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sae_moo.recipe import Cast, Prune, Recipe
from sae_moo.recipe.structure import removed_blocks
from sae_moo.searchers.allocation import switched
from sae_moo.searchers.breeding import Operators
from sae_moo.searchers.ground import DIGITS, Array, Ground

HALVINGS = 60  # of the interval in which the common shift of levels lies: beyond float64's digits


def alternatives(
    ground: Ground, child: Recipe, count: int, settings: Operators, rng: np.random.Generator
) -> tuple[Recipe, ...]:
    """Return recipes that differ from a child in how its last pruning spreads its scattered zeros.

    They are spread over the groups, or the tensors where the child asks by tensor; what goes whole stays as it is.

    Every second one is a level switch (`allocation.switched`); the others have another slope from the first block to
    the last, N(0, `slope`) more, and N(0, `noise`) more in every place, as shapes are inherited. As many zeros are
    asked for in all, up to the rounding of levels to `DIGITS` digits.

    Args:
        ground: groups, their sizes, the largest level.
        child: a candidate.
        count: how many are drawn; those that are drawn twice, or are the child, are left out.
        settings: `slope` and `noise`.
        rng: the generator drawn from.

    Returns:
        At most `count` candidates, all different; none for a child that ends in no pruning, or in one that asks the
        same of all groups, or in one of whole parts.
    """
    last = child.input if isinstance(child, Cast) else child
    if not isinstance(last, Prune) or not isinstance(last.sparsity, tuple) or last.scope != ground.scope:
        return ()
    levels, group = np.array(last.sparsity), np.arange(ground.groups)
    sizes = ground.sizes
    if len(levels) != ground.groups:  # by tensor
        group, sizes = np.array(ground.tensors, dtype=np.int64).T
    gone = [ground.blocks[block] for block in sorted(removed_blocks(child))]
    here = np.array(ground.prunable)[group] & ~np.isin(group, gone)
    sizes = np.where(here, sizes, 0.0)
    found: dict[Recipe, None] = {}
    for i in range(count):
        if i % 2 == 0:
            drawn = switched(levels, sizes, ground.most, rng)
        else:
            shape = levels + rng.normal(0.0, settings.slope) * ground.depth[group]
            shape = shape + rng.normal(0.0, settings.noise, len(levels))
            drawn = levelled(shape, sizes, levels, ground.most)
        found[ground.candidate(replace(last, sparsity=tuple(drawn.tolist())))] = None
    found.pop(child, None)
    return tuple(found)


def levelled(shape: Array, sizes: Array, levels: Array, most: float) -> Array:
    """Return levels of a given shape with as many zeros as others have: all are shifted alike, within [0, `most`].

    Args:
        shape: sparsity of each place but for the shift, shape (places,).
        sizes: number of weights of each place; those without weights keep level 0.
        levels: what has the wanted number of zeros, each in [0, `most`].
        most: largest level.
    """
    wanted = float(levels @ sizes)
    low, high = -float(shape.max(initial=0.0)), most - float(shape.min(initial=0.0))  # all empty, all full
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if float(np.clip(shape + middle, 0.0, most) @ sizes) < wanted:
            low = middle
        else:
            high = middle
    return np.where(sizes > 0, np.clip((shape + high).round(DIGITS), 0.0, most), 0.0)
