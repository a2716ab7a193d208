"""Which elements of task vectors stay where the chance to stay goes by rank within a row (DELLA)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sae_moo.materialization.ops.device.kernels import lines
from sae_moo.materialization.ops.device.tables import Card, Table, codes_of, ground_of, grouped, power_of_two
from sae_moo.materialization.ops.operands import Operands
from sae_moo.materialization.ops.steps import Thinning, drops_by_rank

LONGEST = 1 << 14
"""Longest row that is ordered by one program."""

Chance = tuple[Operands, int, Thinning]
"""Operands, index of an input, and what thins its task vector out."""


def masks_of(card: Card, asked: Sequence[Chance]) -> list[Tensor]:
    """Return which elements of task vectors stay, as bytes."""
    found: list[Tensor] = [torch.empty(0)] * len(asked)
    for (padded, codes), at in grouped(asked, _kind):
        chosen = [asked[i] for i in at]
        for i, each in zip(at, chosen, strict=True):
            found[i] = _plainly(*each) if not padded else card.empty(each[0].numel, dtype=torch.uint8)
        if not padded:
            continue
        tiles = card.tiles([x.numel // x.row for x, _, _ in chosen], 1)
        table = Table(card, tiles, [x.numel for x, _, _ in chosen], 9)
        table.addresses(2, [found[i] for i in at])
        table.addresses(3, [ground_of(x) for x, _, _ in chosen])
        table.addresses(4, [x.inputs[i] for x, i, _ in chosen])
        keys = [(0, 0) if thinning.stream is None else thinning.stream.keys for _, _, thinning in chosen]
        table.put(5, [first for first, _ in keys])
        table.put(6, [second for _, second in keys])
        drops = [_drops(card, x.row, thinning) for x, _, thinning in chosen]
        table.put(7, [each.data_ptr() for each in drops])
        table.put(8, [x.row for x, _, _ in chosen])
        card.launch(
            lines.ranked_chances, tiles.number, table.sent(), tiles.jobs, WIDTH=9, CODES=codes,
            LOGARITHM=padded.bit_length() - 1, PADDED=padded, num_warps=_warps(padded),
        )  # fmt: skip
    return found


def _kind(asked: Chance) -> tuple[int, int]:
    """Return how long rows are padded, 0 where no program orders them, and the operands' dtypes."""
    x, i, thinning = asked
    assert x.base is not None
    if thinning.epsilon is None or x.row > LONGEST:
        return 0, 0
    return power_of_two(x.row), codes_of([x.base, x.inputs[i]])


def _warps(padded: int) -> int:
    return 32 if padded > 8192 else 16 if padded > 4096 else 8 if padded > 1024 else 4


def _drops(card: Card, row: int, thinning: Thinning) -> Tensor:
    density, epsilon = thinning.density, thinning.epsilon or 0.0
    return card.kept(f"drops {row} {density} {epsilon}", lambda: drops_by_rank(row, density, epsilon).numpy())


def _plainly(x: Operands, i: int, thinning: Thinning) -> Tensor:
    assert x.base is not None
    stays = torch.empty(x.numel, dtype=torch.uint8, device=x.base.device)
    for start, inputs, base in x.chunks(x.row):
        assert base is not None
        delta = inputs[i] - base
        kept = thinning.keeps(delta, start, x.row)
        stays[start : start + len(delta)] = 1 if kept is None else kept.to(torch.uint8)
    return stays
