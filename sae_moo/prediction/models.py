"""Regressions that may predict what merges by one operator score: a row each, and what one learns from rows.

SimMerge says that its predictor is learned from features of pairs, not which one it is (Bolton et al. 2026, arXiv
2601.09473, as far as it is readable to us). These are our reading: ridge regressions and boosted trees, and beside them
what they have to beat: a regression that knows only which experts are in a merge, since how well a model merges is
largely its own property (arXiv 2601.06672), and one that knows only what they score by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sae_moo.prediction.design import EFFECTS, FEATURES, OWN, OWN_SCORES, Centred, Design
from sae_moo.prediction.estimators import boosted, ridge
from sae_moo.prediction.rows import Rows
from sae_moo.prediction.table import Numbers

PENALTIES = (0.3, 3.0, 30.0, 300.0)
"""Of ridge regressions, on columns of unit variance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One kind of regression.

    Args:
        name: what tables call it.
        about: what it is, in a line.
        blocks: the columns it reads: `EFFECTS`, `OWN`, `FEATURES`.
        by_task: whether features and own scores may count differently in each task.
        gain: whether it predicts by how much a merge scores more than its experts do on average, to which their mean is
            added; reads `OWN`.
        penalties: of the ridge regression, to choose among; empty for trees.
        usual: whether it is tried where nobody says which ones are.
    """

    name: str
    about: str
    blocks: frozenset[str]
    by_task: bool = False
    gain: bool = False
    penalties: tuple[float, ...] = PENALTIES
    usual: bool = True

    @property
    def labelled(self) -> bool:
        """Whether it reads what experts score by themselves."""
        return OWN in self.blocks


BASELINE = Model(name="main effects", about="only which experts are in", blocks=frozenset({EFFECTS}))
_ROWS = (
    BASELINE,
    Model(name="own scores", about="only what the experts score", blocks=frozenset({OWN}), by_task=True, gain=True),
    Model(name="features", about="ridge on features", blocks=frozenset({FEATURES})),
    Model(
        name="features by task",
        about="ridge on features that count differently in each task",
        blocks=frozenset({FEATURES}),
        by_task=True,
    ),
    Model(
        name="features and effects",
        about="ridge on features and on which experts are in",
        blocks=frozenset({FEATURES, EFFECTS}),
        by_task=True,
    ),
    Model(
        name="features and own scores",
        about="ridge on features and on what the experts score",
        blocks=frozenset({FEATURES, OWN}),
        by_task=True,
        gain=True,
    ),
    Model(
        name="everything",
        about="ridge on features, on which experts are in and on what they score",
        blocks=frozenset({FEATURES, OWN, EFFECTS}),
        by_task=True,
        gain=True,
    ),
    # On ten experts, trees predict held-out merges worse than ridge regressions and take fifty times as long.
    Model(name="trees", about="boosted trees on features", blocks=frozenset({FEATURES}), penalties=(), usual=False),
    Model(
        name="trees and own scores",
        about="boosted trees on features and on what the experts score",
        blocks=frozenset({FEATURES, OWN}),
        gain=True,
        penalties=(),
        usual=False,
    ),
)
MODELS = {row.name: row for row in _ROWS}
"""Name -> regression."""


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A regression that has learned.

    Args:
        model: which one.
        design: its columns.
        means: of what it predicts, by task.
        coefficients: of a ridge regression, one for each column; None for trees.
        trees: boosted trees; None for a ridge regression.
    """

    model: Model
    design: Design
    means: Centred
    coefficients: Numbers | None
    trees: Any

    def predict(self, rows: Rows, columns: Numbers | None = None) -> Numbers:
        """Return the expected score of each row, in [0, 1]; `columns`: those of the design, if they are at hand."""
        offset = self._reference(rows) + self.means.at(rows.tasks)
        columns = self.design.columns(rows) if columns is None else columns
        if self.coefficients is None:
            return np.clip(offset + self._grown(columns), 0.0, 1.0)
        # Summed row by row, so that a row is predicted the same whatever rows are beside it.
        return np.asarray(np.clip(offset + (columns * self.coefficients).sum(axis=1), 0.0, 1.0))

    def reasons(self, rows: Rows) -> list[dict[str, float]]:
        """Return of each row what speaks for and against it: name -> how much of the score, next to an average row.

        Of a ridge regression these are the terms of its sum: with the task's mean they add up to the score, as far as
        that is in [0, 1]. Of trees it is what the prediction loses when a feature takes its average value, the others
        staying: features that say the same then count little each, and nothing adds up.
        """
        columns = self.design.columns(rows)
        names = list(dict.fromkeys(self.design.names))
        places = {name: [i for i, each in enumerate(self.design.names) if each == name] for name in names}
        if self.coefficients is not None:
            terms = columns * self.coefficients
            totals = {name: terms[:, places[name]].sum(axis=1) for name in names}
        else:
            whole = self._grown(columns)
            totals = {}
            for name in names:
                without = columns.copy()
                without[:, places[name]] = 0.0
                totals[name] = whole - self._grown(without)
        if self.model.gain:
            usual = np.array([self.usual.get(task, np.nan) for task in rows.tasks])
            more = self._reference(rows) - np.where(np.isnan(usual), self._reference(rows), usual)
            totals[OWN_SCORES] = totals.get(OWN_SCORES, np.zeros(len(rows))) + more
        return [{name: float(total[row]) for name, total in totals.items()} for row in range(len(rows))]

    @property
    def usual(self) -> dict[str, float]:
        """Task -> the mean own score of the experts in what was learned from; empty where it is not read."""
        own = self.design.own
        return {} if own is None else {task: float(mean[:2].mean()) for task, mean in own.means.tasks.items()}

    def _grown(self, columns: Numbers) -> Numbers:
        return np.asarray(self.trees.predict(columns)) if columns.shape[1] else np.zeros(len(columns))

    def _reference(self, rows: Rows) -> Numbers:
        return rows.own.mean(axis=1) if self.model.gain else np.zeros(len(rows))


def fit(
    model: Model,
    penalties: Sequence[float],
    rows: Rows,
    scores: Numbers,
    features: Sequence[str],
    experts: Sequence[str],
) -> list[Fitted]:
    """Learn from rows and their scores, once for each penalty; trees once.

    Args:
        model: the regression.
        penalties: of a ridge regression; empty for trees.
        rows: what is known of the merges.
        scores: what they scored, in [0, 1].
        features: names of the columns of `Rows.features`.
        experts: names of the columns of `Rows.first`.

    Raises:
        InputError: if scikit-learn is not installed.
    """
    design = Design.of(rows, model.blocks, model.by_task, features, experts)
    gains = scores - (rows.own.mean(axis=1) if model.gain else 0.0)
    means = Centred.of(rows.tasks, gains)
    columns, targets = design.columns(rows), gains - means.at(rows.tasks)
    if not columns.shape[1]:
        return [Fitted(model, design, means, np.zeros(0), None)] * max(len(penalties), 1)
    if not penalties:
        return [Fitted(model, design, means, None, boosted(columns, targets))]
    return [Fitted(model, design, means, row, None) for row in ridge(columns, targets, penalties)]
