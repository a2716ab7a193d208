"""What a merge method asks about whole tensors before it knows its step.

A method that needs such numbers is a generator: it yields questions and is sent their answers. So whoever runs it may
put the questions of many tensors together: on a GPU that is one launch, and one transfer of the answers, for all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_moo.materialization.ops.deferred import CutRef
from sae_moo.materialization.ops.measure import WHOLE, gram_matrix, l1_norm, magnitudes, squares_above, varying
from sae_moo.materialization.ops.operands import Operands, Place
from sae_moo.materialization.ops.select import NOTHING, Chunked, Cut, compact, lowest
from sae_moo.materialization.ops.steps import Step, Thinning, importance

DIGITS = 9
"""Significant digits of sums, so that their order, which depends on device and threads, changes a step only where a sum
falls on the border between two such numbers."""


class Question(Protocol):
    """Something about one tensor of all inputs of a merge."""

    def key(self, x: Operands, place: Place) -> Hashable | None:
        """Return what its answer is remembered by; None where it depends on the candidate."""

    def answer(self, x: Operands, place: Place) -> Any:
        """Return the answer, computed here and now."""


Asking = Generator[Question, Any, Step]
"""A merge method at work on one tensor."""
Method = Callable[[Operands, Sequence[float], Place], "Step | Asking"]


def asked(question: Question, x: Operands, place: Place) -> Any:
    """Return the answer to a question; about experts it is computed once."""
    key = question.key(x, place)
    if key is None:
        return question.answer(x, place)
    return place.remembered.get(key, lambda: question.answer(x, place))


def step_of(method: Method, x: Operands, weights: Sequence[float], place: Place) -> Step:
    """Return a method's step, its questions answered as they come."""
    made = method(x, weights, place)
    if not isinstance(made, Generator):
        return made
    reply: Any = None
    while True:
        try:
            reply = asked(made.send(reply), x, place)
        except StopIteration as finished:
            step: Step = finished.value
            return step


def rounded(value: float) -> float:
    """Return a sum to `DIGITS` digits."""
    return float(f"{value:.{DIGITS}e}")


def _of_experts(x: Operands) -> bool:
    return all(name is not None for name in x.names)


@dataclass(frozen=True, slots=True)
class Gram:
    """The dot products of the inputs, or of their differences from the base; float64, shape (K, K), rounded."""

    relative: bool

    def key(self, x: Operands, place: Place) -> Hashable | None:
        """See `Question`."""
        return ("gram", place.tensor, self.relative, x.names) if _of_experts(x) else None

    def answer(self, x: Operands, place: Place) -> NDArray[np.float64]:  # noqa: ARG002
        """See `Question`."""
        return self.read(gram_matrix(x.inputs, x.base if self.relative else None))

    def read(self, exact: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return sums as the answer has them."""
        return np.array([[rounded(value) for value in row] for row in exact])


@dataclass(frozen=True, slots=True)
class Trim:
    """The cut below which `count` magnitudes of input i's task vector lie."""

    i: int
    count: int

    def key(self, x: Operands, place: Place) -> Hashable | None:
        """See `Question`."""
        name = x.names[self.i]
        return None if name is None else ("cut", place.tensor, name, self.count)

    def answer(self, x: Operands, place: Place) -> Cut:
        """See `Question`."""
        scores = magnitudes(x.inputs[self.i], x.base)
        name = x.names[self.i]
        if name is None:
            return lowest(scores, self.count)
        high = place.remembered.get(("high", place.tensor, name), lambda: compact(scores.high()))
        return lowest(scores, self.count, high.whole())


@dataclass(frozen=True, slots=True)
class Growth:
    """The L1 norm of input i's task vector over that of what a thinning leaves of it; 1 where one of them vanishes."""

    i: int
    thinning: Thinning

    def key(self, x: Operands, place: Place) -> Hashable | None:  # noqa: ARG002
        """See `Question`."""
        return None

    def answer(self, x: Operands, place: Place) -> float:
        """See `Question`."""
        base = x.base
        assert base is not None

        def whole() -> float:
            return l1_norm(x.inputs[self.i], base, WHOLE, x.row)

        name = x.names[self.i]
        before = place.remembered.get(("l1", place.tensor, name), whole) if name is not None else whole()
        after = l1_norm(x.inputs[self.i], base, self.thinning, x.row)
        return rounded(before / after) if before > 0 and after > 0 else 1.0


@dataclass(frozen=True, slots=True)
class Selection:
    """What SCE selects: the cut of variances over which a share of those that are not 0 lie, and each input's squares.

    The answer is the cut and, for each input, the sum of squares of what is not below it, rounded.
    """

    share: float

    def key(self, x: Operands, place: Place) -> Hashable | None:
        """See `Question`."""
        return ("selection", place.tensor, x.names, self.share) if _of_experts(x) else None

    def answer(self, x: Operands, place: Place) -> tuple[Cut | CutRef, tuple[float, ...]]:  # noqa: ARG002
        """See `Question`."""
        assert x.base is not None
        cut = NOTHING
        if self.share < 1:
            scores, number = varying(x.inputs, x.base)
            cut = lowest(scores, x.numel - int(number * self.share))
        return self.read(cut, squares_above(x.inputs, x.base, cut))

    def read(
        self, cut: Cut | CutRef, squares: Sequence[float] | NDArray[np.float64]
    ) -> tuple[Cut | CutRef, tuple[float, ...]]:
        """Return cut and sums as the answer has them."""
        return cut, tuple(rounded(float(square)) for square in squares)


@dataclass(frozen=True, slots=True)
class Overlaps:
    """For each input, how many elements that it changes by more than epsilon others change too, and none does."""

    epsilon: float

    def key(self, x: Operands, place: Place) -> Hashable | None:
        """See `Question`."""
        return ("overlaps", place.tensor, x.names, self.epsilon) if _of_experts(x) else None

    def answer(self, x: Operands, place: Place) -> tuple[tuple[int, int], ...]:  # noqa: ARG002
        """See `Question`."""
        return tuple((int(both), int(own)) for both, own in self.measured(x).tolist())

    def measured(self, x: Operands) -> Tensor:
        """Return the counts on the operands' device, int64, shape (inputs, 2)."""
        total = torch.zeros(len(x.inputs), 2, dtype=torch.int64, device=x.inputs[0].device)
        for _, inputs, base in x.chunks():
            assert base is not None
            changed = [(each - base).abs() > self.epsilon for each in inputs]
            count = functools.reduce(torch.add, [each.to(torch.int32) for each in changed])
            total += torch.stack(
                [torch.stack([(each & (count > 1)).sum(), (each & (count == 1)).sum()]) for each in changed]
            )
        return total


@dataclass(frozen=True, slots=True)
class Fences:
    """The upper fence of importances (`steps.importance`): their median and 1.5 times the distance of the quartiles."""

    def key(self, x: Operands, place: Place) -> Hashable | None:
        """See `Question`."""
        return ("fences", place.tensor, x.names) if _of_experts(x) else None

    def answer(self, x: Operands, place: Place) -> float:  # noqa: ARG002
        """See `Question`."""

        def importances() -> Iterator[tuple[int, Tensor]]:
            for start, inputs, base in x.chunks(x.row):
                assert base is not None
                yield start, importance(inputs[0], base, x.row)

        scores = Chunked(importances, x.numel)
        high = scores.high()
        return self.read([lowest(scores, count, high).value for count in self.counts(x.numel)])

    def counts(self, numel: int) -> list[int]:
        """Return the ranks of the quartiles, from 1."""
        return [int(q * (numel - 1)) + 1 for q in (0.25, 0.5, 0.75)]

    def read(self, quartiles: Sequence[float]) -> float:
        """Return the fence of three quartiles."""
        q1, median, q3 = quartiles
        return median + 1.5 * (q3 - q1)
