"""Per-tensor numbers that stay on a device: a table there, and references to what stands in it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sae_moo.materialization.ops.select import NOTHING, Cut


@dataclass(slots=True, eq=False)
class Numbers:
    """Numbers found on a device together.

    Args:
        values: there; int64 of shape (jobs, 2) for cuts (the bits of a value, a position), float64 of shape (jobs,)
            for numbers.
        host: the same here, once they were fetched.
    """

    values: Tensor
    host: NDArray[np.int64] | NDArray[np.float64] | None = field(default=None)


@dataclass(frozen=True, slots=True)
class CutRef:
    """A cut in a table of them."""

    table: Numbers
    index: int

    @property
    def settled(self) -> Cut | None:
        """The cut, if it was fetched."""
        if self.table.host is None:
            return None
        bits, position = (int(value) for value in self.table.host[self.index])
        return NOTHING if not bits and not position else Cut(value_of(bits), position)


@dataclass(frozen=True, slots=True)
class NumberRef:
    """A number in a table of them."""

    table: Numbers
    index: int


def value_of(bits: int) -> float:
    """Return the float32 of some bits."""
    return float(np.array([bits], dtype=np.uint32).view(np.float32)[0])


def bits_of(values: list[float]) -> NDArray[np.int64]:
    """Return the bits of numbers as float32, int64."""
    return np.array(values, dtype=np.float32).view(np.int32).astype(np.int64)


def restored(cut: Cut | CutRef) -> Cut:
    """Return a cut as numbers of the host; waits for the device if it was not fetched yet."""
    if isinstance(cut, Cut):
        return cut
    if cut.table.host is None:
        cut.table.host = cut.table.values.cpu().numpy()
    settled = cut.settled
    assert settled is not None
    return settled


def fetched(number: float | NumberRef) -> float:
    """Return a number of the host; waits for the device if it was not fetched yet."""
    if not isinstance(number, NumberRef):
        return number
    if number.table.host is None:
        number.table.host = number.table.values.cpu().numpy()
    return float(number.table.host[number.index])
