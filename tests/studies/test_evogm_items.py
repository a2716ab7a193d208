"""Items of the EvoGM authors' bench, in the form that their files have."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import yaml

STUDY = Path(__file__).parents[2] / "studies/evogm"


def test_items_are_written_as_the_tasks_read_them(tmp_path, monkeypatch):
    items = runpy.run_path(str(STUDY / "items.py"))
    choice = {"question": "Which?", "choices": {"A": "one", "B": "two"}, "answer": "B"}
    for task in items["CHOICES"]:
        (tmp_path / f"{task}.json").write_text(
            json.dumps({"dev": [choice], "test": [choice, choice], "icl_prompt": "x"})
        )
    for task in items["WRITTEN"]:
        (tmp_path / f"{task}.json").write_text(json.dumps({"dev": [{"question": "1 + 1", "answer": 2}], "test": []}))
    monkeypatch.setattr(sys, "argv", ["items.py", str(tmp_path), "--output", str(tmp_path / "data")])
    items["main"]()
    written = {
        path.name: [json.loads(line) for line in path.read_text().splitlines()]
        for path in (tmp_path / "data").iterdir()
    }
    named = {}
    for path in (STUDY / "tasks").glob("*.yaml"):
        text = path.read_text().replace("!function ", "")
        named[yaml.safe_load(text)["task"]] = yaml.safe_load(text)["dataset_kwargs"]["data_files"]
    assert {Path(file).name for files in named.values() for file in files.values()} == written.keys()
    paper = yaml.safe_load((STUDY / "paper.yaml").read_text())
    assert {task["task"] for task in paper["tasks"]} == named.keys()
    assert len(written["mmlu.test.jsonl"]) == 2
    (asked,) = written["hellaswag.dev.jsonl"]
    assert asked["prompt"].startswith("Please choose an option that best completes the sentence.\nQuestion: Which?\n")
    assert asked["prompt"].endswith("\nA: one\nB: two\nThe answer is")
    assert asked["letters"][asked["label"]] == " B"
    assert written["gsm8k.dev.jsonl"] == [{"prompt": "1 + 1", "answer": "2"}]


@pytest.mark.parametrize("configured", [True, False])
def test_the_example_of_how_to_answer_is_that_of_the_configuration_before_that_of_the_file(
    tmp_path, monkeypatch, configured
):
    items = runpy.run_path(str(STUDY / "items.py"))
    source = tmp_path / "data/swarm_eval"
    source.mkdir(parents=True)
    choice = {"question": "Which?", "choices": {"A": "one", "B": "two"}, "answer": "B"}
    for task in (*items["CHOICES"], *items["WRITTEN"]):
        item = choice if task in items["CHOICES"] else {"question": "1 + 1", "answer": 2}
        (source / f"{task}.json").write_text(json.dumps({"dev": [item], "test": [item], "icl_prompt": "of the file"}))
    if configured:
        (tmp_path / "config/taskpool").mkdir(parents=True)
        tasks = [{"name": "knowledge_crosswords", "icl_prompt": "configured\n"}, {"name": "mmlu"}]
        (tmp_path / "config/taskpool/qwen_eval.yaml").write_text(yaml.safe_dump({"tasks": tasks}))
    monkeypatch.setattr(sys, "argv", ["items.py", str(source), "--output", str(tmp_path / "written")])
    items["main"]()
    prompts = {
        task: json.loads((tmp_path / f"written/{task}.dev.jsonl").read_text())["prompt"] for task in items["CHOICES"]
    }
    expected = "configured\n\nQuestion: Which?" if configured else "of the file\nQuestion: Which?"
    assert prompts["knowledge_crosswords"].startswith(expected)
    assert prompts["mmlu"].startswith("Please choose"), "whatever its file has"


@pytest.mark.parametrize(
    ("answer", "believed", "score"),
    [("B", True, 1.0), ("A", True, 0.0), ("B", False, 0.5), ("A", False, 0.5)],
)
def test_who_abstains_scores_between_right_and_wrong(answer, believed, score):
    judges = runpy.run_path(str(STUDY / "tasks/written.py"))
    document = {"letters": [" A", " B", " C"], "label": 1}
    choices = judges["proposals"](document)
    # what is said of letters that are not its answer points the other way, and is more probable
    likely = {f" {answer}": -1.0}
    for letter in "ABC":
        for verdict, right in (("true", True), ("false", False)):
            stands = believed if letter == answer else not believed
            (text,) = [each for each in choices if f"answer: {letter}\n" in each and each.endswith(f". {verdict}")]
            likely[text] = (-50.0 if letter == answer else -20.0) - (0.0 if right is stands else 1.0)
    results = [(likely.get(choice, -3.0), False) for choice in choices]
    assert judges["reliability"](document, results) == {"reliability": score}


@pytest.mark.parametrize(
    ("task", "text", "score"),
    [
        ("nlgraph", "4 and " + "word " * 20, 1.0),
        ("nlgraph", "5", 0.0),
        ("gsm8k", "4 and " + "word " * 20, 0.0),
        ("gsm8k", "word " * 20 + "so it is 4.", 1.0),
    ],
)
def test_what_is_written_is_right_where_the_answer_stands_in_it(task, text, score):
    judge = runpy.run_path(str(STUDY / "tasks/written.py"))[task]
    assert judge({"answer": "4"}, [text]) == {"contained": score}
