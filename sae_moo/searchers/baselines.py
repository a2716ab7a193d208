"""One-shot merges: no search but over their own few settings, then pruned to each of several sparsities.

Each has a function here, which says what it tries; `one_shot` tries whatever merge method the configuration names.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Annotated

import numpy as np

from sae_moo.objectives import Constraint, Evaluation, Objective, TaskMean, loss
from sae_moo.objectives.front import Accuracy
from sae_moo.recipe import BASE, Expert, Merge, Recipe
from sae_moo.recipe.methods import METHODS, SEED
from sae_moo.recipe.rows import Scalar
from sae_moo.recipe.section import Field, Section, field_validator, section_of
from sae_moo.searchers.ground import Ground
from sae_moo.searchers.searcher import Assignment, Proposal, check_first

Scale = Annotated[float, Field(gt=0.0, le=100.0)]
Density = Annotated[float, Field(gt=0.0, le=1.0)]
Level = Annotated[float, Field(gt=0.0, lt=1.0)]


class Pruned(Section):
    """What every one-shot merge reads: the sparsities that the best is pruned to."""

    levels: list[Level] = Field(
        default=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], description="sparsities that the best merge is then pruned to"
    )


class OneShot(Pruned):
    """``search.one_shot``: what one-shot merges are tuned over, and the sparsities that the best is pruned to."""

    scales: Annotated[list[Scale], Field(min_length=1)] = Field(
        default=[*(round(0.1 * i, 1) for i in range(2, 11)), 1.2],
        description="scales of the task vectors that are tried",
    )
    densities: Annotated[list[Density], Field(min_length=1)] = Field(
        default=[0.2, 0.5, 0.8], description="shares of each task vector that are tried where the method trims"
    )


class AnyMethod(Pruned):
    """``search.merge``: the merge method of ``algorithm: one-shot``, and the settings of it that are tried."""

    method: str = Field(
        default="linear",
        description="the merge method, or `package/name` of an installed package; all weights are equal",
    )
    settings: dict[str, Annotated[list[Scalar], Field(min_length=1)]] = Field(
        default={},
        description="setting of the method -> the values that are tried, each with each of the other settings; those "
        "that are left out keep their defaults, a seed is the search's",
    )

    @field_validator("method")
    @classmethod
    def _known(cls, method: str) -> str:
        return METHODS.find(method).name


class OneShotSearcher:
    """Tries every variant of a one-shot merge, then prunes the best to each level; see `Searcher` for the contract.

    What tuning a scale or a density costs is counted like any other evaluation. Which is best is said by the search
    split alone.

    Args:
        ground: experts, groups, dtype, pruning.
        objectives: what is maximized.
        constraints: limits.
        merges: what is tried, with what made each in words, at least one; repeated ones are tried once.
        levels: sparsities that the best is pruned to.
        weights: objective name -> how much it counts; None: the mean of those that are scored on tasks.

    Raises:
        ValueError: if there is nothing to try.
    """

    def __init__(
        self,
        ground: Ground,
        objectives: Sequence[Objective],
        constraints: Sequence[Constraint],
        *,
        merges: Sequence[tuple[str, Recipe]],
        levels: Sequence[float] = Pruned().levels,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self._ground = ground
        self._objectives = tuple(objectives)
        self._constraints = tuple(constraints)
        self._weights = Accuracy(objectives).weights if weights is None else dict(weights)
        self._levels = tuple(levels)
        if not merges:
            raise ValueError("expected at least one merge to try")
        different: dict[Recipe, str] = {}
        for operator, merge in merges:
            different.setdefault(ground.candidate(merge), operator)
        self._merges = [Proposal(merge, operator=operator) for merge, operator in different.items()]
        self._waiting = deque(self._merges)
        self._told: dict[Recipe, Evaluation] = {}
        self._earlier: set[Recipe] = set()

    def inherit(self, history: Sequence[Evaluation]) -> None:
        """Take in evaluations of an earlier study before anything is asked for; see `Inheriting`."""
        tried = {proposal.recipe for proposal in self._merges}
        self._earlier = {each.recipe for each in history if each.ok}
        self._told |= {each.recipe: each for each in history if each.ok and each.recipe in tried}
        self._waiting = deque(proposal for proposal in self._waiting if proposal.recipe not in self._told)
        if not self._waiting:
            self._prune()

    def ask(self, n: int) -> Sequence[Proposal]:
        """Return up to `n` proposals; none while the merges are out, nor when everything was tried."""
        return [self._waiting.popleft() for _ in range(min(n, len(self._waiting)))]

    def tell(self, proposal: Proposal, evaluation: Evaluation) -> None:
        """Take in one evaluation; after the last merge the best one is pruned."""
        if proposal.generation > 0:
            return
        self._told[proposal.recipe] = evaluation
        if len(self._told) == len(self._merges):
            self._prune()

    def _prune(self) -> None:
        evaluations = [self._told[each.recipe] for each in self._merges]
        check_first(evaluations)
        best = best_merge(self._objectives, self._weights, self._constraints, evaluations)
        pruned = prunings(self._ground, best.recipe, self._levels, 1)
        self._waiting.extend(each for each in pruned if each.recipe not in self._earlier)


def best_merge(
    objectives: Sequence[Objective],
    weights: Mapping[str, float],
    constraints: Sequence[Constraint],
    evaluations: Sequence[Evaluation],
) -> Evaluation:
    """Return the evaluation of the merge that is worth pruning, the first of equal ones.

    What pruning is for does not choose what is pruned: all dense merges break a least sparsity alike.
    """
    limits = [constraint for constraint in constraints if isinstance(constraint.objective, TaskMean)]
    return min(evaluations, key=lambda evaluation: loss(objectives, weights, limits, evaluation))


def prunings(ground: Ground, merge: Recipe, levels: Sequence[float], generation: int) -> list[Proposal]:
    """Return proposals of a merge pruned to each level that may be asked for, in their order."""
    proposals: list[Proposal] = []
    asked = {merge}
    for level in levels:
        pruned = ground.candidate(ground.pruned(merge, np.full(ground.groups, level)))
        if pruned not in asked and level <= ground.most:
            asked.add(pruned)
            proposals.append(Proposal(pruned, (merge,), "pruned", generation, {"level": level}))
    return proposals


def weighted_average(assignment: Assignment) -> OneShotSearcher:
    """Try the uniform average."""
    return _tries(assignment, [_of_all(assignment, "linear")])


def task_arithmetic(assignment: Assignment) -> OneShotSearcher:
    """Try task vectors summed at each scale."""
    ground, scales = assignment.ground, section_of(assignment.settings, OneShot).scales
    ones = np.ones((ground.rows, len(ground.experts)))
    return _tries(assignment, [ground.task_arithmetic(scale * ones) for scale in scales])


def rankmean(assignment: Assignment) -> OneShotSearcher:
    """Try the experts weighed by the ranks of their changes."""
    return _tries(assignment, [_of_all(assignment, "rankmean")])


def ties(assignment: Assignment) -> OneShotSearcher:
    """Try TIES at each density and scale."""
    return _trimmed(assignment, "ties")


def dare_ties(assignment: Assignment) -> OneShotSearcher:
    """Try DARE and TIES at each density and scale, with masks drawn by the search's seed."""
    return _trimmed(assignment, "dare_ties", seed=assignment.seed)


def slerp(assignment: Assignment) -> OneShotSearcher:
    """Try every pair of experts, halfway."""
    pairs = combinations(map(Expert, assignment.ground.experts), 2)
    return _tries(assignment, [Merge("slerp", pair, (0.5, 0.5)) for pair in pairs])


def single_experts(assignment: Assignment) -> OneShotSearcher:
    """Try every expert and the base, unmerged."""
    return _tries(assignment, [Expert(name) for name in (*assignment.ground.experts, BASE)])


def one_shot(assignment: Assignment) -> OneShotSearcher:
    """Try a merge method of all experts, or of as many at once as it takes, with each value of its settings."""
    asked = section_of(assignment.settings, AnyMethod)
    method = METHODS.find(asked.method)
    drawn: dict[str, list[Scalar]] = {SEED: [assignment.seed]} if method.random else {}
    experts, most = tuple(map(Expert, assignment.ground.experts)), method.inputs[1]
    together = combinations(experts, len(experts) if most is None else min(most, len(experts)))
    merges = [
        Merge(method.name, inputs, (1.0,) * len(inputs), tuple(settings.items()))
        for inputs, settings in product(together, grid(drawn | asked.settings))
    ]
    return _tries(assignment, merges)


def grid(settings: Mapping[str, Sequence[Scalar]]) -> list[dict[str, Scalar]]:
    """Return every choice of one value for each setting."""
    return [dict(zip(settings, values, strict=True)) for values in product(*settings.values())]


def _of_all(assignment: Assignment, method: str, **settings: Scalar) -> Merge:
    experts = tuple(map(Expert, assignment.ground.experts))
    return Merge(method, experts, (1.0,) * len(experts), tuple(settings.items()))


def _trimmed(assignment: Assignment, method: str, **drawn: Scalar) -> OneShotSearcher:
    asked = section_of(assignment.settings, OneShot)
    tried = product(asked.densities, asked.scales)
    return _tries(assignment, [_of_all(assignment, method, density=d, scale=s, **drawn) for d, s in tried])


def _tries(assignment: Assignment, merges: Sequence[Recipe]) -> OneShotSearcher:
    return OneShotSearcher(
        assignment.ground,
        assignment.objectives,
        assignment.constraints,
        merges=[(assignment.algorithm.replace("_", " "), merge) for merge in merges],
        levels=section_of(assignment.settings, Pruned).levels,
        weights=assignment.weights,
    )
