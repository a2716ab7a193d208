"""Names beside the points of a picture, moved apart where they would lie on each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = 8.0  # of letters, in points
AWAY = 9.0  # from a point to its name, in points
LETTER = 0.62  # width of a letter of the usual font in sizes, rather more than less


@dataclass(frozen=True, slots=True)
class Label:
    """A name beside a point.

    Args:
        text: the name, without any markup.
        place: of the point, in the units of the axes.
        color: of the letters.
        lift: how much higher than the point the name would like to be, in points.
        left: whether it stands to the left of the point in any case.
    """

    text: str
    place: tuple[float, float]
    color: str = "#444444"
    lift: float = 0.0
    left: bool = False


def write_beside_(axes: Axes, labels: Sequence[Label]) -> None:
    """Write names beside points of a picture, in place: nothing may change its limits or layout afterwards.

    A name stands to the right of its point, or to the left where it would leave the axes; names that would lie on each
    other go up and down, as little as possible, each then with a line to its point.
    """
    if not labels or axes.figure is None:
        return
    point = axes.figure.dpi / 72.0  # pixels
    places = axes.transData.transform(np.array([label.place for label in labels])) / point
    box = axes.bbox.x1 / point, axes.bbox.y0 / point, axes.bbox.y1 / point
    heights, left = beside(places, labels, box, SIZE)
    for label, (_, y), height, flipped in zip(labels, places, heights, left, strict=True):
        moved = abs(height - y - label.lift) > SIZE / 2
        line = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3} if moved else None
        said = axes.annotate(
            label.text,
            label.place,
            (-AWAY if flipped else AWAY, height - y),
            textcoords="offset points",
            fontsize=SIZE,
            ha="right" if flipped else "left",
            va="center",
            color=label.color,
            arrowprops=line,
            parse_math=False,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.4},
            zorder=6,
        )
        said.set_in_layout(False)


def beside(
    places: NDArray[np.float64], labels: Sequence[Label], box: tuple[float, float, float], size: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the heights of names beside their points, shape (n,), and which of them stand to the left.

    Args:
        places: of the points on the paper, to the right and up, shape (n, 2).
        labels: the names; their own places are not read.
        box: right, lower and upper end of the axes, in the unit of `places`.
        size: of the letters, likewise.
    """
    widths = np.array([LETTER * size * len(label.text) for label in labels])
    left = np.array([label.left for label in labels]) | (places[:, 0] + AWAY + widths > box[0])
    begins = np.where(left, places[:, 0] - AWAY - widths, places[:, 0] + AWAY)
    heights = places[:, 1] + np.array([label.lift for label in labels])
    for group in _touching(begins, begins + widths):
        own = spread(heights[group], 1.3 * size)
        heights[group] = own + max(0.0, box[1] + size / 2 - own.min()) - max(0.0, own.max() - box[2])
    return heights, left


def spread(wanted: ArrayLike, gap: float) -> NDArray[np.float64]:
    """Return places in the same order, at least `gap` apart, with the smallest squared distances from those wanted.

    Equal ones keep their order. Without the gaps this is isotonic regression, by pooling of neighbours (Ayer et al.
    1955).

    Args:
        wanted: places, shape (n,).
        gap: the least distance of two neighbours, above 0.
    """
    asked = np.asarray(wanted, dtype=np.float64)
    order = np.argsort(asked, kind="stable")
    pools: list[tuple[float, int]] = []  # mean and number of those that have come to lie together
    for i, place in enumerate(asked[order]):
        mean, number = float(place - i * gap), 1
        while pools and pools[-1][0] >= mean:
            before, count = pools.pop()
            mean, number = (before * count + mean * number) / (count + number), count + number
        pools.append((mean, number))
    flat = np.repeat([mean for mean, _ in pools], [number for _, number in pools]) if pools else np.zeros(0)
    found = np.empty(len(asked))
    found[order] = flat + gap * np.arange(len(asked))
    return found


def _touching(begins: NDArray[np.float64], ends: NDArray[np.float64]) -> list[NDArray[np.intp]]:
    """Return the places of intervals in groups: those that share a part, and those that share one with these."""
    order = np.argsort(begins, kind="stable")
    reached = np.maximum.accumulate(ends[order])
    breaks = np.flatnonzero(begins[order][1:] > reached[:-1]) + 1
    return [np.sort(group) for group in np.split(order, breaks)]
