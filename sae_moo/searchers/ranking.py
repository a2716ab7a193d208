"""Who is better: evaluations in the order of one number, or of rank and crowding on the front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sae_moo.objectives import Constraint, Evaluation, Objective, loss, minimized, violations
from sae_moo.objectives.front import Accuracy

Order = NDArray[np.int64]


def weights_of(objectives: Sequence[Objective], weights: Mapping[str, float] | None) -> dict[str, float]:
    """Return objective name -> how much it counts in one number: as given, else in the mean of those scored on tasks.

    Where none is scored on tasks all count the same.
    """
    if weights is not None:
        return dict(weights)
    return Accuracy(objectives).weights or {objective.name: 1.0 for objective in objectives}


def by_fitness(
    evaluations: Sequence[Evaluation],
    objectives: Sequence[Objective],
    constraints: Sequence[Constraint],
    weights: Mapping[str, float],
) -> Order:
    """Return the evaluations' indices, best first, by `objectives.loss`; of equal ones the earlier comes first."""
    losses = [loss(objectives, weights, constraints, each) for each in evaluations]
    return np.argsort(losses, kind="stable").astype(np.int64)


def by_front(
    evaluations: Sequence[Evaluation], objectives: Sequence[Objective], constraints: Sequence[Constraint]
) -> Order:
    """Return the evaluations' indices, best first, as survivors are chosen in NSGA-II (Deb et al. 2002).

    What keeps all limits comes by its rank, then by how far its neighbours on the front are; after it what breaks a
    limit, by how much; failures are last. Of equal ones the earlier comes first.
    """
    from pymoo.operators.survival.rank_and_crowding.metrics import calc_crowding_distance
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    broken = np.array([np.maximum(violations(constraints, each), 0.0).sum() for each in evaluations])
    whole = np.flatnonzero(broken == 0.0)
    order: list[int] = []
    if len(whole):
        values = np.array([minimized(objectives, evaluations[i]) for i in whole.tolist()])
        for front in NonDominatedSorting().do(values):
            front = np.sort(front)
            order += whole[front[np.argsort(-calc_crowding_distance(values[front]), kind="stable")]].tolist()
    rest = np.flatnonzero(broken > 0.0)
    return np.array([*order, *rest[np.argsort(broken[rest], kind="stable")]], dtype=np.int64)
