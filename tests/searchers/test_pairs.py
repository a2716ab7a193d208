"""Every pair by every operator: what is tried, in which order, and what is not tried twice."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sae_moo.config.document import Config
from sae_moo.errors import InputError
from sae_moo.recipe import BASE, Cast, Expert
from sae_moo.recipe.operators import USUAL, chain_of, named, pair_of
from sae_moo.searchers.algorithms import ALGORITHMS
from sae_moo.searchers.pairs import chains
from sae_moo.testing.searchers import GROUND, Landscape, assignment, drive


def history(count=999, **settings):
    made = ALGORITHMS["pairs"].searcher(assignment("pairs", {"pairs": settings}))
    return drive(made, Landscape(), count)


def test_experts_come_first_then_every_pair_by_every_operator_one_order_where_it_makes_no_difference():
    proposals = [proposal for proposal, _ in history(levels=[0.3])]
    singles = [*GROUND.experts, BASE]
    assert [each.recipe for each in proposals[:4]] == [Cast(Expert(name), "float32") for name in singles]
    read = [pair_of(each.recipe, USUAL) for each in proposals[4:-1]]
    for operator in USUAL:
        mine = [(first, second) for made, first, second in read if made == operator]
        assert len(set(mine)) == len(mine) == (3 if operator.symmetric else 6)
        assert {frozenset(each) for each in mine} == {frozenset(each) for each in read_pairs()}
    assert [each.operator for each in proposals[4:-1]] == [made.name for made, _, _ in read]
    assert proposals[-1].numbers == {"level": 0.3}
    assert {each.generation for each in proposals[:-1]} == {0}


def read_pairs():
    return [(a, b) for a in GROUND.experts for b in GROUND.experts if a < b]


def test_the_best_of_all_is_what_is_pruned():
    told = history(levels=[0.3, 0.4])
    best = max(told[:-2], key=lambda each: sum(each[1].mean(task) for task in ("a", "b")))
    assert [proposal.parents for proposal, _ in told[-2:]] == [(best[0].recipe,)] * 2


def test_chains_of_three_come_after_the_pairs_as_many_as_asked_for():
    operators = ["linear", "linear-0.7"]
    told = history(singles=False, operators=operators, largest=3, chains=10, levels=[])
    assert len(told) == 3 + 6 + 10
    read = [chain_of(proposal.recipe, named(*operators)) for proposal, _ in told[9:]]
    assert len(set(read)) == 10
    assert all(len(set(experts)) == 3 for _, experts in read)
    assert told[9][0].operator == " > ".join(operator.name for operator in read[0][0])


def test_chains_are_all_there_are_once_and_few_are_spread_over_all():
    even, lean = named("linear", "linear-0.7")
    everything = list(chains("abcd", [even, lean], 999))
    assert len(set(everything)) == len(everything) == 2 * (12 + 24)  # a first operator of no order: half of 24
    few = list(chains("abcd", [even, lean], 12))
    assert few == everything[:12]
    assert {experts[0] for _, experts in few} >= set("abc")
    assert {operators for operators, _ in few} == {(x, y) for x in (even, lean) for y in (even, lean)}
    assert list(chains("ab", [even], 5)) == []


def test_a_configuration_names_operators_and_is_refused_in_words():
    raw = {
        "models": {"base": "zoo:base", "experts": {"math": "zoo:math", "logic": "zoo:logic"}},
        "tasks": [{"name": "zoo_math", "search": 10, "test": 10}],
        "objectives": ["zoo_math", "sparsity"],
        "search": {"algorithm": "pairs", "pairs": {"operators": ["slerp", {"method": "ties", "weights": [0.6, 0.4]}]}},
    }
    settings = Config.from_dict(raw).search.settings["pairs"]
    assert [each.name for each in settings.chosen] == ["slerp", "ties"]
    assert (
        Config.from_dict(Config.from_dict(raw).model_dump(mode="json")).identity() == Config.from_dict(raw).identity()
    )
    raw["search"]["pairs"] = {"operators": ["slerp", "slurp", {"method": "ties", "wieghts": [1.0, 1.0]}], "largest": 4}
    with pytest.raises(InputError) as caught:
        Config.from_dict(raw)
    text = str(caught.value)
    assert "search.pairs.operators[1]: expected an operator (linear, linear-0.7," in text
    assert "got 'slurp' (did you mean 'slerp'?)" in text
    assert "search.pairs.operators[2].wieghts: no such key (did you mean 'weights'?)" in text
    assert "search.pairs.largest: expected less than or equal to 3, got 4" in text
    del raw["models"]["experts"]["logic"], raw["search"]["pairs"]
    with pytest.raises(InputError, match="pairs merges pairs of experts; there is one expert"):
        Config.from_dict(raw)


def test_operators_that_draw_draw_the_same_whatever_the_seed():
    first, second = (ALGORITHMS["pairs"].searcher(replace(assignment("pairs"), seed=seed)).ask(99) for seed in (0, 5))
    assert first == second
