"""Damage of every kind that a run folder meets, found, told and, where nothing is lost by it, mended."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import optuna
import pytest
from commands import BUDGET, call, config_for, written

from sae_moo.errors import InputError
from sae_moo.explore.run import Run
from sae_moo.files.whole import _mark
from sae_moo.jobs.doctor import examine
from sae_moo.study.folder import RunFolder
from sae_moo.study.lines import faulty_lines


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_folders) -> Path:
    """A folder with a finished search, its front judged; tests copy it."""
    folder = tmp_path_factory.mktemp("made")
    items = [{"prompt": f"fact {i} is", "answer": f" {i}"} for i in range(30)]
    (folder / "facts.jsonl").write_text("\n".join(json.dumps(item) for item in items))
    (folder / "c.yaml").write_text(written(config_for(tiny_folders)))
    before = Path.cwd()
    os.chdir(folder)
    try:
        call("search", "c.yaml", "--json")
        call("pick", "tiny", "--test")
        call("search", "c.yaml", "--json", "--set", "study={name: base, storage: 'sqlite:///s.db'}")
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def run(made, tmp_path, monkeypatch) -> RunFolder:
    shutil.copytree(made, tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")
    RunFolder(Path("runs/base")).point("base", f"sqlite:///{tmp_path}/w/s.db")
    return RunFolder(Path("runs/tiny"))


def facts(name="tiny"):
    return [(t.number, t.state, t.digest, t.values, t.evaluation.scores) for t in Run.open(name).trials()]


def found(fix=False, name="tiny", code=0):
    checkup = json.loads(call("doctor", name, "--json", *(["--fix"] if fix else []), code=code).stdout)
    assert checkup["whole"] == (code == 0)
    return [(each["state"], each["place"], each["what"], each["cure"]) for each in checkup["findings"]]


@pytest.mark.parametrize("name", ["tiny", "base"])
def test_a_whole_run_is_whole_and_nothing_of_it_changes(run, name):
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    assert found(name=name) == []
    assert found(fix=True, name=name) == []
    assert {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()} == before
    said = call("doctor", name).stdout
    assert said.startswith(f"runs/{name}: whole; looked at: ")
    assert f"{BUDGET} trials" in said
    assert "4 models" in said


def lines(run: RunFolder) -> list[bytes]:
    return run.journal.read_bytes().splitlines(keepends=True)


def other_worker(line: bytes) -> bytes:
    return json.dumps(json.loads(line) | {"worker_id": "another"}, separators=(",", ":")).encode() + b"\n"


# what happened to the lines of a journal: the damaged ones, the fault that is told, and the trials that are left
MENDABLE = {
    "the end torn": (lambda rows: [*rows, rows[-1][:30]], "the last line was torn by a crash"),
    "zeros at the end": (lambda rows: [*rows, b"\0" * 512], "the last line was torn by a crash"),
    "zeros in the middle": (lambda rows: [*rows[:40], b"\0" * 512 + b"\n", *rows[40:]], "nothing is written there"),
    "empty lines": (lambda rows: [*rows[:9], b"\n", b"  \r\n", *rows[9:]], "nothing is written there"),
    "zeros before an entry": (lambda rows: [*rows[:40], b"\0" * 99 + rows[40], *rows[41:]], "and behind it a whole entry"),
    "torn, then another process": (
        lambda rows: [*rows[:-1], rows[-1][:50] + other_worker(rows[-1])],
        "and behind it a whole entry",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", MENDABLE)
def test_lines_that_lose_nothing_are_left_out_and_the_journal_is_kept_beside(run, kind):
    whole = facts()
    change, told = MENDABLE[kind]
    damaged = b"".join(change(lines(run)))
    run.journal.write_bytes(damaged)
    *rows, last = found(code=1)
    if "end" not in kind:
        assert last[:3] == ("note", "study.journal", "is read once its lines are mended")
    else:
        rows.append(last)
    for state, place, what, cure in rows:
        assert (state, place.startswith("study.journal, line "), cure.startswith("left out")) == (
            "mendable",
            True,
            True,
        )
        assert told in what
    assert run.journal.read_bytes() == damaged, "looking changes nothing"
    assert {each[0] for each in found(fix=True)} == {"mended"}
    assert facts() == whole
    assert (run.path / "study.journal.damaged-1").read_bytes() == damaged
    assert found() == []
    assert "resumed: 14 evaluations" in call("search", "c.yaml", "--evaluations", "15").stdout


@pytest.mark.parametrize(
    "garble",
    [
        lambda rows: [*rows[:40], rows[40][:20] + b"\xff\xfe" + rows[40][22:], *rows[41:]],
        lambda rows: [*rows[:40], rows[40][:30] + rows[41], *rows[42:]],  # the same process: an entry is gone
        lambda rows: [*rows[:40], b"hello\n", *rows[40:]],
        lambda rows: [*rows[:40], b"hello\n", *rows[40:], b"{torn"],
    ],
)
def test_a_line_that_is_lost_is_told_and_nothing_is_touched(run, garble):
    damaged = b"".join(garble(lines(run)))
    run.journal.write_bytes(damaged)
    states = {place: (state, what) for state, place, what, _ in found(fix=True, code=1)}
    assert states["study.journal, line 41"] == ("wrong", "cannot be read; what it said is lost")
    assert run.journal.read_bytes() == damaged
    assert "not a study, or damaged" in states["study.journal"][1]


@pytest.mark.parametrize("content", [None, "", "{", '{"study": 1}'])
def test_a_pointer_that_cannot_be_read_is_written_anew(run, content):
    pointer = run.path / "run.json"
    before = pointer.read_text()
    pointer.unlink() if content is None else pointer.write_text(content)
    ((state, place, _, cure),) = found(code=1)
    assert (state, place, cure) == ("mendable", "run.json", "written anew: study tiny, in study.journal")
    found(fix=True)
    assert pointer.read_text() == before
    assert (run.path / "run.json.damaged-1").exists() == (content is not None)


@pytest.mark.parametrize(
    "content", ["", "[1]", '{"d": {"facts": "01"}}', '{"d": {"facts": [2.0], "zoo_math": "0101"}}']
)
def test_scores_on_the_test_split_that_are_damaged_are_put_aside_and_computed_again(run, content):
    before = json.loads((run.path / "test.json").read_text())
    (run.path / "test.json").write_text(content)
    ((state, place, _, cure),) = found(code=1)
    assert (state, place) == ("mendable", "test.json")
    assert cure.startswith("put aside as test.json.damaged-1")
    found(fix=True)
    assert (run.path / "test.json.damaged-1").read_text() == content
    call("pick", "tiny", "--test")
    assert json.loads((run.path / "test.json").read_text()) == before


def test_what_killed_processes_left_unfinished_is_removed_and_what_others_write_is_not(run):
    gone = [run.path / f".test.json.{_mark()}999999999", Path(f".out.{_mark()}999999999"), run.path / "x.tmp"]
    alive = [run.path / f".test.json.{_mark()}{os.getpid()}", run.path / ".test.json.partial-00000000-999999999"]
    for path in (*gone, *alive):
        path.write_text("half")
    gone[1].unlink()
    gone[1].mkdir()
    assert {Path(place).name for _, place, _, _ in found(code=1)} == {path.name for path in gone}
    assert [state for state, *_ in found(fix=True)] == ["mended"] * 3
    assert not any(path.exists() for path in gone)
    assert all(path.exists() for path in alive)


def test_a_lock_that_is_no_file(run):
    lock = run.path / "study.journal.lock"
    lock.unlink(missing_ok=True)
    lock.symlink_to("study.journal")
    assert [each[:2] for each in found(code=1)] == [("mendable", "study.journal.lock")]
    found(fix=True)
    assert not lock.is_symlink()


def test_a_killed_search_is_told_of_and_not_wrong(run):
    rows = lines(run)
    end = max(i for i, row in enumerate(rows) if b'"op_code":6' in row)
    run.journal.write_bytes(b"".join(rows[:end]))
    (run.path / "search.lock").write_text("999999999\nhere\n2026-01-02 03:04:05+00:00\n")
    notes = found()
    assert [state for state, *_ in notes] == ["note", "note"]
    assert "process 999999999 on here, since 2026" in notes[0][2]
    assert notes[1][2].startswith("trial 13 was begun and not ended")


def test_a_running_search_is_looked_at_and_not_mended(run):
    with run.held(), run.journal.open("ab") as file:
        file.write(b'{"op_code":')
        file.flush()
        ((state, place, what, _),) = found()
        assert (state, place) == ("note", "search")
        assert f"is running: process {os.getpid()}" in what
        with pytest.raises(InputError, match="another search is running there"):
            examine("tiny", fix=True)


def edited(run: RunFolder, change) -> None:
    """Every entry of the journal as `change` makes it."""
    run.journal.write_text("".join(json.dumps(each) + "\n" for row in lines(run) for each in change(json.loads(row))))


def swapped(key, value, trial=3):
    def change(entry):
        if entry.get("trial_id") == trial and key in entry.get("user_attr", {}):
            entry["user_attr"] = {key: value}
        if value is not None or key not in entry.get("user_attr", {}) or entry["trial_id"] != trial:
            yield entry

    return change


def objective(entry):
    if entry["op_code"] == 6 and entry["trial_id"] == 3:
        entry["values"] = [0.99, entry["values"][1]]
    yield entry


def asked(key, value):
    def change(entry):
        if entry["op_code"] == 4 and "user_attrs" in entry and entry["user_attrs"].get("asked_after") == 3:
            entry["user_attrs"][key] = value
        yield entry

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (swapped("told", None), "trial 3 was not written by sae-moo or is damaged: KeyError('told')"),
        (swapped("told", 5), "the order in which the search was told of them has gaps or repeats"),
        (swapped("instances", {"facts": "01"}), "trial 3: it has scores of facts, expected facts, zoo_math"),
        (swapped("instances", {"facts": "0", "zoo_math": "000000"}), "trial 3: facts has 1 scores, expected 12"),
        (swapped("sparsity", 1.5), "trial 3: its sparsity 1.5 is outside of [0, 1)"),
        (objective, "trial 3: its facts is 0.99, its scores give "),
        (asked("digest", "0" * 64), "trial 3: its digest is not that of its recipe"),
        (asked("parents", [7]), "trial 3: its parents (7,) are no earlier trials"),
        (asked("recipe", "{}"), "trial 3 was not written by sae-moo or is damaged"),
    ],
)
def test_trials_that_contradict_themselves_are_told(run, change, told):
    edited(run, change)
    assert any(told in what for state, _, what, _ in found(fix=True, code=1) if state == "wrong")


def without_attribute(key):
    def change(entry):
        if not (entry["op_code"] == 2 and key in entry.get("user_attr", {})):
            yield entry

    return change


def test_attributes_of_the_study(run):
    whole = run.journal.read_bytes()
    edited(run, without_attribute("identity"))
    ((state, place, what, _),) = found(code=1)
    assert (state, place) == ("wrong", "attributes of the study")
    assert what == f"missing: identity; {BUDGET} trials cannot be read so"
    run.journal.write_bytes(whole)
    edited(run, without_attribute("groups"))
    assert found() == [("note", place, "groups is missing", "the next search of the same configuration writes it")]


def test_experts_that_are_others_or_gone(run, tiny_folders, tmp_path):
    moved = {name: shutil.copytree(path, tmp_path / "m" / name) for name, path in tiny_folders.items()}
    Path("m.yaml").write_text(written(config_for(moved)))
    call("search", "m.yaml", "--evaluations", "15")  # the same models, elsewhere from now on
    shutil.copy(moved["law"] / "model.safetensors", moved["math"] / "model.safetensors")
    ((state, place, what, _),) = found(code=1)
    assert (state, place, what) == (
        "wrong",
        "experts",
        "math: its weights are not those that the study was made with",
    )
    shutil.rmtree(tmp_path / "m")
    ((state, place, what, _),) = found()
    assert (state, place) == ("note", "experts")
    assert "cannot be opened" in what


def test_a_database_that_is_damaged(run):
    file = Path("s.db")
    content = bytearray(file.read_bytes())
    size = int.from_bytes(content[16:18], "big")
    content[size * 3 : size * 9] = b"\x55" * size * 6
    file.write_bytes(bytes(content))
    assert any(state == "wrong" and place.endswith("s.db") for state, place, *_ in found(fix=True, name="base", code=1))
    assert file.read_bytes() == bytes(content)
    file.write_bytes(b"no database at all, whatever its name says" * 99)
    assert any("not a database" in what for _, _, what, _ in found(name="base", code=1))
    file.unlink()
    assert any("no study at" in what for _, _, what, _ in found(name="base", code=1))


def test_rows_that_refer_to_none(run):
    with sqlite3.connect("s.db") as connection:
        connection.execute("DELETE FROM trials WHERE number = 3")
    connection.close()
    assert any("trial_values: row 7 refers to none" in what for _, _, what, _ in found(name="base", code=1))


def test_a_comparison_is_looked_at_search_by_search(run):
    shutil.copytree("runs/tiny", "runs/both/one-0")
    shutil.copytree("runs/tiny", "runs/both/two-0")
    assert [each[:2] for each in found(name="both")] == [("note", "compare.json")]
    assert "2 searches of a comparison" in call("doctor", "both").stdout
    Path("runs/both/compare.json").write_text("{")
    journal = Path("runs/both/two-0/study.journal")
    journal.write_bytes(journal.read_bytes()[:-5])
    told = {place: state for state, place, *_ in found(name="both", code=1)}
    assert told.pop("compare.json") == "mendable"
    assert all(place.startswith("two-0: study.journal, line ") for place, state in told.items() if state == "mendable")
    found(name="both", fix=True)
    assert Path("runs/both/compare.json.damaged-1").exists()
    assert faulty_lines(journal) == []


def test_folders_that_hold_no_run(run):
    Path("runs/empty").mkdir()
    assert any("no study at" in what for _, _, what, _ in found(name="empty", code=1))
    assert "no run 'nothing'" in call("doctor", "nothing", code=2).stderr


def test_what_is_missing_of_a_study_that_somebody_else_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs/other").mkdir(parents=True)
    RunFolder(Path("runs/other")).point("other", "sqlite:///o.db")
    study = optuna.create_study(study_name="other", storage="sqlite:///o.db")
    assert [state for state, *_ in found(name="other")] == ["note"]
    study.add_trial(optuna.trial.create_trial(value=float(np.float64(0.5))))
    ((state, _, what, _),) = found(name="other", code=1)
    assert (state, what) == ("wrong", "missing: config, directory, fingerprints, identity; 1 trials cannot be read so")
