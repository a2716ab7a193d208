from __future__ import annotations

import pytest

from sae_moo.cli.rules import rule_said
from sae_moo.errors import InputError
from sae_moo.explore.decide.rules import Knee, Lexicographic, PseudoWeighted, WeightedSum, Wish

NONE = dict.fromkeys(("weights", "pseudo", "wish", "order", "tolerance")) | {"knee": False}


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        ({}, Knee()),
        ({"weights": "accuracy=2, sparsity = 1"}, WeightedSum({"accuracy": 2.0, "sparsity": 1.0})),
        ({"pseudo": "x=1"}, PseudoWeighted({"x": 1.0})),
        ({"wish": "x=.5"}, Wish({"x": 0.5})),
        ({"order": "x, y", "tolerance": 0.1}, Lexicographic(("x", "y"), 0.1)),
    ],
)
def test_flags_say_a_rule(flags, rule):
    assert rule_said(**NONE | flags) == rule


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"weights": "accuracy"}, "--weights 'accuracy': expected NAME=NUMBER,..., got 'accuracy'"),
        ({"pseudo": "x=1,x=5"}, "--pseudo 'x=1,x=5': expected every quantity once, 'x' comes again"),
        ({"wish": ""}, "--wish '': expected NAME=NUMBER"),
        ({"knee": True, "weights": "x=1"}, "knee and weights choose differently"),
    ],
)
def test_flags_that_say_none(flags, message):
    with pytest.raises(InputError, match=message):
        rule_said(**NONE | flags)
