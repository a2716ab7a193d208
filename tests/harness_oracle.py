"""Models and benchmarks for tests of the harness, and the harness itself as what ours is held against."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sae_moo import zoo
from sae_moo.evaluate import lm_eval
from sae_moo.evaluate.asking import TaskSection
from sae_moo.evaluate.harness import HarnessTask
from sae_moo.experts.checkpoint import Checkpoint
from sae_moo.experts.pool import ExpertPool

MEAN = {"aggregation": "mean", "higher_is_better": True}
LINKS = {"it": ("perché", "quindi"), "id": ("karena", "jadi"), "sw": ("kwa sababu", "kwa hiyo"), "zh": ("因为", "所以")}
MGSM = ("de", "es", "sw", "zh")
GSM8K = {"train": "train_first1500.jsonl", "test": "test_first500.jsonl"}
BENCHMARKS = [*(f"xcopa_{language}" for language in LINKS), *(f"mgsm_{language}" for language in MGSM), "gsm8k"]
FILES = {
    **{f"xcopa_{language}": f"xcopa/{language}/val.{language}.jsonl" for language in LINKS},
    **{f"mgsm_{language}": f"mgsm/mgsm_{language}.tsv" for language in MGSM},
    **{f"gsm8k_{part}": f"gsm8k/{name}" for part, name in GSM8K.items()},
}
"""What of the benchmark data tests read, below its folder."""
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


def whole(data: Path, otherwise: Callable[[str], Any]) -> Path:
    """Return a folder of benchmark data; say otherwise if it is not all there, as where a copy left it behind."""
    missing = [name for name in FILES.values() if not (data / name).is_file()]
    if missing:
        otherwise(
            f"no benchmark data at {data}: {len(missing)} of {len(FILES)} files are not there, {missing[0]} first; "
            "SAE_MOO_TEST_DATA says where they are"
        )
    return data


def benchmark_yamls(data: Path, root: Path, most: int, shots: int) -> Path:
    """Write the tasks of all benchmarks, in words of our own; `most` tokens an answer, `shots` examples of GSM8K."""
    for language, (because, so) in LINKS.items():
        described = {
            "task": f"our_xcopa_{language}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"validation": str(data / FILES[f"xcopa_{language}"])}},
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
            "dataset_kwargs": {"data_files": {"test": str(data / FILES[f"mgsm_{language}"])}, **table},
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
    files = {part: str(data / FILES[f"gsm8k_{part}"]) for part in GSM8K}
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
    asked = {"include": str(place), "multiturn": False} | changes
    section = TaskSection(name=task, task=f"our_{task}", search=search, test=test, **asked)
    return HarnessTask(section, pool.tokenizer(), pool.checkpoints["base"].folder)


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
            tasks=[task._section.task],
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


def prompts(task: HarnessTask, split) -> list[str]:
    return [request.args[0] for instance in task._instances[split] for request in instance.requests]
