"""Kernels of steps and prunings: every element is read, computed in float32, rounded and written, zeros are counted.

Each follows the chunk function of the same step in `ops.steps`, operation by operation. Operands are read again where
they are needed again: they are in the first-level cache, and so any number of them can be worked on.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sae_moo.materialization.ops.device.kernels.loading import (
    activated,
    below,
    factor_of,
    float_at,
    key_of,
    place,
    quotient,
    read,
    write,
)

OUT = tl.constexpr(2)
"""Column of the output's address in the rows of this module; operands follow."""
BASE = tl.constexpr(3)
INPUTS = tl.constexpr(4)
EACH = tl.constexpr(11)
"""Columns for each input of a vote: address, cut from below (bits, position), cut from above, two keys, drop, factor,
weight, address of a mask."""


@triton.jit
def _count(zeros, job, zero):
    tl.atomic_add(zeros + job, tl.sum(zero.to(tl.int32), axis=0).to(tl.int64))


@triton.jit
def _combined(row, at, mask, K: tl.constexpr, CODES: tl.constexpr, FULL: tl.constexpr, ALIGNED: tl.constexpr):
    """Columns: output, origin, others, total, coefficients."""
    origin = read(row, BASE, at, mask, CODES & 3, FULL, ALIGNED)
    merged = origin * float_at(row, INPUTS + K)
    for k in tl.static_range(K):
        x = read(row, INPUTS + k, at, mask, (CODES >> (2 * k + 2)) & 3, FULL, ALIGNED)
        merged += (x - origin) * float_at(row, INPUTS + K + 1 + k)
    return merged


@triton.jit
def combine(
    table,
    tiles,
    zeros,
    WIDTH: tl.constexpr,
    K: tl.constexpr,
    CODES: tl.constexpr,
    RESULT: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    job, row, start, numel = place(table, tiles, WIDTH, BLOCK)
    at = start + tl.arange(0, BLOCK)
    mask = at < numel
    if start + BLOCK <= numel:
        merged = _combined(row, at, mask, K, CODES, True, ALIGNED)
        _count(zeros, job, write(row, OUT, at, mask, merged, RESULT, True, ALIGNED))
    else:
        merged = _combined(row, at, mask, K, CODES, False, ALIGNED)
        _count(zeros, job, write(row, OUT, at, mask, merged, RESULT, False, ALIGNED))


@triton.jit
def _moved(
    row, k, at, mask, CODES: tl.constexpr, SCALED: tl.constexpr, scale, FULL: tl.constexpr, ALIGNED: tl.constexpr
):
    x = read(row, INPUTS + k, at, mask, (CODES >> (2 * k + 2)) & 3, FULL, ALIGNED)
    if SCALED:
        base = read(row, BASE, at, mask, CODES & 3, FULL, ALIGNED)
        x = tl.where(x == 0.0, 0.0, base + (x - base) * scale)
    return x


@triton.jit
def _re_densified(
    row, at, mask, K: tl.constexpr, CODES: tl.constexpr, SCALED: tl.constexpr, FULL: tl.constexpr, ALIGNED: tl.constexpr
):
    """Columns: output, base, inputs, scale, shares."""
    scale = float_at(row, INPUTS + K)
    shares = INPUTS + K + 1
    first = _moved(row, 0, at, mask, CODES, SCALED, scale, FULL, ALIGNED)
    if K == 2:
        other = _moved(row, 1, at, mask, CODES, SCALED, scale, FULL, ALIGNED)
        both = first + (other - first) * float_at(row, shares + 1)
        result = tl.where(first == 0.0, other, tl.where(other == 0.0, first, both))
    else:
        here = (first != 0.0).to(tl.float32)
        number = here
        mass = here * float_at(row, shares)
        some = first * float_at(row, shares)
        plain = first
        everything = first
        for k in tl.static_range(1, K):
            x = _moved(row, k, at, mask, CODES, SCALED, scale, FULL, ALIGNED)
            share = float_at(row, shares + k)
            here = (x != 0.0).to(tl.float32)
            number += here
            mass += here * share
            some += x * share
            plain += x
            everything += (x - first) * share
        some = tl.math.div_rn(some, tl.where(mass == 0.0, 1.0, mass))
        mean = tl.math.div_rn(plain, tl.where(number < 1.0, 1.0, number))
        result = tl.where(number == K, everything, tl.where(mass == 0.0, mean, some))
    return result


@triton.jit
def zero_aware(
    table,
    tiles,
    zeros,
    WIDTH: tl.constexpr,
    K: tl.constexpr,
    SCALED: tl.constexpr,
    CODES: tl.constexpr,
    RESULT: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    job, row, start, numel = place(table, tiles, WIDTH, BLOCK)
    at = start + tl.arange(0, BLOCK)
    mask = at < numel
    if start + BLOCK <= numel:
        merged = _re_densified(row, at, mask, K, CODES, SCALED, True, ALIGNED)
        _count(zeros, job, write(row, OUT, at, mask, merged, RESULT, True, ALIGNED))
    else:
        merged = _re_densified(row, at, mask, K, CODES, SCALED, False, ALIGNED)
        _count(zeros, job, write(row, OUT, at, mask, merged, RESULT, False, ALIGNED))


@triton.jit
def draw(at, first, second):
    """Return the random numbers of `ops.random.Draws` at positions, int64."""
    x = (at & 0xFFFFFFFF).to(tl.uint32) ^ first.to(tl.uint32)
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ second.to(tl.uint32) ^ (at >> 32).to(tl.uint32)
    x = x ^ (x >> 15)
    x = x * tl.full((1,), 0x846CA68B, tl.uint32)
    x = x ^ (x >> 16)
    return x.to(tl.int64)


@triton.jit
def difference(
    row,
    each,
    at,
    mask,
    base,
    OPERAND: tl.constexpr,
    ABOVE: tl.constexpr,
    UNDER: tl.constexpr,
    CHANCE: tl.constexpr,
    FULL: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Return one task vector, thinned out; CHANCE: 0 none, 1 one threshold for all, 2 a mask."""
    delta = read(row, each, at, mask, OPERAND, FULL, ALIGNED) - base
    kept = at >= 0
    key = key_of(delta)
    if ABOVE:
        kept = kept & (not_(below(key, at, tl.load(row + each + 1), tl.load(row + each + 2))))
    if UNDER:
        kept = kept & below(key, at, tl.load(row + each + 3), tl.load(row + each + 4))
    if CHANCE == 1:
        kept = kept & (draw(at, tl.load(row + each + 5), tl.load(row + each + 6)) >= tl.load(row + each + 7))
    if CHANCE == 2:
        stays = tl.load(row + each + 10).to(tl.pointer_type(tl.uint8))
        kept = kept & (tl.load(stays + at, mask=mask, other=0) != 0)
    return delta, kept


@triton.jit
def not_(truth):
    return truth == 0


@triton.jit
def _voted(
    row,
    at,
    mask,
    K: tl.constexpr,
    CODES: tl.constexpr,
    ABOVE: tl.constexpr,
    UNDER: tl.constexpr,
    CHANCE: tl.constexpr,
    ELECT: tl.constexpr,
    NORMALIZE: tl.constexpr,
    FULL: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Columns: output, base, scale, share, then `EACH` for each input."""
    base = read(row, BASE, at, mask, CODES & 3, FULL, ALIGNED)
    scale = float_at(row, BASE + 1)
    delta, kept = difference(row, BASE + 3, at, mask, base, (CODES >> 2) & 3, ABOVE, UNDER, CHANCE, FULL, ALIGNED)
    total = tl.where(kept, delta * float_at(row, BASE + 3 + 8), 0.0)
    for k in tl.static_range(1, K):
        each = BASE + 3 + k * EACH
        delta, kept = difference(
            row, each, at, mask, base, (CODES >> (2 * k + 2)) & 3, ABOVE, UNDER, CHANCE, FULL, ALIGNED
        )
        total += tl.where(kept, delta * float_at(row, each + 8), 0.0)
    if ELECT:
        positive = total >= 0.0
        agreed = tl.zeros_like(total)
        mass = tl.zeros_like(total)
        for k in tl.static_range(K):
            each = BASE + 3 + k * EACH
            delta, kept = difference(
                row, each, at, mask, base, (CODES >> (2 * k + 2)) & 3, ABOVE, UNDER, CHANCE, FULL, ALIGNED
            )
            part = tl.where(kept, delta * float_at(row, each + 8), 0.0)
            agrees = (positive & (part > 0.0)) | (not_(positive) & (part < 0.0))
            mine = tl.where(agrees, part, 0.0)
            weight = agrees.to(tl.float32) * float_at(row, each + 9)
            if k == 0:
                agreed = mine
                mass = weight
            else:
                agreed += mine
                mass += weight
        total = agreed
        if NORMALIZE:
            total = tl.math.div_rn(total, tl.where(mass == 0.0, 1.0, mass))
    elif NORMALIZE:
        total = total * float_at(row, BASE + 2)
    return base + total * scale


@triton.jit
def vote(
    table,
    tiles,
    zeros,
    WIDTH: tl.constexpr,
    K: tl.constexpr,
    ABOVE: tl.constexpr,
    UNDER: tl.constexpr,
    CHANCE: tl.constexpr,
    ELECT: tl.constexpr,
    NORMALIZE: tl.constexpr,
    CODES: tl.constexpr,
    RESULT: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    job, row, start, numel = place(table, tiles, WIDTH, BLOCK)
    at = start + tl.arange(0, BLOCK)
    mask = at < numel
    if start + BLOCK <= numel:
        merged = _voted(row, at, mask, K, CODES, ABOVE, UNDER, CHANCE, ELECT, NORMALIZE, True, ALIGNED)
        _count(zeros, job, write(row, OUT, at, mask, merged, RESULT, True, ALIGNED))
    else:
        merged = _voted(row, at, mask, K, CODES, ABOVE, UNDER, CHANCE, ELECT, NORMALIZE, False, ALIGNED)
        _count(zeros, job, write(row, OUT, at, mask, merged, RESULT, False, ALIGNED))


@triton.jit
def spread(row, at, mask, base, once, K: tl.constexpr, CODES: tl.constexpr, FULL: tl.constexpr, ALIGNED: tl.constexpr):
    """Return the population variance of task vectors over the inputs."""
    mean = read(row, INPUTS, at, mask, (CODES >> 2) & 3, FULL, ALIGNED) - base
    for k in tl.static_range(1, K):
        mean += read(row, INPUTS + k, at, mask, (CODES >> (2 * k + 2)) & 3, FULL, ALIGNED) - base
    mean = mean * once
    off = read(row, INPUTS, at, mask, (CODES >> 2) & 3, FULL, ALIGNED) - base - mean
    result = off * off
    for k in tl.static_range(1, K):
        off = read(row, INPUTS + k, at, mask, (CODES >> (2 * k + 2)) & 3, FULL, ALIGNED) - base - mean
        result += off * off
    return result * once


@triton.jit
def _selected(
    row, at, mask, K: tl.constexpr, CUT: tl.constexpr, CODES: tl.constexpr, FULL: tl.constexpr, ALIGNED: tl.constexpr
):
    """Columns: output, base, inputs, bits and position of the cut, one over the number of inputs, scale, weights."""
    numbers = INPUTS + K
    base = read(row, BASE, at, mask, CODES & 3, FULL, ALIGNED)
    kept = at >= 0
    if CUT:
        variance = spread(row, at, mask, base, float_at(row, numbers + 2), K, CODES, FULL, ALIGNED)
        kept = not_(below(key_of(variance), at, tl.load(row + numbers), tl.load(row + numbers + 1)))
    delta = read(row, INPUTS, at, mask, (CODES >> 2) & 3, FULL, ALIGNED) - base
    total = tl.where(kept, delta, 0.0)
    for k in tl.static_range(1, K):
        delta = read(row, INPUTS + k, at, mask, (CODES >> (2 * k + 2)) & 3, FULL, ALIGNED) - base
        total += tl.where(kept, delta, 0.0)
    positive = total >= 0.0
    agreed = tl.zeros_like(base)
    mass = tl.zeros_like(base)
    for k in tl.static_range(K):
        delta = read(row, INPUTS + k, at, mask, (CODES >> (2 * k + 2)) & 3, FULL, ALIGNED) - base
        delta = tl.where(kept, delta, 0.0)
        agrees = (positive & (delta > 0.0)) | (not_(positive) & (delta < 0.0))
        part = agrees.to(tl.float32) * float_at(row, numbers + 4 + k)
        agreed = agreed + delta * part
        mass = mass + part
    agreed = tl.math.div_rn(agreed, tl.where(mass == 0.0, 1.0, mass))
    return base + agreed * float_at(row, numbers + 3)


@triton.jit
def select(
    table,
    tiles,
    zeros,
    WIDTH: tl.constexpr,
    K: tl.constexpr,
    CUT: tl.constexpr,
    CODES: tl.constexpr,
    RESULT: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    job, row, start, numel = place(table, tiles, WIDTH, BLOCK)
    at = start + tl.arange(0, BLOCK)
    mask = at < numel
    if start + BLOCK <= numel:
        merged = _selected(row, at, mask, K, CUT, CODES, True, ALIGNED)
        _count(zeros, job, write(row, OUT, at, mask, merged, RESULT, True, ALIGNED))
    else:
        merged = _selected(row, at, mask, K, CUT, CODES, False, ALIGNED)
        _count(zeros, job, write(row, OUT, at, mask, merged, RESULT, False, ALIGNED))


@triton.jit
def variances(
    table,
    tiles,
    zeros,
    WIDTH: tl.constexpr,
    K: tl.constexpr,
    CODES: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the variance of every element, float32. Columns: output, base, inputs, one over their number."""
    job, row, start, numel = place(table, tiles, WIDTH, BLOCK)
    at = start + tl.arange(0, BLOCK)
    mask = at < numel
    base = read(row, BASE, at, mask, CODES & 3, False, ALIGNED)
    variance = spread(row, at, mask, base, float_at(row, INPUTS + K), K, CODES, False, ALIGNED)
    _count(zeros, job, write(row, OUT, at, mask, tl.abs(variance), 0, False, ALIGNED))


@triton.jit
def pruned_key(row, x, at, mask, SCORES: tl.constexpr, FULL: tl.constexpr, ALIGNED: tl.constexpr):
    """Return the keys that a pruning goes by; columns as for `prune`."""
    if SCORES == 0:
        key = key_of(x)
    elif SCORES == 1:
        key = key_of(activated(x, factor_of(row, at, mask, BASE + 4, FULL)))
    else:
        key = key_of(read(row, BASE + 4, at, mask, 0, FULL, ALIGNED))
    return key


@triton.jit
def _pruned(row, at, mask, SCORES: tl.constexpr, SOURCE: tl.constexpr, FULL: tl.constexpr, ALIGNED: tl.constexpr):
    """Columns: output, source, bits and position of the cut, factor, then norms or the address of scores."""
    x = read(row, BASE, at, mask, SOURCE, FULL, ALIGNED)
    key = pruned_key(row, x, at, mask, SCORES, FULL, ALIGNED)
    gone = below(key, at, tl.load(row + BASE + 1), tl.load(row + BASE + 2))
    return tl.where(gone, 0.0, x) * float_at(row, BASE + 3)


@triton.jit
def prune(
    table,
    tiles,
    zeros,
    WIDTH: tl.constexpr,
    SCORES: tl.constexpr,
    SOURCE: tl.constexpr,
    RESULT: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """SCORES: 0 magnitudes, 1 weighed by activations, 2 given."""
    job, row, start, numel = place(table, tiles, WIDTH, BLOCK)
    at = start + tl.arange(0, BLOCK)
    mask = at < numel
    if start + BLOCK <= numel:
        kept = _pruned(row, at, mask, SCORES, SOURCE, True, ALIGNED)
        _count(zeros, job, write(row, OUT, at, mask, kept, RESULT, True, ALIGNED))
    else:
        kept = _pruned(row, at, mask, SCORES, SOURCE, False, ALIGNED)
        _count(zeros, job, write(row, OUT, at, mask, kept, RESULT, False, ALIGNED))


@triton.jit
def without(
    table,
    tiles,
    zeros,
    WIDTH: tl.constexpr,
    SOURCE: tl.constexpr,
    RESULT: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write a tensor without some indices of an axis. Columns: output, source, address of marks, inner size, length."""
    job, row, start, numel = place(table, tiles, WIDTH, BLOCK)
    at = start + tl.arange(0, BLOCK)
    mask = at < numel
    marks = tl.load(row + BASE + 1).to(tl.pointer_type(tl.uint8))
    outer = quotient(row, at, tl.load(row + BASE + 2))
    length = tl.load(row + BASE + 3)
    index = outer - quotient(row, outer, length) * length
    gone = tl.load(marks + index, mask=mask, other=0) != 0
    if start + BLOCK <= numel:
        x = read(row, BASE, at, mask, SOURCE, True, ALIGNED)
        _count(zeros, job, write(row, OUT, at, mask, tl.where(gone, 0.0, x), RESULT, True, ALIGNED))
    else:
        x = read(row, BASE, at, mask, SOURCE, False, ALIGNED)
        _count(zeros, job, write(row, OUT, at, mask, tl.where(gone, 0.0, x), RESULT, False, ALIGNED))
