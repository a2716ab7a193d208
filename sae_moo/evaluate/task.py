"""The contract of a task: fixed requests to a model, and how its answers become one score per instance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sae_moo.objectives.scores import Split


@dataclass(frozen=True, slots=True)
class Metric:
    """A number about a model on a split.

    Args:
        value: the number.
        stderr: its standard error; None where none is known.
    """

    value: float
    stderr: float | None


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a model: how likely is this continuation of that context?

    Args:
        context: token ids, at least one.
        continuation: token ids, at least one.
        ends: token ids of which one must be the most likely next after the continuation for it to count as greedy;
            empty when nothing is asked of what follows.
    """

    context: tuple[int, ...]
    continuation: tuple[int, ...]
    ends: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt to a model, to be continued greedily.

    Args:
        context: token ids, at least one.
        tokens: most tokens to write, at least one.
        stops: texts of which the first to be written ends the answer, and is not part of it; none empty.
    """

    context: tuple[int, ...]
    tokens: int
    stops: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's answer to a request.

    Args:
        logprob: sum of the continuation tokens' natural log probabilities, finite, at most 0.
        tokens: number of continuation tokens.
        greedy: whether each continuation token is the most likely one, given all before it, and one of the request's
            `ends` the most likely after them. Greedy decoding then writes exactly the continuation and ends, and only
            then (by induction over the tokens): one teacher-forced pass tells what generation would do.
    """

    logprob: float
    tokens: int
    greedy: bool


Asked = Request | Prompt
"""What a task may ask of a model."""
Answered = Answer | str
"""What comes back: an `Answer` for a `Request`, the text written for a `Prompt`."""


class Task(Protocol):
    """One task, built once per process and used for every candidate.

    Promises: the requests of a split never change, nor does their order; `score` is a pure function of the answers; the
    test split shares no item with the search split; `fingerprint` changes when any item or rule of scoring does.
    """

    @property
    def name(self) -> str:
        """The task's name in the configuration."""

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of items, splits and scoring rule."""

    def instances(self, split: Split) -> int:
        """Return the number of scored items in a split."""

    def source(self, split: Split) -> str:
        """Return in a few words where the items of a split come from."""

    def requests(self, split: Split) -> Sequence[Asked]:
        """Return all requests of a split, in a fixed order."""

    def owners(self, split: Split) -> NDArray[np.int64]:
        """Return the number of the instance that each request belongs to; shape (requests,)."""

    def score(
        self, split: Split, answers: Sequence[Answered | None], instances: Sequence[int] | None = None
    ) -> NDArray[np.float64]:
        """Return one score in [0, 1] per instance.

        Args:
            split: which items.
            answers: the answers in the order of `requests`; those of other instances are not looked at.
            instances: numbers of the instances to score, in the order of the result; None: all.
        """

    def metrics(self, split: Split, answers: Sequence[Answered]) -> dict[str, Metric]:
        """Return further numbers about a split by name, for people to read; the search never sees them."""

    def samples(self, split: Split, answers: Sequence[Answered]) -> Iterator[dict[str, Any]]:
        """Yield what happened in each instance, as JSON can hold it, in the order of `score`."""
