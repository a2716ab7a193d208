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
    TaskMean,
    minimized,
    named_quantities,
    scored,
    violations,
)
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
