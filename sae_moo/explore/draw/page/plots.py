"""Figures of a study for a page: plotly, read at a glance, in colours that colour-blind readers tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.graph_objects import Figure as Figure  # for those that only name it
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from sae_moo.explore.draw.numbers import MOST_NUMBERS, Agreement, Ancestry, Blocks, levels
from sae_moo.explore.draw.palette import BLUE, GREEN, GREY, GRID, ORANGE, PALE, SCALE, SIGNED, SKY, VERMILLION
from sae_moo.explore.history import Generations
from sae_moo.explore.view import View, sparsity
from sae_moo.explore.words import value_words
from sae_moo.study.record import Ended


def library() -> str:
    """Return plotly.js, some 5 MB of text, which draws the figures in a page."""
    return str(get_plotlyjs())


def hypervolume_figure(volumes: NDArray[np.float64]) -> Figure:
    """Return hypervolume against evaluations, from `history.hypervolumes`."""
    steps, heights = levels(volumes)
    trace = go.Scatter(
        x=steps.astype(np.int32),
        y=heights.astype(np.float32),
        mode="lines" if len(steps) > 1 else "markers",
        line={"color": BLUE, "width": 2, "shape": "hv"},
        hovertemplate="after %{x} evaluations: %{y:.4f}<extra></extra>",
    )
    figure = figure_of([trace], legend=False)
    figure.update_xaxes(title_text="evaluations", rangemode="tozero")
    figure.update_yaxes(
        title_text="hypervolume of the front<br>(share of the unit cube of objectives)", rangemode="tozero"
    )
    return figure


def generation_figure(found: Generations) -> Figure:
    """Return realised sparsity and annealed pruning ratio over generations, from `history.generations`."""
    low, middle, high = found.sparsity.T.astype(np.float32)
    x = found.number
    traces = [
        go.Scatter(x=x, y=low, mode="lines", line={"width": 0}, showlegend=False, hoverinfo="skip"),
        go.Scatter(
            x=x,
            y=high,
            mode="lines",
            line={"width": 0},
            fill="tonexty",
            fillcolor="rgba(0,114,178,0.18)",
            name="realised sparsity, middle half of the trials",
            hoverinfo="skip",
        ),
        go.Scatter(
            x=x,
            y=middle,
            mode="lines+markers" if len(x) < 60 else "lines",
            line={"color": BLUE, "width": 2},
            name="realised sparsity, median",
            hovertemplate="generation %{x}: realised sparsity %{y:.3f}<extra></extra>",
        ),
    ]
    if not np.isnan(found.ratio).all():
        traces.append(
            go.Scatter(
                x=x,
                y=found.ratio.astype(np.float32),
                mode="lines+markers" if len(x) < 60 else "lines",
                line={"color": VERMILLION, "width": 2, "dash": "dash"},
                marker={"symbol": "diamond"},
                name="annealed pruning ratio, median",
                hovertemplate="generation %{x}: pruned at %{y:.3f}<extra></extra>",
            )
        )
    figure = figure_of(traces)
    figure.update_xaxes(title_text="generation")
    figure.update_yaxes(title_text="fraction of prunable weights", rangemode="tozero")
    return figure


def block_figure(blocks: Blocks) -> Figure:
    """Return heatmaps by parameter group, from the top down: mixing weights of every expert, and realised sparsity."""
    names = [escape(name) for name in blocks.groups]
    width = len(blocks.experts) / (len(blocks.experts) + 1.0)
    figure = make_subplots(
        cols=2,
        column_widths=[width, 1 - width],
        horizontal_spacing=0.16,
        shared_yaxes=True,
        subplot_titles=("mixing weight (a row sums to 1)", "realised sparsity"),
    )
    low, high = blocks.limits
    scale = {"colorscale": SIGNED if low < 0 else SCALE, "zmin": low, "zmax": high}
    zeros = blocks.zeros.astype(np.float32).reshape(-1, 1)
    for column, x, z, colors, place in (
        (1, [escape(name) for name in blocks.experts], blocks.weights.astype(np.float32), scale, 0.76),
        (2, ["zeros"], zeros, {"colorscale": SCALE, "zmin": 0.0, "zmax": 1.0}, 1.0),
    ):
        said = "%{z:.2f}" if max(z.shape) <= MOST_NUMBERS else None
        what = "weight of %{x}" if column == 1 else "sparsity"
        figure.add_trace(
            go.Heatmap(
                x=x,
                y=names,
                z=z,
                **colors,
                texttemplate=said,
                xgap=1,
                ygap=1,
                hovertemplate="%{y}: " + what + " %{z:.3f}<extra></extra>",
                colorbar={"x": place, "len": 0.9, "thickness": 12} if column == 2 or not said else None,
                showscale=not said,
            ),
            1,
            column,
        )
    styled_(figure, height=160 + min(640, 24 * len(names)), legend=False)
    figure.update_layout(margin_t=64)  # of which the buttons take the upper half
    figure.update_yaxes(autorange="reversed", showgrid=False, type="category")
    figure.update_yaxes(title={"text": "parameter group" if len(names) > 4 else "group", "standoff": 12}, col=1)
    figure.update_xaxes(showgrid=False, type="category")
    return figure


def lineage_figure(view: View, found: Ancestry) -> Figure:
    """Return a trial's lineage as a graph: a dot per trial, a line from each parent to its child."""
    heights = found.axis.values(found.trials)
    xs: list[float | None] = []
    ys: list[float | None] = []
    for parent, child in found.edges:
        xs += [parent, child, None]
        ys += [heights[parent], heights[child], None]
    last = len(found.trials) - 1
    what = [f"trial {record.number}: {hover_text(view, record)}" for record in found.trials]
    traces = [
        go.Scatter(x=xs, y=ys, mode="lines", line={"color": GREY, "width": 1.2}, hoverinfo="skip"),
        go.Scatter(
            x=list(range(last + 1)),
            y=heights,
            mode="markers",
            marker={
                "size": [18 if i == last else 12 for i in range(last + 1)],
                "color": [sparsity(record) for record in found.trials],
                "colorscale": SCALE,
                "cmin": 0.0,
                "cmax": 1.0,
                "line": {"color": "white", "width": 1},
                "colorbar": {"title": {"text": "sparsity", "side": "right"}, "thickness": 12},
            },
            text=what,
            hovertemplate="%{text}<extra></extra>",
        ),
    ]
    figure = figure_of(traces, legend=False, height=360)
    ticks = [f"{r.number} {escape(found.names.get(r.number, ''))}".strip() for r in found.trials]
    figure.update_xaxes(title_text="trial number, oldest first", tickvals=list(range(last + 1)), ticktext=ticks)
    figure.update_yaxes(title_text=wrapped(found.axis.title))
    return figure


def agreement_figure(found: Agreement) -> Figure:
    """Return which instances of each task two trials get right: both, one of them, none.

    The instances of a part are listed where the pointer rests on it.
    """
    names = [escape(kind) for kind in found.kinds]
    shares = found.sizes / found.sizes.sum(axis=1, keepdims=True)
    traces = []
    for i, (name, color) in enumerate(zip(names, (GREEN, SKY, ORANGE, PALE), strict=True)):
        rows = [part[i] for part in found.parts]
        traces.append(
            go.Bar(
                y=[escape(task) for task in found.tasks],
                x=shares[:, i].tolist(),
                orientation="h",
                name=name,
                marker={"color": color, "line": {"color": "white", "width": 1}},
                text=[str(len(row)) if len(row) else "" for row in rows],
                textposition="inside",
                insidetextanchor="middle",
                customdata=[_instances(row) for row in rows],
                hovertemplate="%{y}: %{fullData.name}, %{customdata}<extra></extra>",
            )
        )
    figure = figure_of(traces, height=130 + 34 * len(found.tasks))
    figure.update_layout(barmode="stack", bargap=0.25)
    figure.update_xaxes(title_text="share of the instances of the search split", range=[0, 1], tickformat=".0%")
    figure.update_yaxes(autorange="reversed", showgrid=False, type="category")
    return figure


def _instances(row: NDArray[np.int64], most: int = 12) -> str:
    shown = ", ".join(str(i) for i in row[:most])
    return f"{len(row)} instances: {shown}" + (f" and {len(row) - most} more" if len(row) > most else "")


def hover_text(view: View, record: Ended) -> str:
    """Return the values of a trial's objectives, escaped."""
    said = ", ".join(f"{escape(o.name)} {value_words(record, o.name)}" for o in view.objectives)
    return said + ("" if record.feasible else ", breaks a limit")


def wrapped(title: str, width: int = 60) -> str:
    """Return an axis title, escaped, with what is in brackets on a line of its own if it is long."""
    name, bracket, rest = title.partition(" (")
    return escape(name) + (("<br>(" if len(title) > width else " (") + escape(rest) if bracket else "")


def figure_of(traces: Sequence[Any], legend: bool = True, height: int = 420) -> Figure:
    """Return a figure of traces in the house style; `height` in pixels."""
    return styled_(Figure(list(traces)), height, legend)


def styled_(figure: Figure, height: int, legend: bool = True) -> Figure:
    """Give a figure the house style, in place, and return it; `height` in pixels."""
    figure.update_layout(
        template=None,
        height=height,
        showlegend=legend,
        legend={"orientation": "h", "traceorder": "normal", "yanchor": "bottom", "y": 1.02, "xanchor": "left", "x": 0},
        margin={"l": 80, "r": 30, "t": 80 if legend else 40, "b": 60},
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#222"},
        paper_bgcolor="white",
        plot_bgcolor="white",
        hoverlabel={"bgcolor": "white", "font": {"color": "#222"}},
        hovermode="closest",
    )
    figure.update_xaxes(gridcolor=GRID, zeroline=False, linecolor="#888", automargin=True, title_font_size=13)
    figure.update_yaxes(gridcolor=GRID, zeroline=False, linecolor="#888", automargin=True, title_font_size=13)
    return figure
