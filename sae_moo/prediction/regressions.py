"""Regressions that say how sure they are, by scikit-learn, which enters here on first use.

Each learns from a few hundred rows within tens of milliseconds, and is deterministic: linear algebra is done by one
thread, as the last bits of its sums depend on how many there are, and searches follow from them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, TypeAlias

import numpy as np

from sae_moo.prediction.extra import absent
from sae_moo.prediction.table import Numbers

Answers: TypeAlias = Callable[[Numbers], tuple[Numbers, Numbers]]
"""Maps rows, shape (any, columns), to what is expected of each and the standard deviation of that, shape (any,)."""
PURPOSE = "pre-screening"
TREES = {"n_estimators": 100, "min_samples_leaf": 2, "random_state": 0, "n_jobs": 1}
MOST_FITTED = 240  # rows by which a process chooses its lengths, the newest: that takes as long as all else
MOST_SPLIT = 64  # columns that a split of a tree is chosen among
MOST_SQUARED = 60  # columns; with more their products are not taken, which would be thousands


def process(rows: Numbers, values: Numbers) -> Answers:
    """Return a Gaussian process with one length for all columns (Matérn 5/2) and noise.

    Length, height and noise are those under which the newest values, `MOST_FITTED` of them, are likeliest.

    Args:
        rows: shape (rows, columns), each column of mean 0 and deviation 1, or constant.
        values: shape (rows,), likewise.

    Raises:
        InputError: if scikit-learn is not installed.
    """
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
    except ImportError as error:
        raise absent("scikit-learn", PURPOSE) from error
    length = float(np.sqrt(max(rows.shape[1], 1)))  # how far rows are apart
    kernel = ConstantKernel(1.0, (1e-2, 1e3)) * Matern(length, (0.1 * length, 30.0 * length), nu=2.5)
    kernel += WhiteKernel(0.05, (1e-5, 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a length at its bound is as good as any
        with one_thread():
            fitted = GaussianProcessRegressor(kernel).fit(rows[-MOST_FITTED:], values[-MOST_FITTED:])
            if len(rows) > MOST_FITTED:
                fitted = GaussianProcessRegressor(fitted.kernel_, optimizer=None).fit(rows, values)
    return _answers(fitted)


def ridge(rows: Numbers, values: Numbers) -> Answers:
    """Return a Bayesian ridge regression on columns, their squares and products; see `process`."""
    try:
        from sklearn.linear_model import BayesianRidge
    except ImportError as error:
        raise absent("scikit-learn", PURPOSE) from error
    with one_thread():
        fitted = BayesianRidge().fit(_squared(rows), values)
    said = _answers(fitted)
    return lambda asked: said(_squared(asked))


def trees(rows: Numbers, values: Numbers) -> Answers:
    """Return extremely randomized trees, whose disagreement is the spread; see `process`."""
    try:
        from sklearn.ensemble import ExtraTreesRegressor
    except ImportError as error:
        raise absent("scikit-learn", PURPOSE) from error
    fitted = ExtraTreesRegressor(max_features=max(1, min(rows.shape[1], MOST_SPLIT)), **TREES).fit(rows, values)

    def answers(asked: Numbers) -> tuple[Numbers, Numbers]:
        rows = asked.astype(np.float32)
        said = np.array([tree.tree_.predict(rows)[:, 0] for tree in fitted.estimators_])
        return said.mean(axis=0), said.std(axis=0)

    return answers


def one_thread() -> AbstractContextManager[Any]:
    """Let one thread do the linear algebra of numpy and scipy within a context, however many there are usually."""
    limited: AbstractContextManager[Any] = _libraries().limit(limits=1, user_api="blas")
    return limited


@cache
def _libraries() -> Any:
    from threadpoolctl import ThreadpoolController  # scikit-learn brings it

    return ThreadpoolController()


def _answers(fitted: Any) -> Answers:
    def answers(asked: Numbers) -> tuple[Numbers, Numbers]:
        with one_thread():
            means, spreads = fitted.predict(asked, return_std=True)
        return means, spreads

    return answers


def _squared(rows: Numbers) -> Numbers:
    """Return columns, and their products where these are not too many."""
    count = rows.shape[1]
    if count > MOST_SQUARED:
        return rows
    first, second = np.triu_indices(count)
    return np.hstack([rows, rows[:, first] * rows[:, second]])


REGRESSIONS: Mapping[str, Callable[[Numbers, Numbers], Answers]] = {
    "process": process,
    "ridge": ridge,
    "trees": trees,
}
"""The regressions by name."""
