"""How zeros are spread over places: by what parents have, and by moves that keep how many there are in all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sae_moo.searchers.breeding import Operators
from sae_moo.searchers.ground import DIGITS, Array

SHAPED = 0.05  # sparsity from which a parent has a shape to inherit
STEP = 0.05  # by which a level moves at a switch
SWITCHES = 3  # at most, in one mutation


def switched(
    levels: Array, sizes: Array, most: float, rng: np.random.Generator, times: int | None = None, step: float = STEP
) -> Array:
    """Return levels of sparsity of which some went up and others down, with as many zeros in all.

    The level switch of EvoPress (Sieberling et al. 2024, arXiv 2410.14649): one place goes up a step and
    another one down, a few times, seldom more than once. Theirs moves between levels of a grid that hold as many
    weights each; here places differ in size, so that the smaller one moves by the step and the larger one by as many
    zeros, and where one of them has no room left for it both move as far as they can.

    Args:
        levels: sparsity of each place (blocks, or the tensors of one block), shape (places,); clipped to [0, `most`]
            before anything moves.
        sizes: number of weights of each place, shape (places,), at least 0; a place without weights keeps its level.
        most: largest level, in [0, 1].
        rng: the generator drawn from.
        times: how often, or None: the smaller of two draws from 1 to 3, as EvoPress has it.
        step: by how much the smaller place moves, above 0.

    Returns:
        Levels in [0, `most`], shape (places,), those that moved rounded to `DIGITS` digits: the number of zeros
        ``sum(levels * sizes)`` changes by half of the last digit in the places that moved, and by no more.

    Raises:
        ValueError: if levels and sizes are not two rows of as many finite numbers, or a number is out of its range.
    """
    levels, sizes = np.asarray(levels, dtype=np.float64), np.asarray(sizes, dtype=np.float64)
    if levels.ndim != 1 or levels.shape != sizes.shape or not np.isfinite([levels, sizes]).all():
        raise ValueError(f"levels, sizes: expected two rows of as many finite numbers, got {levels} and {sizes}")
    if (sizes < 0).any() or not 0.0 <= most <= 1.0 or not step > 0.0 or (times is not None and times < 0):
        raise ValueError(
            f"expected sizes and times of at least 0, most in [0, 1] and step above 0, got {sizes}, {times}, {most} "
            f"and {step}"
        )
    levels = np.clip(levels, 0.0, most)
    if times is None:
        times = int(rng.integers(1, SWITCHES + 1, size=2).min())
    moved = np.zeros(len(levels), dtype=bool)
    for _ in range(times):
        up, down = (sizes > 0) & (levels < most), (sizes > 0) & (levels > 0.0)
        pairs = np.argwhere(up[:, None] & down & ~np.eye(len(levels), dtype=bool))
        if not len(pairs):  # all full, all empty, or a single place
            break
        a, b = pairs[int(rng.integers(len(pairs)))]
        zeros = min(
            step * min(sizes[a], sizes[b]),
            (most - levels[a]) * sizes[a],
            levels[b] * sizes[b],
        )
        levels[a] = min(most, levels[a] + zeros / sizes[a])
        levels[b] = max(0.0, levels[b] - zeros / sizes[b])
        moved[[a, b]] = True
    return np.where(moved, np.clip(levels.round(DIGITS), 0.0, most), levels)


def inherited(
    parents: Sequence[Array],
    here: NDArray[np.bool_],
    depth: Array,
    rng: np.random.Generator,
    settings: Operators,
    level: float | None = None,
    noise: float | None = None,
) -> Array:
    """Draw a sparsity per group: a level, the same for all groups, plus a shape over the groups, plus N(0, `noise`).

    The level is, with probability `inherit`, around the first parent's. The shape is, with probability `shape`, that of
    a parent which is pruned, its slope from the first block to the last moved by N(0, `slope`); else a slope
    ~ N(0, `tilt`). Blocks differ in how much they can lose, and what a shape is worth holds at other levels too.

    Args:
        parents: sparsities of the parents, shape (groups,) each, the first one's first; may be empty.
        here: which groups count, shape (groups,).
        depth: of each group, from -0.5 to 0.5, shape (groups,).
        rng: the generator drawn from.
        settings: `inherit` and `shift` of the level, `shape` and `slope` of an inherited shape, `tilt` of a new one,
            `noise`.
        level: where it is not inherited; None: it always is.
        noise: in the place of that of the settings.

    Returns:
        Shape (groups,), not clipped.
    """
    levels = [float(each[here].mean()) for each in parents]
    if parents and (level is None or rng.random() < settings.inherit):
        level = levels[0] + rng.normal(0.0, settings.shift)
    if level is None:
        raise ValueError("expected a level, or a parent to inherit it from")
    shape = rng.normal(0.0, settings.tilt) * depth
    pruned = [place for place, mean in enumerate(levels) if mean >= SHAPED]
    if pruned and rng.random() < settings.shape:
        place = pruned[int(rng.integers(len(pruned)))]
        shape = parents[place] - levels[place] + rng.normal(0.0, settings.slope) * depth
    return level + shape + rng.normal(0.0, settings.noise if noise is None else noise, len(depth))
