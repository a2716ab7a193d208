from __future__ import annotations

import pytest
from stand_ins import FRONT, OBJECTIVES, record

from sae_moo.errors import InputError
from sae_moo.explore.pick import parse_condition, parse_weights, pick
from sae_moo.objectives import named_quantities

KNOWN = named_quantities(("x", "y"), OBJECTIVES)


def chosen(*conditions: str, weights: str | None = None, front=FRONT) -> tuple[int, str]:
    parsed = None if weights is None else parse_weights(weights, KNOWN)
    best, why = pick(front, OBJECTIVES, KNOWN, [parse_condition(text, KNOWN) for text in conditions], parsed)
    return best.number, why


def test_the_knee():
    number, why = chosen()
    assert number == 1
    assert (
        why == "the knee of the 4 trials on the front: largest sum of the objectives, each scaled to the front's range"
    )


def test_the_knee_is_sought_where_models_are_worth_something():
    dead = [record(0, 0.6, 0.3), record(1, 0.5, 0.5), record(2, 0.25, 0.8), record(3, 0.0, 0.95)]
    base = record(9, 0.4, 0.0)
    assert pick(dead, OBJECTIVES, KNOWN)[0].number == 2
    best, why = pick(dead, OBJECTIVES, KNOWN, base=base)
    assert best.number in (0, 1)
    assert "of the 2 trials on the front at least as accurate as the base" in why
    assert pick(dead[2:], OBJECTIVES, KNOWN, base=base)[0].number == 2, "nothing is: then the whole front counts"
    assert pick(dead, OBJECTIVES, KNOWN, weights={"sparsity": 1.0}, base=base)[0].number == 3


@pytest.mark.parametrize("front", [FRONT[:1], FRONT[2:]])
def test_small_fronts_have_a_pick(front):
    assert chosen(front=front)[0] == front[0].number


@pytest.mark.parametrize(
    ("weights", "number"), [("accuracy=1", 0), ("sparsity=1", 3), ("accuracy=1,sparsity=0", 0), ("x=1, sparsity=2", 2)]
)
def test_weights(weights, number):
    assert chosen(weights=weights)[0] == number


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
    with pytest.raises(InputError, match="the front is empty"):
        chosen(front=[])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sparsty>=0.3", r"no quantity 'sparsty' \(did you mean 'sparsity'\?\); there are x, y, accuracy, sparsity"),
        ("sparsity>0.3", "expected NAME>=NUMBER or NAME<=NUMBER"),
        ("sparsity", "expected NAME>=NUMBER"),
        ("sparsity>=1.2.3", "expected a number, got '1.2.3'"),
    ],
)
def test_bad_conditions(text, message):
    with pytest.raises(InputError, match=message):
        parse_condition(text, KNOWN)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("acuracy=1", r"no quantity 'acuracy' \(did you mean 'accuracy'\?\)"),
        ("accuracy", "expected NAME=NUMBER"),
        ("accuracy=-1", "expected weights of at least 0, got -1"),
        ("accuracy=nan", "expected weights of at least 0, got nan"),
        ("accuracy=1,accuracy=5", "expected every quantity once, 'accuracy' comes again"),
        ("accuracy=0", "expected at least one weight above 0"),
    ],
)
def test_bad_weights(text, message):
    with pytest.raises(InputError, match=message):
        parse_weights(text, KNOWN)
