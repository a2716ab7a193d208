from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sae_moo.explore.decide import significance
from sae_moo.explore.decide.significance import paired


def binary(won: int, lost: int, n: int) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Two models that differ on so many of n instances."""
    return {"a": [1] * won + [0] * (n - won)}, {"a": [0] * won + [1] * lost + [0] * (n - won - lost)}


@pytest.mark.parametrize(("won", "lost"), [(1, 0), (4, 0), (10, 3), (3, 10), (30, 12), (300, 260)])
def test_one_task_of_zeros_and_ones_is_mcnemars_exact_test(won, lost):
    found = paired(*binary(won, lost, 1000), ["a"])
    assert found.p == pytest.approx(stats.binomtest(won, won + lost).pvalue)
    assert (found.won, found.lost) == (won, lost)
    assert found.mean == pytest.approx((won - lost) / 1000)


def test_one_task_has_the_interval_of_the_paired_t_test():
    rng = np.random.default_rng(0)
    x, y = rng.random(50), rng.random(50)
    found, expected = paired({"a": x}, {"a": y}, ["a"]), stats.ttest_rel(x, y)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert found.stderr == pytest.approx(stats.sem(x - y))
    assert found.p == pytest.approx(expected.pvalue, abs=0.02)


def test_tasks_weigh_the_same_however_many_instances_they_have():
    model = {"a": [1, 1, 0, 0], "b": [0.5] * 100}
    other = {"a": [0, 0, 0, 0], "b": [0.5] * 100}
    found = paired(model, other, ["a", "b"])
    assert found.mean == pytest.approx(0.25)
    assert found.stderr == pytest.approx(stats.sem([1, 1, 0, 0]) / 2)
    assert paired(other, model, ["a", "b"]).mean == -found.mean
    assert paired(model, other, ["b"]).mean == 0


def test_tasks_may_count_differently():
    rng = np.random.default_rng(3)
    model, other = ({task: rng.random(12 + i) for i, task in enumerate("ab")} for _ in range(2))
    found = paired(model, other, ["a", "b"], [0.25, 0.75])
    gaps = [np.array(model[task]) - np.array(other[task]) for task in "ab"]
    assert found.mean == pytest.approx(0.25 * gaps[0].mean() + 0.75 * gaps[1].mean())
    assert found.stderr == pytest.approx(np.hypot(0.25 * stats.sem(gaps[0]), 0.75 * stats.sem(gaps[1])))
    assert paired(model, other, ["a", "b"], [0.5, 0.5]) == paired(model, other, ["a", "b"])
    nearly, alone = paired(model, other, ["a", "b"], [1e-9, 1 - 1e-9]), paired(model, other, ["b"])
    assert (nearly.mean, nearly.low, nearly.p) == (
        pytest.approx(alone.mean),
        pytest.approx(alone.low, abs=1e-6),
        pytest.approx(alone.p, abs=0.02),
    )


def test_verdicts():
    assert paired({"a": [1, 0]}, {"a": [1, 0]}, ["a"]).verdict == "equal on all 2 items"
    assert paired({"a": [1], "b": [0, 1]}, {"a": [1], "b": [0, 1]}, ["a", "b"]).verdict == "equal on all 3 items"
    swapped = paired({"a": [1, 0]}, {"a": [0, 1]}, ["a"])
    assert swapped.verdict.endswith("] p=1.000, not significant"), "as good, and not equal"
    assert paired({"a": [1.0]}, {"a": [0.0]}, ["a"]).verdict == "p=1.000, not significant"
    model, other = binary(50, 10, 100)
    assert paired(model, other, ["a"]).verdict == "[+0.268, +0.532] p<0.001, significant"


def test_models_that_are_alike():
    found = paired({"a": [1, 0]}, {"a": [1, 0]}, ["a"])
    assert (found.mean, found.low, found.high, found.p, found.significant) == (0, 0, 0, 1, False)


def test_a_single_instance_has_no_error():
    found = paired({"a": [1.0]}, {"a": [0.0]}, ["a"])
    assert math.isnan(found.stderr)
    assert math.isnan(found.low)
    assert found.p == 1.0


def draws(rng, shares: list[tuple[float, float]]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    return tuple(  # type: ignore[return-value]
        {str(i): (rng.random(100) < pair[side]).astype(float) for i, pair in enumerate(shares)} for side in (0, 1)
    )


def test_what_one_task_gains_and_another_loses_is_no_noise():
    rng = np.random.default_rng(0)
    model, other = draws(rng, [(0.99, 0.01), (0.1, 0.9)])
    found = paired(model, other, ["0", "1"])
    assert found.significant == (found.low > 0)
    assert found.significant, "four standard errors apart"


@pytest.mark.parametrize("shares", [[(0.5, 0.5), (0.3, 0.3)], [(0.2, 0.8), (0.8, 0.2)]])
def test_chance_is_called_significant_as_often_as_said(shares, monkeypatch):
    monkeypatch.setattr(significance, "DRAWS", 1000)
    rng = np.random.default_rng(1)
    found = [paired(*draws(rng, shares), ["0", "1"]).significant for _ in range(300)]
    assert 0.02 <= np.mean(found) <= 0.09


def test_random_signs_agree_with_all_of_them(monkeypatch):
    rng = np.random.default_rng(2)
    model = {"a": np.round(rng.random(30), 1), "b": (rng.random(40) < 0.6).astype(float)}
    other = {"a": np.round(rng.random(30), 1), "b": (rng.random(40) < 0.4).astype(float)}
    monkeypatch.setattr(significance, "EXACT", 0)
    drawn = paired(model, other, ["b"])
    assert paired(model, other, ["b"]).p == drawn.p, "the seed is owned"
    monkeypatch.undo()
    assert paired(model, other, ["b"]).p == pytest.approx(drawn.p, abs=0.02)


def test_other_instances_are_refused():
    with pytest.raises(ValueError, match="task a: expected scores on the same instances"):
        paired({"a": [1, 0]}, {"a": [1]}, ["a"])
