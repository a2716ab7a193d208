from __future__ import annotations

import numpy as np
import pytest

from sae_moo.explore.decide.scalarizing import achievement, pseudo_weights, scale

POINTS = np.array([[0.8, 0.0], [0.78, 0.4], [0.5, 0.6], [0.2, 0.7]])


def test_achievement_is_the_largest_scaled_shortfall():
    wish = np.array([0.7, 0.5])
    expected = ((wish - POINTS) / (0.6, 0.7)).max(axis=1)
    assert achievement(POINTS, wish) == pytest.approx(expected, abs=1e-5)
    assert np.argmin(achievement(POINTS, wish)) == 1
    assert achievement(POINTS, np.array([0.4, 0.5])).min() < 0, "beyond the wish"


def test_of_equal_largest_shortfalls_the_sum_decides():
    points = np.array([[0.5, 0.2], [0.5, 0.6], [1.0, 0.0]])
    found = achievement(points, np.array([1.0, 0.1]))
    assert found[1] < found[0]
    assert found[0] == pytest.approx(found[1], abs=1e-4)


@pytest.mark.parametrize("points", [POINTS[:1], POINTS[:, :1], np.full((3, 2), 0.5)])
def test_small_and_flat_fronts_have_numbers(points):
    assert achievement(points, np.full(points.shape[1], 0.6)).shape == (len(points),)
    assert pseudo_weights(points).sum(axis=1) == pytest.approx(np.ones(len(points)))


def test_pseudo_weights():
    found = pseudo_weights(POINTS)
    assert found[0] == pytest.approx((1, 0))
    assert found[3] == pytest.approx((0, 1))
    share = np.array([0.5, 6 / 7])
    assert found[2] == pytest.approx(share / share.sum())
    flat = pseudo_weights(np.column_stack([POINTS, np.ones(4)]))
    assert flat == pytest.approx(np.column_stack([found, np.zeros(4)]))


def test_scale():
    assert scale(np.array([[0.0, 2.0], [0.5, 2.0]])).tolist() == [0.5, 1.0]
