"""What methods need to know of a tensor before they merge it: angles, lengths, ranks of magnitudes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_moo.materialization.ops import fused
from sae_moo.materialization.ops.operands import chunk_size
from sae_moo.materialization.ops.select import Chunked, Cut, Importances
from sae_moo.materialization.ops.steps import Thinning, variance

WHOLE = Thinning()


def gram_matrix(inputs: Sequence[Tensor], base: Tensor | None) -> NDArray[np.float64]:
    """Return the dot products of all pairs of inputs, or of their differences from the base.

    Args:
        inputs: flat tensors of one length.
        base: likewise, or None.

    Returns:
        float64, shape (inputs, inputs), symmetric. Products are exact; the last digits depend on the order of the sums.
    """
    count = len(inputs)
    found = fused.gram(inputs, base)
    if found is None:
        parts: list[NDArray[np.float64]] = []
        size = chunk_size(inputs[0])
        for start in range(0, inputs[0].numel(), size):
            part = slice(start, start + size)
            ground = None if base is None else base[part].float()
            rows = [x[part].float() if ground is None else x[part].float() - ground for x in inputs]
            chunk = torch.stack(rows).double()
            parts.append((chunk @ chunk.T).cpu().numpy())
        found = np.zeros((count, count))
        for i, j in itertools.product(range(count), repeat=2):
            found[i, j] = math.fsum(part[i, j] for part in parts)
    lower = np.tril(found)
    return lower + np.tril(lower, -1).T


def magnitudes(tensor: Tensor, base: Tensor | None) -> Importances:
    """Return the absolute values of a flat tensor, or of its difference from the base, as scores to select by."""
    found = fused.magnitudes(tensor, base)
    if found is not None:
        return found

    def chunks() -> Iterator[tuple[int, Tensor]]:
        size = chunk_size(tensor)
        for start in range(0, tensor.numel(), size):
            yield start, _difference(tensor, base, slice(start, start + size)).abs()

    return Chunked(chunks, tensor.numel())


def l1_norm(tensor: Tensor, base: Tensor, thinning: Thinning, row: int) -> float:
    """Return the sum of absolute values of a task vector, of what a thinning leaves of it.

    Args:
        tensor: flat.
        base: likewise.
        thinning: `WHOLE` for all of it.
        row: length of a row.
    """
    found = fused.l1(tensor, base, thinning, row)
    if found is not None:
        return found
    align = row if thinning.epsilon is not None else 1
    size = max(1, chunk_size(tensor) // align) * align
    sums = []
    for start in range(0, tensor.numel(), size):
        delta = _difference(tensor, base, slice(start, start + size))
        kept = thinning.keeps(delta, start, row)
        delta = delta if kept is None else delta.masked_fill(~kept, 0.0)
        sums.append(float(delta.abs().double().sum()))
    return math.fsum(sums)


def distance(tensor: Tensor, base: Tensor) -> float | Tensor:
    """Return the L1 norm of a task vector; on a device that is not the CPU a number there, nobody has waited for it."""
    if tensor.is_cpu:
        return l1_norm(tensor, base, WHOLE, 1)
    size = chunk_size(tensor)
    total = torch.zeros((), dtype=torch.float64, device=tensor.device)
    for start in range(0, tensor.numel(), size):
        total += _difference(tensor, base, slice(start, start + size)).abs().double().sum()
    return total


def numbers_of(found: Sequence[float | Tensor]) -> list[float]:
    """Return numbers, those on a device fetched at once."""
    there = [number for number in found if isinstance(number, Tensor)]
    if not there:
        return [float(number) for number in found]
    fetched = iter(torch.stack(there).tolist())
    return [next(fetched) if isinstance(number, Tensor) else float(number) for number in found]


def varying(inputs: Sequence[Tensor], base: Tensor) -> tuple[Importances, int]:
    """Return the variances of task vectors over the inputs as scores to select by, and how many are not 0.

    Args:
        inputs: flat tensors of one length.
        base: likewise.
    """
    found = fused.variances(inputs, base)
    if found is not None:
        return found

    def chunks() -> Iterator[tuple[int, Tensor]]:
        for start, deltas in _differences(inputs, base):
            yield start, variance(deltas).abs()  # a NaN may have a sign, which has no bin

    return Chunked(chunks, base.numel()), sum(int(torch.count_nonzero(chunk)) for _, chunk in chunks())


def squares_above(inputs: Sequence[Tensor], base: Tensor, cut: Cut) -> NDArray[np.float64]:
    """Return each task vector's sum of squares, of the elements whose variance over inputs is not below a cut.

    Args:
        inputs: flat tensors of one length.
        base: likewise.
        cut: of the variances; `NOTHING` leaves none out.

    Returns:
        float64, shape (inputs,); the last digits depend on the order of the sums.
    """
    found = fused.squares(inputs, base, cut)
    if found is not None:
        return found
    total = np.zeros(len(inputs))
    for start, deltas in _differences(inputs, base):
        low = cut.below(variance(deltas), start)
        total += [float(delta.masked_fill(low, 0.0).double().square().sum()) for delta in deltas]
    return total


def _differences(inputs: Sequence[Tensor], base: Tensor) -> Iterator[tuple[int, list[Tensor]]]:
    size = chunk_size(base)
    for start in range(0, base.numel(), size):
        part = slice(start, start + size)
        yield start, [_difference(x, base, part) for x in inputs]


def _difference(tensor: Tensor, base: Tensor | None, part: slice) -> Tensor:
    return tensor[part].float() if base is None else tensor[part].float() - base[part].float()
