"""Sums over tensors, a job each; float64, on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_moo.materialization.ops.deferred import CutRef
from sae_moo.materialization.ops.device.kernels import reducing
from sae_moo.materialization.ops.device.scores import scores_of
from sae_moo.materialization.ops.device.tables import CODES, SPAN, Card, Table, Tiles, codes_of, grouped
from sae_moo.materialization.ops.device.writing import EACH, chance_of, put_operands, put_pruned, put_thinnings
from sae_moo.materialization.ops.jobs import Pruned
from sae_moo.materialization.ops.operands import Operands
from sae_moo.materialization.ops.select import Cut
from sae_moo.materialization.ops.steps import Thinning


def kept_squares(card: Card, pruned: Sequence[Pruned]) -> Tensor:
    """Return the sums of squares of all weights, and of those that a cut leaves; shape (jobs, 2)."""
    found = card.empty(len(pruned), 2, dtype=torch.float64)
    for (scores, source), at in grouped(pruned, lambda job: (scores_of(job.scoring), CODES[job.source.dtype])):
        jobs = [pruned[i] for i in at]
        table, tiles = _table(card, [job.source.numel() for job in jobs], 10)
        held = put_pruned(table, jobs, scores)
        sums = _summed(
            card, table, tiles, 2, reducing.kept_squares, SCORES=scores, SOURCE=source,
        )  # fmt: skip
        del held
        _put(card, found, at, sums)
    return found


def distances(card: Card, asked: Sequence[tuple[Operands, int, Thinning]], masks: Sequence[Tensor | None]) -> Tensor:
    """Return the L1 norms of task vectors, and of what thinnings leave of them; shape (jobs, 2).

    Args:
        card: where.
        asked: operands, index of the input, thinning.
        masks: what stays where chances go by rank.
    """
    found = card.empty(len(asked), 2, dtype=torch.float64)
    kinds = grouped(asked, _kind)
    for (above, under, chance, codes), at in kinds:
        jobs = [asked[i] for i in at]
        table, tiles = _table(card, [x.numel for x, _, _ in jobs], 6 + EACH)
        bases = [x.inputs[0] if x.base is None else x.base for x, _, _ in jobs]
        table.addresses(3, bases)
        alone = [Operands((x.inputs[i],), x.base, x.shape, (None,), (x.keys[i],)) for x, i, _ in jobs]
        thinnings = [thinning for _, _, thinning in jobs]
        put_thinnings(table, 6, alone, 0, thinnings, [masks[i] for i in at], under=under)
        sums = _summed(card, table, tiles, 2, reducing.distances, ABOVE=above, UNDER=under, CHANCE=chance, CODES=codes)
        _put(card, found, at, sums)
    return found


def _kind(asked: tuple[Operands, int, Thinning]) -> tuple[bool, bool, int, int]:
    x, i, thinning = asked
    assert x.base is not None
    chance = chance_of([thinning])
    return thinning.above is not None, thinning.under is not None, chance, codes_of([x.base, x.inputs[i]])


def products(card: Card, asked: Sequence[tuple[Operands, bool]]) -> list[Tensor]:
    """Return the lower triangle of dot products of each job's inputs, or differences from the base, row by row."""
    found: list[Tensor] = [torch.empty(0)] * len(asked)
    for (inputs, relative, codes), at in grouped(asked, lambda each: (len(each[0].inputs), each[1], _codes(each[0]))):
        operands = [asked[i][0] for i in at]
        table, tiles = _table(card, [x.numel for x in operands], 4 + inputs)
        put_operands(table, operands)
        number = inputs * (inputs + 1) // 2
        sums = _summed(card, table, tiles, number, reducing.products, K=inputs, RELATIVE=relative, CODES=codes)
        for i, row in zip(at, sums, strict=True):
            found[i] = row
    return found


def selected_squares(card: Card, asked: Sequence[tuple[Operands, Cut | CutRef | None]]) -> list[Tensor]:
    """Return each input's sum of squared differences from the base, of what has a variance not below a cut."""
    found: list[Tensor] = [torch.empty(0)] * len(asked)
    kinds = grouped(asked, lambda each: (len(each[0].inputs), each[1] is not None, _codes(each[0])))
    for (inputs, cut, codes), at in kinds:
        operands = [asked[i][0] for i in at]
        table, tiles = _table(card, [x.numel for x in operands], 4 + inputs + 3)
        put_operands(table, operands)
        if cut:
            table.cuts(4 + inputs, [each for i in at if (each := asked[i][1]) is not None])
        table.floats(4 + inputs + 2, [1.0 / inputs] * len(operands))
        sums = _summed(card, table, tiles, inputs, reducing.selected_squares, K=inputs, CUT=cut, CODES=codes)
        for i, row in zip(at, sums, strict=True):
            found[i] = row
    return found


def unit_squares(card: Card, matrices: Sequence[tuple[Tensor, int]]) -> list[Tensor]:
    """Return the sums of squares of matrices for each index of an axis.

    Args:
        card: where.
        matrices: two-dimensional, contiguous, each with its axis.

    Returns:
        float64, one tensor for each.
    """
    lengths = [matrix.shape[axis] for matrix, axis in matrices]
    found = card.empty(sum(lengths), dtype=torch.float64)
    offsets = [sum(lengths[:i]) for i in range(len(lengths))]
    for code, at in grouped(matrices, lambda each: CODES[each[0].dtype]):
        units = min(64, card.tile)
        tiles = card.tiles([lengths[i] for i in at], units)
        table = Table(card, tiles, [lengths[i] for i in at], 7)
        table.addresses(2, [matrices[i][0] for i in at])
        widths = [matrices[i][0].shape[1] for i in at]
        rows = [matrices[i][1] == 0 for i in at]
        table.put(3, [width if row else 1 for width, row in zip(widths, rows, strict=True)])
        table.put(4, [matrices[i][0].shape[1 - matrices[i][1]] for i in at])
        table.put(5, [1 if row else width for width, row in zip(widths, rows, strict=True)])
        table.put(6, [offsets[i] for i in at])
        card.launch(
            reducing.unit_squares, tiles.number, table.sent(), tiles.jobs, found, WIDTH=7, SOURCE=code, UNITS=units,
            OTHERS=32,
        )  # fmt: skip
    return list(torch.split(found, lengths))


def _codes(x: Operands) -> int:
    return codes_of([x.inputs[0] if x.base is None else x.base, *x.inputs])


def _table(card: Card, sizes: Sequence[int], width: int) -> tuple[Table, Tiles]:
    tiles = card.tiles(sizes)
    return Table(card, tiles, sizes, width), tiles


def _summed(card: Card, table: Table, tiles: Tiles, number: int, kernel: Any, **constants: Any) -> Tensor:
    """Launch a kernel that leaves numbers for each tile, and add them up; shape (jobs, number)."""
    parts = card.empty(number, tiles.number, dtype=torch.float64)
    sums = card.empty(len(tiles.first), number, dtype=torch.float64)
    sent = table.sent()
    card.launch(
        kernel, tiles.number, sent, tiles.jobs, parts, tiles.number, WIDTH=table.width, ALIGNED=table.aligned,
        BLOCK=card.tile, **constants,
    )  # fmt: skip
    card.launch(
        reducing.fold, len(tiles.first), sent, tiles.lasts, parts, sums, tiles.number, WIDTH=table.width,
        OUTPUT=number, SPAN=SPAN,
    )  # fmt: skip
    return sums


def _put(card: Card, found: Tensor, at: Sequence[int], sums: Tensor) -> None:
    if len(at) == len(found):
        found.copy_(sums)
    else:
        found[card.sent(_indices(at))] = sums


def _indices(at: Sequence[int]) -> Any:
    return np.array(at, np.int64)
