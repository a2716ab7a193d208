"""Who breeds with whom, as pymoo selections: by tournament, and by attraction.

Source: Abrantes et al. 2025 (M2N2, arXiv 2508.16204).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymoo.core.individual import Individual
from pymoo.core.selection import Selection

from sae_moo.objectives import Evaluation
from sae_moo.searchers import fitness
from sae_moo.searchers.breeding import ABLATION, Ablation
from sae_moo.searchers.individuals import ORIGIN, TOTAL, Rng, required
from sae_moo.searchers.problem import EVALUATION

ARRAYS = "arrays"  # key of an individual's evaluation with its scores and sparsities as arrays
FOUNDERS = "founders"  # key of the evaluated original experts in `algorithm.data`


@dataclass(frozen=True, slots=True)
class _Tables:
    """What parents are chosen by.

    Args:
        evaluations: of those who may be parents, then of the founders that are not among them.
        scores: of each of them, shape (candidates, instances).
        weight: of each instance, shape (instances,).
        totals: local SAE score of each candidate per group, shape (candidates, groups).
    """

    evaluations: list[Evaluation]
    scores: NDArray[np.float64]
    weight: NDArray[np.float64]
    totals: NDArray[np.float64]


class SeededTournament(Selection):  # type: ignore[misc]
    """Choose parents by binary tournament: constraint violation, then rank, then crowding, then a tossed coin."""

    def _do(
        self,
        problem: Any,
        pop: Any,
        n_select: int,
        n_parents: int,
        *args: Any,
        random_state: Rng | None = None,
        **kw: Any,
    ) -> Any:
        rng = required(random_state)
        return np.array([[_tournament(pop, rng) for _ in range(n_parents)] for _ in range(n_select)])


class AttractionMating(Selection):  # type: ignore[misc]
    """Pair parents: the first by binary tournament, the second because it is good where the first is not.

    The tournament compares constraint violation, then rank, then crowding, then tosses a coin. The second parent is
    drawn in proportion to its attraction on per-instance scores (`fitness.attraction`), by total score when nobody
    complements the first. With probability `founders` it is an original expert, so that lost material can come back.
    The parents' local SAE scores are noted on them for the crossover. Failed evaluations are no parents.

    Args:
        ablation: `founders`; and `attraction`, without which the second parent is drawn by a second tournament.
    """

    def __init__(self, ablation: Ablation = ABLATION) -> None:
        super().__init__()
        self.ablation = ablation
        self._tables: _Tables | None = None  # of those that were chosen among last

    def _do(
        self,
        problem: Any,
        pop: Any,
        n_select: int,
        n_parents: int,
        *args: Any,
        random_state: Rng | None = None,
        algorithm: Any = None,
        **kwargs: Any,
    ) -> Any:
        if n_parents != 2:
            raise ValueError(f"AttractionMating: expected a crossover of 2 parents, got {n_parents}")
        rng = required(random_state)
        usable = [individual for individual in pop if individual.data[EVALUATION].ok]
        if not usable:
            raise ValueError("AttractionMating: expected at least one candidate whose evaluation did not fail")
        founders = _founders(usable, algorithm)
        inside = set(map(id, usable))
        everyone = usable + [founder for founder in founders if id(founder) not in inside]
        tables = self._tables_of(everyone)
        scores, weight = tables.scores[: len(usable)], tables.weight
        pairs = np.empty((n_select, 2), dtype=object)
        for pair in pairs:
            first = _tournament(usable, rng)
            if founders and rng.random() < self.ablation.founders:
                founder = founders[int(rng.integers(len(founders)))]
                second = next(i for i, individual in enumerate(everyone) if individual is founder)
            elif self.ablation.attraction:
                pull = fitness.attraction(scores, first, weight)
                if not pull.sum() > 0:  # nobody complements it
                    overall = np.array([individual.data[EVALUATION].sparsity for individual in usable])
                    pull = fitness.total(scores, overall, weight)
                second = _drawn(pull, rng)
            else:
                second = _tournament(usable, rng)
            pair[0], pair[1] = everyone[first], everyone[second]
            for i in (first, second):
                everyone[i].data[TOTAL] = tables.totals[i]
        return pairs

    def _tables_of(self, everyone: list[Individual]) -> _Tables:
        """Return what parents are chosen by; most children do not survive, and leave it as it was."""
        evaluations = [individual.data[EVALUATION] for individual in everyone]
        tables = self._tables
        same = tables is not None and len(tables.evaluations) == len(evaluations)
        if tables is None or not same or not all(map(is_, tables.evaluations, evaluations)):
            scores, sparsity = map(_table, zip(*map(_arrays, everyone), strict=True))
            weight = fitness.instance_weights(evaluations[0])
            tables = _Tables(evaluations, scores, weight, fitness.total(scores, sparsity, weight))
            self._tables = tables
        return tables


def _arrays(individual: Individual) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return an individual's scores, shape (instances,), and sparsities, shape (groups,), which it keeps."""
    evaluation = individual.data[EVALUATION]
    known = individual.data.get(ARRAYS)
    if known is None or known[0] is not evaluation:
        found = fitness.instances(evaluation), np.array(evaluation.group_sparsity)
        known = individual.data[ARRAYS] = evaluation, found
    arrays: tuple[NDArray[np.float64], NDArray[np.float64]] = known[1]
    return arrays


def _table(rows: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return rows of one length as an array, as `np.stack` does, which looks at each of them."""
    return np.concatenate(rows).reshape(len(rows), len(rows[0]))


def _founders(usable: list[Individual], algorithm: Any) -> list[Individual]:
    """Return the original experts as first evaluated, remembered in the algorithm's own data."""
    data: dict[str, Any] = {} if algorithm is None else algorithm.data
    if FOUNDERS not in data:
        made = [(individual, individual.get(ORIGIN)) for individual in usable]
        data[FOUNDERS] = [individual for individual, origin in made if origin and origin.operator == "expert"]
    founders: list[Individual] = data[FOUNDERS]
    return founders


def _tournament(pop: list[Individual], rng: Rng) -> int:
    a, b = map(int, rng.integers(len(pop), size=2))
    first, second = _standing(pop[a]), _standing(pop[b])
    if first == second:
        return a if rng.random() < 0.5 else b
    return a if first < second else b


def _drawn(shares: NDArray[np.float64], rng: Rng) -> int:
    """Draw in proportion to shares, of which none is negative and one is not 0, as `Generator.choice` does."""
    total = shares.sum()
    if not 0.0 < total < np.inf or shares.min() < 0.0:
        raise ValueError(f"expected shares of at least 0, some above, got {shares}")
    below = (shares / total).cumsum()
    return int((below / below[-1]).searchsorted(rng.random(), side="right"))


def _standing(individual: Individual) -> tuple[float, int, float]:
    """Return what the smaller of wins a tournament: violation, rank, and how crowded it is."""
    data = individual.data
    return float(individual.CV[0]), data.get("rank") or 0, -(data.get("crowding") or 0.0)
