"""Figures of a study for a page: plotly, read at a glance, in colours that colour-blind readers tell apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.graph_objects import Figure as Figure  # for those that only name it
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from sae_moo.explore.history import Generations, Lineage
from sae_moo.explore.view import Marked, View, sparsity
from sae_moo.explore.words import objective_words, value_words
from sae_moo.storage import TrialRecord

# Okabe and Ito 2008, https://jfly.uni-koeln.de/color/
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY, GRID = "#b9c2cc", "#e6e9ec"
SCALE = "Cividis"  # Nunez et al. 2018: the same to colour-blind readers
MOST_NUMBERS = 40  # rows or columns of a heatmap whose cells have their numbers written in


def library() -> str:
    """Return plotly.js, some 5 MB of text, which draws the figures in a page."""
    return str(get_plotlyjs())


@dataclass(frozen=True, slots=True)
class Axis:
    """A quantity to draw.

    Args:
        name: short.
        title: in words, with the unit.
        value: trial -> value.
        error: trial -> standard error; NaN or 0 for none.
    """

    name: str
    title: str
    value: Callable[[TrialRecord], float]
    error: Callable[[TrialRecord], float]


def axes_of(view: View) -> list[Axis]:
    """Return an axis for every objective, in order."""
    return [
        Axis(
            objective.name,
            objective_words(objective),
            lambda record, name=objective.name: record.values[name],  # type: ignore[misc]
            lambda record, name=objective.name: record.stderr.get(name, np.nan),  # type: ignore[misc]
        )
        for objective in view.objectives
    ]


def hypervolume_figure(volumes: NDArray[np.float64]) -> Figure:
    """Return hypervolume against evaluations, from `history.hypervolumes`."""
    steps = np.arange(1, len(volumes) + 1, dtype=np.int32)
    keep = np.flatnonzero(np.diff(volumes, prepend=-1.0))  # where each level begins
    keep = np.union1d(keep, [len(volumes) - 1]) if len(volumes) else keep
    trace = go.Scatter(
        x=steps[keep],
        y=volumes[keep].astype(np.float32),
        mode="lines" if len(keep) > 1 else "markers",
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


def block_figure(
    groups: Sequence[str], experts: Sequence[str], weights: NDArray[np.float64], zeros: Sequence[float]
) -> Figure:
    """Return heatmaps by parameter group: mixing weights of every expert, and realised sparsity.

    Args:
        groups: G names in the pool's order, drawn from the top down.
        experts: E names.
        weights: from `mixing.mixing_weights`, shape (G, E).
        zeros: realised sparsity, G numbers in [0, 1).
    """
    names = [escape(name) for name in groups]
    figure = make_subplots(
        cols=2,
        column_widths=[len(experts) / (len(experts) + 1.0), 1 / (len(experts) + 1.0)],
        horizontal_spacing=0.16,
        shared_yaxes=True,
        subplot_titles=("mixing weight (a row sums to 1)", "realised sparsity"),
    )
    reach = float(np.abs(weights).max())
    signed = {"colorscale": "PuOr_r", "zmin": -reach, "zmax": reach}  # purple and orange: safe, white is 0
    scale = signed if weights.min() < -0.005 else {"colorscale": SCALE, "zmin": 0.0, "zmax": max(1.0, reach)}
    asked = np.array(zeros, dtype=np.float32).reshape(-1, 1)
    for column, x, z, colors, place in (
        (1, [escape(name) for name in experts], weights.astype(np.float32), scale, 0.76),
        (2, ["zeros"], asked, {"colorscale": SCALE, "zmin": 0.0, "zmax": 1.0}, 1.0),
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
    styled_(figure, height=130 + min(640, 24 * len(groups)), legend=False)
    figure.update_yaxes(autorange="reversed", showgrid=False, type="category")
    figure.update_yaxes(title_text="parameter group" if len(groups) > 4 else "group", col=1)
    figure.update_xaxes(showgrid=False, type="category")
    return figure


def lineage_figure(view: View, found: Lineage, reference: Axis | None = None) -> Figure:
    """Return a trial's lineage as a graph: a dot per trial, a line from each parent to its child.

    Args:
        view: the study.
        found: from `history.lineage`.
        reference: what the height says; the first objective by default.
    """
    height = reference or axes_of(view)[0]
    place = {number: i for i, number in enumerate(found.numbers)}
    ended = {n: height.value(view.records[n]) if view.records[n].values else None for n in found.numbers}
    xs: list[float | None] = []
    ys: list[float | None] = []
    for parent, child in found.edges:
        xs += [place[parent], place[child], None]
        ys += [ended[parent], ended[child], None]
    shown = [n for n in found.numbers if ended[n] is not None]
    zeros = [sparsity(view.records[n]) for n in shown]
    what = [f"trial {n}: {hover_text(view, view.records[n])}" for n in shown]
    traces = [
        go.Scatter(x=xs, y=ys, mode="lines", line={"color": GREY, "width": 1.2}, hoverinfo="skip"),
        go.Scatter(
            x=[place[n] for n in shown],
            y=[ended[n] for n in shown],
            mode="markers",
            marker={
                "size": [18 if n == found.numbers[-1] else 12 for n in shown],
                "color": zeros,
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
    ticks = [str(n) for n in found.numbers]
    figure.update_xaxes(title_text="trial number, oldest first", tickvals=list(place.values()), ticktext=ticks)
    figure.update_yaxes(title_text=wrapped(height.title))
    return figure


def agreement_figure(view: View, first: Marked, second: Marked) -> Figure | None:
    """Return which instances of each task two trials get right: both, one of them, none; None without shared instances.

    Right is a score of at least 0.5. The instances of a part are listed where the pointer rests on it.
    """
    assert first.record.evaluation is not None
    assert second.record.evaluation is not None
    a, b = first.record.evaluation.scores, second.record.evaluation.scores
    tasks = [task for task in view.tasks if task in a and task in b and len(a[task]) == len(b[task])]
    if not tasks:
        return None
    one, two = f"trial {first.record.number}", escape(second.name)
    kinds = (("both right", GREEN), (f"only {one}", SKY), (f"only {two}", ORANGE), ("neither", "#d5d9dd"))
    parts: list[list[NDArray[np.int64]]] = []
    for task in tasks:
        x, y = np.asarray(a[task]) >= 0.5, np.asarray(b[task]) >= 0.5
        parts.append([np.flatnonzero(mask) for mask in (x & y, x & ~y, ~x & y, ~x & ~y)])
    traces = []
    for i, (name, color) in enumerate(kinds):
        rows = [part[i] for part in parts]
        traces.append(
            go.Bar(
                y=[escape(task) for task in tasks],
                x=[len(row) / sum(map(len, part)) for row, part in zip(rows, parts, strict=True)],
                orientation="h",
                name=name,
                marker={"color": color, "line": {"color": "white", "width": 1}},
                text=[str(len(row)) if len(row) else "" for row in rows],
                textposition="inside",
                insidetextanchor="middle",
                customdata=[_instances(row) for row in rows],
                hovertemplate="%{y}: " + name + ", %{customdata}<extra></extra>",
            )
        )
    figure = figure_of(traces, height=130 + 34 * len(tasks))
    figure.update_layout(barmode="stack", bargap=0.25)
    figure.update_xaxes(title_text="share of the instances of the search split", range=[0, 1], tickformat=".0%")
    figure.update_yaxes(autorange="reversed", showgrid=False, type="category")
    return figure


def _instances(row: NDArray[np.int64], most: int = 12) -> str:
    shown = ", ".join(str(i) for i in row[:most])
    return f"{len(row)} instances: {shown}" + (f" and {len(row) - most} more" if len(row) > most else "")


def hover_text(view: View, record: TrialRecord) -> str:
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
