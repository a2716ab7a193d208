"""The front as a picture, with what it was found among."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING

from sae_moo.explore.draw.labels import Label, write_beside_
from sae_moo.explore.draw.numbers import (
    Axis,
    axes_of,
    barred,
    front_words,
    planes,
    stacked,
    thinned,
    thinned_words,
    widened,
)
from sae_moo.explore.draw.palette import BLUE, GREY, SCALE, SKY, VERMILLION, mark_of
from sae_moo.explore.draw.print.plots import plain, styled_
from sae_moo.explore.view import View, by_trial, sparsity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHAPES = {"square": ("s", 6), "star": ("*", 12), "diamond": ("D", 6)}
"""Shape of a mark -> matplotlib's name for it, and its size in points."""


def front_picture(view: View) -> Figure:
    """Return the front among all trials, error bars one standard error; references and picks are marked and named.

    One objective is drawn over the trials' numbers, two make a plane, three a panel for every pair; more are drawn in
    parallel coordinates, beside accuracy over what else is an objective, or over sparsity.
    """
    from matplotlib.figure import Figure  # no pyplot: nothing global, no window

    pairs, axes = planes(view), axes_of(view)
    if len(axes) > 3:
        figure = Figure(figsize=(1.5 * len(axes) + 2 + 7 * len(pairs), 5.4), layout="constrained")
        widths = [1.5 * len(axes) + 2, *[7] * len(pairs)]
        parallel, *panels = figure.subplots(1, len(widths), width_ratios=widths)
        _draw_parallel(parallel, view, axes)
    else:
        figure = Figure(figsize=(7.6, 5.0) if len(pairs) == 1 else (15, 5.4), layout="constrained")
        panels = list(figure.subplots(1, len(pairs), squeeze=False)[0])
    for panel, (right, up) in zip(panels, pairs, strict=True):
        _draw_panel(panel, view, right, up, stairs=len(axes) == 2)
    handles, names = panels[0].get_legend_handles_labels()
    order = sorted(range(len(names)), key=lambda i: names[i] != front_words(view))
    room = 15 * figure.get_figwidth()  # letters of a small font across
    columns = max(1, min(3, int(room / (8 + max(map(len, names))))))
    figure.set_figheight(figure.get_figheight() + 0.2 * max(0, -(-len(names) // columns) - 2))
    figure.legend(
        [handles[i] for i in order],
        [fill(names[i], int(room) - 8) for i in order],
        frameon=False,
        loc="outside upper left",
        ncols=columns,
        fontsize="small",
    )
    figure.draw_without_rendering()  # settles where everything is
    figure.set_layout_engine("none")
    for panel, (right, up) in zip(panels, pairs, strict=True):
        write_beside_(panel, _labels(view, right, up))
    if len(axes) > 3:
        write_beside_(parallel, _ends(view, axes))
    return figure


def _draw_panel(panel: Axes, view: View, x: Axis, y: Axis, stairs: bool) -> None:
    others, front = thinned(view), sorted(view.front, key=x.value)
    if others:
        panel.scatter(x.values(others), y.values(others), s=14, c=GREY, label=thinned_words(view, others), linewidths=0)
    if stairs:  # below and left of the stairs is what the front dominates
        panel.plot(x.values(front), y.values(front), color=BLUE, linewidth=1.2, drawstyle="steps-pre")
    bars = barred(view)
    panel.errorbar(
        x.values(front),
        y.values(front),
        xerr=x.errors(front) if bars else None,
        yerr=y.errors(front) if bars else None,
        fmt="o",
        color=BLUE,
        ecolor=SKY,
        elinewidth=1.2 if len(front) <= 40 else 0.7,
        markersize=5 if len(front) <= 60 else 3.5,
        label=front_words(view),
    )
    mark_(panel, view, x, y)
    picks = "; ".join(
        f"{record.number} {', '.join(each.name for each in names)}" for record, names in by_trial(view.picks)
    )
    for i, (record, _) in enumerate(by_trial(view.picks)):
        panel.plot(
            x.value(record),
            y.value(record),
            "o",
            markersize=11,
            fillstyle="none",
            color=VERMILLION,
            markeredgewidth=1.6,
            zorder=5,
            label=None if i else plain(f"picks: {picks}"),
        )
    for axis, limits, change in ((x, panel.get_xlim(), panel.set_xlim), (y, panel.get_ylim(), panel.set_ylim)):
        if axis.name != "trial":
            change(*widened(*limits))
    panel.set_xlabel(plain(x.title))
    panel.set_ylabel(plain(f"{y.title}, search split".replace(" (", "\n(" if len(y.title) > 30 else " (")))
    styled_(panel)


def mark_(panel: Axes, view: View, x: Axis, y: Axis) -> None:
    """Draw a mark for each reference, in place."""
    for marked in stacked(view):
        shape, size = SHAPES[mark_of(marked.name).shape]
        color = mark_of(marked.name).colour
        place = x.value(marked.record), y.value(marked.record)
        panel.plot(*place, shape, color=color, markersize=size, markeredgecolor="white", markeredgewidth=0.8, zorder=4)


def _labels(view: View, x: Axis, y: Axis) -> list[Label]:
    labels = [Label(each.name, (x.value(each.record), y.value(each.record))) for each in view.references]
    for record, _ in by_trial(view.picks):
        labels.append(Label(str(record.number), (x.value(record), y.value(record)), VERMILLION, lift=8))
    return labels


def _draw_parallel(panel: Axes, view: View, axes: Sequence[Axis]) -> None:
    """Draw a line for each trial of the front, coloured by sparsity; references are dashed, picks on top."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import LineCollection

    shades = colormaps[SCALE.lower()]
    many = len(view.front) > 100
    lines = [[(i, axis.shares(record)) for i, axis in enumerate(axes)] for record in view.front]
    colors = [shades(sparsity(record)) for record in view.front]
    panel.add_collection(LineCollection(lines, colors=colors, linewidths=0.5 if many else 1, alpha=0.6 if many else 1))
    for marked in view.references:
        heights = [axis.shares(marked.record) for axis in axes]
        shape, size = SHAPES[mark_of(marked.name).shape]
        color = mark_of(marked.name).colour
        panel.plot(heights, shape, linestyle=":", color=color, markersize=0.8 * size, linewidth=1)
    for record, _ in by_trial(view.picks):
        panel.plot([axis.shares(record) for axis in axes], "o-", color=VERMILLION, markersize=4, linewidth=1.8)
    panel.set_xlim(-0.7, len(axes) - 0.75)
    panel.set_xticks(range(len(axes)), [plain(axis.scaled) for axis in axes])
    panel.set_ylabel("value of each objective, 0 to 1 (search split)")
    panel.set_title("a line for each trial of the front; picks thick, references dotted", fontsize="medium", loc="left")
    styled_(panel)
    assert panel.figure is not None
    panel.figure.colorbar(ScalarMappable(cmap=shades), ax=panel, label="sparsity (fraction of zeros)", pad=0.02)


def _ends(view: View, axes: Sequence[Axis]) -> list[Label]:
    last = len(axes) - 1
    labels = [Label(each.name, (0.0, axes[0].shares(each.record)), left=True) for each in view.references]
    labels += [
        Label(str(record.number), (last, axes[-1].shares(record)), VERMILLION) for record, _ in by_trial(view.picks)
    ]
    return labels
