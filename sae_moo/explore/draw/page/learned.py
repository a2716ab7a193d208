"""What a learned generator did in a search, as figures for a page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sae_moo.explore.draw.learned import Moves, Panel
from sae_moo.explore.draw.page.front import marks, write_names_
from sae_moo.explore.draw.page.plots import Figure, figure_of, hover_text, styled_
from sae_moo.explore.draw.palette import BLUE, GREEN, GREY, SCALE, VERMILLION
from sae_moo.explore.view import View


def learning_figure(panels: Sequence[Panel]) -> Figure:
    """Return the generator's numbers against evaluations, from `learned.panels_of`, a panel for each scale."""
    figure = make_subplots(
        cols=len(panels), horizontal_spacing=0.09, subplot_titles=[escape(panel.title) for panel in panels]
    )
    for column, panel in enumerate(panels, 1):
        for (name, (steps, heights)), colour in zip(panel.curves.items(), (BLUE, VERMILLION), strict=False):
            trace = go.Scatter(
                x=steps.astype(np.int32),
                y=heights.astype(np.float32),
                mode="lines" if len(steps) > 1 else "markers",
                line={"color": colour, "width": 2, "shape": "hv"},
                name=name,
                hovertemplate=name + " after %{x} evaluations: %{y:.4g}<extra></extra>",
            )
            figure.add_trace(trace, 1, column)
        if panel.logarithmic:
            figure.update_yaxes(type="log", exponentformat="power", dtick="D2", col=column)
        else:
            figure.update_yaxes(rangemode="tozero", col=column)
    styled_(figure, height=400)
    figure.update_annotations(font_size=13)  # titles of the panels
    figure.update_layout(legend_y=1.12, margin_t=100)
    figure.update_xaxes(title_text="evaluations", rangemode="tozero")
    return figure


def moves_figure(view: View, moves: Moves) -> Figure:
    """Return where a generator moved candidates, from `learned.moves_of`."""
    x, y, height = moves.right, moves.up, moves.height
    traces = []
    for better, colour, name in (
        (False, GREY, f"a move, no more {height.name}"),
        (True, GREEN, f"a move to more {height.name}"),
    ):
        xs: list[float | None] = []
        ys: list[float | None] = []
        for parent, child in moves.better(better):
            xs += [x.value(parent), x.value(child), None]
            ys += [y.value(parent), y.value(child), None]
        sizes = [0, 10, 0] * (len(xs) // 3)
        arrow = {"symbol": "arrow", "angleref": "previous", "color": colour, "size": sizes, "standoff": 4}
        traces.append(
            go.Scatter(
                x=xs,
                y=ys,
                mode="lines+markers",
                line={"color": colour, "width": 1},
                marker=arrow,
                opacity=0.8,
                name=escape(name),
                hoverinfo="skip",
            )
        )
    traces.append(
        go.Scatter(
            x=x.values(moves.trials).astype(np.float32),
            y=y.values(moves.trials).astype(np.float32),
            mode="markers",
            showlegend=False,
            marker={
                "size": 7,
                "color": height.values(moves.trials).astype(np.float32),
                "colorscale": SCALE,
                "line": {"color": "white", "width": 0.5},
                "colorbar": {"title": {"text": escape(height.name), "side": "right"}, "thickness": 12},
            },
            customdata=[record.number for record in moves.trials],
            text=[hover_text(view, record) for record in moves.trials],
            hovertemplate="trial %{customdata}: %{text}<extra></extra>",
        )
    )
    figure = figure_of([*traces, *marks(view, x, y)], height=520)
    write_names_(figure, view, x, y, column=1, columns=1)
    figure.update_xaxes(title_text=x.title)
    figure.update_yaxes(title_text=y.title)
    return figure
