"""Exact selection without sorting: which k of n scores are the smallest, found by counting bits.

Scores are not negative, so the order of their float32 bits is their order. A histogram of the upper 16 bits finds the
bin of the k-th smallest, one of the lower 16 bits within that bin finds it exactly: two passes over any number of
chunks, no copy of the scores. Equal scores are told apart by position, the first counts as smaller, so that any k is
met exactly. A histogram of an expert's own tensor answers every k afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_moo.errors import WeightsError

HIGH_BINS = 1 << 15
LOW_BINS = 1 << 16

Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Cut:
    """A border through the scores of one tensor: below it are those under `value`, and equal ones before `position`.

    Args:
        value: a score.
        position: a flat position; equal scores at smaller positions are below.
    """

    value: float
    position: int

    def below(self, scores: Tensor, start: int) -> Tensor:
        """Return which scores of a chunk are below the cut; `start` is the chunk's position."""
        under = scores < self.value
        tied = self.position - start
        if tied > 0:
            part = slice(0, tied)
            under[part] |= scores[part] == self.value
        return under


NOTHING = Cut(0.0, 0)
"""No score is below it."""


@dataclass(frozen=True, slots=True)
class Compact:
    """A histogram without its empty ends: weights span a small part of all floats.

    Args:
        first: index of the first bin kept.
        counts: of the bins kept.
        bins: number of all bins.
    """

    first: int
    counts: NDArray[np.int32] | Counts
    bins: int

    def whole(self) -> Counts:
        """Return the histogram with its ends."""
        counts = np.zeros(self.bins, np.int64)
        counts[self.first : self.first + len(self.counts)] = self.counts
        return counts


def compact(histogram: Counts) -> Compact:
    """Return a histogram without its empty ends."""
    filled = np.flatnonzero(histogram)
    first, last = (int(filled[0]), int(filled[-1]) + 1) if len(filled) else (0, 0)
    kept = histogram[first:last]
    fits = int(histogram.sum()) < 2**31
    return Compact(first, kept.astype(np.int32) if fits else kept.copy(), len(histogram))


class Importances(Protocol):
    """The scores of one tensor, float32 and not negative, never held as a whole."""

    @property
    def numel(self) -> int:
        """Number of scores."""

    def lowest(self, count: int) -> Cut | None:
        """Return the cut of `count` if there is a faster way than counting bits, else None."""

    def high(self) -> Counts:
        """Count by the upper 16 bits; shape (HIGH_BINS,)."""

    def low(self, high: int) -> Counts:
        """Count those of one upper bin by their lower 16 bits; shape (LOW_BINS,)."""

    def after(self, value: float, ties: int) -> int:
        """Return the position just after the `ties`-th score equal to `value`; `ties` at least 1."""


@dataclass(frozen=True, slots=True)
class Chunked:
    """Scores given chunk by chunk; the plain form of `Importances`, for any device.

    Args:
        chunks: makes a fresh iterator of positions and float32 scores, in order.
        numel: number of scores.
    """

    chunks: Callable[[], Iterator[tuple[int, Tensor]]]
    numel: int

    def lowest(self, count: int) -> Cut | None:  # noqa: ARG002
        """See `Importances`."""
        return None

    def high(self) -> Counts:
        """See `Importances`."""
        return self._histogram(HIGH_BINS, lambda bits: bits >> 16)

    def low(self, high: int) -> Counts:
        """See `Importances`."""
        return self._histogram(LOW_BINS, lambda bits: bits[(bits >> 16) == high] & 0xFFFF)

    def after(self, value: float, ties: int) -> int:
        """See `Importances`."""
        for start, scores in self.chunks():
            found = torch.nonzero(scores == value).flatten()
            if len(found) >= ties:
                return start + int(found[ties - 1]) + 1
            ties -= len(found)
        raise AssertionError(f"fewer scores equal to {value} than counted")

    def _histogram(self, bins: int, select: Callable[[Tensor], Tensor]) -> Counts:
        total: Tensor | int = 0
        for _, scores in self.chunks():
            total = total + torch.bincount(select(scores.contiguous().view(torch.int32)), minlength=bins)
        return total.cpu().numpy() if isinstance(total, Tensor) else np.zeros(bins, np.int64)


def lowest(scores: Importances, count: int, high: Counts | None = None) -> Cut:
    """Return the cut below which exactly `count` scores lie.

    Args:
        scores: of one tensor.
        count: in [0, number of scores].
        high: `scores.high()` if it is known already.

    Raises:
        ValueError: if `count` is out of range.
        WeightsError: if the cut falls among scores that are NaN.
    """
    cut = _lowest(scores, count, high)
    if math.isnan(cut.value):
        raise among_nan(scores.numel, count)
    return cut


def among_nan(numel: int, count: int) -> WeightsError:
    """Return the error of a cut of so many of some scores that falls among NaN."""
    return WeightsError(f"weights are NaN: no order among {numel} scores to take the {count} smallest of")


def _lowest(scores: Importances, count: int, high: Counts | None) -> Cut:
    if not 0 <= count <= scores.numel:
        raise ValueError(f"count: expected 0 to {scores.numel}, got {count}")
    if count == 0:
        return NOTHING
    found = scores.lowest(count) if high is None else None
    if found is not None:
        return found
    total = np.cumsum(scores.high() if high is None else high)
    upper = int(np.searchsorted(total, count))
    left = count - (int(total[upper - 1]) if upper else 0)
    within = scores.low(upper)
    lower, ties = rank(within, left)
    value = from_bits(upper, lower)
    if math.isnan(value):
        return Cut(value, 0)
    return Cut(value, scores.numel if ties == within[lower] else scores.after(value, ties))


def rank(histogram: Counts, count: int) -> tuple[int, int]:
    """Return the bin of the `count`-th smallest (from 1), and how many of that bin are needed to reach it."""
    total = np.cumsum(histogram)
    place = int(np.searchsorted(total, count))
    return place, count - (int(total[place - 1]) if place else 0)


def from_bits(high: int, low: int) -> float:
    """Return the float32 of an upper and a lower bin."""
    return float(np.array([(high << 16) | low], dtype=np.uint32).view(np.float32)[0])
