from __future__ import annotations

import json

import numpy as np
import pytest

from sae_moo.evaluate.anchors import AnchoredTask, anchored, anchors
from sae_moo.evaluate.scorer import Scorer
from sae_moo.evaluate.tasks import Item, ItemTask, split_items
from sae_moo.materialization.into_model import materialize
from sae_moo.recipe import Cast, Expert


def test_every_pattern_of_answers_has_its_share():
    patterns = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    counts = [40, 20, 10, 30]
    scores = np.repeat(patterns, counts, axis=0)[np.random.default_rng(0).permutation(100)].T.astype(float)
    chosen = anchors(scores, 20)
    assert sorted(set(chosen.tolist())) == chosen.tolist()
    found = [int((pattern == scores[:, chosen].T).all(axis=1).sum()) for pattern in patterns]
    assert found == [8, 4, 2, 6]


@pytest.mark.parametrize("count", [1, 7, 100])
def test_as_many_as_asked_for_none_twice(count):
    chosen = anchors(np.random.default_rng(1).random((3, 100)), count)
    assert len(set(chosen.tolist())) == len(chosen) == count


@pytest.mark.parametrize("count", [0, 101])
def test_what_cannot_be_chosen(count):
    with pytest.raises(ValueError, match=f"count: expected 1 to 100, got {count}"):
        anchors(np.zeros((3, 100)), count)


def test_means_of_anchors_are_nearer_than_those_of_any_items():
    """Of merges of the experts: they solve what the experts solve, most of the time."""
    rng = np.random.default_rng(2)
    experts = (rng.random((4, 400)) < rng.beta(0.4, 0.4, 400)).astype(float)
    merges = np.where(rng.random((50, 400)) < 0.9, experts[rng.integers(4, size=50)], rng.random((50, 400)) < 0.5)
    chosen = anchors(experts, 40)
    random = [rng.choice(400, 40, replace=False) for _ in range(50)]

    def error(items):
        return np.sqrt(((merges[:, items].mean(axis=1) - merges.mean(axis=1)) ** 2).mean())

    assert error(chosen) < 0.8 * np.median([error(items) for items in random])


def test_an_anchored_task_is_the_same_task_over_fewer_items(tiny, tiny_model):
    materialize(Cast(Expert("math"), "float32"), tiny, tiny_model)
    items = [Item(f"question {i} is", (f" {i}", f" {i + 1}"), 0) for i in range(30)]
    whole = ItemTask("a", "multiple_choice", split_items("a", items, 20, 8), tiny.tokenizer())
    part = AnchoredTask(whole, [1, 4, 5, 19])
    assert (part.instances("search"), part.instances("test"), part.name) == (4, 8, "a")
    assert part.owners("search").tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert part.source("search") == "4 anchors for 20 of items of its own"
    assert part.source("test") == whole.source("test")
    assert part.fingerprint not in (whole.fingerprint, AnchoredTask(whole, [1, 4, 5, 18]).fingerprint)
    expected = Scorer([whole]).score(tiny_model, "search")["a"]
    for blocks in (1, 3):
        scorer = Scorer([part], blocks=blocks)
        assert scorer.score(tiny_model, "search")["a"].tolist() == expected[[1, 4, 5, 19]].tolist()
    answers = Scorer([part]).answers(tiny_model, "test")["a"]
    assert part.score("test", answers).tolist() == Scorer([whole]).score(tiny_model, "test")["a"].tolist()
    assert list(part.samples("test", answers)) == list(whole.samples("test", answers))


def test_at_least_one_item_is_asked(tiny):
    items = [Item(f"question {i} is", (f" {i}",)) for i in range(9)]
    task = ItemTask("a", "likelihood", split_items("a", items, 4, 2), tiny.tokenizer())
    (part,) = anchored([task], {"a": anchors(np.zeros((2, 4)), 1).tolist()})
    assert part.instances("search") == 1
    json.dumps(list(part.samples("search", Scorer([part]).answers(tiny.live_model(), "search")["a"])))
