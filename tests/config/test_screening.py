"""What of a configuration screening and budgets of tokens need, and what of a study they are."""

from __future__ import annotations

import pytest
from configurations import faults, load

from sae_moo.config.document import Config, differences

GOOD = """\
models: {base: zoo:base, experts: {math: zoo:math}}
tasks: [{name: zoo_math, search: 10, test: 10}]
objectives: [zoo_math, sparsity]
"""
SCREENED = GOOD + "evaluation: {screening: {}}\n"
COMPARED = GOOD + "compare: {methods: [nsga2, {name: b, evaluation: {screening: {tokens: 128}}}], seeds: 1}\n"


def test_the_defaults(tmp_path):
    section = load(tmp_path, SCREENED).evaluation.screening
    assert section.model_dump() == {
        "candidates": 8,
        "tokens": 2048,
        "survivors": 2,
        "more": 16384,
        "measure": "tv",
        "data": None,
    }
    plain = load(tmp_path, GOOD)
    assert (plain.evaluation.screening, plain.search.tokens) == (None, None)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (["evaluation.screening.survivors=9"], "evaluation.screening.survivors: expected at most 8, all candidates, got 9"),
        (["evaluation.screening.candidates=1"], "evaluation.screening.candidates: expected greater than or equal to 2, got 1"),
        (["evaluation.screening.tokens=1"], "evaluation.screening.tokens: expected greater than or equal to 2, got 1"),
        (["evaluation.screening.survivors=0"], "evaluation.screening.survivors: expected greater than or equal to 1"),
        (["evaluation.screening.more=2000"], "evaluation.screening.more: expected at least 2048, the tokens of the first stage, got 2000"),
        (["evaluation.screening.measure=js"], "evaluation.screening.measure: expected 'tv' or 'kl', got 'js'"),
        (["evaluation.screening.survivor=1"], "evaluation.screening.survivor: no such key (did you mean 'survivors'?)"),
        (["search.algorithm=sae-local"], "evaluation.screening: is for nsga2, nsga3; algorithm: sae-local proposes one allocation"),
        (["search.algorithm=random"], "evaluation.screening: is for nsga2, nsga3; algorithm: random proposes one"),
        (["space.kind=coefficients"], "evaluation.screening: is for space.kind: lineage"),
        (["pruning.scope=global"], "evaluation.screening: pruning.scope: global leaves no allocation to choose"),
        (["pruning.scope=neurons"], "evaluation.screening: pruning.scope: neurons leaves no allocation to choose"),
        (["pruning.scope=blocks"], "evaluation.screening: pruning.scope: blocks leaves no allocation to choose"),
        (["pruning.scope=[blocks, heads, tensor]"], "evaluation.screening: pruning.scope: blocks, heads, tensor leaves no"),
        (["pruning.scope='2:4'"], "evaluation.screening: pruning.scope: 2:4 leaves no allocation to choose"),
        (["space.granularity=model"], "evaluation.screening: space.granularity: model prunes all blocks alike"),
        (["search.operators.prune_after=false"], "evaluation.screening: search.operators.prune_after: false prunes no child"),
        (["search.tokens=0"], "search.tokens: expected greater than or equal to 1, got 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_screened_is_refused(tmp_path, changes, fault):
    found = faults(tmp_path, SCREENED, *changes)
    assert len(found) == 1
    assert fault in found[0]


@pytest.mark.parametrize("scope", ["tensor", "group", "row", "[tensor, blocks]"])
def test_scattered_zeros_are_screened_beside_blocks_that_go(tmp_path, scope):
    assert load(tmp_path, SCREENED, f"pruning.scope={scope}").evaluation.screening is not None


def test_a_single_stage_reads_no_more(tmp_path):
    assert load(tmp_path, SCREENED, "evaluation.screening={survivors: 1, more: 2}").evaluation.screening.more == 2


def test_screening_is_a_part_of_a_study_and_a_budget_or_a_place_is_none(tmp_path):
    plain, screened = load(tmp_path, GOOD).identity(), load(tmp_path, SCREENED).identity()
    assert [each.key for each in differences(plain, screened)] == [
        f"evaluation.screening.{key}" for key in ("candidates", "measure", "more", "survivors", "tokens")
    ]
    elsewhere = load(tmp_path, SCREENED, "evaluation.screening.data=texts.txt", "search.tokens=100")
    assert elsewhere.identity() == screened
    # as older studies have it
    before = {key: value for key, value in plain.items() if not key.startswith("evaluation.screening")}
    assert not differences(before, plain)
    assert not any("tokens" in key for key in plain)


def test_methods_of_a_comparison_differ_in_screening_and_in_nothing_else_that_is_asked(tmp_path):
    config = load(tmp_path, COMPARED)
    cells = [config.cell(method, 0) for method in config.compare.named]
    assert cells[0].evaluation.screening is None
    assert cells[1].evaluation.screening.tokens == 128
    assert Config.from_dict(cells[1].model_dump(mode="json"), tmp_path) == cells[1]
    racing = COMPARED.replace("screening: {tokens: 128}", "racing: {}")
    assert "set evaluation.racing for all" in faults(tmp_path, racing)[0]
    budget = COMPARED.replace("evaluation: {screening: {tokens: 128}}", "search: {tokens: 5}")
    assert "every method has the same budget; set search.tokens for all" in faults(tmp_path, budget)[0]
    unable = COMPARED.replace("evaluation:", "search: {algorithm: pso}, evaluation:")
    assert "b: evaluation.screening: is for nsga2, nsga3" in faults(tmp_path, unable)[0]
