"""Counts of pruning scopes that span many tensors, found by an engine that works on bands of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from sae_moo.experts.pool import TensorInfo
from sae_moo.materialization.ops.deferred import INFINITE, value_of
from sae_moo.materialization.ops.prune import Scoring
from sae_moo.materialization.ops.select import Cut, among_nan

if TYPE_CHECKING:  # its kernels are compiled by Triton, which other machines need not have
    from sae_moo.materialization.ops.device.engine import Banded

EASY = 2
"""Rounds after which nearly every search is over: one around a sample, one to the last bit."""

Bands = Callable[[], Iterator[tuple[list[TensorInfo], list[Scoring]]]]
"""Goes over all prunable tensors, computed anew each time."""


def counts(
    engine: Banded, bands: Bands, prunable: Sequence[TensorInfo], units: Mapping[int, Sequence[int]],
    asked: Mapping[int, int],
) -> tuple[tuple[int, ...], dict[str, Cut]]:  # fmt: skip
    """Return how many weights of each tensor go, where those of a unit compete with each other.

    Args:
        engine: of the device.
        bands: the tensors' scores.
        prunable: all tensors, in the pool's order: of equal scores those of the first tensor go first.
        units: unit -> positions of its tensors among `prunable`.
        asked: unit -> how many of its weights go.

    Returns:
        A count for each tensor, and the cuts by name of all but those that a unit's ties end in.

    Raises:
        WeightsError: if a cut falls among scores that are NaN.
    """
    from sae_moo.materialization.ops.device.cuts import ROUNDS, Scored

    number = {unit: i for i, unit in enumerate(units)}
    whose = {prunable[at].name: number[unit] for unit, members in units.items() for at in members}
    sizes = [sum(prunable[at].numel for at in members) for members in units.values()]
    search = engine.search(sizes, [asked[unit] for unit in units], len(prunable))

    def shown() -> Iterator[tuple[list[TensorInfo], list[Scored], list[int]]]:
        for infos, scorings in bands():
            yield infos, [Scored.of(scoring) for scoring in scorings], [whose[info.name] for info in infos]

    for _, scored, mine in shown():
        search.sample(scored, mine)
    search.begin()
    for done in range(ROUNDS):
        if done == EASY and search.found:
            break
        for _, scored, mine in shown():
            search.tally(search.shown(scored, mine))
        search.advance()
    parts, names = [], []
    for infos, scored, mine in shown():
        parts.append(search.counted(search.shown(scored, mine)))
        names += [info.name for info in infos]
    words = engine.card.fetched(torch.cat([search.bits, torch.cat(parts).flatten()]))
    bits, counted = words[: len(sizes)], dict(zip(names, words[len(sizes) :].reshape(-1, 2), strict=True))
    return _dealt(bits, counted, prunable, units, asked, sizes)


def _dealt(
    bits: np.ndarray, counted: Mapping[str, np.ndarray], prunable: Sequence[TensorInfo],
    units: Mapping[int, Sequence[int]], asked: Mapping[int, int], sizes: Sequence[int],
) -> tuple[tuple[int, ...], dict[str, Cut]]:  # fmt: skip
    """Deal the ties of every unit to its tensors, in order."""
    found = [0] * len(prunable)
    cuts: dict[str, Cut] = {}
    for word, size, (unit, members) in zip(bits, sizes, units.items(), strict=True):
        if not asked[unit]:
            cuts |= {prunable[at].name: Cut(0.0, 0) for at in members}
            continue
        if word > INFINITE:
            raise among_nan(size, asked[unit])
        left = asked[unit] - sum(int(counted[prunable[at].name][0]) for at in members)
        for at in members:
            info = prunable[at]
            under, equal = (int(each) for each in counted[info.name])
            tied = min(left, equal)
            left -= tied
            found[at] = under + tied
            if tied in (0, equal):
                cuts[info.name] = Cut(value_of(int(word)), info.numel if tied else 0)
    return tuple(found), cuts
