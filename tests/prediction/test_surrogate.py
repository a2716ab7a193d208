"""Surrogates."""

from __future__ import annotations

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from sae_moo.prediction import regressions
from sae_moo.prediction.regressions import REGRESSIONS
from sae_moo.prediction.surrogate import Surrogate


@pytest.fixture(scope="module")
def known():
    rng = np.random.default_rng(0)
    rows = rng.uniform(-1.0, 1.0, (72, 4))
    return rows, 0.5 - 0.2 * (rows[:, 0] - 0.3) ** 2 + 0.05 * rows[:, 1] + rng.normal(0.0, 0.005, 72)


@pytest.mark.parametrize("name", REGRESSIONS)
def test_each_regression_learns_and_its_spreads_are_corrected(known, name):
    rows, values = known
    surrogate = Surrogate(rows[:60], values[:60], 12, (name,))
    means, spreads = surrogate(rows[60:])
    assert np.corrcoef(means, values[60:])[0, 1] > 0.9
    assert 0.3 < np.sqrt((((values[60:] - means) / spreads) ** 2).mean()) < 3.0
    again = Surrogate(rows[:60], values[:60], 12, (name,))(rows[60:])
    np.testing.assert_array_equal((means, spreads), again)


def test_the_likeliest_is_chosen_and_the_best_two_together_are_tried(known, monkeypatch):
    rows, values = known
    blind = (np.zeros, np.ones)
    monkeypatch.setitem(
        regressions.REGRESSIONS, "blind", lambda a, b: lambda asked: tuple(f(len(asked)) for f in blind)
    )
    surrogate = Surrogate(rows, values, 12, ("blind", "process", "ridge"))
    assert "blind" not in surrogate.names
    assert surrogate.evidence.keys() > {("blind",), ("process",), ("ridge",)}
    assert surrogate.evidence[surrogate.names] == max(surrogate.evidence.values())
    assert any(len(names) == 2 for names in surrogate.evidence)


def test_a_regression_that_is_too_sure_of_itself_is_corrected(known, monkeypatch):
    rows, values = known
    sure = (np.zeros, lambda count: np.full(count, 0.4))
    monkeypatch.setitem(regressions.REGRESSIONS, "sure", lambda a, b: lambda asked: tuple(f(len(asked)) for f in sure))
    surrogate = Surrogate(rows, values, 12, ("sure",))
    assert 1.5 < surrogate.factor < 4.0
    assert surrogate(rows[:1])[1] == pytest.approx([0.4 * surrogate.factor * values.std()])


def test_with_too_little_to_choose_by_the_first_answers(known):
    rows, values = known
    surrogate = Surrogate(rows[:20], values[:20], 12)
    assert surrogate.names == ("process",)
    assert surrogate.evidence == {}


def test_what_never_differs_is_known(known):
    surrogate = Surrogate(known[0], np.full(72, 0.25), 12)
    assert [each.tolist() for each in surrogate(known[0][:2])] == [[0.25, 0.25], [0.0, 0.0]]


def test_values_and_rows_are_as_many(known):
    with pytest.raises(ValueError, match="expected as many values as rows, and one at least, got 71 and 72"):
        Surrogate(known[0], known[1][1:], 12)


@pytest.mark.parametrize("name", REGRESSIONS)
def test_what_is_learned_does_not_depend_on_how_many_threads_there_are(name):
    rng = np.random.default_rng(0)
    rows, asked = rng.standard_normal((200, 18)), rng.standard_normal((40, 18))
    values = rows @ rng.standard_normal(18)

    def said(threads):
        with threadpool_limits(threads, user_api="blas"):
            return np.stack(REGRESSIONS[name](rows, values / values.std())(asked)).tobytes()

    assert len({said(threads) for threads in (1, 2, 3)}) == 1
