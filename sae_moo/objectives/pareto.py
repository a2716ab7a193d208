"""Pareto dominance and hypervolume. Every objective is maximized here, as the user reads it."""

from __future__ import annotations

import moocore
import numpy as np
from numpy.typing import NDArray


def non_dominated(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Mark the points that no other point dominates.

    Args:
        values: shape (points, objectives), larger is better, no NaN.

    Returns:
        Mask of shape (points,). Of equal points all are kept.

    Raises:
        ValueError: for another shape or NaN.
    """
    values = _checked(values)
    if len(values) == 0:
        return np.zeros(0, dtype=np.bool_)
    return np.asarray(moocore.is_nondominated(values, maximise=True, keep_weakly=True), dtype=np.bool_)


def hypervolume(values: NDArray[np.float64]) -> float:
    """Return the volume that the points dominate above the origin; 0.0 for no points.

    Args:
        values: shape (points, objectives), larger is better, no NaN. With objectives in [0, 1] the result is in [0, 1].
    """
    values = _checked(values)
    if len(values) == 0:
        return 0.0
    return float(moocore.hypervolume(values, ref=np.zeros(values.shape[1]), maximise=True))


def _checked(values: NDArray[np.float64]) -> NDArray[np.float64]:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2:
        raise ValueError(f"values: expected shape (points, objectives), got {values.shape}")
    if np.isnan(values).any():
        raise ValueError("values: expected no NaN; a failed evaluation has no place among points")
    return values
