"""How kernels find, read and round the elements of tensors; shared by all of them.

A launch has a table of int64, a row for each job (a tensor that something is done to): its number of elements, the
number of its first tile, addresses, and numbers (float32 by their bits). Tile t of a launch is worked on by program t.
"""

# the module's words hold for each function; constants of a launch are written in capitals

from __future__ import annotations

import triton
import triton.language as tl

NUMEL = tl.constexpr(0)
FIRST = tl.constexpr(1)
HEAD = tl.constexpr(2)
"""Columns of a row: number of elements, first tile; what follows is a kernel's own."""
F32, BF16, F16 = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
SIGN = tl.constexpr(0x7FFFFFFF)
INFINITE = tl.constexpr(0x7F800000)
LEAST = tl.constexpr(1.1754943508222875e-38)


@triton.jit
def float_at(row, column):
    return tl.load(row + column).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def read(row, column, at, mask, CODE: tl.constexpr, FULL: tl.constexpr, ALIGNED: tl.constexpr):
    """Return elements of the tensor whose address stands in a column, as float32."""
    address = tl.load(row + column)
    if CODE == F32:
        pointer = address.to(tl.pointer_type(tl.float32))
    elif CODE == BF16:
        pointer = address.to(tl.pointer_type(tl.bfloat16))
    else:
        pointer = address.to(tl.pointer_type(tl.float16))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    if FULL:
        x = tl.load(pointer + at)
    else:
        x = tl.load(pointer + at, mask=mask, other=0.0)
    return x.to(tl.float32)


@triton.jit
def write(row, column, at, mask, y, CODE: tl.constexpr, FULL: tl.constexpr, ALIGNED: tl.constexpr):
    """Round and write elements; return which of them are exact zeros now."""
    address = tl.load(row + column)
    if CODE == F32:
        pointer = address.to(tl.pointer_type(tl.float32))
        rounded = y
        zero = y == 0.0
    elif CODE == BF16:
        pointer = address.to(tl.pointer_type(tl.uint16))
        # by whole numbers, nearest and ties to even: the interpreter's own cast truncates
        bits = y.to(tl.uint32, bitcast=True)
        near = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        near = tl.where((bits & SIGN) > INFINITE, 0x7FC0, near)
        rounded = near.to(tl.uint16)
        zero = (near & 0x7FFF) == 0
    else:
        pointer = address.to(tl.pointer_type(tl.float16))
        rounded = y.to(tl.float16)
        zero = rounded == 0.0
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    if FULL:
        tl.store(pointer + at, rounded)
    else:
        tl.store(pointer + at, rounded, mask=mask)
        zero = zero & mask
    return zero


@triton.jit
def key_of(x):
    """Return the bits of magnitudes, int64: their order is that of the magnitudes, NaN above all."""
    return (x.to(tl.int32, bitcast=True) & SIGN).to(tl.int64)


@triton.jit
def below(key, at, value, position):
    """Return which keys are below a cut: those under its value, and equal ones before its position."""
    return (key < value) | ((key == value) & (at < position))


@triton.jit
def place(table, tiles, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Return this program's job, the row of it, the first position of its tile and the number of elements."""
    tile = tl.program_id(0)
    job = tl.load(tiles + tile).to(tl.int64)
    row = table + job * WIDTH
    start = (tile.to(tl.int64) - tl.load(row + FIRST)) * BLOCK
    return job, row, start, tl.load(row + NUMEL)


@triton.jit
def quotient(row, at, divisor):
    """Return positions divided by a number; of 32 bits where the job is no longer, which is several times as fast."""
    if tl.load(row + NUMEL) <= SIGN:
        found = (at.to(tl.int32) // divisor.to(tl.int32)).to(tl.int64)
    else:
        found = at // divisor
    return found


@triton.jit
def factor_of(row, at, mask, NORMS: tl.constexpr, FULL: tl.constexpr):
    """Return the norm of each element's input feature; columns from NORMS on: address, length of a line, step."""
    norms = tl.load(row + NORMS).to(tl.pointer_type(tl.float32))
    inputs = tl.load(row + NORMS + 1)
    width = tl.load(row + NORMS + 2)
    if width > 0:  # stored inputs x outputs: the feature is the row
        feature = quotient(row, at, width)
    else:
        feature = at - quotient(row, at, inputs) * inputs
    if FULL:
        found = tl.load(norms + feature)
    else:
        found = tl.load(norms + feature, mask=mask, other=0.0)
    return found


@triton.jit
def activated(x, factor):
    """Return scores weighed by activations: zeros score 0 and no other weight does."""
    score = tl.abs(x) * factor
    score = tl.where(score < LEAST, LEAST, score)
    return tl.where(x == 0.0, 0.0, score)
