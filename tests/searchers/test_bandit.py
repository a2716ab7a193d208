"""The bandit over operators and pairs: what it tries, what it learns, and what it takes over."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sae_moo.errors import InputError
from sae_moo.objectives import Evaluation
from sae_moo.prediction.table import FeatureTable
from sae_moo.recipe import BASE, Cast, Expert, Prune
from sae_moo.recipe.operators import USUAL, chain_of, chained, named, pair_of
from sae_moo.searchers.algorithms import ALGORITHMS
from sae_moo.searchers.bandit import BONUS, PREDICTED
from sae_moo.searchers.ground import Ground
from sae_moo.testing.searchers import GROUND, Landscape, assignment, drive

EXPERTS = tuple("abcdef")
WIDE = Ground(EXPERTS, (False, True, True, False))
EVEN, LEAN, ARC = named("linear", "linear-0.7", "slerp")
SINGLES = len(EXPERTS) + 1
NAMED = ["linear", "linear-0.7", "slerp"]


class Scores:
    """Every expert scores 0.5; a merge of two by how alike they are (a feature), and by the operator.

    Args:
        tasks: names of the tasks.
    """

    def __init__(self, tasks=("a", "b")):
        self.tasks = tasks
        self.evaluated = []
        rng = np.random.default_rng(3)
        rows = {
            (x, y, task): rng.uniform(-1, 1, 4) for x in EXPERTS for y in EXPERTS if x != y for task in ("a", "b", "c")
        }
        self.table = FeatureTable(("alike", "one", "two", "three"), rows)

    def of(self, recipe, task):
        inner = recipe.input.input.input if isinstance(recipe.input, Prune) else recipe.input
        chain = chain_of(inner, USUAL)
        if chain is None:
            return 0.5
        operators, (first, *others) = chain
        gain = np.mean([self.table.of(first, other, task)[0] for other in others])
        return float(np.clip(0.5 + 0.3 * gain + 0.1 * (operators[-1] == LEAN), 0.0, 1.0))

    def __call__(self, recipe):
        self.evaluated.append(recipe)
        return Evaluation(recipe, {task: (self.of(recipe, task),) * 2 for task in self.tasks}, 0.0, (0.0,) * 4)


def searcher(scores, **settings):
    asked = {"operators": NAMED, "levels": [0.3], **settings}
    return ALGORITHMS["simmerge-bandit"].searcher(
        assignment("simmerge-bandit", {"bandit": asked}, ground=WIDE, features=scores.table)
    )


def run(count=999, **settings):
    scores = Scores()
    return scores, drive(searcher(scores, **settings), scores, count)


def value(evaluation):
    return np.mean([evaluation.mean(task) for task in evaluation.scores])


def test_experts_come_first_then_merges_of_two_once_each_then_the_best_is_pruned():
    _, told = run(pairs=20)
    assert [each.recipe for each, _ in told[:SINGLES]] == [Cast(Expert(name), "float32") for name in (*EXPERTS, BASE)]
    read = [pair_of(proposal.recipe, [EVEN, LEAN, ARC]) for proposal, _ in told[SINGLES:-1]]
    assert len(set(read)) == len(read) == 20
    assert all(first < second for operator, first, second in read if operator.symmetric)
    best = max(told[:-1], key=lambda each: value(each[1]))
    assert told[-1][0].parents == (best[0].recipe,)
    assert told[-1][0].numbers == {"level": 0.3}


def test_it_finds_good_merges_long_before_it_has_tried_all():
    scores, told = run(pairs=25)
    merges = [value(each) for _, each in told[SINGLES:-1]]
    everything = sorted(
        np.mean([scores.of(Cast(chained([operator], (x, y)), "float32"), task) for task in "ab"])
        for operator in (EVEN, LEAN, ARC)
        for x in EXPERTS
        for y in EXPERTS
        if x < y or (x != y and operator == LEAN)
    )
    assert len(everything) == 60
    assert max(merges) >= everything[-2]
    assert np.mean(merges[:15]) > np.quantile(everything, 0.8)
    blind = [value(each) for _, each in run(pairs=15, features=False)[1][SINGLES:-1]]
    assert np.mean(blind) < np.mean(merges[:15])


def test_what_it_expects_is_what_a_merge_scores_once_it_has_learned():
    _, told = run(pairs=55, alpha=0.0, ridge=0.01)
    late = told[-6:-1]
    for proposal, evaluation in late:
        assert proposal.numbers[PREDICTED] == pytest.approx(value(evaluation), abs=0.05)
        assert proposal.numbers[BONUS] == 0.0


def test_a_bold_search_tries_more_kinds_of_merges_early():
    def kinds(alpha):
        _, told = run(pairs=12, alpha=alpha)
        return len({proposal.operator for proposal, _ in told[SINGLES + 3 : -1]})

    assert kinds(100.0) == 3
    assert kinds(100.0) >= kinds(0.0)
    numbers = [proposal.numbers[BONUS] for proposal, _ in run(pairs=40, alpha=1.0)[1][SINGLES:-1]]
    assert numbers[0] > numbers[-1] > 0.0


def test_chains_of_three_go_on_from_the_best_merges_of_two():
    _, told = run(pairs=20, largest=3, chains=8, bases=2)
    pairs, chains = told[SINGLES : SINGLES + 20], told[SINGLES + 20 : -1]
    best = sorted(pairs, key=lambda each: -value(each[1]))[:2]
    assert len(chains) == 8
    for proposal, _ in chains:
        operators, experts = chain_of(proposal.recipe, [EVEN, LEAN, ARC])
        (parent,) = proposal.parents
        assert parent in {each.recipe for each, _ in best}
        operator, first, second = pair_of(parent, [EVEN, LEAN, ARC])
        assert (operators[0], *experts[:2]) == (operator, first, second)
        assert experts[2] not in (first, second)


def test_without_experts_of_their_own_merges_are_still_told_apart():
    _, told = run(pairs=10, singles=False)
    assert len(told) == 11
    assert all(pair_of(proposal.recipe, [EVEN, LEAN, ARC]) for proposal, _ in told[:-1])


def test_features_that_lack_a_pair_are_refused():
    scores = Scores()
    scores.table = scores.table.only(experts="abc")
    with pytest.raises(InputError, match="features: there are none of"):
        searcher(scores)
    assert searcher(scores, features=False).ask(1)


def test_what_is_missing_of_features_and_what_never_differs_changes_nothing():
    plain = [proposal.recipe for proposal, _ in run(pairs=10)[1]]
    scores = Scores()
    rows = {key: np.array([*row, 7.0, np.nan]) for key, row in scores.table.rows.items()}
    table = FeatureTable((*scores.table.names, "same", "none"), rows)
    scores.table = table
    assert [proposal.recipe for proposal, _ in drive(searcher(scores, pairs=10), scores, 99)] == plain


def test_after_what_an_earlier_study_evaluated_it_goes_on_as_that_would_have():
    scores, told = run(pairs=20)
    later = searcher(scores, pairs=10)
    later.inherit([evaluation for _, evaluation in told])
    more = [proposal.recipe for proposal, _ in drive(later, scores, 999)]
    unbroken = [proposal.recipe for proposal, _ in run(pairs=30)[1]]
    assert more[:10] == unbroken[SINGLES + 20 : -1]


def test_what_an_earlier_study_pruned_is_not_pruned_again():
    scores, told = run(pairs=20)
    *dense, pruned = [evaluation for _, evaluation in told]
    later = searcher(scores, pairs=1, levels=[0.6])
    later.inherit([*dense, replace(pruned, scores=dict.fromkeys(pruned.scores, (1.0, 1.0)))])
    last, _ = drive(later, scores, 999)[-1]
    assert (last.operator, last.parents) == ("pruned", (max(dense, key=value).recipe,))


def test_an_operator_and_an_expert_join():
    scores = Scores()
    young = assignment(
        "simmerge-bandit",
        {"bandit": {"operators": NAMED[:2], "pairs": 15, "levels": []}},
        ground=replace(WIDE, experts=EXPERTS[:4]),
        features=scores.table.only(experts=EXPERTS[:4]),
    )
    told = drive(ALGORITHMS["simmerge-bandit"].searcher(young), scores, 99)
    later = searcher(scores, pairs=60, levels=[])
    later.inherit([evaluation for _, evaluation in told])
    more = [proposal.recipe for proposal, _ in drive(later, scores, 99)]
    assert more[:2] == [Cast(Expert(name), "float32") for name in "ef"]
    assert len(more) == 2 + 60 - 15
    read = [pair_of(recipe, [EVEN, LEAN, ARC]) for recipe in more[2:]]
    assert {operator for operator, _, _ in read} == {EVEN, LEAN, ARC}
    assert {"e", "f"} <= {first for _, first, _ in read} | {second for _, _, second in read}


def test_a_new_task_is_learned_from_merges_that_were_scored_on_it_and_old_ones_are_taken_for_what_they_say():
    old = Scores(("a",))
    told = drive(
        ALGORITHMS["simmerge-bandit"].searcher(
            assignment(
                "simmerge-bandit",
                {"bandit": {"operators": NAMED, "pairs": 30, "levels": []}},
                ground=WIDE,
                features=old.table,
                objectives=(replace(assignment("random").objectives[0], tasks=("a",)),),
            )
        ),
        old,
        99,
    )
    part = [replace(evaluation, reason="not scored on b") for _, evaluation in told]
    later = searcher(old, pairs=5)
    later.inherit(part)
    scores = Scores()
    more = drive(later, scores, 99)
    assert [each.recipe for each, _ in more[:SINGLES]] == [each.recipe for each, _ in told[:SINGLES]], "of b unknown"
    first, _ = more[SINGLES]
    fresh, _ = drive(searcher(scores, pairs=5), scores, 99)[SINGLES]
    assert first.numbers[BONUS] < fresh.numbers[BONUS], "of a something is known"
    assert first.numbers[PREDICTED] != fresh.numbers[PREDICTED]


def test_a_pair_in_the_other_order_is_the_same_where_order_makes_no_difference():
    scores, _ = run(pairs=1)
    later = searcher(scores, pairs=99, levels=[])
    turned = [Cast(chained([operator], "ba"), "float32") for operator in (EVEN, LEAN)]
    later.inherit([scores(recipe) for recipe in turned])
    read = [pair_of(proposal.recipe, [EVEN, LEAN, ARC]) for proposal, _ in drive(later, scores, 99)[SINGLES:]]
    assert (EVEN, "a", "b") not in read
    assert (LEAN, "b", "a") not in read
    assert (LEAN, "a", "b") in read


def test_pairs_take_over_what_an_earlier_study_evaluated():
    def made():
        return ALGORITHMS["pairs"].searcher(assignment("pairs", {"pairs": {"levels": [0.3]}}, ground=GROUND))

    models = Landscape()
    told = drive(made(), models, 99)
    for known in (10, len(told)):
        later = made()
        later.inherit([evaluation for _, evaluation in told[:known]])
        more = [proposal.recipe for proposal, _ in drive(later, models, 99)]
        assert more == [proposal.recipe for proposal, _ in told[known:]]
