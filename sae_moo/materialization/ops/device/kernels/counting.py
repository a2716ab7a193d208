"""Kernels of exact selection: which value is the count-th smallest of a unit of tensors, and where its ties end.

A unit (a tensor, or all that compete with each other) has a row of state, int64: the range of keys looked at begins at
`LOW` and is `BINS` bins of ``2^SHIFT`` keys; `tally` counts what is below the range and what is in each bin, `advance`
takes the bin in which the count-th lies for the next range, until a bin is one key. The first range comes from a sample
(`sample`); if the count-th is not in it the rest of all keys is the next one. So the result does not depend on the
sample, only the number of rounds does. Keys are the bits of float32 scores, shifted down by `GRAIN` where the last bits
of all are zero (bfloat16).
"""

from __future__ import annotations

import triton
import triton.language as tl

from sae_moo.materialization.ops.device.kernels.loading import activated, factor_of, key_of, place, read

UNIT, SOURCE, SECOND = tl.constexpr(2), tl.constexpr(3), tl.constexpr(4)
"""Columns of a job: its unit, the address of the tensor, that of the base; norms, as `factor_of` reads them."""
NORMS = tl.constexpr(5)
LOW, SHIFT, COUNT, DONE, UNDER, EQUAL, GRAIN = (
    tl.constexpr(0),
    tl.constexpr(1),
    tl.constexpr(2),
    tl.constexpr(3),
    tl.constexpr(4),
    tl.constexpr(5),
    tl.constexpr(6),
)
STATE = tl.constexpr(8)
"""Columns of a unit's state. Once it is done, LOW is the key found, UNDER how many are below it."""
BINS = tl.constexpr(2048)
KEYS = tl.constexpr(1 << 31)


@triton.jit
def score(
    row,
    at,
    mask,
    SCORES: tl.constexpr,
    CODE: tl.constexpr,
    GROUND: tl.constexpr,
    FULL: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """SCORES: 0 magnitudes, 1 weighed by activations, 2 magnitudes of the difference from a base of dtype GROUND."""
    x = read(row, SOURCE, at, mask, CODE, FULL, ALIGNED)
    if SCORES == 1:
        x = activated(x, factor_of(row, at, mask, NORMS, FULL))
    if SCORES == 2:
        x = x - read(row, SECOND, at, mask, GROUND, FULL, ALIGNED)
    return key_of(x)


@triton.jit
def sample(
    table,
    slots,
    tiles,
    keys,
    states,
    LENGTH: tl.constexpr,
    WIDTH: tl.constexpr,
    SCORES: tl.constexpr,
    CODE: tl.constexpr,
    GROUND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the keys of scattered elements into a unit's row of `keys`, int32, shape (units, LENGTH).

    `slots`: for each job its first tile, first slot and number of samples.
    """
    tile = tl.program_id(0)
    job = tl.load(tiles + tile).to(tl.int64)
    row = table + job * WIDTH
    numel = tl.load(row)
    unit = tl.load(row + UNIT)
    number = tl.load(slots + job * 3 + 2)
    t = (tile.to(tl.int64) - tl.load(slots + job * 3)) * BLOCK + tl.arange(0, BLOCK)
    mask = t < number
    start = t * numel // number
    width = (t + 1) * numel // number - start
    # one of each stretch, at a place that no regularity of the tensor follows
    word = (t & 0xFFFFFFFF).to(tl.uint32) * 0x7FEB352D
    word = (word ^ (word >> 15)) * 0x2C1B3C6D
    word = word ^ (word >> 13)
    at = start + word.to(tl.int64) % tl.where(width > 0, width, 1)
    key = score(row, at, mask, SCORES, CODE, GROUND, False, False) >> tl.load(states + unit * STATE + GRAIN)
    tl.store(keys + unit * LENGTH + tl.load(slots + job * 3 + 1) + t, key.to(tl.int32), mask=mask)


@triton.jit
def _tallied(
    row, at, mask, state, bins, low_count, SCORES: tl.constexpr, CODE: tl.constexpr, GROUND: tl.constexpr,
    FULL: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    low = tl.load(state + LOW)
    key = score(row, at, mask, SCORES, CODE, GROUND, FULL, ALIGNED) >> tl.load(state + GRAIN)
    under = key < low
    # zeros are many where something is pruned already: counted by the tile, not one by one
    zero = (key == 0) & (low == 0)
    if not FULL:
        under = under & mask
        zero = zero & mask
    tl.atomic_add(low_count, tl.sum(under.to(tl.int32), axis=0).to(tl.int64))
    tl.atomic_add(bins, tl.sum(zero.to(tl.int32), axis=0))
    place_in = (key - low) >> tl.load(state + SHIFT)
    inside = (key >= low) & (place_in < BINS) & (zero == 0)
    if not FULL:
        inside = inside & mask
    tl.atomic_add(bins + tl.where(inside, place_in, 0), 1, mask=inside)


@triton.jit
def tally(
    table,
    tiles,
    states,
    counts,
    below,
    WIDTH: tl.constexpr,
    SCORES: tl.constexpr,
    CODE: tl.constexpr,
    GROUND: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Count, for units that are not done, what is in each bin (`counts`) and below all of them (`below`)."""
    _, row, start, numel = place(table, tiles, WIDTH, BLOCK)
    unit = tl.load(row + UNIT)
    state = states + unit * STATE
    if tl.load(state + DONE) == 0:
        at = start + tl.arange(0, BLOCK)
        mask = at < numel
        if start + BLOCK <= numel:
            _tallied(row, at, mask, state, counts + unit * BINS, below + unit, SCORES, CODE, GROUND, True, ALIGNED)
        else:
            _tallied(row, at, mask, state, counts + unit * BINS, below + unit, SCORES, CODE, GROUND, False, ALIGNED)


@triton.jit
def _shift_for(width):
    """Return the smallest shift by which so many keys fit into the bins."""
    shift = width * 0
    for k in tl.static_range(21):
        shift += (width > (BINS << k)).to(tl.int64)
    return shift


@triton.jit
def advance(states, counts, below):
    """Take the bin in which the count-th is for the next range; leave the counters at zero for it."""
    unit = tl.program_id(0).to(tl.int64)
    state = states + unit * STATE
    if tl.load(state + DONE) == 0:
        bins = tl.arange(0, BINS)
        found = tl.load(counts + unit * BINS + bins).to(tl.int64)
        under = tl.load(below + unit)
        low = tl.load(state + LOW)
        shift = tl.load(state + SHIFT)
        count = tl.load(state + COUNT)
        until = under + tl.cumsum(found, axis=0)
        bin_ = tl.sum((until < count).to(tl.int64), axis=0)
        if count <= under:  # the sample was wrong: it is among the lower keys
            tl.store(state + LOW, low * 0)
            tl.store(state + SHIFT, _shift_for(low))
        elif bin_ == BINS:  # or among the higher ones
            first = low + (((low * 0) + BINS) << shift)
            tl.store(state + LOW, first)
            tl.store(state + SHIFT, _shift_for((low * 0) + KEYS - first))
        else:
            here = tl.sum(tl.where(bins == bin_, found, 0), axis=0)
            before = tl.sum(tl.where(bins == bin_, until - found, 0), axis=0)
            tl.store(state + LOW, low + (bin_ << shift))
            if shift == 0:
                tl.store(state + UNDER, before)
                tl.store(state + EQUAL, here)
                tl.store(state + DONE, low * 0 + 1)
            else:
                tl.store(state + SHIFT, tl.where(shift > 11, shift - 11, 0))
        tl.store(counts + unit * BINS + bins, bins * 0)
        tl.store(below + unit, low * 0)


@triton.jit
def histogram(
    table,
    tiles,
    counts,
    WIDTH: tl.constexpr,
    CODE: tl.constexpr,
    ALL: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Count all magnitudes of a 16-bit dtype by their upper 16 bits of float32; `counts` int32, shape (units, ALL)."""
    _, row, start, numel = place(table, tiles, WIDTH, BLOCK)
    at = start + tl.arange(0, BLOCK)
    mask = at < numel
    key = key_of(read(row, SOURCE, at, mask, CODE, False, ALIGNED)) >> 16
    bins = counts + tl.load(row + UNIT) * ALL
    zero = mask & (key == 0)
    tl.atomic_add(bins, tl.sum(zero.to(tl.int32), axis=0))
    tl.atomic_add(bins + key, 1, mask=mask & (key != 0))


@triton.jit
def found_in(histograms, states, ALL: tl.constexpr):
    """Take the key of the count-th from a histogram of all keys; `histograms`: the address of each unit's."""
    unit = tl.program_id(0).to(tl.int64)
    state = states + unit * STATE
    count = tl.load(state + COUNT)
    address = tl.load(histograms + unit).to(tl.pointer_type(tl.int32))
    bins = tl.arange(0, BINS)
    under = count * 0
    low = count * 0
    before = count * 0
    equal = count * 0
    for first in range(0, ALL, BINS):
        found = tl.load(address + first + bins).to(tl.int64)
        until = under + tl.cumsum(found, axis=0)
        last = under + tl.sum(found, axis=0)
        if (under < count) & (last >= count):
            bin_ = tl.sum((until < count).to(tl.int64), axis=0)
            low = first + bin_
            equal = tl.sum(tl.where(bins == bin_, found, 0), axis=0)
            before = tl.sum(tl.where(bins == bin_, until - found, 0), axis=0)
        under = last
    tl.store(state + LOW, low)
    tl.store(state + UNDER, before)
    tl.store(state + EQUAL, equal)
    tl.store(state + DONE, count * 0 + 1)


@triton.jit
def _tied(
    row, at, mask, state, equals, under, SCORES: tl.constexpr, CODE: tl.constexpr, GROUND: tl.constexpr,
    ALL: tl.constexpr, FULL: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    key = score(row, at, mask, SCORES, CODE, GROUND, FULL, ALIGNED) >> tl.load(state + GRAIN)
    low = tl.load(state + LOW)
    tl.store(equals + tl.program_id(0), tl.sum(((key == low) & mask).to(tl.int32), axis=0))
    if ALL:
        tl.atomic_add(under, tl.sum(((key < low) & mask).to(tl.int32), axis=0).to(tl.int64))


@triton.jit
def between(quantiles, states, LENGTH: tl.constexpr):
    """Take the first range from scores at known ranks; `quantiles`: the address of each unit's, int32.

    The j-th of them is the score of rank ``j (n - 1) // (LENGTH - 1)`` of n, from 0.
    """
    unit = tl.program_id(0).to(tl.int64)
    state = states + unit * STATE
    count = tl.load(state + COUNT)
    if count == 0:
        tl.store(state + DONE, count + 1)
    else:
        known = tl.load(quantiles + unit * 2).to(tl.pointer_type(tl.int32))
        last = tl.load(quantiles + unit * 2 + 1) - 1  # the largest rank
        j = (count - 1) * (LENGTH - 1) // tl.where(last > 0, last, 1)
        j = tl.where(j > LENGTH - 2, LENGTH - 2, j)
        low = tl.load(known + j).to(tl.int64)
        high = tl.load(known + j + 1).to(tl.int64)
        tl.store(state + LOW, low)
        tl.store(state + SHIFT, _shift_for(high - low + 1))


@triton.jit
def ties(
    table,
    tiles,
    states,
    equals,
    under,
    WIDTH: tl.constexpr,
    SCORES: tl.constexpr,
    CODE: tl.constexpr,
    GROUND: tl.constexpr,
    ALL: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Count, for each tile, the elements equal to the key found, where only some of a unit's go.

    ALL: for every unit, and for each job those below the key too, added to `under`.
    """
    job, row, start, numel = place(table, tiles, WIDTH, BLOCK)
    unit = tl.load(row + UNIT)
    state = states + unit * STATE
    partly = tl.load(state + COUNT) - tl.load(state + UNDER) < tl.load(state + EQUAL)
    if partly or ALL:
        at = start + tl.arange(0, BLOCK)
        mask = at < numel
        if start + BLOCK <= numel:
            _tied(row, at, mask, state, equals, under + job, SCORES, CODE, GROUND, ALL, True, ALIGNED)
        else:
            _tied(row, at, mask, state, equals, under + job, SCORES, CODE, GROUND, ALL, False, ALIGNED)


@triton.jit
def positions(
    table,
    states,
    equals,
    lasts,
    cuts,
    WIDTH: tl.constexpr,
    SCORES: tl.constexpr,
    CODE: tl.constexpr,
    GROUND: tl.constexpr,
    BLOCK: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Write each job's cut, int64, shape (jobs, 2): the bits of the value, and the position after its last tie.

    `lasts`: the tile after each job's last. One unit is one job here.
    """
    job = tl.program_id(0).to(tl.int64)
    row = table + job * WIDTH
    numel = tl.load(row)
    state = states + tl.load(row + UNIT) * STATE
    low = tl.load(state + LOW)
    left = tl.load(state + COUNT) - tl.load(state + UNDER)
    position = numel
    if (left < tl.load(state + EQUAL)) & (tl.load(state + COUNT) > 0):
        first = tl.load(row + 1)
        last = tl.load(lasts + job)
        tile = first
        span = tl.arange(0, SPAN)
        number = tl.sum(tl.load(equals + tile + span, mask=tile + span < last, other=0), axis=0).to(tl.int64)
        while number < left:
            left -= number
            tile += SPAN
            number = tl.sum(tl.load(equals + tile + span, mask=tile + span < last, other=0), axis=0).to(tl.int64)
        each = tl.load(equals + tile + span, mask=tile + span < last, other=0).to(tl.int64)
        until = tl.cumsum(each, axis=0)
        inside = tl.sum((until < left).to(tl.int64), axis=0)
        left -= tl.sum(tl.where(span == inside, until - each, 0), axis=0)
        start = (tile + inside - first) * BLOCK
        at = start + tl.arange(0, BLOCK)
        mask = at < numel
        key = score(row, at, mask, SCORES, CODE, GROUND, False, False) >> tl.load(state + GRAIN)
        until = tl.cumsum(((key == low) & mask).to(tl.int64), axis=0)
        position = start + tl.sum((until < left).to(tl.int64), axis=0) + 1
    value = low << tl.load(state + GRAIN)
    if tl.load(state + COUNT) == 0:
        value = low * 0
        position = numel * 0
    tl.store(cuts + job * 2, value)
    tl.store(cuts + job * 2 + 1, position)


@triton.jit
def begin(keys, states, samples, LENGTH: tl.constexpr):
    """Take the first range from a unit's sorted sample; `samples`: its number, elements of the unit, slack in ranks."""
    unit = tl.program_id(0).to(tl.int64)
    state = states + unit * STATE
    count = tl.load(state + COUNT)
    if count == 0:
        tl.store(state + DONE, count + 1)
    else:
        number = tl.load(samples + unit * 3)
        slack = tl.load(samples + unit * 3 + 2)
        rank = tl.where(slack == 0, count - 1, count * number // tl.load(samples + unit * 3 + 1))
        first = tl.where(rank - slack < 0, 0, rank - slack)
        last = tl.where(rank + slack >= number, number - 1, rank + slack)
        low = tl.load(keys + unit * LENGTH + first).to(tl.int64)
        high = tl.load(keys + unit * LENGTH + last).to(tl.int64)
        low = tl.where(rank - slack < 0, 0, low)
        high = tl.where(rank + slack >= number, (KEYS >> tl.load(state + GRAIN)) - 1, high)
        tl.store(state + LOW, low)
        tl.store(state + SHIFT, _shift_for(high - low + 1))
