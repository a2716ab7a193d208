from __future__ import annotations

from dataclasses import replace

import pytest
from busy import busy
from matplotlib import rc_context
from stand_ins import running
from synthetic import view

from sae_moo.errors import InputError, StorageError
from sae_moo.explore.draw.numbers import agreement_of, answers_of
from sae_moo.explore.draw.print.front import front_picture
from sae_moo.explore.pages.figures import draw_front, write_figures
from sae_moo.explore.pages.report import page
from sae_moo.explore.pages.trace import write_trace
from sae_moo.objectives import Evaluation

SIGNATURES = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
NASTY = ("base", "$x_1$ & <b>", "co_de", "\\law")


@pytest.mark.parametrize("ending", SIGNATURES)
def test_every_figure_is_written_in_every_form(tmp_path, ending):
    study = view(60)
    written = write_figures(study, tmp_path / "new/figures", ending=ending)
    knee, average = study.picks[0].record.number, study.average.number
    names = ["front", "hypervolume", "generations", f"blocks-{knee}", f"lineage-{knee}", f"agreement-{knee}-{average}"]
    assert written.trial == knee
    assert list(written.files.values()) == [f"{name}{ending}" for name in names]
    assert written.without == {}
    files = {path.name: path.read_bytes() for path in (tmp_path / "new/figures").iterdir()}
    assert set(files) == set(written.files.values())
    assert all(data.startswith(SIGNATURES[ending]) for data in files.values())


def test_where_it_is_known_who_was_busy_when_that_is_drawn_and_written_for_trace_viewers(tmp_path):
    study = replace(busy(60, 2), front=())
    with rc_context({"svg.fonttype": "none"}):
        written = write_figures(study, tmp_path / "f", ending=".svg")
    assert (written.files["timeline"], written.files["trace"]) == ("timeline.svg", "timeline.json")
    assert {path.name for path in (tmp_path / "f").iterdir()} == set(written.files.values())
    text = (tmp_path / "f/timeline.svg").read_text("utf-8")
    assert "s: 2 workers, busy 9" in text
    write_trace(tmp_path / "run.json", "s", study.records)
    assert (tmp_path / "f/timeline.json").read_bytes() == (tmp_path / "run.json").read_bytes()


@pytest.mark.parametrize("count", [1, 3])
def test_what_a_young_run_cannot_show_is_told(tmp_path, count):
    written = write_figures(view(count), tmp_path / "f")
    assert list(written.files) == ["front", "hypervolume", "blocks"]
    assert written.without["lineage"].endswith("has no parents")
    assert written.without["generations"] == "all trials are of one generation"
    assert "neither the average nor the base" in written.without["agreement"]


def test_the_trials_may_be_chosen(tmp_path):
    written = write_figures(view(60), tmp_path / "f", trial=59, against=7)
    assert written.trial == 59
    assert {"blocks-59.png", "lineage-59.png", "agreement-59-7.png"} < set(written.files.values())


def odd(change=replace, **changes):
    """A study whose trial 10 is another."""
    study = view(60)
    records = list(study.records)
    records[10] = change(records[10], **changes)
    return replace(study, records=tuple(records), front=tuple(r for r in study.front if r.number != 10))


@pytest.mark.parametrize(
    ("study", "trials", "message"),
    [
        (view(60), {"trial": 60}, "no trial 60; there are 0 to 59"),
        (view(60), {"against": -1}, "no trial -1"),
        (view(60), {"trial": 5, "against": 5}, "trial 5 cannot be held against itself"),
        (view(0), {}, "front of s is empty"),
        (odd(running), {"trial": 10}, "trial 10 has no result, it is running"),
        (
            odd(evaluation=Evaluation(view(1).records[0].recipe, reason="NaN logits"), values={}),
            {"against": 10},
            "trial 10 has no result, it is failed: NaN logits",
        ),
        (
            odd(evaluation=replace(view(60).records[10].evaluation, scores={"a": (1.0,), "b": (0.0,)})),
            {"against": 10},
            "were asked no instances in common",
        ),
    ],
)
def test_what_cannot_be_looked_into(tmp_path, study, trials, message):
    with pytest.raises(InputError, match=message):
        write_figures(study, tmp_path / "f", **trials)
    assert list(tmp_path.iterdir()) == []


def test_figures_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    (tmp_path / "there/mine").write_text("mine")
    with pytest.raises(InputError, match="there: exists already"):
        write_figures(view(60), tmp_path / "there")

    def full(*_):
        raise OSError("full")

    monkeypatch.setattr("sae_moo.explore.pages.figures.lineage_picture", full)
    with pytest.raises(OSError, match="full"):
        write_figures(view(60), tmp_path / "f")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize("tasks", [("a",), ("a", "b"), ("a", "b", "c")])
def test_a_picture_of_the_front_names_what_it_shows(tmp_path, tasks):
    study = view(40, tasks, NASTY)
    path = tmp_path / "front.svg"
    with rc_context({"svg.fonttype": "none"}):  # text stays text
        draw_front(path, study)
    text = path.read_text("utf-8")
    assert all(objective.name in text for objective in study.objectives)
    assert "fraction of zeros" in text
    assert f"front, {len(study.front)} trials (bars: standard error)" in text
    assert all(f">{name}</text>" in text for name in ("base", "$x_1$ &amp; &lt;b&gt;", "co_de", "\\law"))
    knee = study.picks[0].record.number
    assert f">{knee}</text>" in text
    assert f"picks: {knee} knee" in text


def test_one_objective_is_drawn_over_the_trials(tmp_path):
    study = view(20)
    study = replace(study, objectives=study.objectives[:1], front=study.front[:1])
    with rc_context({"svg.fonttype": "none"}):
        draw_front(tmp_path / "f.svg", study)
    assert "trial number" in (tmp_path / "f.svg").read_text("utf-8")


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("f.jpg", 5, "expected a name ending in .png, .svg, .pdf"),
        ("f.png", 0, "the front of s is empty: no evaluation has ended yet"),
    ],
)
def test_a_front_that_cannot_be_drawn(tmp_path, name, count, message):
    with pytest.raises(InputError, match=message):
        draw_front(tmp_path / name, view(count))
    assert list(tmp_path.iterdir()) == []


def test_the_average_is_held_against_the_base(tmp_path):
    study = view(60)
    written = write_figures(study, tmp_path / "f", trial=study.average.number)
    assert f"agreement-{study.average.number}-{study.base.number}" in written.files["agreement"]


def test_other_instances_are_told(tmp_path):
    study = view(60)
    knee, average = study.picks[0].record, study.average
    fewer = replace(average.evaluation, scores={task: row[:-1] for task, row in average.evaluation.scores.items()})
    records = tuple(replace(r, evaluation=fewer) if r is average else r for r in study.records)
    written = write_figures(replace(study, records=records), tmp_path / "f", trial=knee.number)
    assert written.without["agreement"] == f"trial {average.number} was asked other instances; name a trial"


def test_a_picture_is_written_whole(tmp_path, monkeypatch):
    (tmp_path / "f.png").write_bytes(b"before")

    def full(self, path, **settings):
        path.write_bytes(b"half")
        raise OSError(28, "full")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(StorageError, match=r"f\.png: full"):
        draw_front(tmp_path / "f.png", view(20))
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


def infeasible(study):
    return replace(study, records=tuple(replace(r, feasible=False) for r in study.records), front=())


def test_a_study_without_a_front_shows_what_it_has(tmp_path):
    study = infeasible(view(60))
    written = write_figures(study, tmp_path / "f")
    assert written.trial is None
    assert written.files == {"hypervolume": "hypervolume.png", "generations": "generations.png"}
    assert set(written.without) == {"front", "blocks", "lineage", "agreement"}
    assert "is empty" in written.without["front"]
    assert "blocks" in write_figures(study, tmp_path / "g", trial=12).files
    text = page(study, "s")
    assert "Circled" not in text
    assert "front as a table" not in text
    assert "is empty" in text
    assert "Circled" in page(view(60), "s")


def test_the_base_lies_on_top_and_the_picks_have_one_entry():
    study = view(60)
    axes = front_picture(study).axes[0]
    marks = [line for line in axes.get_lines() if line.get_marker() in ("s", "*", "D") and len(line.get_xdata()) == 1]
    assert [line.get_marker() for line in marks] == ["D", "D", "D", "*", "s"]
    entries = [name for name in axes.get_legend_handles_labels()[1] if not name.startswith(("front", "other"))]
    (picks,) = [name for name in entries if name.startswith("picks: ")]
    assert all(f"{each.record.number} " in picks and each.name in picks for each in study.picks)


@pytest.mark.parametrize("graded", [("a",), ("a", "b")])
def test_what_is_not_right_or_wrong_has_no_part_in_agreement(tmp_path, graded):
    study = view(60)

    def likely(record):
        rows = record.evaluation.scores
        scores = {t: tuple(0.2 + 0.5 * s for s in row) if t in graded else row for t, row in rows.items()}
        return replace(record, evaluation=replace(record.evaluation, scores=scores))

    records = tuple(map(likely, study.records))
    changed = replace(study, records=records, front=tuple(records[r.number] for r in study.front))
    assert changed.graded == set(graded)
    found = agreement_of(changed, records[59], changed.records[study.average.number])
    if len(graded) == 2:
        assert found is None
        assert answers_of(changed) is None
        assert write_figures(changed, tmp_path / "f").without["agreement"] == "no task's answers are right or wrong"
    else:
        assert found.tasks == ["b"]
        assert answers_of(changed).tasks == ["b"]
