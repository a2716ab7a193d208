"""Intervals that hold a share of merges without assuming how errors are distributed."""

from __future__ import annotations

import math

import numpy as np

from sae_moo.prediction.table import Numbers


def cross_validated(predicted: Numbers, errors: Numbers, confidence: float) -> tuple[Numbers, Numbers]:
    """Return the CV+ interval of new rows (Barber et al. 2021, eq. 11; jackknife+ where each fold is a row).

    If rows are exchangeable, it holds at least ``2 confidence - 1`` of new ones whatever the regression is, up to what
    the finite folds cost, and about `confidence` of them for a stable one (ibid., theorem 4).

    Args:
        predicted: shape (new rows, held-out rows): what the regression that was learned without the fold of each
            held-out row predicts of each new one.
        errors: absolute errors of the held-out rows, predicted by the same regressions; shape (held-out rows,).
        confidence: share of rows to hold, in (0, 1).

    Returns:
        Lower and upper ends, shape (new rows,); infinite where there are too few held-out rows to tell.
    """
    return (
        -_quantile(errors - predicted, confidence),
        _quantile(predicted + errors, confidence),
    )


def _quantile(values: Numbers, confidence: float) -> Numbers:
    """Return of each row of values the smallest that a new one exceeds in at most ``1 - confidence`` of the cases."""
    count = values.shape[1]
    rank = math.ceil(round(confidence * (count + 1), 9))  # 0.9 * 10 is a little more than 9 in floating point
    if rank > count:
        return np.full(len(values), np.inf)
    return np.partition(values, rank - 1, axis=1)[:, rank - 1]
