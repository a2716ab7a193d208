"""Second-order reconstruction: what is left of a matrix after pruning is moved so that its outputs change least.

With the second moments H of what a layer reads, the outputs of weights W' differ from those of W by the squared error
tr (W - W') H (W - W')^T. Where some columns are settled, the others have their optimum in closed form, and of a column
that is next its optimum alone is needed: SparseGPT's sweep (Frantar & Alistarh 2023, arXiv 2301.00774, algorithm 1).
Where that keeps the Cholesky factor of H^-1 and moves all later columns after each one, this one keeps H = L L^T itself
and goes from the last column to the first: with E = W - W' of the columns behind j that are settled,

    w_j = W_j + (sum_{i>j} L_ij E_i) / L_jj,

which is the same optimum (the first step of a back-substitution) for a third of the factorization. L_jj^2 is what an
error of column j costs once the columns before it make up for what they can, algorithm 1's 1 / [H^-1]_jj.
Matrices are inputs x outputs here, so that a column of weights is contiguous.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from sae_moo.errors import WeightsError
from sae_moo.materialization.ops.prune import smallest

BLOCK = 128
"""Columns whose zeros are chosen together, as in algorithm 1."""
CHUNK = 2048
"""Rows of a triangle of second moments that are added to at once: above them nothing is computed."""
HARDER = 10.0
"""How many times more is added to second moments that are not positive definite in this arithmetic, until they are."""


class Choice(Protocol):
    """Which weights of a matrix go: asked once for every block of columns, from the last to the first."""

    @property
    def step(self) -> int:
        """How many columns are chosen together."""

    def zeros(self, start: int, stop: int, costs: Tensor) -> Tensor:
        """Return which of columns ``start ... stop - 1`` go.

        Args:
            start: first column.
            stop: behind the last one.
            costs: what the error would be of setting each to zero, shape (columns, outputs).

        Returns:
            Truth values of that shape.
        """


def add_moments(moments: Tensor, features: Tensor) -> None:
    """Add ``x x^T`` of every token to the lower triangle of second moments.

    Args:
        moments: float32, shape (inputs, inputs); changed. Above the diagonal there is nothing to be read.
        features: shape (tokens, inputs), of any dtype.
    """
    features = features.float()
    for start in range(0, len(moments), CHUNK):
        stop = min(start + CHUNK, len(moments))
        moments[start:stop, :stop].addmm_(features[:, start:stop].t(), features[:, :stop])


def factorized(moments: Tensor, damping: float) -> Tensor | None:
    """Return the lower Cholesky factor of ``H + damping * mean(diag H) * I``, float32; factorized in float64.

    Args:
        moments: H, of which the lower triangle is read, shape (inputs, inputs).
        damping: above 0.

    Returns:
        Shape (inputs, inputs); None if nothing was ever read but zeros.

    Raises:
        WeightsError: if the moments are not finite.
    """
    mean = float(moments.diagonal().double().mean())
    if not torch.isfinite(moments.diagonal()).all():
        raise WeightsError("repair: the activations of the merged model are not finite")
    if mean == 0.0:
        return None
    added = damping * mean
    while True:
        whole = moments.double()
        whole.diagonal().add_(added)
        factor: Tensor
        factor, failed = torch.linalg.cholesky_ex(whole)
        if not int(failed):
            return factor.float()
        added *= HARDER


def swept(weights: Tensor, factor: Tensor, choice: Choice, settled: int = 0) -> Tensor:
    """Return weights with zeros where a choice puts them and the others moved to make up for these.

    Args:
        weights: float32, shape (inputs, outputs).
        factor: lower Cholesky factor of the second moments of the inputs, in the same order.
        choice: which weights go; not asked of the columns that are settled.
        settled: how many columns, the last ones, are zero as a whole.

    Returns:
        A new tensor of that shape.
    """
    inputs = len(weights)
    left = inputs - settled
    errors = weights.clone()  # of settled columns these are the weights themselves
    result = torch.zeros_like(weights)
    step = choice.step
    for stop in range(left, 0, -(max(BLOCK // step, 1) * step)):
        start = max(0, stop - max(BLOCK // step, 1) * step)
        pushed = factor[stop:, start:stop].t() @ errors[stop:]  # from the columns behind the block
        for last in range(stop, start, -step):
            first = max(start, last - step)
            gone = choice.zeros(first, last, _costs(weights, factor, pushed[first - start : last - start], first, last))
            for j in range(last - 1, first - 1, -1):
                moved = weights[j] + (pushed[j - start] + factor[j + 1 : last, j] @ errors[j + 1 : last]) / factor[j, j]
                result[j] = moved.masked_fill(gone[j - first], 0)
                errors[j] = weights[j] - result[j]
            if first > start:
                pushed[: first - start] += factor[first:last, start:first].t() @ errors[first:last]
    return result


def _costs(weights: Tensor, factor: Tensor, pushed: Tensor, first: int, last: int) -> Tensor:
    """Return the errors of setting each weight of some columns to zero, all as they are with those behind settled."""
    own = factor[first:last, first:last]
    now = weights[first:last] + torch.linalg.solve_triangular(own.t(), pushed, upper=True)
    costs: Tensor = (now * own.diagonal()[:, None]).square()
    return costs


class Fixed:
    """Zeros that are known before.

    Args:
        zeros: truth values, shape (inputs, outputs).
    """

    step = BLOCK

    def __init__(self, zeros: Tensor) -> None:
        self._zeros = zeros

    def zeros(self, start: int, stop: int, costs: Tensor) -> Tensor:  # noqa: ARG002  # a Choice
        """Return them."""
        return self._zeros[start:stop]


class Cheapest:
    """The cheapest weights of every block of columns, as many in each block, as nearly as whole numbers allow.

    Args:
        count: how many go: of the whole matrix, or of each output, shape (outputs,).
        inputs: number of columns.
    """

    step = BLOCK

    def __init__(self, count: int | Tensor, inputs: int) -> None:
        self._count = count
        self._inputs = inputs

    def zeros(self, start: int, stop: int, costs: Tensor) -> Tensor:
        """Return the cheapest; of equal ones the first."""
        many = self._until(stop) - self._until(start)
        if isinstance(many, int):
            return smallest(costs.flatten(), many).view(costs.shape)
        ranks = costs.argsort(dim=0, stable=True).argsort(dim=0, stable=True)
        return ranks < many

    def _until(self, column: int) -> int | Tensor:
        return (self._count * column + self._inputs // 2) // self._inputs


class CheapestOf:
    """The cheapest of every few consecutive columns, so many in each output.

    Args:
        step: how many columns compete.
        count: how many of them go.
    """

    def __init__(self, step: int, count: int) -> None:
        self.step = step
        self._count = count

    def zeros(self, start: int, stop: int, costs: Tensor) -> Tensor:  # noqa: ARG002  # a Choice
        """Return the cheapest; of equal ones the first."""
        return smallest(costs.t(), self._count).t()
