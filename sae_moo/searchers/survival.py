"""NSGA-II as pymoo has it, without what costs a search by many workers most and changes nothing."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymoo.algorithms.moo.nsga2 import NSGA2, RankAndCrowding
from pymoo.core.population import Population
from pymoo.util.randomized_argsort import randomized_argsort


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
        values = np.array([individual.F for individual in pop], dtype=np.float64)
        survivors: list[int] = []
        for rank, front in enumerate(self.nds.do(values, n_stop_if_ranked=n_survive)):
            distance = crowding(values[front])
            for i, each in zip(front, distance, strict=True):
                pop[i].data["rank"], pop[i].data["crowding"] = rank, each
            room = n_survive - len(survivors)
            if len(front) > room:
                order = randomized_argsort(distance, order="descending", method="numpy", random_state=random_state)
                front = front[order[:room]]
            survivors.extend(front)
        return pop[survivors]


def crowding(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the crowding distance of the members of a front (Deb et al. 2002), the very numbers that pymoo computes.

    Args:
        values: of the objectives, finite, shape (members, objectives).

    Returns:
        The larger, the lonelier; infinite for the ends of every objective that differs; shape (members,).
    """
    members, objectives = values.shape
    if members <= 2:
        return np.full(members, np.inf)
    shares = np.zeros((members, objectives))
    for objective, column in enumerate(values.T.tolist()):  # fronts are small: numbers take less time than arrays
        order = sorted(range(members), key=column.__getitem__)
        extent = column[order[-1]] - column[order[0]]
        if extent == 0.0:
            continue
        gaps = [np.inf, *[(column[b] - column[a]) / extent for a, b in pairwise(order)], np.inf]
        shares[order, objective] = [before + after for before, after in pairwise(gaps)]
    distance: NDArray[np.float64] = shares.sum(axis=1) / objectives
    return distance


class QuickNSGA2(NSGA2):  # type: ignore[misc]
    """NSGA-II that does not look for its best after every evaluation: `opt` stays None; see `objectives.front`."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(survival=QuickRankAndCrowding(), **kwargs)

    def _set_optimum(self) -> None:
        pass
