from __future__ import annotations

import errno
import json
import os
import platform
import shutil
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from sae_moo.errors import InputError, StorageError
from sae_moo.files.disks import Mount
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
    merging="plain torch on mps",
    batches={"forward passes": 4096},
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
        "config", "directory", "fingerprints", "groups", "identity", "anchors", "items", "exhausted", "merging",
        "batches",
    }  # fmt: skip


def test_a_header_that_was_not_written_whole_is_none():
    attributes = HEADER.attributes()
    for count in range(len(attributes)):
        assert StudyHeader.read(dict(list(attributes.items())[:count])) is None, "what makes it whole comes last"


def test_a_header_of_an_earlier_version_is_read():
    needed = ("config", "directory", "fingerprints", "identity")
    old = StudyHeader.read({key: value for key, value in HEADER.attributes().items() if key in needed})
    assert (old.groups, old.anchors, old.exhausted, old.merging) == ((), {}, None, "")
    assert not {"exhausted", "merging"} & set(old.attributes())
    assert (old.groups, old.anchors, old.exhausted, old.batches) == ((), {}, None, {})
    assert not {"exhausted", "batches"} & set(old.attributes())


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


def test_who_holds_a_folder_is_told_and_forgotten_when_it_ends(folder):
    with folder.held():
        (folder.path / "run.json").touch()
        me = folder.holder
        assert (me.process, me.host, me.here) == (os.getpid(), platform.node(), True)
        datetime.fromisoformat(me.since)
        told = rf"another search is running there \(process {os.getpid()}\) on {platform.node()}, since \d{{4}}-"
        with pytest.raises(InputError, match=told), folder.held():
            pass
    assert folder.holder is None


def left_behind(folder: RunFolder, host: str) -> None:
    (folder.path / "run.json").touch()
    (folder.path / "search.lock").write_text(f"99999999\n{host}\n2026-01-02 03:04:05+00:00\n")


@pytest.mark.parametrize("host", ["", "another"])
def test_what_a_killed_search_left_is_said_and_taken_over(folder, caplog, host):
    left_behind(folder, host or platform.node())
    with folder.held():
        assert folder.holder.process == os.getpid()
    (said,) = caplog.messages
    named = f"process 99999999 on {host or platform.node()}, since 2026-01-02 03:04:05+00:00"
    assert said == f"{folder.path}: {named} searched there and did not end by itself; what it finished is kept"
    with folder.held():
        pass
    assert len(caplog.messages) == 1, "said once"


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs"])
def test_on_a_network_file_system_its_limits_are_told_and_another_machine_may_be_at_work(
    folder, caplog, monkeypatch, kind
):
    monkeypatch.setattr("sae_moo.study.folder.mount_of", lambda place: Mount(kind, "server:/export"))
    left_behind(folder, platform.node())
    with folder.held():
        pass
    assert f"lies on a network file system ({kind}, server:/export), where locks may not hold" in caplog.messages[0]
    assert len(caplog.messages) == 2
    left_behind(folder, "another")
    before = (folder.path / "search.lock").read_text()
    told = r"process 99999999 on another.*If it does not, remove .*search\.lock$"
    with pytest.raises(InputError, match=told), folder.held():
        pass
    assert (folder.path / "search.lock").read_text() == before, "who was refused changes nothing"


@pytest.mark.parametrize("text", ["", "hello", "12x\n", "\x00\xff", "-4\n"])
def test_a_lock_that_names_nobody_holds_nothing(folder, text, caplog):
    (folder.path / "run.json").touch()
    (folder.path / "search.lock").write_text(text, encoding="latin-1")
    assert folder.holder is None
    with folder.held():
        pass
    assert caplog.messages == []


def test_a_lock_of_an_earlier_version_names_its_process(folder):
    (folder.path / "search.lock").write_text("123")
    assert str(folder.holder) == "process 123"


def test_the_pointer_to_a_study_is_written_whole_or_not_at_all(folder, monkeypatch):
    folder.point("s", None)

    def no_room(self, text, **more):
        self.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", no_room)
    with pytest.raises(StorageError, match=r"run\.json: No space left on device; what was finished before is kept"):
        folder.point("t", None)
    assert folder.study() == (folder.journal, "s")
    assert sorted(path.name for path in folder.path.iterdir()) == ["run.json"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("groups", [["block.0"]]),
        ("groups", [{"a": 1}]),
        ("groups", 3),
        ("fingerprints", {"base": 1}),
        ("config", "a: 1"),
        ("directory", None),
        ("anchors", {"t": [0.5]}),
        ("items", {"t": "here"}),
        ("exhausted", "12"),
        ("batches", {"forward passes": "many"}),
    ],
)
def test_a_header_that_does_not_hold_what_it_should_is_refused_by_name(name, value):
    assert StudyHeader.read(HEADER.attributes()) == HEADER
    with pytest.raises(InputError, match=f"attribute '{name}' is damaged"):
        StudyHeader.read(HEADER.attributes() | {name: value})


def test_a_comparison_that_has_not_begun_has_no_searches(tmp_path):
    assert ComparisonFolder(tmp_path / "none").searches == []
