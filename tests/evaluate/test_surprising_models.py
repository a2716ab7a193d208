"""Models that surprise, held against what the harness makes of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from harness_oracle import CHAT, MEAN, assert_same, built, by_the_harness, odd_model, opened, prompts

from sae_moo.errors import InputError
from sae_moo.evaluate.harness import HarnessTask
from sae_moo.evaluate.scorer import Scorer
from sae_moo.evaluate.task import Prompt, Request
from sae_moo.evaluate.writing import TransformersWriter

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
EXAMPLES = {"num_fewshot": 3, "fewshot_split": "validation"}
KINDS = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}} is",
        "doc_to_choice": "{{options}}",
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc", **MEAN}, {"metric": "acc_norm", **MEAN}],
        **EXAMPLES,
    },
    "unasked": {
        "output_type": "loglikelihood",
        "doc_to_text": "",
        "doc_to_target": "{{question}} is {{answer}}",
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            {"metric": "acc", **MEAN},
        ],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}],
    },
    "writing": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}} is",
        "doc_to_target": " {{answer}}",
        "generation_kwargs": {"until": ["\n", "q"], "do_sample": False, "max_gen_toks": 12},
        "metric_list": [{"metric": "exact_match", **MEAN}],
        **EXAMPLES,
    },
}
SHORT = 40  # fewer tokens than three examples and a question have


@pytest.fixture(scope="module")
def little(tmp_path_factory) -> Path:
    """A task of every kind, over the same 30 documents."""
    root = tmp_path_factory.mktemp("little")
    documents = []
    for i in range(30):
        a, b = i % 7, i % 5
        question, right = f"Item {i}: {WORDS[a]} plus {WORDS[b]}", WORDS[a + b]
        text = f"{WORDS[a]} plus {WORDS[b]} is {right}. " * (1 + i % 4 * 3)
        options = [right, WORDS[(a + b + 3) % 13], "seventy thousand"]
        documents.append({"question": question, "answer": right, "options": options, "text": text})
    file = root / "documents.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in documents))
    for name, described in KINDS.items():
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"validation": str(file)}}}
        task = {"task": f"our_{name}", "validation_split": "validation", **source, **described}
        (root / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return root


def no_padding(tokenizer) -> None:
    tokenizer.pad_token = None


def no_padding_but_unknown(tokenizer) -> None:
    tokenizer.pad_token = None
    tokenizer.add_special_tokens({"unk_token": "<unknown>"})


def knows_beginning(tokenizer) -> None:
    tokenizer.add_special_tokens({"bos_token": "<s>"})


def adds_beginning(tokenizer) -> None:
    from tokenizers.processors import TemplateProcessing

    knows_beginning(tokenizer)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B:1", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )


def beginning_no_end(tokenizer) -> None:
    knows_beginning(tokenizer)
    tokenizer.eos_token = None


def no_end(tokenizer) -> None:
    tokenizer.eos_token = None


ODD: dict[str, dict] = {
    "no padding token": {"change": no_padding},
    "unknown for padding": {"change": no_padding_but_unknown},
    "no beginning": {},
    "beginning not added": {"change": knows_beginning},
    "beginning added": {"change": adds_beginning},
    "beginning, no end": {"change": beginning_no_end},
    "short": {"positions": SHORT},
    "short, beginning added": {"positions": SHORT, "change": adds_beginning},
    "short, learned positions": {"positions": SHORT, "kind": "gpt2"},
    "rows without a token": {"rows": 640},
    "rows without a token, beginning added": {"rows": 640, "kind": "gpt2", "change": adds_beginning},
}


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def model(name: str) -> Path:
        if name not in made:
            made[name] = odd_model(tmp_path_factory.mktemp("odd"), **ODD[name])
        return made[name]

    return model


SURPRISES = [
    (name, kind)
    for name in ODD
    for kind in KINDS
    if (name, kind) != ("beginning, no end", "writing")  # see what is refused
]


@pytest.mark.parametrize(("name", "kind"), SURPRISES)
def test_what_surprises_is_read_as_the_harness_reads_it(name, kind, odd, little):
    pool, model = opened(odd(name))
    task = built(pool, little, kind)
    answers = Scorer([task], tokenizer=pool.tokenizer()).answers(model, "test")[kind]
    responses = assert_same(task, answers, by_the_harness(task, odd(name), little))
    assert len({json.dumps(each) for each in responses}) > 7


def contexts(task: HarnessTask) -> list[tuple[int, ...]]:
    return [request.context for split in ("search", "test") for request in task.requests(split)]


@pytest.mark.parametrize("kind", ["choices", "writing"])
def test_a_beginning_is_put_once_by_tokenizers_that_add_it_and_never_by_others(kind, odd, little):
    for name, count in (("beginning added", 1), ("beginning not added", 0)):
        pool, _ = opened(odd(name))
        bos = pool.tokenizer().bos_token_id
        found = contexts(built(pool, little, kind))
        assert len(found) == (54 if kind == "choices" else 18)
        assert all(each.count(bos) == count and each.index(bos) == 0 for each in found if count)
        assert all(bos not in each for each in found if not count)


def test_a_beginning_that_the_chat_template_writes_is_not_doubled(odd, little, tmp_path):
    folder = shutil.copytree(odd("beginning added"), tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{{ bos_token }}" + CHAT)
    pool, model = opened(folder)
    bos = pool.tokenizer().bos_token_id
    how = {"apply_chat_template": True, "fewshot_as_multiturn": False}
    for kind in ("choices", "writing"):
        task = built(pool, little, kind, chat_template=True)
        assert all(each[0] == bos and each.count(bos) == 1 for each in contexts(task))
        answers = Scorer([task], tokenizer=pool.tokenizer()).answers(model, "test")[kind]
        assert_same(task, answers, by_the_harness(task, folder, little, **how))


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("no beginning", "<end>"),
        ("beginning not added", "<s>"),
        ("beginning added", "<s>"),
        ("beginning, no end", "<s>"),
    ],
)
def test_what_nothing_stands_before_follows_the_beginning_or_else_the_end_token(name, first, odd, little):
    pool, _ = opened(odd(name))
    (token,) = pool.tokenizer().encode(first, add_special_tokens=False)
    assert {*contexts(built(pool, little, "unasked"))} == {(token,)}


@pytest.mark.parametrize("name", ["short", "short, beginning added", "short, learned positions"])
def test_prompts_are_cut_to_the_last_tokens_that_the_model_reads(name, odd, little, caplog):
    pool, _ = opened(odd(name))
    tokenizer = pool.tokenizer()
    for kind in ("choices", "writing"):
        caplog.clear()
        task = built(pool, little, kind)
        for split in ("search", "test"):
            for request, own in zip(task.requests(split), prompts(task, split), strict=True):
                room = SHORT - 12 if isinstance(request, Prompt) else SHORT + 1 - len(request.continuation)
                assert request.context == tuple(tokenizer(own).input_ids[-room:])
                assert len(request.context) == room
        assert f"{54 if kind == 'choices' else 18} prompts are longer than the {SHORT} tokens" in caplog.text


def test_a_row_without_a_token_can_be_the_most_likely_and_counts_among_the_probabilities(odd, little):
    pool, model = opened(odd("rows without a token"))
    task = built(pool, little, "writing")
    writer = TransformersWriter([r for r in task.requests("test") if isinstance(r, Prompt)], pool.tokenizer())
    written = writer._decoded(model, writer.requests)
    assert any(token >= 512 for tokens in written for token in tokens)
    likely = built(pool, little, "choices")
    (request, *_) = likely.requests("test")
    assert isinstance(request, Request)
    tokens = torch.tensor([[*request.context, *request.continuation]])
    with torch.no_grad():
        logits = model(tokens).logits[0, len(request.context) - 1 : -1]
    asked = torch.tensor(request.continuation)[:, None]
    (first, *_) = Scorer([likely]).answers(model, "test")["choices"]
    assert first.logprob == pytest.approx(float(logits.log_softmax(-1).gather(1, asked).sum()), abs=1e-3)
    assert first.logprob < float(logits[:, :512].log_softmax(-1).gather(1, asked).sum()) - 0.1


@pytest.mark.parametrize("name", ["no padding token", "unknown for padding"])
@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.8},
        {"min_length": 90, "eos_token_id": [*range(1, 200)]},
    ],
    ids=["repetition penalty", "least length"],
)
def test_settings_of_generation_are_obeyed_without_a_padding_token(settings, name, odd, little, tmp_path):
    folder = shutil.copytree(odd(name), tmp_path / "model")
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    pool, model = opened(folder)
    task = built(pool, little, "writing")
    answers = Scorer([task], tokenizer=pool.tokenizer()).answers(model, "test")["writing"]
    responses = assert_same(task, answers, by_the_harness(task, folder, little, batch=1))
    plain = Scorer([task], tokenizer=pool.tokenizer()).answers(opened(odd(name))[1], "test")["writing"]
    assert [text for (text,) in responses] != plain


@pytest.mark.parametrize(
    ("name", "kind", "changes", "message"),
    [
        ("short", "writing", {"generation": {"max_gen_toks": SHORT}}, "writes up to 40 tokens, the model reads 40"),
        ("short", "choices", {"fewshot": 0}, "a continuation of 64 tokens; the model reads 40"),
        ("beginning, no end", "writing", {}, "task writing: the base's tokenizer has no end-of-text token"),
    ],
)
def test_what_cannot_be_read_is_refused_before_any_search(name, kind, changes, message, odd, little, tmp_path):
    described = yaml.safe_load((little / f"{kind}.yaml").read_text())
    described["doc_to_choice"] = "{{[answer, '1' * 64]}}"
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(described))
    pool, _ = opened(odd(name))
    with pytest.raises(InputError, match=message):
        built(pool, tmp_path, kind, **changes)
