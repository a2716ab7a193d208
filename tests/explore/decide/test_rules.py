from __future__ import annotations

import pytest

from sae_moo.errors import InputError
from sae_moo.explore.decide.rules import Condition, Knee, Lexicographic, PseudoWeighted, WeightedSum, Wish, rule_of


@pytest.mark.parametrize(
    ("asked", "rule"),
    [
        ({}, Knee()),
        ({"knee": True}, Knee()),
        ({"weights": {"x": 1}}, WeightedSum({"x": 1})),
        ({"pseudo": {"x": 1}}, PseudoWeighted({"x": 1})),
        ({"wish": {"x": 1}}, Wish({"x": 1})),
        ({"order": ["x", "y"], "tolerance": 0.1}, Lexicographic(("x", "y"), 0.1)),
    ],
)
def test_one_rule_is_asked_for_and_the_knee_without_any(asked, rule):
    assert rule_of(**asked) == rule


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"knee": True, "wish": {"x": 1}}, "knee and wish choose differently: give one of them"),
        ({"weights": {"x": 1}, "order": ["x"]}, "weights and order choose differently"),
        ({"tolerance": 0.1}, "tolerance: belongs to order, which is not given"),
        ({"order": ["x"], "tolerance": 2}, "tolerance: expected a number from 0 to 1, got 2"),
        ({"order": ["x"], "tolerance": float("nan")}, "tolerance: expected a number from 0 to 1, got nan"),
        ({"order": ["x", "x"]}, "order: expected every quantity once, 'x' comes again"),
        ({"order": []}, "order: expected at least one quantity"),
        ({"wish": {"x": 70}}, "wish: expected values from 0 to 1, got x=70"),
        ({"wish": {"x": float("nan")}}, "wish: expected values from 0 to 1, got x=nan"),
        ({"wish": {}}, "wish: expected at least one quantity"),
        ({"weights": {"x": -1}}, "weights: expected finite weights of at least 0, got -1"),
        ({"weights": {"x": float("nan")}}, "weights: expected finite weights of at least 0, got nan"),
        ({"weights": {"x": 0}}, "weights: expected at least one weight above 0"),
        ({"pseudo": {"x": 0}}, "pseudo: expected at least one weight above 0"),
        ({"pseudo": {}}, "pseudo: expected at least one weight above 0"),
    ],
)
def test_bad_rules(asked, message):
    with pytest.raises(InputError, match=message):
        rule_of(**asked)


def test_conditions_as_texts():
    assert Condition.parse(" a b >= .5") == Condition("a b", True, 0.5)
    assert Condition.parse("x<=1e-3") == Condition("x", False, 0.001)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sparsity>0.3", "where 'sparsity>0.3': expected NAME>=NUMBER or NAME<=NUMBER"),
        ("sparsity", "expected NAME>=NUMBER"),
        ("sparsity>=1.2.3", "expected a number, got '1.2.3'"),
    ],
)
def test_bad_conditions(text, message):
    with pytest.raises(InputError, match=message):
        Condition.parse(text)
