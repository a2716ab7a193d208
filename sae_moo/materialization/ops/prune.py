"""Which weights matter least, by the score of a criterion. Selection finds exactly that many, writing zeroes them.

The house's criteria score a weight by ``|w_ij| * f_j``, with a factor per input feature j or none; a guest's is any
function. Weights that are zero score 0 and no other does, so that zeros already there always go first and count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sae_moo.errors import WeightsError
from sae_moo.materialization.ops.measure import magnitudes
from sae_moo.materialization.ops.operands import DEVICE_CHUNK, chunk_size
from sae_moo.materialization.ops.select import Chunked, Importances, among_nan
from sae_moo.materialization.ops.write import Count, counted

LEAST = torch.finfo(torch.float32).tiny
"""Score that a weight which is not zero has at least, though its feature may never have been active."""
LINES = 1 << 18
"""Elements taken at a time where whole lines compete: few, but at least one line."""


Score = Callable[[Tensor, Tensor | None], Tensor]
"""What a criterion thinks of weights: see `recipe.criteria.Criterion`."""


def magnitude(weights: Tensor, factors: Tensor | None) -> Tensor:  # noqa: ARG001  # a criterion
    """Score every weight by |w| (Han et al. 2015)."""
    return weights.abs()


def activated(weights: Tensor, factors: Tensor | None) -> Tensor:
    """Score every weight by ``|W_ij| * ||X_j||_2`` (Sun et al. 2023, arXiv 2306.11695, eq. 1)."""
    assert factors is not None
    return weights.abs() * factors


def target_count(sparsity: float, numel: int) -> int:
    """Return how many of `numel` weights a sparsity in [0, 1) asks to be zero: the nearest whole number."""
    return round(sparsity * numel)


@dataclass(frozen=True, slots=True)
class Grid:
    """How a flat tensor is a matrix of outputs and inputs.

    Args:
        shape: of the tensor, two dimensions.
        transposed: whether it is stored inputs x outputs, as GPT-2's Conv1D does, instead of outputs x inputs.
    """

    shape: tuple[int, ...]
    transposed: bool = False

    @property
    def inputs(self) -> int:
        """Number of input features: the length of a line."""
        return self.shape[0 if self.transposed else -1]

    def factors(self, norms: Tensor, start: int, stop: int) -> Tensor:
        """Return the input feature's norm for each flat position ``start ... stop - 1``."""
        width = self.shape[-1]
        if self.transposed:
            first, last = start // width, -(-stop // width)
            return norms[first:last].repeat_interleave(width)[start - first * width : stop - first * width]
        offset = start % width
        times = -(-(offset + stop - start) // width)
        return norms.repeat(times)[offset : offset + stop - start]

    def lines(self, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Yield views of blocks of lines, shape (lines, inputs), of flat tensors of this shape; may be written to."""
        matrices = [tensor.view(self.shape) for tensor in tensors]
        matrices = [matrix.t() if self.transposed else matrix for matrix in matrices]
        size = max(1, _lines(matrices[0]) // max(1, self.inputs))
        for start in range(0, matrices[0].shape[0], size):
            yield tuple(matrix[start : start + size] for matrix in matrices)


@dataclass(frozen=True, slots=True)
class Scoring:
    """The scores of one tensor.

    Args:
        source: flat, contiguous; float32, bfloat16 or float16.
        grid: its shape and orientation.
        score: the criterion's function.
        norms: factor per input feature, float32, finite, not negative, shape (inputs,), or None.
        held: the scores of all weights, flat, where they cannot be had a part at a time (`Scoring.whole`).
    """

    source: Tensor
    grid: Grid
    score: Score = magnitude
    norms: Tensor | None = None
    held: Tensor | None = None

    @classmethod
    def whole(cls, source: Tensor, grid: Grid, score: Score, norms: Tensor | None) -> Scoring:
        """Return the scores of a criterion that has to see the whole matrix."""
        turned = grid.transposed and len(grid.shape) == 2
        matrix = source.view(grid.shape)
        scores = _scored(score, matrix.t() if turned else matrix, norms)
        return cls(source, grid, score, norms, (scores.t() if turned else scores).flatten())

    @property
    def plain(self) -> bool:
        """Whether a weight's score is its magnitude, for which there are compiled forms."""
        return self.score is magnitude

    def scores(self) -> Importances:
        """Return the scores to select by."""
        return magnitudes(self.source, None) if self.plain else Chunked(self._chunks, self.source.numel())

    def part(self, start: int, stop: int) -> Tensor:
        """Return the scores at positions ``start ... stop - 1``, float32."""
        if self.held is not None:
            return self.held[start:stop]
        factors = None if self.norms is None else self.grid.factors(self.norms, start, stop)
        return _scored(self.score, self.source[start:stop], factors)

    def unit_squares(self, axis: int) -> Tensor:
        """Return the sum of squared scores for each index of an axis, float64; of the inputs where there are norms."""
        matrix = self.source.view(self.grid.shape)
        if self.plain:
            return squares(matrix, axis)
        if self.score is activated:
            assert self.norms is not None
            return squares(matrix, axis) * self.norms.double().square()
        return squares(self.part(0, self.source.numel()).view(self.grid.shape), axis)

    def write_lines(self, keep: int, out: int, target: Tensor) -> Count:
        """Write the tensor with the `out` lowest of every ``keep + out`` consecutive weights of a line set to zero.

        Args:
            keep: how many stay of each; their sum with `out` divides the number of inputs.
            out: how many go; equal scores go in order of position.
            target: flat, contiguous, of the same length and device; may be the source itself.

        Returns:
            The number of exact zeros written.
        """
        filled: Count = 0
        held = () if self.held is None else (self.held,)
        for lines, written, *known in self.grid.lines(self.source, target, *held):
            scores = known[0] if known else _scored(self.score, lines, self.norms)
            gone = smallest(scores.reshape(len(lines), -1, keep + out), out).reshape(lines.shape)
            written.copy_(lines.masked_fill(gone, 0))
            filled += counted(written)
        return self.source.numel() - filled

    def _chunks(self) -> Iterator[tuple[int, Tensor]]:
        numel = self.source.numel()
        size = chunk_size(self.source)
        for start in range(0, numel, size):
            yield start, self.part(start, min(start + size, numel))


def smallest(scores: Tensor, count: int) -> Tensor:
    """Return which are the `count` smallest along the last dimension, exactly; equal ones go in order of position.

    Raises:
        WeightsError: if that falls among NaN somewhere.
    """
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    border = scores.kthvalue(count, dim=-1, keepdim=True).values
    if bool(border.isnan().any()):
        raise among_nan(scores.shape[-1], count)
    below = scores < border
    tied = scores == border
    left = count - below.sum(dim=-1, keepdim=True)
    return below | (tied & (tied.cumsum(dim=-1) <= left))


def squares(tensor: Tensor, axis: int) -> Tensor:
    """Return the sum of squares of a matrix for each index of an axis, float64, in a fixed order of blocks of rows."""
    rows = max(1, _lines(tensor) // tensor.shape[1])
    total = torch.zeros(tensor.shape[axis], dtype=torch.float64, device=tensor.device)
    for start in range(0, len(tensor), rows):
        block = tensor[start : start + rows].double().square()
        if axis == 0:
            total[start : start + rows] = block.sum(dim=1)
        else:
            total += block.sum(dim=0)
    return total


def _lines(tensor: Tensor) -> int:
    """Return how many elements of whole lines to take at a time, where a tensor is."""
    return LINES if tensor.is_cpu else DEVICE_CHUNK


def write_without(source: Tensor, shape: Sequence[int], axis: int, gone: Tensor, out: Tensor) -> Count:
    """Write a tensor with some indices of one axis set to zero.

    Args:
        source: flat, contiguous.
        shape: of the tensor.
        axis: of that shape.
        gone: indices along the axis, int64, on the tensor's device.
        out: flat, contiguous, of the same length and device; may be `source` itself.

    Returns:
        The number of exact zeros written.
    """
    out.copy_(source)
    out.view(*shape).index_fill_(axis, gone, 0)
    return out.numel() - counted(out)


def _scored(score: Score, weights: Tensor, factors: Tensor | None) -> Tensor:
    """Return a criterion's scores: zeros score 0 and no other weight does.

    Raises:
        WeightsError: if a guest's function gives no finite score of at least 0 for each weight.
    """
    weights = weights.float()
    if score is magnitude:
        return score(weights, factors)
    scores = score(weights, factors)
    if score is not activated:
        _check_scores(score, scores, weights)
    return scores.clamp_min(LEAST).masked_fill(weights == 0, 0.0)


def _check_scores(score: Score, scores: Tensor, weights: Tensor) -> None:
    called = f"pruning criterion {getattr(score, '__module__', '')}:{getattr(score, '__qualname__', score)}"
    if not isinstance(scores, Tensor) or scores.shape != weights.shape or scores.dtype != torch.float32:
        came = f"{scores.dtype} of shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else repr(scores)
        raise WeightsError(f"{called}: expected float32 scores of shape {tuple(weights.shape)}, got {came}")
    if scores.numel() and not (bool(torch.isfinite(scores).all()) and float(scores.min()) >= 0):
        raise WeightsError(f"{called}: expected finite scores of at least 0, got {scores.min()} to {scores.max()}")
