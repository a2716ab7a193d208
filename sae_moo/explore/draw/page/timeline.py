"""Who was busy when, as a figure for a page."""

from __future__ import annotations

from html import escape

import numpy as np
import plotly.graph_objects as go

from sae_moo.explore.draw.page.plots import Figure, figure_of
from sae_moo.explore.draw.palette import BLACK
from sae_moo.explore.draw.timeline import COLOURS, Rows
from sae_moo.explore.timeline import Span
from sae_moo.explore.words import duration


def timeline_figure(rows: Rows) -> Figure:
    """Return who was busy when, from `timeline.rows_of`."""
    traces = []
    for phase, shapes in rows.shapes.items():
        closed = [np.concatenate([shape, shape[:1], [(np.nan, np.nan)]]) for shape in shapes]
        x, y = np.concatenate(closed)[:-1].T.astype(np.float32)
        traces.append(
            go.Scatter(
                x=x,
                y=y,
                mode="lines",
                line={"width": 0},
                fill="toself",
                fillcolor=COLOURS[phase],
                hoverinfo="skip",
                name=phase,
            )
        )
    if rows.middles:
        across, up, spans = zip(*rows.middles, strict=True)
        traces.append(
            go.Scatter(
                x=across,
                y=up,
                mode="markers",
                marker={"size": 12, "opacity": 0},
                text=[_said(span) for span in spans],
                hovertemplate="%{text}<extra></extra>",
                showlegend=False,
            )
        )
    count = len(rows.names)
    figure = figure_of(traces, height=170 + (60 if count == 1 else 0) + min(900, count * (28 if count <= 16 else 13)))
    for place in rows.breaks:
        figure.add_vline(place, line={"color": BLACK, "dash": "dash", "width": 1})
    figure.update_xaxes(title_text=f"time ({rows.unit})", range=[0, rows.length])
    figure.update_yaxes(
        range=[0, count],
        tickvals=[count - i - 0.5 for i in range(count)],
        ticktext=[escape(name) for name in rows.names],
        tickfont_size=13 if count <= 16 else 9,
        showgrid=False,
    )
    return figure


def _said(span: Span) -> str:
    parts = ", ".join(f"{part.phase} {duration(part.ended - part.began)}" for part in span.parts)
    return f"trial {span.record.number}, {escape(span.worker)}: {parts}"
