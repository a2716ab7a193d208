"""What a learned generator did in a search, as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sae_moo.explore.draw.labels import Label, write_beside_
from sae_moo.explore.draw.learned import Moves, Panel
from sae_moo.explore.draw.palette import BLUE, GREEN, GREY, SCALE, VERMILLION
from sae_moo.explore.draw.print.front import mark_
from sae_moo.explore.draw.print.plots import plain, styled_
from sae_moo.explore.view import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def learning_picture(panels: Sequence[Panel]) -> Figure:
    """Return the generator's numbers against evaluations, from `learned.panels_of`, a panel for each scale."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(4.6 * len(panels), 4.2), layout="constrained")
    row = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel in zip(row, panels, strict=True):
        for (name, (steps, heights)), colour in zip(panel.curves.items(), (BLUE, VERMILLION), strict=False):
            axes.step(steps, heights, "-" if len(steps) > 1 else "o", where="post", color=colour, label=name)
        if panel.logarithmic:
            axes.set_yscale("log")
        else:
            axes.set_ylim(0, 1.08 * max(0.01, *(float(heights.max()) for _, heights in panel.curves.values())))
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("evaluations")
        axes.set_title(panel.title, fontsize="medium", loc="left")
        axes.legend(frameon=False, fontsize="small")
        styled_(axes)
    return figure


def moves_picture(view: View, moves: Moves) -> Figure:
    """Return where a generator moved candidates, from `learned.moves_of`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 5.6), layout="constrained")
    axes = figure.subplots()
    x, y, height = moves.right, moves.up, moves.height
    for better, colour, name in (
        (False, GREY, f"a move, no more {height.name}"),
        (True, GREEN, f"a move to more {height.name}"),
    ):
        pairs = moves.better(better)
        if pairs:
            begins, ends = (
                np.stack([x.values(side), y.values(side)], axis=1) for side in map(list, zip(*pairs, strict=True))
            )
            axes.quiver(
                *begins.T,
                *(ends - begins).T,
                angles="xy",
                scale_units="xy",
                scale=1,
                width=0.0022,
                headwidth=5,
                headlength=6,
                headaxislength=5,
                color=colour,
                alpha=0.8,
                label=plain(name),
                zorder=2,
            )
    dots = axes.scatter(
        x.values(moves.trials),
        y.values(moves.trials),
        s=22,
        c=height.values(moves.trials),
        cmap=SCALE.lower(),
        edgecolors="white",
        linewidths=0.4,
        zorder=3,
    )
    mark_(axes, view, x, y)
    axes.set_xlabel(plain(x.title))
    axes.set_ylabel(plain(y.title))
    styled_(axes)
    figure.colorbar(dots, ax=axes, label=plain(f"{height.name}, search split"), pad=0.02)
    figure.legend(frameon=False, loc="outside upper left", ncols=2, fontsize="small")
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    write_beside_(axes, [Label(each.name, (x.value(each.record), y.value(each.record))) for each in view.references])
    return figure
