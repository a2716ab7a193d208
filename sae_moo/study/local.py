"""Evaluations in this process, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sae_moo.objectives import Evaluation
from sae_moo.objectives.front import Front
from sae_moo.recipe import Recipe


class LocalExecutor:
    """Runs one evaluation at a time, when its result is waited for.

    Promises of an executor: every submitted job comes back from `wait` exactly once; `free` says whether another job
    may be submitted, `busy` whether any has not come back yet. A job is a recipe, or several of which the best is
    evaluated; weights never travel.

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
        self._job: tuple[int, Sequence[Recipe], Front[Evaluation] | None] | None = None

    @property
    def free(self) -> bool:
        """Whether a job can be submitted."""
        return self._job is None

    @property
    def busy(self) -> bool:
        """Whether a job is out."""
        return self._job is not None

    def submit(
        self,
        number: int,
        recipe: Recipe,
        rivals: Front[Evaluation] | None = None,
        alternatives: Sequence[Recipe] = (),
    ) -> None:
        """Take a job.

        Args:
            number: what to call it.
            recipe: what to evaluate.
            rivals: the front it races against, or None.
            alternatives: of these and the recipe the best is evaluated.
        """
        if self._job is not None:
            raise RuntimeError(f"job {self._job[0]} has not come back yet")
        self._job = (number, (recipe, *alternatives), rivals)

    def wait(self) -> tuple[int, Evaluation]:
        """Return the number and evaluation of a finished job."""
        if self._job is None:
            raise RuntimeError("no job is out")
        number, recipes, rivals = self._job
        if len(recipes) == 1:
            evaluation = self._evaluate(recipes[0], rivals)
        elif self._best_of is None:
            raise RuntimeError(f"job {number} has {len(recipes)} recipes, and nothing chooses among them here")
        else:
            evaluation = self._best_of(recipes, rivals)
        self._job = None
        return number, evaluation
