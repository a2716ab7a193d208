"""The front as a figure for a page, with what it was found among."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from sae_moo.explore.plots import (
    BLACK,
    BLUE,
    GREY,
    GRID,
    ORANGE,
    PURPLE,
    SCALE,
    SKY,
    VERMILLION,
    Axis,
    Figure,
    axes_of,
    figure_of,
    hover_text,
    styled_,
    wrapped,
)
from sae_moo.explore.view import Marked, View, by_trial, sparsity
from sae_moo.storage import TrialRecord

REFERENCE_SHAPES = {"base": ("square", BLACK), "uniform average": ("star", PURPLE)}
MOST_DOTS = 2000  # dominated trials drawn in a figure; browsers slow down beyond some thousands


def _others(view: View, drawn: Sequence[TrialRecord]) -> str:
    rest = len(view.done) - len(view.front)
    return f"{rest:,} other trials" if len(drawn) == rest else f"{len(drawn):,} of {rest:,} other trials"


def front_figures(view: View) -> list[Figure]:
    """Return the front with what it was found among: the experts, the base, their average and the picks marked.

    With one objective its value by trial; with two a plane; with three a space to turn, then every pair of objectives;
    with more parallel coordinates of the front, then mean accuracy against sparsity.
    """
    axes = axes_of(view)
    number = Axis("trial", "trial number", lambda record: record.number, lambda record: 0.0)
    mean = Axis("accuracy", "accuracy (mean of the scored objectives, 0 to 1)", view.accuracy, view.accuracy_error)
    zeros = Axis("sparsity", "sparsity (fraction of zeros among prunable weights)", sparsity, lambda record: 0.0)
    match len(axes):
        case 1:
            return [_panels(view, [(number, axes[0])])]
        case 2:
            return [_panels(view, [(axes[1], axes[0])], staircase=True)]
        case 3:
            return [_space(view, axes), _panels(view, [(axes[2], axes[0]), (axes[2], axes[1]), (axes[1], axes[0])])]
        case _:
            return [_parallel(view, axes), _panels(view, [(zeros, mean)])]


def thinned(view: View) -> list[TrialRecord]:
    """Return the trials with a result that are not on the front, at most `MOST_DOTS`, evenly spread over time."""
    front = {record.number for record in view.front}
    rest = [record for record in view.done if record.number not in front]
    if len(rest) <= MOST_DOTS:
        return rest
    return [rest[i] for i in np.linspace(0, len(rest) - 1, MOST_DOTS).astype(int)]


def _panels(view: View, pairs: Sequence[tuple[Axis, Axis]], staircase: bool = False) -> Figure:
    """Return a panel for each (x, y): dominated trials in grey, the front with error bars, references and picks."""
    figure = make_subplots(cols=len(pairs), horizontal_spacing=0.09) if len(pairs) > 1 else Figure()
    others = thinned(view)
    for column, (x, y) in enumerate(pairs, 1):
        traces = [
            _dots(view, others, x, y, _others(view, others), {"color": GREY, "size": 5, "opacity": 0.7}),
            _dots(
                view,
                view.front,
                x,
                y,
                f"front, {len(view.front):,} trials (bars: standard error)",
                {"color": BLUE, "size": 8},
                bars=len(view.front) <= 200,
            ),
        ]
        if staircase and len(view.front) > 1:
            steps = sorted(view.front, key=x.value)
            corners = {"shape": "vh", "color": BLUE, "width": 1}
            stairs = [x.value(r) for r in steps], [y.value(r) for r in steps]
            traces.append(go.Scatter(x=stairs[0], y=stairs[1], mode="lines", line=corners, hoverinfo="skip"))
            traces[-1].showlegend = False
        traces += _marks(view, x, y)
        traces += [_ring(view, record, x, y, names, len(pairs) == 1) for record, names in by_trial(view.picks)]
        for trace in traces:
            trace.legendgroup = trace.name
            trace.showlegend = trace.showlegend is not False and column == 1
            figure.add_trace(trace, *((1, column) if len(pairs) > 1 else ()))
        where = {"col": column} if len(pairs) > 1 else {}
        figure.update_xaxes(title_text=wrapped(x.title, 44 if len(pairs) > 1 else 90), **where)
        figure.update_yaxes(title_text=wrapped(y.title, 44), **where)
    return styled_(figure, height=520)


def _space(view: View, axes: Sequence[Axis]) -> Figure:
    """Return three objectives as a space to turn."""
    others = thinned(view)
    parts = [(others, _others(view, others), GREY, 2.5), (view.front, "front", BLUE, 4.5)]
    traces = [
        go.Scatter3d(
            **_places(rows, axes),
            mode="markers",
            name=name,
            marker={"size": size, "color": color, "line": {"width": 0}},
            customdata=[r.number for r in rows],
            text=[hover_text(view, r) for r in rows],
            hovertemplate="trial %{customdata}: %{text}<extra></extra>",
        )
        for rows, name, color, size in parts
    ]
    for marked in view.references:
        symbol = {"base": "square", "uniform average": "cross"}.get(marked.name, "diamond")
        color = REFERENCE_SHAPES.get(marked.name, ("", ORANGE))[1]
        traces.append(
            go.Scatter3d(
                **_places([marked.record], axes),
                mode="markers+text",
                text=[escape(marked.name)],
                showlegend=False,
                textfont={"size": 11},
                marker={"size": 6, "symbol": symbol, "color": color},
                hovertemplate=f"{escape(marked.name)}, trial {marked.record.number}<extra></extra>",
            )
        )
    for record, names in by_trial(view.picks):
        said = escape(_names(names))
        traces.append(
            go.Scatter3d(
                **_places([record], axes),
                mode="markers",
                name=f"{said}: trial {record.number}",
                marker={"size": 9, "symbol": "circle-open", "color": VERMILLION},
                hovertemplate=f"{said}: trial {record.number}, {hover_text(view, record)}<extra></extra>",
            )
        )
    figure = figure_of(traces, height=680)
    for key, axis in zip(("xaxis", "yaxis", "zaxis"), axes, strict=True):
        figure.update_layout(scene={key: {"title": {"text": escape(axis.name)}, "gridcolor": GRID}})
    near = {"eye": {"x": 1.35, "y": 1.25, "z": 0.6}, "center": {"x": 0, "y": 0, "z": -0.12}}
    figure.update_layout(scene={"camera": near, "aspectmode": "cube"}, margin={"l": 0, "r": 0, "t": 0, "b": 0})
    figure.update_layout(legend={"y": 0.99, "yanchor": "top", "orientation": "v", "bgcolor": "rgba(255,255,255,0)"})
    return figure


def _places(records: Sequence[TrialRecord], axes: Sequence[Axis]) -> dict[str, NDArray[np.float32]]:
    return {key: np.array([axis.value(r) for r in records], np.float32) for key, axis in zip("xyz", axes, strict=True)}


def _parallel(view: View, axes: Sequence[Axis]) -> Figure:
    """Return the front in parallel coordinates, coloured by sparsity; dragging along an axis keeps a range."""
    zeros = [sparsity(record) for record in view.front]
    trace = go.Parcoords(
        dimensions=[
            {"label": escape(axis.name), "values": np.array([axis.value(r) for r in view.front], np.float32)}
            for axis in axes
        ],
        line={
            "color": zeros,
            "colorscale": SCALE,
            "showscale": True,
            "colorbar": {"title": {"text": "sparsity", "side": "right"}, "thickness": 12},
        },
        labelangle=0 if len(axes) < 7 else -20,
    )
    figure = figure_of([trace], legend=False, height=480)
    figure.update_layout(margin={"l": 70, "r": 60, "t": 70})
    return figure


def _dots(
    view: View, records: Sequence[TrialRecord], x: Axis, y: Axis, name: str, marker: dict[str, Any], bars: bool = False
) -> go.Scatter:
    def errors(axis: Axis) -> dict[str, Any] | None:
        spread = np.nan_to_num(np.array([axis.error(r) for r in records], np.float32))
        return {"array": spread, "color": SKY, "thickness": 1, "width": 0} if bars and spread.any() else None

    return go.Scatter(
        x=np.array([x.value(r) for r in records], np.float32),
        y=np.array([y.value(r) for r in records], np.float32),
        error_x=errors(x),
        error_y=errors(y),
        mode="markers",
        name=name,
        marker=marker,
        customdata=[r.number for r in records],
        text=[hover_text(view, r) for r in records],
        hovertemplate="trial %{customdata}: %{text}<extra></extra>",
    )


def _marks(view: View, x: Axis, y: Axis) -> list[go.Scatter]:
    """Return the references as marks with their names beside them; neighbours' names go up and down in turn."""
    marks: list[go.Scatter] = []
    reach = max((y.value(r) for r in view.done), default=1.0) - min((y.value(r) for r in view.done), default=0.0)
    last, side = -np.inf, 0
    for marked in sorted(view.references, key=lambda each: y.value(each.record)):
        symbol, color = REFERENCE_SHAPES.get(marked.name, ("diamond", ORANGE))
        name, height = escape(marked.name), y.value(marked.record)
        side = 1 - side if height - last < 0.05 * reach else 0
        last = height
        said = f"{name}, trial {marked.record.number}: {hover_text(view, marked.record)}"
        marks.append(
            go.Scatter(
                x=[x.value(marked.record)],
                y=[height],
                mode="markers+text",
                text=[name],
                textposition=("bottom right", "top right")[side],
                textfont={"size": 11, "color": "#333"},
                name=name,
                showlegend=False,
                marker={"symbol": symbol, "size": 12, "color": color, "line": {"color": "white", "width": 1}},
                hovertemplate=f"{said}<extra></extra>",
            )
        )
    return marks


def _ring(view: View, record: TrialRecord, x: Axis, y: Axis, names: Sequence[Marked], said: bool) -> go.Scatter:
    name = f"{escape(_names(names))}: trial {record.number}"
    return go.Scatter(
        x=[x.value(record)],
        y=[y.value(record)],
        mode="markers+text" if said else "markers",
        text=[f"<b>{record.number}</b>"],
        textposition="top right",
        textfont={"color": VERMILLION},
        name=name,
        marker={"symbol": "circle-open", "size": 16, "color": VERMILLION, "line": {"width": 2.5}},
        hovertemplate=f"{name}, {hover_text(view, record)}<extra></extra>",
    )


def _names(names: Sequence[Marked]) -> str:
    return "; ".join(each.name for each in names)
