"""A predictor asked about some of the experts that it learned of, by other names, beside some that it did not."""

from __future__ import annotations

import pytest
from made_up import OPERATORS, TASKS, catalogue

from sae_moo.prediction.predictor import Predictor


@pytest.mark.parametrize("kept", [("e0", "e1"), ("e1", "e4", "e2")])
def test_those_that_are_known_are_predicted_as_they_were_whoever_else_was_learned_from(kept):
    table, observations, own = catalogue(5, law="experts", noise=0.01)
    predictor = Predictor.learn(table, observations, OPERATORS, models=("main effects",))
    here = {name: f"my {name}" for name in kept}
    part = table.only(experts=kept).renamed(here)
    asked = predictor.on(
        part, {(here[e], t): s for (e, t), s in own.items() if e in here}, {v: k for k, v in here.items()}
    )
    for operator in ("linear", "linear-0.7"):
        for task in TASKS:
            same = predictor.predict(operator, *kept[:2], task)
            assert asked.predict(operator, here[kept[0]], here[kept[1]], task) == same


def test_of_those_that_are_not_nothing_is_assumed_but_what_all_have():
    table, observations, _ = catalogue(5, law="experts", noise=0.01)
    predictor = Predictor.learn(table, observations, OPERATORS, models=("main effects",))
    new = predictor.on(catalogue(3, seed=1, prefix="n")[0])
    assert len({new.predict("linear", *pair, "sums").score for pair in (("n0", "n1"), ("n1", "n2"))}) == 1
    assert new.predict("linear", "n0", "n1", "sums").unseen == ("n0", "n1")
