"""Evaluations in this process, one at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from sae_moo.objectives import Evaluation
from sae_moo.objectives.front import Front
from sae_moo.recipe import Recipe
from sae_moo.study.executor import Answer, Job


class LocalExecutor:
    """Runs one evaluation at a time, when its result is waited for; see `Executor`.

    Args:
        evaluate: recipe, and the front it races against (None where it does not) -> evaluation.
        best_of: recipes, and the front -> evaluation of the best of them; None where there never are several.
    """

    def __init__(
        self,
        evaluate: Callable[[Recipe, Front[Evaluation] | None], Evaluation],
        best_of: Callable[[Sequence[Recipe], Front[Evaluation] | None], Evaluation] | None = None,
    ) -> None:
        self._evaluate = evaluate
        self._best_of = best_of
        self._job: Job | None = None

    @property
    def free(self) -> bool:
        """Whether a job can be submitted."""
        return self._job is None

    @property
    def busy(self) -> bool:
        """Whether a job is out."""
        return self._job is not None

    def submit(self, job: Job) -> None:
        """Take a job.

        Raises:
            RuntimeError: if another one has not come back yet.
        """
        if self._job is not None:
            raise RuntimeError(f"job {self._job.number} has not come back yet")
        self._job = job

    def wait(self) -> Answer:
        """Return what came of the job.

        Raises:
            RuntimeError: if no job is out, or it has several recipes and nothing chooses among them.
        """
        if self._job is None:
            raise RuntimeError("no job is out")
        job, began = self._job, time.time()
        evaluation = evaluated(job, self._evaluate, self._best_of)
        self._job = None
        return Answer(job.number, evaluation, began)

    def close(self) -> None:
        """Give up the job that is out."""
        self._job = None


def evaluated(
    job: Job,
    evaluate: Callable[[Recipe, Front[Evaluation] | None], Evaluation],
    best_of: Callable[[Sequence[Recipe], Front[Evaluation] | None], Evaluation] | None,
) -> Evaluation:
    """Evaluate a job in this process; see `LocalExecutor`.

    Raises:
        RuntimeError: if it has several recipes and nothing chooses among them.
    """
    if len(job.recipes) == 1:
        return evaluate(job.recipes[0], job.rivals)
    if best_of is None:
        raise RuntimeError(f"job {job.number} has {len(job.recipes)} recipes, and nothing chooses among them here")
    return best_of(job.recipes, job.rivals)
