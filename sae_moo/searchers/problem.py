"""The merging problem as a pymoo Problem, usable in plain `pymoo.optimize.minimize` as well as in our own loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymoo.core.problem import Problem

from sae_moo.objectives import Constraint, Evaluation, Objective, minimized, violation_count, violations
from sae_moo.recipe import Recipe
from sae_moo.searchers.space import Space

EVALUATION = "evaluation"  # key of an individual's Evaluation in pymoo's population


class MergeProblem(Problem):  # type: ignore[misc]  # pymoo carries no types
    """Objectives and limits over merge recipes; pymoo minimizes, so objectives are negated inside.

    One inequality more than the limits say: only failed evaluations break it, so that a failure is infeasible and last
    rather than a model with score 0.

    Args:
        space: what a row of the population means.
        objectives: what to maximize, seen as shares (`Objective.share`).
        constraints: limits; feasible candidates keep all of them.
        evaluate: recipe -> evaluation. Under `pymoo.minimize` children are bred from recipes as they were asked for, so
            that group and global pruning cost two more passes per ancestor. Not needed by a loop that evaluates
            elsewhere (`NsgaSearcher`).
    """

    def __init__(
        self,
        space: Space,
        objectives: Sequence[Objective],
        constraints: Sequence[Constraint] = (),
        evaluate: Callable[[Recipe], Evaluation] | None = None,
    ) -> None:
        low, high = space.bounds
        super().__init__(
            n_var=space.n_var,
            n_obj=len(objectives),
            n_ieq_constr=violation_count(constraints),
            xl=low,
            xu=high,
            vtype=space.vtype,
        )
        self.space = space
        self.objectives = tuple(objectives)
        self.constraints = tuple(constraints)
        self.evaluator = evaluate

    def outcome(self, evaluation: Evaluation) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return F, shape (objectives,), and G, shape (limits + 1,), of one evaluation, both as pymoo wants them."""
        return minimized(self.objectives, evaluation), violations(self.constraints, evaluation)

    def _evaluate(self, x: Any, out: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        if self.evaluator is None:
            raise TypeError("MergeProblem: expected evaluate=, a function from recipe to evaluation, to evaluate with")
        evaluations = np.empty(len(x), dtype=object)
        evaluations[:] = [self.evaluator(self.space.decode(row)) for row in x]
        outcomes = [self.outcome(evaluation) for evaluation in evaluations]
        out["F"] = np.array([f for f, _ in outcomes])
        out["G"] = np.array([g for _, g in outcomes])
        out[EVALUATION] = evaluations
