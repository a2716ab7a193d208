"""What is told of a model's scores: means with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sae_moo.objectives import Objective

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


def mean_score(scores: Mapping[str, Score], tasks: Sequence[str]) -> Score:
    """Return the mean score of several tasks, which weigh the same, with its standard error over instances."""
    own = [scores[task] for task in tasks]
    stderr = math.sqrt(sum(each.stderr**2 for each in own)) / len(own)
    return Score(sum(each.score for each in own) / len(own), stderr, sum(each.instances for each in own))


def objective_scores(scores: Mapping[str, Score], objectives: Sequence[Objective]) -> dict[str, Score]:
    """Return the scores of those objectives that are means of several tasks, by name."""
    return {each.name: mean_score(scores, each.tasks) for each in objectives if each.tasks and each.name not in scores}


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
