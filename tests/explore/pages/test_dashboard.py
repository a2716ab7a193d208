from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from dataclasses import replace

import optuna
import pytest
from browser import served
from optuna.distributions import FloatDistribution
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna_dashboard import get_note
from stand_ins import running
from synthetic import run_folder, view

from sae_moo.errors import InputError
from sae_moo.explore.pages import dashboard
from sae_moo.explore.pages.dashboard import HOST, Shown, attributes_of, serve, shown_of, with_notes
from sae_moo.explore.pages.notes import MOST_NOTES, Notes, notes_of, plain
from sae_moo.explore.run import Run
from sae_moo.objectives import Evaluation
from sae_moo.study.folder import JOURNAL
from sae_moo.study.journal import open_storage
from sae_moo.study.trials import readable


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
    api = served(with_notes(run.storage, run.name, lambda: shown_of(run.view(), "s")))
    study = asked(f"{api}/studies/0")
    assert study["objective_names"] == ["a", "b", "sparsity"]
    assert study["note"]["body"].startswith("# s\n\n## What was searched")
    notes = {trial["number"]: trial["note"]["body"] for trial in study["trials"]}
    knee = run.pick()[0].number
    assert notes[knee].startswith("**Knee")
    assert f"`sae-moo export s --trial {knee} --output exported-{knee} --verify`" in notes[knee]
    assert all("Recipe:" in note for note in notes.values())
    figures = {each["id"]: json.loads(each["graph_object"]) for each in study["plotly_graph_objects"]}
    assert sorted(figures) == ["front-0", "generations", "hypervolume"]
    assert figures["hypervolume"]["layout"]["xaxis"]["title"]["text"] == "evaluations"
    assert (tmp_path / "s" / JOURNAL).read_bytes() == before

    writer = open_storage(tmp_path / "s" / JOURNAL, write=True)  # a search that goes on
    worst = next(number for number in range(12) if number not in {record.number for record in run.front()})
    writer.create_new_trial(0, template_trial=writer.get_all_trials(0)[worst])
    assert "13 of 400 evaluations" not in study["note"]["body"]
    assert "13 of 400 evaluations" in asked(f"{api}/studies/0")["note"]["body"]

    version = 1 + asked(f"{api}/studies/0")["trials"][knee]["note"]["version"]
    asked(f"{api}/studies/0/{knee}/note", version=version, body="mine")
    trials = asked(f"{api}/studies/0")["trials"]
    assert trials[knee]["note"] == {"version": version, "body": "mine"}
    assert all("Recipe:" in trials[r.number]["note"]["body"] for r in run.front() if r.number != knee)
    with pytest.raises(urllib.error.HTTPError, match="409"):
        asked(f"{api}/studies/0/{knee}/note", version=version, body="too late")
    assert len(Run.open(tmp_path / "s").trials()) == 13


def test_notes_are_read_again_only_after_a_while():
    storage = InMemoryStorage()
    study = storage.create_new_study([StudyDirection.MAXIMIZE], "s")
    other = storage.create_new_study([StudyDirection.MAXIMIZE], "other")
    calls: list[int] = []
    noted = with_notes(storage, "s", lambda: calls.append(1) or Shown(Notes("words " * 1000)))
    for _ in range(3):
        attrs = noted.get_study_system_attrs(study)
    assert len(calls) == 1
    assert get_note(optuna.load_study(study_name="s", storage=noted)) == "words " * 1000
    assert {key.rstrip("0123456789") for key in attrs} == {"dashboard:note_ver", "dashboard:note_str:"}
    assert noted.get_study_system_attrs(other) == {}
    assert storage.get_study_system_attrs(study) == {}


def test_a_study_with_a_damaged_trial_can_be_looked_at():
    storage = InMemoryStorage()
    storage.create_new_study([StudyDirection.MAXIMIZE], "s")

    def broken():
        raise InputError("trial 3 is damaged")

    noted = with_notes(storage, "s", broken)
    assert get_note(optuna.load_study(study_name="s", storage=noted)) == "trial 3 is damaged"


def test_names_are_shown_as_they_are():
    assert plain("a_b *c* <d> [e](f) `g`") == r"a\_b \*c\* \<d\> \[e\](f) \`g\`"
    study = view(30, ("t_1", "<b>"), name="x`y")
    notes = notes_of(study, "x`y")
    assert notes.study.startswith("# x\\`y")
    assert "<b>" not in notes.study.replace("\\<b\\>", "")
    assert "`sae-moo report 'x?y' --output" in notes.study


def test_of_many_trials_the_front_and_the_newest_have_notes():
    study = view(MOST_NOTES + 100)
    noted = set(notes_of(study, "s").trials)
    marked = {each.record.number for each in (*study.picks, *study.references)}
    assert len(noted) == MOST_NOTES
    assert marked | {record.number for record in study.front} | set(range(200, MOST_NOTES + 100)) <= noted


def test_trials_without_a_result_say_why():
    study = view(30)
    failed, begun = study.records[28], study.records[29]
    evaluation = Evaluation(failed.recipe, reason="out of *memory*")
    failed = replace(failed, values={}, feasible=False, evaluation=evaluation)
    front = tuple(record for record in study.front if record.number < 28)
    notes = notes_of(replace(study, records=(*study.records[:28], failed, running(begun)), front=front), "s").trials
    assert notes[28].startswith("**Failed**: out of \\*memory\\*\n")
    assert "Recipe:" in notes[28]
    assert "export" not in notes[28]
    assert 29 not in notes


def test_the_dashboards_own_functions_say_what_a_study_would_hold(tmp_path):
    """What is shown goes through these functions alone: they must write attributes of the study, and nothing else."""
    run = Run.open(run_folder(tmp_path / "s", 12))
    shown = shown_of(run.view(), "s")
    found = attributes_of(shown, run.storage, run.name)
    assert len(found) == 1 + len(shown.notes.trials) + len(shown.figures)
    keys = [key for attributes in found for key in attributes]
    assert len(set(keys)) == len(keys)
    assert run.storage.get_study_system_attrs(0).keys() == {"study:metric_names"}


def test_a_study_without_a_front_has_a_note_and_no_figures(tmp_path):
    empty = replace(view(3), front=(), records=())
    assert not shown_of(empty, "s").figures


def test_trials_are_shown_as_they_are_read_best(tmp_path):
    run = Run.open(run_folder(tmp_path / "s", 40))
    stored = run.storage.get_all_trials(0)
    noted = with_notes(run.storage, run.name, lambda: Shown(Notes("")))
    trials = noted.get_all_trials(0)
    assert [(t.number, t.values, t.state) for t in trials] == [(t.number, t.values, t.state) for t in stored]
    weights = [t.params["weight math"] for t in stored]
    assert {t.distributions["weight math"] for t in trials} == {FloatDistribution(0, max(weights))}
    assert {"generation", "operator", "parents", "digest", "a score"} <= trials[20].user_attrs.keys()
    assert not {"recipe", "instances", "told", "group_sparsity"} & trials[20].user_attrs.keys()
    assert run.storage.get_all_trials(0)[20].user_attrs == stored[20].user_attrs
    assert run.storage.get_all_trials(0)[20].distributions == stored[20].distributions
    assert [record.number for record in run.trials()] == list(range(40)), "the stored ones are read as ever"


def trial(**params: float) -> optuna.trial.FrozenTrial:
    return optuna.trial.create_trial(
        values=[0.5], params=params, distributions=dict.fromkeys(params, FloatDistribution(-10, 10))
    )


def test_what_never_differs_and_is_not_everywhere_is_left_out():
    first = readable([trial(w=0.5)])
    assert first[0].distributions == {"w": FloatDistribution(0, 0.5)}
    constant = readable([trial(w=0), trial(w=0, ratio=0.8), trial(w=0, ratio=0.8)])
    assert [t.params for t in constant] == [{"w": 0}] * 3
    assert constant[0].distributions == {"w": FloatDistribution(0, 1)}
    varied = readable([trial(w=-1), trial(w=2, ratio=0.8), trial(w=0, ratio=0.2)])
    assert [t.params for t in varied] == [{"w": -1}, {"w": 2, "ratio": 0.8}, {"w": 0, "ratio": 0.2}]
    assert varied[1].distributions == {"w": FloatDistribution(-1, 2), "ratio": FloatDistribution(0, 0.8)}


def test_trials_that_break_a_limit_are_marked_as_the_dashboard_reads_it(tmp_path):
    storage = InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name="s")
    for amount in (0.2, -0.1):
        asked_for = study.ask()
        asked_for.set_constraint("sparsity max", amount)
        study.tell(asked_for, 0.5)
    api = served(with_notes(storage, "s", lambda: Shown(Notes(""))))
    assert [trial["constraints"] for trial in asked(f"{api}/studies/0")["trials"]] == [[0.2], [-0.1]]


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
        with pytest.raises(InputError, match=f"port {port} of {HOST}: Address already in use; give another port"):
            serve(InMemoryStorage(), port, lambda address: pytest.fail("not served"))
