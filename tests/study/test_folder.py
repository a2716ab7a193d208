from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from sae_moo.errors import InputError
from sae_moo.study.folder import ComparisonFolder, RunFolder, StudyHeader

HEADER = StudyHeader(
    config={"study": {"name": "s"}},
    directory="/there",
    fingerprints={"base": "f", "math": "g"},
    groups=("embeddings", "head"),
    identity={"device": "cpu"},
    anchors={"a": [0, 3]},
    items={"a": {"search": "a.jsonl", "test": "a.jsonl"}},
    exhausted=7,
)


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    place = RunFolder(tmp_path / "s")
    place.path.mkdir()
    return place


def test_the_names_on_the_disk_are_those_of_every_stored_run(folder):
    folder.point("s", None)
    folder.keep_judged({"d": {"a": np.array([0.0, 1.0]), "b": np.array([0.25, 1.0])}})
    with folder.held():
        assert {path.name for path in folder.path.iterdir()} == {"run.json", "test.json", "search.lock"}
    assert (folder.path / "run.json").read_text() == '{"study": "s", "storage": null}\n'
    assert json.loads((folder.path / "test.json").read_text()) == {"d": {"a": "01", "b": [0.25, 1.0]}}
    assert folder.journal.name == "study.journal"
    comparison = ComparisonFolder(folder.path)
    assert [comparison.results(ending).name for ending in ("json", "png")] == ["compare.json", "compare.png"]
    assert comparison.search("pso-0").path == folder.path / "pso-0"


def test_a_folder_says_where_its_study_is(folder):
    assert not folder.begun
    assert folder.study() == (folder.journal, None), "killed before it said so"
    folder.point("s", None)
    assert folder.begun
    assert folder.study() == (folder.journal, "s")
    folder.point("s", "sqlite:///s.db")
    assert folder.study() == ("sqlite:///s.db", "s")
    for damaged in ("", "[]", '{"study": "s"}', '{"study": 1, "storage": null}', '{"study": "s", "storage": 1}'):
        (folder.path / "run.json").write_text(damaged)
        with pytest.raises(InputError, match=r"run\.json: expected the place of a study"):
            folder.study()


def test_scores_on_the_test_split_are_read_as_they_were_kept(folder):
    assert folder.judged(["a"]) is None
    scores = {"d": {"a": np.array([0.0, 1.0, 1.0])}, "e": {"a": np.array([0.1, 1 / 3, 1.0])}}
    folder.keep_judged(scores)
    kept = folder.judged(["a"])
    assert {digest: rows["a"].tolist() for digest, rows in kept.items()} == {
        digest: rows["a"].tolist() for digest, rows in scores.items()
    }
    with pytest.raises(InputError, match=r"test\.json: expected scores on the test split: KeyError\('b'\)"):
        folder.judged(["a", "b"])


def test_a_header_is_read_as_it_was_written_and_through_json():
    assert StudyHeader.read(HEADER.attributes()) == HEADER
    assert StudyHeader.read(json.loads(json.dumps(HEADER.attributes()))) == HEADER
    assert set(HEADER.attributes()) == {
        "config", "directory", "fingerprints", "groups", "identity", "anchors", "items", "exhausted"
    }  # fmt: skip


def test_a_header_that_was_not_written_whole_is_none():
    attributes = HEADER.attributes()
    for count in range(len(attributes)):
        assert StudyHeader.read(dict(list(attributes.items())[:count])) is None, "what makes it whole comes last"


def test_a_header_of_an_earlier_version_is_read():
    needed = ("config", "directory", "fingerprints", "identity")
    old = StudyHeader.read({key: value for key, value in HEADER.attributes().items() if key in needed})
    assert (old.groups, old.anchors, old.exhausted) == ((), {}, None)
    assert "exhausted" not in old.attributes()


def test_a_folder_is_held_by_one_and_vanishes_if_nothing_was_written(folder):
    with folder.held():
        with pytest.raises(InputError, match=r"another search is running there \(process \d+\)"), folder.held():
            pass
        assert folder.path.is_dir(), "whoever was refused removes nothing"
    assert not folder.path.exists()


def test_an_earlier_run_is_put_aside_under_the_next_number(folder):
    told = []
    for number in (1, 2):
        folder.path.mkdir(exist_ok=True)
        (folder.path / "run.json").write_text(str(number))
        with folder.held(told.append):
            assert [path.name for path in folder.path.iterdir()] == ["search.lock"]
            (folder.path / "new").touch()
        assert told[-1] == folder.path.with_name(f"s.{number}")
        assert (told[-1] / "run.json").read_text() == str(number)
    shutil.rmtree(folder.path)
    with folder.held(told.append):
        pass
    assert len(told) == 2, "nothing is put aside where nothing was"


def test_runs_are_found_by_folder_and_by_name(tmp_path, folder):
    assert RunFolder.find("s", tmp_path) == folder
    assert RunFolder.find(folder.path) == folder
    with pytest.raises(InputError, match=r"no run 't'.*; there are s$"):
        RunFolder.find("t", tmp_path)
