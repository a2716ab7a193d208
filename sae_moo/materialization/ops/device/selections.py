"""What SCE selects by: variances of task vectors over the inputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sae_moo.materialization.ops.deferred import CutRef
from sae_moo.materialization.ops.device.cuts import Scored, cuts
from sae_moo.materialization.ops.device.kernels import elementwise
from sae_moo.materialization.ops.device.tables import Card, Table, codes_in, grouped
from sae_moo.materialization.ops.device.writing import put_operands
from sae_moo.materialization.ops.operands import Operands


def selections(card: Card, operands: Sequence[Operands], shares: Sequence[float]) -> list[CutRef | None]:
    """Return the cuts of variances that leave a share of those that are not 0; None where all stay."""
    found: list[CutRef | None] = [None] * len(operands)
    at = [i for i, share in enumerate(shares) if share < 1]
    if not at:
        return found
    chosen = [operands[i] for i in at]
    held, zeros = _variances(card, chosen)
    sizes = card.sent(np.array([x.numel for x in chosen], np.int64))
    kept = card.sent(np.array([shares[i] for i in at], np.float64))
    counts = sizes - ((sizes - zeros).double() * kept).long()
    for i, ref in zip(at, cuts(card, [Scored(each) for each in held], counts), strict=True):
        found[i] = ref
    return found


def _variances(card: Card, operands: Sequence[Operands]) -> tuple[list[Tensor], Tensor]:
    """Return the variances of every element, float32, and how many of each tensor are zero."""
    sizes = [x.numel for x in operands]
    held = [card.empty(size, dtype=torch.float32) for size in sizes]
    zeros = card.zeros(len(operands))
    for (inputs, codes), at in grouped(operands, lambda x: (len(x.inputs), codes_in(x))):
        chosen = [operands[i] for i in at]
        tiles = card.tiles([sizes[i] for i in at])
        table = Table(card, tiles, [sizes[i] for i in at], 4 + inputs + 1)
        table.addresses(2, [held[i] for i in at])
        put_operands(table, chosen)
        table.floats(4 + inputs, [1.0 / inputs] * len(at))
        counted = card.zeros(len(at))
        card.launch(
            elementwise.variances, tiles.number, table.sent(), tiles.jobs, counted, WIDTH=table.width, K=inputs,
            CODES=codes, ALIGNED=table.aligned, BLOCK=card.tile,
        )  # fmt: skip
        zeros[card.sent(np.array(at, np.int64))] = counted
    return held, zeros
