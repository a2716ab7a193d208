"""What is learned from, and what is said without learning: observations, correlations, untrained signals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sae_moo.errors import InputError
from sae_moo.jobs.features import FEATURES
from sae_moo.prediction.correlations import correlations, spearman
from sae_moo.prediction.observations import Observation, observations_of, own_scores
from sae_moo.prediction.table import FeatureTable
from sae_moo.prediction.untrained import SIGNALS, chain_signal, untrained
from sae_moo.recipe import Cast, Expert, Merge, Prune
from sae_moo.recipe.operators import chained, named

LINEAR, LEAN, SLERP = named("linear", "linear-0.7", "slerp")


def test_trials_of_any_study_are_observations_where_they_are_experts_or_chains_of_known_operators():
    a, b = Expert("a"), Expert("b")
    scored = [
        (Cast(a, "float32"), {"t": (1.0, 0.0, 0.5, 1.0), "u": np.array([0.0, 1.0])}),
        (Cast(chained((LEAN,), "ab"), "float32"), {"t": (1.0,)}),
        (chained((LINEAR, LEAN), "bca"), {"t": (0.0, 1.0)}),
        (Cast(Prune(chained((LEAN,), "ab"), 0.5), "float32"), {"t": (1.0,)}),  # pruned
        (chained((SLERP,), "ab"), {"t": (1.0,)}),  # another operator
        (Merge("linear", (a, b), (0.6, 0.4)), {"t": (1.0,)}),
        (chained((LINEAR, LINEAR), "aba"), {"t": (1.0,)}),  # an expert twice
        (chained((LINEAR,), "ab"), {}),  # failed
    ]
    assert observations_of(scored, (LINEAR, LEAN)) == [
        Observation.of_expert("a", "t", 0.625, 4),
        Observation.of_expert("a", "u", 0.5, 2),
        Observation.of_pair("linear-0.7", "a", "b", "t", 1.0, 1),
        Observation(("linear", "linear-0.7"), ("b", "c", "a"), "t", 0.5, 2),
    ]


def test_what_was_observed_several_times_is_weighted_by_its_instances():
    several = [Observation.of_expert("a", "t", 0.5, 10), Observation.of_expert("a", "t", 0.2, 20)]
    assert own_scores([*several, Observation.of_pair("linear", "a", "b", "t", 1.0, 5)]) == {
        ("a", "t"): pytest.approx(0.3)
    }


@pytest.mark.parametrize(
    ("operators", "experts"), [((), ()), (("linear",), ("a",)), ((), ("a", "b")), (("x",), ("a", "a"))]
)
def test_what_is_no_chain_is_no_observation(operators, experts):
    with pytest.raises(InputError, match=r"expected (one operator less|each expert once)"):
        Observation(operators, experts, "t", 0.5, 10)


def test_rank_correlations_are_those_of_scipy_and_none_where_nothing_varies():
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 5, 30), rng.normal(size=30)
    assert spearman(one, other) == pytest.approx(stats.spearmanr(one, other).statistic)
    assert spearman([1, 2, 3], [3, 2, 1]) == -1.0
    assert all(
        math.isnan(spearman(*each))
        for each in (([1, 1, 1], [1, 2, 3]), ([1, 2], [1, 2]), ([1, 2, math.nan], [1, 2, 3]))
    )


def test_each_feature_is_correlated_with_scores_and_with_gains_of_every_operator():
    names = "abcd"
    keys = [(one, two, "t") for one in names for two in names if one != two]
    rows = {key: [place, math.nan if "d" in key else 0.0] for place, key in enumerate(keys)}
    own = [Observation.of_expert(name, "t", 0.1 * place, 5) for place, name in enumerate(names)]
    merges = [Observation.of_pair("linear-0.7", *key[:2], "t", 0.05 * place, 5) for place, key in enumerate(keys)]
    merges += [Observation.of_pair("linear", *key[:2], "t", 0.5, 5) for key in keys if key[0] < key[1]]
    found = {
        (each.operator, each.feature): each
        for each in correlations(FeatureTable(("x", "y"), rows), own + merges, (LINEAR, LEAN))
    }
    assert found["linear-0.7", "x"].score == 1.0
    gains = [0.05 * place - 0.05 * (names.index(one) + names.index(two)) for place, (one, two, _) in enumerate(keys)]
    assert found["linear-0.7", "x"].gain == pytest.approx(spearman(range(12), gains))
    assert (found["linear-0.7", "y"].pairs, found["linear-0.7", "x"].pairs, found["linear", "x"].pairs) == (6, 12, 6)
    assert math.isnan(found["linear-0.7", "y"].score)
    assert math.isnan(found["linear", "x"].score)
    assert ("linear", "x, by order") in found


def test_untrained_signals_order_pairs_by_what_they_share_and_how_sure_they_are():
    names = ("argmax_agreement", "entropy_first", "other")
    rows = {
        ("a", "b", "t"): [0.9, 0.1, 5.0],
        ("b", "a", "t"): [0.5, 0.2, 9.0],
        ("a", "c", "t"): [0.1, math.nan, 0.0],
        ("a", "b", "u"): [0.1, 7.0, 0.0],
    }
    signals = untrained(FeatureTable(names, rows))
    assert signals == {("a", "b", "t"): 1.0, ("b", "a", "t"): 0.25, ("a", "c", "t"): 0.0, ("a", "b", "u"): 0.5}
    assert chain_signal({**signals, ("b", "c", "t"): 0.2}, "abc", "t") == pytest.approx(0.4)
    with pytest.raises(InputError, match="expected one of argmax_agreement"):
        untrained(FeatureTable(("other",), {("a", "b", "t"): [1.0]}))
    with pytest.raises(InputError, match=r"a \+ b \+ t: argmax_agreement are all missing"):
        untrained(FeatureTable(names[:1], {("a", "b", "t"): [math.nan]}))


def test_signals_are_features_that_are_measured():
    assert set(SIGNALS) <= set(FEATURES)
