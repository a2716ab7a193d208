"""Streaming a step, or a pruned tensor, into its output: the one place where results are rounded and zeros counted."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sae_moo.ops import fused
from sae_moo.ops.operands import Operands, chunk_size
from sae_moo.ops.select import Cut
from sae_moo.ops.steps import Split, Step


def write(step: Step, operands: Operands, out: Tensor) -> int:
    """Write a step's result, rounded once to the output's dtype.

    Args:
        step: what to do.
        operands: on what.
        out: one-dimensional, contiguous, of the operands' length, on their device; overwritten.

    Returns:
        The number of exact zeros written.
    """
    if isinstance(step, Split):
        at, end = step.position, operands.numel
        first = write(step.first, operands.part(0, at), out[:at]) if at > 0 else 0
        return first + (write(step.second, operands.part(at, end), out[at:]) if at < end else 0)
    zeros = fused.write(step, operands, out)
    if zeros is not None:
        return zeros
    filled = 0
    for start, inputs, base in operands.chunks(step.align):
        part = out[start : start + len(inputs[0])]
        part.copy_(step.chunk(inputs, base, start))
        filled += int(torch.count_nonzero(part))
    return operands.numel - filled


def write_pruned(source: Tensor, cut: Cut, out: Tensor, scores: Callable[[int, int], Tensor] | None = None) -> int:
    """Write a tensor with the weights below a cut set to zero.

    Args:
        source: one-dimensional, contiguous.
        cut: the border; `NOTHING` makes it a copy.
        out: one-dimensional, contiguous, of the same length and device; may be `source` itself.
        scores: gives the scores at positions ``start ... stop - 1``, float32, not negative; None is the weight's
            magnitude.

    Returns:
        The number of exact zeros written.
    """
    if scores is None:
        zeros = fused.write_pruned(source, cut, out)
        if zeros is not None:
            return zeros
    filled = 0
    size = chunk_size(source)
    for start in range(0, source.numel(), size):
        part = slice(start, start + size)
        chunk = source[part]
        score = chunk.float().abs() if scores is None else scores(start, start + len(chunk))
        out[part].copy_(chunk.masked_fill(cut.below(score, start), 0))
        filled += int(torch.count_nonzero(out[part]))
    return source.numel() - filled
