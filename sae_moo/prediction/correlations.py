"""What each feature says by itself: its rank correlation with what merges score."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from sae_moo.prediction.observations import Observation, own_scores
from sae_moo.prediction.rows import Asked, feature_names, rows_of, side_of
from sae_moo.prediction.table import FeatureTable
from sae_moo.prediction.training import pair_scores
from sae_moo.recipe.operators import Operator


@dataclass(frozen=True, slots=True)
class Correlation:
    """How a feature goes with what merges score.

    Args:
        operator: its name.
        task: the task.
        feature: the feature; of a symmetric operator, its mean over both orders, or the difference between them.
        score: Spearman's rank correlation with the score, in [-1, 1]; NaN where either does not vary.
        gain: the same with the score less the mean of what the two score by themselves; NaN where that is not known.
        pairs: over how many pairs, those whose feature is missing left out.
    """

    operator: str
    task: str
    feature: str
    score: float
    gain: float
    pairs: int


def correlations(
    table: FeatureTable, observations: Iterable[Observation], operators: Sequence[Operator]
) -> list[Correlation]:
    """Return the correlation of every feature with what merges of two score, for each operator and task.

    Pairs share experts and are not independent: there are no p-values for that.

    Args:
        table: the features.
        observations: what merges scored, and experts by themselves.
        operators: of the merges.

    Raises:
        InputError: if an observed pair has no features.
    """
    observed = list(observations)
    own = own_scores(observed)
    found = []
    for operator in operators:
        scores = pair_scores([each for each in observed if each.operator == operator.name], operator.symmetric)
        names = feature_names(table.names, operator.symmetric)
        for task in sorted({task for _, _, task in scores}):
            keys = [key for key in scores if key[2] == task]
            asked = [Asked(side_of(one, own, (task,)), side_of(two, own, (task,)), task) for one, two, _ in keys]
            rows = rows_of(asked, table, table.names, {}, 0, operator.symmetric)
            truth = np.array([scores[key] for key in keys])
            gain = truth - rows.own.mean(axis=1)
            for name, column in zip(names, rows.features.T, strict=True):
                known = ~np.isnan(column)
                by_score, by_gain = spearman(column[known], truth[known]), spearman(column[known], gain[known])
                found.append(Correlation(operator.name, task, name, by_score, by_gain, int(known.sum())))
    return found


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """Return Spearman's rank correlation, ties at their mean rank; NaN for fewer than three, constant or NaN ones."""
    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if len(one) < 3 or np.isnan(one).any() or np.isnan(other).any():
        return math.nan
    ranks, others = rankdata(one) - (len(one) + 1) / 2, rankdata(other) - (len(one) + 1) / 2
    scale = math.sqrt(float(ranks @ ranks) * float(others @ others))
    return float(ranks @ others) / scale if scale else math.nan


@dataclass(frozen=True, slots=True)
class Tendency:
    """How a feature goes with scores and gains: the mean of its rank correlations over operators and tasks.

    Args:
        feature: the feature.
        score: with the score; NaN where it is known for no operator and task.
        gain: with the gain; likewise.
    """

    feature: str
    score: float
    gain: float


def tendencies(found: Iterable[Correlation]) -> list[Tendency]:
    """Return the mean correlations of each feature, those that go with the score most first, either way."""
    several: dict[str, list[Correlation]] = {}
    for each in found:
        several.setdefault(each.feature, []).append(each)
    means = [
        Tendency(name, _mean([each.score for each in same]), _mean([each.gain for each in same]))
        for name, same in several.items()
    ]
    return sorted(means, key=lambda each: (math.isnan(each.score), -abs(each.score), each.feature))


def _mean(numbers: Sequence[float]) -> float:
    known = [number for number in numbers if not math.isnan(number)]
    return float(np.mean(known)) if known else math.nan
