from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.optimize import minimize

from sae_moo.explore.draw.labels import Label, spread, write_beside_


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ([], []),
        ([3.0], [3.0]),
        ([0.0, 5.0], [0.0, 5.0]),
        ([5.0, 0.0, 5.0], [4.5, 0.0, 5.5]),
        ([0.0, 0.0, 0.0], [-1.0, 0.0, 1.0]),
        ([0.0, 0.5, 3.0], [-0.25, 0.75, 3.0]),
    ],
)
def test_places_move_as_little_as_possible(wanted, found):
    assert spread(wanted, 1.0).tolist() == pytest.approx(found)


def test_no_other_places_are_nearer():
    rng = np.random.default_rng(0)
    for _ in range(5):
        wanted = np.sort(rng.random(6) * 4)
        limits = [{"type": "ineq", "fun": lambda x, i=i: x[i + 1] - x[i] - 1.0} for i in range(5)]
        best = minimize(lambda x, w=wanted: ((x - w) ** 2).sum(), wanted, constraints=limits)
        assert spread(wanted, 1.0) == pytest.approx(best.x, abs=1e-3)


def test_a_name_that_would_leave_the_axes_stands_to_the_left():
    axes = Figure().subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    write_beside_(
        axes, [Label("uniform average", (0.95, 0.5)), Label("base", (0.1, 0.5)), Label("x", (0.5, 0.9), left=True)]
    )
    assert [text.get_ha() for text in axes.texts] == ["right", "left", "right"]
    write_beside_(axes, [])
    assert len(axes.texts) == 3


def test_what_lies_far_apart_stays_where_it_is():
    axes = Figure().subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    write_beside_(axes, [Label("a", (0.1, 0.5)), Label("b", (0.9, 0.5)), Label("c", (0.9, 0.5))])
    a, b, c = (text.get_position()[1] for text in axes.texts)
    assert (a, b) == (pytest.approx(0), pytest.approx(-c))
    assert b < 0 < c
    assert [text.arrow_patch is not None for text in axes.texts] == [False, True, True]


def test_a_name_at_the_rim_moves_no_other():
    axes = Figure().subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    write_beside_(axes, [Label("low", (0.1, 0.5)), Label("high", (0.5, 1.0), lift=20)])
    low, high = (text.get_position()[1] for text in axes.texts)
    assert low == pytest.approx(0)
    assert high < 20
