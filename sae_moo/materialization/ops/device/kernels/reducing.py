"""Kernels of sums over tensors, in float64: a number for each tile, then one for each job, always in the same order."""

from __future__ import annotations

import triton
import triton.language as tl

from sae_moo.materialization.ops.device.kernels.elementwise import BASE, INPUTS, difference, pruned_key, spread
from sae_moo.materialization.ops.device.kernels.loading import (
    below,
    float_at,
    key_of,
    place,
    read,
)

OUTPUTS = tl.constexpr(2)
"""First column of a job's own numbers in this module, the same as that of an output's address elsewhere."""


@triton.jit
def _kept(
    row, at, mask, parts, number, SCORES: tl.constexpr, SOURCE: tl.constexpr, FULL: tl.constexpr, ALIGNED: tl.constexpr
):
    x = read(row, BASE, at, mask, SOURCE, FULL, ALIGNED)
    key = pruned_key(row, x, at, mask, SCORES, FULL, ALIGNED)
    gone = below(key, at, tl.load(row + BASE + 1), tl.load(row + BASE + 2))
    square = x.to(tl.float64) * x.to(tl.float64)
    tile = tl.program_id(0)
    tl.store(parts + tile, tl.sum(square, axis=0))
    tl.store(parts + number + tile, tl.sum(tl.where(gone, 0.0, square), axis=0))


@triton.jit
def kept_squares(
    table,
    tiles,
    parts,
    number,
    WIDTH: tl.constexpr,
    SCORES: tl.constexpr,
    SOURCE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum the squares of all elements, and of those not below a cut; columns as for `elementwise.prune`."""
    _, row, start, numel = place(table, tiles, WIDTH, BLOCK)
    at = start + tl.arange(0, BLOCK)
    mask = at < numel
    if start + BLOCK <= numel:
        _kept(row, at, mask, parts, number, SCORES, SOURCE, True, ALIGNED)
    else:
        _kept(row, at, mask, parts, number, SCORES, SOURCE, False, ALIGNED)


@triton.jit
def _apart(
    row, at, mask, parts, number, ABOVE: tl.constexpr, UNDER: tl.constexpr, CHANCE: tl.constexpr,
    CODES: tl.constexpr, FULL: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    base = read(row, BASE, at, mask, CODES & 3, FULL, ALIGNED)
    delta, kept = difference(row, BASE + 3, at, mask, base, (CODES >> 2) & 3, ABOVE, UNDER, CHANCE, FULL, ALIGNED)
    size = tl.abs(delta).to(tl.float64)
    tile = tl.program_id(0)
    tl.store(parts + tile, tl.sum(size, axis=0))
    tl.store(parts + number + tile, tl.sum(tl.where(kept, size, 0.0), axis=0))


@triton.jit
def distances(
    table,
    tiles,
    parts,
    number,
    WIDTH: tl.constexpr,
    ABOVE: tl.constexpr,
    UNDER: tl.constexpr,
    CHANCE: tl.constexpr,
    CODES: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum the magnitudes of a task vector, and of what a thinning leaves; columns as for `elementwise.vote`."""
    _, row, start, numel = place(table, tiles, WIDTH, BLOCK)
    at = start + tl.arange(0, BLOCK)
    mask = at < numel
    if start + BLOCK <= numel:
        _apart(row, at, mask, parts, number, ABOVE, UNDER, CHANCE, CODES, True, ALIGNED)
    else:
        _apart(row, at, mask, parts, number, ABOVE, UNDER, CHANCE, CODES, False, ALIGNED)


@triton.jit
def _operand(
    row,
    k: tl.constexpr,
    at,
    mask,
    RELATIVE: tl.constexpr,
    CODES: tl.constexpr,
    FULL: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    x = read(row, INPUTS + k, at, mask, (CODES >> (2 * k + 2)) & 3, FULL, ALIGNED)
    if RELATIVE:
        x = x - read(row, BASE, at, mask, CODES & 3, FULL, ALIGNED)
    return x.to(tl.float64)


@triton.jit
def _multiplied(
    row, at, mask, parts, number, K: tl.constexpr, RELATIVE: tl.constexpr, CODES: tl.constexpr, FULL: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    for i in tl.static_range(K):
        first = _operand(row, i, at, mask, RELATIVE, CODES, FULL, ALIGNED)
        for j in tl.static_range(i + 1):
            product = first * _operand(row, j, at, mask, RELATIVE, CODES, FULL, ALIGNED)
            tl.store(parts + (i * (i + 1) // 2 + j) * number + tile, tl.sum(product, axis=0))


@triton.jit
def products(
    table,
    tiles,
    parts,
    number,
    WIDTH: tl.constexpr,
    K: tl.constexpr,
    RELATIVE: tl.constexpr,
    CODES: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum the products of all pairs of inputs, or of task vectors: (0,0), (1,0), (1,1), (2,0) ..."""
    _, row, start, numel = place(table, tiles, WIDTH, BLOCK)
    at = start + tl.arange(0, BLOCK)
    mask = at < numel
    if start + BLOCK <= numel:
        _multiplied(row, at, mask, parts, number, K, RELATIVE, CODES, True, ALIGNED)
    else:
        _multiplied(row, at, mask, parts, number, K, RELATIVE, CODES, False, ALIGNED)


@triton.jit
def _left(
    row, at, mask, parts, number, K: tl.constexpr, CUT: tl.constexpr, CODES: tl.constexpr, FULL: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    base = read(row, BASE, at, mask, CODES & 3, FULL, ALIGNED)
    gone = at < 0
    if CUT:
        variance = spread(row, at, mask, base, float_at(row, INPUTS + K + 2), K, CODES, FULL, ALIGNED)
        gone = below(key_of(variance), at, tl.load(row + INPUTS + K), tl.load(row + INPUTS + K + 1))
    tile = tl.program_id(0)
    for k in tl.static_range(K):
        delta = read(row, INPUTS + k, at, mask, (CODES >> (2 * k + 2)) & 3, FULL, ALIGNED) - base
        delta = tl.where(gone, 0.0, delta).to(tl.float64)
        tl.store(parts + k * number + tile, tl.sum(delta * delta, axis=0))


@triton.jit
def selected_squares(
    table,
    tiles,
    parts,
    number,
    WIDTH: tl.constexpr,
    K: tl.constexpr,
    CUT: tl.constexpr,
    CODES: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum each task vector's squares, of what has a variance not below a cut; columns as for `elementwise.select`."""
    _, row, start, numel = place(table, tiles, WIDTH, BLOCK)
    at = start + tl.arange(0, BLOCK)
    mask = at < numel
    if start + BLOCK <= numel:
        _left(row, at, mask, parts, number, K, CUT, CODES, True, ALIGNED)
    else:
        _left(row, at, mask, parts, number, K, CUT, CODES, False, ALIGNED)


@triton.jit
def fold(table, lasts, parts, sums, number, WIDTH: tl.constexpr, OUTPUT: tl.constexpr, SPAN: tl.constexpr):
    """Sum the numbers of each job's tiles; `sums` float64, shape (jobs, OUTPUT)."""
    job = tl.program_id(0).to(tl.int64)
    first = tl.load(table + job * WIDTH + 1)
    last = tl.load(lasts + job)
    span = tl.arange(0, SPAN)
    for column in tl.static_range(OUTPUT):
        total = tl.zeros((SPAN,), tl.float64)
        for tile in range(first, last, SPAN):
            here = tile + span
            total += tl.load(parts + column * number + here, mask=here < last, other=0.0)
        tl.store(sums + job * OUTPUT + column, tl.sum(total, axis=0))


@triton.jit
def unit_squares(
    table,
    tiles,
    sums,
    WIDTH: tl.constexpr,
    SOURCE: tl.constexpr,
    UNITS: tl.constexpr,
    OTHERS: tl.constexpr,
):
    """Sum the squares along one axis of a matrix for each index of the other.

    Columns: number of indices, first tile, address, step between indices, number and step of what is summed, place of
    the first sum.
    """
    tile = tl.program_id(0)
    job = tl.load(tiles + tile).to(tl.int64)
    row = table + job * WIDTH
    unit = (tile.to(tl.int64) - tl.load(row + 1)) * UNITS + tl.arange(0, UNITS)
    units = tl.load(row)
    step = tl.load(row + 3)
    others = tl.load(row + 4)
    total = tl.zeros((UNITS,), tl.float64)
    for first in range(0, others, OTHERS):
        other = first + tl.arange(0, OTHERS)
        mask = (unit[:, None] < units) & (other[None, :] < others)
        at = unit[:, None] * step + other[None, :] * tl.load(row + 5)
        x = read(row, 2, at, mask, SOURCE, False, False).to(tl.float64)
        total += tl.sum(x * x, axis=1)
    tl.store(sums + tl.load(row + 6) + unit, total, mask=unit < units)
