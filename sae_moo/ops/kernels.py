"""Compiled loops over raw memory: many operands of any stored dtype, one pass, float32 arithmetic, one rounding.

Each function works on elements ``start ... stop - 1`` of flat arrays given by address and dtype code, in blocks that
stay in the first-level cache: load and widen, compute, round and store. No multiply-add is ever fused and sums run over
the operands in order, so the bits are those of the plain path in `step`, `task_vectors` and `merge`. Needs numba.
"""

# ruff: noqa: D103, ARG001  # the module's words hold for each function; intrinsics have a typing context

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

BLOCK = 1024
F32, BF16, F16 = 0, 1, 2


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


@_compiled
def _load(address, code, start, count, values, bits):
    """Widen `count` elements into `values`; `bits` is the same memory as uint32."""
    if code == F32:
        wide = numba.carray(_pointer(address + 4 * start), (count,), np.float32)
        for i in range(count):
            values[i] = wide[i]
    elif code == BF16:
        half = numba.carray(_pointer(address + 2 * start), (count,), np.uint16)
        for i in range(count):
            bits[i] = np.uint32(half[i]) << np.uint32(16)
    else:
        half = numba.carray(_pointer(address + 2 * start), (count,), np.uint16)
        for i in range(count):  # magnitude bits moved in place, the exponent's bias corrected by an exact power of two
            bits[i] = np.uint32(half[i] & np.uint16(0x7FFF)) << np.uint32(13)
        for i in range(count):
            values[i] = values[i] * np.float32(2.0**112)
        for i in range(count):
            bits[i] = bits[i] | (np.uint32(half[i] & np.uint16(0x8000)) << np.uint32(16))


@_compiled
def _store(address, code, start, count, values, bits):
    """Round and write `count` elements; return how many exact zeros were written."""
    zeros = 0
    if code == F32:
        wide = numba.carray(_pointer(address + 4 * start), (count,), np.float32)
        for i in range(count):
            wide[i] = values[i]
            zeros += values[i] == 0
    else:
        half = numba.carray(_pointer(address + 2 * start), (count,), np.uint16)
        for i in range(count):  # to nearest, ties to even
            word = bits[i]
            near = (word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
            broken = (word & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
            near = np.uint32(0x7FC0) if broken else near
            half[i] = np.uint16(near)
            zeros += (near & np.uint32(0x7FFF)) == 0
    return zeros


@_compiled
def combine(anchor, anchor_code, total, others, codes, coefficients, out, out_code, start, stop):
    first, value, merged = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    first_bits, value_bits, merged_bits = first.view(np.uint32), value.view(np.uint32), merged.view(np.uint32)
    zeros = 0
    for begin in range(start, stop, BLOCK):
        count = min(BLOCK, stop - begin)
        _load(anchor, anchor_code, begin, count, first, first_bits)
        for i in range(count):
            merged[i] = first[i] * total
        for k in range(len(others)):
            _load(others[k], codes[k], begin, count, value, value_bits)
            coefficient = coefficients[k]
            for i in range(count):
                merged[i] += (value[i] - first[i]) * coefficient
        zeros += _store(out, out_code, begin, count, merged, merged_bits)
    return zeros


@_compiled
def _moved(value, base, scale, moved, count):
    """Move to ``base + scale (value - base)``; zeros stay."""
    for i in range(count):
        there = base[i] + (value[i] - base[i]) * scale
        moved[i] = np.float32(0.0) if value[i] == 0 else there


@_compiled
def zero_aware(inputs, codes, weights, base, base_code, scale, out, out_code, start, stop):
    inputs_count = len(inputs)
    value = np.empty((inputs_count, BLOCK), np.float32)
    ground, merged, other = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    mass, number, plain = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    ground_bits, merged_bits, bits = ground.view(np.uint32), merged.view(np.uint32), value.view(np.uint32)
    zeros = 0
    for begin in range(start, stop, BLOCK):
        count = min(BLOCK, stop - begin)
        if base != 0:
            _load(base, base_code, begin, count, ground, ground_bits)
        for k in range(inputs_count):
            _load(inputs[k], codes[k], begin, count, value[k], bits[k])
            if base != 0:
                _moved(value[k], ground, scale, value[k], count)
        if inputs_count == 2:
            share = weights[1]
            a, b = value[0], value[1]
            for i in range(count):
                both = a[i] + (b[i] - a[i]) * share
                merged[i] = b[i] if a[i] == 0 else (a[i] if b[i] == 0 else both)
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
        zeros += _store(out, out_code, begin, count, merged, merged_bits)
    return zeros


@_compiled
def _hash(words, count):
    """Mix every bit of each word into every bit, as in `random`."""
    for i in range(count):
        word = words[i]
        word = np.uint32(word ^ (word >> np.uint32(16)))
        word = np.uint32(word * np.uint32(0x7FEB352D))
        word = np.uint32(word ^ (word >> np.uint32(15)))
        word = np.uint32(word * np.uint32(0x846CA68B))
        words[i] = np.uint32(word ^ (word >> np.uint32(16)))


@_compiled
def _thin(delta, begin, count, limits, positions, stream, words):
    """Set to zero what does not stay of one task vector.

    `limits`: above, under (negative: none); `positions`: theirs; `stream`: two keys and the drop threshold (negative:
    none).
    """
    if limits[0] >= 0:
        value = np.float32(limits[0])
        tied = min(max(positions[0] - begin, 0), count)
        for i in range(tied):
            delta[i] = delta[i] if abs(delta[i]) > value else np.float32(0.0)
        for i in range(tied, count):
            delta[i] = delta[i] if abs(delta[i]) >= value else np.float32(0.0)
    if limits[1] >= 0:
        value = np.float32(limits[1])
        tied = min(max(positions[1] - begin, 0), count)
        for i in range(tied):
            delta[i] = delta[i] if abs(delta[i]) <= value else np.float32(0.0)
        for i in range(tied, count):
            delta[i] = delta[i] if abs(delta[i]) < value else np.float32(0.0)
    if stream[2] >= 4294967296:
        for i in range(count):
            delta[i] = np.float32(0.0)
    elif stream[2] >= 0:
        low, key = np.uint32(begin & 0xFFFFFFFF), np.uint32(stream[0])
        for i in range(count):
            words[i] = np.uint32(np.uint32(low + np.uint32(i)) ^ key)
        _hash(words, count)
        key = np.uint32(stream[1] ^ (begin >> 32))
        for i in range(count):
            words[i] = np.uint32(words[i] ^ key)
        _hash(words, count)
        drop = np.uint32(stream[2])
        for i in range(count):
            delta[i] = delta[i] if words[i] >= drop else np.float32(0.0)


@_compiled
def vote(
    inputs, codes, base, base_code, limits, positions, streams, factors, weights, scale, elect, normalize, share,
    out, out_code, start, stop,
):  # fmt: skip
    inputs_count = len(inputs)
    part = np.empty((inputs_count, BLOCK), np.float32)
    ground, total, mass = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    agreed = np.empty(BLOCK, np.float32)
    part_bits, ground_bits, total_bits = part.view(np.uint32), ground.view(np.uint32), total.view(np.uint32)
    words = np.empty(BLOCK, np.uint32)
    zero, one = np.float32(0.0), np.float32(1.0)
    zeros = 0
    for begin in range(start, stop, BLOCK):
        count = min(BLOCK, stop - begin)
        _load(base, base_code, begin, count, ground, ground_bits)
        for k in range(inputs_count):
            own = part[k]
            _load(inputs[k], codes[k], begin, count, own, part_bits[k])
            for i in range(count):
                own[i] = own[i] - ground[i]
            _thin(own, begin, count, limits[k], positions[k], streams[k], words)
            factor = factors[k]
            if k == 0:
                for i in range(count):
                    own[i] = own[i] * factor
                    total[i] = own[i]
            else:
                for i in range(count):
                    own[i] = own[i] * factor
                    total[i] += own[i]
        if elect:
            for i in range(count):
                agreed[i] = zero
                mass[i] = zero
            for k in range(inputs_count):
                own, weight = part[k], weights[k]
                for i in range(count):
                    agrees = own[i] > zero if total[i] >= zero else own[i] < zero
                    agreed[i] += own[i] if agrees else zero
                    mass[i] += weight if agrees else zero
            if normalize:
                for i in range(count):
                    agreed[i] = agreed[i] / (one if mass[i] == zero else mass[i])
            for i in range(count):
                total[i] = ground[i] + agreed[i] * scale
        else:
            if normalize:
                for i in range(count):
                    total[i] = total[i] * share
            for i in range(count):
                total[i] = ground[i] + total[i] * scale
        zeros += _store(out, out_code, begin, count, total, total_bits)
    return zeros


@_compiled
def prune(source, code, value, position, out, out_code, start, stop):
    kept = np.empty(BLOCK, np.float32)
    bits = kept.view(np.uint32)
    zeros = 0
    for begin in range(start, stop, BLOCK):
        count = min(BLOCK, stop - begin)
        _load(source, code, begin, count, kept, bits)
        tied = min(max(position - begin, 0), count)
        for i in range(tied):
            kept[i] = kept[i] if abs(kept[i]) > value else np.float32(0.0)
        for i in range(tied, count):
            kept[i] = kept[i] if abs(kept[i]) >= value else np.float32(0.0)
        zeros += _store(out, out_code, begin, count, kept, bits)
    return zeros


@_compiled
def _magnitude(address, code, base, base_code, begin, count, values, bits, ground, ground_bits):
    _load(address, code, begin, count, values, bits)
    if base != 0:
        _load(base, base_code, begin, count, ground, ground_bits)
        for i in range(count):
            values[i] = values[i] - ground[i]
    for i in range(count):
        bits[i] = bits[i] & np.uint32(0x7FFFFFFF)


@_compiled
def high_histogram(address, code, base, base_code, histogram, start, stop):
    values, ground = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    bits, ground_bits = values.view(np.uint32), ground.view(np.uint32)
    for begin in range(start, stop, BLOCK):
        count = min(BLOCK, stop - begin)
        _magnitude(address, code, base, base_code, begin, count, values, bits, ground, ground_bits)
        for i in range(count):
            histogram[bits[i] >> np.uint32(16)] += 1


@_compiled
def low_histogram(address, code, base, base_code, high, histogram, start, stop):
    values, ground = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    bits, ground_bits = values.view(np.uint32), ground.view(np.uint32)
    wanted = np.uint32(high)
    for begin in range(start, stop, BLOCK):
        count = min(BLOCK, stop - begin)
        _magnitude(address, code, base, base_code, begin, count, values, bits, ground, ground_bits)
        for i in range(count):
            if bits[i] >> np.uint32(16) == wanted:
                histogram[bits[i] & np.uint32(0xFFFF)] += 1


@_compiled
def after(address, code, base, base_code, value, ties, size):
    values, ground = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    bits, ground_bits = values.view(np.uint32), ground.view(np.uint32)
    for begin in range(0, size, BLOCK):
        count = min(BLOCK, size - begin)
        _magnitude(address, code, base, base_code, begin, count, values, bits, ground, ground_bits)
        found = 0
        for i in range(count):
            found += values[i] == value
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
def l1(address, code, base, base_code, limits, positions, stream, start, stop):
    values, ground = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    bits, ground_bits = values.view(np.uint32), ground.view(np.uint32)
    words = np.empty(BLOCK, np.uint32)
    sums = np.zeros(BLOCK, np.float64)  # element by element, so that the loop runs in parallel lanes
    for begin in range(start, stop, BLOCK):
        count = min(BLOCK, stop - begin)
        _magnitude(address, code, base, base_code, begin, count, values, bits, ground, ground_bits)
        _thin(values, begin, count, limits, positions, stream, words)
        for i in range(count):
            sums[i] += np.float64(values[i])
    return sums.sum()


@_compiled
def gram(inputs, codes, base, base_code, products, start, stop):
    """Add the dot products of all pairs to `products`, float64, shape (K, K)."""
    inputs_count = len(inputs)
    value, ground = np.empty((inputs_count, BLOCK), np.float32), np.empty(BLOCK, np.float32)
    bits, ground_bits = value.view(np.uint32), ground.view(np.uint32)
    sums = np.zeros((inputs_count, inputs_count, BLOCK), np.float64)
    for begin in range(start, stop, BLOCK):
        count = min(BLOCK, stop - begin)
        if base != 0:
            _load(base, base_code, begin, count, ground, ground_bits)
        for k in range(inputs_count):
            own = value[k]
            _load(inputs[k], codes[k], begin, count, own, bits[k])
            if base != 0:
                for i in range(count):
                    own[i] = own[i] - ground[i]
            for j in range(k + 1):
                other, pair = value[j], sums[k, j]
                for i in range(count):
                    pair[i] += np.float64(own[i]) * np.float64(other[i])
    for k in range(inputs_count):
        for j in range(k + 1):
            products[k, j] += sums[k, j].sum()
