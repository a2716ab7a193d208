"""What is to be written into one tensor, as data: so that many of a kind can be written at once.

Each job can be done by itself (`write`): compiled or by plain torch. A device that takes many at once (`device.engine`)
reads its fields instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from sae_moo.materialization.ops.deferred import CutRef, NumberRef, fetched, restored
from sae_moo.materialization.ops.operands import Operands
from sae_moo.materialization.ops.prune import Scoring, write_without
from sae_moo.materialization.ops.select import NOTHING, Cut
from sae_moo.materialization.ops.steps import Step
from sae_moo.materialization.ops.write import Count, write, write_pruned, write_restored

ScorePart = Callable[[int, int], Tensor]
"""Gives the scores at positions ``start ... stop - 1``."""


class Job(Protocol):
    """Something that can be written into a flat tensor of the right length, rounded once to its dtype."""

    def write(self, out: Tensor) -> Count:
        """Write it; return the number of exact zeros written."""


@dataclass(frozen=True, slots=True)
class Stepped:
    """A step of a merge; `blame` makes faults of a guest's step errors that say whose it is."""

    step: Step
    operands: Operands
    blame: Callable[[Callable[..., Count]], Callable[..., Count]] | None = None

    def write(self, out: Tensor) -> Count:
        """See `Job`."""
        work = write if self.blame is None else self.blame(write)
        return work(self.step, self.operands, out)


@dataclass(frozen=True, slots=True)
class Pruned:
    """A tensor without what is below a cut, the rest times a factor; a copy of it by default.

    Args:
        source: flat.
        cut: of the scores.
        scoring: the scores; None: magnitudes.
        factor: in float32.
    """

    source: Tensor
    cut: Cut | CutRef = NOTHING
    scoring: Scoring | None = None
    factor: float | NumberRef = 1.0

    def write(self, out: Tensor) -> Count:
        """See `Job`."""
        return write_pruned(self.source, restored(self.cut), out, self.scores, fetched(self.factor))

    @property
    def scores(self) -> ScorePart | None:
        """What gives the scores at a range of positions; None: they are the magnitudes."""
        return None if self.scoring is None or self.scoring.plain else self.scoring.part


@dataclass(frozen=True, slots=True)
class Lines:
    """A matrix without the `gone` lowest of every `keep + gone` neighbours in a line.

    Args:
        scoring: its scores; its source is the matrix.
        keep: how many stay of each.
        gone: how many go.
        rescale: whether the rest is multiplied so that the tensor keeps its L2 norm.
    """

    scoring: Scoring
    keep: int
    gone: int
    rescale: bool = False

    def write(self, out: Tensor) -> Count:
        """See `Job`."""
        if self.rescale:
            return write_restored(self.scoring.source, self._plainly, out)
        return self._plainly(out)

    def _plainly(self, out: Tensor) -> Count:
        return self.scoring.write_lines(self.keep, self.gone, out)


@dataclass(frozen=True, slots=True)
class Without:
    """A tensor without some indices of an axis.

    Args:
        source: flat.
        shape: of the tensor.
        axis: of that shape.
        gone: indices, int64.
    """

    source: Tensor
    shape: Sequence[int]
    axis: int
    gone: Tensor

    def write(self, out: Tensor) -> Count:
        """See `Job`."""
        return write_without(self.source, self.shape, self.axis, self.gone, out)
