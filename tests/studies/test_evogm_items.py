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
    assert asked["prompt"].startswith(
        "x\nPlease choose an option that best completes the sentence.\nQuestion: Which?\n"
    )
    assert asked["prompt"].endswith("\nA: one\nB: two\nThe answer is")
    assert asked["letters"][asked["label"]] == " B"
    assert written["gsm8k.dev.jsonl"] == [{"prompt": "1 + 1", "answer": "2"}]


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
