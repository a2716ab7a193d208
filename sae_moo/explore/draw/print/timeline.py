"""Who was busy when, as a picture that needs no browser."""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING

from sae_moo.explore.draw.palette import BLACK
from sae_moo.explore.draw.print.plots import TALLEST, plain, styled_
from sae_moo.explore.draw.timeline import COLOURS, Rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def timeline_picture(rows: Rows, title: str) -> Figure:
    """Return who was busy when, from `timeline.rows_of`; `title` is what it is of."""
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure

    count = len(rows.names)
    height = 1.9 + (0.6 if count == 1 else 0.0) + min(TALLEST - 1.9, count * (0.32 if count <= 16 else 0.14))
    figure = Figure(figsize=(9.6, height), layout="constrained")
    axes = figure.subplots()
    for phase, shapes in rows.shapes.items():
        axes.add_collection(PolyCollection(shapes, facecolors=COLOURS[phase], linewidths=0, label=phase))
    for place in rows.breaks:
        axes.axvline(place, color=BLACK, linestyle="--", linewidth=1)
    axes.set_xlim(0, rows.length)
    axes.set_ylim(0, count)
    axes.set_yticks([count - i - 0.5 for i in range(count)], [plain(name) for name in rows.names])
    axes.tick_params(axis="y", length=0, labelsize=9 if count <= 16 else 6)
    axes.set_xlabel(f"time ({rows.unit}){', pauses left out' if rows.breaks else ''}")
    styled_(axes)
    axes.grid(visible=False, axis="y")
    figure.legend(
        title=fill(plain(f"{title}: {rows.title}"), 110),
        alignment="left",
        frameon=False,
        loc="outside upper left",
        ncols=3,
        fontsize="small",
    )
    return figure
