from __future__ import annotations

import json
import socket
import threading
import urllib.error
import urllib.request
from dataclasses import replace

import pytest
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from synthetic import run_folder, view

from sae_moo.errors import InputError
from sae_moo.explore import dashboard
from sae_moo.explore.dashboard import HOST, serve, with_notes
from sae_moo.explore.notes import MOST_NOTES, Notes, notes_of, plain
from sae_moo.run import Run
from sae_moo.storage import JOURNAL, open_storage


def served(storage) -> str:
    """The address of the API."""
    addresses: list[str] = []
    there = threading.Event()

    def ready(address: str) -> None:
        addresses.append(address)
        there.set()

    threading.Thread(target=serve, args=(storage, 0, ready), daemon=True).start()
    assert there.wait(30)
    return addresses[0].replace("/dashboard", "/api")


def asked(address: str, **body) -> dict:
    data = json.dumps(body).encode() if body else None
    method = "PUT" if body else "GET"
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request) as answer:
        return json.loads(answer.read() or "{}")


def test_a_run_has_notes_that_nothing_is_written_for(tmp_path, monkeypatch):
    monkeypatch.setattr(dashboard, "FRESH", 0.0)
    run = Run.open(run_folder(tmp_path / "s", 12))
    before = (tmp_path / "s" / JOURNAL).read_bytes()
    api = served(with_notes(run.storage, run.name, lambda: notes_of(run.view(), "s")))
    study = asked(f"{api}/studies/0")
    assert study["objective_names"] == ["a", "b", "sparsity"]
    assert study["note"]["body"].startswith("# s\n\n## What was searched")
    notes = {trial["number"]: trial["note"]["body"] for trial in study["trials"]}
    knee = run.pick()[0].number
    assert notes[knee].startswith("**Knee")
    assert f"`sae-moo export s --trial {knee} --output exported-{knee} --verify`" in notes[knee]
    assert all("Recipe:" in notes[record.number] for record in run.front())
    assert (tmp_path / "s" / JOURNAL).read_bytes() == before

    writer = open_storage(tmp_path / "s" / JOURNAL, write=True)  # a search that goes on
    worst = next(number for number in range(12) if number not in {record.number for record in run.front()})
    writer.create_new_trial(0, template_trial=writer.get_all_trials(0)[worst])
    assert "13 of 400 evaluations" not in study["note"]["body"]
    assert "13 of 400 evaluations" in asked(f"{api}/studies/0")["note"]["body"]

    asked(f"{api}/studies/0/{knee}/note", version=1, body="mine")
    trials = asked(f"{api}/studies/0")["trials"]
    assert trials[knee]["note"] == {"version": 1, "body": "mine"}
    assert all("Recipe:" in trials[r.number]["note"]["body"] for r in run.front() if r.number != knee)
    with pytest.raises(urllib.error.HTTPError, match="409"):
        asked(f"{api}/studies/0/{knee}/note", version=1, body="too late")
    assert len(Run.open(tmp_path / "s").trials()) == 13


def test_notes_are_read_again_only_after_a_while():
    storage = InMemoryStorage()
    study = storage.create_new_study([StudyDirection.MAXIMIZE], "s")
    other = storage.create_new_study([StudyDirection.MAXIMIZE], "other")
    calls: list[int] = []
    noted = with_notes(storage, "s", lambda: calls.append(1) or Notes("words " * 1000))
    for _ in range(3):
        attrs = noted.get_study_system_attrs(study)
    assert len(calls) == 1
    parts = [attrs[f"dashboard:note_str:{i}"] for i in range(3)]
    assert "".join(parts) == "words " * 1000
    assert noted.get_study_system_attrs(other) == {}
    assert storage.get_study_system_attrs(study) == {}


def test_a_study_with_a_damaged_trial_can_be_looked_at():
    storage = InMemoryStorage()
    study = storage.create_new_study([StudyDirection.MAXIMIZE], "s")

    def broken():
        raise InputError("trial 3 is damaged")

    attrs = with_notes(storage, "s", broken).get_study_system_attrs(study)
    assert attrs["dashboard:note_str:0"] == "trial 3 is damaged"


def test_names_are_shown_as_they_are():
    assert plain("a_b *c* <d> [e](f) `g`") == r"a\_b \*c\* \<d\> \[e\](f) \`g\`"
    study = view(30, ("t_1", "<b>"), name="x`y")
    notes = notes_of(study, "x`y")
    assert notes.study.startswith("# x\\`y")
    assert "<b>" not in notes.study.replace("\\<b\\>", "")
    assert "`sae-moo report 'x?y' --output" in notes.study


def test_large_fronts_have_so_many_notes():
    study = view(30)
    study = replace(study, front=study.front[:1] * (MOST_NOTES + 5) + study.records[10:12])
    assert not {10, 11} & (set(notes_of(study, "s").trials) - {each.record.number for each in study.picks})


def test_the_page_and_the_study_are_served_on_this_machine_only():
    storage = InMemoryStorage()
    storage.create_new_study([StudyDirection.MAXIMIZE], "s")
    api = served(storage)
    assert api.startswith(f"http://{HOST}:")
    with urllib.request.urlopen(api.replace("/api", "/dashboard")) as page:
        assert b"optuna" in page.read().lower()
    assert [study["study_name"] for study in asked(f"{api}/studies")["study_summaries"]] == ["s"]


def test_a_taken_port_is_one_message():
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} of {HOST}: Address already in use; give another --port"):
            serve(InMemoryStorage(), port, lambda address: pytest.fail("not served"))
