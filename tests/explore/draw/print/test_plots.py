"""Pictures show the numbers of `figure_data`, as pages do (test_plots)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.text import Text
from synthetic import view

from sae_moo.explore.draw.numbers import Blocks, agreement_of, ancestry_of, planes
from sae_moo.explore.draw.print.front import front_picture
from sae_moo.explore.draw.print.plots import (
    agreement_picture,
    block_picture,
    generation_picture,
    hypervolume_picture,
    lineage_picture,
)
from sae_moo.explore.history import Generations, generations


def test_the_front_has_error_bars_references_and_rings():
    study = view(60, ("a",))
    ((x, y),) = planes(study)
    (panel,) = front_picture(study).axes
    points = {line.get_marker(): [] for line in panel.lines} | {"o": []}
    for line in panel.lines:
        points[line.get_marker()] += [(float(a), float(b)) for a, b in line.get_xydata()]
    at = {each.name: (x.value(each.record), y.value(each.record)) for each in (*study.references, *study.picks)}
    assert set(points["D"]) == {at["math"], at["code"], at["law"]}
    assert points["s"] == [at["base"]]
    assert points["*"] == [at["uniform average"]]
    rings = {
        (float(a), float(b)) for line in panel.lines if line.get_fillstyle() == "none" for a, b in line.get_xydata()
    }
    assert rings == {at[each.name] for each in study.picks}
    (bars,) = panel.containers
    ends = [np.array(segment) for segment in bars.lines[2][0].get_segments()]
    front = sorted(study.front, key=x.value)
    assert [end[1, 1] - end[0, 1] for end in ends] == pytest.approx([2 * y.error(record) for record in front])


def test_a_long_front_has_no_bars(monkeypatch):
    monkeypatch.setattr("sae_moo.explore.draw.numbers.MOST_BARS", 5)
    study = view(60)
    assert len(study.front) > 5
    assert all(panel.containers[0].lines[2] == () for panel in front_picture(study).axes)


def test_names_lie_apart():
    study = view(60, ("a",))
    same = study.records[0]  # all references at one place
    records = tuple(replace(r, values=same.values) if r.number < 5 else r for r in study.records)
    study = replace(study, records=records)
    figure = front_picture(study)
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in figure.axes[0].texts]
    assert len(boxes) == len(study.references) + len({each.record.number for each in study.picks})
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(figure.axes[0].bbox.padded(1).containsx(x) for box in boxes for x in (box.x0, box.x1))


def test_hypervolume_is_a_stair():
    (axes,) = hypervolume_picture(np.array([0.0, 0.1, 0.1, 0.3, 0.3])).axes
    assert axes.lines[0].get_xydata().tolist() == [[1, 0.0], [2, 0.1], [4, 0.3], [5, 0.3]]
    assert axes.lines[0].get_drawstyle() == "steps-post"
    assert [text.get_text() for text in axes.texts] == ["0.3000"]
    assert list(hypervolume_picture(np.zeros(0)).axes[0].texts) == []


def test_generations_show_sparsity_and_ratio():
    found = generations(view(60).records, "annealed ratio")
    (axes,) = generation_picture(found).axes
    median, ratio = axes.lines
    assert median.get_ydata() == pytest.approx(found.sparsity[:, 1])
    assert ratio.get_ydata() == pytest.approx(found.ratio, nan_ok=True)
    (axes,) = generation_picture(Generations(np.arange(2), np.full((2, 3), 0.1), np.full(2, np.nan))).axes
    assert len(axes.lines) == 1, "nothing was pruned at a ratio"


@pytest.mark.parametrize("groups", [1, 3, 200])
def test_heatmaps_have_a_row_for_each_group(groups):
    weights, zeros = np.linspace(-1, 2, groups * 2).reshape(groups, 2), np.linspace(0, 0.9, groups)
    names = [f"g{i}" for i in range(groups)]
    figure = block_picture(Blocks(names, ["base", "m"], weights, zeros), "s")
    figure.draw_without_rendering()
    left, right = figure.axes[:2]
    assert np.asarray(left.collections[0].get_array()) == pytest.approx(weights)
    assert np.asarray(right.collections[0].get_array()).ravel() == pytest.approx(zeros)
    assert left.collections[0].get_clim() == (-2, 2)
    said = [text.get_text() for text in left.texts]
    assert said == ([f"{w:.2f}" for w in weights.ravel()] if groups < 200 else [])
    assert len(figure.axes) == (2 if groups < 200 else 4), "a scale where there are no numbers"
    shown = [tick.get_text() for tick in left.get_yticklabels()]
    assert shown == names[:: 1 if groups < 200 else 2]


def test_a_lineage_has_a_dot_for_each_trial_and_a_line_for_each_parent():
    study = view(60)
    found = ancestry_of(study, study.records[59])
    axes = lineage_picture(found, "s").axes[0]
    lines, dots = axes.collections
    heights = [record.values["a"] for record in found.trials]
    assert dots.get_offsets().tolist() == [[i, pytest.approx(h)] for i, h in enumerate(heights)]
    drawn = [(int(a[0]), int(b[0])) for a, b in lines.get_segments()]
    assert drawn == list(found.edges)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [str(record.number) for record in found.trials]
    named = {text.get_text() for text in axes.texts}
    assert named == {each.name for each in study.references if each.record in found.trials}


def test_agreement_parts_hold_every_instance_once():
    study = view(60)
    found = agreement_of(study, study.records[59], study.average)
    (axes,) = agreement_picture(found, "s").axes
    widths = np.array([[bar.get_width() for bar in part] for part in axes.containers])
    begins = np.array([[bar.get_x() for bar in part] for part in axes.containers])
    assert widths == pytest.approx(100 * found.sizes.T / 40)
    assert begins[1:] == pytest.approx((begins + widths)[:-1])
    assert [part.get_label() for part in axes.containers] == list(found.kinds)
    labels = [text.get_text() for text in axes.texts]
    assert labels == [str(n) if n else "" for n in found.sizes.T.ravel()]
