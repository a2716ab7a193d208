"""Expected hypervolume improvement."""

from __future__ import annotations

import numpy as np
import pytest

from sae_moo.objectives.pareto import hypervolume
from sae_moo.prediction.improvement import drawn_gains, expected_excess, expected_gains, probability_between

RNG = np.random.default_rng(0)
SPREADS = {"accuracy alone is uncertain": (0.1, 0.0, 0.0), "all are": (0.1, 0.05, 0.02), "none is": (0.0, 0.0, 0.0)}


def added(points, candidates):
    return np.array([hypervolume(np.vstack([points, each])) - hypervolume(points) for each in candidates])


@pytest.mark.parametrize("objectives", [1, 2, 3])
@pytest.mark.parametrize("spread", SPREADS)
def test_it_is_the_mean_of_what_draws_add(objectives, spread):
    points, means = RNG.uniform(0.2, 0.8, (7, objectives)), RNG.uniform(0.3, 0.9, (5, objectives))
    spreads = np.tile(SPREADS[spread][:objectives], (5, 1))
    count = 4000 if spread != "none is" else 1
    drawn = drawn_gains(points, means, spreads, (1,), count)
    np.testing.assert_allclose(expected_gains(points, means, spreads), drawn, rtol=0.08, atol=5e-4)


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_what_is_known_adds_what_it_adds(objectives):
    points, means = RNG.uniform(0.0, 1.0, (9, objectives)), RNG.uniform(0.0, 1.0, (6, objectives))
    np.testing.assert_allclose(
        expected_gains(points, means, np.zeros((6, objectives))), added(points, means), atol=1e-12
    )
    below = points * 0.9
    assert expected_gains(points, below, np.zeros_like(below)).tolist() == [0.0] * 9


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_more_spread_promises_more(objectives):
    points, mean = RNG.uniform(0.2, 0.8, (6, objectives)), np.full((1, objectives), 0.55)
    gains = [expected_gains(points, mean, np.full((1, objectives), spread))[0] for spread in (0.0, 0.01, 0.05, 0.2)]
    assert gains == sorted(gains)
    assert gains[0] < gains[-1]


def test_without_a_front_it_is_the_box_and_equal_points_count_once():
    mean, spread = np.array([[0.6, 0.5]]), np.array([[0.0, 0.0]])
    assert expected_gains(np.zeros((0, 2)), mean, spread) == pytest.approx([0.3])
    points = np.array([[0.5, 0.5], [0.5, 0.5], [-0.1, 0.9]])
    assert expected_gains(points, mean, spread) == pytest.approx([0.05])


def test_excess_has_its_limits():
    assert expected_excess(np.array([0.0]), np.array([1.0]), 0.0) == pytest.approx([1 / np.sqrt(2 * np.pi)])
    assert expected_excess(np.array([5.0]), np.array([0.1]), 1.0) == pytest.approx([4.0])
    assert expected_excess(np.array([-5.0]), np.array([0.1]), 1.0) == pytest.approx([0.0], abs=1e-12)


def test_limits_are_kept_with_a_probability_and_by_what_is_known_for_sure():
    means, spreads = np.array([0.5, 0.3, 0.5]), np.array([0.1, 0.0, 0.0])
    assert probability_between(means, spreads, 0.5, None).tolist() == pytest.approx([0.5, 0.0, 1.0])
    assert probability_between(means, spreads, 0.3, 0.5).tolist() == pytest.approx([0.47725, 1.0, 1.0])
    assert probability_between(means, spreads, None, None).tolist() == [1.0, 1.0, 1.0]
