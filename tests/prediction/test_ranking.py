"""Which merges are looked at, and in which order they come out."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations, product

import pytest

from sae_moo.errors import InputError
from sae_moo.prediction.predictor import Prediction
from sae_moo.prediction.ranking import MOST_REASONS, Chain, number_of, rank, weighed


@dataclass(frozen=True)
class Worth:
    score: float


def worth(chain: Chain) -> float:
    """Later letters are worth more, most of all in front; `y` is worth more than `x`; more experts cost a little."""
    place = sum(ord(name) / 10**i for i, name in enumerate((*chain.experts, *chain.operators)))
    return place - 10 * len(chain.experts)


def judge(chains):
    return [Worth(worth(chain)) for chain in chains]


def every(experts, operators, largest):
    return {
        Chain(order, chosen)
        for size in range(2, min(largest, len(experts)) + 1)
        for order in permutations(experts, size)
        for chosen in product(operators, repeat=size - 1)
    }


@pytest.mark.parametrize(
    ("experts", "operators", "largest"), [("ab", "x", 2), ("ab", "xy", 5), ("abc", "xy", 3), ("abcd", "x", 4)]
)
def test_with_room_every_operator_subset_and_order_is_ranked_once_best_first(experts, operators, largest):
    ranking = rank(tuple(experts), tuple(operators), judge, largest=largest, most=10_000)
    chains = [each.chain for each in ranking.merges]
    assert set(chains) == every(experts, operators, largest)
    assert len(chains) == len(set(chains))
    assert chains == sorted(chains, key=worth, reverse=True)
    assert ranking.complete
    sizes = range(2, min(largest, len(experts)) + 1)
    assert ranking.possible == {size: number_of(len(experts), len(operators), size) for size in sizes}
    assert sum(ranking.possible.values()) == len(chains)


def test_of_too_many_those_go_on_that_promise_most_and_it_is_said_how_many_were_looked_at():
    ranking = rank(tuple("abcde"), ("x", "y"), judge, largest=3, most=12)
    assert ranking.judged == {2: 40, 3: 12}
    assert ranking.possible == {2: 40, 3: 240}
    assert not ranking.complete
    best = [each.chain for each in ranking.merges if len(each.chain.experts) == 2][:2]
    assert {each.chain.experts[:2] for each in ranking.merges if len(each.chain.experts) == 3} == {
        chain.experts for chain in best
    }


def test_one_prefix_goes_on_however_little_room_there_is():
    assert rank(tuple("abcd"), ("x", "y"), judge, largest=4, most=1).judged == {2: 24, 3: 4, 4: 2}


def test_equal_merges_keep_the_order_in_which_they_were_looked_at_pairs_first():
    ranking = rank(("b", "a", "c"), ("y", "x"), lambda chains: [Worth(0.5)] * len(chains), largest=3, most=100)
    chains = [each.chain for each in ranking.merges]
    assert chains[:3] == [Chain(("b", "a"), ("y",)), Chain(("b", "a"), ("x",)), Chain(("b", "c"), ("y",))]
    assert [len(chain.experts) for chain in chains] == sorted(len(chain.experts) for chain in chains)


@pytest.mark.parametrize("symmetric", [("x",), ("x", "y")])
def test_an_operator_that_knows_no_order_is_tried_on_each_pair_once(symmetric):
    ranking = rank(tuple("cab"), ("x", "y"), judge, largest=3, most=100, symmetric=symmetric)
    orders = {each.chain.experts[:2] for each in ranking.merges if each.chain.operators[0] in symmetric}
    assert orders == {("c", "a"), ("c", "b"), ("a", "b")}, "in the order of the configuration"
    assert ranking.complete
    assert sum(ranking.possible.values()) == len({each.chain for each in ranking.merges}) == len(ranking.merges)


def test_a_mean_over_tasks_weighs_scores_ends_and_reasons():
    one = Prediction(0.4, 0.2, 0.6, (("near", 0.1), ("far", -0.3)), model="ridge", unseen=("b",))
    two = Prediction(0.8, 0.7, 1.0, (("near", 0.2), ("wide", 0.04)), model="trees", labelled=True, unseen=("b",))
    mean = weighed({"two": two, "one": one, "other": Prediction(0, 0, 0)}, {"one": 0.25, "two": 0.75})
    assert (mean.score, mean.low, mean.high) == pytest.approx((0.7, 0.575, 0.9))
    assert dict(mean.reasons) == pytest.approx({"near": 0.175, "far": -0.075, "wide": 0.03})
    assert [name for name, _ in mean.reasons] == ["near", "far", "wide"]
    assert (mean.model, mean.labelled, mean.unseen) == ("ridge, trees", True, ("b",))


def test_a_reason_that_counts_little_on_each_task_and_much_on_all_is_told():
    tasks = [str(i) for i in range(4)]
    own = {task: [(f"{name} on {task}", 0.05) for name in range(MOST_REASONS)] for task in tasks}
    told = {task: Prediction(0.5, 0.4, 0.6, (*own[task], ("everywhere", -0.02))) for task in tasks}
    reasons = weighed(told, dict.fromkeys(tasks, 0.25)).reasons
    assert len(reasons) == MOST_REASONS
    assert reasons[0] == ("everywhere", pytest.approx(-0.02))


@pytest.mark.parametrize("experts", [(), ("a",)])
def test_fewer_than_two_experts_are_refused(experts):
    with pytest.raises(InputError, match="expected two or more to merge, got"):
        rank(experts, ("x",), judge, largest=3, most=10)


@pytest.mark.parametrize(("experts", "operators"), [(("a",), ()), (("a", "b"), ()), (("a", "b"), ("x", "x"))])
def test_a_chain_has_an_operator_between_every_two_experts(experts, operators):
    with pytest.raises(ValueError, match="one operator between every two"):
        Chain(experts, operators)
