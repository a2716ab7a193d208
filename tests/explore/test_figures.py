from __future__ import annotations

from dataclasses import replace

import pytest
from matplotlib import rc_context
from stand_ins import FRONT, OBJECTIVES, record
from synthetic import view

from sae_moo.errors import InputError
from sae_moo.explore.figures import draw_front
from sae_moo.explore.view import Marked

SIGNATURES = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


@pytest.mark.parametrize("ending", SIGNATURES)
def test_a_picture_is_written(tmp_path, ending):
    front = [replace(each, stderr={"accuracy": 0.02}) for each in FRONT]
    path = tmp_path / f"front{ending}"
    draw_front(path, [*front, record(7, 0.1, 0.1)], front, OBJECTIVES, [Marked("knee", front[1], "")])
    assert path.read_bytes().startswith(SIGNATURES[ending])


@pytest.mark.parametrize("tasks", [("a",), ("a", "b"), ("a", "b", "c")])
def test_a_picture_names_what_it_shows(tmp_path, tasks):
    study = view(40, tasks)
    path = tmp_path / "front.svg"
    with rc_context({"svg.fonttype": "none"}):  # text stays text
        draw_front(path, study.records, study.front, study.objectives, study.picks, study.references)
    text = path.read_text("utf-8")
    assert all(objective.name in text for objective in study.objectives)
    assert "fraction of zeros" in text
    assert f"front, {len(study.front)} trials" in text
    if len(tasks) < 3:
        assert all(f">{each.name}</text>" in text for each in study.references)
        knee = study.picks[0].record.number
        assert f">{knee}</text>" in text
        assert f"Knee: {knee}</text>" in text or "Knee; " in text


@pytest.mark.parametrize(
    ("name", "front", "objectives", "message"),
    [
        ("front.jpg", FRONT, OBJECTIVES, "expected a name ending in .png, .svg, .pdf"),
        ("front.png", [], OBJECTIVES, "got 0 trials"),
        ("front.png", FRONT, OBJECTIVES[:1], "expected a front over two objectives"),
    ],
)
def test_what_cannot_be_drawn(tmp_path, name, front, objectives, message):
    with pytest.raises(InputError, match=message):
        draw_front(tmp_path / name, front, front, objectives)
    assert list(tmp_path.iterdir()) == []
