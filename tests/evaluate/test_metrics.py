"""Every metric of the harness: chosen, it scores or is refused in a line; beside another, it is told or left out in one."""

from __future__ import annotations

import json
import math

import lm_eval.api.metrics  # fills the registry
import pytest
import yaml
from lm_eval.api.registry import AGGREGATION_REGISTRY, METRIC_REGISTRY

from sae_moo import zoo
from sae_moo.errors import InputError
from sae_moo.evaluate import lm_eval
from sae_moo.evaluate.asking import TaskSection
from sae_moo.evaluate.harness import HarnessTask
from sae_moo.evaluate.task import Answer, Request
from sae_moo.experts.vocabulary import load_tokenizer

SCORED = {
    "multiple_choice": {"acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match"},
    "loglikelihood": {"acc", "perplexity"},
    "loglikelihood_rolling": {"word_perplexity", "byte_perplexity", "bits_per_byte"},
    "generate_until": {"exact_match"},
}
TOLD = {
    "multiple_choice": {"mcc"},
    "loglikelihood": set(),
    "loglikelihood_rolling": set(),
    "generate_until": {"bleu", "chrf", "chrf++", "ter"},
}
OUTPUTS = {
    "multiple_choice": "acc",
    "loglikelihood": "acc",
    "loglikelihood_rolling": None,
    "generate_until": "exact_match",
}


@pytest.fixture
def built(tmp_path):
    def build(output: str, metrics: list[dict], **changes) -> HarnessTask:
        documents = [
            {"q": f"{i} is", "options": ["yes", "no", "maybe"][: 2 + i % 2], "label": i % 2, "text": f"{i} is so."}
            for i in range(16)
        ]
        (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
        target = {"multiple_choice": "label", "loglikelihood_rolling": "{{text}}"}.get(output, "{{options[label]}}")
        described = {
            "task": "ours",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(tmp_path / "d.jsonl")}},
            "test_split": "test",
            "output_type": output,
            "doc_to_text": "" if output == "loglikelihood_rolling" else "{{q}}",
            "doc_to_target": target,
            **({"doc_to_choice": "{{options}}"} if output == "multiple_choice" else {}),
            **({"generation_kwargs": {"until": ["."], "max_gen_toks": 4}} if output == "generate_until" else {}),
            "metric_list": metrics,
            **changes,
        }
        (tmp_path / "task.yaml").write_text(yaml.safe_dump(described))
        lm_eval._manager.cache_clear()
        section = TaskSection(name="t", task="ours", include=str(tmp_path), search=8, test=8)
        return HarnessTask(section, load_tokenizer(zoo.checkpoint("base")), zoo.checkpoint("base"))

    return build


def made_up(task: HarnessTask) -> list:
    return [
        Answer(-1.0 - i % 3, 2, i % 2 == 0) if isinstance(asked, Request) else ("yes", "no", "perhaps so")[i % 3]
        for i, asked in enumerate(task.requests("test"))
    ]


def assert_sound(task: HarnessTask) -> set[str]:
    answers = made_up(task)
    assert ((task.score("test", answers) >= 0) & (task.score("test", answers) <= 1)).all()
    metrics = task.metrics("test", answers)
    for metric in metrics.values():
        assert math.isfinite(metric.value)
        assert metric.stderr is None or math.isfinite(metric.stderr)
    return {name.partition(",")[0] for name in metrics}


def attempt(build) -> tuple[HarnessTask | None, str]:
    """Return a task, or None and why it is refused."""
    try:
        return build(), ""
    except InputError as error:
        return None, str(error)


@pytest.mark.filterwarnings("default")  # the harness's own
@pytest.mark.parametrize("output", OUTPUTS)
def test_a_metric_is_a_score_or_one_line(output, built, caplog, monkeypatch):
    monkeypatch.setattr(lm_eval, "BOOTSTRAP", 4)
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    assert len(METRIC_REGISTRY) > 15
    first, scored, beside = OUTPUTS[output], set(), set()
    for metric in sorted(METRIC_REGISTRY):
        alone = [{"metric": metric}]
        task, why = attempt(lambda alone=alone: built(output, alone))
        assert (task is None) == why.startswith("task t: "), metric
        assert "\n" not in why
        if task is not None:
            assert assert_sound(task) == {metric}
            scored.add(metric)
        if first not in (None, metric):
            task, why = attempt(lambda alone=alone: built(output, [{"metric": first}, *alone]))
            assert (task is None) == why.startswith("task t: "), metric
            assert "\n" not in why
            if task is not None:
                caplog.clear()
                told = assert_sound(task)
                lines = [message for message in caplog.messages if "the other metrics are told" in message]
                assert first in told
                assert all(line.startswith(f"task t: no {metric},none") and "\n" not in line for line in lines)
                beside |= told
    assert scored == SCORED[output]
    assert first is None or beside >= SCORED[output] | TOLD[output]


@pytest.mark.filterwarnings("default")  # the harness's own
@pytest.mark.parametrize("aggregation", sorted(AGGREGATION_REGISTRY))
def test_an_aggregation_is_a_number_or_one_line(aggregation, built, caplog, monkeypatch):
    monkeypatch.setattr(lm_eval, "BOOTSTRAP", 4)
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    further = {"metric": "acc_norm", "aggregation": aggregation, "higher_is_better": True}
    told = assert_sound(built("multiple_choice", [{"metric": "acc"}, further]))
    lines = [message for message in caplog.messages if "the other metrics are told" in message]
    assert told >= {"acc"}
    assert len(lines) == ("acc_norm" not in told)


@pytest.mark.filterwarnings("default")  # the harness's own
def test_a_metric_that_cannot_be_added_up_leaves_the_others(built, caplog):
    further = {"metric": "brier_score", "aggregation": "brier_score", "higher_is_better": False}
    task = built("multiple_choice", [{"metric": "acc"}, further])
    assert set(task.metrics("test", made_up(task))) == {"acc,none"}
    (line,) = [message for message in caplog.messages if "brier_score" in message]
    assert line.startswith("task t: no brier_score,none over its 8 test items: ValueError: setting an array element")
