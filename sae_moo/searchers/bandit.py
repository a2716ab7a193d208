"""A contextual bandit over operators and pairs of experts: merges are chosen by what similar ones have scored.

SimMerge has such a variant (Bolton et al. 2026, arXiv 2601.09473), whose rule we could not read: LinUCB (`linucb`),
what its contexts are made of and how it goes on to chains are our reading. An arm is an operator on an ordered pair,
one order where it makes no difference; it is pulled once, for its score does not change. For each task a linear model
of its own says by how much a merge will score above the mean of the two that it merges, from the features of the pair
and what the two score by themselves; an arm's bound is the mean of its tasks' bounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sae_moo.objectives import Constraint, Evaluation, Objective, scored
from sae_moo.objectives.front import Accuracy
from sae_moo.prediction.table import FeatureTable
from sae_moo.recipe import BASE, Cast, Expert, Recipe, structure
from sae_moo.recipe.operators import chain_of, chained
from sae_moo.recipe.section import Amount, Field, section_of
from sae_moo.searchers.baselines import best_merge, prunings
from sae_moo.searchers.ground import Ground
from sae_moo.searchers.linucb import LinUcb
from sae_moo.searchers.pairs import EXPERT, Pairwise, called, pairs
from sae_moo.searchers.searcher import Assignment, Proposal, check_first

Array = NDArray[np.float64]
SINGLE, PAIR, CHAIN, PRUNED = range(4)  # what a proposal's vector begins with, and its generation
PREDICTED, BONUS = "predicted score", "bonus"
TINY = 1e-9  # share of its size up to which a feature that varies does not
FAR = 4.0  # standard deviations beyond which a feature says no more
STEPS = 9  # digits that bounds are compared at: what differs less is the same, and the first is asked for


class Contextual(Pairwise):
    """``search.bandit``: how bold LinUCB is, what its models learn from, how many merges it tries."""

    alpha: Amount = Field(
        default=0.02,
        description="how many widths of its uncertainty a merge is taken to be better: 0 is greedy. At first a width "
        "is about 3, on a scale where scores run from 0 to 1",
    )
    ridge: Annotated[float, Field(gt=0.0, le=1e6)] = Field(
        default=0.3, description="weight of the prior that nothing in a context makes a difference"
    )
    shared: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.5, description="how much operators learn of each other; 0: each has models of its own"
    )
    features: bool = Field(
        default=True,
        description="whether contexts hold the features of pairs; false: only what the experts score by themselves",
    )
    pairs: Annotated[int, Field(ge=1, le=10**6)] = Field(
        default=100, description="how many merges of two are tried; fewer where there are no more"
    )
    chains: Annotated[int, Field(ge=1, le=10**6)] = Field(
        default=40, description="with `largest: 3`, how many merges of three are tried then, on the best merges of two"
    )
    bases: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=5, description="how many of the best merges of two are gone on with to three"
    )


Vector: TypeAlias = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class _Arm:
    """A merge that may be asked for: of what is known to score something with one more expert.

    Args:
        vector: what its trial is known by: `PAIR` and places of operator, first and second expert, or `CHAIN` and those
            of the pair's, then of the operator and the expert that come to it.
        recipe: the candidate.
        name: what made it.
        operator: place of the last operator.
        experts: in the order in which they are merged, the last one by the last operator.
        parent: the evaluation that a chain goes on from; None of a pair.
    """

    vector: Vector
    recipe: Recipe
    name: str
    operator: int
    experts: tuple[str, ...]
    parent: Evaluation | None = None


class Contexts:
    """What is known of pairs without merging them, as numbers of like size; every block of them has a mean square of 1.

    Args:
        features: of every ordered pair of the experts on every task; None: nothing is known.
        experts: names of the experts.
        tasks: names of the tasks.

    Raises:
        InputError: naming a pair that the table lacks.
    """

    def __init__(self, features: FeatureTable | None, experts: Sequence[str], tasks: Sequence[str]) -> None:
        keys = [(a, b, task) for a in experts for b in experts if a != b for task in tasks]
        table = np.empty((len(keys), 0)) if features is None or not keys else features.matrix(keys)
        known = ~np.isnan(table)
        count = np.maximum(known.sum(axis=0), 1)
        table = np.where(known, table, 0.0)
        table = np.where(known, table - table.sum(axis=0) / count, 0.0)  # what is missing is like the mean
        spread = np.sqrt((table**2).sum(axis=0) / count)
        kept = spread > TINY * np.maximum(np.abs(table).max(axis=0, initial=0.0), 1.0)
        standard = np.clip(table[:, kept] / spread[kept], -FAR, FAR) / np.sqrt(max(1, int(kept.sum())))
        self._rows = dict(zip(keys, standard, strict=True))
        self._own: dict[tuple[str, str], float] = {}
        self._usual: dict[str, tuple[float, float]] = {}
        self._tasks = tuple(tasks)

    def tell_own(self, own: Mapping[tuple[str, str], float]) -> None:
        """Take in what experts score by themselves.

        Args:
            own: (expert, task) -> score; of those that are not there the mean of the others is taken.
        """
        self._own = dict(own)
        for task in self._tasks:
            scores = [score for (_, each), score in own.items() if each == task]
            if scores:
                self._usual[task] = float(np.mean(scores)), float(np.std(scores)) or 1.0

    def own(self, expert: str, task: str) -> float:
        """Return what an expert scores by itself, as far as that is known; 0.5 where nothing is."""
        return self._own.get((expert, task), self._usual.get(task, (0.5, 1.0))[0])

    def prior(self, arm: _Arm, task: str) -> float:
        """Return what an arm is taken to score where nothing was learned: the mean of the two that it merges."""
        return 0.5 * sum(self._merged(arm, task))

    def of(self, arm: _Arm, task: str) -> Array:
        """Return the context of an arm on a task, shape (numbers,).

        Of a chain, the features of what is merged so far with the last expert are the mean of those of its experts.
        """
        *before, last = arm.experts
        features = np.mean([self._rows[expert, last, task] for expert in before], axis=0)
        mean, spread = self._usual.get(task, (0.5, 1.0))
        scores = (np.array(self._merged(arm, task)) - mean) / spread / np.sqrt(2.0)
        return np.concatenate([[1.0], features, scores])

    def _merged(self, arm: _Arm, task: str) -> tuple[float, float]:
        first = self.own(arm.experts[0], task) if arm.parent is None else arm.parent.mean(task)
        return first, self.own(arm.experts[-1], task)


class BanditSearcher:
    """Tries merges by LinUCB, goes on to chains, prunes the best; see `Searcher` for the contract.

    First come the experts and the base, as they are; then merges of two, and of three on the best of these, each chosen
    when it is asked for by what was told until then; at last the best candidate of all pruned to each level. What is
    out in parallel is not known yet, and is not chosen again.

    Args:
        ground: experts, groups, dtype, pruning.
        objectives: what is maximized; one at least is scored on tasks.
        constraints: limits.
        settings: see `Contextual`.
        features: of every ordered pair on every task; None: contexts hold scores of experts alone.
        weights: objective name -> how much it counts; None, or nothing for those that are scored on tasks: their mean.
    """

    def __init__(
        self,
        ground: Ground,
        objectives: Sequence[Objective],
        constraints: Sequence[Constraint] = (),
        *,
        settings: Contextual | None = None,
        features: FeatureTable | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self._settings = settings = Contextual() if settings is None else settings
        self._ground, self._objectives, self._constraints = ground, tuple(objectives), tuple(constraints)
        self._weights = Accuracy(objectives).weights if weights is None else dict(weights)
        self._shares = task_shares(objectives, weights)
        if not self._shares:
            raise ValueError("objectives: expected one that is scored on tasks")
        self._operators = settings.chosen
        self._contexts = Contexts(features if settings.features else None, ground.experts, tuple(self._shares))
        self._models = {task: LinUcb(settings.ridge, settings.shared) for task in self._shares}
        names = (*ground.experts, BASE) if settings.singles else ()
        self._waiting = {  # by vector, in the order of asking: those that nothing has to be learned for
            (float(SINGLE), float(i)): Proposal(ground.expert(name), (), EXPERT, SINGLE) for i, name in enumerate(names)
        }
        self._arms: dict[Vector, _Arm] = {}  # of this phase
        self._left: dict[Vector, int] = {}  # those not asked for -> their rows in the tables of contexts
        self._tables: dict[str, Array] = {}  # task -> contexts of the arms, shape (arms, numbers)
        self._prior: dict[str, Array] = {}
        self._out: set[Vector] = set()
        self._phase, self._pulls = SINGLE, 0
        self._first: list[Evaluation] = []  # of the first phase that has any
        self._whole: list[Evaluation] = []  # with a score on every task, in the order told; not those that are pruned
        self._of: dict[Recipe, Evaluation] = {}  # these, and pruned ones of another study, by what was asked for
        self._earlier: list[Evaluation] = []  # of another study, not learned from yet
        self._own: dict[tuple[str, str], float] = {}

    def inherit(self, history: Sequence[Evaluation]) -> None:
        """Take in evaluations of an earlier study before anything is asked for; see `Inheriting`."""
        for evaluation in history:
            self._earlier.append(evaluation)
            self._take(evaluation, self._asked(evaluation.recipe))
        for vector in [vector for vector, each in self._waiting.items() if each.recipe in self._of]:
            del self._waiting[vector]

    def ask(self, n: int) -> Sequence[Proposal]:
        """Return up to `n` proposals; none while a phase still has evaluations out that the next one needs."""
        proposals: list[Proposal] = []
        while len(proposals) < n:
            self._advance()
            if self._waiting:
                proposals.append(self._taken(next(iter(self._waiting))))
            elif self._left and self._pulls < self._limit:
                vector, numbers = self._promising()
                proposals.append(replace(self._taken(vector), numbers=numbers))
            else:
                break
        return proposals

    def recall(self, vector: Vector) -> Proposal | None:
        """Return the proposal of a vector as the next one, without its numbers; see `Recalling`."""
        self._advance()
        asked = vector in self._waiting if self._waiting else vector in self._left and self._pulls < self._limit
        return self._taken(vector) if asked else None

    def tell(self, proposal: Proposal, evaluation: Evaluation) -> None:
        """Take in one evaluation."""
        self._out.remove(proposal.vector)
        if self._phase in (SINGLE, PAIR) and (self._phase == SINGLE or not self._settings.singles):
            self._first.append(evaluation)
        if evaluation.ok and self._phase != PRUNED:
            self._take(evaluation, proposal.recipe)
            if proposal.vector in self._arms:
                self._learn(self._arms[proposal.vector], evaluation)

    @property
    def _limit(self) -> int:
        """How many arms are pulled in this phase."""
        return {PAIR: self._settings.pairs, CHAIN: self._settings.chains}.get(self._phase, 0)

    def _take(self, evaluation: Evaluation, asked: Recipe) -> None:
        single = asked.input if isinstance(asked, Cast) else asked
        if isinstance(single, Expert):
            for task in self._shares:
                if task in evaluation.scores:
                    self._own[single.name, task] = evaluation.mean(task)
        if evaluation.ok:
            self._of[asked] = evaluation
            if not structure.chain(evaluation.recipe):
                self._whole.append(evaluation)

    def _asked(self, recipe: Recipe) -> Recipe:
        """Return a recipe as this search would ask for it: whole models told nothing yet, pairs in the same order."""
        chain = chain_of(recipe, self._operators)
        if chain is None:
            return recipe
        (operator, *rest), (first, second, *others) = chain
        place = {name: i for i, name in enumerate(self._ground.experts)}
        if operator.symmetric and place.get(first, -1) > place.get(second, -1):
            first, second = second, first
        return self._ground.candidate(chained([operator, *rest], [first, second, *others]))

    def _advance(self) -> None:
        """Go to the next phase that has something to ask for, once everything of this one was told."""
        while not self._waiting and not self._out and (not self._left or self._pulls >= self._limit):
            if self._phase == PRUNED:
                return
            if self._first and not self._whole:
                check_first(self._first)
            self._phase, self._pulls = self._phase + 1, 0
            if self._phase == PAIR:
                self._contexts.tell_own(self._own)
                self._learn_earlier()
                self._enter(self._pairs())
            elif self._phase == CHAIN:
                self._enter(self._chains() if self._settings.largest > CHAIN else ())
            else:
                self._enter(())
                self._prune()

    def _prune(self) -> None:
        best = best_merge(self._objectives, self._weights, self._constraints, self._whole)
        for i, proposal in enumerate(prunings(self._ground, best.recipe, self._settings.levels, PRUNED)):
            if proposal.recipe not in self._of:  # of an earlier study
                self._waiting[float(PRUNED), float(i)] = proposal

    def _enter(self, arms: Iterable[_Arm]) -> None:
        """Make arms those of this phase; what was evaluated is not asked for again, and each recipe once."""
        different: dict[Recipe, _Arm] = {}
        for arm in arms:
            if arm.recipe not in self._of:
                different.setdefault(arm.recipe, arm)
        self._arms = {arm.vector: arm for arm in different.values()}
        self._left = {vector: row for row, vector in enumerate(self._arms)}
        for task in self._shares if self._arms else ():
            self._tables[task] = np.stack([self._contexts.of(arm, task) for arm in self._arms.values()])
            self._prior[task] = np.array([self._contexts.prior(arm, task) for arm in self._arms.values()])

    def _pairs(self) -> Iterator[_Arm]:
        place = {name: float(i) for i, name in enumerate(self._ground.experts)}
        for operator, pair in pairs(self._ground.experts, self._operators):
            number = self._operators.index(operator)
            vector = (float(PAIR), float(number), place[pair[0]], place[pair[1]])
            yield _Arm(vector, self._ground.candidate(chained([operator], pair)), operator.name, number, pair)

    def _chains(self) -> Iterator[_Arm]:
        """Yield the best merges of two with one more expert, by each operator."""
        place = {name: float(i) for i, name in enumerate(self._ground.experts)}
        bases = []
        for recipe, evaluation in self._of.items():
            chain = chain_of(recipe, self._operators)
            if chain is not None and len(chain[0]) == 1 and {*chain[1]} <= {*place}:
                bases.append((evaluation, chain))
        bases.sort(key=lambda base: -self._value(base[0]))
        for parent, ((before,), pair) in bases[: self._settings.bases]:
            first = self._operators.index(before)
            for name in self._ground.experts:
                for number, operator in enumerate(self._operators if name not in pair else ()):
                    vector = (float(CHAIN), float(first), place[pair[0]], place[pair[1]], float(number), place[name])
                    recipe = self._ground.candidate(chained([before, operator], (*pair, name)))
                    yield _Arm(vector, recipe, called([before, operator]), number, (*pair, name), parent)

    def _value(self, evaluation: Evaluation) -> float:
        return float(sum(share * evaluation.mean(task) for task, share in self._shares.items()))

    def _promising(self) -> tuple[Vector, dict[str, float]]:
        """Return the arm of the highest bound among those left, the first of equal ones, and what its bound is of."""
        rows = list(self._left.values())
        kinds = [self._arms[vector].operator for vector in self._left]
        expected, bonus = np.zeros(len(rows)), np.zeros(len(rows))
        for task, share in self._shares.items():
            gain, width = self._models[task].bounds(kinds, self._tables[task][rows])
            expected += share * (self._prior[task][rows] + gain)
            bonus += share * self._settings.alpha * width
        best = int(np.argmax(np.round(expected + bonus, STEPS)))
        return list(self._left)[best], {PREDICTED: float(expected[best]), BONUS: float(bonus[best])}

    def _taken(self, vector: Vector) -> Proposal:
        """Return the proposal of a vector that is not asked for yet; from now on it is out."""
        self._out.add(vector)
        if vector in self._waiting:
            return replace(self._waiting.pop(vector), vector=vector)
        arm = self._arms[vector]
        del self._left[vector]
        self._pulls += 1
        parents = () if arm.parent is None else (arm.parent.recipe,)
        return Proposal(arm.recipe, parents, arm.name, self._phase, vector=vector)

    def _learn(self, arm: _Arm, evaluation: Evaluation) -> None:
        for task, model in self._models.items():
            if task in evaluation.scores:
                gain = evaluation.mean(task) - self._contexts.prior(arm, task)
                model.learn(arm.operator, self._contexts.of(arm, task), gain)

    def _learn_earlier(self) -> None:
        """Learn from merges of two of an earlier study, each on the tasks that it was scored on."""
        arms = {arm.recipe: arm for arm in self._pairs()}
        for evaluation in self._earlier:
            arm = arms.get(self._asked(evaluation.recipe))
            if arm is not None:
                self._learn(arm, evaluation)


def task_shares(objectives: Sequence[Objective], weights: Mapping[str, float] | None) -> dict[str, float]:
    """Return what each task counts in a weighted mean of objectives, with the sum 1; see `Accuracy.shares`.

    Args:
        objectives: what is maximized.
        weights: objective name -> how much it counts; None, or none for those that are scored on tasks: all alike.
    """
    counted = {each: 1.0 if weights is None else weights.get(each.name, 0.0) for each in scored(objectives)}
    total = sum(counted.values())
    if total == 0.0:
        return Accuracy(objectives).shares
    shares: dict[str, float] = {}
    for objective, weight in counted.items():
        for task in objective.tasks if weight else ():
            shares[task] = shares.get(task, 0.0) + weight / total / len(objective.tasks)
    return shares


def make(assignment: Assignment) -> BanditSearcher:
    """Return a bandit over the operators and pairs of an assignment."""
    return BanditSearcher(
        assignment.ground,
        assignment.objectives,
        assignment.constraints,
        settings=section_of(assignment.settings, Contextual),
        features=assignment.features,
        weights=assignment.weights,
    )
