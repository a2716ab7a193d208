"""Pruning criteria: which weights matter least. `select` finds exactly that many, `write` sets them to zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from sae_moo.ops.measure import magnitudes
from sae_moo.ops.select import Scores

Criterion = Callable[[Tensor], Scores]


def magnitude(tensor: Tensor) -> Scores:
    """Score every weight of a flat tensor by |w| (Han et al. 2015)."""
    return magnitudes(tensor, None)


CRITERIA: Mapping[str, Criterion] = {"magnitude": magnitude}


def target_count(sparsity: float, numel: int) -> int:
    """Return how many of `numel` weights a sparsity in [0, 1) asks to be zero: the nearest whole number."""
    return round(sparsity * numel)
