"""The front as a figure for a page, with what it was found among."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from sae_moo.explore.draw.labels import Label, beside
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
from sae_moo.explore.draw.page.plots import Figure, figure_of, hover_text, styled_, wrapped
from sae_moo.explore.draw.palette import BLUE, GREY, GRID, SCALE, SKY, VERMILLION, mark_of
from sae_moo.explore.view import Marked, View, by_trial, sparsity
from sae_moo.study.record import Ended

MARGIN = 0.006  # beyond the outermost dots of an axis that is widened


def front_figures(view: View) -> list[Figure]:
    """Return the front with what it was found among: the experts, the base, their average and the picks marked.

    With one objective its value by trial; with two a plane; with three a space to turn, then every pair of objectives;
    with more parallel coordinates of the front, then mean accuracy against what else is an objective, or sparsity.
    """
    axes, flat = axes_of(view), _panels(view, planes(view), staircase=len(view.objectives) == 2)
    match len(axes):
        case 1 | 2:
            return [flat]
        case 3:
            return [_space(view, axes), flat]
        case _:
            return [_parallel(view, axes), flat]


def _panels(view: View, pairs: Sequence[tuple[Axis, Axis]], staircase: bool = False) -> Figure:
    """Return a panel for each (x, y): dominated trials in grey, the front with error bars, references and picks."""
    figure = make_subplots(cols=len(pairs), horizontal_spacing=0.09) if len(pairs) > 1 else Figure()
    others = thinned(view)
    for column, (x, y) in enumerate(pairs, 1):
        traces = [
            _dots(view, others, x, y, thinned_words(view, others), {"color": GREY, "size": 5, "opacity": 0.7}),
            _dots(
                view,
                view.front,
                x,
                y,
                front_words(view),
                {"color": BLUE, "size": 8},
                bars=barred(view),
            ),
        ]
        if staircase and len(view.front) > 1:
            steps = sorted(view.front, key=x.value)
            corners = {"shape": "vh", "color": BLUE, "width": 1}
            stairs = [x.value(r) for r in steps], [y.value(r) for r in steps]
            traces.append(go.Scatter(x=stairs[0], y=stairs[1], mode="lines", line=corners, hoverinfo="skip"))
            traces[-1].showlegend = False
        traces += marks(view, x, y)
        traces += [_ring(view, record, x, y, names, len(pairs) == 1) for record, names in by_trial(view.picks)]
        for trace in traces:
            trace.legendgroup = trace.name
            trace.showlegend = trace.showlegend is not False and column == 1
            figure.add_trace(trace, *((1, column) if len(pairs) > 1 else ()))
        write_names_(figure, view, x, y, column, len(pairs))
        where = {"col": column} if len(pairs) > 1 else {}
        figure.update_xaxes(title_text=wrapped(x.title, 44 if len(pairs) > 1 else 90), **where)
        figure.update_yaxes(title_text=wrapped(y.title, 44), **where)
        shown = [*others, *view.front, *(each.record for each in view.references)]
        for axis, change in ((x, figure.update_xaxes), (y, figure.update_yaxes)):
            if axis.name != "trial" and shown:
                values, errors = axis.values(shown), axis.errors(shown)
                reach = 0.0 if errors is None or not barred(view) else errors
                low, high = float((values - reach).min()), float((values + reach).max())
                if widened(low, high) != (low, high):
                    change(range=widened(low - MARGIN, high + MARGIN), **where)
    return styled_(figure, height=520)


def _space(view: View, axes: Sequence[Axis]) -> Figure:
    """Return three objectives as a space to turn."""
    others = thinned(view)
    parts = [(others, thinned_words(view, others), GREY, 2.5), (view.front, "front", BLUE, 4.5)]
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
        shape = mark_of(marked.name).shape
        symbol = "cross" if shape == "star" else shape  # there are no stars in space
        color = mark_of(marked.name).colour
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


def _places(records: Sequence[Ended], axes: Sequence[Axis]) -> dict[str, NDArray[np.float32]]:
    return {key: axis.values(records).astype(np.float32) for key, axis in zip("xyz", axes, strict=True)}


def _parallel(view: View, axes: Sequence[Axis]) -> Figure:
    """Return the front in parallel coordinates, coloured by sparsity; dragging along an axis keeps a range."""
    zeros = [sparsity(record) for record in view.front]
    trace = go.Parcoords(
        dimensions=[
            {"label": escape(axis.name), "values": axis.values(view.front).astype(np.float32)} for axis in axes
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
    view: View, records: Sequence[Ended], x: Axis, y: Axis, name: str, marker: dict[str, Any], bars: bool = False
) -> go.Scatter:
    def errors(axis: Axis) -> dict[str, Any] | None:
        spread = axis.errors(records) if bars else None
        if spread is None:
            return None
        return {"array": spread.astype(np.float32), "color": SKY, "thickness": 1, "width": 0}

    return go.Scatter(
        x=x.values(records).astype(np.float32),
        y=y.values(records).astype(np.float32),
        error_x=errors(x),
        error_y=errors(y),
        mode="markers",
        name=name,
        marker=marker,
        customdata=[r.number for r in records],
        text=[hover_text(view, r) for r in records],
        hovertemplate="trial %{customdata}: %{text}<extra></extra>",
    )


def marks(view: View, x: Axis, y: Axis) -> list[go.Scatter]:
    """Return a mark for each reference."""
    marks: list[go.Scatter] = []
    for marked in stacked(view):
        mark = mark_of(marked.name)
        name = escape(marked.name)
        said = f"{name}, trial {marked.record.number}: {hover_text(view, marked.record)}"
        marks.append(
            go.Scatter(
                x=[x.value(marked.record)],
                y=[y.value(marked.record)],
                mode="markers",
                name=name,
                showlegend=False,
                marker={"symbol": mark.shape, "size": 12, "color": mark.colour, "line": {"color": "white", "width": 1}},
                hovertemplate=f"{said}<extra></extra>",
            )
        )
    return marks


def write_names_(figure: Figure, view: View, x: Axis, y: Axis, column: int, columns: int) -> None:
    """Write the references' names beside their marks, in place; how large the page draws the figure is taken to be."""
    if not view.references:
        return
    size, width, height = 11, 980 / columns, 380  # pixels
    labels = [Label(each.name, (x.value(each.record), y.value(each.record))) for each in view.references]
    places = np.array([label.place for label in labels])
    drawn = np.stack([x.values(view.done), y.values(view.done)], axis=1)
    low, span = drawn.min(axis=0), np.maximum(np.ptp(drawn, axis=0), 1e-9)
    pixels = (places - low) / span * (width, height)
    heights, left = beside(pixels, labels, (width + 30, -20.0, height + 20), size)
    for label, (_, from_), to, flipped in zip(labels, pixels, heights, left, strict=True):
        figure.add_annotation(
            x=label.place[0],
            y=label.place[1],
            xref=f"x{column}" if column > 1 else "x",
            yref=f"y{column}" if column > 1 else "y",
            text=escape(label.text),
            ax=-10 if flipped else 10,
            ay=float(from_ - to),
            xanchor="right" if flipped else "left",
            arrowhead=0,
            arrowwidth=0.6,
            arrowcolor="#999" if abs(to - from_) > size / 2 else "rgba(0,0,0,0)",
            font={"size": size, "color": "#333"},
        )


def _ring(view: View, record: Ended, x: Axis, y: Axis, names: Sequence[Marked], said: bool) -> go.Scatter:
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
