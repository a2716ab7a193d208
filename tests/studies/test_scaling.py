"""Workers on a clock of their own, and what the study of many workers measures by them."""

from __future__ import annotations

import pytest
from clocks import Batched, Skewed, VirtualCrew
from utilisation import GOAL, searched, steady

from sae_moo.recipe import Cast, Expert, Merge
from sae_moo.study.executor import Job
from sae_moo.study.pool import PooledExecutor
from sae_moo.testing.searchers import Landscape

SECONDS = [3.0, 1.0, 1.0, 1.0, 2.0, 5.0]
RECIPES = [Cast(Merge("linear", (Expert("math"), Expert("code")), (0.1 * (i + 1), 1.0)), "float32") for i in range(6)]


def run(executor):
    """Return the jobs in the order in which they came back."""
    waiting, back = [Job(i, (recipe,)) for i, recipe in enumerate(RECIPES)], []
    while waiting or executor.busy:
        while waiting and executor.free:
            executor.submit(waiting.pop(0))
        back.append(executor.wait())
    return back


@pytest.mark.parametrize(
    ("workers", "batched", "order", "took"),
    [
        (1, False, [0, 1, 2, 3, 4, 5], 13.0),
        (2, False, [1, 2, 0, 3, 4, 5], 8.0),  # from 3 on there are 4 and 5
        (2, True, [1, 0, 2, 3, 4, 5], 9.0),  # 3, then 1, then 5
        (8, False, [1, 2, 3, 4, 0, 5], 5.0),
    ],
)
def test_answers_come_in_the_order_of_the_clock(workers, batched, order, took):
    seconds = dict(zip(RECIPES, SECONDS, strict=True))
    crew = VirtualCrew(workers, Landscape(), seconds.__getitem__)
    executor = PooledExecutor(crew)
    back = run(Batched(executor) if batched else executor)
    assert [answer.number for answer in back] == order
    assert [answer.evaluation.seconds for answer in back] == [SECONDS[i] for i in order]
    assert crew.now == took


def test_what_the_driver_spends_goes_by_on_the_clock():
    spent = [0.0]
    crew = VirtualCrew(1, Landscape(), lambda recipe: 1.0, lambda: spent[0])
    executor = PooledExecutor(crew)
    executor.submit(Job(0, (RECIPES[0],)))
    executor.wait()
    spent[0] += 0.5
    executor.submit(Job(1, (RECIPES[1],)))
    executor.wait()
    assert crew.now == 2.5


def test_durations_are_skewed_and_a_recipe_has_one():
    recipes = [Cast(Merge("linear", (Expert("math"), Expert("code")), (i / 500, 1.0)), "float32") for i in range(500)]
    seconds = [Skewed(2.0)(recipe) for recipe in recipes]
    assert sum(seconds) / 500 == pytest.approx(2.0, rel=0.1)
    assert sorted(seconds)[250] == pytest.approx(2.0 * 0.783, rel=0.1)  # exp(-sigma^2 / 2)
    assert Skewed(4.0)(recipes[0]) == pytest.approx(2 * seconds[0])


def test_in_steady_state_eight_workers_evaluate_nearly_all_the_time_and_in_batches_they_wait():
    shares = {}
    for batched in (False, True):
        executor = PooledExecutor(VirtualCrew(8, Landscape(), Skewed()))
        shares[batched] = steady(searched(Batched(executor) if batched else executor, "steady-state", 96), 8)
    assert shares[False] >= GOAL
    assert shares[True] < 0.7
