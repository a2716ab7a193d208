"""A candidate that several workers ask is evaluated as by one, to the last bit."""

from __future__ import annotations

import pickle
import zlib
from dataclasses import replace

import numpy as np
import pytest

from sae_moo.errors import TaskError, WeightsError
from sae_moo.evaluate.asking import Racing
from sae_moo.evaluate.evaluator import Evaluator
from sae_moo.evaluate.expert_scores import ExpertScores
from sae_moo.evaluate.hardware import PASSES, TEXTS
from sae_moo.evaluate.scorer import Scorer
from sae_moo.evaluate.shares import cut, dealt
from sae_moo.evaluate.sizes import BatchSizes
from sae_moo.evaluate.task import Prompt, Request
from sae_moo.evaluate.tasks import Item, ItemTask, split_items
from sae_moo.objectives import Evaluation, Sparsity, TaskMean
from sae_moo.objectives.front import Front
from sae_moo.recipe import Cast, Expert, Merge, Prune

MATH = Cast(Expert("math"), "float32")
PRUNED = Cast(Prune(Merge("linear", (Expert("math"), Expert("code")), (0.7, 0.3)), 0.4, scope="global"), "float32")
HUGE = Cast(Merge("linear", (Expert("math"),), ((1,), (1,), (1,), (3e38,)), {"normalize": False}), "float32")
BAD = 500
"""A token that a model may choke on."""


class Bits:
    """A task whose scores tell every bit of the answers: two requests an instance of lengths far apart, and prompts.

    Args:
        name: its name.
        count: instances.
        writes: whether every third instance also has a prompt.
        bad: numbers of the instances that hold the token `BAD`.
    """

    def __init__(self, name="bits", count=14, writes=True, bad=()):
        self.name, self.fingerprint, self.count = name, "0123456789abcdef", count
        rng = np.random.default_rng(0)
        self.asked, self.owned = [], []
        for i in range(count):
            context = [BAD] if i in bad else []
            context += rng.integers(3, 400, 3 + i % 5).tolist()
            asked = [Request(tuple(context), (5 + i, 9)), Request((*context, *range(40, 60)), (7,), (3, 4))]
            asked += [Prompt(tuple(context), 3 + i % 2)] if writes and i % 3 == 0 else []
            self.asked += asked
            self.owned += [i] * len(asked)

    def instances(self, split):
        return self.count

    def requests(self, split):
        return self.asked

    def owners(self, split):
        return np.array(self.owned, dtype=np.int64)

    def score(self, split, answers, instances=None):
        own = [[repr(a) for a, i in zip(answers, self.owned, strict=True) if i == each] for each in instances]
        return np.array([zlib.crc32("".join(each).encode()) % 10007 / 10006 for each in own])


class Chokes:
    """Makes NaN of the embedding of the token `BAD`, once it is `choking`; to be hooked to a model's embeddings."""

    choking = False

    def __call__(self, module, inputs, embedded):
        return embedded.masked_fill((inputs[0] == BAD)[..., None], float("nan")) if self.choking else embedded


def items(pool, kind, count=15):
    words = ["red", "a rather long one", "of some more words than the others have", "x"]
    choices = [(f" {i}", f" {i} or {i + 1}") if kind == "multiple_choice" else (f" {i}",) for i in range(count + 10)]
    made = [Item(f"{words[i % 4]} question {i} is", choices[i]) for i in range(count + 10)]
    return ItemTask(kind, kind, split_items(kind, made, count, 5), pool.tokenizer())


def worker(pool, model, tasks, blocks=1, passes=96, texts=16, **rest) -> Evaluator:
    """Return an evaluator whose batches are small."""
    sizes = BatchSizes("cpu", {PASSES.what: passes, TEXTS.what: texts})
    return Evaluator(pool, model, Scorer(tasks, "cpu", pool.tokenizer(), blocks=blocks, sizes=sizes), **rest)


@pytest.fixture(scope="module")
def second_model(tiny):
    return tiny.live_model()


def shared(evaluator, recipe, shares, rivals=None):
    """Evaluate a recipe in shares that travel."""
    found = [pickle.loads(pickle.dumps(evaluator.ask(recipe, i, shares))) for i in range(shares)]
    return evaluator.join(recipe, rivals, found)


def timeless(evaluation):
    return replace(evaluation, seconds_merge=0.0, seconds_score=0.0)


@pytest.mark.parametrize(("blocks", "recipe"), [(1, PRUNED), (4, MATH)], ids=["at once", "in parts"])
def test_shares_put_together_are_the_whole_to_the_last_bit(tiny, tiny_model, second_model, blocks, recipe):
    tasks = [Bits(), *(items(tiny, kind) for kind in ("likelihood", "multiple_choice", "exact_match"))]
    whole = worker(tiny, tiny_model, tasks, blocks).evaluate(recipe)
    apart = worker(tiny, second_model, tasks, blocks)
    answers = apart.ask(recipe, 0, 1).answers
    assert answers.batches > 8, "there is something to cut"
    assert whole.ok
    for shares in (2, 5) if blocks == 1 else (1, 3, answers.batches + 1):
        again = shared(apart, recipe, shares)
        assert timeless(again) == timeless(whole), f"{shares} shares"
        assert again.recipe == whole.recipe
        assert again.seconds_merge > 0
        assert again.seconds_score > 0


def test_each_share_reads_what_is_its_own(tiny, tiny_model):
    apart = worker(tiny, tiny_model, [Bits(), items(tiny, "likelihood")], blocks=3)
    whole = apart.ask(PRUNED, 0, 1)
    found = [apart.ask(PRUNED, i, 3) for i in range(3)]
    assert sum(each.tokens for each in found) == whole.tokens
    assert max(each.tokens for each in found) < whole.tokens / 2
    assert {each.most for each in found} == {whole.answers.batches}
    assert sorted(n for each in found for n in each.answers.texts) == sorted(whole.answers.texts) == list(range(5))
    read = np.concatenate([each.answers.readings.request for each in found])
    assert sorted(read.tolist()) == whole.answers.readings.request.tolist()


def test_a_race_is_decided_as_by_one_worker_wherever_it_stops(tiny, tiny_model, second_model):
    tasks, racing = [items(tiny, "likelihood", 40)], Racing(blocks=5, confidence=0.9, margin=0.001)
    alone, apart = (worker(tiny, model, tasks, 5, racing=racing) for model in (tiny_model, second_model))
    own = np.array(alone.evaluate(PRUNED).scores["likelihood"])
    found = [apart.ask(PRUNED, i, 3) for i in range(3)]
    fronts = {}  # where it stops -> a front that it races against then
    for ahead in np.geomspace(0.002, 0.4, 80):
        rival = Evaluation(MATH, {"likelihood": tuple(np.clip(own[::-1] + ahead, 0, 1))}, 0.9)
        rivals = Front((TaskMean("a", ("likelihood",)), Sparsity()), members=(rival,))
        stopped = apart.join(PRUNED, rivals, found).stopped
        fronts.setdefault(None if stopped is None else stopped.instances["likelihood"], rivals)
    assert fronts.keys() >= {None, 8, 16, 24}
    for stop, rivals in fronts.items():
        whole, again = alone.evaluate(PRUNED, rivals), apart.join(PRUNED, rivals, found)
        assert (None if whole.stopped is None else whole.stopped.instances["likelihood"]) == stop
        assert timeless(replace(again, tokens=whole.tokens)) == timeless(whole)
        assert again.tokens >= whole.tokens, "all parts were asked"
        assert (again.tokens == whole.tokens) == (stop is None)


@pytest.mark.parametrize(("bad", "blocks"), [((4, 11), 1), ((0,), 3), ((9, 12), 3)])
def test_what_fails_in_one_share_fails_as_the_whole_does(tiny, tiny_model, bad, blocks):
    evaluator, chokes = worker(tiny, tiny_model, [items(tiny, "likelihood"), Bits(bad=bad)], blocks), Chokes()
    hook = tiny_model.get_input_embeddings().register_forward_hook(chokes)
    try:
        assert evaluator.evaluate(MATH).ok
        chokes.choking = True
        whole = evaluator.evaluate(PRUNED)
        apart = [shared(evaluator, PRUNED, shares) for shares in (2, 4)]
    finally:
        hook.remove()
    assert "not finite for" in whole.reason
    assert [each.reason for each in apart] == [whole.reason] * 2
    assert all(each.recipe == whole.recipe and not each.scores for each in apart)


def test_what_cannot_be_written_in_one_share_fails_as_the_whole_does(tiny, tiny_model, monkeypatch):
    evaluator = worker(tiny, tiny_model, [Bits()], 2)
    assert evaluator.evaluate(MATH).ok
    writer = evaluator.scorer._layout("search").writer
    original = writer._decoded
    for i in (0, 3):

        def decoded(model, requests, bad=writer.requests[i]):
            if bad in requests:
                raise TaskError(f"logits are not finite while {len(requests)} answers are written")
            return original(model, requests)

        monkeypatch.setattr(writer, "_decoded", decoded)
        whole = evaluator.evaluate(PRUNED)
        assert "while" in whole.reason
        assert {shared(evaluator, PRUNED, shares).reason for shares in (2, 3)} == {whole.reason}


def test_what_cannot_be_merged_or_read_at_all_fails_as_the_whole_does(tiny, tiny_model, monkeypatch):
    tasks = [Bits(), items(tiny, "likelihood")]
    whole = worker(tiny, tiny_model, tasks, 3).evaluate(HUGE)
    assert not whole.ok
    assert shared(worker(tiny, tiny_model, tasks, 3), HUGE, 3).reason == whole.reason

    def broken(*given):
        raise WeightsError("weights are not finite")

    evaluator = worker(tiny, tiny_model, tasks)
    monkeypatch.setattr("sae_moo.evaluate.evaluator.materialize", broken)
    whole, again = evaluator.evaluate(PRUNED), shared(evaluator, PRUNED, 2)
    assert timeless(again) == timeless(whole)
    assert (again.reason, again.seconds_score) == ("weights are not finite", 0.0)


def test_a_task_that_raises_fails_the_candidate_where_shares_are_joined(tiny, tiny_model, monkeypatch):
    evaluator = worker(tiny, tiny_model, [Bits(), items(tiny, "likelihood")], 3)
    found = [evaluator.ask(PRUNED, i, 2) for i in range(2)]
    monkeypatch.setattr(Bits, "score", lambda *_: 1 / 0)
    assert evaluator.join(PRUNED, None, found).reason == "task bits raised ZeroDivisionError: division by zero"


def test_shares_of_other_layouts_are_not_put_together(tiny, tiny_model, second_model):
    tasks = [Bits()]
    here, there = worker(tiny, tiny_model, tasks), worker(tiny, second_model, tasks, passes=128)
    assert here.join(PRUNED, None, [here.ask(PRUNED, 0, 2), there.ask(PRUNED, 1, 2)]) is None
    there = worker(tiny, second_model, tasks, texts=8)
    assert here.join(PRUNED, None, [here.ask(PRUNED, 0, 2), there.ask(PRUNED, 1, 2)]) is None


@pytest.mark.parametrize("where", ["read", "write"])
def test_where_memory_runs_out_in_a_share_nothing_is_put_together(tiny, tiny_model, monkeypatch, where):
    evaluator = worker(tiny, tiny_model, [Bits()], texts=24)
    first = evaluator.ask(PRUNED, 0, 2)
    layout = evaluator.scorer._layout("search")
    place, name = (layout.batches, "_logits") if where == "read" else (layout.writer, "_decoded")
    original, calls = getattr(place, name), []

    def full(*given):
        calls.append(given)
        if len(calls) == 1:
            raise MemoryError
        return original(*given)

    monkeypatch.setattr(place, name, full)
    second = evaluator.ask(PRUNED, 1, 2)
    assert second.short == (where == "read")
    assert evaluator.join(PRUNED, None, [first, second]) is None


def test_an_expert_that_is_known_is_not_asked_in_shares_and_one_that_is_not_is_kept(tiny, tiny_model, monkeypatch):
    tasks = [items(tiny, "likelihood")]
    known = ExpertScores(tiny, tasks, "cpu", writer="of shares")
    evaluator = worker(tiny, tiny_model, tasks, known=known)
    asked = shared(evaluator, MATH, 3)
    assert timeless(known.find(MATH)) == timeless(asked)
    monkeypatch.setattr(evaluator.scorer, "score_share", None)  # asked, it would raise
    assert shared(evaluator, MATH, 2) == known.find(MATH)


def test_another_measure_of_sparsity_is_told_too(tiny, tiny_model):
    evaluator = worker(tiny, tiny_model, [items(tiny, "likelihood")], measure="hoyer")
    assert shared(evaluator, PRUNED, 2).sparseness == evaluator.evaluate(PRUNED).sparseness != ()


@pytest.mark.parametrize("costs", [[], [3], [1, 1, 1, 1, 1], [9, 1, 1, 1, 1, 1], [1, 2, 3, 40, 3, 2, 1], [0, 0, 5, 0]])
@pytest.mark.parametrize("shares", [1, 2, 3, 5, 9])
def test_the_dearest_share_is_as_cheap_as_can_be(costs, shares):
    from itertools import combinations_with_replacement, pairwise

    found = cut(costs, shares)
    assert len(found) == shares
    assert [i for each in found for i in each] == list(range(len(costs)))
    assert not costs or len(found[0])
    cuts = combinations_with_replacement(range(len(costs) + 1), shares - 1)
    best = min(max(sum(costs[a:b]) for a, b in pairwise([0, *ends, len(costs)])) for ends in cuts)
    assert max(sum(costs[i] for i in each) for each in found) == best


def test_all_parts_together_are_cut():
    costs = [[5, 5], [], [5], [5, 5, 5]]
    found = [dealt(costs, i, 3) for i in range(3)]
    held = [[[len(own) for own in each] for each in found]]
    assert held == [[[2, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 2]]]
    assert found[2][3] == range(1, 3)
