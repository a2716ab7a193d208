"""Anchor items: a fixed part of a search split that stands for all of it, chosen by what the experts answer.

Items that the same experts solve tell the same about a merge of them. Each task's items are put in order of how many
experts solve them, and by which; every n-th of that order is taken. This is a stratified sample of the same share from
every pattern of answers, whose plain mean needs no weights (Cochran 1977, ch. 5 and 8), close to the clusters of
Polo et al. 2024 (tinyBenchmarks, arXiv 2402.14992); there is no model of abilities in it that could be wrong.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_moo.evaluate.task import Answered, Asked, Metric, Task
from sae_moo.objectives.scores import SPLITS, Split

Array = NDArray[np.float64]


def anchors(scores: Array, count: int) -> NDArray[np.int64]:
    """Choose the items that stand for all.

    Args:
        scores: of the experts, shape (experts, items), in [0, 1].
        count: how many, from 1 to the number of items.

    Returns:
        Numbers of the items, ascending, shape (count,).

    Raises:
        ValueError: for another count.
    """
    items = scores.shape[1]
    if not 1 <= count <= items:
        raise ValueError(f"count: expected 1 to {items}, got {count}")
    order = np.lexsort((*scores, scores.sum(axis=0)))  # by the sum first, then by who; the items' own order last
    every = items / count
    chosen: NDArray[np.int64] = np.sort(order[((np.arange(count) + 0.5) * every).astype(np.int64)])
    return chosen


class AnchoredTask:
    """A task whose search split is a part of another's; the test split stays whole.

    Args:
        task: the other.
        chosen: numbers of the instances of its search split, ascending.

    Attributes:
        name: the other's.
        fingerprint: of the other's and the choice.
    """

    def __init__(self, task: Task, chosen: Sequence[int]) -> None:
        self.name = task.name
        self._task = task
        self._instances: dict[Split, list[int]] = {
            "search": [int(i) for i in chosen],
            "test": list(range(task.instances("test"))),
        }
        places = {split: np.flatnonzero(np.isin(task.owners(split), self._instances[split])) for split in SPLITS}
        self._places = {split: found.tolist() for split, found in places.items()}
        self._asked = {split: [task.requests(split)[i] for i in self._places[split]] for split in SPLITS}
        facts = [task.fingerprint, self._instances["search"]]
        self.fingerprint = hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def instances(self, split: Split) -> int:
        """Return the number of items."""
        return len(self._instances[split])

    def source(self, split: Split) -> str:
        """Return where the items come from, and how many of them stand for all."""
        source, all_of_them = self._task.source(split), self._task.instances(split)
        return source if split == "test" else f"{self.instances(split)} anchors for {all_of_them} of {source}"

    def requests(self, split: Split) -> Sequence[Asked]:
        """Return the requests of the items."""
        return self._asked[split]

    def owners(self, split: Split) -> NDArray[np.int64]:
        """Return the item of each request."""
        owners = self._task.owners(split)[self._places[split]]
        return np.searchsorted(self._instances[split], owners).astype(np.int64)

    def score(self, split: Split, answers: Sequence[Answered | None], instances: Sequence[int] | None = None) -> Array:
        """Return one score in [0, 1] per item."""
        own = range(self.instances(split)) if instances is None else instances
        return self._task.score(split, self._spread(split, answers), [self._instances[split][i] for i in own])

    def metrics(self, split: Split, answers: Sequence[Answered]) -> dict[str, Metric]:
        """Return the other's further numbers about the test split; none about anchors, which are no fair sample."""
        return self._task.metrics(split, answers) if split == "test" else {}

    def samples(self, split: Split, answers: Sequence[Answered]) -> Iterator[dict[str, Any]]:
        """Yield what happened in each item of the test split; of anchors, their numbers among all."""
        if split == "test":
            yield from self._task.samples(split, answers)
            return
        for number in self._instances[split]:
            yield {"anchor": number}

    def _spread(self, split: Split, answers: Sequence[Answered | None]) -> list[Answered | None]:
        """Return the answers in the places of the other's requests."""
        found: list[Answered | None] = [None] * len(self._task.requests(split))
        for place, answer in zip(self._places[split], answers, strict=True):
            found[place] = answer
        return found


def anchored(tasks: Sequence[Task], chosen: Mapping[str, Sequence[int]]) -> tuple[Task, ...]:
    """Return tasks of which those named are asked the chosen instances of their search split only."""
    return tuple(AnchoredTask(task, chosen[task.name]) if task.name in chosen else task for task in tasks)
