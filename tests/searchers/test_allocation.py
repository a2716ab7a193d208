"""Level switches: levels move, the number of zeros stays."""

import numpy as np
import pytest

from sae_moo.searchers.allocation import DIGITS, STEP, SWITCHES, switched


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("seed", range(60))
def test_a_switch_keeps_the_number_of_zeros_and_every_level_in_range(seed) -> None:
    rng = random(seed)
    places, most = int(rng.integers(0, 13)), float(rng.choice([0.0, 0.5, 0.95, 1.0, rng.random()]))
    levels = np.clip(rng.choice([0.0, 1.0, 0.3, 0.33337, rng.random()], places), 0.0, most)
    sizes = rng.choice([0.0, 1.0, 100.0, 1e9], places)
    times = None if seed % 2 else int(rng.integers(0, 40))
    after = switched(levels, sizes, most, rng, times)
    moved = after != levels
    assert after.shape == levels.shape
    assert (after >= 0).all()
    assert (after <= most).all()
    assert abs((after - levels) @ sizes) <= 0.51 * 10**-DIGITS * sizes.sum()
    assert not moved[sizes == 0].any()  # what has no weights has no zeros to give
    assert moved.sum() <= 2 * (SWITCHES if times is None else times)


def test_one_place_goes_up_a_step_and_another_down() -> None:
    after = switched(np.full(4, 0.5), np.full(4, 100.0), 0.95, random(), times=1)
    assert sorted(after) == pytest.approx([0.5 - STEP, 0.5, 0.5, 0.5 + STEP])


def test_the_smaller_place_moves_by_the_step_and_the_larger_by_as_many_zeros() -> None:
    after = switched(np.array([0.5, 0.5]), np.array([100.0, 500.0]), 0.95, random(), times=1, step=0.1)
    assert abs(after[0] - 0.5) == pytest.approx(0.1)
    assert abs(after[1] - 0.5) == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("levels", "sizes"),
    [([], []), ([0.3], [10]), ([0.0, 0.0], [10, 10]), ([0.8, 0.8], [10, 10]), ([0.3, 0.4], [10, 0])],
)
def test_where_nothing_can_be_moved_nothing_moves(levels, sizes) -> None:
    assert switched(np.array(levels), np.array(sizes), 0.8, random()).tolist() == levels


def test_every_pair_of_places_is_drawn_and_mostly_one_switch_is_made() -> None:
    rng, sizes, start = random(), np.full(3, 10.0), np.full(3, 0.5)
    once = [tuple(switched(start, sizes, 0.9, rng, times=1) - start) for _ in range(200)]
    assert len({tuple(np.sign(move)) for move in once}) == 6
    far = np.full(40, 0.5)
    touched = [int((switched(far, np.full(40, 10.0), 0.9, rng) != far).sum()) for _ in range(900)]
    # min of two draws of 1..3: 1, 2 and 3 switches with 5/9, 3/9 and 1/9
    assert 0.5 < np.mean([number == 2 for number in touched]) < 0.62


def test_what_no_switch_was_asked_of_is_only_clipped() -> None:
    assert switched(np.array([-0.2, 0.123456, 1.4]), np.ones(3), 0.9, random(), times=0).tolist() == [0, 0.123456, 0.9]


@pytest.mark.parametrize(
    ("levels", "sizes", "most", "times", "step"),
    [
        ([0.1, 0.2], [1], 0.9, None, 0.1),
        ([[0.1]], [[1]], 0.9, None, 0.1),
        ([float("nan")], [1], 0.9, None, 0.1),
        ([0.1], [-1], 0.9, None, 0.1),
        ([0.1], [1], 1.1, None, 0.1),
        ([0.1], [1], float("nan"), None, 0.1),
        ([0.1], [1], 0.9, -1, 0.1),
        ([0.1], [1], 0.9, None, 0.0),
    ],
)
def test_what_is_no_allocation_is_refused(levels, sizes, most, times, step) -> None:
    with pytest.raises(ValueError, match="expected"):
        switched(np.array(levels), np.array(sizes), most, random(), times, step)
