from __future__ import annotations

import json
import os

import pytest

from sae_moo.evaluate import lm_eval
from sae_moo.evaluate.lm_eval import cached_by_content

YAML = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {file}, test: {file}}}}}
validation_split: validation
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: [" yes", " no"]
doc_to_target: 0
"""


@pytest.fixture
def written(tmp_path):
    """Return a function that writes documents of one size and time of modification into one place."""
    file = tmp_path / "docs.jsonl"

    def write(word: str):
        file.write_text("".join(json.dumps({"q": f"{word} {i}"}) + "\n" for i in range(4)))
        os.utime(file, (1, 1))
        return file

    return write


@pytest.mark.parametrize("form", ["text", "list", "splits", "pattern", "folder"])
def test_another_file_of_the_same_name_and_time_gives_its_own_documents(written, form):
    import datasets

    for word in ("one", "two", "one", "six"):
        file = written(word)
        named = {
            "text": str(file),
            "list": [str(file)],
            "splits": {"train": str(file)},
            "pattern": str(file.parent / "*.jsonl"),
            "folder": None,
        }[form]
        with lm_eval.quiet(), cached_by_content():
            if form == "folder":
                read = datasets.load_dataset(str(file.parent))
            else:
                read = datasets.load_dataset(path="json", data_files=named)
        assert read["train"][0]["q"] == f"{word} 0"
        assert len(read["train"]) == 4


def test_what_is_not_local_is_left_to_the_library(monkeypatch):
    import datasets

    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **settings: asked.append((path, settings)))
    with cached_by_content():
        datasets.load_dataset("gsm8k", name="main")
        datasets.load_dataset("json", data_files="https://example.org/a.jsonl")
        datasets.load_dataset("json", data_files=__file__, cache_dir="mine")
    assert asked == [
        ("gsm8k", {"name": "main"}),
        ("json", {"data_files": "https://example.org/a.jsonl"}),
        ("json", {"data_files": __file__, "cache_dir": "mine"}),
    ]
    datasets.load_dataset("after")
    assert asked[-1] == ("after", {})


def test_a_task_of_the_harness_has_the_documents_and_the_text_that_its_files_hold_now(written, tmp_path):
    place = tmp_path / "tasks"
    place.mkdir()
    for word, name in (("one", "mine"), ("two", "mine"), ("two", "ours")):
        file = written(word)
        (place / "mine.yaml").write_text(YAML.format(name=name, file=file))
        os.utime(place / "mine.yaml", (1, 1))
        with lm_eval.quiet():
            (leaf,) = lm_eval.loaded(name, name, place, None, {})
        assert next(iter(leaf.validation_docs()))["q"] == f"{word} 0"
