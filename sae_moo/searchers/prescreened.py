"""Our own search, pre-screened: of the children that are bred those are evaluated that are expected to gain most.

Ours. A surrogate of each objective is learned from what this study has evaluated, whenever another population is
complete; what a child is expected to add to the front of it decides (`improvement`). Those chosen before it in its
generation, and those still out, count as if they had come to what is expected of them, so that no two are chosen for
the same reason (the kriging believer of Ginsbourger, Le Riche and Carraro 2010).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pymoo.core.individual import Individual

from sae_moo.objectives import Constraint, Evaluation, Objective, scored
from sae_moo.objectives.front import Array, front_of
from sae_moo.prediction.improvement import expected_gains
from sae_moo.prediction.table import FeatureTable
from sae_moo.recipe import Recipe
from sae_moo.searchers.breeding import OPERATORS, Operators
from sae_moo.searchers.coordinates import Coordinates
from sae_moo.searchers.ground import ARITHMETIC
from sae_moo.searchers.individuals import ORIGIN, Origin
from sae_moo.searchers.nsga import NsgaSearcher
from sae_moo.searchers.outlook import Outlook, Outlooks
from sae_moo.searchers.prescreening import EXPLORED, GAIN, Prescreening, predicted, uncertainty
from sae_moo.searchers.problem import EVALUATION
from sae_moo.searchers.searcher import Proposal
from sae_moo.searchers.space import Space

PLACE = "place"  # key of which child of those bred an individual is
EXPLORE, DRAWS = range(2)  # what random numbers are for


class PrescreeningNsga(NsgaSearcher):
    """NSGA-II or NSGA-III of whose children those are evaluated that promise most; see `NsgaSearcher`.

    A child that was chosen is known by its place among those bred, so that one that is recalled needs no learning.

    Args:
        space: lineages or coefficients.
        objectives: what is maximized.
        constraints: limits; what is known to break one is chosen last.
        prescreening: how many are bred, and when.
        population: size of the population.
        seed: seed of everything drawn.
        features: of the ordered pairs of experts, told to the surrogate too; None: there are none.
        **others: of `NsgaSearcher`.
    """

    def __init__(
        self,
        space: Space,
        objectives: Sequence[Objective],
        constraints: Sequence[Constraint] = (),
        *,
        prescreening: Prescreening,
        population: int = 24,
        seed: int = 0,
        features: FeatureTable | None = None,
        **others: Any,
    ) -> None:
        super().__init__(space, objectives, constraints, population=population, seed=seed, **others)
        self._settings = prescreening
        self._size, self._seed = population, seed
        breeding: Operators = others.get("settings", OPERATORS)
        methods = (ARITHMETIC, *breeding.methods) if breeding.methods and self._lineage else ()
        self._coordinates = Coordinates(space.ground, features, methods)
        self._usual = int(self._algorithm.n_offsprings)
        self._history: list[Evaluation] = []
        self._hosted: list[Evaluation] = []  # what other searches have found
        self._strangers = 0  # of these, how many were there when the pool was bred
        self._broods = 0
        self._pool: list[Individual] = []  # what was bred, of which some are chosen
        self._pending: list[Recipe] = []  # what was out then
        self._taken: set[int] = set()  # places of those that were chosen and asked for
        self._choice: list[tuple[int, dict[str, float]]] | None = None  # places in order, with their numbers
        self._learned: tuple[int, Outlooks] | None = None  # from so many evaluations

    def recall(self, vector: tuple[float, ...]) -> Proposal | None:
        """Return the next proposal: the child at a place among those bred, or the next where none are left out."""
        if not self._waiting and not self._breed():
            return None
        if bool(self._pool) != bool(vector):
            return None
        if vector:
            (place,) = vector if len(vector) == 1 else (-1.0,)
            if place not in range(len(self._pool)) or int(place) in self._taken:
                return None
            self._become(self._waiting[0], int(place), {})
        return self._next()

    def host(self, evaluation: Evaluation) -> None:
        """Let a candidate of another search compete, and be improved upon: nothing is learned from it."""
        super().host(evaluation)
        self._hosted.append(evaluation)

    def _breed(self) -> bool:
        screens = not self._first and len(self._history) >= self._settings.after * self._size
        self._algorithm.n_offsprings = self._usual * ((self._settings.factor or 1) if screens else 1)
        if not super()._breed():
            return False
        self._pool, self._taken, self._choice = [], set(), None
        if screens:
            self._broods, self._strangers = self._broods + 1, len(self._hosted)
            self._pool, self._pending = self._brood, [recipe for recipe, some in self._out.items() for _ in some]
            self._brood = [Individual() for _ in self._pool[: self._usual]]
            self._waiting = deque(self._brood)
        return True

    def _proposal(self, individual: Individual) -> Proposal:
        if self._pool and individual.get(PLACE) is None:
            if self._choice is None:
                self._choice = self._chosen()
            place, numbers = next(each for each in self._choice if each[0] not in self._taken)
            self._become(individual, place, numbers)
        place = individual.get(PLACE)
        proposal = super()._proposal(individual)
        return proposal if place is None else replace(proposal, vector=(float(place),))

    def _become(self, individual: Individual, place: int, numbers: dict[str, float]) -> None:
        """Make an individual the child at a place among those bred."""
        child = self._pool[place]
        individual.X, individual.data = child.X, dict(child.data)
        origin = child.get(ORIGIN) or Origin("sbx")
        individual.set(ORIGIN, replace(origin, numbers={**origin.numbers, **numbers}))
        individual.set(PLACE, place)
        self._taken.add(place)

    def _advance(self, individuals: Sequence[Individual]) -> None:
        super()._advance(individuals)
        self._history += [each.get(EVALUATION) for each in individuals]

    def _chosen(self) -> list[tuple[int, dict[str, float]]]:
        """Choose among what was bred, best first; those that explore are strewn in."""
        outlooks, seed = self._outlooks(), (self._seed, DRAWS, self._broods)
        left, chosen = list(range(len(self._pool))), []
        if not outlooks:
            return [(place, {EXPLORED: 1.0}) for place in left]
        rng = np.random.default_rng((self._seed, EXPLORE, self._broods))
        exploring = rng.random(len(self._brood)) < self._settings.explore
        outlook = outlooks([self.problem.space.decode(each.X) for each in self._pool])
        known = [*self._history, *self._hosted[: self._strangers]]
        points = front_of(known, self.problem.objectives, self.problem.constraints).points
        if self._pending:
            points = _believed(points, outlooks(self._pending))
        for explores in exploring.tolist():
            gains = expected_gains(points, outlook.means[left], outlook.spreads[left], seed) * outlook.keeping[left]
            best = 0 if explores else int(np.lexsort((-outlook.keeping[left], -gains))[0])
            place = left.pop(best)
            chosen.append((place, self._numbers(outlook, place, float(gains[best]), explores)))
            points = _believed(points, outlook, place)
        return chosen

    def _outlooks(self) -> Outlooks:
        """Return what was learned from the newest whole populations."""
        count = len(self._history) // self._size * self._size
        if self._learned is None or self._learned[0] != count:
            known = self._history[max(0, count - self._settings.newest) : count]
            outlooks = Outlooks(self._coordinates, self.problem.objectives, self.problem.constraints, known, self._size)
            self._learned = count, outlooks
        return self._learned[1]

    def _numbers(self, outlook: Outlook, place: int, gain: float, explores: bool) -> dict[str, float]:
        numbers = {EXPLORED: float(explores), GAIN: gain}
        names = [each.name for each in self.problem.objectives]
        for objective in scored(self.problem.objectives):
            i = names.index(objective.name)
            numbers[predicted(objective.name)] = float(outlook.means[place, i])
            numbers[uncertainty(objective.name)] = float(outlook.spreads[place, i])
        return numbers


def _believed(points: Array, outlook: Outlook, place: int | None = None) -> Array:
    """Return the points of a front with what is expected of candidates that are likely to keep the limits."""
    some = outlook.keeping >= 0.5
    if place is not None:
        some &= np.arange(len(some)) == place
    return np.vstack([points, outlook.means[some]])
