from __future__ import annotations

import numpy as np
import pytest

from sae_moo.searchers.schedule import SHAPES, Adaptive, Bandit, Schedule


@pytest.mark.parametrize("shape", sorted(set(SHAPES) - {"constant", "sae-published"}))
def test_every_cycle_starts_low_and_climbs_towards_high(shape):
    schedule = Schedule(schedule=shape, low=0.1, high=0.6, period=100, growth=2)
    assert schedule(0) == pytest.approx(0.1)
    assert schedule(99) == pytest.approx(0.6, abs=0.011)
    assert schedule(100) == pytest.approx(0.1)  # restart
    assert schedule(299) == pytest.approx(0.6, abs=0.006)  # the second cycle lasts 200
    assert schedule(300) == pytest.approx(0.1)
    values = [schedule(step) for step in range(100)]
    assert values == sorted(values)


def test_known_values():
    assert Schedule(schedule="cosine", low=0.0, high=0.8, period=4, growth=1)(2) == pytest.approx(0.4)
    assert Schedule(schedule="sine", low=0.0, high=0.8, period=4, growth=1)(2) == pytest.approx(0.8 * 2**-0.5)
    assert Schedule(schedule="sawtooth", low=0.0, high=0.8, period=4, growth=1)(3) == pytest.approx(0.6)
    assert [Schedule(schedule="constant", low=0.0, high=0.5)(step) for step in (0, 1, 77)] == [0.5] * 3


def test_the_published_form_stays_in_the_upper_half():
    schedule = Schedule(schedule="sae-published", low=0.0, high=0.6, period=50, growth=1)
    assert schedule(0) == pytest.approx(0.3)
    assert schedule(49) == pytest.approx(0.6, abs=0.001)


def test_a_period_of_one_stays_low():
    assert {Schedule(period=1, growth=1)(step) for step in range(5)} == {0.0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "cosin"}, "should be 'cosine', 'sine'"),
        ({"low": 0.7, "high": 0.6}, "expected low <= high, got 0.7 > 0.6"),
        ({"high": 1.0}, "should be less than 1"),
        ({"period": 0}, "period\n.*greater than or equal to 1"),
        ({"growth": 0.5}, "growth\n.*greater than or equal to 1"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**settings)


def test_a_negative_step_is_refused():
    with pytest.raises(ValueError, match="expected 0 or more, got -1"):
        Schedule()(-1)


def test_a_bandit_draws_evenly_until_something_was_gained():
    bandit = Bandit(Adaptive(low=0.1, high=0.5, arms=5))
    assert bandit.settings.ratios == pytest.approx((0.1, 0.2, 0.3, 0.4, 0.5))
    assert bandit.probabilities == (0.2,) * 5
    bandit.credit(0.3, 0.0)
    assert bandit.probabilities == (0.2,) * 5


def test_a_bandit_prefers_what_gained_and_forgets_nobody():
    settings = Adaptive(low=0.0, high=0.6, arms=4, rate=0.5, floor=0.1)
    bandit, rng = Bandit(settings), np.random.default_rng(0)
    bandit.credit(0.2, 0.04)
    assert bandit.estimates == [None, 0.04, None, None]
    assert bandit.probabilities == pytest.approx((0.25,) * 4), "what was never tried counts as the best"
    bandit.credit(0.2, 0.02)
    assert bandit.estimates[1] == pytest.approx(0.03)
    for ratio in (0.0, 0.4, 0.6):
        bandit.credit(ratio, 0.0)
    assert bandit.probabilities == pytest.approx((0.1, 0.7, 0.1, 0.1))
    drawn = [bandit.draw(rng) for _ in range(4000)]
    for ratio, probability in zip(settings.ratios, bandit.probabilities, strict=True):
        assert drawn.count(ratio) / 4000 == pytest.approx(probability, abs=0.03)
    for _ in range(60):
        bandit.credit(0.2, 0.0)
        bandit.credit(0.6, 0.01)
    assert bandit.probabilities[3] == pytest.approx(0.7, abs=1e-6), "what paid early need not pay late"


def test_the_end_of_the_last_arm_is_drawn_too():
    class Last:
        def random(self):
            return 1 - 1e-16

    assert Bandit(Adaptive(low=0.0, high=0.6)).draw(Last()) == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"low": 0.7}, r"high\n.*expected low <= high, got 0.7 > 0.6"),
        ({"arms": 30}, r"floor\n.*expected at most 1/30, got 0.05"),
        ({"arms": 1}, r"arms\n.*greater than or equal to 2"),
        ({"rate": 0.0}, r"rate\n.*greater than 0"),
        ({"floor": 0.2}, r"floor\n.*expected at most 1/7, got 0.2"),
    ],
)
def test_adaptive_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        Adaptive(**settings)


def test_cycles_are_counted_from_none_and_grow():
    schedule = Schedule(period=2, growth=1.5)
    assert [schedule.cycle(step) for step in range(6)] == [
        (0, 0, 2),
        (0, 1, 2),
        (1, 0, 3),
        (1, 1, 3),
        (1, 2, 3),
        (2, 0, 4.5),
    ]
    assert [schedule.position(step) for step in range(3)] == [0, 0.5, 0]
