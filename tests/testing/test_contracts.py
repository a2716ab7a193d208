"""The contracts that guests run: a guest's rows and the house's keep them, and each law is broken by something."""

from __future__ import annotations

from dataclasses import dataclass, replace

import acme_package
import pytest
import torch

from sae_moo.recipe.criteria import CRITERIA, Criterion
from sae_moo.recipe.methods import METHODS, Method, Setting
from sae_moo.testing import CriterionContract, MergeMethodContract

for criterion in CRITERIA:
    globals()[f"Test_{criterion}"] = type(f"Test_{criterion}", (CriterionContract,), {"criterion": criterion})


@pytest.fixture
def acme(tmp_path, monkeypatch):
    acme_package.install(tmp_path / "site-packages", monkeypatch)


@pytest.mark.usefixtures("acme")
class TestMedian(MergeMethodContract):
    method = "acme/median"
    settings = ({}, {"pull": 0.25})


@pytest.mark.usefixtures("acme")
class TestLoudest(MergeMethodContract):
    method = "acme/loudest"


@pytest.mark.usefixtures("acme")
class TestRelative(CriterionContract):
    criterion = "acme/relative"


@pytest.mark.usefixtures("acme")
class TestActive(CriterionContract):
    criterion = "acme/active"


@dataclass(frozen=True)
class Elementwise:
    """A step from a function of inputs, base and position."""

    function: object
    align: int = 1

    def chunk(self, inputs, base, start):
        return self.function(inputs, base, start)


def mean(inputs):
    return sum(x / len(inputs) for x in inputs)


def doubling(x, weights, place):
    x.inputs[0].mul_(2)
    return Elementwise(lambda inputs, base, start: mean(inputs))


def drawing(x, weights, place):
    return Elementwise(lambda inputs, base, start: mean(inputs) * torch.rand(len(inputs[0])))


def first_comes_first(x, weights, place):
    return Elementwise(lambda inputs, base, start: inputs[0] - sum(inputs[1:]))


def offset(x, weights, place):
    return Elementwise(lambda inputs, base, start: mean(inputs) + 1.0)


def by_chunk(x, weights, place):
    return Elementwise(lambda inputs, base, start: mean(inputs) - mean(inputs).mean())


def in_its_dtype(x, weights, place):
    whole = sum(x.inputs)
    return Elementwise(lambda inputs, base, start: whole[start : start + len(inputs[0])].float())


def dividing(x, weights, place):
    return Elementwise(lambda inputs, base, start: mean(inputs) / place.number("by"))


def weighing(x, weights, place):
    return Elementwise(lambda inputs, base, start: mean(inputs) * weights[0])


def forgetful(x, weights, place):
    known = place.remembered.get(("sum", place.tensor), lambda: float(sum(t.sum() for t in x.inputs)) * len(CALLS))
    CALLS.append(known)
    return Elementwise(lambda inputs, base, start: mean(inputs) * known)


CALLS: list[float] = []
BY = {"by": Setting(default=1.0, least=0, about="a divisor")}


@pytest.mark.parametrize(
    ("function", "changes", "law"),
    [
        (doubling, {}, "test_inputs_are_never_changed"),
        (drawing, {}, "test_global_random_numbers_are_left_alone"),
        (drawing, {}, "test_the_same_again_is_the_same"),
        (first_comes_first, {}, "test_the_order_of_inputs_does_not_count"),
        (offset, {}, "test_what_is_zero_everywhere_stays_zero"),
        (by_chunk, {}, "test_the_size_of_chunks_changes_no_bit"),
        (in_its_dtype, {}, "test_arithmetic_is_float32_and_rounded_once"),
        (dividing, {"settings": BY}, "test_settings_hold_to_both_ends_of_their_range"),
        (weighing, {"weights": "unused"}, "test_weights_count_unless_the_row_says_that_they_are_unused"),
        (forgetful, {}, "test_what_is_remembered_of_experts_changes_nothing"),
        (weighing, {"summary": ""}, "test_its_row_is_whole"),
    ],
)
def test_a_method_that_breaks_a_law_fails_it(function, changes, law, monkeypatch):
    row = Method(name="bad", step=f"{__name__}:{function.__name__}", summary="breaks a law")
    monkeypatch.setitem(METHODS._house, "bad", replace(row, **changes))
    monkeypatch.setattr(Method, "function", property(lambda self: function))
    contract = type("Bad", (MergeMethodContract,), {"method": "bad"})()
    arguments = {
        "test_the_size_of_chunks_changes_no_bit": ({}, monkeypatch),
        "test_arithmetic_is_float32_and_rounded_once": ({}, torch.bfloat16),
        "test_settings_hold_to_both_ends_of_their_range": (),
        "test_its_row_is_whole": (),
    }
    with pytest.raises(AssertionError):
        getattr(contract, law)(*arguments.get(law, ({},)))


@pytest.mark.parametrize(
    ("score", "law"),
    [
        (lambda w, f: -w.abs(), "test_scores_are_finite_float32_one_for_each_weight"),
        (lambda w, f: w.abs().double(), "test_scores_are_finite_float32_one_for_each_weight"),
        (lambda w, f: w.abs().sum(dim=-1), "test_scores_are_finite_float32_one_for_each_weight"),
        (lambda w, f: w.abs_(), "test_the_same_again_is_the_same_and_nothing_is_changed"),
        (lambda w, f: w.abs() * torch.rand(1), "test_the_same_again_is_the_same_and_nothing_is_changed"),
        (
            lambda w, f: w.abs() / w.abs().sum(),
            "test_parts_are_scored_as_the_whole_is_unless_the_row_asks_for_it_whole",
        ),
        (lambda w, f: None, "test_its_row_is_whole"),
    ],
)
def test_a_criterion_that_breaks_a_law_fails_it(score, law, monkeypatch):
    row = Criterion(name="bad", score="nowhere", summary="" if law == "test_its_row_is_whole" else "bad", whole=False)
    monkeypatch.setitem(CRITERIA._house, "bad", row)
    monkeypatch.setattr(Criterion, "function", property(lambda self: score))
    contract = type("Bad", (CriterionContract,), {"criterion": "bad"})()
    with pytest.raises(AssertionError):
        getattr(contract, law)(*([(3, 8)] if "finite" in law else []))
