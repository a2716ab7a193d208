from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from synthetic import run_folder, view

from sae_moo.explore.decide.pick import pick
from sae_moo.explore.run import Run
from sae_moo.explore.view import by_trial, sparsity
from sae_moo.objectives import Sparsity, TaskMean
from sae_moo.recipe import Cast, Expert, Merge, Prune


def test_the_base_the_experts_and_their_average_are_found():
    study = view(30)
    assert [(each.name, each.record.number) for each in study.references] == [
        ("base", 3), ("math", 0), ("code", 1), ("law", 2), ("uniform average", 4),
    ]  # fmt: skip
    assert [each.name for each in view(2).references] == ["math", "code"]


def test_picks_are_what_they_are_called():
    study = view(200)
    knee, best, as_base, as_average = study.picks
    assert (knee.record, knee.why) == pick(study.front, study.objectives, study.quantities, base=study.base)
    accuracy = {record.number: np.mean([record.values["a"], record.values["b"]]) for record in study.done}
    assert accuracy[best.record.number] == max(accuracy[r.number] for r in study.front)
    for found, reference in ((as_base, study.base), (as_average, study.average)):
        able = [r for r in study.front if accuracy[r.number] >= accuracy[reference.number]]
        assert found.record in able
        assert sparsity(found.record) == max(map(sparsity, able))
        assert f"of {len(able)} such trials" in found.why


def test_what_was_not_evaluated_gives_no_pick():
    assert [each.name for each in view(2).picks] == ["knee", "most accurate"]
    assert view(0).picks == ()
    study = view(30)
    assert [each.name for each in replace(study, objectives=study.objectives[-1:]).picks] == ["knee"]


def test_a_trial_with_two_names_comes_once():
    groups = list(by_trial(view(1).picks))
    assert [(record.number, [each.name for each in names]) for record, names in groups] == [
        (0, ["knee", "most accurate"])
    ]


def test_the_error_of_the_accuracy_is_that_of_an_objective_over_the_same_tasks():
    study = view(20)
    for each in study.done:
        errors = [each.evaluation.stderr(task) for task in ("a", "b")]
        assert study.accuracy_error(each) == pytest.approx(np.hypot(*errors) / 2)


def test_models_are_known_by_what_they_are_made_of_not_by_how():
    study = view(30)
    experts = tuple(map(Expert, study.experts))
    weights = {0: (0.0, 1.0, 0.0, 0.0), 3: (1.0, 0.0, 0.0, 0.0), 4: (0.0001, 0.3333, 0.3333, 0.3333)}
    made = {number: Cast(Merge("task_arithmetic", experts, row), "float32") for number, row in weights.items()}
    anew = replace(study, records=tuple(replace(r, recipe=made.get(r.number, r.recipe)) for r in study.records))
    assert [each.record.number for each in anew.references] == [3, 0, 1, 2, 4]
    pruned = {number: Cast(Prune(recipe.input, 0.5), "float32") for number, recipe in made.items()}
    less = replace(study, records=tuple(replace(r, recipe=pruned.get(r.number, r.recipe)) for r in study.records))
    assert [each.name for each in less.references] == ["code", "law"]


def test_a_run_picks_the_knee_that_pages_show_however_its_base_is_made(tmp_path, monkeypatch):
    run = Run.open(run_folder(tmp_path / "s", 200))
    experts = tuple(map(Expert, run.view().experts))
    recipe = Cast(Merge("task_arithmetic", experts, (1.0, 0.0, 0.0, 0.0)), "float32")  # as coefficients say the base
    able = {"a": 0.6, "b": 0.6, "sparsity": 0.0}
    changed = [replace(r, recipe=recipe, values=able) if r.number == 3 else r for r in run.trials()]
    monkeypatch.setattr(run, "trials", lambda: changed)
    knee, why = run.pick()
    assert "at least as accurate as the base" in why
    assert (knee.number, why) == (run.view().picks[0].record.number, run.view().picks[0].why)


def test_whatever_is_worse_than_the_base_is_told_with_the_numbers():
    study = view(60)
    spread = study.accuracy_error(study.base)
    told = {record.number: study.cautions(record) for record in study.done}
    least = study.accuracy(study.base) - spread
    assert {n for n, each in told.items() if each} == {r.number for r in study.done if study.accuracy(r) < least}
    worse = replace(study.records[30], values=dict.fromkeys(study.records[30].values, 0.0))
    (clause,) = study.cautions(worse)
    assert clause.startswith("Trial 30 is worse than the unmerged base by more than a standard error: accuracy 0.000, ")
    assert f"the base's is {study.accuracy(study.base):.3f} ± {spread:.3f}" in clause
    assert study.cautions(study.base) == []


def test_accuracy_is_explained_where_it_is_the_mean_of_several_objectives():
    study = view(10)
    assert study.meaning == "accuracy: the mean of a, b"
    assert replace(study, objectives=(TaskMean("a", ("a",)), Sparsity())).meaning == ""
