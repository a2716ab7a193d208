"""One-shot merges: no search but over their own few settings, then pruned to each of several sparsities."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np

from sae_moo.objectives import Constraint, Evaluation, Objective, loss
from sae_moo.objectives.front import Accuracy
from sae_moo.recipe import BASE, Expert, Merge, Recipe
from sae_moo.searchers.algorithms import ALGORITHMS
from sae_moo.searchers.searcher import Proposal, check_first
from sae_moo.searchers.space import Ground


@dataclass(frozen=True, slots=True)
class OneShot:
    """What one-shot merges are tried with.

    Args:
        scales: of the sum of task vectors, for methods that have one, each above 0.
        densities: shares of each task vector that TIES and DARE keep, each in (0, 1].
        levels: sparsities that the best merge is pruned to afterwards, each in (0, 1).
    """

    scales: tuple[float, ...]
    densities: tuple[float, ...]
    levels: tuple[float, ...]


ONE_SHOTS = ("weighted-average", "task-arithmetic", "rankmean", "ties", "dare_ties", "slerp", "single-experts")
"""Names of the one-shot merges; see `variants`."""


class OneShotSearcher:
    """Tries every variant of a one-shot merge, then prunes the best to each level; see `Searcher` for the contract.

    What tuning a scale or a density costs is counted like any other evaluation. Which is best is said by the search
    split alone.

    Args:
        ground: experts, groups, dtype, pruning.
        objectives: what is maximized.
        constraints: limits.
        method: a name of `ONE_SHOTS`.
        settings: what is tried.
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
        method: str,
        settings: OneShot,
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
        limits = [constraint for constraint in self._constraints if constraint.objective.tasks]
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
        method: a name of `ONE_SHOTS`.
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
            drawn = (("seed", seed),) if ALGORITHMS[method].seeded else ()
            return [Merge(method, experts, equal, (("density", d), ("scale", s), *drawn)) for d, s in tried]
        case "slerp":
            return [Merge("slerp", pair, (0.5, 0.5)) for pair in combinations(experts, 2)]
        case "single-experts":
            return [*experts, Expert(BASE)]
        case _:
            raise ValueError(f"method: expected one of {', '.join(ONE_SHOTS)}, got {method!r}")
