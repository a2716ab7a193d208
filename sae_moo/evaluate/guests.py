"""Tasks of kinds that installed packages offer: bound to the package's version, and held to what a task promises."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_moo.errors import InputError, TaskError
from sae_moo.evaluate.kinds import TaskKind
from sae_moo.evaluate.task import Answered, Asked, Metric, Prompt, Request, Task
from sae_moo.objectives.scores import SPLITS, Split
from sae_moo.recipe.catalogue import blamed


class GuestTask:
    """A task of a guest's kind.

    What it asks is looked through once, here; its scores are checked where every task's are.

    Args:
        task: what the guest made.
        kind: the guest's row.

    Attributes:
        name: the task's.
        fingerprint: of the task's, the kind's name, and the package's name and version.

    Raises:
        InputError: if the task breaks a promise, naming the guest.
    """

    def __init__(self, task: Task, kind: TaskKind) -> None:
        assert kind.guest is not None
        self.name = task.name
        self._task = task
        self._kind = kind
        facts = [task.fingerprint, kind.name, kind.guest.distribution, kind.guest.version]
        self.fingerprint = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        with blamed(kind, f"task {self.name}", InputError):
            for split in SPLITS:
                fault = _fault(task, split)
                if fault is not None:
                    raise InputError(f"task {self.name}: {kind.name} of {kind.guest}: {split} split: {fault}")

    def instances(self, split: Split) -> int:
        """Return the number of items in a split."""
        return self._task.instances(split)

    def source(self, split: Split) -> str:
        """Return where the items of a split come from."""
        return self._task.source(split)

    def requests(self, split: Split) -> Sequence[Asked]:
        """Return all requests of a split."""
        return self._task.requests(split)

    def owners(self, split: Split) -> NDArray[np.int64]:
        """Return the instance of each request."""
        return self._task.owners(split)

    def score(
        self, split: Split, answers: Sequence[Answered | None], instances: Sequence[int] | None = None
    ) -> NDArray[np.float64]:
        """Return one score per instance."""
        return self._task.score(split, answers, instances)

    def metrics(self, split: Split, answers: Sequence[Answered]) -> dict[str, Metric]:
        """Return the task's further numbers.

        Raises:
            TaskError: naming the guest, if it fails.
        """
        with blamed(self._kind, f"task {self.name}", TaskError):
            return self._task.metrics(split, answers)

    def samples(self, split: Split, answers: Sequence[Answered]) -> Iterator[dict[str, Any]]:
        """Yield what happened in each instance.

        Raises:
            TaskError: naming the guest, if it fails.
        """
        with blamed(self._kind, f"task {self.name}", TaskError):
            yield from self._task.samples(split, answers)


def _fault(task: Task, split: Split) -> str | None:
    """Return which promise about the requests of a split is broken, None if none is."""
    requests, owners, count = task.requests(split), task.owners(split), task.instances(split)
    for i, request in enumerate(requests):
        if not isinstance(request, (Request, Prompt)):
            return f"request {i}: expected a Request or a Prompt, got {type(request).__name__}"
        if not request.context:
            return f"request {i}: expected a context of at least one token"
        if not (request.continuation if isinstance(request, Request) else request.tokens > 0):
            return f"request {i}: expected at least one token to be asked for"
    if owners.shape != (len(requests),):
        return f"expected an owner for each of {len(requests)} requests, got shape {owners.shape}"
    if set(owners.tolist()) != set(range(count)):
        return f"expected requests for each of {count} instances, got some for {len(set(owners.tolist()))}"
    return None
