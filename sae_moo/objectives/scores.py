"""Scores of a model's answers: which instances were asked, and means with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Split = Literal["search", "test"]
SPLITS: tuple[Split, ...] = ("search", "test")
DIGIT_ZERO = np.uint8(ord("0"))
SEQUENTIAL = 8
"""Numbers of which numpy adds up fewer one after another; `sum` does not in every Python."""
Scores: TypeAlias = Mapping[str, NDArray[np.float64]]
"""Task name -> score per instance."""


def mean(row: NDArray[np.float64] | Sequence[float]) -> float:
    """Return the mean of scores, one per instance."""
    if isinstance(row, list) and len(row) < SEQUENTIAL and set(map(type, row)) == {float}:
        return reduce(add, row, 0.0) / len(row)
    return float(np.mean(row))


def stderr(row: NDArray[np.float64] | Sequence[float]) -> float:
    """Return the standard error of the mean of scores, one per instance; NaN for a single one."""
    scores = np.asarray(row, dtype=np.float64)
    return float(scores.std(ddof=1) / math.sqrt(len(scores))) if len(scores) > 1 else math.nan


def statistics(rows: NDArray[np.float64]) -> tuple[list[float], list[float]]:
    """Return the `mean` and the `stderr` of every row of scores, the very numbers; shape (rows, instances)."""
    count = rows.shape[1]
    middle = np.add.reduce(rows, axis=1, keepdims=True) / count
    means: list[float] = middle[:, 0].tolist()
    if count < 2:
        return means, [math.nan] * len(rows)
    apart = rows - middle
    variance = np.add.reduce(np.multiply(apart, apart, out=apart), axis=1) / (count - 1)
    errors: list[float] = (np.sqrt(variance) / math.sqrt(count)).tolist()
    return means, errors


@dataclass(frozen=True, slots=True)
class Score:
    """A task's mean score with its standard error (NaN for one instance) over a number of instances."""

    score: float
    stderr: float
    instances: int


def task_scores(scores: Mapping[str, NDArray[np.float64] | Sequence[float]]) -> dict[str, Score]:
    """Return the mean, standard error and number of instances of every task, from its score per instance."""
    return {task: Score(mean(row), stderr(row), len(row)) for task, row in scores.items()}


def mean_score(scores: Mapping[str, Score], tasks: Sequence[str]) -> Score:
    """Return the mean score of several tasks, which weigh the same, with its standard error over instances."""
    several = [scores[task] for task in tasks]
    return Score(
        mean([each.score for each in several]),
        mean_stderr([each.stderr for each in several]),
        sum(each.instances for each in several),
    )


def mean_stderr(errors: Sequence[float]) -> float:
    """Return the standard error of a mean of independent quantities from theirs."""
    return math.sqrt(sum(error**2 for error in errors)) / len(errors)


@dataclass(frozen=True, slots=True)
class Optimism:
    """The score on the search split minus that on the test split, with its standard error (NaN as in `Score`).

    What a search chose by its scores tends to score lower anew: its luck in the search split was part of the choice.
    The splits share no instance, so that the variances add; the difference also holds how much harder one split is.
    """

    mean: float
    stderr: float


def optimism(search: Score, test: Score) -> Optimism:
    """Return by how much the search split flatters a model."""
    return Optimism(search.score - test.score, math.hypot(search.stderr, test.stderr))


def packed(row: Sequence[float]) -> str | list[float]:
    """Write scores that are all 0 or 1 as a text of digits, others as they are."""
    if not set(row) <= {0.0, 1.0}:
        return list(row)
    return "".join(["1" if score else "0" for score in row])


def unpacked(row: str | Sequence[float]) -> tuple[float, ...]:
    """Return what `packed` was given."""
    if not isinstance(row, str):
        return tuple(row)
    return tuple((np.frombuffer(row.encode("ascii"), np.uint8) - float(DIGIT_ZERO)).tolist())
