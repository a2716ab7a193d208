"""The section ``predict``: what is read, what is refused, and that no study is bound to it."""

from __future__ import annotations

from configurations import faults, load

from sae_moo.recipe.operators import USUAL, Operator

PLAIN = """\
models: {base: zoo:base, experts: {math: zoo:math, lingua: zoo:lingua}}
tasks: [{name: zoo_math}]
objectives: [zoo_math, sparsity]
"""


def test_operators_are_plain_names_or_mappings_and_the_usual_ones_by_default(tmp_path):
    assert load(tmp_path, PLAIN).predict.known == USUAL
    lean = "{name: lean, method: linear, weights: [0.9, 0.1]}"
    known = load(tmp_path, f"{PLAIN}predict: {{operators: [slerp, {lean}]}}\n").predict.known
    assert known == (*(each for each in USUAL if each.name == "slerp"), Operator("lean", "linear", (0.9, 0.1)))


def test_what_is_wrong_is_told_in_its_place_with_the_nearest_name(tmp_path):
    text = f"{PLAIN}predict:\n  operators: [linaer]\n  probes: {{item: 3}}\n  largest: 1\n"
    first, *others = faults(tmp_path, text)
    assert first.startswith("c.yaml:5: predict.operators[0]: expected an operator (linear, ")
    assert first.endswith("or a merge method, got 'linaer' (did you mean 'linear'?)")
    assert others == [
        "c.yaml:6: predict.probes.item: no such key (did you mean 'items'?); expected one of data, items, tokens",
        "c.yaml:7: predict.largest: expected greater than or equal to 2, got 1",
    ]


def test_a_study_is_not_bound_to_it_and_one_that_was_stored_is_read_back(tmp_path):
    plain = load(tmp_path, PLAIN)
    other = load(tmp_path, f"{PLAIN}predict: {{operators: [slerp], largest: 4, probes: {{items: 4}}}}\n")
    assert other.identity() == plain.identity()
    assert type(other).from_dict(other.model_dump(mode="json"), tmp_path) == other
