from __future__ import annotations

import math

import numpy as np
import pytest

from sae_moo.objectives import (
    FAILED_OBJECTIVE,
    Constraint,
    Evaluation,
    Objective,
    Sparsity,
    Speed,
    TaskMean,
    loss,
    minimized,
    named_quantities,
    scored,
    violations,
)
from sae_moo.objectives.front import Front, front_of
from sae_moo.objectives.scores import mean, stderr
from sae_moo.recipe import Expert

DONE = Evaluation(Expert("a"), {"x": (1, 0, 1, 1), "y": (0.25, 0.75)}, 0.4, (0.0, 0.8))
FAILED = Evaluation(Expert("a"), reason="out of memory")
ACCURACY, SPARSITY = TaskMean("accuracy", ("x", "y")), Sparsity()


def test_values_and_standard_errors():
    assert DONE.mean("x") == 0.75
    assert DONE.stderr("x") == pytest.approx(np.std([1, 0, 1, 1], ddof=1) / 2)
    assert math.isnan(Evaluation(Expert("a"), {"x": (1,)}).stderr("x"))
    assert ACCURACY.value(DONE) == 0.625
    assert ACCURACY.stderr(DONE) == pytest.approx(math.hypot(DONE.stderr("x"), DONE.stderr("y")) / 2)
    assert (SPARSITY.value(DONE), SPARSITY.stderr(DONE)) == (0.4, 0.0)


def test_tasks_are_summed_up_together_as_each_alone():
    rng = np.random.default_rng(0)
    lengths = {"a": 1, "b": 1, "c": 7, "d": 300, "e": 300, "f": 300, "g": 1319}
    for _ in range(20):
        given = {
            name: tuple(rng.random(count).round(int(rng.integers(0, 9))).tolist()) for name, count in lengths.items()
        }
        evaluation = Evaluation(Expert("x"), given)
        for name, row in evaluation.scores.items():
            assert evaluation.mean(name) == mean(row)
            assert repr(evaluation.stderr(name)) == repr(stderr(row)), "not a number for a single instance"


def test_signs_flip_here():
    assert minimized([ACCURACY, SPARSITY], DONE).tolist() == [-0.625, -0.4]


def test_a_failure_is_worse_than_any_score_and_never_zero():
    worst = Evaluation(Expert("a"), {"x": (0,), "y": (0,)}, 0.0)
    limits = [Constraint(SPARSITY, high=0.3)]
    assert (minimized([ACCURACY, SPARSITY], FAILED) > minimized([ACCURACY, SPARSITY], worst)).all()
    assert minimized([ACCURACY], FAILED).tolist() == [FAILED_OBJECTIVE]
    assert (violations(limits, FAILED) > violations(limits, Evaluation(Expert("a"), {"x": (0,)}, 1.0))).all()


def test_constraints_say_by_how_much_they_are_broken():
    limits = [Constraint(SPARSITY, low=0.1, high=0.3), Constraint(ACCURACY, low=0.7)]
    assert violations(limits, DONE).tolist() == pytest.approx([-0.3, 0.1, 0.075, 0.0])
    assert [label for limit in limits for label in limit.labels] == ["sparsity min", "sparsity max", "accuracy min"]


@pytest.mark.parametrize("scores", [(float("nan"),), (1.1,), (-0.1,), ()])
def test_scores_out_of_range_are_refused(scores):
    with pytest.raises(ValueError, match=r"scores of 'x': expected numbers in \[0, 1\]"):
        Evaluation(Expert("a"), {"x": scores})


def test_scores_are_rounded_once():
    assert Evaluation(Expert("a"), {"x": (1 / 3,)}).scores == {"x": (0.333333,)}


def test_every_quantity_has_a_name():
    assert list(named_quantities(["x", "y"], [ACCURACY, SPARSITY])) == ["x", "y", "accuracy", "sparsity"]


def test_an_objective_is_a_mean_of_tasks_or_sparsity():
    good = Evaluation(Expert("a"), {"x": (1.0, 0.0), "y": (1.0, 1.0)}, 0.25)
    assert (ACCURACY.value(good), SPARSITY.value(good)) == (0.75, 0.25)
    assert (ACCURACY.stderr(good), SPARSITY.stderr(good)) == (0.25, 0.0)
    assert Sparsity() == SPARSITY
    assert scored((SPARSITY, ACCURACY)) == (ACCURACY,)
    assert all(isinstance(each, Objective) for each in (ACCURACY, SPARSITY))
    with pytest.raises(ValueError, match="objective 'none': expected at least one task"):
        TaskMean("none", ())


SPEED = Speed()


def fast(speed, accuracy=1.0):
    return Evaluation(Expert("a"), {"x": (accuracy,), "y": (accuracy,)}, 0.5, speed=speed)


def test_speed_is_told_as_it_is_and_searched_for_as_the_time_it_saves():
    assert (SPEED.value(fast(4.0)), SPEED.stderr(fast(4.0))) == (4.0, 0.0)
    assert minimized([ACCURACY, SPEED], fast(4.0)).tolist() == [-1.0, -0.75]
    assert [SPEED.share(value) for value in (1.0, 2.0, 1e9)] == [0.0, 0.5, pytest.approx(1.0)]
    ladder = [0.0, 0.5, 1.0, 1.001, 3.0, 30.0]
    assert [SPEED.share(value) for value in ladder] == sorted({SPEED.share(value) for value in ladder})


def test_a_failure_is_behind_any_speed():
    assert (minimized([SPEED], FAILED) > minimized([SPEED], fast(0.01))).all()
    limit = [Constraint(SPEED, low=1e6)]
    assert (violations(limit, FAILED) > violations(limit, fast(1e-3))).all()
    assert loss([SPEED], {"speed": 1.0}, (), fast(1e6)) == pytest.approx(-1.0, abs=1e-5)


def test_limits_of_speed_are_broken_by_shares_of_time_and_told_by_speed():
    limit = Constraint(SPEED, low=2.0)
    assert limit.violations(fast(1.25)) == pytest.approx((0.3,))
    assert limit.violations(fast(2.0)) == (0.0,)
    assert limit.broken(fast(1.25)) == ("speed 1.25 where the limit is at least 2",)


def test_a_front_of_speeds_dominates_a_share_of_the_unit_cube():
    members = [fast(10.0, 0.2), fast(2.0, 0.8)]
    front = front_of(members, (ACCURACY, SPEED))
    assert front.volume == pytest.approx(0.2 * 0.9 + 0.6 * 0.5)
    assert Front((ACCURACY, SPEED), members=members[:1]).gain(members[1]) == pytest.approx(0.6 * 0.5)
    assert front.after(fast(1.5, 0.8)) is front


def test_speed_that_nobody_asked_for_is_not_made_up():
    with pytest.raises(ValueError, match="expected an evaluation whose speed was modelled"):
        SPEED.value(DONE)
    assert list(named_quantities(["x"], [SPARSITY], speed=True)) == ["x", "sparsity", "speed"]


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan"), float("inf")])
def test_speeds_that_are_none_are_refused(speed):
    with pytest.raises(ValueError, match="speed: expected a finite number above 0"):
        fast(speed)
