"""A stand-in for an evaluation: what one number of a candidate will be, learned from those that were evaluated.

Which regression it is, and how much its own word for its spread is worth, is learned from how it would have done: each
predicts the newest lots of candidates from those before them, as it will be asked to. Chosen is the one under which
what came was likeliest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sae_moo.prediction.regressions import REGRESSIONS, Answers
from sae_moo.prediction.table import Numbers

LOTS = 3  # how many of the newest are predicted
LEAST = 12  # rows that something is learned from
FACTORS = (0.5, 4.0)  # how far spreads are corrected
SMALLEST = 1e-3  # spread that a regression is believed, as a share of the deviation of all values


class Surrogate:
    """Predicts one number of candidates; a value.

    Args:
        rows: the candidates that it learns from, in the order they were evaluated, shape (rows, columns).
        values: their numbers, shape (rows,); finite.
        lot: how many rows a lot has: that many candidates are chosen at once.
        names: the regressions that are tried, of `REGRESSIONS`; the first where there is too little to choose by.

    Attributes:
        names: the regressions that answer: the best one, or the best two, which then count the same.
        factor: what their own spreads are multiplied by, for they were as much too small.
        evidence: regressions -> mean log density of the values of the newest lots, spreads corrected; of numbers with
            mean 0 and deviation 1. Empty where there is too little to choose by.
    """

    def __init__(self, rows: Numbers, values: Numbers, lot: int, names: Sequence[str] = tuple(REGRESSIONS)) -> None:
        if len(rows) != len(values) or not len(rows):
            raise ValueError(f"expected as many values as rows, and one at least, got {len(values)} and {len(rows)}")
        self._mean, self._scale = float(values.mean()), float(values.std())
        self._centre, deviation = rows.mean(axis=0), rows.std(axis=0)
        self._widths = np.where(deviation > 1e-12, deviation, 1.0)
        self.names, self.factor = tuple(names[:1]), 1.0
        self.evidence: dict[tuple[str, ...], float] = {}
        self._answers: list[Answers] = []
        if self._scale < 1e-12:
            return
        known, targets = self._standing(rows), (values - self._mean) / self._scale
        self._choose(known, targets, lot, names)
        self._answers = [REGRESSIONS[name](known, targets) for name in self.names]

    def __call__(self, rows: Numbers) -> tuple[Numbers, Numbers]:
        """Return what is expected of candidates, and the standard deviation of that, shape (rows,) each."""
        if not self._answers:
            return np.full(len(rows), self._mean), np.zeros(len(rows))
        means, spreads = _together([answers(self._standing(rows)) for answers in self._answers])
        return self._mean + self._scale * means, self._scale * self.factor * spreads

    def _standing(self, rows: Numbers) -> Numbers:
        found: Numbers = (rows - self._centre) / self._widths
        return found

    def _choose(self, rows: Numbers, targets: Numbers, lot: int, names: Sequence[str]) -> None:
        ends = list(range(len(rows) - lot, LEAST - 1, -lot))[:LOTS]
        if not ends:
            return
        truth = np.concatenate([targets[end : end + lot] for end in ends])
        said: dict[tuple[str, ...], tuple[Numbers, ...]] = {}
        for name in names:
            lots = [REGRESSIONS[name](rows[:end], targets[:end])(rows[end : end + lot]) for end in ends]
            said[(name,)] = tuple(np.concatenate(parts) for parts in zip(*lots, strict=True))
        factors = {key: self._weigh(key, truth, _together([said[key]])) for key in said}
        first, *second = sorted(said, key=lambda key: -self.evidence[key])[:2]
        if second:
            both = (*first, *second[0])
            factors[both] = self._weigh(both, truth, _together([said[first], said[second[0]]]))
        self.names = max(self.evidence, key=lambda key: self.evidence[key])
        self.factor = factors[self.names]

    def _weigh(self, key: tuple[str, ...], truth: Numbers, said: tuple[Numbers, Numbers]) -> float:
        """Note the evidence for regressions by what they said of known values; return the factor of their spreads."""
        errors, spreads = truth - said[0], said[1]
        factor = float(np.clip(np.sqrt(((errors / spreads) ** 2).mean()), *FACTORS))
        z = errors / (factor * spreads)
        self.evidence[key] = float((-0.5 * z**2 - np.log(factor * spreads) - 0.5 * np.log(2.0 * np.pi)).mean())
        return factor


def _together(answers: Sequence[tuple[Numbers, ...]]) -> tuple[Numbers, Numbers]:
    """Return mean and deviation of the mixture of answers, which count the same; spreads are not below `SMALLEST`."""
    means, spreads = np.stack([each[0] for each in answers]), np.stack([each[1] for each in answers])
    spread = np.sqrt((spreads**2).mean(axis=0) + means.var(axis=0))
    return means.mean(axis=0), np.maximum(spread, SMALLEST)
