"""Compiled loops over raw memory: many operands of any stored dtype, one pass, float32 arithmetic, one rounding.

Each function works on elements ``start ... stop - 1`` of flat arrays given by address and dtype code, in blocks that
stay in the first-level cache: load and widen, compute, round and store. No multiply-add is ever fused and sums run over
the operands in order, so the bits are those of the plain path in `steps`. Needs numba.

All kernels stand in one file, long as it is: numba keeps compiled code by the file of the function that was compiled,
and would go on using it after a function that it calls was changed in another file.
"""

# ruff: noqa: D103, ARG001  # the module's words hold for each function; intrinsics have a typing context

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

BLOCK = 512
SPAN = 1 << 16
F32, BF16, F16 = 0, 1, 2
BY_RANK = -2
"""Drop threshold of a stream that has one for each rank instead."""
GROUP = 64
"""Elements looked at together for one of a rare kind."""


@intrinsic
def _pointer(context: Any, address: Any) -> Any:
    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


def _compiled(function: Any) -> Any:
    try:
        return njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:  # no folder to keep compiled code in
        return njit(nogil=True, error_model="numpy")(function)


@intrinsic
def _as_float(context: Any, word: Any) -> Any:
    """Read the bits of a uint32 as a float32."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), generate


@intrinsic
def _as_bits(context: Any, value: Any) -> Any:
    """Read the bits of a float32 as a uint32."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), generate


@_compiled
def _from_bf16(half):
    return _as_float(np.uint32(np.uint32(half) << np.uint32(16)))


@_compiled
def _from_f16(half):
    """Move the magnitude's bits in place and correct the exponent's bias by an exact power of two."""
    moved = np.uint32(np.uint32(half & np.uint16(0x7FFF)) << np.uint32(13))
    finite = _as_bits(_as_float(moved) * np.float32(2.0**112))
    size = np.uint32(moved | np.uint32(0x7F800000)) if half & np.uint16(0x7C00) == np.uint16(0x7C00) else finite
    return _as_float(np.uint32(size | (np.uint32(half & np.uint16(0x8000)) << np.uint32(16))))


@_compiled
def _to_bf16(value):
    """Round to nearest, ties to even."""
    word = _as_bits(value)
    near = np.uint32(np.uint32(word + np.uint32(0x7FFF)) + ((word >> np.uint32(16)) & np.uint32(1)))
    near = np.uint32(near >> np.uint32(16))
    return np.uint32(0x7FC0) if (word & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000) else near


@_compiled
def _wide(address, start, count):
    return numba.carray(_pointer(address + 4 * start), (count,), np.float32)


@_compiled
def _half(address, start, count):
    return numba.carray(_pointer(address + 2 * start), (count,), np.uint16)


@_compiled
def _load(address, code, start, count, values):
    """Widen `count` elements into `values`."""
    if code == F32:
        wide = _wide(address, start, count)
        for i in range(count):
            values[i] = wide[i]
    elif code == BF16:
        half = _half(address, start, count)
        for i in range(count):
            values[i] = _from_bf16(half[i])
    else:
        half = _half(address, start, count)
        for i in range(count):
            values[i] = _from_f16(half[i])


@_compiled
def _load_difference(address, code, start, count, ground, values):
    """Widen `count` elements less `ground` into `values`."""
    if code == F32:
        wide = _wide(address, start, count)
        for i in range(count):
            values[i] = wide[i] - ground[i]
    elif code == BF16:
        half = _half(address, start, count)
        for i in range(count):
            values[i] = _from_bf16(half[i]) - ground[i]
    else:
        half = _half(address, start, count)
        for i in range(count):
            values[i] = _from_f16(half[i]) - ground[i]


@_compiled
def _accumulate(address, code, start, count, ground, coefficient, merged):
    """Add ``(x - ground) * coefficient`` to `merged`."""
    if code == F32:
        wide = _wide(address, start, count)
        for i in range(count):
            merged[i] += (wide[i] - ground[i]) * coefficient
    elif code == BF16:
        half = _half(address, start, count)
        for i in range(count):
            merged[i] += (_from_bf16(half[i]) - ground[i]) * coefficient
    else:
        half = _half(address, start, count)
        for i in range(count):
            merged[i] += (_from_f16(half[i]) - ground[i]) * coefficient


@_compiled
def _store(address, code, start, count, values):
    """Round and write `count` elements; return how many exact zeros were written."""
    zeros = np.uint32(0)
    if code == F32:
        wide = _wide(address, start, count)
        for i in range(count):
            wide[i] = values[i]
            zeros = np.uint32(zeros + np.uint32(values[i] == 0))
    else:
        half = _half(address, start, count)
        for i in range(count):
            near = _to_bf16(values[i])
            half[i] = np.uint16(near)
            zeros = np.uint32(zeros + np.uint32((near & np.uint32(0x7FFF)) == 0))
    return int(zeros)


@_compiled
def _keep_from(values, limit):
    """Set to zero what is smaller than a limit; NaN stays."""
    for i in range(len(values)):
        values[i] = np.float32(0.0) if abs(values[i]) < limit else values[i]


@_compiled
def _keep_above(values, limit):
    """Set to zero what is not larger than a limit; NaN stays."""
    for i in range(len(values)):
        values[i] = np.float32(0.0) if abs(values[i]) <= limit else values[i]


@_compiled
def _keep_to(values, limit):
    """Set to zero what is larger than a limit; NaN stays."""
    for i in range(len(values)):
        values[i] = np.float32(0.0) if abs(values[i]) > limit else values[i]


@_compiled
def _keep_under(values, limit):
    """Set to zero what is not smaller than a limit; NaN stays."""
    for i in range(len(values)):
        values[i] = np.float32(0.0) if abs(values[i]) >= limit else values[i]


@_compiled
def _scaled(values, factor, out, count):
    for i in range(count):
        out[i] = values[i] * factor


@_compiled
def _combine_two(a, b, total, coefficient, out):
    """All bfloat16, straight from memory to memory: nothing but the arithmetic, in registers."""
    zeros = np.uint32(0)
    for i in range(len(out)):
        first = _from_bf16(a[i])
        merged = first * total + (_from_bf16(b[i]) - first) * coefficient
        near = _to_bf16(merged)
        out[i] = np.uint16(near)
        zeros = np.uint32(zeros + np.uint32((near & np.uint32(0x7FFF)) == 0))
    return int(zeros)


@_compiled
def _combine_three(a, b, c, total, coefficients, out):
    zeros = np.uint32(0)
    second, third = coefficients[0], coefficients[1]
    for i in range(len(out)):
        first = _from_bf16(a[i])
        merged = first * total + (_from_bf16(b[i]) - first) * second
        merged = merged + (_from_bf16(c[i]) - first) * third
        near = _to_bf16(merged)
        out[i] = np.uint16(near)
        zeros = np.uint32(zeros + np.uint32((near & np.uint32(0x7FFF)) == 0))
    return int(zeros)


@_compiled
def _combine_four(a, b, c, d, total, coefficients, out):
    zeros = np.uint32(0)
    second, third, fourth = coefficients[0], coefficients[1], coefficients[2]
    for i in range(len(out)):
        first = _from_bf16(a[i])
        merged = first * total + (_from_bf16(b[i]) - first) * second
        merged = merged + (_from_bf16(c[i]) - first) * third
        merged = merged + (_from_bf16(d[i]) - first) * fourth
        near = _to_bf16(merged)
        out[i] = np.uint16(near)
        zeros = np.uint32(zeros + np.uint32((near & np.uint32(0x7FFF)) == 0))
    return int(zeros)


@_compiled
def _combine_halves(origin, total, others, coefficients, out, start, stop):
    """`combine` of two to four bfloat16 operands into bfloat16."""
    zeros = 0
    for begin in range(start, stop, SPAN):
        count = min(SPAN, stop - begin)
        target, a, b = _half(out, begin, count), _half(origin, begin, count), _half(others[0], begin, count)
        if len(others) == 1:
            zeros += _combine_two(a, b, total, coefficients[0], target)
        elif len(others) == 2:
            zeros += _combine_three(a, b, _half(others[1], begin, count), total, coefficients, target)
        else:
            c, d = _half(others[1], begin, count), _half(others[2], begin, count)
            zeros += _combine_four(a, b, c, d, total, coefficients, target)
    return zeros


@_compiled
def combine(origin, origin_code, total, others, codes, coefficients, out, out_code, start, stop):
    halves = origin_code == BF16 and out_code == BF16
    for code in codes:
        halves = halves and code == BF16
    if halves and 1 <= len(others) <= 3:
        return _combine_halves(origin, total, others, coefficients, out, start, stop)
    first, merged = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    zeros = 0
    for begin in range(start, stop, BLOCK):
        count = min(BLOCK, stop - begin)
        _load(origin, origin_code, begin, count, first)
        _scaled(first, total, merged, count)
        for k in range(len(others)):
            _accumulate(others[k], codes[k], begin, count, first, coefficients[k], merged)
        zeros += _store(out, out_code, begin, count, merged)
    return zeros


@_compiled
def _moved(value, base, scale, moved, count):
    """Move to ``base + scale (value - base)``; zeros stay."""
    for i in range(count):
        there = base[i] + (value[i] - base[i]) * scale
        moved[i] = np.float32(0.0) if value[i] == 0 else there


@_compiled
def _either(a, b, share, merged, count):
    """Mix two inputs; where one is zero, the other as it is."""
    for i in range(count):
        both = a[i] + (b[i] - a[i]) * share
        merged[i] = b[i] if a[i] == 0 else (a[i] if b[i] == 0 else both)


@_compiled
def zero_aware(inputs, codes, weights, base, base_code, scale, out, out_code, start, stop):
    inputs_count = len(inputs)
    value = np.empty((inputs_count, BLOCK), np.float32)
    ground, merged, other = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    mass, number, plain = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    zeros = 0
    for begin in range(start, stop, BLOCK):
        count = min(BLOCK, stop - begin)
        if base != 0:
            _load(base, base_code, begin, count, ground)
        for k in range(inputs_count):
            _load(inputs[k], codes[k], begin, count, value[k])
            if base != 0:
                _moved(value[k], ground, scale, value[k], count)
        if inputs_count == 2:
            _either(value[0], value[1], weights[1], merged, count)
        else:
            for i in range(count):
                merged[i] = value[0, i]
                other[i] = value[0, i] * weights[0]
                plain[i] = value[0, i]
                here = np.float32(value[0, i] != 0)
                mass[i] = here * weights[0]
                number[i] = here
            for k in range(1, inputs_count):
                weight = weights[k]
                for i in range(count):
                    merged[i] += (value[k, i] - value[0, i]) * weight
                    other[i] += value[k, i] * weight
                    plain[i] += value[k, i]
                    here = np.float32(value[k, i] != 0)
                    mass[i] += here * weight
                    number[i] += here
            for i in range(count):
                some = other[i] / (np.float32(1.0) if mass[i] == 0 else mass[i])
                mean = plain[i] / max(number[i], np.float32(1.0))
                partly = mean if mass[i] == 0 else some
                merged[i] = merged[i] if number[i] == inputs_count else partly
        zeros += _store(out, out_code, begin, count, merged)
    return zeros


@_compiled
def _draw(words, begin, count, stream):
    """Fill in the random numbers of `random.Draws` from a position on."""
    first = np.uint32(stream[0])
    border = min(count, 4294967296 - (begin & 0xFFFFFFFF))  # where the upper word of the position changes
    _draw_part(words[:border], np.uint32(begin & 0xFFFFFFFF), first, np.uint32(stream[1] ^ (begin >> 32)))
    if border < count:
        rest = begin + border
        _draw_part(words[border:count], np.uint32(0), first, np.uint32(stream[1] ^ (rest >> 32)))


@_compiled
def _draw_part(words, low, first, second):
    for i in range(len(words)):
        word = np.uint32(np.uint32(low + np.uint32(i)) ^ first)
        word = np.uint32(word ^ (word >> np.uint32(16)))
        word = np.uint32(np.uint32(word * np.uint32(0x7FEB352D)) ^ second)
        word = np.uint32(word ^ (word >> np.uint32(15)))
        word = np.uint32(word * np.uint32(0x846CA68B))
        words[i] = np.uint32(word ^ (word >> np.uint32(16)))


@_compiled
def _keep_lucky(delta, words, drop, count):
    for i in range(count):
        delta[i] = delta[i] if words[i] >= drop else np.float32(0.0)


@_compiled
def _sorted_by_digit(pairs, other, counts, shift):
    """Move `pairs` into `other` in the order of eight bits of the keys, equal ones as they stand; say whether it did.

    Nothing is moved where all have the same digit.
    """
    counts[:] = 0
    for i in range(len(pairs)):
        counts[(pairs[i] >> shift) & np.uint64(0xFF)] += 1
    if counts[(pairs[0] >> shift) & np.uint64(0xFF)] == len(pairs):
        return False
    place = 0
    for digit in range(256):
        here = counts[digit]
        counts[digit] = place
        place += here
    for i in range(len(pairs)):
        digit = (pairs[i] >> shift) & np.uint64(0xFF)
        other[counts[digit]] = pairs[i]
        counts[digit] += 1
    return True


@_compiled
def _keep_by_rank(delta, words, drops, pairs, other, counts):
    """Set to zero where the random number is under that of the magnitude's rank within the row."""
    bits = delta.view(np.uint32)
    for i in range(len(delta)):
        pairs[i] = np.uint64(bits[i] & np.uint32(0x7FFFFFFF)) << np.uint64(32) | np.uint64(i)
    for digit in range(4):
        if _sorted_by_digit(pairs, other, counts, np.uint64(32 + 8 * digit)):
            pairs, other = other, pairs
    for rank in range(len(delta)):
        i = pairs[rank] & np.uint64(0xFFFFFFFF)
        delta[i] = delta[i] if words[i] >= drops[rank] else np.float32(0.0)


@_compiled
def _thin(delta, begin, count, limits, positions, stream, drops, words):
    """Set to zero what does not stay of one task vector.

    `limits`: above, under (negative: none); `positions`: theirs; `stream`: two keys and the drop threshold (negative:
    none); `drops`: instead of one threshold one for each rank within a row, empty: none.
    """
    if stream[2] == BY_RANK:
        _draw(words, begin, count, stream)
        row = len(drops)
        pairs, other, counts = np.empty(row, np.uint64), np.empty(row, np.uint64), np.empty(256, np.int64)
        for first in range(0, count, row):
            last = first + row
            _keep_by_rank(delta[first:last], words[first:last], drops, pairs, other, counts)
        return
    if limits[0] >= 0:
        limit = np.float32(limits[0])
        tied = min(max(positions[0] - begin, 0), count)
        _keep_above(delta[:tied], limit)
        _keep_from(delta[tied:count], limit)
    if limits[1] >= 0:
        limit = np.float32(limits[1])
        tied = min(max(positions[1] - begin, 0), count)
        _keep_to(delta[:tied], limit)
        _keep_under(delta[tied:count], limit)
    if stream[2] >= 4294967296:
        for i in range(count):
            delta[i] = np.float32(0.0)
    elif stream[2] >= 0:
        _draw(words, begin, count, stream)
        _keep_lucky(delta, words, np.uint32(stream[2]), count)


@_compiled
def _weigh(own, factor, total, first, count):
    """Weigh a task vector and add it to the sum; the first one begins the sum."""
    if first:
        for i in range(count):
            own[i] = own[i] * factor
            total[i] = own[i]
    else:
        for i in range(count):
            own[i] = own[i] * factor
            total[i] += own[i]


@_compiled
def _agree(own, weight, total, agreed, mass, count):
    """Add what has the sign of the sum, and its weight; a sum of zero counts as positive."""
    zero = np.float32(0.0)
    for i in range(count):
        agrees = own[i] > zero if total[i] >= zero else own[i] < zero
        agreed[i] += own[i] if agrees else zero
        mass[i] += weight if agrees else zero


@_compiled
def _divide(values, mass, count):
    for i in range(count):
        values[i] = values[i] / (np.float32(1.0) if mass[i] == np.float32(0.0) else mass[i])


@_compiled
def _add(ground, delta, scale, out, count):
    for i in range(count):
        out[i] = ground[i] + delta[i] * scale


@_compiled
def _block(row):
    """Return how many elements to work on at once: whole rows where they matter."""
    return BLOCK if row == 0 else row * max(1, BLOCK // row)


@_compiled
def vote(
    inputs, codes, base, base_code, limits, positions, streams, drops, factors, weights, scale, elect, normalize, share,
    out, out_code, start, stop,
):  # fmt: skip
    inputs_count = len(inputs)
    block = _block(drops.shape[1])
    part = np.empty((inputs_count, block), np.float32)
    ground, total, mass = np.empty(block, np.float32), np.empty(block, np.float32), np.empty(block, np.float32)
    agreed, words = np.empty(block, np.float32), np.empty(block, np.uint32)
    zeros = 0
    for begin in range(start, stop, block):
        count = min(block, stop - begin)
        _load(base, base_code, begin, count, ground)
        for k in range(inputs_count):
            own = part[k]
            _load_difference(inputs[k], codes[k], begin, count, ground, own)
            _thin(own, begin, count, limits[k], positions[k], streams[k], drops[k], words)
            _weigh(own, factors[k], total, k == 0, count)
        if elect:
            agreed[:count] = np.float32(0.0)
            mass[:count] = np.float32(0.0)
            for k in range(inputs_count):
                _agree(part[k], weights[k], total, agreed, mass, count)
            if normalize:
                _divide(agreed, mass, count)
            _add(ground, agreed, scale, total, count)
        else:
            if normalize:
                _scaled(total, share, total, count)
            _add(ground, total, scale, total, count)
        zeros += _store(out, out_code, begin, count, total)
    return zeros


@_compiled
def _load_differences(inputs, codes, base, base_code, begin, count, ground, part):
    _load(base, base_code, begin, count, ground)
    for k in range(len(inputs)):
        _load_difference(inputs[k], codes[k], begin, count, ground, part[k])


@_compiled
def _variance(part, count, once, mean, result):
    """Fill in the population variance over inputs; `once` is one over their number."""
    for i in range(count):
        mean[i] = part[0, i]
        result[i] = np.float32(0.0)
    for k in range(1, len(part)):
        for i in range(count):
            mean[i] += part[k, i]
    for i in range(count):
        mean[i] = mean[i] * once
    for k in range(len(part)):
        for i in range(count):
            result[i] += (part[k, i] - mean[i]) * (part[k, i] - mean[i])
    for i in range(count):
        result[i] = result[i] * once


@_compiled
def variances(inputs, codes, base, base_code, once, out, start, stop):
    part = np.empty((len(inputs), BLOCK), np.float32)
    ground, mean, result = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    zeros = 0
    for begin in range(start, stop, BLOCK):
        count = min(BLOCK, stop - begin)
        _load_differences(inputs, codes, base, base_code, begin, count, ground, part)
        _variance(part, count, once, mean, result)
        zeros += _store(out, F32, begin, count, result)
    return zeros


@_compiled
def _drop_low(part, spread, value, position, begin, count):
    """Set to zero, for all inputs, what has a variance below a cut."""
    for i in range(count):
        tied = spread[i] == value and begin + i < position
        low = spread[i] < value or tied
        spread[i] = np.float32(0.0) if low else np.float32(1.0)
    for k in range(len(part)):
        for i in range(count):
            part[k, i] = part[k, i] if spread[i] != np.float32(0.0) else np.float32(0.0)


@_compiled
def selected_squares(inputs, codes, base, base_code, once, value, position, squares, start, stop):
    """Add every input's sum of squared differences, of what is not below a cut of the variances, to `squares`."""
    part = np.empty((len(inputs), BLOCK), np.float32)
    ground, mean, spread = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    sums = np.zeros((len(inputs), BLOCK), np.float64)
    for begin in range(start, stop, BLOCK):
        count = min(BLOCK, stop - begin)
        _load_differences(inputs, codes, base, base_code, begin, count, ground, part)
        _variance(part, count, once, mean, spread)
        _drop_low(part, spread, value, position, begin, count)
        for k in range(len(inputs)):
            _add_products(part[k], part[k], sums[k], count)
    for k in range(len(inputs)):
        squares[k] += sums[k].sum()


@_compiled
def select(
    inputs, codes, base, base_code, once, value, position, weights, scale, out, out_code, start, stop
):  # fmt: skip
    part = np.empty((len(inputs), BLOCK), np.float32)
    ground, total, spread = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    agreed, mass = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    zeros = 0
    for begin in range(start, stop, BLOCK):
        count = min(BLOCK, stop - begin)
        _load_differences(inputs, codes, base, base_code, begin, count, ground, part)
        if value > 0 or position > 0:
            _variance(part, count, once, total, spread)
            _drop_low(part, spread, value, position, begin, count)
        agreed[:count] = np.float32(0.0)
        mass[:count] = np.float32(0.0)
        total[:count] = part[0, :count]
        for k in range(1, len(inputs)):
            for i in range(count):
                total[i] += part[k, i]
        for k in range(len(inputs)):
            _agree_weighted(part[k], weights[k], total, agreed, mass, count)
        _divide(agreed, mass, count)
        _add(ground, agreed, scale, total, count)
        zeros += _store(out, out_code, begin, count, total)
    return zeros


@_compiled
def _agree_weighted(own, weight, total, agreed, mass, count):
    """Add what has the sign of the sum, weighed, and its weight; a sum of zero counts as positive."""
    zero = np.float32(0.0)
    for i in range(count):
        agrees = own[i] > zero if total[i] >= zero else own[i] < zero
        part = weight if agrees else zero
        agreed[i] += own[i] * part
        mass[i] += part


@_compiled
def _add_products(a, b, sums, count):
    for i in range(count):
        sums[i] += np.float64(a[i]) * np.float64(b[i])


@_compiled
def _load_kept(source, code, value, position, begin, count, kept):
    _load(source, code, begin, count, kept)
    tied = min(max(position - begin, 0), count)
    _keep_above(kept[:tied], value)
    _keep_from(kept[tied:count], value)


@_compiled
def prune(source, code, value, position, factor, out, out_code, start, stop):
    kept = np.empty(BLOCK, np.float32)
    zeros = 0
    for begin in range(start, stop, BLOCK):
        count = min(BLOCK, stop - begin)
        _load_kept(source, code, value, position, begin, count, kept)
        if factor != np.float32(1.0):
            _scaled(kept, factor, kept, count)
        zeros += _store(out, out_code, begin, count, kept)
    return zeros


@_compiled
def kept_squares(source, code, value, position, squares, start, stop):
    """Add the sum of squares of all values, and of those that a cut leaves, to `squares`."""
    kept = np.empty(BLOCK, np.float32)
    sums = np.zeros((2, BLOCK), np.float64)
    for begin in range(start, stop, BLOCK):
        count = min(BLOCK, stop - begin)
        _load(source, code, begin, count, kept)
        _add_products(kept, kept, sums[0], count)
        _load_kept(source, code, value, position, begin, count, kept)
        _add_products(kept, kept, sums[1], count)
    squares[0] += sums[0].sum()
    squares[1] += sums[1].sum()


@_compiled
def _magnitude(address, code, base, base_code, begin, count, values, ground):
    if base != 0:
        _load(base, base_code, begin, count, ground)
        _load_difference(address, code, begin, count, ground, values)
    else:
        _load(address, code, begin, count, values)
    for i in range(count):
        values[i] = abs(values[i])


@_compiled
def high_histogram(address, code, base, base_code, histogram, start, stop):
    values, ground = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    bits = values.view(np.uint32)
    for begin in range(start, stop, BLOCK):
        count = min(BLOCK, stop - begin)
        _magnitude(address, code, base, base_code, begin, count, values, ground)
        for i in range(count):
            histogram[bits[i] >> np.uint32(16)] += 1


@_compiled
def _any_of_bin(bits, high):
    found = np.uint32(0)
    for i in range(GROUP):
        found |= np.uint32(bits[i] >> np.uint32(16) == high)
    return found != np.uint32(0)


@_compiled
def low_histogram(address, code, base, base_code, high, histogram, start, stop):
    values, ground = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    bits = values.view(np.uint32)
    wanted = np.uint32(high)
    for begin in range(start, stop, BLOCK):
        count = min(BLOCK, stop - begin)
        _magnitude(address, code, base, base_code, begin, count, values, ground)
        bits[count:] = np.uint32(0xFFFFFFFF)  # in no bin
        for first in range(0, BLOCK, GROUP):
            if _any_of_bin(bits[first : first + GROUP], wanted):
                for i in range(first, first + GROUP):
                    if bits[i] >> np.uint32(16) == wanted:
                        histogram[bits[i] & np.uint32(0xFFFF)] += 1


@_compiled
def _equal(values, value, count):
    found = np.uint32(0)
    for i in range(count):
        found = np.uint32(found + np.uint32(values[i] == value))
    return int(found)


@_compiled
def after(address, code, base, base_code, value, ties, size):
    values, ground = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    for begin in range(0, size, BLOCK):
        count = min(BLOCK, size - begin)
        _magnitude(address, code, base, base_code, begin, count, values, ground)
        found = _equal(values, value, count)
        if found < ties:
            ties -= found
            continue
        for i in range(count):
            if values[i] == value:
                ties -= 1
                if ties == 0:
                    return begin + i + 1
    return -1


@_compiled
def lowest(address, code, base, base_code, count, size):
    """Return the bits of the `count`-th smallest magnitude and the position after the last equal one below the cut.

    Three passes of at most eleven bits each: for tensors so small that wider histograms would cost more than they save.
    """
    values, ground = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    bits = values.view(np.uint32)
    histogram = np.zeros(2048, np.int64)
    chosen, known, left, equal = np.uint32(0), np.uint32(0), count, 0
    for level in range(3):
        shift = np.uint32(21) if level == 0 else (np.uint32(10) if level == 1 else np.uint32(0))
        mask = np.uint32(0x7FF) if level == 1 else np.uint32(0x3FF)
        histogram[:] = 0
        for begin in range(0, size, BLOCK):
            part = min(BLOCK, size - begin)
            _magnitude(address, code, base, base_code, begin, part, values, ground)
            for i in range(part):
                if bits[i] & known == chosen:
                    histogram[(bits[i] >> shift) & mask] += 1
        place = 0
        while histogram[place] < left:
            left -= histogram[place]
            place += 1
        equal = histogram[place]
        chosen = np.uint32(chosen | np.uint32(np.uint32(place) << shift))
        known = np.uint32(known | np.uint32(mask << shift))
    value = _as_float(chosen)
    position = size if left == equal else after(address, code, base, base_code, value, left, size)
    return value, position


@_compiled
def l1(address, code, base, base_code, limits, positions, stream, drops, start, stop):
    block = _block(len(drops))
    values, ground = np.empty(block, np.float32), np.empty(block, np.float32)
    words = np.empty(block, np.uint32)
    sums = np.zeros(block, np.float64)  # element by element, so that the loop runs in parallel lanes
    for begin in range(start, stop, block):
        count = min(block, stop - begin)
        _magnitude(address, code, base, base_code, begin, count, values, ground)
        _thin(values, begin, count, limits, positions, stream, drops, words)
        for i in range(count):
            sums[i] += np.float64(values[i])
    return sums.sum()


@_compiled
def gram(inputs, codes, base, base_code, products, start, stop):
    """Add the dot products of all pairs to `products`, float64, shape (K, K)."""
    inputs_count = len(inputs)
    value, ground = np.empty((inputs_count, BLOCK), np.float32), np.empty(BLOCK, np.float32)
    sums = np.zeros((inputs_count, inputs_count, BLOCK), np.float64)
    for begin in range(start, stop, BLOCK):
        count = min(BLOCK, stop - begin)
        if base != 0:
            _load(base, base_code, begin, count, ground)
        for k in range(inputs_count):
            own = value[k]
            if base != 0:
                _load_difference(inputs[k], codes[k], begin, count, ground, own)
            else:
                _load(inputs[k], codes[k], begin, count, own)
            for j in range(k + 1):
                _add_products(own, value[j], sums[k, j], count)
    for k in range(inputs_count):
        for j in range(k + 1):
            products[k, j] += sums[k, j].sum()
