"""Survival: what pymoo's own does, whoever asks."""

from __future__ import annotations

import numpy as np
import pytest
from pymoo.algorithms.moo.nsga2 import NSGA2, RankAndCrowding
from pymoo.core.individual import Individual
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.operators.sampling.rnd import FloatRandomSampling
from pymoo.operators.survival.rank_and_crowding.metrics import get_crowding_function

from sae_moo.searchers.survival import QuickNSGA2, QuickRankAndCrowding, crowding

LIMITED = Problem(n_var=2, n_obj=2, n_ieq_constr=1, xl=0.0, xu=1.0)


def population(rng, count, feasible):
    """Individuals on a coarse grid, so that many are equal; of those that break a limit some break it as much."""
    members = []
    for number in range(count):
        member = Individual(X=np.array([number, 0.0]))
        member.F = rng.integers(0, 6, 2) / 5.0
        member.G = np.array([-1.0 if rng.random() < feasible else float(rng.integers(0, 3)) / 2 + 0.5])
        members.append(member)
    return Population.create(*members)


@pytest.mark.parametrize("feasible", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kept", [1, 12, 24, 30, None])
def test_it_keeps_whom_pymoo_keeps_in_the_same_order_with_the_same_ranks(feasible, kept):
    for seed in range(20):
        told = []
        for survival in (RankAndCrowding(), QuickRankAndCrowding()):
            pop = population(np.random.default_rng(seed), 25, feasible)
            rng = np.random.default_rng(seed)
            survivors = survival.do(LIMITED, pop, n_survive=kept, random_state=rng)
            rows = [(each.X[0], each.get("rank"), each.get("crowding")) for each in survivors]
            told.append((rows, rng.random()))
        assert told[0] == told[1]


@pytest.mark.parametrize("objectives", [1, 2, 3, 5, 8, 9, 17])
def test_members_are_as_far_from_each_other_as_pymoo_says(objectives):
    rng, pymoos = np.random.default_rng(0), get_crowding_function("cd")
    for members in (1, 2, 3, 4, 9, 40):
        for values in (
            rng.random((members, objectives)),
            rng.integers(0, 3, (members, objectives)) / 3.0,
            np.zeros((members, objectives)),
            -rng.integers(0, 2, (members, objectives)) * rng.random(objectives),
        ):
            np.testing.assert_array_equal(crowding(values), pymoos.do(values))


class Discs(Problem):
    def __init__(self):
        super().__init__(n_var=3, n_obj=2, n_ieq_constr=1, xl=0.0, xu=1.0)

    def _evaluate(self, x, out, *args, **kwargs):
        out["F"] = np.stack([x[:, 0], 1.0 - x[:, 0] + x[:, 1:].sum(axis=1)], axis=1).round(2)
        out["G"] = 0.3 - x[:, :1]


def test_a_search_takes_the_way_of_pymoos():
    fronts = []
    for made in (NSGA2, QuickNSGA2):
        algorithm = made(pop_size=12, n_offsprings=1, sampling=FloatRandomSampling())
        algorithm.setup(Discs(), termination=("n_eval", 120), seed=3)
        while algorithm.evaluator.n_eval < 100:
            born = algorithm.ask()
            algorithm.evaluator.eval(algorithm.problem, born)
            algorithm.tell(infills=born)
        fronts.append(np.column_stack([algorithm.pop.get("X"), algorithm.pop.get("F")]))
    np.testing.assert_array_equal(*fronts)
