from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from synthetic import view

from sae_moo.explore.draw.numbers import Blocks, agreement_of, ancestry_of, widened
from sae_moo.explore.draw.page.front import front_figures
from sae_moo.explore.draw.page.plots import (
    agreement_figure,
    block_figure,
    generation_figure,
    hypervolume_figure,
    lineage_figure,
)
from sae_moo.explore.history import Generations


def test_the_front_has_error_bars_references_and_picks():
    study = view(80, ("a",))
    (figure,) = front_figures(study)
    others, front = figure.data[:2]
    assert len(others.x) == 80 - len(study.front)
    assert front.y.tolist() == pytest.approx([r.values["a"] for r in study.front])
    assert front.error_y.array.tolist() == pytest.approx([r.stderr["a"] for r in study.front])
    assert front.error_x.array is None
    named = {trace.name: (trace.x[0], trace.y[0]) for trace in figure.data[3:]}
    assert {"base", "math", "code", "law", "uniform average"} <= set(named)
    said = {note.text: (note.x, note.y) for note in figure.layout.annotations}
    assert said == {each.name: named[each.name] for each in study.references}
    knee = next(each.record for each in study.picks if each.name == "knee")
    assert any(place == (knee.values["sparsity"], knee.values["a"]) for name, place in named.items() if "knee" in name)
    assert "fraction of zeros" in figure.layout.xaxis.title.text


def test_the_curve_keeps_the_beginning_of_every_level_and_the_end():
    figure = hypervolume_figure(np.array([0.0, 0.1, 0.1, 0.1, 0.3, 0.3]))
    assert figure.data[0].x.tolist() == [1, 2, 5, 6]
    assert figure.data[0].y.tolist() == pytest.approx([0, 0.1, 0.3, 0.3])
    assert len(hypervolume_figure(np.zeros(0)).data[0].x) == 0


def test_a_search_without_ratios_shows_none():
    rows = np.full((2, 3), 0.1)
    names = [trace.name for trace in generation_figure(Generations(np.arange(2), rows, np.full(2, np.nan))).data]
    assert not any("ratio" in (name or "") for name in names)
    names = [trace.name for trace in generation_figure(Generations(np.arange(2), rows, np.full(2, 0.3))).data]
    assert any("ratio" in (name or "") for name in names)


@pytest.mark.parametrize("groups", [1, 3, 200])
def test_heatmaps_have_a_row_for_each_group(groups):
    weights = np.linspace(-1, 2, groups * 2).reshape(groups, 2)
    figure = block_figure(Blocks([f"g{i}" for i in range(groups)], ["base", "m"], weights, np.linspace(0, 0.9, groups)))
    mixing, zeros = figure.data
    assert mixing.z == pytest.approx(weights.astype(np.float32))
    assert zeros.z.ravel() == pytest.approx(np.linspace(0, 0.9, groups), abs=1e-6)
    assert (mixing.texttemplate is None) == (groups == 200), "too many cells to write in"
    assert (-mixing.zmin, mixing.zmax) == (2, 2)


def test_a_lineage_has_a_dot_for_each_trial_and_a_line_for_each_parent():
    study = view(60)
    found = ancestry_of(study, study.records[59])
    lines, dots = lineage_figure(study, found).data
    assert len(lines.x) == 3 * len(found.edges)
    assert len(dots.x) == len(found.trials)
    assert dots.y[-1] == study.records[59].values["a"]


def test_agreement_parts_hold_every_instance_once():
    study = view(60)
    first, second = study.records[59], study.records[4]
    figure = agreement_figure(agreement_of(study, first, second))
    assert [trace.name for trace in figure.data] == ["both right", "only trial 59", "only uniform average", "neither"]
    a, b = (np.array(each.evaluation.scores["b"]) for each in (first, second))
    counts = [int(trace.text[1] or 0) for trace in figure.data]
    assert counts == [
        int((a * b).sum()),
        int((a * (1 - b)).sum()),
        int((b * (1 - a)).sum()),
        int(((1 - a) * (1 - b)).sum()),
    ]
    assert sum(trace.x[1] for trace in figure.data) == pytest.approx(1)
    only = np.flatnonzero(a * (1 - b))
    assert figure.data[1].customdata[1].startswith(f"{len(only)} instances: " + ", ".join(map(str, only[:12])))


def test_a_score_of_a_half_is_right():
    study = view(30)
    scores = {"a": (0.5,) * 3, "b": (0.49,) * 3}
    record = replace(study.records[10], evaluation=replace(study.records[10].evaluation, scores=scores))
    assert agreement_of(study, record, record).sizes.tolist() == [[3, 0, 0, 0], [0, 0, 0, 3]]


def test_trials_without_common_tasks_have_no_agreement():
    one, other = view(3, ("a",)), view(3, ("b",))
    assert agreement_of(one, one.records[0], other.records[1]) is None


def test_small_differences_do_not_fill_an_axis():
    study = view(5, ("a",))  # the experts and the base: all dense
    (figure,) = front_figures(study)
    assert figure.layout.xaxis.range == pytest.approx((-0.012, 0.108))
    assert figure.layout.yaxis.range is None, "wide enough as it is"
    close = replace(study, records=study.records[1:3], front=study.records[1:3])
    narrow = [
        replace(r, values=r.values | {"a": 0.5 + 0.05 * i}, stderr={"a": 0.01}) for i, r in enumerate(close.front)
    ]
    (figure,) = front_figures(replace(close, records=tuple(narrow), front=tuple(narrow)))
    assert figure.layout.yaxis.range == pytest.approx((0.465, 0.585)), "room for the bars"
    assert widened(0.5, 0.5) == pytest.approx((0.44, 0.56))
    assert widened(0.1, 0.3) == (0.1, 0.3)
