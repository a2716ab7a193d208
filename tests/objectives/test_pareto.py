from __future__ import annotations

import numpy as np
import pytest

from sae_moo.objectives.pareto import hypervolume, non_dominated


def test_front_of_known_points():
    points = np.array([[1, 0], [0, 1], [0.5, 0.5], [0.4, 0.5], [0.5, 0.5], [0, 0]])
    assert non_dominated(points).tolist() == [True, True, True, False, True, False]


@pytest.mark.parametrize("points", [np.empty((0, 2)), np.ones((1, 3)), np.ones((4, 2))])
def test_nothing_dominates_an_equal(points):
    assert non_dominated(points).all()


def test_hypervolume_of_known_points():
    assert hypervolume(np.empty((0, 2))) == 0.0
    assert hypervolume(np.array([[0.5, 0.5]])) == pytest.approx(0.25)
    assert hypervolume(np.array([[1.0, 0.5], [0.5, 1.0]])) == pytest.approx(0.75)
    assert hypervolume(np.array([[0.5, 0.5, 1.0], [0.1, 0.1, 0.1]])) == pytest.approx(0.25)


@pytest.mark.parametrize("points", [np.ones(3), np.array([[np.nan, 1.0]])])
def test_what_are_no_points_is_refused(points):
    with pytest.raises(ValueError, match="expected"):
        non_dominated(points)
