"""Whole blocks out of a model: which ones, by which rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from bench import DTYPE, Bench, Teacher
from torch import Tensor
from torch.nn.functional import cosine_similarity

from sae_moo import Cast, Prune, Recipe
from sae_moo.experts.anatomy import anatomy
from sae_moo.materialization.resolve import resolve
from sae_moo.recipe.structure import removed_blocks

FIRST = 8
"""Blocks that the greedy search tries in every round but the first: those that were missed least in the first."""
SWAPPED = 12
"""Blocks that a swap may take out instead of another, likewise."""


def without(recipe: Recipe, gone: Sequence[int], blocks: int) -> Recipe:
    """Return a recipe that lacks blocks, named by their positions."""
    if not gone:
        return recipe
    rows = tuple((0,) if block in gone else () for block in range(blocks))
    return Cast(Prune(recipe, len(gone) / blocks, scope="blocks", units=rows), DTYPE)


def by_magnitude(bench: Bench, recipe: Recipe, count: int) -> tuple[int, ...]:
    """Return the blocks of the least mean magnitude, as the product chooses them."""
    asked = Prune(recipe, count / anatomy(bench.pool, "blocks").blocks, scope="blocks")
    return tuple(sorted(removed_blocks(resolve(asked, bench.pool))))


def influences(bench: Bench, recipe: Recipe) -> list[float]:
    """Return every block's influence: 1 - cos of its input and output, a mean over calibration tokens.

    Men et al. 2024 (ShortGPT, arXiv 2403.03853), eq. 1.
    """
    bench.write(recipe)
    sums = [0.0] * bench.live.config.num_hidden_layers
    tokens = 0
    with _changes(bench, sums), torch.inference_mode():
        for ids in bench.sequences("calibrate", 2 * 1024):
            bench.live.base_model(input_ids=torch.tensor([ids]), use_cache=False)
            tokens += len(ids)
    return [total / tokens for total in sums]


@contextmanager
def _changes(bench: Bench, sums: list[float]) -> Iterator[None]:
    def hook(block: int) -> Callable[..., None]:
        def add(_: object, args: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
            after = output if isinstance(output, Tensor) else output[0]
            sums[block] += float((1 - cosine_similarity(args[0].float(), after.float(), dim=-1)).sum())

        return add

    handles = [layer.register_forward_hook(hook(i)) for i, layer in enumerate(bench.live.base_model.layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


Choice = tuple[int, ...]
"""Of each block, which of the sources its weights are of."""


def chosen(
    loss: Callable[[Choice, tuple[int, ...]], float],
    first: Choice,
    gone: Sequence[int],
    sources: int,
    tries: int,
    seed: int,
) -> tuple[Choice, tuple[int, ...], float]:
    """Return of each block the source it is best taken from, and the blocks that go: GPTailor's question, in small.

    Guo et al. 2026 (GPTailor, arXiv 2506.20480) ask SMAC; here a climb of single steps, half of them another source for
    a block that stays, half another block that goes; what is not worse is gone on from.

    Args:
        loss: of the model of such blocks without those that go.
        first: sources to begin with, a number below `sources` for each block.
        gone: blocks that go, to begin with.
        sources: how many there are.
        tries: evaluations, that of the beginning included.
        seed: of the steps.
    """
    rng = np.random.default_rng(seed)
    best, without_those = tuple(first), tuple(gone)
    least = loss(best, without_those)
    for _ in range(tries - 1):
        here, there = list(best), set(without_those)
        stay = [block for block in range(len(first)) if block not in there]
        if sources > 1 and rng.random() < 0.5:
            block = int(rng.choice(stay))
            here[block] = (here[block] + 1 + int(rng.integers(sources - 1))) % sources
        else:
            there = {*there - {int(rng.choice(sorted(there)))}, int(rng.choice(stay))}
        lost = loss(tuple(here), tuple(sorted(there)))
        if lost <= least:
            best, without_those, least = tuple(here), tuple(sorted(there)), lost
    return best, without_those, least


def stretch(teacher: Teacher, recipe: Recipe, count: int, blocks: int) -> tuple[int, ...]:
    """Return the contiguous stretch without which the model is most like itself: all are tried."""
    all_of_them = [tuple(range(start, start + count)) for start in range(blocks - count + 1)]
    return max(all_of_them, key=lambda gone: teacher.alike(without(recipe, gone, blocks)))


def swapped(
    teacher: Teacher, recipe: Recipe, gone: Sequence[int], tried: Sequence[int], blocks: int
) -> tuple[int, ...]:
    """Return the blocks that go after the best swap of one of them for a tried one, as long as swaps make it more alike.

    Args:
        teacher: the model with all blocks.
        recipe: the same.
        gone: blocks to begin with.
        tried: blocks that may go instead.
        blocks: how many there are.
    """
    best, most = tuple(gone), teacher.alike(without(recipe, gone, blocks))
    while True:
        sets = [tuple(sorted({*best, new} - {old})) for old in best for new in tried if new not in best]
        alike = {each: teacher.alike(without(recipe, each, blocks)) for each in sets}
        found = max(alike, key=lambda each: alike[each])
        if alike[found] <= most:
            return best
        best, most = found, alike[found]


def greedy(
    teacher: Teacher, recipe: Recipe, counts: Sequence[int], blocks: int
) -> tuple[dict[int, tuple[int, ...]], list[int]]:
    """Return the blocks that go one by one, always the one that leaves the model most like itself.

    Returns:
        The blocks that are gone, by their number; and all blocks, those first that are missed least alone.
    """
    gone: tuple[int, ...] = ()
    found: dict[int, tuple[int, ...]] = {}
    order = tried = list(range(blocks))
    while len(gone) < max(counts):
        alike = {block: teacher.alike(without(recipe, (*gone, block), blocks)) for block in tried if block not in gone}
        if not gone:
            order = sorted(alike, key=lambda block: -alike[block])
            tried = order[:FIRST]
        gone = (*gone, max(alike, key=lambda block: alike[block]))
        if len(gone) in counts:
            found[len(gone)] = tuple(sorted(gone))
    return found, order
