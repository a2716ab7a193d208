"""Kernels of what goes by lines: the lowest of every row or of every few neighbours, and chances by rank in a row.

A line is a row of a matrix outputs x inputs, a column of one that is stored inputs x outputs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sae_moo.materialization.ops.device.kernels.elementwise import BASE, INPUTS, OUT, draw
from sae_moo.materialization.ops.device.kernels.loading import INFINITE, activated, key_of, read, write

LINES, LENGTH, LINE_STEP, STEP, GONE = (
    tl.constexpr(4),
    tl.constexpr(5),
    tl.constexpr(6),
    tl.constexpr(7),
    tl.constexpr(8),
)
"""Columns, after output and source: number of lines, their length, steps between and within them, how many go."""
SCORED = tl.constexpr(9)
"""Column of the address of the features' norms, or of given scores."""
AMONG_NAN = tl.constexpr(-(1 << 44))
"""Less than all zeros that a tensor may have."""


@triton.jit
def _scores(row, x, feature, at, mask, SCORES: tl.constexpr):
    if SCORES == 0:
        key = key_of(x)
    elif SCORES == 1:
        norms = tl.load(row + SCORED).to(tl.pointer_type(tl.float32))
        key = key_of(activated(x, tl.load(norms + feature, mask=mask, other=0.0)))
    else:
        key = key_of(read(row, SCORED, at, mask, 0, False, False))
    return key


@triton.jit
def _count(zeros, job, zero, dropped, key):
    """Add the zeros to those of a job, and `AMONG_NAN` for each NaN that was dropped: it has no place in an order."""
    found = zero.to(tl.int64) + (dropped & (key > INFINITE)).to(tl.int64) * AMONG_NAN
    tl.atomic_add(zeros + job, tl.sum(tl.sum(found, axis=1), axis=0))


@triton.jit
def rows(
    table,
    tiles,
    zeros,
    WIDTH: tl.constexpr,
    SCORES: tl.constexpr,
    SOURCE: tl.constexpr,
    RESULT: tl.constexpr,
    MANY: tl.constexpr,
    PADDED: tl.constexpr,
):
    """Write a matrix without the lowest of every line; a program works on MANY lines, padded to PADDED elements."""
    tile = tl.program_id(0)
    job = tl.load(tiles + tile).to(tl.int64)
    row = table + job * WIDTH
    line = (tile.to(tl.int64) - tl.load(row + 1)) * MANY + tl.arange(0, MANY)
    feature = tl.arange(0, PADDED)
    length = tl.load(row + LENGTH)
    mask = (line[:, None] < tl.load(row + LINES)) & (feature[None, :] < length)
    at = line[:, None] * tl.load(row + LINE_STEP) + feature[None, :] * tl.load(row + STEP)
    x = read(row, BASE, at, mask, SOURCE, False, False)
    key = _scores(row, x, feature[None, :] + line[:, None] * 0, at, mask, SCORES).to(tl.int32)
    key = tl.where(feature[None, :] < length, key, 0x7FFFFFFF)
    gone = tl.load(row + GONE).to(tl.int32)
    border = tl.zeros((MANY,), tl.int32)
    for bit in range(31):
        trial = border | (1 << (30 - bit))
        under = tl.sum((key < trial[:, None]).to(tl.int32), axis=1)
        border = tl.where(under < gone, trial, border)
    under = tl.sum((key < border[:, None]).to(tl.int32), axis=1)
    tied = (key == border[:, None]) & (feature[None, :] < length)
    rank = tl.cumsum(tied.to(tl.int32), axis=1)
    dropped = (key < border[:, None]) | (tied & (rank <= (gone - under)[:, None]))
    dropped = dropped & (gone > 0)
    zero = write(row, OUT, at, mask, tl.where(dropped, 0.0, x), RESULT, False, False)
    _count(zeros, job, zero, dropped & mask, key)


@triton.jit
def neighbours(
    table,
    tiles,
    zeros,
    WIDTH: tl.constexpr,
    SCORES: tl.constexpr,
    SOURCE: tl.constexpr,
    RESULT: tl.constexpr,
    OF: tl.constexpr,
    PADDED: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Write a matrix without the lowest of every OF neighbours in a line (N:M); a program works on GROUPS of them."""
    tile = tl.program_id(0)
    job = tl.load(tiles + tile).to(tl.int64)
    row = table + job * WIDTH
    group = (tile.to(tl.int64) - tl.load(row + 1)) * GROUPS + tl.arange(0, GROUPS)
    each = tl.load(row + LENGTH) // OF
    line = group // each
    column = tl.arange(0, PADDED)
    feature = ((group % each) * OF)[:, None] + column[None, :]
    mask = (line[:, None] < tl.load(row + LINES)) & (column[None, :] < OF)
    at = line[:, None] * tl.load(row + LINE_STEP) + feature * tl.load(row + STEP)
    x = read(row, BASE, at, mask, SOURCE, False, False)
    key = _scores(row, x, feature, at, mask, SCORES)
    rank = tl.zeros((GROUPS, PADDED), tl.int32)
    for k in tl.static_range(OF):
        other = ((group % each) * OF)[:, None] + k + column[None, :] * 0
        there = line[:, None] * tl.load(row + LINE_STEP) + other * tl.load(row + STEP)
        against = _scores(row, read(row, BASE, there, mask, SOURCE, False, False), other, there, mask, SCORES)
        rank += ((against < key) | ((against == key) & (column[None, :] > k))).to(tl.int32)
    dropped = rank < tl.load(row + GONE).to(tl.int32)
    zero = write(row, OUT, at, mask, tl.where(dropped, 0.0, x), RESULT, False, False)
    _count(zeros, job, zero, dropped & mask, key)


@triton.jit
def ranked_chances(
    table,
    tiles,
    WIDTH: tl.constexpr,
    CODES: tl.constexpr,
    LOGARITHM: tl.constexpr,
    PADDED: tl.constexpr,
):
    """Write which elements of a task vector stay where the chance goes by rank within a row (DELLA), as bytes.

    Columns, after output, base and input: two keys, address of the drop threshold of each rank, length of a row.
    """
    tile = tl.program_id(0)
    job = tl.load(tiles + tile).to(tl.int64)
    row = table + job * WIDTH
    length = tl.load(row + INPUTS + 4)
    start = (tile.to(tl.int64) - tl.load(row + 1)) * length
    column = tl.arange(0, PADDED)
    mask = column < length
    at = start + column
    base = read(row, BASE, at, mask, CODES & 3, False, False)
    delta = read(row, INPUTS, at, mask, (CODES >> 2) & 3, False, False) - base
    key = tl.where(mask, key_of(delta), 0x7FFFFFFF)
    ordered = tl.sort((key << LOGARITHM) | column.to(tl.int64))
    place = start + (ordered & (PADDED - 1))
    drops = tl.load(row + INPUTS + 3).to(tl.pointer_type(tl.int64))
    drop = tl.load(drops + column, mask=mask, other=0)
    lucky = draw(place, tl.load(row + INPUTS + 1), tl.load(row + INPUTS + 2)) >= drop
    stays = tl.load(row + OUT).to(tl.pointer_type(tl.uint8))
    tl.store(stays + place, lucky.to(tl.uint8), mask=mask)
