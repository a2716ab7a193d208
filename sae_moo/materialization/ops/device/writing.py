"""From jobs to launches: which kernel writes what, and the rows of its table.

A job that no kernel is for (a guest's step, a line too long) has none here; it is done by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from sae_moo.materialization.ops.deferred import value_of
from sae_moo.materialization.ops.device.chances import Chance
from sae_moo.materialization.ops.device.kernels import elementwise, lines
from sae_moo.materialization.ops.device.scores import GIVEN, MAGNITUDES, NORMS, put_norms, scores_of
from sae_moo.materialization.ops.device.tables import CODES, Card, Table, codes_of
from sae_moo.materialization.ops.jobs import Job, Lines, Pruned, Stepped, Without
from sae_moo.materialization.ops.operands import Operands
from sae_moo.materialization.ops.select import NOTHING, Cut
from sae_moo.materialization.ops.steps import Combination, Selected, Spliced, Step, Thinning, Vote, ZeroAware, divisor

LONGEST = 1 << 15
"""Longest line that one program selects in."""
MOST_INPUTS = 30
"""Most operands of one kernel."""
LINE_ELEMENTS = 4096
"""Elements of lines that a program works on at once, if it is more than one line."""

_J = TypeVar("_J", bound=Job)


@dataclass(frozen=True, slots=True)
class Work:
    """Something to write: a job, where to, and whose zeros they are.

    Args:
        job: what.
        out: flat, contiguous.
        owner: index of the tensor whose zeros are counted.
    """

    job: Any
    out: Tensor
    owner: int


Masks = Callable[[Sequence[Chance]], Sequence[Tensor | None]]
"""Finds which elements stay where chances go by rank."""


def parts(work: Sequence[tuple[Job, Tensor]]) -> list[Work]:
    """Return jobs in the parts that are written apart: a spliced step is two."""
    made = []
    for i, (job, out) in enumerate(work):
        if not isinstance(job, Stepped):
            made.append(Work(job, out, i))
            continue
        step = job.step
        if isinstance(step, ZeroAware) and not step.prunable:
            step = step.plain
        if not isinstance(step, Spliced):
            made.append(Work(Stepped(step, job.operands, job.blame), out, i))
            continue
        at, end = step.position, job.operands.numel
        for each, start, stop in ((step.first, 0, at), (step.second, at, end)):
            if start < stop:
                made.append(Work(Stepped(each, job.operands.part(start, stop)), out[start:stop], i))
    return made


def kind_of(work: Work) -> Hashable | None:
    """Return by what a job is put together with others into one launch; None: no kernel is for it."""
    job, result = work.job, CODES.get(work.out.dtype)
    if result is None:
        return None
    if isinstance(job, Pruned):
        scores = MAGNITUDES if job.cut == NOTHING else scores_of(job.scoring)
        return ("prune", scores, CODES[job.source.dtype], result)
    if isinstance(job, Without):
        return ("without", CODES[job.source.dtype], result)
    if isinstance(job, Lines):
        return _line_kind(job, result)
    if isinstance(job, Stepped):
        return _step_kind(job.step, job.operands, result)
    return None


def launch(card: Card, kind: Hashable, work: Sequence[Work], zeros: Tensor, masks: Masks) -> None:
    """Write jobs of one kind; zeros are added to those of their owners, `zeros` int64."""
    assert isinstance(kind, tuple)
    counted = torch.zeros(len(work), dtype=torch.int64, device=card.device)
    _LAUNCHES[kind[0]](card, kind, work, counted, masks)
    owners = [each.owner for each in work]
    if owners == list(range(len(zeros))):
        zeros += counted
    else:
        zeros.index_add_(0, card.sent(np.array(owners, np.int64)), counted)


def _line_kind(job: Lines, result: int) -> Hashable | None:
    scoring = job.scoring
    shape, of = scoring.grid.shape, job.keep + job.gone
    if len(shape) != 2:
        return None
    scores, source = scores_of(scoring), CODES[scoring.source.dtype]
    if of < scoring.grid.inputs:
        return ("neighbours", scores, source, result, of) if of <= 64 else None
    return ("rows", scores, source, result, _power(of)) if of <= LONGEST else None


def _step_kind(step: Step, operands: Operands, result: int) -> Hashable | None:
    inputs = operands.inputs
    if len(inputs) > MOST_INPUTS:
        return None
    if isinstance(step, Combination):
        origin = operands.base if step.origin is None else inputs[step.origin]
        assert origin is not None
        return ("combine", len(step.others), codes_of([origin, *(inputs[i] for i in step.others)]), result)
    base = inputs[0] if operands.base is None else operands.base
    codes = codes_of([base, *inputs])
    if isinstance(step, ZeroAware):
        return ("zero_aware", len(inputs), step.scale != 1.0, codes, result)
    if isinstance(step, Vote):
        above = any(each.above is not None for each in step.thinnings)
        under = any(each.under is not None for each in step.thinnings)
        return ("vote", len(inputs), above, under, chance_of(step.thinnings), step.elect, step.normalize, codes, result)
    if isinstance(step, Selected):
        return ("select", len(inputs), step.cut is not None, codes, result)
    return None


def chance_of(thinnings: Sequence[Thinning]) -> int:
    """Return how elements are drawn: 0 not at all, 1 by one threshold for each input, 2 by masks."""
    if any(each.epsilon is not None for each in thinnings):
        return 2
    return 1 if any(each.stream is not None for each in thinnings) else 0


def _table(card: Card, work: Sequence[Work], width: int) -> tuple[Table, Any]:
    sizes = [each.out.numel() for each in work]
    tiles = card.tiles(sizes)
    table = Table(card, tiles, sizes, width)
    table.addresses(2, [each.out for each in work])
    return table, tiles


def _combine(card: Card, kind: Any, work: Sequence[Work], zeros: Tensor, masks: Masks) -> None:  # noqa: ARG001
    _, others, codes, result = kind
    table, tiles = _table(card, work, 4 + 2 * others + 1)
    steps = [each.job.step for each in work]
    operands = [each.job.operands for each in work]
    table.addresses(
        3, [x.base if s.origin is None else x.inputs[s.origin] for s, x in zip(steps, operands, strict=True)]
    )
    for k in range(others):
        table.addresses(4 + k, [x.inputs[s.others[k]] for s, x in zip(steps, operands, strict=True)])
        table.floats(4 + others + 1 + k, [s.coefficients[k] for s in steps])
    table.floats(4 + others, [s.total for s in steps])
    card.launch(
        elementwise.combine, tiles.number, table.sent(), tiles.jobs, zeros, WIDTH=table.width, K=others, CODES=codes,
        RESULT=result, ALIGNED=table.aligned, BLOCK=card.tile,
    )  # fmt: skip


def put_operands(table: Table, operands: Sequence[Operands]) -> None:
    """Fill the columns of the base and the inputs; where there is no base, an input stands there, unread."""
    table.addresses(3, [x.inputs[0] if x.base is None else x.base for x in operands])
    for k in range(len(operands[0].inputs)):
        table.addresses(4 + k, [x.inputs[k] for x in operands])


def _zero_aware(card: Card, kind: Any, work: Sequence[Work], zeros: Tensor, masks: Masks) -> None:  # noqa: ARG001
    _, inputs, scaled, codes, result = kind
    table, tiles = _table(card, work, 4 + 2 * inputs + 1)
    put_operands(table, [each.job.operands for each in work])
    table.floats(4 + inputs, [each.job.step.scale for each in work])
    for k in range(inputs):
        table.floats(4 + inputs + 1 + k, [each.job.step.shares[k] for each in work])
    card.launch(
        elementwise.zero_aware, tiles.number, table.sent(), tiles.jobs, zeros, WIDTH=table.width, K=inputs,
        SCALED=scaled, CODES=codes, RESULT=result, ALIGNED=table.aligned, BLOCK=card.tile,
    )  # fmt: skip


EVERYTHING = Cut(value_of(0x7FFFFFFF), 1 << 62)
"""Every score is below it, whatever it is: its bits are the largest, those of the NaN that a GPU makes."""
EACH = 11
"""Columns for each input of a vote."""


def put_thinnings(
    table: Table, column: int, operands: Sequence[Operands], k: int, thinnings: Sequence[Thinning],
    masks: Sequence[Tensor | None],
) -> None:  # fmt: skip
    """Fill the columns of input k of a vote that say what stays of it."""
    table.addresses(column, [x.inputs[k] for x in operands])
    table.cuts(column + 1, [NOTHING if each.above is None else each.above for each in thinnings])
    # that of another input may be limited: then all are asked for their limits
    table.cuts(column + 3, [EVERYTHING if each.under is None else each.under for each in thinnings])
    keys = [(0, 0) if each.stream is None else each.stream.keys for each in thinnings]
    table.put(column + 5, [first for first, _ in keys])
    table.put(column + 6, [second for _, second in keys])
    table.put(column + 7, [0 if each.stream is None else each.drop for each in thinnings])
    table.put(column + 10, [0 if mask is None else mask.data_ptr() for mask in masks])


def _vote(card: Card, kind: Any, work: Sequence[Work], zeros: Tensor, masks: Masks) -> None:
    _, inputs, above, under, chance, elect, normalize, codes, result = kind
    table, tiles = _table(card, work, 6 + EACH * inputs)
    steps = [each.job.step for each in work]
    operands = [each.job.operands for each in work]
    table.addresses(3, [x.base for x in operands])
    table.floats(4, [s.scale for s in steps])
    table.floats(5, [1.0 / divisor(s.weights) for s in steps])
    held: Sequence[Tensor | None] = [None] * (inputs * len(work))
    if chance == 2:
        held = masks([(x, k, s.thinnings[k]) for x, s in zip(operands, steps, strict=True) for k in range(inputs)])
    for k in range(inputs):
        column = 6 + EACH * k
        put_thinnings(table, column, operands, k, [s.thinnings[k] for s in steps], held[k::inputs])
        table.factors(column + 8, [s.growths[k] for s in steps], [s.weights[k] for s in steps])
        table.floats(column + 9, [s.weights[k] for s in steps])
    card.launch(
        elementwise.vote, tiles.number, table.sent(), tiles.jobs, zeros, WIDTH=table.width, K=inputs, ABOVE=above,
        UNDER=under, CHANCE=chance, ELECT=elect, NORMALIZE=normalize, CODES=codes, RESULT=result,
        ALIGNED=table.aligned, BLOCK=card.tile,
    )  # fmt: skip


def _select(card: Card, kind: Any, work: Sequence[Work], zeros: Tensor, masks: Masks) -> None:  # noqa: ARG001
    _, inputs, cut, codes, result = kind
    table, tiles = _table(card, work, 4 + 2 * inputs + 4)
    put_operands(table, [each.job.operands for each in work])
    steps = [each.job.step for each in work]
    numbers = 4 + inputs
    if cut:
        table.cuts(numbers, [s.cut for s in steps])
    table.floats(numbers + 2, [1.0 / inputs] * len(work))
    table.floats(numbers + 3, [s.scale for s in steps])
    for k in range(inputs):
        table.floats(numbers + 4 + k, [s.weights[k] for s in steps])
    card.launch(
        elementwise.select, tiles.number, table.sent(), tiles.jobs, zeros, WIDTH=table.width, K=inputs, CUT=cut,
        CODES=codes, RESULT=result, ALIGNED=table.aligned, BLOCK=card.tile,
    )  # fmt: skip


def put_pruned(table: Table, pruned: Sequence[Pruned], scores: int) -> list[Tensor]:
    """Fill the columns of prunings; return what has to live until the launch."""
    table.addresses(3, [each.source for each in pruned])
    table.cuts(4, [each.cut for each in pruned])
    table.factors(6, [each.factor for each in pruned], [1.0] * len(pruned))
    if scores == NORMS:
        return put_norms(table, 7, [each.scoring for each in pruned])
    if scores == GIVEN:
        given = [each.scoring.part(0, len(each.source)) for each in pruned if each.scoring is not None]
        table.addresses(7, given)
        return given
    return []


def _prune(card: Card, kind: Any, work: Sequence[Work], zeros: Tensor, masks: Masks) -> None:  # noqa: ARG001
    _, scores, source, result = kind
    table, tiles = _table(card, work, 10)
    held = put_pruned(table, [each.job for each in work], scores)
    card.launch(
        elementwise.prune, tiles.number, table.sent(), tiles.jobs, zeros, WIDTH=table.width, SCORES=scores,
        SOURCE=source, RESULT=result, ALIGNED=table.aligned, BLOCK=card.tile,
    )  # fmt: skip
    del held


def _without(card: Card, kind: Any, work: Sequence[Work], zeros: Tensor, masks: Masks) -> None:  # noqa: ARG001
    _, source, result = kind
    table, tiles = _table(card, work, 7)
    jobs = [each.job for each in work]
    lengths = [job.shape[job.axis] for job in jobs]
    marks = card.zeros(sum(lengths), dtype=torch.uint8)
    pieces = torch.split(marks, lengths)
    offsets, begin = [], 0
    for job, length in zip(jobs, lengths, strict=True):
        offsets.append(job.gone + begin)
        begin += length
    marks.index_fill_(0, torch.cat(offsets), 1)
    table.addresses(3, [job.source for job in jobs])
    table.put(4, [piece.data_ptr() for piece in pieces])
    table.put(5, [_product(job.shape[job.axis + 1 :]) for job in jobs])
    table.put(6, lengths)
    card.launch(
        elementwise.without, tiles.number, table.sent(), tiles.jobs, zeros, WIDTH=table.width, SOURCE=source,
        RESULT=result, ALIGNED=table.aligned, BLOCK=card.tile,
    )  # fmt: skip


def _product(sizes: Sequence[int]) -> int:
    product = 1
    for size in sizes:
        product *= size
    return product


def _line_table(
    card: Card, work: Sequence[Work], scores: int, units: Sequence[int], tile: int
) -> tuple[Table, Any, Any]:
    tiles = card.tiles(units, tile)
    jobs = [each.job for each in work]
    table = Table(card, tiles, [each.out.numel() for each in work], 12)
    table.addresses(2, [each.out for each in work])
    table.addresses(3, [job.scoring.source for job in jobs])
    grids = [job.scoring.grid for job in jobs]
    numel = [_product(grid.shape) for grid in grids]
    table.put(4, [n // grid.inputs for n, grid in zip(numel, grids, strict=True)])
    table.put(5, [grid.inputs for grid in grids])
    table.put(6, [1 if grid.transposed else grid.inputs for grid in grids])
    table.put(7, [n // grid.inputs if grid.transposed else 1 for n, grid in zip(numel, grids, strict=True)])
    table.put(8, [job.gone for job in jobs])
    held: list[Tensor] = []
    if scores == NORMS:
        held = put_norms(table, 9, [job.scoring for job in jobs])
    elif scores == GIVEN:
        held = [job.scoring.part(0, len(job.scoring.source)) for job in jobs]
        table.addresses(9, held)
    return table, tiles, held


def _rows(card: Card, kind: Any, work: Sequence[Work], zeros: Tensor, masks: Masks) -> None:  # noqa: ARG001
    _, scores, source, result, padded = kind
    many = max(1, LINE_ELEMENTS // padded)
    outputs = [each.out.numel() // each.job.scoring.grid.inputs for each in work]
    table, tiles, held = _line_table(card, work, scores, outputs, many)
    card.launch(
        lines.rows, tiles.number, table.sent(), tiles.jobs, zeros, WIDTH=table.width, SCORES=scores, SOURCE=source,
        RESULT=result, MANY=many, PADDED=padded, num_warps=32 if padded > 8192 else 8 if padded > 2048 else 4,
    )  # fmt: skip
    del held


def _neighbours(card: Card, kind: Any, work: Sequence[Work], zeros: Tensor, masks: Masks) -> None:  # noqa: ARG001
    _, scores, source, result, of = kind
    padded = _power(of)
    groups = max(1, card.tile // (2 * padded))
    table, tiles, held = _line_table(card, work, scores, [each.out.numel() // of for each in work], groups)
    card.launch(
        lines.neighbours, tiles.number, table.sent(), tiles.jobs, zeros, WIDTH=table.width, SCORES=scores,
        SOURCE=source, RESULT=result, OF=of, PADDED=padded, GROUPS=groups,
    )  # fmt: skip
    del held


def _power(number: int) -> int:
    """Return the smallest power of 2 that is not smaller."""
    return 1 << (number - 1).bit_length()


_LAUNCHES: dict[str, Callable[[Card, Any, Sequence[Work], Tensor, Masks], None]] = {
    "combine": _combine,
    "zero_aware": _zero_aware,
    "vote": _vote,
    "select": _select,
    "prune": _prune,
    "without": _without,
    "rows": _rows,
    "neighbours": _neighbours,
}
