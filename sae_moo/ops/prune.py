"""Pruning kernels: which weights matter least, and setting exactly that many to zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

Criterion = Callable[[Tensor], Tensor]


def magnitude(tensor: Tensor) -> Tensor:
    """Score every weight by |w| (Han et al. 2015); returns float32 of the same shape, none negative."""
    return tensor.abs().float()


CRITERIA: Mapping[str, Criterion] = {"magnitude": magnitude}


def target_count(sparsity: float, numel: int) -> int:
    """Return how many of `numel` weights a sparsity in [0, 1) asks to be zero: the nearest whole number."""
    return round(sparsity * numel)


def prune(tensor: Tensor, scores: Tensor, count: int) -> Tensor:
    """Return a copy with the `count` lowest-scored elements set to zero.

    Exact for every tensor: equal scores are broken by position, the first goes first. Elements that are zero already
    score lowest under magnitude, so they count towards `count`.

    Args:
        tensor: any shape and dtype.
        scores: float32 of the same shape, none negative, no NaN.
        count: how many to prune, in [0, numel].

    Raises:
        ValueError: if `count` is out of range.
    """
    if not 0 <= count <= tensor.numel():
        raise ValueError(f"count: expected 0 to {tensor.numel()}, got {count}")
    if count == 0:
        return tensor.clone()
    flat = scores.flatten()
    threshold = kth_smallest(flat, count)
    doomed = flat < threshold
    ties = torch.nonzero(flat == threshold).flatten()
    doomed[ties[: count - int(doomed.sum())]] = True
    return tensor.masked_fill(doomed.view_as(tensor), 0)


def kth_smallest(scores: Tensor, k: int) -> float:
    """Return the k-th smallest value (k from 1) of a flat float32 tensor, exactly."""
    if scores.device.type == "cpu":  # numpy's introselect takes a sixth of the time of torch.kthvalue
        return float(np.partition(scores.numpy(), k - 1)[k - 1])
    return float(torch.kthvalue(scores, k).values)


# Scores are not negative, so the order of their float32 bits is their order. A histogram of the upper 16 bits finds the
# bin of the k-th smallest of any number of tensors, a second one of the lower 16 bits finds it exactly: two passes, and
# never more than one tensor of scores in memory.
HIGH_BINS = 1 << 15
LOW_BINS = 1 << 16
_CHUNK = 1 << 20


def high_histogram(scores: Tensor) -> np.ndarray:
    """Count scores by the upper 16 bits of their float32 representation; int64, shape (HIGH_BINS,)."""
    return _histogram(scores, HIGH_BINS, lambda bits: bits >> 16)


def low_histogram(scores: Tensor, high: int) -> np.ndarray:
    """Count the scores of one upper bin by their lower 16 bits; int64, shape (LOW_BINS,)."""
    return _histogram(scores, LOW_BINS, lambda bits: bits[(bits >> 16) == high] & 0xFFFF)


def _histogram(scores: Tensor, bins: int, select: Callable[[Tensor], Tensor]) -> np.ndarray:
    total = torch.zeros(bins, dtype=torch.int64, device=scores.device)
    for chunk in torch.split(scores.flatten(), _CHUNK):
        total += torch.bincount(select(chunk.contiguous().view(torch.int32)), minlength=bins)
    counts: np.ndarray = total.cpu().numpy()
    return counts
