"""The function: it is imported when a recipe that uses the method is merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sae_moo.materialization.ops.operands import Operands, Place


@dataclass(frozen=True, slots=True)
class Median:
    """``base + scale * (median - base)``; of an even number the mean of the two in the middle.

    Args:
        scale: see the row.
        align: chunks may begin anywhere, since each element is merged by itself.
    """

    scale: float
    align: int = 1

    def chunk(self, inputs: Sequence[Tensor], base: Tensor | None, start: int) -> Tensor:  # noqa: ARG002
        """Return one part of the merged tensor, float32, from the same part of the inputs and the base."""
        assert base is not None  # the row says that it is read
        ordered = torch.stack(tuple(inputs)).sort(dim=0).values
        low, high = ordered[(len(inputs) - 1) // 2], ordered[len(inputs) // 2]
        median = low + (high - low) / 2
        return median if self.scale == 1.0 else base + (median - base) * self.scale


def median(operands: Operands, weights: Sequence[float], place: Place) -> Median:  # noqa: ARG001
    """Return what merges one tensor: here nothing has to be known of it beforehand."""
    return Median(place.number("scale"))
