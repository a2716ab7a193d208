"""Who does the arithmetic of a plan: one tensor at a time, or a band of them at once.

A plan hands over lists: what to write, what cuts to find, what merge methods ask. `OneByOne` answers each in turn, on
any device, compiled where there is a compiled form. `device.engine` answers all of a list with a few launches and keeps
what it finds on the device until `settle`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from sae_moo.experts.memory import Remembered
from sae_moo.materialization.ops.deferred import CutRef, NumberRef, restored
from sae_moo.materialization.ops.jobs import Job, Pruned
from sae_moo.materialization.ops.operands import Operands, Place
from sae_moo.materialization.ops.prune import Scoring
from sae_moo.materialization.ops.questions import Question, asked
from sae_moo.materialization.ops.select import Cut, compact, lowest
from sae_moo.materialization.ops.write import Count, restoring


class _Pending:
    """The answer that is known only after the engine has settled."""


PENDING = _Pending()


@dataclass(frozen=True, slots=True)
class Sought:
    """The cut below which so many scores of a tensor lie.

    Args:
        scoring: the scores.
        count: how many.
        key: what the scores are remembered by; None where they depend on the candidate.
        known: the cut, where it is known already.
    """

    scoring: Scoring
    count: int
    key: Hashable | None
    known: Cut | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A merge method's question about a tensor; `by` is who asks about what: the same whenever it asks again."""

    question: Question
    operands: Operands
    place: Place
    by: Hashable


@dataclass(slots=True)
class Zeros:
    """How many exact zeros were written into each of some tensors; `counts` is there once the engine has settled."""

    counts: Sequence[int] = field(default=())


class Engine(Protocol):
    """Does the arithmetic of a plan on one device."""

    batched: bool
    """Whether many tensors are worked on at once."""

    def write(self, work: Sequence[tuple[Job, Tensor]], *, counted: bool = True) -> Zeros:
        """Write each job into its tensor: flat, contiguous, on the device.

        Args:
            work: jobs and tensors.
            counted: whether somebody will ask how many zeros were written.
        """

    def cuts(self, sought: Sequence[Sought]) -> Sequence[Cut | CutRef]:
        """Return the cuts sought.

        Raises:
            WeightsError: if one falls among scores that are NaN; by some engines only when they settle.
        """

    def factors(self, pruned: Sequence[Pruned]) -> Sequence[float | NumberRef]:
        """Return by what to multiply what each pruning leaves, so that the tensor keeps its L2 norm."""

    def answers(self, questions: Sequence[Asked]) -> Sequence[Any]:
        """Return the answers, `PENDING` where they are there only after `settle`: then ask again."""

    def unit_squares(self, scorings: Sequence[tuple[Scoring, int]]) -> Sequence[Tensor]:
        """Return the sums of squared scores for each index of an axis; see `Scoring.unit_squares`."""

    def settle(self) -> None:
        """Wait for all that was found."""


class OneByOne:
    """Works on one tensor after another: by compiled loops on the CPU, by plain torch elsewhere.

    Args:
        remembered: what is known of experts' tensors.
    """

    batched = False

    def __init__(self, remembered: Remembered) -> None:
        self._remembered = remembered
        self._counted: list[tuple[Zeros, list[Count]]] = []

    def write(self, work: Sequence[tuple[Job, Tensor]], *, counted: bool = True) -> Zeros:
        """See `Engine`."""
        zeros = Zeros()
        found = [job.write(out) for job, out in work]
        if counted:
            self._counted.append((zeros, found))
        return zeros

    def cuts(self, sought: Sequence[Sought]) -> list[Cut]:
        """See `Engine`."""
        return [self._cut(each) if each.known is None else each.known for each in sought]

    def factors(self, pruned: Sequence[Pruned]) -> list[float]:
        """See `Engine`."""
        return [restoring(each.source, restored(each.cut), each.scores) for each in pruned]

    def answers(self, questions: Sequence[Asked]) -> list[Any]:
        """See `Engine`."""
        return [asked(each.question, each.operands, each.place) for each in questions]

    def unit_squares(self, scorings: Sequence[tuple[Scoring, int]]) -> list[Tensor]:
        """See `Engine`."""
        return [scoring.unit_squares(axis) for scoring, axis in scorings]

    def settle(self) -> None:
        """See `Engine`."""
        for zeros, found in self._counted:
            zeros.counts = [int(count) for count in found]
        self._counted = []

    def _cut(self, sought: Sought) -> Cut:
        scores, count, key = sought.scoring.scores(), sought.count, sought.key
        if key is None:
            return lowest(scores, count)
        high = self._remembered.get(("scores", key), lambda: compact(scores.high())) if count else None
        found: Cut | CutRef = self._remembered.get(
            ("cut", key, count), lambda: lowest(scores, count, None if high is None else high.whole())
        )
        return restored(found)
