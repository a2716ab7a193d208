"""What a merge method comes down to on one tensor: an elementwise step, once its per-tensor numbers are known.

A method looks at whole tensors first (angles, thresholds) and returns a `Step`. `write` then streams the step over the
tensor in chunks, from the operands' own dtypes through float32 into the output's dtype, so that no temporary is larger
than a chunk. The chunk functions serve every device; `fused` holds faster forms of the common ones for the CPU, which
give the same bits: no product is fused with a sum, and sums run over the inputs in order.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sae_moo.materialization.ops.deferred import CutRef, NumberRef, fetched, restored
from sae_moo.materialization.ops.random import Draws
from sae_moo.materialization.ops.select import Cut


class Step(Protocol):
    """An elementwise function of the operands, all its per-tensor numbers known.

    Attributes:
        align: chunks must begin at multiples of this many elements (a row, for steps that look at rows).
    """

    @property
    def align(self) -> int:
        """See the class."""

    def chunk(self, inputs: Sequence[Tensor], base: Tensor | None, start: int) -> Tensor:
        """Return the result for one chunk.

        Args:
            inputs: float32, one-dimensional, never changed.
            base: likewise, or None.
            start: position of the chunk in the flat tensor.

        Returns:
            float32 of the same length; may be one of the inputs itself.
        """


def terms(coefficients: Sequence[float], base: float = 0.0) -> Combination:
    """Return the step ``base * b + sum c_i x_i``, in the form that keeps the laws.

    Terms of coefficient 0 are not read. With two terms or more, the first (the base if it has a part) is the origin:
    ``(sum of all) * origin + sum c_i (x_i - origin)``. So equal inputs whose coefficients sum to 1 give themselves, bit
    for bit, and differences between fine-tuned models, which are small, keep all their digits.
    """
    return _terms(tuple(coefficients), base)


@functools.lru_cache(maxsize=1 << 12)
def _terms(coefficients: tuple[float, ...], base: float) -> Combination:
    """Many tensors of a merge have the same coefficients."""
    used = [(i, float(c)) for i, c in enumerate(coefficients) if c != 0]
    total = math.fsum([base, *(c for _, c in used)])
    if abs(total - 1.0) < 1e-9:
        total = 1.0
    if base == 0:
        (origin, _), *rest = used or [(0, 0.0)]
        return Combination(origin, total, tuple(i for i, _ in rest), tuple(c for _, c in rest))
    return Combination(None, total, tuple(i for i, _ in used), tuple(c for _, c in used))


@dataclass(frozen=True, slots=True)
class Combination:
    """``total * origin + sum c_i (x_i - origin)``; made by `terms`.

    Args:
        origin: index of the input that is the origin; None is the base.
        total: sum of all coefficients.
        others: indices of the other inputs with a part.
        coefficients: theirs.
    """

    origin: int | None
    total: float
    others: tuple[int, ...]
    coefficients: tuple[float, ...]
    align: int = 1

    def chunk(self, inputs: Sequence[Tensor], base: Tensor | None, start: int) -> Tensor:  # noqa: ARG002
        """See `Step`."""
        origin = base if self.origin is None else inputs[self.origin]
        assert origin is not None
        if self.total == 1.0 and not self.others:
            return origin
        merged = origin * self.total
        for i, coefficient in zip(self.others, self.coefficients, strict=True):
            # two roundings, never a fused multiply-add: the same bits on every device
            merged += (inputs[i] - origin) * coefficient
        return merged


@dataclass(frozen=True, slots=True)
class Spliced:
    """One combination before a position, another from there on."""

    first: Combination
    second: Combination
    position: int
    align: int = 1

    def chunk(self, inputs: Sequence[Tensor], base: Tensor | None, start: int) -> Tensor:
        """See `Step`."""
        place = min(max(self.position - start, 0), len(inputs[0]))
        halves = (self.first, slice(0, place)), (self.second, slice(place, None))
        parts = [
            step.chunk([x[part] for x in inputs], None if base is None else base[part], start) for step, part in halves
        ]
        return torch.cat(parts)


@dataclass(frozen=True, slots=True)
class ZeroAware:
    """The weighted mean of the inputs that are not zero.

    Args:
        shares: per input, summing to 1.
        scale: every element that is not zero first moves to ``base + scale (x - base)``; 1 is no move.
        prunable: whether zeros are meant; if not, the plain weighted mean, scaled.
    """

    shares: tuple[float, ...]
    scale: float
    prunable: bool
    align: int = 1

    @property
    def plain(self) -> Combination:
        """What it is on a tensor whose zeros are not meant."""
        parts = [self.scale * share for share in self.shares]
        return terms(parts, base=1.0 - self.scale)

    def chunk(self, inputs: Sequence[Tensor], base: Tensor | None, start: int) -> Tensor:
        """See `Step`."""
        if not self.prunable:
            return self.plain.chunk(inputs, base, start)
        if self.scale != 1.0:
            assert base is not None
            inputs = [(base + (x - base) * self.scale).masked_fill(x == 0, 0.0) for x in inputs]
        if len(inputs) == 2:
            a, b = inputs
            both = a + (b - a) * self.shares[1]
            return torch.where(a == 0, b, torch.where(b == 0, a, both))
        present = [(x != 0).float() for x in inputs]
        number = functools.reduce(torch.add, present)
        mass = functools.reduce(torch.add, [here * share for here, share in zip(present, self.shares, strict=True)])
        some = functools.reduce(torch.add, [x * share for x, share in zip(inputs, self.shares, strict=True)])
        some = some / mass.masked_fill(mass == 0, 1.0)
        mean = functools.reduce(torch.add, inputs) / number.clamp(min=1.0)
        everything = inputs[0].clone()
        for x, share in zip(inputs[1:], self.shares[1:], strict=True):
            everything += (x - inputs[0]) * share
        return torch.where(number == len(inputs), everything, torch.where(mass == 0, mean, some))


@dataclass(frozen=True, slots=True)
class Thinning:
    """Which elements of one task vector stay.

    Args:
        above: those not below this cut of the magnitudes stay; None: no lower limit.
        under: of them those below this cut; None: no upper limit.
        stream: random numbers, or None.
        drop: elements whose random number (32 bits) is under this one are dropped.
        epsilon: instead of one `drop` for all, the chance to stay rises by row rank from ``density - epsilon`` to
            ``density + epsilon`` (DELLA); None: it does not.
        density: chance to stay, where `epsilon` is given.
    """

    above: Cut | CutRef | None = None
    under: Cut | CutRef | None = None
    stream: Draws | None = None
    drop: int = 0
    epsilon: float | None = None
    density: float = 1.0

    def keeps(self, delta: Tensor, start: int, row: int) -> Tensor | None:
        """Return which elements of a chunk stay; None: all."""
        kept = None
        if self.above is not None:
            kept = ~restored(self.above).below(delta.abs(), start)
        if self.under is not None:
            under = restored(self.under).below(delta.abs(), start)
            kept = under if kept is None else kept & under
        if self.stream is not None:
            drop: int | Tensor = self.drop
            if self.epsilon is not None:
                drop = by_rank(delta.abs().view(-1, row), self.density, self.epsilon).flatten()
            lucky = self.stream.draw(start, len(delta), delta.device) >= drop
            kept = lucky if kept is None else kept & lucky
        return kept


@dataclass(frozen=True, slots=True)
class Vote:
    """``base + scale * sum w_i g_i m_i d_i / divisor`` over the task vectors d_i, thinned out by masks m_i.

    Args:
        thinnings: per input.
        growths: per input its rescaling.
        weights: per input; their sum over those that take part is the divisor.
        scale: factor of the whole.
        elect: only elements whose weighted sign is that of the weighted sum take part; a sum of zero counts as
            positive, elements thinned out do not vote.
        normalize: divide; else the divisor is 1. A divisor of zero counts as 1.
        align: row length where a mask looks at rows.
    """

    thinnings: tuple[Thinning, ...]
    growths: tuple[float | NumberRef, ...]
    weights: tuple[float, ...]
    scale: float
    elect: bool
    normalize: bool
    row: int = 1

    @property
    def align(self) -> int:
        """See `Step`."""
        return self.row if any(thinning.epsilon is not None for thinning in self.thinnings) else 1

    @property
    def factors(self) -> tuple[float, ...]:
        """Per input its weight times its rescaling."""
        return tuple(weight * fetched(growth) for weight, growth in zip(self.weights, self.growths, strict=True))

    def chunk(self, inputs: Sequence[Tensor], base: Tensor | None, start: int) -> Tensor:
        """See `Step`."""
        assert base is not None
        parts = []
        for x, thinning, factor in zip(inputs, self.thinnings, self.factors, strict=True):
            delta = x - base
            kept = thinning.keeps(delta, start, self.row)
            part = delta * factor
            parts.append(part if kept is None else part.masked_fill(~kept, 0.0))
        total = functools.reduce(torch.add, parts)
        if self.elect:
            positive = total >= 0
            agreeing = [torch.where(positive, part > 0, part < 0) for part in parts]
            total = functools.reduce(torch.add, [p.masked_fill(~a, 0.0) for p, a in zip(parts, agreeing, strict=True)])
            if self.normalize:
                shares = [a.to(total.dtype) * weight for a, weight in zip(agreeing, self.weights, strict=True)]
                mass = functools.reduce(torch.add, shares)
                total = total / mass.masked_fill(mass == 0, 1.0)
        elif self.normalize:
            total = total * (1.0 / divisor(self.weights))
        return base + total * self.scale


@dataclass(frozen=True, slots=True)
class Selected:
    """SCE's sum: elements of low variance are dropped for all inputs, signs elected, the rest averaged by weight.

    Args:
        cut: of the variances over inputs; those below it are dropped. None: none.
        weights: per input.
        scale: factor of the merged task vector.
    """

    cut: Cut | CutRef | None
    weights: tuple[float, ...]
    scale: float
    align: int = 1

    def chunk(self, inputs: Sequence[Tensor], base: Tensor | None, start: int) -> Tensor:
        """See `Step`."""
        assert base is not None
        deltas = [x - base for x in inputs]
        if self.cut is not None:
            low = restored(self.cut).below(variance(deltas), start)
            deltas = [delta.masked_fill(low, 0.0) for delta in deltas]
        positive = functools.reduce(torch.add, deltas) >= 0
        total = mass = torch.zeros_like(base)
        for delta, weight in zip(deltas, self.weights, strict=True):
            part = torch.where(positive, delta > 0, delta < 0).to(delta.dtype) * weight
            total = total + delta * part
            mass = mass + part
        return base + total / mass.masked_fill(mass == 0, 1.0) * self.scale


@dataclass(frozen=True, slots=True)
class Reinforced:
    """``base + `` the mean of those differences ``x_i - base`` that are larger than a number.

    Args:
        growth: per input the factor of its difference where no other has one.
        epsilon: differences of at most this are none.
    """

    growth: tuple[float, ...]
    epsilon: float
    align: int = 1

    def chunk(self, inputs: Sequence[Tensor], base: Tensor | None, start: int) -> Tensor:  # noqa: ARG002
        """See `Step`."""
        assert base is not None
        deltas = [x - base for x in inputs]
        changed = [delta.abs() > self.epsilon for delta in deltas]
        count = functools.reduce(torch.add, [each.to(base.dtype) for each in changed])
        parts = []
        for delta, each, growth in zip(deltas, changed, self.growth, strict=True):
            part = delta.masked_fill(~each, 0.0)
            parts.append(torch.where(count == 1, part * growth, part / count.clamp(min=1.0)))
        return base + functools.reduce(torch.add, parts)


@dataclass(frozen=True, slots=True)
class Nearing:
    """``s x + (1 - s) base`` with ``s = min(1, t / max(|x - base|, 1e-6))``.

    Args:
        t: length of a step towards the input.
    """

    t: float
    align: int = 1

    def chunk(self, inputs: Sequence[Tensor], base: Tensor | None, start: int) -> Tensor:  # noqa: ARG002
        """See `Step`."""
        assert base is not None
        share = (self.t / (base - inputs[0]).abs().clamp(min=1e-6)).clamp(min=0.0, max=1.0)
        return share * inputs[0] + (1 - share) * base


@dataclass(frozen=True, slots=True)
class Fusion:
    """Arcee fusion: elements of an importance under the threshold stay the base's.

    Args:
        threshold: of the importance.
        row: length of the rows the importance is computed over.
    """

    threshold: float
    row: int

    @property
    def align(self) -> int:
        """See `Step`."""
        return self.row

    def chunk(self, inputs: Sequence[Tensor], base: Tensor | None, start: int) -> Tensor:  # noqa: ARG002
        """See `Step`."""
        assert base is not None
        return torch.where(importance(inputs[0], base, self.row) >= self.threshold, inputs[0], base)


def divisor(weights: Sequence[float]) -> float:
    """Return the sum of weights to divide by; 1 where it vanishes (under 1e-8), as in mergekit."""
    total = math.fsum(weights)
    return total if abs(total) >= 1e-8 else 1.0


def by_rank(magnitudes: Tensor, density: float, epsilon: float) -> Tensor:
    """Return per element the random number under which it is dropped; int64, shape (rows, columns)."""
    columns = magnitudes.shape[1]
    order = magnitudes.argsort(dim=1, stable=True)
    drops = drops_by_rank(columns, density, epsilon).to(order.device)
    return torch.empty_like(order).scatter_(1, order, drops.expand_as(order))


def drops_by_rank(columns: int, density: float, epsilon: float) -> Tensor:
    """Return, for each rank within a row, the random number under which it is dropped; int64, shape (columns,)."""
    rank = torch.arange(columns, dtype=torch.float64, device="cpu")
    share = rank / (columns - 1) if columns > 1 else torch.full_like(rank, 0.5)
    stay = (density - epsilon) + share * (2 * epsilon)
    return ((1.0 - stay) * 2**32).round().long()


def variance(deltas: Sequence[Tensor]) -> Tensor:
    """Return the population variance over inputs."""
    once = 1.0 / len(deltas)  # some devices divide by a number so, others do not: the same bits on all
    mean = functools.reduce(torch.add, deltas) * once
    squares = [(delta - mean) * (delta - mean) for delta in deltas]
    return functools.reduce(torch.add, squares) * once


def importance(x: Tensor, base: Tensor, row: int) -> Tensor:
    """Return ``|x - base| * KL(softmax(row of x) || softmax(row of base))`` per element; float32, not negative.

    Distributions are float64 and their divergence is rounded to float32 once: exponentials and sums come out a little
    different on every device, and a threshold that hangs on them would choose other elements.
    """
    p, q = (torch.softmax(each.view(-1, row).double(), dim=-1) + 1e-8 for each in (x, base))
    divergence = (p * torch.log(p / q)).sum(dim=-1, keepdim=True)
    # a divergence of nearly equal rows may come out just below zero
    return ((x - base).abs().view(-1, row) * divergence.clamp(min=0.0).float()).flatten()
