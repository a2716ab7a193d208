"""Racing: a candidate that the front already beats, as far as its first instances can tell, is not asked the rest.

Instances are asked in parts. After each part, upper confidence bounds on what the candidate would reach on all of them
are compared with the front. The idea of a race is Maron and Moore's (1994, Hoeffding Races) and Birattari et al.'s
(2002, F-Race); the bounds here are those of a group sequential test (Pocock 1977) on a difference estimator (Cochran
1977, Sampling Techniques, ch. 7: a regression on what is known of every instance, without replacement).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri, stdtrit

from sae_moo.evaluate.asking import Racing
from sae_moo.objectives import Evaluation, TaskMean
from sae_moo.objectives.front import Accuracy, Front

Array = NDArray[np.float64]

PENALTIES = (4.0, 12.0, 40.0, 120.0, 400.0, 1200.0, 4000.0)
"""Ridge penalties to choose from, in units of the scores' variance."""
LEAST = 2
"""Instances of each task that a first look needs."""
DOUBT = 0.5
"""Squared residuals added to those of a task, whatever its scores: as if one more instance had missed its prediction by
0.7. Without it, a few instances that all come out as predicted would leave no doubt at all."""
NODES = 128
"""Gauss-Legendre nodes on which the density of a race that has not ended is followed."""


class Race:
    """One candidate against its rivals.

    What its rivals answered to every instance predicts, by a ridge regression on the instances asked so far, what the
    candidate would answer to the others; how far off the predictions are, each made without its own instance, gives
    the standard errors. The bounds hold for all objectives and at all looks together with the stated confidence, as
    far as means of as many instances are normal.

    Args:
        racing: settings.
        rivals: the front, of candidates that were asked everything.
        order: task name -> numbers of its instances in the order they are asked.
        looks: task name -> how many of them have been asked at each look, ascending, all of them at the last.
        counted: objective name -> the candidate's value, of those that are not scored on tasks.

    Raises:
        ValueError: if nobody is in front, or no objective has tasks.
    """

    def __init__(
        self,
        racing: Racing,
        rivals: Front[Evaluation],
        *,
        order: Mapping[str, NDArray[np.int64]],
        looks: Mapping[str, Sequence[int]],
        counted: Mapping[str, float],
    ) -> None:
        if not rivals.members:
            raise ValueError("rivals: expected at least one in front")
        self._racing = racing
        self._rivals = rivals
        self._counted = counted
        accuracy = Accuracy(rivals.objectives)
        if not accuracy:
            raise ValueError("rivals: expected an objective with tasks")
        self._tasks = tuple(accuracy.shares)
        self._known = {
            task: np.array([np.array(rival.scores[task])[order[task]] for rival in rivals.members]).T
            for task in self._tasks
        }
        self._shares = rivals.points
        counts = np.unique([looks[task] for task in self._tasks], axis=1)  # a part may be empty
        usable = (counts >= LEAST).all(axis=0) & (counts < counts[:, -1:]).any(axis=0)
        times = counts.sum(axis=0) / counts[:, -1].sum()
        self._looks = {tuple(counts[:, i]) for i in np.flatnonzero(usable)}
        wrong = (1.0 - racing.confidence) / len(accuracy.objectives)
        self._level = level(tuple(times[usable].tolist()), wrong) if self._looks else 0.0

    def bounds(self, seen: Mapping[str, Array]) -> tuple[Array, Array]:
        """Return what the candidate is expected to reach on all instances, and what it hardly exceeds.

        Args:
            seen: task name -> scores of the instances asked so far, in their order.

        Returns:
            Expectation and upper bound of every objective, each of shape (objectives,).
        """
        predicted, residual = self._predicted(seen)
        mean, variance = {}, {}
        for task in self._tasks:
            asked, all_of_them = len(seen[task]), len(predicted[task])
            off = residual[task].mean()
            mean[task] = (seen[task].sum() + (predicted[task][asked:] + off).sum()) / all_of_them
            spread = (((residual[task] - off) ** 2).sum() + DOUBT) / asked
            variance[task] = spread / asked * (1.0 - asked / all_of_them)
        freedom = max(1, sum(len(seen[task]) for task in self._tasks) - len(self._tasks))
        expected, bound = [], []
        for objective in self._rivals.objectives:
            if not isinstance(objective, TaskMean):
                expected.append(self._counted[objective.name])
                bound.append(self._counted[objective.name])
                continue
            error = np.sqrt(sum(variance[task] for task in objective.tasks)) / len(objective.tasks)
            expected.append(float(np.mean([mean[task] for task in objective.tasks])))
            bound.append(expected[-1] + -float(stdtrit(freedom, self._level)) * float(error))
        return np.array(expected), np.array(bound)

    def beaten(self, seen: Mapping[str, Array]) -> tuple[Evaluation, dict[str, float], dict[str, float]] | None:
        """Return the rival that dominates even the candidate's bounds, given the margin, if there is one, and why.

        Args:
            seen: as for `bounds`.

        Returns:
            The rival (the one farthest ahead), expected values and bounds by objective; None where the race goes on.
        """
        if tuple(len(seen[task]) for task in self._tasks) not in self._looks:
            return None
        expected, bound = self.bounds(seen)
        reach = [each.share(value) for each, value in zip(self._rivals.objectives, bound.tolist(), strict=True)]
        ahead = self._shares + self._racing.margin - np.array(reach)
        beats = (ahead >= 0).all(axis=1) & (ahead > 0).any(axis=1)
        if not beats.any():
            return None
        best = int(np.argmax(np.where(beats, ahead.sum(axis=1), -np.inf)))
        names = [objective.name for objective in self._rivals.objectives]
        return (
            self._rivals.members[best],
            dict(zip(names, expected.tolist(), strict=True)),
            dict(zip(names, bound.tolist(), strict=True)),
        )

    def _predicted(self, seen: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return per task: predictions for all instances, and residuals of those asked, each left out of its own."""
        counts = [len(seen[task]) for task in self._tasks]
        means = {task: self._known[task][:asked].mean(axis=0) for task, asked in zip(self._tasks, counts, strict=True)}
        levels = {task: seen[task].mean() for task in self._tasks}
        known = np.concatenate([self._known[task][: len(seen[task])] - means[task] for task in self._tasks])
        scores = np.concatenate([seen[task] - levels[task] for task in self._tasks])
        own = np.repeat([1.0 / asked for asked in counts], counts)  # weight of an instance in its task's mean
        coefficients, residual = ridge(known, scores, own)
        predicted = {task: levels[task] + (self._known[task] - means[task]) @ coefficients for task in self._tasks}
        parted = np.split(residual, np.cumsum(counts)[:-1])
        return predicted, dict(zip(self._tasks, parted, strict=True))


def ridge(known: Array, scores: Array, own: Array) -> tuple[Array, Array]:
    """Fit centred scores to centred predictors, with the penalty that predicts left-out instances best.

    Args:
        known: predictors, shape (instances, predictors).
        scores: shape (instances,).
        own: share of each instance in the mean that was taken off it, shape (instances,).

    Returns:
        Coefficients, shape (predictors,); and residuals of each instance by a fit without it (Allen 1974, PRESS), shape
        (instances,).
    """
    values, vectors = np.linalg.eigh(known.T @ known)
    values = np.maximum(values, 0.0)
    rotated = known @ vectors
    projected = rotated.T @ scores
    variance = max(float(np.mean(scores**2)), np.finfo(float).tiny)
    best: tuple[float, Array, Array] | None = None
    for penalty in PENALTIES:
        shrunk = 1.0 / (values + penalty * variance)
        residual = scores - rotated @ (shrunk * projected)
        leverage = np.minimum((rotated**2) @ shrunk + own, 0.99)
        left_out = residual / (1.0 - leverage)
        error = float((left_out**2).sum())
        if best is None or error < best[0]:
            best = (error, vectors @ (shrunk * projected), left_out)
    assert best is not None
    return best[1], best[2]


@cache
def level(times: tuple[float, ...], wrong: float) -> float:
    """Return the one-sided level of each look for which all looks together are wrong as often as stated.

    The mean of a sample without replacement, less that of all, is a Brownian bridge in the share asked; divided by its
    standard deviation it is Brownian motion at time ``share / (1 - share)``. Its density below a constant boundary is
    followed from look to look (Armitage, McPherson and Rowe 1969).

    Args:
        times: share of all instances asked at each look, ascending, in (0, 1).
        wrong: probability of crossing the boundary at any look, in (0, 0.5).
    """
    moments = np.array(times) / (1.0 - np.array(times))
    lowest, highest = -ndtri(wrong) - 1e-6, -ndtri(wrong / len(times)) + 1e-6  # a single look; looks without any bond
    return float(ndtr(-brentq(lambda z: _crossing(z, moments) - wrong, lowest, highest)))


def _crossing(boundary: float, moments: Array) -> float:
    """Return how likely standardized Brownian motion is to be above a boundary at any of these times."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    low = -8.0  # below, nothing is left
    grid, weights = low + (boundary - low) * (nodes + 1.0) / 2.0, weights * (boundary - low) / 2.0
    density = _normal(grid)
    crossed = float(ndtr(-boundary))
    for before, now in pairwise(moments):
        kept, fresh = np.sqrt(before / now), np.sqrt(1.0 - before / now)
        crossed += float((density * weights) @ ndtr((kept * grid - boundary) / fresh))
        density = (_normal((grid[:, None] - kept * grid[None, :]) / fresh) / fresh) @ (density * weights)
    return crossed


def _normal(z: Array) -> Array:
    density: Array = np.exp(-(z**2) / 2.0) / np.sqrt(2.0 * np.pi)
    return density
