"""Rows of a live picture, of which those that matter least go first where the terminal is low."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

LABEL = 12  # columns


@dataclass(frozen=True, slots=True)
class ScreenRow:
    """A row of a picture; where the terminal is low, those of the largest rank go first."""

    rank: int
    shown: RenderableType


def fitting(rows: Sequence[ScreenRow], height: int) -> list[RenderableType]:
    """Return the rows that a height has room for, in their order."""
    kept = sorted(range(len(rows)), key=lambda i: (rows[i].rank, i))[:height]
    return [rows[i].shown for i in sorted(kept)]


def said(label: str, value: str, style: str = "") -> Text:
    """Return a row: what it is about, and what there is to say; cut where the terminal ends."""
    text = Text(no_wrap=True, overflow="ellipsis")
    return text.append(f"{label:<{LABEL}}", "dim").append(" ".join(value.split(" ")), style)


def bar(done: float, total: float, text: str, label: str = "") -> Table:
    """Return a bar with words behind it, and before it if there are any."""
    grid = Table.grid(expand=True, padding=(0, 1, 0, 0))
    if label:
        grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True, justify="right")
    cells: list[RenderableType] = [Text(label, style="dim")] if label else []
    grid.add_row(*cells, ProgressBar(total=max(total, 1), completed=done), Text(text))
    return grid
