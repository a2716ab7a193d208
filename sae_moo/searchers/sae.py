"""SAE and M2N2: an archive of merges that compete for instances and for sparsity, one child at a time.

Sources: Zhang, Zhang et al. 2026 (SAE, arXiv 2602.08218); Abrantes et al. 2025 (M2N2, arXiv 2508.16204). The share that
a parent has in its child is our reading of the former, whose formula we could not read: ``T_A / (T_A + T_B)``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from sae_moo.objectives import Constraint, Evaluation, Objective, violations
from sae_moo.recipe import Merge, Recipe
from sae_moo.recipe.section import Amount, Field, Section, ValidationInfo, field_validator, section_of
from sae_moo.searchers import fitness
from sae_moo.searchers.ground import DIGITS, Ground
from sae_moo.searchers.ratio import RATIO, AnnealedRatio
from sae_moo.searchers.schedule import Adaptive, Schedule
from sae_moo.searchers.searcher import Assignment, Proposal, check_first

Array = NDArray[np.float64]
Measure = Literal["zeros", "l1", "hoyer"]
Crossover = Literal["zero-aware", "split-slerp"]
TINY = 1e-300  # two parents that score nothing share alike
TRIES = 100  # pairs drawn for one child before it is something else: an archive may hold a single member


class M2n2(Section):
    """``search.sae`` of M2N2: the competition for instances."""

    alpha: Annotated[float, Field(ge=0.0, le=10.0)] = Field(
        default=1.0, description="strength of the competition for instances; 0 is none"
    )
    matchmaker: bool = Field(default=True, description="whether second parents are chosen by attraction; else by score")


class Sae(M2n2):
    """``search.sae``: the numbers of the SAE paper."""

    omega: Amount = Field(default=0.5, description="weight of the competition for instances in a model's score")
    beta: Amount = Field(default=0.5, description="weight of the competition for sparsity in a model's score")
    tau: Annotated[float, Field(gt=0.0, le=1e6)] = Field(
        default=1.0, description="temperature of the competition for sparsity"
    )
    measure: Measure = Field(
        default="zeros",
        description="what counts as sparse in the competition: `zeros` (their share), or `l1`, `hoyer`: measures of a "
        "model's norms",
    )

    @field_validator("beta")
    @classmethod
    def _some(cls, beta: float, info: ValidationInfo) -> float:
        if beta == 0 and info.data.get("omega") == 0:
            raise ValueError("expected omega or beta above 0, got 0 for both")
        return beta


@dataclass(frozen=True, slots=True, eq=False)
class _Member:
    """One candidate of the archive: its evaluation, and what is computed of it once."""

    evaluation: Evaluation
    scores: Array
    sparsity: float
    group_sparsity: Array
    violation: float


SAE = Sae()  # as published


class SaeSearcher:
    """Evolves an archive; see `Searcher` for the contract.

    Starts from real models only: experts, base, simple merges and random ones (`Ground.first`). Then one child at a
    time: both parents are drawn by score or attraction, pruned at the annealed ratio, merged group by group; the child
    enters the archive, scores are computed anew and the worst leaves. What breaks a limit leaves first and is no parent
    as long as anything keeps them: a limit never enters a score. Nothing touches a weight after its pruning but the
    zero-aware merge, which keeps zeros that both parents have.

    Args:
        ground: experts, groups, dtype, pruning.
        objectives: what is maximized; needed to tell gains under an adaptive schedule.
        constraints: limits.
        settings: weights and strengths of the competitions.
        size: candidates kept, at least 2.
        local: one share per group, from the group's sparsity; else one for the whole child.
        crossover: ``zero-aware``: parents pruned at the annealed ratio, then merged where one is zero as the other;
            ``split-slerp``: M2N2's, of parents as they are, share and split point drawn.
        seed: seed of everything drawn.
        schedule: the annealed ratio; a step is as many children as the archive holds.
    """

    def __init__(
        self,
        ground: Ground,
        objectives: Sequence[Objective],
        constraints: Sequence[Constraint] = (),
        *,
        settings: Sae = SAE,
        size: int = 24,
        local: bool = False,
        crossover: Crossover = "zero-aware",
        seed: int = 0,
        schedule: Schedule | Adaptive | None = None,
    ) -> None:
        if size < 2:
            raise ValueError(f"size: expected at least 2, got {size}")
        self._ground = ground
        self._constraints = tuple(constraints)
        self._settings, self._size, self._is_local, self._crossover = settings, size, local, crossover
        self._rng = np.random.default_rng(seed)
        schedule = Schedule() if schedule is None else schedule
        self._ratio = AnnealedRatio(schedule, objectives, constraints)
        self._sparsest = schedule.top if crossover == "zero-aware" else 0.0
        first = {recipe: operator for operator, recipe in ground.first(self._size, self._rng, self._sparsest)}
        self._firsts = [Proposal(recipe, operator=operator) for recipe, operator in first.items()]
        self._waiting = deque(self._firsts)
        self._told: dict[Recipe, Evaluation] = {}  # of the first ones
        self._members: list[_Member] = []
        self._scores: Array = np.empty((0, 0))  # (members, instances)
        self._weight: Array = np.empty(0)  # of instances
        self._total: Array = np.empty(0)  # T from the sparsity of whole models, (members,)
        self._local: Array = np.empty((0, 0))  # T that shares follow: per group, or the same in one column
        self._seen = {proposal.recipe for proposal in self._firsts}
        self._born = 0

    def ask(self, n: int) -> Sequence[Proposal]:
        """Return up to `n` proposals; none while first ones are out."""
        proposals: list[Proposal] = []
        while len(proposals) < n:
            if self._waiting:
                proposals.append(self._waiting.popleft())
            elif not self._members:
                break
            else:
                proposals.append(self._child())
        return proposals

    def tell(self, proposal: Proposal, evaluation: Evaluation) -> None:
        """Take in one evaluation."""
        self._ratio.tell(proposal, evaluation)
        if proposal.generation > 0:
            if evaluation.ok:
                self._enter(evaluation)
            return
        self._told[proposal.recipe] = evaluation
        if len(self._told) == len(self._firsts):
            evaluations = [self._told[first.recipe] for first in self._firsts]  # whatever order they came back in
            check_first(evaluations)
            self._weight = fitness.instance_weights(next(each for each in evaluations if each.ok))
            self._members = [self._member(each) for each in evaluations if each.ok]
            self._scores = np.stack([member.scores for member in self._members])
            self._score()

    def _child(self) -> Proposal:
        """Return a proposal that was never made: of two members, or a random merge where no pair has a new child."""
        step = self._born // self._size
        self._born += 1
        for _ in range(TRIES):
            first, second = self._pair()
            parents = (self._members[first].evaluation, self._members[second].evaluation)
            recipe, numbers = self._merged(first, second, step)
            if recipe not in self._seen:
                self._seen.add(recipe)
                asked = (parents[0].recipe, parents[1].recipe)
                return Proposal(recipe, asked, f"{self._crossover} merge", step + 1, numbers)
        operator, recipe = self._ground.random_merge(self._rng, self._sparsest)
        self._seen.add(recipe)
        return Proposal(recipe, operator=operator, generation=step + 1)

    def _pair(self) -> tuple[int, int]:
        """Draw two members; the second is another one where there is one."""
        violation = np.array([member.violation for member in self._members])
        usable = violation <= 0 if (violation <= 0).any() else np.ones(len(violation), dtype=bool)
        first = self._drawn(np.where(usable, self._total, 0.0), usable)
        others = usable.copy()
        others[first] = usable.sum() == 1
        pull = np.zeros(len(others))
        if self._settings.matchmaker:
            pull = np.where(others, fitness.attraction(self._scores, first, self._weight, self._settings.alpha), 0.0)
        if pull.sum() <= 0:  # nobody complements the first
            pull = np.where(others, self._total, 0.0)
        return first, self._drawn(pull, others)

    def _drawn(self, weight: Array, usable: NDArray[np.bool_]) -> int:
        """Draw a member in proportion to its weight; evenly among the usable where all weigh nothing."""
        weight = weight if weight.sum() > 0 else usable.astype(float)
        return int(self._rng.choice(len(weight), p=weight / weight.sum()))

    def _merged(self, first: int, second: int, step: int) -> tuple[Recipe, Mapping[str, float]]:
        ground = self._ground
        a, b = (self._members[i].evaluation.recipe for i in (first, second))
        if self._crossover == "split-slerp":
            share, split = (round(float(self._rng.random()), DIGITS) for _ in range(2))
            merged = Merge("split_slerp", (a, b), (share, round(1 - share, DIGITS)), (("split", split),))
            return ground.candidate(merged), {"share": share, "split": split}
        ratio = round(self._ratio.draw(step, self._rng), DIGITS)
        totals = self._local[[first, second]]
        shares = (totals[0] + TINY) / (totals.sum(axis=0) + 2 * TINY)  # our reading of the paper; per group if local
        if ground.rows == 1 or len(shares) == 1:
            shares = np.full(ground.rows, shares.mean())
        pruned = tuple(ground.pruned(parent, np.full(ground.groups, ratio)) for parent in (a, b))
        weights = ground.weights(np.stack([shares, 1 - shares], axis=1))
        numbers = {RATIO: ratio, "share": round(float(shares.mean()), DIGITS)}
        return ground.candidate(Merge("zero_aware", pruned, weights)), numbers

    def _enter(self, evaluation: Evaluation) -> None:
        """Add a member, compute all scores anew, and let the worst leave if there are too many."""
        self._members.append(self._member(evaluation))
        self._scores = np.vstack([self._scores, self._members[-1].scores])
        self._score()
        if len(self._members) > self._size:
            worst = max(range(len(self._members)), key=lambda i: (self._members[i].violation, -self._total[i]))
            del self._members[worst]
            self._scores = np.delete(self._scores, worst, axis=0)
            self._score()

    def _member(self, evaluation: Evaluation) -> _Member:
        measured = (evaluation.sparsity, *evaluation.group_sparsity)
        if self._settings.measure != "zeros":
            measured = evaluation.sparseness
            if not measured:
                raise ValueError(f"measure: expected evaluations that tell {self._settings.measure}, got one without")
        broken = sum(max(0.0, float(amount)) for amount in violations(self._constraints, evaluation))
        return _Member(evaluation, fitness.instances(evaluation), measured[0], np.array(measured[1:]), broken)

    def _score(self) -> None:
        """Compute the scores of all members anew."""
        s = self._settings

        def total(sparsity: Sequence[float | Array]) -> Array:
            return fitness.total(self._scores, np.array(sparsity), self._weight, s.omega, s.beta, s.tau, s.alpha)

        self._total = total([member.sparsity for member in self._members])
        self._local = total([m.group_sparsity for m in self._members]) if self._is_local else self._total[:, None]


def make(assignment: Assignment, *, local: bool) -> SaeSearcher:
    """Return SAE in its global or local form."""
    return _searcher(assignment, section_of(assignment.settings, Sae), local=local)


def m2n2(assignment: Assignment) -> SaeSearcher:
    """Return M2N2: SAE without sparsity and pruning, and with a crossover of its own."""
    numbers = section_of(assignment.settings, M2n2)
    settings = Sae(omega=1.0, beta=0.0, alpha=numbers.alpha, matchmaker=numbers.matchmaker)
    return _searcher(assignment, settings, crossover="split-slerp")


def _searcher(
    assignment: Assignment, settings: Sae, *, local: bool = False, crossover: Crossover = "zero-aware"
) -> SaeSearcher:
    return SaeSearcher(
        assignment.ground,
        assignment.objectives,
        assignment.constraints,
        settings=settings,
        size=assignment.population,
        local=local,
        crossover=crossover,
        seed=assignment.seed,
        schedule=assignment.schedule,
    )
