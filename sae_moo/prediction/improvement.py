"""How much a candidate that is only predicted may add to a front: its expected hypervolume improvement.

Every objective of a candidate is taken as a normal number of its own, larger is better, independent of the others; one
that is known has no spread. Then the expectation is a sum over the boxes that the front leaves free, each the product
of what the objectives exceed its sides by (Emmerich, Deutz and Klinkenberg 2011; for two objectives Yang et al. 2019,
eq. 11). The boxes are had by slices along one objective after another, so that it is exact in any number of them; their
number grows with each. Beyond `MOST_SLICED` objectives it is the mean over draws.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from sae_moo.objectives.pareto import hypervolume, non_dominated

Array = NDArray[np.float64]
MOST_SLICED = 3  # objectives; with one more a front of a hundred takes seconds
DRAWS = 64  # beyond it, a candidate
ROUNDING = 1e-9  # of numbers that lie on a limit


def expected_excess(mean: Array, spread: Array, level: Array | float) -> Array:
    """Return by how much normal numbers exceed a level in expectation: of max(0, x - level).

    Args:
        mean: their means.
        spread: their standard deviations, at least 0, of the same shape.
        level: what is exceeded; a number, or of a shape that goes with theirs.
    """
    over = np.asarray(mean - level, dtype=np.float64)
    spread = np.broadcast_to(spread, over.shape)
    z = np.divide(over, spread, out=np.zeros_like(over), where=spread > 0)
    density = np.exp(-0.5 * z**2) / np.sqrt(2.0 * np.pi)
    uncertain = np.maximum(spread * density + over * ndtr(z), 0.0)
    return np.where(spread > 0, uncertain, np.maximum(over, 0.0))


def expected_gains(points: Array, means: Array, spreads: Array, seed: tuple[int, ...] = (0,)) -> Array:
    """Return the hypervolume above the origin that candidates add to a front in expectation, each by itself.

    Args:
        points: the front's values as shares (`Objective.share`), shape (members, objectives); dominated ones and none
            at all are as good.
        means: what is expected of each candidate, in shares, shape (candidates, objectives).
        spreads: the standard deviations of that, at least 0.
        seed: of the draws, where there are more than `MOST_SLICED` objectives; else not read.

    Returns:
        At least 0, shape (candidates,).
    """
    points = np.maximum(points, 0.0)
    points = points[non_dominated(points)] if len(points) else points
    if means.shape[1] > MOST_SLICED:
        return drawn_gains(points, means, spreads, seed)
    places, excesses = [], []
    for column, mean, spread in zip(points.T, means.T, spreads.T, strict=True):
        levels, place = np.unique(np.append(column, 0.0), return_inverse=True)
        beyond = expected_excess(mean, spread, levels[:, None])
        excesses.append(np.vstack([beyond, np.zeros(len(means))]))  # nothing exceeds the infinite, which is last
        places.append(place[:-1])
    gains = _sliced(np.array(places).T.reshape(len(points), means.shape[1]), excesses)
    return np.maximum(gains, 0.0)


def drawn_gains(points: Array, means: Array, spreads: Array, seed: tuple[int, ...], count: int = DRAWS) -> Array:
    """Return the same as the mean over draws, which are the same for every candidate; see `expected_gains`."""
    normal = np.random.default_rng(seed).standard_normal((count, means.shape[1]))
    gains = np.zeros(len(means))
    for i, (mean, spread) in enumerate(zip(means, spreads, strict=True)):
        for point in np.maximum(mean + spread * normal, 0.0):
            if not (points >= point).all(axis=1).any():
                inside = np.minimum(points, point)
                gains[i] += float(point.prod()) - hypervolume(inside[non_dominated(inside)])
    return gains / count


def _sliced(places: NDArray[np.int64], excesses: list[Array]) -> Array:
    """Return expected gains, shape (candidates,), by slices along the last objective.

    Args:
        places: of each point among the levels of each objective, shape (points, objectives); 0 is the level 0.
        excesses: for each objective what candidates exceed its levels by, ascending, shape (levels + 1, candidates).
    """
    if len(excesses) == 1:
        best: Array = excesses[0][places[:, 0].max(initial=0)]
        return best
    last = excesses[-1]
    order = np.argsort(places[:, -1], kind="stable")
    places = places[order]
    sides = np.concatenate([[0], places[:, -1], [len(last) - 1]])
    widths = last[sides[:-1]] - last[sides[1:]]
    if len(excesses) == 2:
        heights = np.append(np.maximum.accumulate(places[::-1, 0])[::-1], 0)
        area: Array = (widths * excesses[0][heights]).sum(axis=0)
        return area
    slices = [k for k in range(len(widths)) if sides[k] < sides[k + 1]]
    volume: Array = sum((widths[k] * _sliced(places[k:, :-1], excesses[:-1]) for k in slices), np.zeros(last.shape[1]))
    return volume


def probability_between(means: Array, spreads: Array, low: float | None, high: float | None) -> Array:
    """Return how probable it is that normal numbers lie within limits, each of which may be None, ends included."""
    below = _probability_below(means, spreads, np.inf if high is None else high + ROUNDING)
    return below if low is None else np.maximum(below - _probability_below(means, spreads, low - ROUNDING), 0.0)


def _probability_below(means: Array, spreads: Array, limit: float) -> Array:
    room = limit - means
    z = np.divide(room, spreads, out=np.where(room >= 0, np.inf, -np.inf), where=spreads > 0)
    probability: Array = ndtr(z)
    return probability
