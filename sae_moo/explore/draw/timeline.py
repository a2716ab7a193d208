"""Who was busy when, as shapes to fill: each evaluation while they are few, shares of the time where they are many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sae_moo.explore.draw.numbers import Array
from sae_moo.explore.draw.palette import BLUE, ORANGE, PURPLE
from sae_moo.explore.timeline import PHASES, Part, Phase, Span, Timeline
from sae_moo.explore.words import busy_words, count

COLOURS: Mapping[Phase, str] = {"screening": PURPLE, "merging": ORANGE, "scoring": BLUE}
MOST_SPANS = 400  # evaluations that are drawn one by one; more of them are no wider than a line
MOST_ROWS = 80  # workers that have a row each; more of them have no room for their names
STEPS = 240  # of the time, where shares of it are drawn
MOST_STEPS = 8000  # those of all rows together
FILLED = 0.8  # of a row's height
UNITS = (("s", 1.0, 300.0), ("min", 60.0, 300.0), ("h", 3600.0, np.inf))  # name, seconds, how many of them at most


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """A row for each worker, from the top down, against time without the pauses between sessions.

    Args:
        title: how many workers, and how busy they were.
        names: of the rows.
        single: whether each evaluation is drawn; else a row is filled as high as its share of a step of the time.
        unit: of the time.
        length: of all sessions, in it.
        breaks: where a session ended and the next one goes on.
        shapes: phase -> outlines to fill, of those phases that took any time; each of shape (corners, 2), time to the
            right and rows up: the lowest row lies between 0 and 1.
        middles: where to tell of an evaluation, where each is drawn: its place, as those of `shapes`, and the
            evaluation.
    """

    title: str
    names: tuple[str, ...]
    single: bool
    unit: str
    length: float
    breaks: tuple[float, ...]
    shapes: Mapping[Phase, Sequence[Array]]
    middles: Sequence[tuple[float, float, Span]] = ()

    @property
    def caption(self) -> str:
        """What is to be seen, in sentences."""
        row = "A row for each worker" if len(self.names) > 1 else "One row"
        if self.names and self.names[0].startswith("all "):
            row = "All workers together"
        height = "" if self.single else ", filled as high as the share of its time that it was busy"
        pauses = " A dashed line is a pause, which is left out." if self.breaks else ""
        return (
            f"{row}{height}; what is blank was idle. The opening of models, before the first evaluation, is not in "
            f"it.{pauses} timeline.json in the run folder has the same for Perfetto (ui.perfetto.dev)."
        )


def rows_of(found: Timeline) -> Rows | None:
    """Return the rows of a timeline; None where nothing took any time."""
    if not found.seconds:
        return None
    unit, size = next((name, size) for name, size, most in UNITS if found.seconds / size < most)
    axis = _Axis(found, size)
    together = len(found.workers) > MOST_ROWS
    names = (f"all {count(len(found.workers), 'worker')}",) if together else found.workers
    single = not together and len(found.spans) <= MOST_SPANS
    shapes: dict[Phase, list[Array]] = {phase: [] for phase in PHASES}
    middles = []
    for i, name in enumerate(names):
        spans = [span for span in found.spans if together or span.worker == name]
        low = len(names) - 1 - i + (1 - FILLED) / 2
        if single:
            for span in spans:
                for part in span.parts:
                    left, right = axis.places((part.began, part.ended))
                    corners = [(left, low), (left, low + FILLED), (right, low + FILLED), (right, low)]
                    shapes[part.phase].append(np.array(corners))
                if span.parts:
                    middles.append((float(axis.places((span.began, span.ended)).mean()), low + FILLED / 2, span))
        else:
            steps = min(STEPS, MOST_STEPS // len(names))
            for phase, outline in _stacked(spans, axis, steps, found.places if together else 1).items():
                shapes[phase].append(outline * (1.0, FILLED) + (0.0, low))
    return Rows(
        busy_words(found),
        names,
        single,
        unit,
        axis.length,
        axis.breaks,
        {phase: drawn for phase, drawn in shapes.items() if drawn},
        middles,
    )


class _Axis:
    """Says where moments lie to the right: pauses are left out.

    Args:
        found: the timeline.
        size: seconds of a unit of length.

    Attributes:
        length: of all sessions.
        breaks: where a session ended and the next one goes on.
    """

    def __init__(self, found: Timeline, size: float) -> None:
        self._begins = np.array([session.began for session in found.sessions])
        self._before = np.cumsum([0.0, *(session.seconds for session in found.sessions)])
        self._size = size
        self.length = float(self._before[-1] / size)
        self.breaks = tuple((self._before[1:-1] / size).tolist())

    def places(self, moments: ArrayLike) -> Array:
        """Return where moments of sessions lie, seconds since the epoch, in the order given."""
        since = np.asarray(moments, dtype=np.float64)
        i = np.searchsorted(self._begins, since, side="right") - 1
        return np.asarray((since - self._begins[i] + self._before[i]) / self._size)


def _stacked(spans: Sequence[Span], axis: _Axis, steps: int, places: int) -> dict[Phase, Array]:
    """Return the outline of each phase that took any time: its share of steps of the time, on that of those before.

    Args:
        spans: the evaluations.
        axis: of the time.
        steps: how many.
        places: how many evaluations at once are a share of 1.
    """
    edges = np.linspace(0.0, axis.length, steps + 1)
    corners = np.repeat(edges, 2)[1:-1]
    outlines, low = {}, np.zeros(steps)
    for phase in PHASES:
        rows: dict[str, list[Part]] = {}
        for span in spans:
            rows.setdefault(span.worker, []).extend(part for part in span.parts if part.phase == phase)
        shares = sum(np.diff(_before(row, axis, edges)) for row in rows.values()) / np.diff(edges) / places
        if shares.any():
            high = low + shares
            right, up = np.concatenate([corners, corners[::-1]]), np.concatenate([high.repeat(2), low.repeat(2)[::-1]])
            outlines[phase] = np.stack([right, up], axis=1)
            low = high
    return outlines


def _before(parts: Sequence[Part], axis: _Axis, edges: Array) -> Array:
    """Return how much of some parts, none of which overlap, in their order, lies before each of the edges."""
    if not parts:
        return np.zeros(len(edges))
    ends = axis.places([(part.began, part.ended) for part in parts])
    lengths = np.diff(ends, axis=1)
    covered = np.cumsum(np.concatenate([np.zeros_like(lengths), lengths], axis=1).ravel())
    return np.asarray(np.interp(edges, ends.ravel(), covered), dtype=np.float64)
