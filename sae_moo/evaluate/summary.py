"""What is told of a model's scores: means with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Scores = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Score:
    """A task's mean score with its standard error (NaN for one instance) over a number of instances."""

    score: float
    stderr: float
    instances: int


def summary(scores: Scores) -> dict[str, Score]:
    """Return the mean, standard error and number of instances of every task."""
    return {
        task: Score(
            float(row.mean()), float(row.std(ddof=1) / math.sqrt(len(row))) if len(row) > 1 else math.nan, len(row)
        )
        for task, row in scores.items()
    }
