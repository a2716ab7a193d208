"""Our own search with a learned operator: some of its children are what a generator makes of the population.

Ours; the networks and what they learn are EvoGM's (Jiang et al. 2026, arXiv 2605.29295; see `generators`). There they
are all there is, and know their round; here they are one operator among others and learn from all that was evaluated,
whenever another population is complete. Like there they begin anew every few populations, so that what is recalled
costs no more than a few trainings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from pymoo.core.individual import Individual

from sae_moo.objectives import Constraint, Evaluation, Objective
from sae_moo.recipe import BASE, STRUCTURED, Recipe
from sae_moo.recipe.mixing import mixing_weights
from sae_moo.searchers.credit import Gains
from sae_moo.searchers.ground import Array
from sae_moo.searchers.individuals import ALTERNATIVES, ORIGIN, Origin
from sae_moo.searchers.learning import OFFSPRING, POPULATION, SHARE, Generator
from sae_moo.searchers.nsga import NsgaSearcher
from sae_moo.searchers.problem import EVALUATION
from sae_moo.searchers.ranking import by_front
from sae_moo.searchers.schedule import Bandit, Choice
from sae_moo.searchers.searcher import Proposal
from sae_moo.searchers.space import CoefficientSpace, Space, spread

if TYPE_CHECKING:
    from sae_moo.searchers.generators import Generators

GENERATOR = "generator"  # what made a child that G made
PLAN = "plan"  # key of how an individual is to be made
VECTOR = "vector"  # key of what G made
CHOICE, WEIGHTS, MOVES = range(3)  # what random numbers are for


@dataclass(frozen=True, slots=True)
class Plan:
    """How a child is made by G.

    Args:
        number: which child it is, counted from 0 over all that operators bred.
        epoch: how many whole populations had been evaluated when it was planned.
        population: the vectors of the population then, shape (any, n_var); those of failures left out.
        source: which of them it is made of.
    """

    number: int
    epoch: int
    population: Array
    source: int


class GeneratingNsga(NsgaSearcher):
    """NSGA-II or NSGA-III whose children are made by a generator now and then; see `NsgaSearcher`.

    Over coefficients G maps vectors; over lineages the mixing weights of a recipe and the sparsities that it came to,
    from which a child is merged anew. What children it makes is known when they are bred; it learns when the first of
    them is asked for. One that is recalled needs no learning.

    Args:
        space: lineages or coefficients.
        objectives: what is maximized.
        constraints: limits.
        generator: how it learns, and which share of the children it makes.
        population: size of the population.
        seed: seed of everything drawn.
        **others: of `NsgaSearcher`.
    """

    def __init__(
        self,
        space: Space,
        objectives: Sequence[Objective],
        constraints: Sequence[Constraint] = (),
        *,
        generator: Generator,
        population: int = 24,
        seed: int = 0,
        **others: Any,
    ) -> None:
        super().__init__(space, objectives, constraints, population=population, seed=seed, **others)
        self._settings = generator
        self._size = population
        self._seed = seed
        ground = space.ground
        if isinstance(space, CoefficientSpace):
            self._vectors = space
        elif ground.structured or ground.scope in STRUCTURED:
            raise ValueError("generator: expected one scope of scattered zeros, got whole parts")
        else:
            self._vectors = CoefficientSpace(ground, sparsest=ground.most)
        self._rng = np.random.default_rng((seed, CHOICE))
        self._born = 0
        self._history: list[tuple[Array, Evaluation]] = []
        self._asked: set[Recipe] = set()
        self._bandit = Bandit(Choice((0.0, 1.0))) if generator.adaptive else None
        self._gains = Gains(objectives, constraints)
        self._generators: Generators | None = None
        self._begun = self._epoch = 0  # populations there were when the generators began, and when they last learned
        self._losses: dict[str, float] = {}
        self._mixing: dict[Recipe, Array] = {}

    def recall(self, vector: tuple[float, ...]) -> Proposal | None:
        """Return the next proposal, made by G of a vector that it made before, or by other operators if it is empty."""
        if not self._waiting and not self._breed():
            return None
        individual = self._waiting[0]
        if (individual.get(PLAN) is None) != (not vector):
            return None
        if vector:
            x = np.array(vector)
            if x.shape != (self._vectors.n_var,) or not np.isfinite(x).all():
                return None
            self._become(individual, x)
        return self._next()

    def _learn(self, proposal: Proposal, evaluation: Evaluation) -> None:
        super()._learn(proposal, evaluation)
        if self._bandit is not None:
            gain = self._gains.take(evaluation)
            if SHARE in proposal.numbers:
                self._bandit.credit(float(proposal.operator == GENERATOR), gain)

    @property
    def share(self) -> float:
        """The probability that the next child is made by G, once there is enough to learn from."""
        share = self._settings.share
        if self._bandit is None:
            return share
        other, own = self._bandit.probabilities
        return share * own / (share * own + (1.0 - share) * other)

    def _advance(self, individuals: Sequence[Individual]) -> None:
        super()._advance(individuals)
        self._history += [(self._vector(each), each.get(EVALUATION)) for each in individuals]

    def _breed(self) -> bool:
        if not super()._breed():
            return False
        usable = [each for each in self._algorithm.pop if not self._first and each.get(EVALUATION).ok]
        if usable and len(self._history) >= self._settings.after * self._size:
            self._plan(usable)
        self._born += len(self._brood)
        return True

    def _plan(self, usable: list[Individual]) -> None:
        """Choose which children of a brood G makes, and of whom."""
        share, order = self.share, self._rng.permutation(len(usable))
        population = np.array([self._vector(each) for each in usable])
        for i, individual in enumerate(self._brood):
            origin = individual.get(ORIGIN) or Origin("sbx")
            if self._rng.random() < share:
                source = int(order[i % len(order)])
                number, epoch = self._born + i, len(self._history) // self._size
                individual.set(PLAN, Plan(number, epoch, population, source))
                individual.set(ALTERNATIVES, None)
                origin = Origin(GENERATOR, (usable[source].get(EVALUATION),))
            individual.set(ORIGIN, replace(origin, numbers={**origin.numbers, SHARE: share}))

    def _proposal(self, individual: Individual) -> Proposal:
        if individual.get(PLAN) is not None and individual.get(VECTOR) is None:
            self._make(individual)
        vector = individual.get(VECTOR)
        proposal = super()._proposal(individual)
        self._asked.add(proposal.recipe)
        return proposal if vector is None else replace(proposal, vector=tuple(float(value) for value in vector))

    def _make(self, individual: Individual) -> None:
        plan: Plan = individual.get(PLAN)
        generators = self._learned(plan.epoch)
        given = self._vectors.scaled(plan.population)
        made = generators(given)
        x = self._vectors.unscaled(made[plan.source])
        rng = np.random.default_rng((self._seed, MOVES, plan.number))
        seen = self._asked
        x = self._vectors.apart(x, lambda each: self._vectors.decode(each) in seen, self._settings.noise, rng)
        self._become(individual, x)
        origin: Origin = individual.get(ORIGIN)
        spreads = {OFFSPRING: spread(made), POPULATION: spread(given)}
        individual.set(ORIGIN, replace(origin, numbers={**origin.numbers, **self._losses, **spreads}))

    def _become(self, individual: Individual, x: Array) -> None:
        """Make an individual that of a vector."""
        individual.set(VECTOR, x)
        individual.X = np.array([self._vectors.decode(x)], dtype=object) if self._lineage else x

    def _learned(self, epoch: int) -> Generators:
        """Return generators that have learned from so many whole populations."""
        from sae_moo.searchers.generators import Generators

        begun = epoch - (epoch - self._settings.after) % self._settings.renew
        if self._generators is None or self._begun != begun:
            seed = (self._seed, WEIGHTS, begun, 0)
            self._generators = Generators(self._vectors.n_var, self._settings, seed)
            self._begun, self._epoch = begun, begun - 1
        for each in range(self._epoch + 1, epoch + 1):
            self._train(self._generators, each)
        self._epoch = epoch
        return self._generators

    def _train(self, generators: Generators, epoch: int) -> None:
        history = self._history[: epoch * self._size]
        evaluations = [evaluation for _, evaluation in history]
        order = by_front(evaluations, self.problem.objectives, self.problem.constraints)
        going = sum(each.ok for each in evaluations)
        count = min(max(1, int(self._settings.winners * len(order))), going, len(order) - 1)
        if count:
            u = self._vectors.scaled(np.array([x for x, _ in history]))
            seed = (self._seed, WEIGHTS, epoch, 1)
            self._losses = generators.train(u[order[:count]], u[order[count:]], seed)

    def _vector(self, individual: Individual) -> Array:
        """Return the coordinates of an evaluated individual, within bounds."""
        if not self._lineage:
            x: Array = np.asarray(individual.X, dtype=np.float64)
            return x
        ground, evaluation = self._vectors.ground, individual.get(EVALUATION)
        mixing = mixing_weights(evaluation.recipe, (BASE, *ground.experts), ground.groups, self._mixing)[:, 1:]
        weights = mixing if ground.rows > 1 else mixing.mean(axis=0, keepdims=True)
        levels = np.array(evaluation.group_sparsity or (0.0,) * ground.groups)[list(ground.prunable)]
        if self._vectors.ratios < len(levels):
            levels = np.full(self._vectors.ratios, levels.mean())
        vector: Array = np.clip(np.concatenate([weights.ravel(), levels]), *self._vectors.bounds)
        return vector
