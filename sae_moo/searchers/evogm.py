"""EvoGM: a population over coefficients that moves as a learned generator says, round by round.

Source: Jiang et al. 2026 (arXiv 2605.29295), read in the authors' public code. Where we differ:

- After its two rounds the published search ends. Here a further round begins as long as the budget of evaluations
  lasts, unless `Evogm.rounds` says how many there are: with the published budget, 160 evaluations of 10 experts, both
  are the same, and a search with more of them is not cut short.
- Failed evaluations are neither winners nor what a generator is given; uniform draws take their places.
- Of equal recipes one alone becomes an expert of the next round.

Coefficients by block, and sparsities, are the space's (`CoefficientSpace`); selection on the front, repeats, noise and
the nearest winner are switches of ours (`Evogm`, `Training`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sae_moo.objectives import Constraint, Evaluation, Objective
from sae_moo.recipe import Recipe
from sae_moo.recipe.section import section_of
from sae_moo.searchers.learning import OFFSPRING, POPULATION, Evogm
from sae_moo.searchers.ranking import Order, by_fitness, by_front, weights_of
from sae_moo.searchers.scalar import FIRST
from sae_moo.searchers.searcher import Assignment, Proposal, check_first
from sae_moo.searchers.space import CoefficientSpace, spread

if TYPE_CHECKING:
    from sae_moo.searchers.generators import Generators

Array = NDArray[np.float64]
AGAIN = "first vectors of a round"  # what made the proposals that a later round begins with
WEIGHTS, START, DRAWS, MOVES = range(4)  # what random numbers are for


@dataclass(slots=True)
class Round:
    """A round: where it stands, and all that was evaluated in it.

    Attributes:
        number: from 0.
        basis: the experts of the round as vectors over the original ones, each with the other coordinates it had;
            shape (experts, n_var).
        x: vectors over the basis, in the order of their places, one a row.
        evaluations: theirs.
        ends: how many there were when each of its populations was complete.
        population: indices of those that the next offspring are made of.
    """

    number: int
    basis: Array
    x: list[Array] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    population: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Brood:
    """A population that is being evaluated.

    Attributes:
        waiting: places that nobody asked for yet, in order.
        made: the vectors of all places, shape (size, n_var); None until offspring are made.
        numbers: what there is to tell of how they were made.
        x: place -> the vector that was asked for.
        told: place -> its evaluation.
    """

    waiting: deque[int]
    made: Array | None = None
    numbers: dict[str, float] = field(default_factory=dict)
    x: dict[int, Array] = field(default_factory=dict)
    told: dict[int, Evaluation] = field(default_factory=dict)


class EvogmSearcher:
    """Searches coefficients by EvoGM; see `Searcher` for the contract.

    A round begins at its experts, their average and uniform draws; then, a few times, the whole population goes through
    G, trained on what the round has seen, and the best of old and new survive. The best models of the round, one for
    each expert, are the experts of the next one. That is a change of coordinates: a proposal's vector is in those of
    its round, its recipe is over the original experts.

    Networks are trained when a population is asked for that nobody recalls; where it stands among the rounds says from
    what seed and on what, so that a search that was recalled goes on as if it had asked.

    Args:
        space: the space, with the range of coefficients in a round.
        objectives: what is maximized.
        constraints: limits.
        settings: rounds, networks, selection.
        name: what offspring are called after.
        weights: objective name -> how much it counts; None: the mean of those that are scored on tasks, if any. Not
            read where selection is by the front.
        population: size of the population.
        sparsest: largest pruning ratio drawn for the first ones.
        seed: seed of everything drawn.
    """

    def __init__(
        self,
        space: CoefficientSpace,
        objectives: Sequence[Objective],
        constraints: Sequence[Constraint],
        *,
        settings: Evogm,
        name: str,
        weights: Mapping[str, float] | None = None,
        population: int = 24,
        sparsest: float = 0.6,
        seed: int = 0,
    ) -> None:
        if population < 2:
            raise ValueError(f"population: expected at least 2, got {population}")
        self._space = space
        self._objectives = tuple(objectives)
        self._constraints = tuple(constraints)
        self._settings = settings
        self._name = name
        self._weights = weights_of(objectives, weights)
        self._size = population
        self._sparsest = sparsest
        self._seed = seed
        self._known: dict[Recipe, Evaluation] = {}  # of complete populations, where none repeats
        self._out: dict[tuple[float, ...], list[int]] = {}  # vector -> its places in the population
        self._generation = 0
        self._brood = Brood(deque())
        self._generators: Generators | None = None
        self._trained = 0  # iterations of the round that the generators have learned from
        experts = np.tile(np.eye(len(space.ground.experts)), space.ground.rows)
        self._begin_round(0, np.pad(experts, ((0, 0), (0, space.n_var - space.weights))))

    def ask(self, n: int) -> Sequence[Proposal]:
        """Return up to `n` proposals; none while the population still has evaluations out."""
        proposals: list[Proposal] = []
        brood = self._brood
        while len(proposals) < n and brood.waiting:
            if brood.made is None:
                brood.made, brood.numbers = self._offspring()
            proposals.append(self._next(brood.made[brood.waiting[0]]))
        return proposals

    def recall(self, vector: tuple[float, ...]) -> Proposal | None:
        """Return the proposal of a vector that was asked for before, without what its networks would tell."""
        x = np.array(vector)
        possible = self._brood.waiting and x.shape == (self._space.n_var,) and np.isfinite(x).all()
        return self._next(x) if possible else None

    def tell(self, proposal: Proposal, evaluation: Evaluation) -> None:
        """Take in one evaluation; the last of a population brings forth the next.

        Raises:
            KeyError: if the proposal is not one that is out.
        """
        places = self._out[proposal.vector]
        self._brood.told[places.pop(0)] = evaluation
        if not places:
            del self._out[proposal.vector]
        while len(self._brood.told) == self._size:  # one that is known whole is followed by the next at once
            self._close()

    def _next(self, x: Array) -> Proposal:
        now, brood = self._round, self._brood
        place = brood.waiting.popleft()
        brood.x[place] = x
        vector = tuple(float(value) for value in x)
        self._out.setdefault(vector, []).append(place)
        source = self._source(place) if now.ends else None
        parents = () if source is None else (now.evaluations[source].recipe,)
        operator = self._name if now.ends else AGAIN if now.number else FIRST
        return Proposal(self._recipe(x), parents, operator, self._generation, dict(brood.numbers), vector)

    def _recipe(self, x: Array) -> Recipe:
        return self._space.decode(self._effective(x))

    def _effective(self, x: Array) -> Array:
        """Return a vector of the round over the original experts; its coefficients may leave their range.

        Sums are rounded once, so that every machine has the same.
        """
        basis, experts, made = self._round.basis, len(self._space.ground.experts), x.copy()
        for row in range(self._space.ground.rows):
            here = slice(row * experts, (row + 1) * experts)
            for j, column in enumerate(basis[:, here].T.tolist()):
                made[here.start + j] = math.fsum(a * b for a, b in zip(x[here].tolist(), column, strict=True))
        return made

    def _close(self) -> None:
        """Take in a population that is complete, and begin the next."""
        now, settings, places = self._round, self._settings, range(self._size)
        evaluations = [self._brood.told[place] for place in places]
        if self._generation == 0:
            check_first(evaluations)
        new = range(len(now.x), len(now.x) + self._size)
        now.x += [self._brood.x[place] for place in places]
        now.evaluations += evaluations
        now.ends.append(len(now.x))
        if not settings.repeats:
            self._known |= {self._recipe(now.x[i]): now.evaluations[i] for i in new}
        contenders = [*now.population, *new]
        order = self._order([now.evaluations[i] for i in contenders])
        now.population = [contenders[i] for i in order[: self._size]]
        self._generation += 1
        if len(now.ends) <= settings.iterations:
            self._brood = Brood(deque(places))
        elif settings.rounds is None or now.number + 1 < settings.rounds:
            self._begin_round(now.number + 1, self._shifted() if settings.shift else now.basis)
        else:
            self._brood = Brood(deque())

    def _begin_round(self, number: int, basis: Array) -> None:
        """Begin a round at its experts, their average and draws; cut to the size of the population."""
        self._round = Round(number, basis)
        self._generators, self._trained = None, 0
        space, rng = self._space, np.random.default_rng((self._seed, START, number))
        rest = basis[:, space.weights :]
        mean = np.array([math.fsum(column) / len(basis) for column in rest.T.tolist()])
        levels = [*np.eye(len(basis)), np.full(len(basis), 1 / len(basis))]
        rows = [
            np.concatenate([space.encode(level)[: space.weights], others])
            for level, others in zip(levels, [*rest, mean], strict=True)
        ][: self._size]
        rows += [self._drawn(rng) for _ in range(self._size - len(rows))]
        self._brood = brood = Brood(deque(range(self._size)), np.array(rows))
        if number == 0 or self._settings.repeats:
            return
        for place, x in enumerate(rows):  # what is known from earlier rounds is taken from there
            evaluation = self._known.get(self._recipe(x))
            if evaluation is not None:
                brood.x[place], brood.told[place] = x, evaluation
                brood.waiting.remove(place)

    def _drawn(self, rng: np.random.Generator) -> Array:
        """Draw a vector: a uniform coefficient for each expert, all else as every search over coefficients draws it.

        Where blocks have numbers of their own they scatter around one level.
        """
        space, jitter = self._space, self._settings.jitter
        low, high = space.bounds
        x = space.random(rng, self._sparsest)
        rows, experts = space.ground.rows, len(space.ground.experts)
        x[: space.weights] = np.tile(rng.uniform(low[:experts], high[:experts]), rows)
        if rows > 1:
            own = space.weights + space.ratios
            x[:own] += jitter * (high - low)[:own] * rng.standard_normal(own)
        return np.clip(x, low, high)

    def _order(self, evaluations: Sequence[Evaluation]) -> Order:
        """Return indices, best first; failures are last."""
        if self._settings.selection == "front":
            return by_front(evaluations, self._objectives, self._constraints)
        return by_fitness(evaluations, self._objectives, self._constraints, self._weights)

    def _shifted(self) -> Array:
        """Return the best models of the round over the original experts, as many as there are experts.

        Where too few went well, experts of the round stay.
        """
        now = self._round
        order = [i for i in self._order(now.evaluations) if now.evaluations[i].ok]
        once = {self._recipe(now.x[i]): i for i in reversed(order)}
        best = [self._effective(now.x[i]) for i in order if once[self._recipe(now.x[i])] == i]
        return np.array([*best, *now.basis][: len(now.basis)])

    def _source(self, place: int) -> int | None:
        """Return the index of what an offspring is made of; None where that failed, and a draw takes its place."""
        index = self._round.population[place]
        return index if self._round.evaluations[index].ok else None

    def _offspring(self) -> tuple[Array, dict[str, float]]:
        """Return what G makes of the population, shape (size, n_var), and what there is to tell of it.

        Places that were recalled already keep what was recalled.
        """
        now, space, settings = self._round, self._space, self._settings
        rng = np.random.default_rng((self._seed, DRAWS, now.number, len(now.ends)))
        draws = [self._drawn(rng) for _ in range(self._size)]
        sources = [self._source(place) for place in range(self._size)]
        x = np.array([draws[i] if source is None else now.x[source] for i, source in enumerate(sources)])
        losses = self._train(space.scaled(np.array(now.x)))
        if losses is None:  # nothing of the round went well: it goes on from draws
            return x, {}
        assert self._generators is not None
        given = space.scaled(x)
        made = self._generators(given)
        after, before = spread(made), spread(given)
        numbers = {**losses, OFFSPRING: after, POPULATION: before}
        x = space.unscaled(made)
        collapsed = after < settings.collapse * before
        recalled = self._brood.x
        taken = {self._recipe(row) for row in recalled.values()}
        for place in range(self._size):
            x[place] = recalled[place] if place in recalled else self._moved(x[place], place, collapsed, taken)
            taken.add(self._recipe(x[place]))
        return x, numbers

    def _moved(self, x: Array, place: int, collapsed: bool, taken: set[Recipe]) -> Array:
        """Return an offspring, with noise where G has collapsed, and where it would be evaluated again.

        Args:
            x: what G made.
            place: its place among the offspring.
            collapsed: whether G has.
            taken: what the places before it ask for.
        """
        now, settings, space = self._round, self._settings, self._space
        rng = np.random.default_rng((self._seed, MOVES, now.number, len(now.ends), place))
        if collapsed:
            x = space.moved(x, settings.noise, rng)
        if settings.repeats:
            return x
        return space.apart(
            x, lambda each: (made := self._recipe(each)) in self._known or made in taken, settings.noise, rng
        )

    def _train(self, u: Array) -> dict[str, float] | None:
        """Bring the generators to where the round stands; return the last losses, None if there is nothing to win by.

        Args:
            u: all vectors of the round, mapped to [-1, 1].
        """
        from sae_moo.searchers.generators import Generators

        now, settings, losses = self._round, self._settings, None
        anew = settings.retrain == "iteration"
        for iteration in range(len(now.ends) - 1 if anew else self._trained, len(now.ends)):
            evaluations = now.evaluations[: now.ends[iteration]]
            order = self._order(evaluations)
            going = sum(each.ok for each in evaluations)
            count = min(max(1, int(settings.winners * len(order))), going, len(order) - 1)
            where = (self._seed, WEIGHTS, now.number, iteration)
            if self._generators is None or anew:
                self._generators = Generators(u.shape[1], settings, (*where, 0))
            losses = None
            if count:
                losses = self._generators.train(u[order[:count]], u[order[count:]], (*where, 1))
            self._trained = iteration + 1
        return losses


def make(assignment: Assignment) -> EvogmSearcher:
    """Return EvoGM over the assigned coefficients."""
    settings = section_of(assignment.settings, Evogm)
    return EvogmSearcher(
        CoefficientSpace(assignment.ground, settings.low, settings.high, sparsity=assignment.sparsity),
        assignment.objectives,
        assignment.constraints,
        settings=settings,
        name=assignment.algorithm,
        weights=assignment.weights,
        population=assignment.population,
        sparsest=assignment.schedule.top,
        seed=assignment.seed,
    )
