from __future__ import annotations

from dataclasses import replace

import pytest
from stand_ins import FRONT, OBJECTIVES, record

from sae_moo.errors import InputError
from sae_moo.explore.figures import draw_front

SIGNATURES = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


@pytest.mark.parametrize("ending", SIGNATURES)
def test_a_picture_is_written(tmp_path, ending):
    front = [replace(each, stderr={"accuracy": 0.02}) for each in FRONT]
    path = tmp_path / f"front{ending}"
    draw_front(path, [*front, record(7, 0.1, 0.1)], front, OBJECTIVES, marked=front[1])
    assert path.read_bytes().startswith(SIGNATURES[ending])


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
