"""Regressions by scikit-learn, which enters here, on first use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sae_moo.prediction.extra import absent
from sae_moo.prediction.table import Numbers

PURPOSE = "learning what merges score"
TREES = {"n_estimators": 150, "max_depth": 3, "learning_rate": 0.05, "subsample": 0.7, "max_features": 0.3}
"""Settings of boosted trees: small steps of shallow trees on a part of rows and features, for a few hundred rows."""
SEED = 0
"""Of the rows and features that a tree sees: the same data give the same trees."""


def release() -> str:
    """Return scikit-learn's version.

    Raises:
        InputError: if it is not installed.
    """
    try:
        import sklearn
    except ImportError as error:
        raise absent("scikit-learn", PURPOSE) from error
    return str(sklearn.__version__)


def ridge(rows: Numbers, targets: Numbers, penalties: Sequence[float]) -> Numbers:
    """Return the coefficients of ridge regressions without intercept, shape (penalties, columns).

    Args:
        rows: shape (rows, columns).
        targets: shape (rows,).
        penalties: on the sum of squared coefficients, above 0; one for each regression.

    Raises:
        InputError: if scikit-learn is not installed.
    """
    try:
        from sklearn.linear_model import ridge_regression
    except ImportError as error:
        raise absent("scikit-learn", PURPOSE) from error
    every = np.repeat(targets[:, None], len(penalties), axis=1)
    return np.atleast_2d(ridge_regression(rows, every, np.asarray(penalties), solver="cholesky", check_input=False))


def boosted(rows: Numbers, targets: Numbers) -> Any:
    """Return gradient-boosted trees, fitted; ``predict`` maps rows to numbers.

    Raises:
        InputError: if scikit-learn is not installed.
    """
    try:
        from sklearn.ensemble import GradientBoostingRegressor
    except ImportError as error:
        raise absent("scikit-learn", PURPOSE) from error
    return GradientBoostingRegressor(random_state=SEED, **TREES).fit(rows, targets)
