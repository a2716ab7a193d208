"""Few-shot examples of harness tasks: from the documents, from a split of their own, from a fixed list."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from sae_moo import zoo
from sae_moo.errors import InputError
from sae_moo.evaluate import lm_eval
from sae_moo.evaluate.asking import TaskSection
from sae_moo.evaluate.harness import HarnessTask
from sae_moo.experts.vocabulary import load_tokenizer

CODE = """
def listed():
    return [{"question": f"listed {i}", "label": i % 2} for i in range(3)]

def of_subject(docs):
    return docs.filter(lambda doc: doc["subject"] == "a")

def shown(doc):
    return f"Shown: {doc['question']}"
"""
FIXED = [{"question": f"fixed {i}", "label": i % 2} for i in range(3)]
COT = [{"question": f"thought {i}", "target": "since it is so"} for i in range(3)]
FIRST = {"sampler": "first_n"}
KINDS = {
    "a split of their own, the first": ({"fewshot_split": "dev", "fewshot_config": FIRST}, "dev"),
    "a split of their own, drawn": ({"fewshot_split": "dev"}, "dev"),
    "named in fewshot_config": ({"fewshot_config": {"sampler": "first_n", "split": "dev"}}, "dev"),
    "a subject's, picked by code": (
        {"fewshot_split": "mixed", "fewshot_config": {**FIRST, "process_docs": "!function code.of_subject"}},
        "mixed",
    ),
    "shown otherwise": (
        {"fewshot_split": "dev", "fewshot_config": {**FIRST, "doc_to_text": "!function code.shown"}},
        "Shown: dev",
    ),
    "a fixed list": ({"fewshot_config": {**FIRST, "samples": FIXED}}, "fixed"),
    "a fixed list, drawn": ({"fewshot_config": {"samples": FIXED}}, "fixed"),
    "a function's list": ({"fewshot_config": {**FIRST, "samples": "!function code.listed"}}, "listed"),
    "samples unlike documents": (
        {
            "fewshot_config": {**FIRST, "samples": COT},
            "doc_to_target": "{{target if target is defined else ['no', 'yes'][label]}}",
            "output_type": "generate_until",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
            "doc_to_choice": None,
            "metric_list": [{"metric": "exact_match"}],
        },
        "thought",
    ),
}


def rows(name: str, count: int, **more) -> list[dict]:
    return [{"question": f"{name} {i}", "label": i % 2, **more} for i in range(count)]


@pytest.fixture
def built(tmp_path):
    """Writes a task with some lines changed and builds it on the zoo's tokenizer."""
    parts = {"dev": rows("dev", 3), "validation": rows("val", 20), "test": rows("test", 20)}
    parts["mixed"] = [*rows("mixed", 3, subject="a"), *rows("other", 9, subject="b")]

    def build(changes: dict, search: int = 20, held: int = 20, **data) -> HarnessTask:
        files = {}
        given = {**parts, **data}
        columns = {
            key: value for documents in given.values() for row in reversed(documents) for key, value in row.items()
        }
        for part, documents in given.items():
            files[part] = str(tmp_path / f"{part}.jsonl")
            Path(files[part]).write_text("".join(json.dumps(columns | row) + "\n" for row in documents))
        described = {
            "task": "ours",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": files},  # files of the same columns, as datasets wants them
            "validation_split": "validation",
            "test_split": "test",
            "num_fewshot": 3,
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}} is",
            "doc_to_choice": ["no", "yes"],
            "doc_to_target": "label",
            "metric_list": [{"metric": "acc"}],
            **changes,
        }
        described = {key: value for key, value in described.items() if value is not None}
        (tmp_path / "code.py").write_text(CODE)
        text = yaml.safe_dump(described)
        for name in ("listed", "of_subject", "shown"):
            text = text.replace(f"'!function code.{name}'", f"!function code.{name}")
        (tmp_path / "task.yaml").write_text(text)
        lm_eval._manager.cache_clear()
        section = TaskSection(name="t", task="ours", include=str(tmp_path), search=search, test=held)
        return HarnessTask(section, load_tokenizer(zoo.checkpoint("base")), zoo.checkpoint("base"))

    return build


def contexts(task: HarnessTask, split) -> list[str]:
    return [instance.requests[0].args[0] for instance in task._instances[split]]


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_examples_as_are_asked_for_suffice_where_no_document_is_one(kind, built, caplog):
    changes, begins = KINDS[kind]
    task = built(changes)
    leaf = task._leaves[0]
    for split in ("search", "test"):
        leaf.set_fewshot_seed(seed=lm_eval.SEED)
        for context, instance in zip(contexts(task, split), task._instances[split], strict=True):
            *shown, asked = context.split("\n\n")
            assert {example[: len(begins) + 2] for example in shown} == {f"{begins} {i}" for i in range(3)}
            assert asked == f"{instance.doc['question']} is"
            assert context == leaf.fewshot_context(instance.doc, num_fewshot=3, gen_prefix=None), "the harness's own"
    assert task.source("search").startswith("validation documents of ours (20 of 20)")
    assert not caplog.messages


@pytest.mark.parametrize("sampler", ["default", "first_n"])
def test_a_split_that_is_just_the_examples_is_not_searched_on(sampler, built):
    changes = {"validation_split": "dev", "fewshot_split": "dev", "fewshot_config": {"sampler": sampler}}
    task = built(changes, search=10, held=10)
    assert task.source("search") == "test documents of ours (10 of 20)"
    assert all(context.count("dev ") == 3 for context in contexts(task, "search"))
    assert built({**changes, "num_fewshot": 0}, 2, 10).source("search") == "dev documents of ours (2 of 3)".replace(
        "dev", "validation"
    )


@pytest.mark.parametrize(
    ("sampler", "most"),
    [("default", 17), ("first_n", 17)],
)
def test_examples_from_the_searched_documents_are_left_over(sampler, most, built):
    changes = {"fewshot_split": "validation", "fewshot_config": {"sampler": sampler}}
    task = built(changes, search=most)
    searched = {instance.doc["question"] for instance in task._instances["search"]}
    for context in contexts(task, "search"):
        assert not {example.partition(" is")[0] for example in context.split("\n\n")[:-1]} & searched
    with pytest.raises(
        InputError, match="3 few-shot examples, but only 2 documents are left for them beside the 18 of"
    ):
        built(changes, search=most + 1)


def test_one_more_is_left_over_where_the_harness_draws_one_more(built):
    changes = {"validation_split": None, "fewshot_split": "test"}
    assert built(changes, search=8, held=8).instances("search") == 8
    with pytest.raises(InputError, match=r"only 3 documents are left for them .* the harness draws from 4"):
        built(changes, search=9, held=8)
    assert built({**changes, "fewshot_config": FIRST}, search=9, held=8).instances("search") == 9


def test_examples_that_are_documents_too_are_left_out_where_there_are_others_and_told_where_not(built, caplog):
    twin = {"question": "val 3", "label": 1}
    changes = {"fewshot_split": "dev", "fewshot_config": FIRST}
    several = built(changes, dev=[twin, *rows("dev", 3)])
    assert all(context.startswith("dev 0 is no") for context in contexts(several, "search"))
    assert all(context.startswith("val 3 is yes") for context in contexts(several, "test")), "as in the harness"
    assert not caplog.messages
    exact = built(changes, dev=[twin, *rows("dev", 2)])
    assert all(context.startswith("val 3 is yes") for context in contexts(exact, "search"))
    assert "among the dev documents that are few-shot examples of ours are some of the search" in caplog.text


def test_documents_of_one_prompt_are_examples_of_one_another_where_there_are_no_others(built):
    asked = [{"question": "Which is right?", "options": [f"{i} is", f"{i} are"], "label": 0} for i in range(30)]
    changes = {"doc_to_choice": "{{options}}", "validation_split": None, "fewshot_split": "test"}
    task = built(changes, 10, 10, test=asked)
    held = {split: {instance.doc["options"][0] for instance in task._instances[split]} for split in ("search", "test")}
    assert len(held["search"] | held["test"]) == 20
    for context in contexts(task, "search"):
        shown = {line.rpartition("? is ")[2] for line in context.split("\n\n")[:-1]}
        assert len(shown) == 3
        assert not shown & (held["search"] | held["test"])


def test_what_a_document_is_is_what_the_model_and_the_metric_see(built, caplog):
    twice = [{**row, "id": i} for i, row in enumerate([*rows("test", 10), *rows("test", 10)])]
    with pytest.raises(InputError, match="20 in all; it has 4 different items, 4 of its 8 being the same as others"):
        built({"num_fewshot": 0, "validation_split": None}, 10, 10, test=[*twice[:4], *twice[10:14]])
    task = built({"num_fewshot": 0, "validation_split": None}, 5, 5, test=twice)
    assert task.source("test") == "test documents of ours (5 of 20, 10 of them left out: the same as others)"
    assert "10 of 20 items of task t are left out" in caplog.text
    told_apart = [
        {"question": question, "label": label, "options": options}
        for question in ("Is it?", "is it?", "Is  it?")
        for label in (0, 1)
        for options in (["no", "yes"], ["No", "yes"])
    ]
    changes = {"num_fewshot": 0, "validation_split": None, "doc_to_choice": "{{options}}"}
    assert built(changes, 6, 6, test=told_apart).instances("test") == 6


def test_no_document_of_the_test_split_is_searched_on_wherever_it_comes_from(built):
    both = [*rows("both", 8), *rows("val", 5)]
    changes = {"num_fewshot": 0}
    task = built(changes, 5, 10, validation=both, test=[{**row, "id": 7} for row in rows("both", 10)])
    assert {instance.doc["question"] for instance in task._instances["search"]} == {f"val {i}" for i in range(5)}
    with pytest.raises(InputError, match=r"6 search instances; it has 5 .* documents: test searches on others"):
        built(changes, 6, 10, validation=both, test=rows("both", 10))


def test_a_document_that_cannot_be_asked_matters_where_it_is_chosen_only(built):
    odd = [*rows("val", 20), {"question": None, "label": 1}]
    changes = {"num_fewshot": 0, "doc_to_text": "{{question.strip()}} is"}
    assert built(changes, 1, 5, validation=odd).instances("search") == 1
    with pytest.raises(InputError, match="task t: ours, document 20: UndefinedError") as caught:
        built(changes, 21, 5, validation=odd)
    assert "\n" not in str(caught.value)
