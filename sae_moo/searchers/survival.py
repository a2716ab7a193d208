"""NSGA-II as pymoo has it, without what costs a search by many workers most and changes nothing."""

from __future__ import annotations

from functools import reduce
from itertools import pairwise
from operator import add
from typing import Any

import numpy as np
from moocore import pareto_rank
from numpy.typing import NDArray
from pymoo.algorithms.moo.nsga2 import NSGA2, RankAndCrowding
from pymoo.core.population import Population
from pymoo.util.randomized_argsort import randomized_argsort

from sae_moo.objectives.scores import SEQUENTIAL


class QuickRankAndCrowding(RankAndCrowding):  # type: ignore[misc]  # pymoo carries no types
    """Survival by rank and crowding that reads violations and values once, where pymoo's asks for all by name."""

    def __init__(self) -> None:
        super().__init__()

    def do(
        self, problem: Any, pop: Any, *args: Any, n_survive: int | None = None, random_state: Any = None, **kwargs: Any
    ) -> Any:
        """Return the survivors: feasible ones by rank and crowding, then others by how far they break the limits.

        Args:
            problem: the pymoo problem, which has constraints.
            pop: evaluated individuals.
            *args: pymoo's.
            n_survive: how many survive; None: all.
            random_state: the generator drawn from where crowding ties.
            **kwargs: pymoo's.
        """
        count = len(pop) if n_survive is None else min(n_survive, len(pop))
        violation = np.array([individual.CV[0] for individual in pop], dtype=np.float64)
        feasible = violation <= 0.0
        kept = Population()
        if feasible.any():
            most = min(int(feasible.sum()), count)
            kept = self._do(problem, pop[feasible], *args, n_survive=most, random_state=random_state, **kwargs)
        if len(kept) < count:
            others = np.flatnonzero(~feasible)
            others = others[np.argsort(violation[others])]
            kept = Population.merge(kept, pop[others[: count - len(kept)]])
        return kept

    def _do(self, problem: Any, pop: Any, *args: Any, n_survive: int, random_state: Any = None, **kwargs: Any) -> Any:
        members = pop.tolist()
        values = np.array([individual.F for individual in members], dtype=np.float64)
        fronts: dict[int, list[int]] = {}
        for i, rank in enumerate(pareto_rank(values).tolist()):
            fronts.setdefault(rank, []).append(i)
        survivors: list[int] = []
        for rank in sorted(fronts):
            front, room = fronts[rank], n_survive - len(survivors)
            if not room:
                break
            distance = crowding(values[front])
            for i, each in zip(front, distance, strict=True):
                data = members[i].data
                data["rank"], data["crowding"] = rank, each
            if len(front) > room:
                order = randomized_argsort(
                    np.array(distance), order="descending", method="numpy", random_state=random_state
                )
                front = [front[i] for i in order[:room]]
            survivors += front
        return pop[survivors]


def crowding(values: NDArray[np.float64]) -> list[float]:
    """Return the crowding distance of the members of a front (Deb et al. 2002), the very numbers that pymoo computes.

    Args:
        values: of the objectives, finite, shape (members, objectives).

    Returns:
        One number for each member: the larger, the lonelier; infinite for the ends of every objective that differs.
    """
    members, objectives = values.shape
    if members <= 2:
        return [np.inf] * members
    shares = [[0.0] * members for _ in range(objectives)]
    for share, column in zip(shares, values.T.tolist(), strict=True):  # fronts are small: numbers take less than arrays
        order = sorted(range(members), key=column.__getitem__)
        extent = column[order[-1]] - column[order[0]]
        if extent == 0.0:
            continue
        gaps = [np.inf, *[(column[b] - column[a]) / extent for a, b in pairwise(order)], np.inf]
        for i, before, after in zip(order, gaps, gaps[1:], strict=False):
            share[i] = before + after
    if objectives < SEQUENTIAL:
        return [reduce(add, each, 0.0) / objectives for each in zip(*shares, strict=True)]
    distance: list[float] = (np.array(shares).T.copy().sum(axis=1) / objectives).tolist()
    return distance


class QuickNSGA2(NSGA2):  # type: ignore[misc]
    """NSGA-II that does not look for its best after every evaluation: `opt` stays None; see `objectives.front`."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(survival=QuickRankAndCrowding(), **kwargs)

    def _set_optimum(self) -> None:
        pass
