"""Predictors: what they learn of made-up merges, what they say of it, and what they refuse."""

from __future__ import annotations

import builtins
import math
from itertools import permutations

import numpy as np
import pytest
from made_up import NAMES, OPERATORS, TASKS, catalogue, without

from sae_moo.errors import InputError
from sae_moo.prediction.observations import Observation
from sae_moo.prediction.predictor import Predictor
from sae_moo.prediction.table import FeatureTable
from sae_moo.recipe.operators import named

HELD_OUT = ("e1", "e4")
SHORT = ("features", "features and own scores")


def truth(observations, operator, pair, task):
    return next(
        each.score
        for each in observations
        if each.operator == operator
        and each.experts in (pair, pair[::-1][: 2 * (operator == "linear")])
        and each.task == task
    )


@pytest.mark.parametrize(
    ("law", "model"), [("features", "features"), ("experts", "main effects"), ("own", "features and own scores")]
)
def test_the_law_that_merges_follow_is_chosen_and_tells_of_unseen_pairs(law, model):
    table, observations, _ = catalogue(law=law)
    predictor = Predictor.learn(table, without(observations, HELD_OUT), OPERATORS, models=SHORT[: 1 + (law == "own")])
    for operator in ("linear", "linear-0.7"):
        choice = predictor.chosen(operator)
        assert choice.setting.model.name == model
        assert choice.errors[model] == min(choice.errors.values()) < 0.02 < choice.errors["main effects"] + 0.02
        for task in TASKS:
            prediction = predictor.predict(operator, *HELD_OUT, task)
            assert abs(prediction.score - truth(observations, operator, HELD_OUT, task)) < 0.03
            assert 0.0 <= prediction.low <= prediction.score <= prediction.high <= 1.0
            assert (prediction.model, prediction.labelled) == (model, law == "own")


def test_numbers_are_the_same_in_whatever_order_things_come_and_beside_whatever_they_are_asked():
    table, observations, _ = catalogue(noise=0.05)
    turned = FeatureTable(table.names, dict(reversed(table.rows.items())))
    one = Predictor.learn(table, observations, OPERATORS, models=SHORT)
    other = Predictor.learn(turned, observations[::-1], OPERATORS[::-1], models=SHORT)
    asked = [
        ((operator,), pair, task)
        for operator in ("linear", "linear-0.7")
        for pair in permutations(table.experts[:4], 2)
        for task in TASKS
    ]
    assert one.training.observations == other.training.observations
    many = one.chains(asked)
    assert many == other.chains(asked)
    for (operators, pair, task), prediction in list(zip(asked, many, strict=True))[::7]:
        single = one.predict(operators[0], *pair, task)
        assert (single.score, single.low, single.high) == (prediction.score, prediction.low, prediction.high)
        assert single.reasons
        assert not prediction.reasons


def test_a_symmetric_operator_has_one_prediction_for_both_orders():
    table, observations, _ = catalogue(noise=0.05)
    predictor = Predictor.learn(table, observations, OPERATORS, models=SHORT)
    there, back = (predictor.predict("linear", *pair, "sums") for pair in (HELD_OUT, HELD_OUT[::-1]))
    assert there == back
    assert predictor.predict("linear-0.7", *HELD_OUT, "sums") != predictor.predict(
        "linear-0.7", *HELD_OUT[::-1], "sums"
    )
    turned = [
        Observation(
            each.operators, each.experts[:: (-1) ** (each.operator == "linear")], each.task, each.score, each.instances
        )
        for each in observations
    ]
    assert Predictor.learn(table, turned, OPERATORS, models=SHORT).predict("linear", *HELD_OUT, "sums") == there


def test_effects_of_an_expert_that_was_never_merged_are_the_mean():
    table, observations, _ = catalogue(law="experts")
    seen = [each for each in observations if "e1" not in each.experts and "e4" not in each.experts]
    predictor = Predictor.learn(table, seen, OPERATORS, models=("main effects",))
    mean = np.mean([each.score for each in seen if each.operator == "linear" and each.task == "sums"])
    both = predictor.predict("linear", "e1", "e4", "sums")
    assert both.score == pytest.approx(mean)
    assert both.unseen == ("e1", "e4")
    one, other = (predictor.predict("linear", "e1", second, "sums") for second in ("e2", "e3"))
    assert one.unseen == ("e1",)
    assert one.score != pytest.approx(other.score, abs=1e-3)
    known = predictor.predict("linear", "e2", "e3", "sums")
    assert both.high - both.low > 0.3 < one.high - one.low
    assert known.high - known.low < 0.1


def test_intervals_hold_about_the_share_they_are_to_hold():
    inside = []
    for seed in range(4):
        table, observations, _ = catalogue(8, seed, noise=0.08)
        out = [(f"e{i}", f"e{(i + 1) % 8}") for i in range(8)]
        predictor = Predictor.learn(table, without(observations, *out), OPERATORS[1:], models=("features",))
        chains = [(("linear-0.7",), order, task) for pair in out for order in (pair, pair[::-1]) for task in TASKS]
        for (_, pair, task), each in zip(chains, predictor.chains(chains), strict=True):
            inside.append(each.low <= truth(observations, "linear-0.7", pair, task) <= each.high)
    assert 0.85 < np.mean(inside) < 0.96


def test_where_too_little_was_observed_to_tell_an_interval_is_everything():
    table, observations, _ = catalogue(4)
    some = without(observations, ("e0", "e1"), ("e2", "e3"))
    predictor = Predictor.learn(table, some, OPERATORS[:1])
    prediction = predictor.predict("linear", "e0", "e1", "sums")
    assert (prediction.low, prediction.high) == (0.0, 1.0)
    with pytest.raises(
        InputError, match=r"at least 4 pairs of experts must have been evaluated.*\n  - linear: 3 pairs"
    ):
        Predictor.learn(table, without(some, ("e0", "e2")), OPERATORS[:1])


def test_an_operator_that_was_hardly_observed_is_told_and_the_others_are_predicted():
    table, observations, _ = catalogue()
    few = [each for each in observations if each.operator != "linear" or set(each.experts) < {"e0", "e1", "e2"}]
    predictor = Predictor.learn(table, few, (*OPERATORS, *named("slerp")), models=("features",))
    assert predictor.short == {"linear": 3, "slerp": 0}
    assert [each.name for each in predictor.operators] == ["linear-0.7"]
    with pytest.raises(
        InputError, match="'linear': expected merges of at least 4 pairs of experts to learn from, got 3"
    ):
        predictor.predict("linear", "e0", "e1", "sums")
    with pytest.raises(InputError, match=r"'linear-0.6': there are no merges by it to learn from \(did you mean"):
        predictor.predict("linear-0.6", "e0", "e1", "sums")


def test_effects_go_with_the_expert_whatever_it_is_called_where_it_is_asked_about():
    table, observations, _ = catalogue(law="experts")
    predictor = Predictor.learn(table, observations, OPERATORS, models=("main effects",))
    others = table.renamed({"e1": "z", "e4": "e1"})
    mean = np.mean([each.score for each in observations if each.operator == "linear-0.7" and each.task == "sums"])
    assert predictor.on(others).predict("linear-0.7", "z", "e1", "sums").score == pytest.approx(mean)
    both = predictor.on(others, known={"z": "e1", "e1": "e4"}).predict("linear-0.7", "z", "e1", "sums")
    assert both.score == pytest.approx(predictor.predict("linear-0.7", "e1", "e4", "sums").score)
    one = predictor.on(others, known={"z": "e1"}).predict("linear-0.7", "z", "e1", "sums")
    assert one.unseen == ("e1",)
    assert one.score == pytest.approx(
        predictor.on(table, known={"e1": "e1"}).predict("linear-0.7", "e1", "e4", "sums").score
    )


def test_an_expert_that_was_merged_by_other_operators_only_is_unseen():
    table, observations, _ = catalogue()
    some = [each for each in observations if each.operator != "linear" or "e1" not in each.experts]
    predictor = Predictor.learn(table, some, OPERATORS, models=("features",))
    assert predictor.predict("linear", *HELD_OUT, "sums").unseen == ("e1",)
    assert predictor.predict("linear-0.7", *HELD_OUT, "sums").unseen == ()


def holed(table, holes):
    rows = {
        key: np.where([name in holes and hole(key) for name in NAMES for hole in [holes.get(name, bool)]], np.nan, row)
        for key, row in table.rows.items()
    }
    return FeatureTable(table.names, rows)


def test_a_feature_that_nobody_has_is_no_feature():
    table, observations, _ = catalogue(noise=0.02)
    without_y = Predictor.learn(table.only(("x", "likeness")), observations, OPERATORS, models=("features",))
    missing_y = Predictor.learn(holed(table, {"y": lambda key: True}), observations, OPERATORS, models=("features",))
    asked = [((name,), HELD_OUT, "sums") for name in ("linear", "linear-0.7")]
    assert missing_y.chains(asked) == without_y.chains(asked)


def test_a_feature_that_one_pair_lacks_is_taken_as_average_and_told():
    table, observations, _ = catalogue()
    predictor = Predictor.learn(table, observations, OPERATORS, models=("features",))
    asked = predictor.on(
        holed(table, {"x": lambda key: key[:2] == HELD_OUT}), known={name: name for name in table.experts}
    )
    prediction = asked.predict("linear-0.7", *HELD_OUT, "sums")
    assert prediction.missing == ("x",)
    rows = {**table.rows, (*HELD_OUT, "sums"): table.of(*HELD_OUT, "sums").copy()}
    rows[*HELD_OUT, "sums"][0] = np.mean([row[0] for key, row in table.rows.items() if key[2] == "sums"])
    average = predictor.on(FeatureTable(NAMES, rows), known={name: name for name in table.experts})
    assert average.predict("linear-0.7", *HELD_OUT, "sums").score == pytest.approx(prediction.score)
    assert asked.predict("linear-0.7", "e2", "e3", "sums").missing == ()


def test_that_a_feature_was_missing_may_itself_tell():
    table, observations, _ = catalogue()
    gone = {"x": lambda key: "e1" in key}
    worse = [
        Observation(
            each.operators,
            each.experts,
            each.task,
            max(0.0, each.score - 0.2 * (len(each.experts) == 2 and "e1" in each.experts)),
            50,
        )
        for each in observations
    ]
    predictor = Predictor.learn(holed(table, gone), worse, OPERATORS, models=("features",))
    reasons = dict(predictor.predict("linear-0.7", "e1", "e2", "sums").reasons)
    assert reasons["x, missing"] < -0.05
    assert "x, missing" not in dict(predictor.predict("linear-0.7", "e3", "e2", "sums").reasons)


def test_reasons_however_many_add_up_to_what_a_ridge_regression_predicts():
    table, observations, _ = catalogue()
    rng = np.random.default_rng(0)
    more = [f"noise {i}" for i in range(6)]
    table = FeatureTable((*NAMES, *more), {key: [*row, *rng.normal(size=6)] for key, row in table.rows.items()})
    predictor = Predictor.learn(table, observations, OPERATORS, models=("features",))
    mean = np.mean([each.score for each in observations if each.operator == "linear-0.7" and each.task == "sums"])
    prediction = predictor.predict("linear-0.7", *HELD_OUT, "sums")
    assert prediction.score == pytest.approx(mean + sum(size for _, size in prediction.reasons))
    sizes = [abs(size) for _, size in prediction.reasons]
    assert sizes == sorted(sizes, reverse=True)
    x = table.of(*HELD_OUT, "sums")[0] - np.mean([row[0] for key, row in table.rows.items() if key[2] == "sums"])
    assert dict(prediction.reasons)["x"] == pytest.approx(0.1 * x, rel=0.05)


def test_reasons_of_own_scores_are_held_against_those_of_other_experts():
    table, observations, _ = catalogue(law="own")
    predictor = Predictor.learn(table, observations, OPERATORS, models=("own scores",))
    choice = predictor.chosen("linear")
    mean = np.mean([each.score for each in observations if each.operator == "linear" and each.task == "sums"])
    prediction = predictor.predict("linear", *HELD_OUT, "sums")
    assert choice.setting.model.name == prediction.model == "own scores"
    ((name, size),) = prediction.reasons
    assert (name, size) == ("own scores", pytest.approx(prediction.score - mean, abs=1e-9))


def test_boosted_trees_say_what_is_lost_without_a_feature():
    table, observations, _ = catalogue()
    predictor = Predictor.learn(table, observations, OPERATORS[:1], models=("trees",))
    assert predictor.chosen("linear").setting.model.name == "trees"
    best = max(table.pairs, key=lambda pair: truth(observations, "linear", pair, "sums"))
    reasons = dict(predictor.predict("linear", *best, "sums").reasons)
    assert max(reasons, key=reasons.get) in ("x", "y")
    assert max(reasons.values()) > 0.03


def test_own_scores_are_used_only_where_they_are_known():
    table, observations, own = catalogue(law="own")
    merges = [each for each in observations if each.operators]
    unlabelled = Predictor.learn(table, merges, OPERATORS, models=SHORT).predict("linear", *HELD_OUT, "sums")
    assert not unlabelled.labelled
    predictor = Predictor.learn(table, observations, OPERATORS, models=SHORT)
    assert predictor.predict("linear", *HELD_OUT, "sums").labelled
    same = {name: name for name in table.experts}
    assert predictor.on(table, own, same).predict("linear", *HELD_OUT, "sums") == predictor.predict(
        "linear", *HELD_OUT, "sums"
    )
    half = {key: score for key, score in own.items() if key != ("e4", "sums")}
    assert predictor.on(table, half, same).predict("linear", *HELD_OUT, "sums") == unlabelled


def test_experts_of_another_catalogue_are_predicted_without_learning_anew():
    table, observations, _ = catalogue(law="own", seed=1)
    others, truths, scores = catalogue(law="own", seed=2)
    predictor = Predictor.learn(table, observations, OPERATORS, models=SHORT).on(others, scores)
    prediction = predictor.predict("linear", *HELD_OUT, "sums")
    assert prediction.unseen == HELD_OUT  # although its names are those of experts that were learned from
    assert abs(prediction.score - truth(truths, "linear", HELD_OUT, "sums")) < 0.03
    stretched = FeatureTable(NAMES, {key: 3.0 * row + 5.0 for key, row in others.rows.items()})
    asked = [(("linear",), pair, "sums") for pair in others.pairs]
    plain, aligned, turned = (
        Predictor.learn(table, observations, OPERATORS, models=SHORT).on(each, scores, aligned=True).chains(asked)
        for each in (others, stretched, table)
    )
    assert [each.score for each in plain] == pytest.approx([each.score for each in aligned])
    assert turned[0].score == pytest.approx(predictor.on(table, scores).chains(asked)[0].score)
    with pytest.raises(InputError, match=r"known: nothing was learned of an expert 'e9'"):
        predictor.on(others, known={"e1": "e9"})
    with pytest.raises(InputError, match=r"expected some of x, y, likeness, \.\.\., got z"):
        predictor.on(FeatureTable(("z",), {("a", "b", "sums"): [1.0]}))


def test_a_chain_is_the_last_of_its_merges_asked_with_what_is_predicted_of_those_before():
    table, observations, own = catalogue(law="own")
    predictor = Predictor.learn(table, observations, OPERATORS, models=("features and own scores",))
    first = predictor.predict("linear-0.7", "e1", "e4", "sums")
    chain = predictor.chain(("linear-0.7", "linear"), ("e1", "e4", "e2"), "sums")
    mixed = {key: table.of(*key) for key in table.rows}
    for one, other in (("e1", "e2"), ("e2", "e1")):
        mixed[one, other, "sums"] = 0.7 * table.of(one, other, "sums") + 0.3 * table.of(
            *(("e4", "e2") if one == "e1" else ("e2", "e4")), "sums"
        )
    same = {name: name for name in table.experts}
    as_one = predictor.on(FeatureTable(NAMES, mixed), {**own, ("e1", "sums"): first.score}, same)
    assert chain.score == pytest.approx(as_one.predict("linear", "e1", "e2", "sums").score)
    assert chain.low <= as_one.predict("linear", "e1", "e2", "sums").low
    assert chain.high >= as_one.predict("linear", "e1", "e2", "sums").high
    longer = predictor.chains([(("linear-0.7", "linear", "linear"), ("e1", "e4", "e2", "e0"), "sums")] * 2)
    assert longer[0] == longer[1] != chain


@pytest.mark.parametrize(
    ("operators", "experts"),
    [((), ("e1",)), (("linear",), ("e1",)), (("linear",), ("e1", "e1")), (("linear",), ("e1", "e2", "e3"))],
)
def test_what_is_no_chain_is_refused(operators, experts):
    table, observations, _ = catalogue()
    with pytest.raises(InputError, match="one operator less"):
        Predictor.learn(table, observations, OPERATORS, models=("features",)).chain(operators, experts, "sums")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"models": ("ridge",)}, "no regression 'ridge'"),
        ({"confidence": 1.0}, r"expected a number in \(0, 1\), got 1.0"),
        ({"table": lambda table: table.only(experts=table.experts[1:])}, "none of expert 'e0'"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(change, words):
    table, observations, _ = catalogue()
    given = change.pop("table", lambda table: table)(table)
    with pytest.raises(InputError, match=words):
        Predictor.learn(given, observations, OPERATORS, **change)


def test_it_is_said_what_to_install_where_scikit_learn_is_absent(monkeypatch):
    usual = builtins.__import__
    table, observations, _ = catalogue()

    def absent(name, *arguments, **keywords):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return usual(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(InputError, match=r"needs scikit-learn, which is not installed: pip install scikit-learn$"):
        Predictor.learn(table, observations, OPERATORS)


@pytest.mark.parametrize("score", [math.nan, -0.1, 1.1])
def test_a_score_out_of_range_is_no_observation(score):
    with pytest.raises(InputError, match=r"what a \+ b scored on t: expected a score in \[0, 1\]"):
        Observation.of_pair("linear", "a", "b", "t", score, 10)
