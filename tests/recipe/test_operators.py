"""Operators: read from a YAML, applied in an order, and read back from what they made."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from sae_moo.errors import InputError
from sae_moo.recipe import Cast, Expert, Merge, Prune
from sae_moo.recipe.methods import METHODS
from sae_moo.recipe.operators import (
    NAMES,
    USUAL,
    Operator,
    OperatorSection,
    OperatorSections,
    chain_of,
    chained,
    merged,
    named,
    operators_of,
    pair_of,
)
from sae_moo.recipe.section import Section

A, B = Expert("a"), Expert("b")
EVEN, LEAN = named("linear", "linear-0.7")


class Asked(Section):
    """A section with operators."""

    operators: OperatorSections


def test_usual_operators_are_at_least_six_and_of_some_the_order_counts():
    assert len(USUAL) >= 6
    assert len({operator.name for operator in USUAL}) == len(USUAL)
    assert len({(each.method, each.weights, each.settings) for each in USUAL}) == len(USUAL)
    assert any(each.symmetric for each in USUAL)
    assert any(not each.symmetric for each in USUAL)
    assert named(*(each.name for each in USUAL)) == USUAL


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if row.takes(2)])
def test_every_method_of_two_models_is_an_operator_by_its_plain_name(method):
    (operator,) = named(method)
    assert operator.method == method
    row = METHODS[method]
    assert operator.weights == row.pairing().weights
    assert row.weights_fault(operator.weights, normalized=True) is None
    recipe = Cast(merged(operator, A, B), "float32")
    assert pair_of(recipe, USUAL) == ((operator, "a", "b") if operator in USUAL else None)
    assert pair_of(recipe, [operator]) == (operator, "a", "b")


def test_plain_names_are_told_apart():
    assert len(set(NAMES)) == len(NAMES)
    assert not {name for name in NAMES if name in METHODS} - {row.name for row in METHODS.values() if row.pairings}


def test_a_mapping_changes_what_the_plain_name_has():
    lean = {"name": "lean", "method": "ties", "weights": [0.8, 0.2], "settings": {"scale": 0.5}}
    (operator,) = operators_of([OperatorSection.model_validate(lean)])
    assert operator == Operator("lean", "ties", (0.8, 0.2), (("density", 0.5), ("scale", 0.5)))
    assert OperatorSection.model_validate({"method": "ties"}).operator == named("ties")[0]
    assert not operator.symmetric


def test_a_section_read_again_from_what_it_says_is_the_same():
    asked = Asked.model_validate({"operators": ["linear-0.7", {"method": "dare_ties"}]})
    again = Asked.model_validate(asked.model_dump(mode="json"))
    assert again == asked
    assert operators_of(again.operators) == named("linear-0.7", "dare_ties")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("slurp", "expected an operator .*got 'slurp' \\(did you mean 'slerp'"),
        ("nearswap", "expected a merge method of two models; nearswap takes 1"),
        ({"method": "slurp"}, "expected a merge method"),
        ({"method": "linear", "weights": [1.0]}, "at least 2 items"),
        ({"method": "linear", "weights": [1.0, -1.0]}, "sum is not 0"),
        ({"method": "model_stock", "weights": [1.0, -0.5]}, "at least 0"),
        ({"method": "ram", "weights": [0.7, 0.3]}, "does not use them"),
        ({"method": "ties", "settings": {"dense": 0.5}}, "no setting 'dense' \\(did you mean 'density'"),
        ({"method": "ties", "settings": {"density": 1.5}}, "density: expected a share"),
        ({"method": "della", "settings": {"density": 0.9}}, "expected density - epsilon"),
        ({"method": "linear", "weight": [1.0, 1.0]}, "Extra inputs"),
    ],
    ids=str,
)
def test_what_is_no_operator_is_refused_in_words(given, words):
    with pytest.raises(ValidationError, match=words):
        OperatorSection.model_validate(given)


def test_names_come_once():
    with pytest.raises(ValidationError, match="got 'linear' twice"):
        Asked.model_validate({"operators": ["linear", {"method": "linear", "weights": [0.6, 0.4]}]})
    with pytest.raises(InputError, match=r"^expected an operator .* got 'slurp'"):
        named("slurp")


def test_a_chain_is_merged_from_the_left_and_read_back():
    recipe = chained([EVEN, LEAN], ["a", "b", "c"])
    assert recipe == Merge("linear", (Merge("linear", (A, B), (0.5, 0.5)), Expert("c")), (0.7, 0.3))
    assert chain_of(Cast(recipe, "float32"), [LEAN, EVEN]) == ((EVEN, LEAN), ("a", "b", "c"))
    assert pair_of(recipe, [EVEN, LEAN]) is None
    assert pair_of(chained([LEAN], ["b", "a"]), [EVEN, LEAN]) == (LEAN, "b", "a")
    for operators, experts in (([], ["a"]), ([EVEN], ["a"]), ([EVEN, EVEN], ["a", "b"])):
        with pytest.raises(ValueError, match="one operator less"):
            chained(operators, experts)


def test_defaults_that_a_recipe_writes_and_what_whole_models_told_make_no_difference():
    assert pair_of(Merge("linear", (A, B), (0.5, 0.5), (("normalize", True),)), [EVEN]) == (EVEN, "a", "b")
    (ranked,) = named("rankmean")
    told = Merge("rankmean", (A, B), ranked.weights, (("ranks", ((1.0, 2.0), (2.0, 1.0))),))
    assert pair_of(told, [ranked]) == (ranked, "a", "b")


@pytest.mark.parametrize(
    "recipe",
    [
        A,
        Cast(A, "float32"),
        Prune(merged(EVEN, A, B), 0.5),
        merged(EVEN, Prune(A, 0.5), B),
        merged(EVEN, A, merged(EVEN, A, B)),
        Merge("linear", (A, B, Expert("c")), (0.5, 0.5, 0.5)),
        Merge("linear", (A, B), ((0.5, 0.5), (0.5, 0.5))),
        Merge("linear", (A, B), (0.6, 0.4)),
        Merge("linear", (A, B), (0.5, 0.5), (("normalize", False),)),
        Merge("slerp", (A, B), (0.5, 0.5)),
    ],
    ids=repr,
)
def test_what_no_operator_made_is_none(recipe):
    assert chain_of(recipe, [EVEN, LEAN]) is None
    assert pair_of(recipe, [EVEN, LEAN]) is None
