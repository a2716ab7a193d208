"""From recipe to evaluation; what fails a candidate and what is an error."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sae_moo.errors import TaskError, WeightsError
from sae_moo.evaluate.evaluator import Evaluator
from sae_moo.evaluate.scorer import Scorer
from sae_moo.evaluate.tasks import Item, ItemTask, split_items
from sae_moo.materialization.into_model import materialize
from sae_moo.materialization.texts import calibration_texts
from sae_moo.recipe import Cast, Expert, Merge, Prune, Repair


def evaluator(tiny, tiny_model, kind="exact_match") -> Evaluator:
    items = [Item(f"question {i} is", (f" {i}",)) for i in range(30)]
    tasks = [ItemTask(name, kind, split_items(name, items, 10 + n, 5), tiny.tokenizer()) for n, name in enumerate("ab")]
    return Evaluator(tiny, tiny_model, Scorer(tasks))


def test_an_evaluation_is_complete(tiny, tiny_model):
    recipe = Cast(Prune(Expert("math"), 0.5, scope="global"), "float32")
    evaluation = evaluator(tiny, tiny_model, "likelihood").evaluate(recipe)
    assert evaluation.ok
    assert {task: len(row) for task, row in evaluation.scores.items()} == {"a": 10, "b": 11}
    assert all(0 < score < 1 for row in evaluation.scores.values() for score in row)
    assert evaluation.sparsity == pytest.approx(0.5, abs=1e-3)
    assert evaluation.recipe != recipe
    assert evaluation.recipe.input.counts is not None
    assert len(evaluation.group_sparsity) == len(tiny.groups)


def test_forward_tokens_are_those_of_scoring_and_of_a_repair(tiny, tiny_model):
    bench = evaluator(tiny, tiny_model, "likelihood")
    texts = calibration_texts(tiny, [list(range(3, 23)), list(range(4, 20))])
    pruned = Prune(Expert("math"), 0.5)
    plain, repaired = (bench.evaluate(Cast(each, "float32")) for each in (pruned, Repair(pruned, texts)))
    took = materialize(repaired.recipe, tiny, tiny_model).tokens
    assert 4 * 36 < took < 8 * 36
    assert (repaired.ok, repaired.tokens) == (True, plain.tokens + took)
    assert repaired.spent == repaired.tokens


def test_logits_that_are_not_finite_fail_the_candidate(tiny, tiny_model):
    rows = ((1,), (1,), (1,), (3e38,))  # the final norm's weights stay finite, what it puts out does not
    huge = Cast(Merge("linear", (Expert("math"),), rows, {"normalize": False}), "float32")
    bench = evaluator(tiny, tiny_model)
    evaluation = bench.evaluate(huge)
    assert not evaluation.ok
    assert "log probabilities are not finite" in evaluation.reason
    assert evaluation.scores == {}
    assert bench.evaluate(Cast(Expert("math"), "float32")).ok, "the next candidate is not harmed"


@pytest.mark.parametrize("error", [RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate"), MemoryError()])
def test_a_cpu_running_out_of_memory_fails_the_candidate(tiny, tiny_model, monkeypatch, error):
    bench = evaluator(tiny, tiny_model)

    def full(model, split):
        raise error

    monkeypatch.setattr(bench.scorer, "score_parts", full)
    assert bench.evaluate(Cast(Expert("math"), "float32")).reason.startswith("out of memory")


@pytest.mark.parametrize(
    ("broken", "merging", "scoring"), [("merging", 12.0, 0.0), ("scoring", 10.0, 3.0), ("memory", 10.0, 3.0)]
)
def test_the_time_of_a_failure_is_booked_where_it_was_spent(tiny, tiny_model, monkeypatch, broken, merging, scoring):
    bench, now = evaluator(tiny, tiny_model), [0.0]

    def merge(*given):
        report = materialize(*given)
        if broken == "merging":
            now[0] += 12.0
            raise WeightsError("not finite")
        now[0] += 10.0
        return replace(report, seconds=10.0)

    def score(model, split):
        now[0] += 3.0
        raise MemoryError if broken == "memory" else TaskError("not finite")

    monkeypatch.setattr("sae_moo.evaluate.evaluator.materialize", merge)
    monkeypatch.setattr("sae_moo.evaluate.evaluator.time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(bench.scorer, "score_parts", score)
    failed = bench.evaluate(Cast(Expert("math"), "float32"))
    assert not failed.ok
    assert (failed.seconds_merge, failed.seconds_score) == (merging, scoring)


def test_an_error_of_our_own_is_no_failure_of_the_candidate(tiny, tiny_model, monkeypatch):
    bench = evaluator(tiny, tiny_model)

    def wrong(model, split):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(bench.scorer, "score_parts", wrong)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        bench.evaluate(Cast(Expert("math"), "float32"))


def test_a_task_that_raises_fails_the_candidate(tiny, tiny_model, monkeypatch):
    bench = evaluator(tiny, tiny_model)

    def odd(split, answers, instances):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(bench.scorer.tasks[1], "score", odd)
    assert bench.evaluate(Cast(Expert("math"), "float32")).reason == "task b raised ZeroDivisionError: division by zero"


@pytest.mark.parametrize("scores", [np.full(12, np.nan), np.full(12, 1.2), np.zeros(3)])
def test_scores_that_are_none_fail_the_candidate(tiny, tiny_model, monkeypatch, scores):
    bench = evaluator(tiny, tiny_model)
    monkeypatch.setattr(bench.scorer.tasks[1], "score", lambda split, answers, instances: scores)
    reason = bench.evaluate(Cast(Expert("math"), "float32")).reason
    assert reason.startswith(f"task b: expected {bench.scorer.tasks[1].instances('search')} scores in [0, 1], got ")


def test_running_out_of_memory_fails_the_candidate(tiny, tiny_model, monkeypatch):
    def full(model):
        raise torch.OutOfMemoryError("no more\nat all")

    bench = evaluator(tiny, tiny_model)
    monkeypatch.setattr(bench.scorer, "score_parts", lambda model, split: full(model))
    assert bench.evaluate(Cast(Expert("math"), "float32")).reason == "out of memory: no more"
