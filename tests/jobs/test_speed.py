"""Speed as an objective: from the table that a study begins with to what commands show."""

from __future__ import annotations

import pytest

import sae_moo as sm
from sae_moo.cli.display import trials_json
from sae_moo.errors import InputError
from sae_moo.evaluate import timing
from sae_moo.jobs.compare.comparison import compare
from sae_moo.jobs.doctor import examine
from sae_moo.jobs.judge import bench_of
from sae_moo.jobs.repair import repair_trial
from sae_moo.study.journal import open_storage

HALF = "speed>=1.05"


@pytest.fixture
def clock(monkeypatch, tmp_path):
    """A machine on which a token takes a microsecond a weight; how often it was asked."""
    asked = []

    def fastest(passes, device):
        asked.append(len(passes))
        return {key: 1e-6 * sum(p.numel() for p in model.parameters()) for key, model in passes.items()}

    monkeypatch.setattr(timing, "forward", lambda model, *given: model)
    monkeypatch.setattr(timing, "fastest", fastest)
    monkeypatch.setattr(timing, "reads_one_for_each", lambda pool, scope: False)  # takes seconds
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return asked


@pytest.fixture
def configured(tiny_folders):
    def config(evaluations=12, name="fast", **changes):
        return sm.Config.from_dict(
            {
                "study": {"name": name},
                "models": {"base": str(tiny_folders["base"]), "experts": {"math": str(tiny_folders["math"])}},
                "tasks": [{"name": "zoo_math", "search": 5, "test": 5}],
                "objectives": ["zoo_math", "sparsity", "speed"],
                "pruning": {"scope": "neurons"},
                "search": {"population": 4, "evaluations": evaluations},
                **changes,
            }
        )

    return config


def test_every_trial_tells_its_speed_and_the_front_has_it(configured, clock, tmp_path):
    run = sm.search(configured(), root=tmp_path)
    assert clock == [7], "once, not for each candidate"
    view = run.view()
    for record in view.done:
        gone = len(record.recipe.input.units[0]) if record.evaluation.sparsity else 0
        saved = gone * 2 * 3 * 16  # of two blocks, each neuron of 16 inputs in three matrices
        # that of 8192 + 16 + 2 x 2208 weights
        assert record.values["speed"] == pytest.approx(12624 / (12624 - saved), rel=0.02)
        assert record.values["speed"] == record.evaluation.speed
    assert max(record.values["speed"] for record in view.done) > 1.05
    assert 0 <= run.hypervolume() < 1, "of the unit cube, whatever speeds are"
    chosen, _ = run.pick([HALF])
    assert chosen.values["speed"] >= 1.05
    document = trials_json("fast", view.records, view.objectives)
    assert document["objectives"] == ["zoo_math", "sparsity", "speed"]
    assert all(trial["speed"] == trial["values"]["speed"] for trial in document["trials"])
    assert examine(run.folder).whole


def test_a_study_goes_on_with_the_table_it_began_with_wherever_it_is(configured, clock, tmp_path, monkeypatch, caplog):
    whole = sm.search(configured(14, "whole"), root=tmp_path)
    first = sm.search(configured(8), root=tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    monkeypatch.setattr("platform.node", lambda: "another")
    monkeypatch.setattr(timing, "fastest", lambda passes, device: pytest.fail("it is measured again"))
    caplog.clear()
    again = sm.search(configured(14), root=tmp_path)
    assert again.costs == first.costs
    assert [record.values for record in again.trials()] == [record.values for record in whole.trials()]
    assert "speed is that of where the study began, which had: machine" in caplog.text


def test_what_is_stopped_while_costs_are_measured_leaves_no_study_that_says_nothing(
    configured, clock, tmp_path, monkeypatch
):
    def stopped(passes, device):
        raise KeyboardInterrupt

    with monkeypatch.context() as during:
        during.setattr(timing, "fastest", stopped)
        with pytest.raises(KeyboardInterrupt):
            sm.search(configured(5), root=tmp_path)
    assert open_storage(tmp_path / "fast/study.journal", write=True).get_all_studies() == []
    assert len(sm.search(configured(5), root=tmp_path).trials()) == 5


def test_other_work_is_told_and_refused(configured, clock, tmp_path):
    sm.search(configured(4), root=tmp_path)
    with pytest.raises(InputError, match=r"speed\.batch: the study has 1, now it is 16"):
        sm.search(configured(4, speed={"batch": 16}), root=tmp_path)
    with pytest.raises(InputError, match=r"speed\.length: expected at most 127"):
        sm.search(configured(4, "long", speed={"length": 1000}), root=tmp_path)


def test_a_limit_is_kept_and_speed_need_be_no_objective(configured, clock, tmp_path):
    limited = {"objectives": ["zoo_math", "sparsity"], "constraints": {"speed": {"min": 1.1}}}
    run = sm.search(configured(name="limited", **limited), root=tmp_path)
    view = run.view()
    assert {record.feasible for record in view.done} == {False, True}
    assert all(record.feasible == (record.evaluation.speed >= 1.1) for record in view.done)
    assert all(record.evaluation.speed >= 1.1 for record in view.front)
    assert run.pick(["speed<=1e9"])[0].feasible


def test_without_anyone_asking_nothing_is_measured_or_told(configured, clock, tmp_path):
    run = sm.search(configured(4, "plain", objectives=["zoo_math", "sparsity"]), root=tmp_path)
    assert clock == []
    assert run.costs == {}
    assert all(record.evaluation.speed is None for record in run.trials())
    with pytest.raises(
        InputError, match=r"one of zoo_math, sparsity; got 'speed'\. Speed is told .* a section speed: \{\}"
    ):
        run.pick([HALF])


def test_a_section_alone_asks_for_it(configured, clock, tmp_path):
    run = sm.search(configured(4, "told", objectives=["zoo_math", "sparsity"], speed={}), root=tmp_path)
    assert all(record.evaluation.speed >= 1 for record in run.trials())
    assert run.pick(["speed>=1"])[0].values.keys() == {"zoo_math", "sparsity"}


def test_a_repaired_pick_is_as_fast_as_it_was(configured, clock, tmp_path):
    run = sm.search(configured(name="mended"), root=tmp_path)
    record = max(run.view().done, key=lambda each: each.values["speed"])
    repaired = repair_trial(run, record, bench_of(run)).record
    assert repaired.values["speed"] == record.values["speed"] > 1
    assert repaired.digest != record.digest


def test_all_searches_of_a_comparison_have_one_table(configured, clock, tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "keep", lambda *given: None)  # a cache folder that cannot be written
    compared = {"methods": ["nsga2", {"name": "other", "search": {"algorithm": "nsga3"}}], "seeds": 1, "resamples": 100}
    found = compare(configured(4, "both", compare=compared), root=tmp_path)
    assert clock == [7], "the second search takes that of the first"
    assert all("speed" in quantities for quantities in found.methods.values())
