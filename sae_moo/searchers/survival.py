"""NSGA-II as pymoo has it, without what costs a search by many workers most and changes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2, RankAndCrowding
from pymoo.core.population import Population


class QuickRankAndCrowding(RankAndCrowding):  # type: ignore[misc]  # pymoo carries no types
    """Survival by rank and crowding that reads violations once for each individual; pymoo's reads all by name."""

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


class QuickNSGA2(NSGA2):  # type: ignore[misc]
    """NSGA-II that does not look for its best after every evaluation: `opt` stays None; see `objectives.front`."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(survival=QuickRankAndCrowding(), **kwargs)

    def _set_optimum(self) -> None:
        pass
