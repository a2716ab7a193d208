from __future__ import annotations

import math
from dataclasses import replace

import pytest
from stand_ins import FRONT, OBJECTIVES, record

from sae_moo.errors import InputError
from sae_moo.explore.decide.pick import pick
from sae_moo.explore.decide.rules import Condition, rule_of
from sae_moo.objectives import Evaluation, named_quantities

KNOWN = named_quantities(("x", "y"), OBJECTIVES)


def chosen(*conditions: str, front=FRONT, **rule) -> tuple[int, str]:
    best, why = pick(front, OBJECTIVES, KNOWN, list(map(Condition.parse, conditions)), rule_of(**rule))
    return best.number, why


def test_the_knee():
    number, why = chosen()
    assert number == 1
    assert why == (
        "the knee of the 4 trials on the front: largest sum of the objectives, each scaled to the front's range "
        "(farthest above the line through the front's ends)"
    )


def test_the_knee_is_sought_where_models_are_worth_something():
    dead = [record(0, 0.6, 0.3), record(1, 0.5, 0.5), record(2, 0.25, 0.8), record(3, 0.0, 0.95)]
    base = record(9, 0.4, 0.0)
    assert pick(dead, OBJECTIVES, KNOWN)[0].number == 2
    best, why = pick(dead, OBJECTIVES, KNOWN, base=base)
    assert (best.number, why) == (
        1,
        "the knee of the 2 trials on the front at least as accurate as the base less its standard error: "
        "the sparser of both, there are none between them",
    )
    third = [
        replace(r, evaluation=replace(r.evaluation, scores={"x": (s,), "y": (s,)}))
        for r, s in ((dead[0], 0.6), (record(5, 0.58, 0.4), 0.1), (dead[1], 0.5))
    ]
    assert "none between" not in pick(third, OBJECTIVES, KNOWN, [Condition.parse("x>=0.5")], base=base)[1]
    noisy = replace(base, stderr={"x": 0.22, "y": 0.22})
    assert "of the 3 trials" in pick(dead, OBJECTIVES, KNOWN, base=noisy)[1]
    unknown = replace(base, stderr={"x": math.nan, "y": 0.22})
    assert "of the 2 trials" in pick(dead, OBJECTIVES, KNOWN, base=unknown)[1]
    best, why = pick(dead[1:], OBJECTIVES, KNOWN, [Condition.parse("sparsity>=0.7")], base=base)
    assert best.number == 2
    assert why.endswith("; none of them is as accurate as the base (0.400)"), "then the whole front counts"
    sparsest = rule_of(weights={"sparsity": 1})
    assert pick(dead, OBJECTIVES, KNOWN, rule=sparsest, base=base)[0].number == 3


@pytest.mark.parametrize("front", [FRONT[:1], FRONT[2:]])
def test_small_fronts_have_a_pick(front):
    assert chosen(front=front)[0] == front[0].number


@pytest.mark.parametrize(
    ("weights", "number"),
    [
        ({"accuracy": 1}, 0),
        ({"sparsity": 1}, 3),
        ({"accuracy": 1, "sparsity": 0}, 0),
        ({"x": 1, "sparsity": 2}, 2),
    ],
)
def test_weights(weights, number):
    assert chosen(weights=weights)[0] == number


@pytest.mark.parametrize(
    ("pseudo", "number"),
    [
        ({"accuracy": 1}, 0),
        ({"sparsity": 1}, 3),
        ({"accuracy": 2, "sparsity": 3}, 2),
        ({"accuracy": 2, "sparsity": 1}, 1),
    ],
)
def test_pseudo_weights(pseudo, number):
    found, why = chosen(pseudo=pseudo)
    assert found == number
    assert why.endswith("of the 4 trials on the front")


def test_pseudo_weights_are_told_and_those_of_the_whole_front():
    expected = "pseudo-weights (accuracy 0.63, sparsity 0.37) nearest to those asked for (accuracy 0.67, sparsity 0.33)"
    assert chosen(pseudo={"accuracy": 2, "sparsity": 1})[1].startswith(expected)
    kept, why = chosen("sparsity>=0.3", pseudo={"accuracy": 1})
    assert kept == 1
    assert "accuracy 0.63" in why


def test_pseudo_weights_find_the_hollows_that_weighted_sums_pass_over():
    hollow = [record(0, 1.0, 0.0), record(1, 0.45, 0.45), record(2, 0.0, 1.0)]
    weights = [{"accuracy": a, "sparsity": s} for a, s in ((1, 1), (3, 2), (2, 3))]
    assert 1 not in {chosen(weights=each, front=hollow)[0] for each in weights}
    assert {chosen(pseudo=each, front=hollow)[0] for each in weights} == {1}


def test_a_wish_that_is_reached():
    found, why = chosen(wish={"accuracy": 0.45, "sparsity": 0.3})
    assert found == 1
    assert why == (
        "keeps the wish (accuracy 0.45, sparsity 0.3) with most to spare (accuracy 0.33, sparsity 0.1) "
        "of the 4 trials on the front"
    )


def test_a_wish_out_of_reach_says_what_is_in_the_way():
    found, why = chosen(wish={"accuracy": 0.79, "sparsity": 0.5})
    assert found == 1
    assert "by the largest shortfall, each scaled to the front's range" in why
    assert "; sparsity is in the way: 0.4 is 0.1 short of 0.5, accuracy 0.78 is 0.01 short of 0.79" in why
    assert why.endswith("; with accuracy >= 0.79 kept, sparsity reaches 0")
    found, why = chosen(wish={"accuracy": 0.75, "sparsity": 0.65})
    assert found == 1
    assert why.endswith(
        "sparsity is in the way: 0.4 is 0.25 short of 0.65; with accuracy >= 0.75 kept, sparsity reaches 0.4"
    )
    assert chosen(wish={"accuracy": 0.3, "sparsity": 1})[0] == 3
    assert chosen("sparsity<=0.3", wish={"sparsity": 0.5})[0] == 0


def test_one_quantity_after_the_other():
    assert chosen(order=["accuracy", "sparsity"], tolerance=0.0)[0] == 0
    assert chosen(order=["accuracy", "sparsity"], tolerance=0.02)[0] == 1
    assert chosen(order=["accuracy", "sparsity"], tolerance=0.3)[0] == 2
    assert chosen(order=["sparsity", "accuracy"])[0] == 3, "sparsity is counted and has no error"
    assert chosen("sparsity>=0.1", order=["accuracy"])[0] == 1
    why = chosen(order=["accuracy", "sparsity"], tolerance=0.02)[1]
    assert why == "best sparsity (0.4) within 0.02 of the best accuracy (0.8) of the 4 trials on the front"


def test_about_as_good_is_one_standard_error_unless_told():
    def trial(number, right, sparsity):
        row = (1.0,) * right + (0.0,) * (100 - right)
        evaluation = Evaluation(FRONT[0].recipe, {"x": row, "y": row}, sparsity)
        return replace(record(number, right / 100, sparsity), evaluation=evaluation)

    error = OBJECTIVES[0].stderr(trial(0, 80, 0).evaluation)
    assert 0.02 < error < 0.03
    front = [trial(0, 80, 0.1), trial(1, 78, 0.2), trial(2, 77, 0.3)]
    found, why = chosen(order=["accuracy", "sparsity"], front=front)
    assert found == 1
    assert f"within {error:.4g} of the best accuracy (0.8, one standard error of it unless a tolerance is given)" in why


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            {"order": ["x", "spars"]},
            r"order: .* one of x, y, accuracy, sparsity; got 'spars' \(did you mean 'sparsity'\?\)",
        ),
        ({"weights": {"acuracy": 1}}, r"weights: .*; got 'acuracy' \(did you mean 'accuracy'\?\)"),
        ({"wish": {"spars": 0.5}}, "wish: expected a quantity of the study, .* got 'spars'"),
        ({"pseudo": {"x": 1}}, "pseudo: expected an objective, one of accuracy, sparsity; got 'x'$"),
    ],
)
def test_rules_name_what_there_is(rule, message):
    with pytest.raises(InputError, match=message):
        chosen(**rule)


def test_conditions_name_what_there_is():
    message = r"where sparsty >= 0.3: .*, one of x, y, accuracy, sparsity; got 'sparsty' \(did you mean 'sparsity'\?\)"
    with pytest.raises(InputError, match=message):
        chosen("sparsty>=0.3")


@pytest.mark.parametrize(
    ("conditions", "number"),
    [(("sparsity>=0.5",), 2), (("sparsity >= 0.5", "x<=0.3"), 3), (("accuracy>=0.79",), 0), (("sparsity<=.1",), 0)],
)
def test_conditions(conditions, number):
    found, why = chosen(*conditions)
    assert found == number
    assert conditions[0].split(">")[0].split("<")[0].strip() in why


def test_what_nothing_keeps_says_how_close_the_front_comes():
    with pytest.raises(InputError, match=r"keeps sparsity >= 0.9; on the front, sparsity reaches from 0 to 0.7"):
        chosen("sparsity>=0.9")
    with pytest.raises(InputError, match=r"nearest is trial 3, where sparsity is in the way: 0.7 is 0.2 short of 0.9$"):
        chosen("sparsity>=0.9")
    with pytest.raises(InputError) as caught:
        chosen("accuracy>=0.7", "sparsity>=0.45", "x<=0.79")
    way = "nearest is trial 1, where sparsity is in the way: 0.4 is 0.05 short of 0.45"
    assert str(caught.value).endswith(f"{way}; with accuracy >= 0.7 and x <= 0.79 kept, sparsity reaches 0.4")
    with pytest.raises(InputError, match=r"x is in the way: 0.2 is 0.1 above 0.1$"):
        chosen("x<=0.1")
    with pytest.raises(InputError, match="the front is empty"):
        chosen(front=[])
