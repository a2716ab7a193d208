"""How well a predictor does on merges that it did not learn from, beside what it has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sae_moo.prediction.correlations import spearman
from sae_moo.prediction.folds import folds_of
from sae_moo.prediction.learned import Learned
from sae_moo.prediction.models import BASELINE
from sae_moo.prediction.predictor import Predictor


@dataclass(frozen=True, slots=True)
class Quality:
    """What cross-validation says of one operator.

    The regression was chosen on the same held-out merges, which flatters it a little.

    Args:
        operator: its name.
        pairs: how many pairs of experts were learned from, whatever their order.
        model: the regression that was chosen.
        correlation: Spearman's rank correlation of prediction and score over held-out merges, mean over tasks; None
            where none could be held out, or nothing varies.
        baseline: that of the main effects, which know only which experts are in a merge; None of two new experts.
        error: root mean square error of the regression on what was held out; None where nothing could be.
        baseline_error: that of the main effects.
    """

    operator: str
    pairs: int
    model: str
    correlation: float | None
    baseline: float | None
    error: float | None
    baseline_error: float | None


def quality(predictor: Predictor, unseen: int = 0) -> list[Quality]:
    """Return what cross-validation says of each operator.

    Args:
        predictor: the predictor.
        unseen: of how many experts of a merge nothing is to be learned: 0, held out are pairs; 1 or 2, experts.
    """
    found = []
    for operator in predictor.operators:
        learned = predictor.training.learned[operator.name]
        effects = Learned(learned.rows, learned.scores, learned.pairs, learned.features, learned.experts, (BASELINE,))
        choice, baseline = (each.choice(unseen, True) for each in (learned, effects))
        found.append(
            Quality(
                operator=operator.name,
                pairs=len({frozenset(pair) for pair in learned.pairs}),
                model=choice.setting.model.name,
                correlation=_correlation(learned, unseen),
                # of two new experts they know nothing: the mean of the others, which is low where the held-out are high
                baseline=None if unseen == 2 else _correlation(effects, unseen),
                error=choice.errors.get(choice.setting.model.name),
                baseline_error=baseline.errors.get(BASELINE.name),
            )
        )
    return found


def mean_of(numbers: Sequence[float | None]) -> float | None:
    """Return the mean of those numbers that are known; None if none is."""
    known = [number for number in numbers if number is not None]
    return float(np.mean(known)) if known else None


def _correlation(learned: Learned, unseen: int) -> float | None:
    """Return the rank correlation of held-out predictions with scores, within tasks, mean over them."""
    choice, folds = learned.choice(unseen, True), folds_of(learned.pairs, unseen)
    if not choice.folds:
        return None
    guesses = np.concatenate(
        [fitted.predict(learned.rows.at(fold.held_out)) for fitted, fold in zip(choice.folds, folds, strict=True)]
    )
    truth = learned.scores[[row for fold in folds for row in fold.held_out]]
    tasks = np.asarray(choice.tasks)
    each = [spearman(guesses[tasks == task], truth[tasks == task]) for task in sorted(set(choice.tasks))]
    return mean_of([None if np.isnan(number) else number for number in each])
