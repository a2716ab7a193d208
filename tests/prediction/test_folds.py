"""Folds hold out what they say, and intervals made of them hold what they are to hold."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from sae_moo.prediction.conformal import cross_validated
from sae_moo.prediction.folds import COUPLES, FEWEST_PAIRS, PAIR_FOLDS, folds_of

PAIRS = [pair for pair in permutations("abcdefg", 2) for _ in range(2)]  # two tasks


def couples(places, pairs=PAIRS):
    return {frozenset(pairs[place]) for place in places}


@pytest.mark.parametrize("unseen", [0, 1, 2])
def test_nothing_is_learned_of_as_many_experts_of_what_is_held_out_as_is_said(unseen):
    folds = folds_of(PAIRS, unseen)
    for fold in folds:
        learned = {name for place in fold.learned for name in PAIRS[place]}
        assert {len({*PAIRS[place]} - learned) for place in fold.held_out} == {unseen}
        assert not couples(fold.learned) & couples(fold.held_out)
        assert len(couples(fold.learned)) >= FEWEST_PAIRS
        orders = {(PAIRS[place], place % 2) for place in fold.held_out}
        assert {(pair[::-1], task) for pair, task in orders} == orders
    held = sorted(place for fold in folds for place in fold.held_out)
    assert (len(folds), len(held), len(set(held))) == {
        0: (PAIR_FOLDS, len(PAIRS), len(PAIRS)),
        1: (7, 2 * len(PAIRS), len(PAIRS)),
        2: (COUPLES, 4 * COUPLES, 4 * COUPLES),
    }[unseen]


@pytest.mark.parametrize("unseen", [0, 1, 2])
def test_folds_are_the_same_in_whatever_order_the_rows_come(unseen):
    order = np.random.default_rng(0).permutation(len(PAIRS))
    turned = [PAIRS[place] for place in order]
    usual, other = folds_of(PAIRS, unseen), folds_of(turned, unseen)
    assert [couples(each.held_out) for each in usual] == [couples(each.held_out, turned) for each in other]


def test_nothing_is_held_out_where_too_little_would_be_learned_of():
    assert [len(folds_of([*permutations("abc", 2)], unseen)) for unseen in (0, 1, 2)] == [0, 0, 0]
    four = [*permutations("abcd", 2)]
    assert [len(folds_of(four, unseen)) for unseen in (0, 1, 2)] == [6, 0, 0]


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.9])
def test_intervals_hold_their_share_of_exchangeable_rows(confidence):
    rng = np.random.default_rng(1)
    held = []
    for _ in range(400):
        rows, fold = rng.standard_cauchy(41), np.arange(40) % 5  # no moments: nothing but exchangeability helps
        without = np.array([np.median(rows[:40][fold != each]) for each in range(5)])
        predicted = without[fold]
        low, high = cross_validated(predicted[None, :], np.abs(rows[:40] - predicted), confidence)
        held.append(low[0] <= rows[40] <= high[0])
    assert confidence - 0.03 < np.mean(held) < confidence + 0.06


def test_an_interval_of_one_fold_is_the_prediction_and_the_quantile_of_errors_either_way():
    errors = np.array([0.4, 0.1, 0.2, 0.3, 0.9, 0.8, 0.7, 0.6, 0.5])
    low, high = cross_validated(np.full((2, 9), [[0.0], [1.0]]), errors, 0.8)
    assert np.allclose([low, high], [[-0.8, 0.2], [0.8, 1.8]])
    assert np.isinf(cross_validated(np.zeros((1, 8)), errors[:8], 0.9)).all()
    assert np.allclose(cross_validated(np.zeros((1, 9)), errors, 0.9)[1], 0.9)
