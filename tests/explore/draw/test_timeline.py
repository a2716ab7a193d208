"""The rows of a timeline, and both drawings of them."""

from __future__ import annotations

import numpy as np
import pytest
from busy import busy, trial

from sae_moo.explore.draw import timeline as drawn
from sae_moo.explore.draw.page.timeline import timeline_figure
from sae_moo.explore.draw.print.timeline import timeline_picture
from sae_moo.explore.draw.timeline import FILLED, MOST_STEPS, rows_of
from sae_moo.explore.timeline import timeline


def area(outline: np.ndarray) -> float:
    """What an outline holds."""
    x, y = outline.T
    return abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2


def filled(rows, phase: str) -> float:
    return sum(map(area, rows.shapes[phase])) / FILLED


@pytest.mark.parametrize(("count", "workers"), [(10, 1), (10, 2), (300, 8), (600, 8), (600, 1), (900, 64)])
@pytest.mark.parametrize("pauses", [(), (7,)])
def test_what_is_filled_is_the_time_that_was_spent(count, workers, pauses):
    study = busy(count, workers, pauses)
    rows = rows_of(study.timeline)
    size = {"s": 1, "min": 60, "h": 3600}[rows.unit]
    assert rows.single == (count <= 400)
    assert filled(rows, "merging") * size == pytest.approx(sum(r.evaluation.seconds_merge for r in study.records))
    assert filled(rows, "scoring") * size == pytest.approx(sum(r.evaluation.seconds_score for r in study.records))
    assert rows.names == study.timeline.workers
    assert rows.length * size == pytest.approx(study.timeline.seconds)
    assert len(rows.breaks) == len(pauses)
    corners = np.concatenate([shape for shapes in rows.shapes.values() for shape in shapes])
    assert corners.min() >= 0
    assert corners[:, 0].max() <= rows.length * (1 + 1e-9)
    assert corners[:, 1].max() <= workers
    assert len(corners) <= max(4 * 2 * count, 2 * 4 * MOST_STEPS)


def test_a_row_is_where_its_name_is():
    rows = rows_of(timeline([trial(0, "w1", 0, 0.0, 0.0, 3.0), trial(1, "w2", 5, 0.0, 0.0, 5.0)]))
    first, second = rows.shapes["scoring"]
    assert (first[:, 1].min(), second[:, 1].min()) == pytest.approx((1.1, 0.1)), "from the top down"
    assert (first[:, 0].min(), first[:, 0].max(), second[:, 0].min(), second[:, 0].max()) == (0, 3, 5, 10)
    assert [(x, span.record.number) for x, _, span in rows.middles] == [(1.5, 0), (7.5, 1)]


def test_workers_without_room_for_their_names_are_one_row():
    study = busy(900, 90)
    rows = rows_of(study.timeline)
    assert rows.names == ("all 90 workers",)
    spent = sum(record.evaluation.seconds_score for record in study.records)
    assert filled(rows, "scoring") * 90 == pytest.approx(spent)
    assert rows.caption.startswith("All workers together, filled as high as the share")


def test_the_unit_suits_the_time(monkeypatch):
    assert [rows_of(busy(count, 1).timeline).unit for count in (10, 100, 900)] == ["s", "min", "h"]
    monkeypatch.setattr(drawn, "MOST_SPANS", 5)
    assert rows_of(busy(5, 1).timeline).single
    assert not rows_of(busy(6, 1).timeline).single


def test_where_nothing_took_any_time_there_are_no_rows():
    assert rows_of(timeline([])) is None
    assert rows_of(timeline([trial(0, "w", 0, 0.0, 0.0, 0.0)])) is None


@pytest.mark.parametrize("count", [12, 500])
def test_pages_and_pictures_fill_the_same(count):
    rows = rows_of(busy(count, 3, pauses=(6,)).timeline)
    figure, (axes,) = timeline_figure(rows), timeline_picture(rows, "s").axes
    traces = {trace.name: trace for trace in figure.data if trace.fill == "toself"}
    collections = {each.get_label(): each for each in axes.collections}
    assert list(traces) == list(collections) == list(rows.shapes)
    for phase, shapes in rows.shapes.items():
        paths = [path.vertices for path in collections[phase].get_paths()]
        assert len(paths) == len(shapes)
        assert np.isnan(traces[phase].x).sum() == len(shapes) - 1
        pieces = np.split(np.stack([traces[phase].x, traces[phase].y], 1), np.flatnonzero(np.isnan(traces[phase].x)))
        for path, piece, shape in zip(paths, pieces, shapes, strict=True):
            assert path[: len(shape)] == pytest.approx(shape)
            assert piece[~np.isnan(piece[:, 0])][: len(shape)] == pytest.approx(shape, rel=1e-5)
    assert list(figure.layout.yaxis.ticktext) == [each.get_text() for each in axes.get_yticklabels()] == [*rows.names]
    assert [shape.x0 for shape in figure.layout.shapes] == pytest.approx(rows.breaks)
    said = [trace.text for trace in figure.data if trace.fill is None]
    assert [len(text) for text in said] == ([12] if rows.single else [])


def test_a_phase_lies_on_the_one_before():
    rows = rows_of(busy(500, 2).timeline)
    for merging, scoring in zip(rows.shapes["merging"], rows.shapes["scoring"], strict=True):
        half = len(merging) // 2
        assert scoring[half:][::-1] == pytest.approx(merging[:half])
