"""NSGA-II and NSGA-III over merges, as a Searcher: pymoo's algorithms in our own ask/tell loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from pymoo.algorithms.moo.nsga3 import NSGA3
from pymoo.core.individual import Individual
from pymoo.core.population import Population
from pymoo.core.termination import NoTermination
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.mutation.pm import PM
from pymoo.util.ref_dirs import get_reference_directions

from sae_moo.objectives import Constraint, Evaluation, Objective
from sae_moo.searchers.annealing import CyclicAnnealing
from sae_moo.searchers.breeding import ABLATION, OPERATORS, Ablation, Operators
from sae_moo.searchers.ground import ARITHMETIC
from sae_moo.searchers.individuals import ALTERNATIVES, ORIGIN, Origin, row_of
from sae_moo.searchers.methods import MethodChoice
from sae_moo.searchers.operators import CoefficientSampling, LineageMating, RecipeDuplicates, lineage_operators
from sae_moo.searchers.problem import EVALUATION, MergeProblem
from sae_moo.searchers.ratio import AnnealedRatio
from sae_moo.searchers.schedule import Adaptive, Schedule
from sae_moo.searchers.searcher import Pace, Proposal, check_first
from sae_moo.searchers.selection import SeededTournament
from sae_moo.searchers.space import LineageSpace, Space
from sae_moo.searchers.survival import QuickNSGA2

PROPOSAL = "proposal"  # key of what was asked for


class NsgaSearcher:
    """Evolves a population of merges towards the front; see `Searcher` for the contract.

    Args:
        space: lineages (bred by `searchers.operators`) or coefficients (SBX and polynomial mutation).
        objectives: what to maximize.
        constraints: limits.
        directions: whether survivors spread by reference directions (NSGA-III, for three objectives and more), or by
            crowding (NSGA-II).
        population: size of the population, at least 4.
        seed: seed of everything drawn.
        schedule: the annealed pruning ratio over generations, or one that learns; used over lineages.
        pace: ``generational``, or ``steady-state``: every told child takes its place at once, so that no worker waits.
        settings: how children are bred over lineages.
        ablation: what of it is turned off, or on.
        allocations: over lineages, with how many allocations of its budget a pruned child is proposed.
        operators: over lineages, operators of one's own in the place of ours: ``sampling``, ``selection``,
            ``crossover``, ``mutation``.
    """

    def __init__(
        self,
        space: Space,
        objectives: Sequence[Objective],
        constraints: Sequence[Constraint] = (),
        *,
        directions: bool = False,
        population: int = 24,
        seed: int = 0,
        schedule: Schedule | Adaptive | None = None,
        pace: Pace = "generational",
        settings: Operators = OPERATORS,
        ablation: Ablation = ABLATION,
        allocations: int = 1,
        operators: dict[str, Any] | None = None,
    ) -> None:
        if population < 4:
            raise ValueError(f"population: expected at least 4, got {population}")
        self.problem = MergeProblem(space, objectives, constraints)
        self._lineage = isinstance(space, LineageSpace)
        self._pace = pace
        self._seen: set[Any] = set()
        schedule = Schedule() if schedule is None else schedule
        self._ratio = AnnealedRatio(schedule, objectives, constraints)
        self._methods: MethodChoice | None = None
        given: dict[str, Any] = {"pop_size": population, "n_offsprings": 1 if pace == "steady-state" else population}
        if isinstance(space, LineageSpace):
            given |= lineage_operators(space.ground, schedule.top, settings, ablation, allocations)
            given |= {"eliminate_duplicates": RecipeDuplicates(self._seen)}
            if settings.methods:
                self._methods = MethodChoice((ARITHMETIC, *settings.methods), objectives, constraints)
                given["crossover"].method = self._methods.drawn
            given |= operators or {}
            given["mating"] = LineageMating(given["selection"], given["crossover"], given["mutation"], self._seen)
            if isinstance(schedule, Schedule):  # the first mating comes after the callback's first call
                given["callback"] = CyclicAnnealing(schedule, per=population if pace == "steady-state" else 1)
            else:
                given["mutation"].ratio = self._ratio.drawn
        else:
            given |= {
                "sampling": CoefficientSampling(space, schedule.top),
                "selection": SeededTournament(),  # pymoo's own tosses an unseeded coin between equally infeasible ones
                "crossover": SBX(eta=15, prob=0.9),
                "mutation": PM(eta=20),
            }
        if directions:
            self._algorithm = NSGA3(ref_dirs=reference_directions(len(objectives), population), **given)
        else:
            self._algorithm = QuickNSGA2(**given)
        self._algorithm.setup(self.problem, termination=NoTermination(), seed=seed)
        self._first = True
        self._waiting: deque[Individual] = deque()  # born, not yet asked for
        self._out: dict[Any, list[Individual]] = {}  # asked for, not yet told
        self._told: list[Individual] = []
        self._brood: list[Individual] = []
        self._guests: list[Individual] = []  # of other searches, while there is no population yet

    def ask(self, n: int) -> Sequence[Proposal]:
        """Return up to `n` proposals; none while the generation still has evaluations out."""
        proposals: list[Proposal] = []
        while len(proposals) < n and (proposal := self._next()) is not None:
            proposals.append(proposal)
        return proposals

    def tell(self, proposal: Proposal, evaluation: Evaluation) -> None:
        """Take in one evaluation.

        Raises:
            KeyError: if the proposal is not one that is out.
        """
        individuals = self._out[proposal.recipe]
        individual = individuals.pop(0)
        if not individuals:
            del self._out[proposal.recipe]
        individual.F, individual.G = self.problem.outcome(evaluation)
        individual.set(EVALUATION, evaluation)
        if self._lineage:  # with scopes resolved, so that children inherit what takes one pass
            individual.X = row_of(evaluation.recipe)
            self._seen.add(evaluation.recipe)
        individual.set(PROPOSAL, proposal)
        self._told.append(individual)
        if self._first or self._pace == "generational":
            if len(self._told) == len(self._brood):
                self._advance(self._brood)  # in the order asked, whatever order the workers finished in
        else:
            self._advance([individual])

    def host(self, evaluation: Evaluation) -> None:
        """Let a candidate of another search compete for a place in the population; see `Hosting`.

        Raises:
            ValueError: if it searches coefficients: the recipe of another search does not tell its vector.
        """
        if not self._lineage:
            raise ValueError("expected a search over lineages")
        guest = Individual(X=row_of(evaluation.recipe))
        guest.F, guest.G = self.problem.outcome(evaluation)
        guest.set(EVALUATION, evaluation)
        self._seen.add(evaluation.recipe)
        self._guests.append(guest)
        if not self._first:
            self._seat()

    def _seat(self) -> None:
        """Choose the population anew among its members and the guests."""
        algorithm, guests = self._algorithm, self._guests
        if guests:
            algorithm.pop = algorithm.survival.do(
                algorithm.problem,
                Population.merge(algorithm.pop, Population.create(*guests)),
                n_survive=algorithm.pop_size,
                algorithm=algorithm,
                random_state=algorithm.random_state,
            )
        self._guests = []

    def _next(self) -> Proposal | None:
        if not self._waiting and not self._breed():
            return None
        individual = self._waiting.popleft()
        proposal = self._proposal(individual)
        if self._lineage:
            self._seen.add(proposal.recipe)
        self._out.setdefault(proposal.recipe, []).append(individual)
        return proposal

    def _learn(self, proposal: Proposal, evaluation: Evaluation) -> None:
        """Take in what an evaluation says of how children are best made."""
        self._ratio.tell(proposal, evaluation)
        if self._methods is not None:
            self._methods.tell(proposal, evaluation)

    def _advance(self, individuals: Sequence[Individual]) -> None:
        for individual in individuals:
            self._learn(individual.get(PROPOSAL), individual.get(EVALUATION))
        if self._first:
            check_first([individual.get(EVALUATION) for individual in individuals])
        self._algorithm.tell(infills=Population.create(*individuals))
        self._first = False
        self._told = []
        self._seat()

    def _breed(self) -> bool:
        steady = self._pace == "steady-state" and not self._first
        if self._out and not steady:
            return False
        drawn = self._algorithm.random_state.bit_generator.state
        born = self._algorithm.ask()
        if born is None or len(born) == 0:
            self._algorithm.random_state.bit_generator.state = drawn  # nobody replays an ask that came to nothing
            return False
        self._waiting.extend(born)
        self._brood = list(born)
        return True

    def _proposal(self, individual: Individual) -> Proposal:
        origin = individual.get(ORIGIN) or Origin("first vectors" if self._first else "sbx")
        return Proposal(
            recipe=self.problem.space.decode(individual.X),
            parents=tuple(parent.recipe for parent in origin.parents),
            operator=origin.operator,
            generation=self._generation(),
            numbers=dict(origin.numbers),
            alternatives=individual.get(ALTERNATIVES) or (),
        )

    def _generation(self) -> int:
        done = (self._algorithm.n_iter or 1) - 1
        if self._pace == "generational" or done == 0:
            return int(done)
        return 1 + (int(done) - 1) // int(self._algorithm.pop_size)


def reference_directions(objectives: int, population: int) -> Any:
    """Return the finest Das-Dennis lattice with at most `population` directions; shape (directions, objectives)."""
    if objectives == 1:
        return np.ones((1, 1))
    lattice = get_reference_directions("das-dennis", objectives, n_partitions=1)
    for partitions in range(2, population + 1):
        finer = get_reference_directions("das-dennis", objectives, n_partitions=partitions)
        if len(finer) > population:
            break
        lattice = finer
    return lattice
