"""Streaming a step, or a pruned tensor, into its output: the one place where results are rounded and zeros counted."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sae_moo.materialization.ops import fused
from sae_moo.materialization.ops.operands import Operands, chunk_size
from sae_moo.materialization.ops.select import Cut
from sae_moo.materialization.ops.steps import Spliced, Step

Count = int | Tensor
"""A number of elements; on a device that is not the CPU a tensor of no dimension, which nobody has waited for yet."""


def counted(tensor: Tensor) -> Count:
    """Return how many elements of a tensor are not zero."""
    number = torch.count_nonzero(tensor)
    return int(number) if tensor.is_cpu else number


def write(step: Step, operands: Operands, out: Tensor) -> Count:
    """Write a step's result, rounded once to the output's dtype.

    Args:
        step: what to do.
        operands: on what.
        out: one-dimensional, contiguous, of the operands' length, on their device; overwritten.

    Returns:
        The number of exact zeros written.
    """
    if isinstance(step, Spliced):
        at, end = step.position, operands.numel
        first = write(step.first, operands.part(0, at), out[:at]) if at > 0 else 0
        return first + (write(step.second, operands.part(at, end), out[at:]) if at < end else 0)
    zeros = fused.write(step, operands, out)
    if zeros is not None:
        return zeros
    filled: Count = 0
    for start, inputs, base in operands.chunks(step.align):
        part = out[start : start + len(inputs[0])]
        part.copy_(step.chunk(inputs, base, start))
        filled += counted(part)
    return operands.numel - filled


def write_pruned(
    source: Tensor,
    cut: Cut,
    out: Tensor,
    scores: Callable[[int, int], Tensor] | None = None,
    factor: float = 1.0,
) -> Count:
    """Write a tensor with the weights below a cut set to zero and the others multiplied by a factor.

    Args:
        source: one-dimensional, contiguous.
        cut: the border; `NOTHING` makes it a copy.
        out: one-dimensional, contiguous, of the same length and device; may be `source` itself.
        scores: gives the scores at positions ``start ... stop - 1``, float32, not negative; None is the weight's
            magnitude.
        factor: in float32; the product is rounded once, to the output's dtype.

    Returns:
        The number of exact zeros written.
    """
    if scores is None:
        zeros = fused.write_pruned(source, cut, out, factor)
        if zeros is not None:
            return zeros
    filled: Count = 0
    size = chunk_size(source)
    for start in range(0, source.numel(), size):
        part = slice(start, start + size)
        chunk = source[part]
        score = chunk.float().abs() if scores is None else scores(start, start + len(chunk))
        kept = chunk.masked_fill(cut.below(score, start), 0)
        out[part].copy_(kept if factor == 1.0 else kept.float() * factor)
        filled += counted(out[part])
    return source.numel() - filled


def restoring(source: Tensor, cut: Cut, scores: Callable[[int, int], Tensor] | None = None) -> float:
    """Return what the weights that a cut leaves are to be multiplied by, so that the tensor keeps its L2 norm.

    Args:
        source: one-dimensional, contiguous.
        cut: the border.
        scores: as for `write_pruned`.

    Returns:
        A float32 number, at least 1; 1 where nothing is left. Sums are float64.
    """
    sums = fused.kept_squares(source, cut) if scores is None else None
    if sums is None:
        sums = np.zeros(2)
        size = chunk_size(source)
        for start in range(0, source.numel(), size):
            chunk = source[start : start + size]
            score = chunk.float().abs() if scores is None else scores(start, start + len(chunk))
            squares = chunk.double().square()
            sums += [float(squares.sum()), float(squares.masked_fill(cut.below(score, start), 0).sum())]
    return _ratio(*sums)


def write_restored(source: Tensor, writer: Callable[[Tensor], Count], out: Tensor) -> Count:
    """Write a pruned tensor multiplied so that it keeps its L2 norm, for prunings that have no cut.

    Args:
        source: the tensor before; one-dimensional, contiguous.
        writer: writes it pruned into a tensor of its length and device, and returns the number of zeros.
        out: one-dimensional, contiguous, of the same length and device; may be `source` itself.

    Returns:
        The number of exact zeros written.
    """
    before = float(torch.linalg.vector_norm(source, dtype=torch.float64)) ** 2
    held = out if out.dtype == torch.float32 else torch.empty(len(out), dtype=torch.float32, device=out.device)
    zeros = writer(held)
    held *= _ratio(before, float(torch.linalg.vector_norm(held, dtype=torch.float64)) ** 2)
    if held is not out:
        out.copy_(held)
        zeros = out.numel() - counted(out)
    return zeros


def _ratio(before: float, after: float) -> float:
    """Return the ratio of two norms given their squares, as a float32 number; 1 where nothing is left."""
    return float(np.float32(math.sqrt(before / after))) if after > 0 else 1.0
