"""Which elements of task vectors stay where the chance to stay goes by rank within a row (DELLA)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sae_moo.materialization.ops.device.kernels import lines
from sae_moo.materialization.ops.device.tables import Card, Table, codes_of
from sae_moo.materialization.ops.operands import Operands
from sae_moo.materialization.ops.steps import Thinning, drops_by_rank

LONGEST = 1 << 14
"""Longest row that is ordered by one program."""


def masks_of(card: Card, x: Operands, thinnings: Sequence[Thinning], first: int) -> list[Tensor]:
    """Return which elements of each input stay, as bytes; the thinnings are of the inputs from `first` on."""
    found = []
    for i, thinning in enumerate(thinnings, start=first):
        if thinning.epsilon is None or x.row > LONGEST:
            found.append(_plainly(x, i, thinning))
            continue
        assert x.base is not None
        assert thinning.stream is not None
        mask = card.empty(x.numel, dtype=torch.uint8)
        padded = 1 << (x.row - 1).bit_length()
        tiles = card.tiles([x.numel // x.row], 1)
        table = Table(card, tiles, [x.numel], 9)
        table.addresses(2, [mask])
        table.addresses(3, [x.base])
        table.addresses(4, [x.inputs[i]])
        drops = card.sent(drops_by_rank(x.row, thinning.density, thinning.epsilon).numpy())
        table.put(5, [thinning.stream.keys[0]])
        table.put(6, [thinning.stream.keys[1]])
        table.put(7, [drops.data_ptr()])
        table.put(8, [x.row])
        card.launch(
            lines.ranked_chances, tiles.number, table.sent(), tiles.jobs, WIDTH=9, CODES=codes_of([x.base, x.inputs[i]]),
            LOGARITHM=padded.bit_length() - 1, PADDED=padded, num_warps=16 if padded > 4096 else 4,
        )  # fmt: skip
        found.append(mask)
    return found


def _plainly(x: Operands, i: int, thinning: Thinning) -> Tensor:
    assert x.base is not None
    stays = torch.empty(x.numel, dtype=torch.uint8, device=x.base.device)
    for start, inputs, base in x.chunks(x.row):
        assert base is not None
        delta = inputs[i] - base
        kept = thinning.keeps(delta, start, x.row)
        stays[start : start + len(delta)] = 1 if kept is None else kept.to(torch.uint8)
    return stays
