from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from sae_moo.explore.draw.print.plots import Curve, progress_picture
from sae_moo.explore.pages.figures import draw_progress
from sae_moo.jobs.compare.statistics import Outcome, Point, summaries, threshold_name
from sae_moo.objectives import Sparsity, Speed, TaskMean

OBJECTIVES = (TaskMean("accuracy", ("a", "b")), Sparsity())
N = {"a": 200, "b": 100}


def point(number, chosen_by, sparsity, accuracy, rng=None):
    """A model that solves the first instances of each task, or as many at random."""
    scores = {}
    for task, n in N.items():
        row = (np.arange(n) < round(accuracy * n)).astype(float)
        scores[task] = row if rng is None else rng.permutation(row)
    return Point(number, chosen_by, sparsity, scores)


def outcome(method, seed, *points):
    return Outcome(method, seed, points, 10, 1.5, np.zeros((10, 2)))


def test_models_are_chosen_by_the_search_split_and_judged_by_the_test_split():
    front = (point(0, 0.9, 0.1, 0.5), point(1, 0.7, 0.4, 0.8), point(2, 0.6, 0.6, 0.3), point(3, 0.5, 0.55, 0.9))
    found = summaries([outcome("m", 0, *front)], OBJECTIVES, "m")["m"]
    assert found["accuracy"].values == pytest.approx((0.5,)), "not the best on the test split"
    assert found["sparsity"].values == (0.1,)
    assert [found[f"accuracy on {task}"].mean for task in "ab"] == pytest.approx([0.5, 0.5])
    expected = {0.0: 0.5, 0.3: 0.8, 0.5: 0.3, 0.6: 0.3}
    assert {t: found[threshold_name(t)].mean for t in expected} == pytest.approx(expected)
    assert found["hypervolume"].mean == pytest.approx(0.9 * 0.55 + 0.05 * 0.3)  # all four, re-scored
    assert math.isnan(found["accuracy"].half)
    assert found["accuracy"].difference is None


def test_speed_is_told_of_the_chosen_model_and_counts_as_the_time_it_saves():
    objectives = (OBJECTIVES[0], Speed())
    front = tuple(
        replace(each, speed=speed) for each, speed in ((point(0, 0.9, 0.1, 0.5), 2.0), (point(1, 0.7, 0.4, 0.25), 10.0))
    )
    found = summaries([outcome("m", 0, *front), outcome("empty", 0)], objectives, "m")
    assert found["m"]["speed"].values == (2.0,)
    assert found["m"]["hypervolume"].mean == pytest.approx(0.5 * 0.5 + 0.25 * 0.4)
    assert found["empty"]["speed"].mean == found["empty"]["hypervolume"].mean == 0.0
    assert "speed" not in summaries([outcome("m", 0, *front)], OBJECTIVES, "m")["m"]


def test_no_model_that_sparse_is_an_accuracy_of_zero():
    found = summaries([outcome("m", 0, point(0, 0.9, 0.1, 0.5)), outcome("empty", 0)], OBJECTIVES, "m")
    assert found["m"][threshold_name(0.3)].mean == 0.0
    assert {quantity: s.mean for quantity, s in found["empty"].items()} == dict.fromkeys(found["m"], 0.0)


def test_intervals_over_seeds_are_students():
    outcomes = [outcome("m", seed, point(0, 1, 0.2, accuracy)) for seed, accuracy in enumerate((0.5, 0.6, 0.7))]
    found = summaries(outcomes, OBJECTIVES, "m")["m"]["accuracy"]
    assert found.values == pytest.approx((0.5, 0.6, 0.7))
    assert found.mean == pytest.approx(0.6)
    assert found.half == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6)


def test_a_difference_is_paired_by_instance():
    same = [outcome(name, 0, point(0, 1, 0.2, accuracy)) for name, accuracy in (("ref", 0.5), ("m", 0.52))]
    rng = np.random.default_rng(0)
    other = [same[0], outcome("m", 0, point(0, 1, 0.2, 0.52, rng))]
    paired, unpaired = (
        summaries(outcomes, OBJECTIVES, "ref")["m"]["accuracy"].difference for outcomes in (same, other)
    )
    assert paired.mean == pytest.approx(0.02) == unpaired.mean
    assert paired.low > 0
    assert paired.high - paired.low < 0.4 * (unpaired.high - unpaired.low)
    assert unpaired.low < 0 < unpaired.high


def test_an_interval_is_that_of_a_paired_mean():
    rng = np.random.default_rng(1)
    a, b = point(0, 1, 0.2, 0.5, rng), point(0, 1, 0.2, 0.6, rng)
    found = summaries([outcome("ref", 0, a), outcome("m", 0, b)], OBJECTIVES, "ref", resamples=4000)["m"][
        "accuracy"
    ].difference
    variance = sum(np.subtract(b.scores[t], a.scores[t]).var() / n for t, n in N.items()) / 4
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * math.sqrt(variance), rel=0.06)
    z = found.mean / math.sqrt(variance)
    assert found.p == pytest.approx(math.erfc(z / math.sqrt(2)), abs=0.02)


def test_seeds_that_disagree_widen_the_interval():
    reference = [outcome("ref", s, point(0, 1, 0.2, 0.5)) for s in range(4)]
    steady = [outcome("m", s, point(0, 1, 0.2, 0.6)) for s in range(4)]
    wild = [outcome("m", s, point(0, 1, 0.2, x)) for s, x in enumerate((0.2, 0.4, 0.8, 1.0))]
    narrow, wide = (summaries([*reference, *m], OBJECTIVES, "ref")["m"]["accuracy"].difference for m in (steady, wild))
    assert narrow.mean == pytest.approx(wide.mean)
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)
    assert narrow.p < 0.01 < wide.p


def test_a_method_that_knows_no_seed_stands_beside_every_seed():
    outcomes = [outcome("ref", s, point(0, 1, 0.2, x)) for s, x in enumerate((0.5, 0.7))]
    found = summaries([*outcomes, outcome("once", 0, point(0, 1, 0.2, 0.8))], OBJECTIVES, "ref", unseeded=["once"])
    found = found["once"]["accuracy"]
    assert found.values == pytest.approx((0.8,))
    assert found.difference.mean == pytest.approx(0.2)


def test_three_seeds_that_agree_are_no_proof():
    """Under no difference at all a 95 % interval leaves zero out in about 5 of 100 comparisons, not in 27."""
    rng = np.random.default_rng(5)
    out = 0
    for _ in range(150):
        outcomes = [
            outcome(name, s, point(0, 1, round(float(x), 3), 0.5))
            for name in ("ref", "m")
            for s, x in enumerate(rng.normal(0.4, 0.05, 3))
        ]
        found = summaries(outcomes, OBJECTIVES, "ref", thresholds=(0.0,), resamples=100)["m"]["hypervolume"].difference
        out += not found.low <= 0 <= found.high
    assert out <= 15


def test_what_a_seeded_method_lost_is_not_made_up_from_its_other_seeds():
    outcomes = [outcome("ref", s, point(0, 1, 0.2, 0.5)) for s in range(5)]
    one = [*outcomes, outcome("m", 3, point(0, 1, 0.2, 0.6))]
    assert summaries(one, OBJECTIVES, "ref")["m"]["accuracy"].difference.seeds == 1
    assert summaries(one, OBJECTIVES, "ref", unseeded=["m"])["m"]["accuracy"].difference.seeds == 5
    other = [*outcomes[:2], outcome("m", 3, point(0, 1, 0.2, 0.6))]
    assert summaries(other, OBJECTIVES, "ref")["m"]["accuracy"].difference is None


def test_nobody_has_a_front():
    found = summaries([outcome("ref", 0), outcome("m", 0)], OBJECTIVES, "ref")["m"]
    assert found["hypervolume"].mean == 0.0
    assert found["hypervolume"].difference.p == 1.0


def test_no_difference_has_no_significance():
    outcomes = [outcome(name, s, point(0, 1, 0.2, 0.5)) for name in ("ref", "m") for s in range(3)]
    assert summaries(outcomes, OBJECTIVES, "ref")["m"]["accuracy"].difference.p == 1.0


def test_what_cannot_be_compared():
    one = outcome("m", 0, point(0, 1, 0.2, 0.5))
    with pytest.raises(ValueError, match="reference: expected one of m, got 'ref'"):
        summaries([one], OBJECTIVES, "ref")
    other = Outcome("other", 0, (Point(0, 1, 0.2, {"a": np.ones(3), "b": np.ones(3)}),), 1, 1, np.zeros((1, 2)))
    with pytest.raises(ValueError, match="other, seed 0: scored on other instances"):
        summaries([one, other], OBJECTIVES, "m")


@pytest.mark.parametrize("count", [1, 11])
def test_progress_is_drawn(tmp_path, count):
    rows = [np.cumsum(np.full((n, 2), 0.01), axis=0) for n in (5, 9)]
    curves = [Curve(name, rows) for name in ("$\\foo$", "_hidden", *(f"method {i}" for i in range(count)))]
    (legend,) = progress_picture(curves).legends
    assert [text.get_text().strip() for text in legend.get_texts()][:3] == ["\\$\\foo\\$", "_hidden", "method 0"]
    draw_progress(tmp_path / "p.png", curves)
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
