"""Screening: how alike a pruned merge is to the same merge unpruned, and which of several allocations is."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sae_moo.evaluate import screening
from sae_moo.evaluate.asking import ScreeningSection
from sae_moo.evaluate.evaluator import Evaluator
from sae_moo.evaluate.scorer import Scorer
from sae_moo.evaluate.screening import Screening, Texts, log_probabilities, similarity, staged, teacher
from sae_moo.evaluate.tasks import Item, ItemTask, split_items
from sae_moo.materialization.into_model import materialize
from sae_moo.materialization.parents import WeightCache
from sae_moo.recipe import Cast, Expert, Merge, Prune

MERGE = Merge("linear", (Expert("math"), Expert("code")), (0.5, 0.5))
SEQUENCES = [[1, 5, 7, 9], [2, 6, 8], [1, 5, 7, 2], [11, 12, 13, 14, 15, 16]]


class Told:
    """A model whose next-token probabilities after each token are given."""

    def __init__(self, *rows):
        self.logits = torch.tensor(rows, dtype=torch.float32).log()[None]

    def __call__(self, input_ids, use_cache):
        return SimpleNamespace(logits=self.logits[:, : input_ids.shape[1]].expand(len(input_ids), -1, -1))


def pruned(*levels: float, merge=MERGE):
    return Cast(Prune(merge, levels), "float32")


def screened(tiny, tiny_model, section=None, sequences=SEQUENCES, cache=None) -> Screening:
    section = section or ScreeningSection(tokens=8, survivors=2, more=17)
    return Screening(section, tiny, tiny_model, sequences, cache)


def test_alike_is_one_minus_half_the_l1_distance_or_minus_the_divergence():
    texts = Texts.of([[0, 1, 1]], 3)
    wanted = log_probabilities(Told([0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5]), texts)
    model = Told([0.25, 0.5, 0.25], [0.0, 0.5, 0.5], [0.2, 0.3, 0.5])
    assert similarity(wanted, model, texts).tolist() == pytest.approx([0.75, 0.0, 1.0])
    divergence = similarity(wanted, model, texts, "kl")
    assert divergence[0] == pytest.approx(-(0.5 * math.log(2) + 0.25 * math.log(0.5)), abs=1e-6)
    assert divergence[1:].tolist() == pytest.approx([-math.inf, 0.0], abs=1e-6)


@pytest.mark.parametrize("measure", ["tv", "kl"])
def test_a_model_is_its_own_best_likeness_and_less_alike_the_more_it_is_pruned(tiny, tiny_model, measure):
    texts = Texts.of(SEQUENCES, 64)
    materialize(Cast(MERGE, "float32"), tiny, tiny_model)
    wanted = log_probabilities(tiny_model, texts)
    means = []
    for level in (0.0, 0.2, 0.5, 0.9):
        materialize(Cast(Prune(MERGE, level), "float32"), tiny, tiny_model)
        means.append(similarity(wanted, tiny_model, texts, measure).mean())
    assert means[0] == pytest.approx(1.0 if measure == "tv" else 0.0, abs=1e-6)
    assert means == sorted(means, reverse=True)


def test_what_is_compared_does_not_depend_on_how_texts_are_laid_out(tiny, tiny_model, monkeypatch):
    materialize(Cast(MERGE, "float32"), tiny, tiny_model)
    together = Texts.of(SEQUENCES, 64)
    teachers = log_probabilities(tiny_model, together)
    materialize(pruned(0.0, 0.5, 0.5, 0.0), tiny, tiny_model)
    whole = similarity(teachers, tiny_model, together)
    monkeypatch.setattr(screening, "PLACES", 2)
    monkeypatch.setattr(screening, "PASS_BYTES", 1)
    alone = Texts.of(SEQUENCES, 64)
    assert [batch.shape for batch in together.batches] == [(1, 3), (2, 4), (1, 6)]
    assert [batch.shape[0] for batch in alone.batches] == [1, 1, 1, 1]
    rows = [row for rows in teachers for row in rows.split(1)]
    again = similarity([torch.cat(rows[a:b]) for a, b in ((0, 3), (3, 7), (7, 11), (11, 17))], tiny_model, alone)
    assert again == pytest.approx(whole, abs=1e-5)


def test_texts_are_read_in_parts_of_which_each_fits(monkeypatch):
    texts = Texts.of(SEQUENCES, 10)
    assert [part.tokens for part in texts.parts(4 * 10 * 11)] == [11, 6]
    assert [part.tokens for part in texts.parts(1)] == [3, 8, 6]
    assert [part.tokens for part in texts.parts()] == [17]


@pytest.mark.parametrize(
    ("tokens", "first", "rest"),
    [
        (4, [[1, 5, 7, 9]], SEQUENCES[1:]),
        (6, [[1, 5, 7, 9]], SEQUENCES[1:]),
        (7, SEQUENCES[:2], SEQUENCES[2:]),
        (17, SEQUENCES, []),
        (99, SEQUENCES, []),
        (2, [[1, 5]], [[7, 9], *SEQUENCES[1:]]),
    ],
)
def test_the_first_stage_has_as_many_whole_texts_as_there_is_room_for(tokens, first, rest):
    assert staged(SEQUENCES, tokens) == (first, rest)


def test_the_teacher_is_the_merge_without_its_own_prunings():
    inner = Merge("linear", (Cast(Prune(Expert("math"), 0.5), "float32"), Expert("code")), (0.5, 0.5))
    chain = Prune(Prune(inner, 0.25, scope="neurons"), 0.5)
    assert teacher(Cast(chain, "bfloat16")) == Cast(inner, "bfloat16")
    assert teacher(Cast(inner, "float32")) == Cast(inner, "float32")


def test_the_allocation_most_like_the_unpruned_merge_is_chosen_wherever_it_stands(tiny, tiny_model):
    mild, harsh, worst = pruned(0.0, 0.1, 0.0, 0.0), pruned(0.0, 0.6, 0.6, 0.0), pruned(0.0, 0.9, 0.9, 0.0)
    one = ScreeningSection(tokens=17, survivors=1)
    for order in ([mild, harsh, worst], [worst, harsh, mild], [harsh, mild, worst]):
        for section in (None, one):
            found = screened(tiny, tiny_model, section).best(order)
            assert order[found.chosen] == mild
            assert found.candidates == 3
            assert 0.9 < found.similarity < 1


def test_survivors_go_on_and_only_they_and_each_reading_is_counted(tiny, tiny_model):
    recipes = [pruned(0.0, level, 0.5, 0.0) for level in (0.9, 0.1, 0.8, 0.2)]
    # 7 of 17 tokens at first: the teacher and four; the other 10 for the teacher and two
    assert screened(tiny, tiny_model).best(recipes).tokens == 5 * 7 + 3 * 10
    one = screened(tiny, tiny_model, ScreeningSection(tokens=8, survivors=1, more=17))
    assert one.best(recipes).tokens == 5 * 7
    all_at_once = screened(tiny, tiny_model, ScreeningSection(tokens=17, survivors=4, more=17))
    assert all_at_once.best(recipes).tokens == 5 * 17


def test_stages_and_parts_change_no_number(tiny, tiny_model, monkeypatch):
    recipes = [pruned(0.0, level, 0.5, 0.0) for level in (0.9, 0.1, 0.8, 0.2)]
    whole = screened(tiny, tiny_model, ScreeningSection(tokens=17, survivors=4, more=17)).best(recipes)
    parted = screened(tiny, tiny_model, ScreeningSection(tokens=8, survivors=4, more=17)).best(recipes)
    monkeypatch.setattr(screening, "KEPT_BYTES", 1)
    monkeypatch.setattr(Texts, "parts", lambda self, parts=Texts.parts: parts(self, 1))
    small = screened(tiny, tiny_model, ScreeningSection(tokens=17, survivors=4, more=17)).best(recipes)
    assert parted.chosen == whole.chosen == small.chosen == 1
    assert parted.similarity == pytest.approx(whole.similarity, abs=1e-6)
    assert small.similarity == pytest.approx(whole.similarity, abs=1e-6)
    assert small.tokens == whole.tokens == 5 * 17


def test_ties_go_to_the_first_and_what_is_not_finite_loses(tiny, tiny_model):
    same = [pruned(0.0, 0.5, 0.5, 0.0), pruned(0.0, 0.50004, 0.5, 0.0)]
    assert screened(tiny, tiny_model).best(same[:1] * 2).chosen == 0
    rows = ((0.5, 0.5), (0.5, 0.5), (0.5, 0.5), (1.6e38, 1.6e38))
    broken = Merge("linear", (Expert("math"), Expert("code")), rows, {"normalize": False})
    found = screened(tiny, tiny_model).best([pruned(0.0, 0.5, 0.5, 0.0, merge=broken)] * 3)
    assert (found.chosen, found.similarity, found.tokens) == (0, None, 7 + 10)


def test_allocations_of_different_merges_are_refused(tiny, tiny_model):
    with pytest.raises(ValueError, match="over one merge, got 2"):
        screened(tiny, tiny_model).best([pruned(0.5), Cast(Prune(Expert("math"), 0.5), "float32")])
    materialize(Cast(MERGE, "float32"), tiny, tiny_model)
    texts = Texts.of([[1, 2]], 64)
    with pytest.raises(ValueError, match="the same texts"):
        similarity(log_probabilities(tiny_model, texts), tiny_model, Texts.of([[1, 2, 3]], 64))


def test_screening_reads_the_cache_and_leaves_it_as_it_is(tiny, tiny_model):
    cache = WeightCache(2**30)
    parent = Cast(Prune(Expert("math"), 0.5), "float32")
    materialize(parent, tiny, tiny_model, cache)
    merge = Merge("linear", (parent, Expert("code")), (0.5, 0.5))
    recipes = [pruned(0.0, level, 0.5, 0.0, merge=merge) for level in (0.9, 0.1)]
    with_it, without = (screened(tiny, tiny_model, cache=each).best(recipes) for each in (cache, None))
    assert list(cache) == [parent]
    assert (with_it.chosen, with_it.similarity) == (without.chosen, without.similarity)


def test_the_best_allocation_is_evaluated_as_if_it_alone_had_been_asked_for(tiny, tiny_model):
    items = [Item(f"question {i} is", (f" {i}",)) for i in range(30)]
    task = ItemTask("a", "likelihood", split_items("a", items, 10, 5), tiny.tokenizer())
    bench = Evaluator(tiny, tiny_model, Scorer([task]), screening=screened(tiny, tiny_model))
    harsh, mild = pruned(0.0, 0.9, 0.9, 0.0), pruned(0.0, 0.1, 0.0, 0.0)
    found, alone = bench.best_of([harsh, mild]), bench.evaluate(mild)
    assert (found.recipe, found.scores, found.sparsity) == (alone.recipe, alone.scores, alone.sparsity)
    assert (found.screened.chosen, found.screened.candidates, alone.screened) == (1, 2, None)
    assert found.tokens == alone.tokens > 0
    assert found.spent == alone.tokens + found.screened.tokens == alone.spent + 3 * 17
    with pytest.raises(ValueError, match="expected one to choose"):
        Evaluator(tiny, tiny_model, Scorer([task])).best_of([harsh, mild])


def test_memory_that_runs_out_while_screening_fails_the_candidate(tiny, tiny_model, monkeypatch):
    def full(*given, **how):
        raise MemoryError

    screening_ = screened(tiny, tiny_model)
    monkeypatch.setattr(screening, "materialize", full)
    task = ItemTask(
        "a", "likelihood", split_items("a", [Item("q", (" 1",)), Item("r", (" 1",))], 1, 1), tiny.tokenizer()
    )
    bench = Evaluator(tiny, tiny_model, Scorer([task]), screening=screening_)
    recipes = [pruned(0.0, each, 0.5, 0.0) for each in (0.5, 0.4)]
    found = bench.best_of(recipes)
    assert found.reason.startswith("out of memory")
    assert found.tokens == 0
    monkeypatch.setattr(screening, "materialize", lambda recipe, *given, **how: recipe in recipes and full())
    assert bench.best_of(recipes).tokens == 7, "the teacher had read, the first could not be merged"
    monkeypatch.setattr(screening, "materialize", materialize)
    monkeypatch.setattr(screening, "similarity", full)
    assert bench.best_of(recipes).tokens == 2 * 7, "the teacher and the first had read; of before nothing is counted"
    assert np.isfinite(found.seconds_score)
