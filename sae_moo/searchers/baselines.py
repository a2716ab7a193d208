"""One-shot merges: no search but over their own few settings, then pruned to each of several sparsities."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Annotated

import numpy as np

from sae_moo.objectives import Constraint, Evaluation, Objective, TaskMean, loss
from sae_moo.objectives.front import Accuracy
from sae_moo.recipe import BASE, Expert, Merge, Recipe
from sae_moo.recipe.section import Field, Section, section_of
from sae_moo.searchers.searcher import Assignment, Proposal, check_first
from sae_moo.searchers.space import Ground

Scale = Annotated[float, Field(gt=0.0, le=100.0)]
Density = Annotated[float, Field(gt=0.0, le=1.0)]
Level = Annotated[float, Field(gt=0.0, lt=1.0)]


class OneShot(Section):
    """``search.one_shot``: what one-shot merges are tuned over, and the sparsities that the best is pruned to."""

    scales: Annotated[list[Scale], Field(min_length=1)] = Field(
        default=[*(round(0.1 * i, 1) for i in range(2, 11)), 1.2],
        description="scales of the task vectors that are tried",
    )
    densities: Annotated[list[Density], Field(min_length=1)] = Field(
        default=[0.2, 0.5, 0.8], description="shares of each task vector that are tried where the method trims"
    )
    levels: list[Level] = Field(
        default=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], description="sparsities that the best merge is then pruned to"
    )


ONE_SHOT = OneShot()


class OneShotSearcher:
    """Tries every variant of a one-shot merge, then prunes the best to each level; see `Searcher` for the contract.

    What tuning a scale or a density costs is counted like any other evaluation. Which is best is said by the search
    split alone.

    Args:
        ground: experts, groups, dtype, pruning.
        objectives: what is maximized.
        constraints: limits.
        method: what is tried; see `variants`.
        settings: what it is tried with.
        weights: objective name -> how much it counts; None: the mean of those that are scored on tasks.
        seed: of what DARE drops.

    Raises:
        ValueError: for an unknown method, or SLERP of a single expert.
    """

    def __init__(
        self,
        ground: Ground,
        objectives: Sequence[Objective],
        constraints: Sequence[Constraint],
        *,
        method: str,
        settings: OneShot = ONE_SHOT,
        weights: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        self._ground = ground
        self._objectives = tuple(objectives)
        self._constraints = tuple(constraints)
        self._weights = Accuracy(objectives).weights if weights is None else dict(weights)
        self._settings = settings
        merges = variants(method, ground, self._settings, seed)
        if not merges:
            raise ValueError(f"method: {method} merges two experts, got {len(ground.experts)}")
        different = dict.fromkeys(ground.candidate(merge) for merge in merges)
        self._merges = [Proposal(merge, operator=method.replace("_", " ")) for merge in different]
        self._waiting = deque(self._merges)
        self._told: dict[Recipe, Evaluation] = {}

    def ask(self, n: int) -> Sequence[Proposal]:
        """Return up to `n` proposals; none while the merges are out, nor when everything was tried."""
        return [self._waiting.popleft() for _ in range(min(n, len(self._waiting)))]

    def tell(self, proposal: Proposal, evaluation: Evaluation) -> None:
        """Take in one evaluation; after the last merge the best one is pruned."""
        if proposal.generation > 0:
            return
        self._told[proposal.recipe] = evaluation
        if len(self._told) < len(self._merges):
            return
        evaluations = [self._told[each.recipe] for each in self._merges]
        check_first(evaluations)
        # what pruning is for does not choose what is pruned: all dense merges break a least sparsity alike
        limits = [constraint for constraint in self._constraints if isinstance(constraint.objective, TaskMean)]
        best = min(evaluations, key=lambda e: loss(self._objectives, self._weights, limits, e))
        ground = self._ground
        asked = {best.recipe}
        for level in self._settings.levels:
            pruned = ground.candidate(ground.pruned(best.recipe, np.full(ground.groups, level)))
            if pruned not in asked and level <= ground.most:
                asked.add(pruned)
                self._waiting.append(Proposal(pruned, (best.recipe,), "pruned", 1, {"level": level}))


def variants(method: str, ground: Ground, settings: OneShot, seed: int) -> list[Recipe]:
    """Return the merges that a one-shot method chooses from.

    One for ``weighted-average`` and ``rankmean``; a scale each for ``task-arithmetic``, a density and a scale each for
    ``ties`` and ``dare_ties``; every pair of experts halfway for ``slerp``, which takes two models; every expert and
    the base, unmerged, for ``single-experts``.

    Args:
        method: one of those above.
        ground: experts, groups, dtype.
        settings: scales and densities.
        seed: of what DARE drops.
    """
    experts = tuple(Expert(name) for name in ground.experts)
    equal = (1.0,) * len(experts)
    match method:
        case "weighted-average":
            return [Merge("linear", experts, equal)]
        case "rankmean":
            return [Merge("rankmean", experts, equal)]
        case "task-arithmetic":
            return [ground.task_arithmetic(np.full((ground.rows, len(experts)), scale)) for scale in settings.scales]
        case "ties" | "dare_ties":
            tried = product(settings.densities, settings.scales)
            drawn = (("seed", seed),) if method == "dare_ties" else ()
            return [Merge(method, experts, equal, (("density", d), ("scale", s), *drawn)) for d, s in tried]
        case "slerp":
            return [Merge("slerp", pair, (0.5, 0.5)) for pair in combinations(experts, 2)]
        case "single-experts":
            return [*experts, Expert(BASE)]
        case _:
            raise ValueError(f"method: expected a one-shot merge, got {method!r}")


def make(assignment: Assignment) -> OneShotSearcher:
    """Return the one-shot merge of the algorithm's name."""
    return OneShotSearcher(
        assignment.ground,
        assignment.objectives,
        assignment.constraints,
        method=assignment.algorithm,
        settings=section_of(assignment.settings, OneShot),
        weights=assignment.weights,
        seed=assignment.seed,
    )
