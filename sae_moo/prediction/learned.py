"""What was learned of one operator: which regression predicts merges of experts that are known, and of others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sae_moo.prediction.conformal import cross_validated
from sae_moo.prediction.folds import folds_of
from sae_moo.prediction.models import Fitted, Model, fit
from sae_moo.prediction.rows import Rows
from sae_moo.prediction.table import Numbers

OWN_TASK = 2.0
"""Intervals of a task go by its own errors where they are this many times as many as the least that can tell."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A regression with its penalty; what is chosen among.

    Args:
        model: the regression.
        penalty: of a ridge regression; None for trees.
    """

    model: Model
    penalty: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """The regression that predicted held-out merges best, and how it did.

    Args:
        setting: which one.
        errors: model name -> root mean square error of its best penalty on what was held out; empty if too few merges
            were observed to hold any out in this way.
        fitted: learned from all merges.
        folds: learned without each fold.
        fold: of each held-out row, which of `folds` predicted it.
        misses: of each, the absolute error.
        tasks: of each.
    """

    setting: Setting
    errors: dict[str, float]
    fitted: Fitted
    folds: tuple[Fitted, ...]
    fold: tuple[int, ...]
    misses: Numbers
    tasks: tuple[str, ...]

    def interval(self, rows: Rows, confidence: float) -> tuple[Numbers, Numbers]:
        """Return the ends of the intervals around the predictions of rows; infinite where too little is known."""
        low, high = np.full(len(rows), -np.inf), np.full(len(rows), np.inf)
        if not self.folds:
            return low, high
        each = np.stack([fold.predict(rows) for fold in self.folds], axis=1)
        of = np.asarray(self.fold)
        enough = OWN_TASK / (1.0 - confidence)
        for task in dict.fromkeys(rows.tasks):
            places = [row for row, other in enumerate(rows.tasks) if other == task]
            same = [row for row, other in enumerate(self.tasks) if other == task]
            held = np.asarray(same if len(same) >= enough else range(len(self.tasks)))
            low[places], high[places] = cross_validated(each[np.ix_(places, of[held])], self.misses[held], confidence)
        return low, high


class Learned:
    """All that is learned of one operator, each part when it is first asked for.

    Args:
        rows: the observed merges.
        scores: what they scored.
        pairs: who was merged.
        features: names of the columns of `Rows.features`.
        experts: names of the columns of `Rows.first`.
        models: the regressions to choose among.

    Attributes:
        seen: the experts in the observed merges.
        labelled: whether what all of these score by themselves is known.
    """

    def __init__(
        self,
        rows: Rows,
        scores: Numbers,
        pairs: Sequence[tuple[str, str]],
        features: Sequence[str],
        experts: Sequence[str],
        models: Sequence[Model],
    ) -> None:
        self.rows, self.scores, self.pairs = rows, scores, tuple(pairs)
        self.features, self.experts = tuple(features), tuple(experts)
        self.seen = frozenset(name for pair in pairs for name in pair)
        self.labelled = not bool(np.isnan(rows.own).any())
        self._models = tuple(model for model in models if self.labelled or not model.labelled)
        self._choices: dict[tuple[int, bool], Choice] = {}

    def choice(self, unseen: int, labelled: bool) -> Choice:
        """Return the regression for merges of which a number of experts is unseen.

        Args:
            unseen: 0, 1 or 2.
            labelled: whether what the experts score by themselves is known.
        """
        labelled = labelled and self.labelled
        key = (unseen, labelled)
        if key not in self._choices:
            self._choices[key] = self._chosen(unseen, labelled)
        return self._choices[key]

    def _fit(self, model: Model, penalties: Sequence[float], places: Sequence[int]) -> list[Fitted]:
        rows, scores = self.rows.at(places), self.scores[np.asarray(places, dtype=np.int64)]
        return fit(model, penalties, rows, scores, self.features, self.experts)

    def _of_all(self, setting: Setting) -> Fitted:
        penalties = () if setting.penalty is None else (setting.penalty,)
        return self._fit(setting.model, penalties, range(len(self.pairs)))[0]

    def _chosen(self, unseen: int, labelled: bool) -> Choice:
        models = [model for model in self._models if labelled or not model.labelled]
        folds = folds_of(self.pairs, unseen)
        if not folds:
            # Which regression is best cannot be seen; that for one unseen expert less is the nearest to it.
            usual = Setting(models[0], max(models[0].penalties, default=None))
            setting = self.choice(unseen - 1, labelled).setting if unseen else usual
            return Choice(setting, {}, self._of_all(setting), (), (), np.empty(0), ())
        held = [row for fold in folds for row in fold.held_out]
        truth = self.scores[np.asarray(held)]
        best: tuple[float, Setting, list[Fitted], Numbers] | None = None
        errors: dict[str, float] = {}
        for model in models:
            fitted = [self._fit(model, model.penalties, fold.learned) for fold in folds]
            asked = [self.rows.at(fold.held_out) for fold in folds]
            columns = [each[0].design.columns(rows) for each, rows in zip(fitted, asked, strict=True)]
            for place, penalty in enumerate(model.penalties or (None,)):
                these = [each[place] for each in fitted]
                guesses = [each.predict(rows, of) for each, rows, of in zip(these, asked, columns, strict=True)]
                misses = np.abs(np.concatenate(guesses) - truth)
                error = float(np.sqrt(np.mean(misses**2)))
                errors[model.name] = min(error, errors.get(model.name, np.inf))
                if best is None or error < best[0]:
                    best = (error, Setting(model, penalty), these, misses)
        assert best is not None  # there is always a regression without labels
        _, setting, chosen, misses = best
        fold_of = tuple(place for place, fold in enumerate(folds) for _ in fold.held_out)
        tasks = tuple(self.rows.tasks[row] for row in held)
        return Choice(setting, errors, self._of_all(setting), tuple(chosen), fold_of, misses, tasks)
