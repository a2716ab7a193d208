"""Figures of a study as pictures that need no browser: matplotlib, each readable on its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np

from sae_moo.explore.draw.labels import Label, write_beside_
from sae_moo.explore.draw.numbers import MOST_NUMBERS, Agreement, Ancestry, Blocks, levels
from sae_moo.explore.draw.palette import BLACK, BLUE, GREEN, GREY, GRID, ORANGE, PALE, SCALE, SIGNED, SKY, VERMILLION
from sae_moo.explore.history import Array, Generations
from sae_moo.explore.view import sparsity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TALLEST = 14.0  # inches; a heatmap of more groups has thinner rows


def plain(text: str) -> str:
    """Return text that matplotlib writes as it is: no part of it is a formula."""
    return text.replace("$", r"\$")


def hypervolume_picture(volumes: Array) -> Figure:
    """Return hypervolume against evaluations, from `history.hypervolumes`."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.6, 4.4), layout="constrained")
    axes = figure.subplots()
    steps, heights = levels(volumes)
    axes.step(steps, heights, where="post", color=BLUE, linewidth=2)
    axes.plot(steps[-1:], heights[-1:], "o", color=BLUE, markersize=5)
    axes.set_xlim(0, 1.02 * max(1, len(volumes)))
    axes.set_ylim(0, 1.12 * max(0.01, float(heights.max(initial=0.0))))
    axes.set_xlabel("evaluations")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("hypervolume of the front, search split\n(share of the unit cube of objectives)")
    styled_(axes)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    if len(steps):
        write_beside_(axes, [Label(f"{heights[-1]:.4f}", (steps[-1], heights[-1]), BLUE, lift=9)])
    return figure


def generation_picture(found: Generations) -> Figure:
    """Return realised sparsity and annealed pruning ratio over generations, from `history.generations`."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.6, 4.4), layout="constrained")
    axes = figure.subplots()
    low, middle, high = found.sparsity.T
    x, dots = found.number, len(found.number) < 60
    axes.fill_between(x, low, high, color=BLUE, alpha=0.18, linewidth=0, label="realised sparsity, middle half")
    axes.plot(x, middle, "o-" if dots else "-", color=BLUE, markersize=4, label="realised sparsity, median")
    if not np.isnan(found.ratio).all():
        shape = "D--" if dots else "--"
        axes.plot(x, found.ratio, shape, color=VERMILLION, markersize=4, label="annealed pruning ratio, median")
    axes.set_ylim(0, max(0.1, 1.08 * float(np.nanmax([*high, *found.ratio]))))
    axes.set_xlabel("generation")
    axes.set_ylabel("fraction of prunable weights")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    styled_(axes)
    figure.legend(frameon=False, loc="outside upper left", ncols=3, fontsize="small")
    return figure


def block_picture(blocks: Blocks, title: str) -> Figure:
    """Return heatmaps by parameter group, from the top down: mixing weights of every expert, and realised sparsity."""
    from matplotlib import colormaps
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    rows, columns = blocks.weights.shape
    longest = max(len(name) for name in blocks.groups)
    size = max(6.4, 0.09 * longest + 1.0 * (columns + 1) + 1.5), 1.8 + min(TALLEST - 1.8, 0.3 * rows)
    figure = Figure(figsize=size, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[columns, 1], sharey=True)
    low, high = blocks.limits
    for axes, values, names, colors, ends, what in (
        (left, blocks.weights, blocks.experts, SIGNED if low < 0 else SCALE.lower(), (low, high), "mixing weight"),
        (right, blocks.zeros.reshape(-1, 1), ["zeros"], SCALE.lower(), (0.0, 1.0), "realised\nsparsity"),
    ):
        shades, norm = colormaps[colors], Normalize(*ends)
        drawn = axes.pcolormesh(values, cmap=shades, norm=norm, edgecolors="white", linewidth=1 if rows < 60 else 0)
        axes.set_title(what + (" (a row sums to 1)" if columns > 2 and axes is left else ""), fontsize="medium")
        turned = columns > 6 or max(map(len, names)) > 12
        axes.set_xticks(np.arange(len(names)) + 0.5, [plain(n) for n in names], rotation=45 if turned else 0)
        if turned:
            for tick in axes.get_xticklabels():
                tick.set(ha="right", rotation_mode="anchor")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        if max(values.shape) > MOST_NUMBERS:
            figure.colorbar(drawn, ax=axes, shrink=min(1.0, 4 / size[1]), aspect=25)
            continue
        for (i, j), value in np.ndenumerate(values):
            dark = np.dot(shades(norm(value))[:3], (0.299, 0.587, 0.114)) < 0.5  # ITU-R BT.601: how bright it looks
            axes.text(
                j + 0.5, i + 0.5, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if dark else BLACK
            )
    each = max(1, round(rows / 90))  # of more rows some have names
    left.set_yticks(np.arange(rows)[::each] + 0.5, [plain(name) for name in blocks.groups[::each]])
    left.tick_params(axis="y", labelsize=9 if rows <= MOST_NUMBERS else 6)
    left.invert_yaxis()
    left.set_ylabel("parameter group")
    figure.suptitle(plain(title), x=0.01, ha="left", fontsize="medium")
    return figure


def lineage_picture(found: Ancestry, title: str) -> Figure:
    """Return a trial's lineage as a graph: a dot per trial, a line from each parent to its child."""
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 4.8), layout="constrained")
    axes = figure.subplots()
    heights, last = found.axis.values(found.trials), len(found.trials) - 1
    lines = [[(parent, heights[parent]), (child, heights[child])] for parent, child in found.edges]
    own = [child == last for _, child in found.edges]
    colors, widths = [BLACK if mine else GREY for mine in own], [1.6 if mine else 0.9 for mine in own]
    axes.add_collection(LineCollection(lines, colors=colors, linewidths=widths, zorder=1))
    dots = axes.scatter(
        range(last + 1),
        heights,
        s=[110 if i == last else 45 for i in range(last + 1)],
        c=[sparsity(record) for record in found.trials],
        cmap=SCALE.lower(),
        vmin=0,
        vmax=1,
        edgecolors=[VERMILLION if i == last else BLACK for i in range(last + 1)],
        linewidths=[2.0 if i == last else 0.6 for i in range(last + 1)],
        zorder=3,
    )
    axes.set_xlim(-0.6, last + 0.9)
    numbers = [str(record.number) for record in found.trials]
    axes.set_xticks(range(last + 1), numbers, fontsize=8, rotation=90 if last > 15 else 0)
    axes.set_xlabel("; ".join(filter(None, ("trial number, oldest first", found.unseen))))
    axes.set_ylabel(plain(f"{found.axis.title},\nsearch split"))
    axes.set_title(plain(title), loc="left", fontsize="medium")
    styled_(axes)
    axes.grid(visible=False, axis="x")
    figure.colorbar(dots, ax=axes, label="sparsity (fraction of zeros)", pad=0.02)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    write_beside_(
        axes,
        [
            Label(found.names[record.number], (i, height), lift=9)
            for i, (record, height) in enumerate(zip(found.trials, heights, strict=True))
            if record.number in found.names
        ],
    )
    return figure


def agreement_picture(found: Agreement, title: str) -> Figure:
    """Return which instances of each task two trials get right: both, one of them, none."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 1.8 + 0.34 * len(found.tasks)), layout="constrained")
    axes = figure.subplots()
    sizes = found.sizes
    shares = 100 * sizes / sizes.sum(axis=1, keepdims=True)
    begins = np.cumsum(shares, axis=1) - shares
    for i, (kind, color) in enumerate(zip(found.kinds, (GREEN, SKY, ORANGE, PALE), strict=True)):
        bars = axes.barh(
            range(len(sizes)), shares[:, i], 0.75, begins[:, i], color=color, edgecolor="white", label=plain(kind)
        )
        said = [str(n) if share > 1.5 else "" for n, share in zip(sizes[:, i], shares[:, i], strict=True)]
        axes.bar_label(bars, said, label_type="center", fontsize=8, color="white" if color == GREEN else BLACK)
    axes.set_xlim(0, 100)
    axes.set_yticks(range(len(sizes)), [plain(task) for task in found.tasks])
    axes.set_ylim(len(sizes) - 0.4, -0.6)
    axes.set_xlabel(
        "share of the instances of the search split (%); numbers count them, right is a score of at least 0.5"
    )
    axes.xaxis.label.set_fontsize("small")
    styled_(axes)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    figure.legend(
        title=fill(plain(title), 90),
        alignment="left",
        frameon=False,
        loc="outside upper left",
        ncols=4,
        fontsize="small",
    )
    return figure


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """One method's searches, for `progress_picture`.

    Args:
        name: the method's name.
        rows: one array a seed, shape (evaluations, 2): hypervolume and best accuracy after each evaluation.
    """

    name: str
    rows: Sequence[Array]


def progress_picture(curves: Sequence[Curve]) -> Figure:
    """Return hypervolume and best accuracy against evaluations: the median over seeds and the quartiles.

    A search that ended early stays at its last value.

    Args:
        curves: the methods, at least one.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.6), layout="constrained")
    panels = figure.subplots(1, 2)
    colors = colormaps["tab20" if len(curves) > 10 else "tab10"].colors  # type: ignore[attr-defined]
    longest = max(len(row) for curve in curves for row in curve.rows)
    lines = []
    for i, curve in enumerate(curves):
        rows = np.stack([np.concatenate([row, np.repeat(row[-1:], longest - len(row), axis=0)]) for row in curve.rows])
        low, middle, high = np.quantile(rows, (0.25, 0.5, 0.75), axis=0)
        own = max(len(row) for row in curve.rows)
        for j, axes in enumerate(panels):
            color = colors[i % len(colors)]
            steps = np.arange(1, longest + 1)
            lines += axes.plot(steps[:own], middle[:own, j], color=color, linewidth=1.4)
            axes.plot(steps[own - 1 :], middle[own - 1 :, j], color=color, linewidth=0.8, linestyle=":")
            axes.fill_between(steps[:own], low[:own, j], high[:own, j], color=color, alpha=0.18, linewidth=0)
    for axes, name in zip(panels, ("hypervolume of the front", "best accuracy"), strict=True):
        axes.set(xlabel="evaluations", ylabel=f"{name} (search split)")
        styled_(axes)
    widest = max(len(curve.name) for curve in curves)
    columns = max(1, min(5, len(curves), 110 // (widest + 8)))  # some 110 letters fit across
    names = [plain(f" {c.name}" if c.name.startswith("_") else c.name) for c in curves]  # _ would hide it
    figure.legend(lines[:: len(panels)], names, frameon=False, loc="outside upper center", ncols=columns)
    return figure


def styled_(axes: Axes) -> None:
    """Give axes the house style, in place."""
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
