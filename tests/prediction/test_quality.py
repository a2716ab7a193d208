"""What cross-validation says of a predictor, and of the main effects beside it."""

from __future__ import annotations

import pytest
from made_up import OPERATORS, catalogue, without

from sae_moo.prediction.observations import Observation
from sae_moo.prediction.predictor import Predictor
from sae_moo.prediction.quality import mean_of, quality

MODELS = ("features",)


@pytest.mark.parametrize("unseen", [0, 1])
def test_where_features_say_all_they_beat_the_main_effects_on_what_is_held_out(unseen):
    table, observations, _ = catalogue(6)
    told = quality(Predictor.learn(table, observations, OPERATORS, models=MODELS), unseen)
    assert [(each.operator, each.pairs, each.model) for each in told] == [
        ("linear", 15, "features"),
        ("linear-0.7", 15, "features"),
    ]
    for each in told:
        assert each.correlation > 0.9 > each.baseline
        assert each.error < each.baseline_error


def test_where_only_experts_count_the_main_effects_are_chosen_and_equal_themselves():
    table, observations, _ = catalogue(6, law="experts")
    for each in quality(Predictor.learn(table, observations, OPERATORS, models=MODELS)):
        assert each.model == "main effects"
        assert (each.correlation, each.error) == (each.baseline, each.baseline_error)
        assert each.correlation > 0.9


def test_what_cannot_be_held_out_or_does_not_vary_is_not_told():
    table, observations, _ = catalogue(4)
    few = without(observations, ("e0", "e1"), ("e0", "e2"))  # of four pairs none can be left out
    assert all(each.correlation is None and each.error is None for each in quality(_learned(table, few)))
    level = [Observation(e.operators, e.experts, e.task, 0.5, 50) for e in catalogue(5)[1]]
    assert all(each.correlation is None for each in quality(_learned(catalogue(5)[0], level)))


def test_main_effects_are_not_correlated_with_anything_where_both_experts_are_new():
    table, observations, _ = catalogue(7, law="experts")
    told = quality(_learned(table, observations), 2)
    assert told
    assert all(each.baseline is None and each.correlation is not None for each in told)


def test_a_mean_is_of_what_is_known():
    assert mean_of([0.5, None, 0.7]) == pytest.approx(0.6)
    assert mean_of([None]) is None


def _learned(table, observations):
    return Predictor.learn(table, observations, OPERATORS, models=MODELS)
