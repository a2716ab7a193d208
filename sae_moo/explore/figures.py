"""Static pictures of a study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sae_moo.errors import InputError
from sae_moo.explore.view import Marked, by_trial, sparsity
from sae_moo.explore.words import names_words, objective_words
from sae_moo.objectives import Objective
from sae_moo.storage import TrialRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")
# Okabe and Ito 2008, https://jfly.uni-koeln.de/color/; grey for what is not of interest
ORANGE, SKY, BLUE, VERMILLION, PURPLE, GREY = "#E69F00", "#56B4E9", "#0072B2", "#D55E00", "#CC79A7", "#b9c2cc"


def draw_front(
    path: Path,
    trials: Sequence[TrialRecord],
    front: Sequence[TrialRecord],
    objectives: Sequence[Objective],
    picks: Sequence[Marked] = (),
    references: Sequence[Marked] = (),
) -> None:
    """Write a picture of all trials and the front, error bars one standard error.

    Two objectives make a plane, the last to the right; three a panel for every pair; more parallel coordinates of the
    front, coloured by sparsity.

    Args:
        path: the file to write; its ending says how.
        trials: all trials; those without values are left out.
        front: the non-dominated ones.
        objectives: two or more.
        picks: trials to circle and name.
        references: trials to mark and name, e.g. the experts.

    Raises:
        InputError: for an unknown ending, a single objective or an empty front.
    """
    if path.suffix not in FORMATS:
        raise InputError(f"{path}: expected a name ending in {', '.join(FORMATS)}")
    if len(objectives) < 2 or not front:
        raise InputError(f"{path}: expected a front over two objectives to draw, got {len(front)} trials")
    from matplotlib.figure import Figure  # no pyplot: nothing global, no window

    done = [trial for trial in trials if trial.values]
    if len(objectives) > 3:
        figure = Figure(figsize=(1.6 * len(objectives) + 2, 4.6), layout="constrained")
        _draw_parallel(figure, front, objectives)
        figure.savefig(path, dpi=150)
        return
    pairs = [(-1, 0)] if len(objectives) == 2 else [(2, 0), (2, 1), (1, 0)]
    figure = Figure(figsize=(7.6, 4.8) if len(pairs) == 1 else (15, 5.4), layout="constrained")
    for axes, (right, up) in zip(figure.subplots(1, len(pairs), squeeze=False)[0], pairs, strict=True):
        _draw_panel(axes, done, front, objectives[right], objectives[up], len(objectives) == 2)
        _draw_names(axes, objectives[right], objectives[up], picks, references)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside upper left", ncols=2, fontsize="small")
    figure.savefig(path, dpi=150)


def _draw_panel(
    axes: Axes, done: Sequence[TrialRecord], front: Sequence[TrialRecord], right: Objective, up: Objective, stairs: bool
) -> None:
    x, y = right.name, up.name
    axes.scatter([t.values[x] for t in done], [t.values[y] for t in done], s=14, c=GREY, label=f"{len(done)} trials")
    steps = sorted(front, key=lambda trial: trial.values[x])
    axes.errorbar(
        [t.values[x] for t in steps],
        [t.values[y] for t in steps],
        xerr=_errors(steps, x),
        yerr=_errors(steps, y),
        fmt="o-" if stairs else "o",
        color=BLUE,
        ecolor=SKY,
        drawstyle="steps-pre" if stairs else "default",  # below and left of the stairs is what the front dominates
        markersize=5,
        linewidth=1.2,
        label=f"front, {len(front)} trials (± one standard error)",
    )
    axes.set(xlabel=objective_words(right), ylabel=f"{objective_words(up)}, search split")
    _style(axes)


def _errors(records: Sequence[TrialRecord], name: str) -> list[float] | None:
    errors = [record.stderr.get(name, 0.0) for record in records]
    return [error if error > 0 else 0.0 for error in errors] if any(error > 0 for error in errors) else None


def _draw_names(
    axes: Axes, right: Objective, up: Objective, picks: Sequence[Marked], references: Sequence[Marked]
) -> None:
    x, y = right.name, up.name
    for marked in references:
        shape, color = {"base": ("s", "black"), "uniform average": ("*", PURPLE)}.get(marked.name, ("D", ORANGE))
        place = (marked.record.values[x], marked.record.values[y])
        axes.plot(*place, shape, color=color, markersize=9 if shape == "*" else 6, zorder=4)
        _beside(axes, marked.name, place, (7, -8), "#444444")
    for record, names in by_trial(picks):
        place = (record.values[x], record.values[y])
        axes.plot(
            *place,
            "o",
            markersize=11,
            fillstyle="none",
            color=VERMILLION,
            markeredgewidth=1.6,
            zorder=5,
            label=f"{names_words(names)}: {record.number}",
        )
        _beside(axes, str(record.number), place, (8, 8), VERMILLION)


def _beside(axes: Axes, text: str, place: tuple[float, float], away: tuple[float, float], color: str) -> None:
    """Write beside a point without making room for it."""
    said = axes.annotate(text, place, away, textcoords="offset points", fontsize=8, va="center", color=color)
    said.set_in_layout(False)


def _draw_parallel(figure: Figure, front: Sequence[TrialRecord], objectives: Sequence[Objective]) -> None:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable

    axes = figure.subplots()
    shades = colormaps["cividis"]
    for record in front:
        axes.plot([record.values[o.name] for o in objectives], color=shades(sparsity(record)), linewidth=1)
    axes.set_xticks(range(len(objectives)), [o.name for o in objectives])
    axes.set_ylabel("value, 0 to 1 (search split)")
    axes.set_title(f"front, {len(front)} trials", fontsize="medium", loc="left")
    _style(axes)
    figure.colorbar(ScalarMappable(cmap=shades), ax=axes, label="sparsity (fraction of zeros)")


def _style(axes: Axes) -> None:
    axes.grid(color="#e6e9ec")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """One method's searches, for `draw_progress`.

    Args:
        name: the method's name.
        rows: one array a seed, shape (evaluations, 2): hypervolume and best accuracy after each evaluation.
    """

    name: str
    rows: Sequence[NDArray[np.float64]]


def draw_progress(path: Path, curves: Sequence[Curve]) -> None:
    """Write a picture of hypervolume and best accuracy against evaluations: the median over seeds and the quartiles.

    A search that ended early stays at its last value.

    Args:
        path: the file to write; its ending says how.
        curves: the methods, at least one.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.6), layout="constrained")
    panels = figure.subplots(1, 2)
    colors = colormaps["tab20" if len(curves) > 10 else "tab10"].colors  # type: ignore[attr-defined]
    longest = max(len(row) for curve in curves for row in curve.rows)
    for i, curve in enumerate(curves):
        rows = np.stack([np.concatenate([row, np.repeat(row[-1:], longest - len(row), axis=0)]) for row in curve.rows])
        low, middle, high = np.quantile(rows, (0.25, 0.5, 0.75), axis=0)
        own = max(len(row) for row in curve.rows)
        for j, axes in enumerate(panels):
            color = colors[i % len(colors)]
            steps = np.arange(1, longest + 1)
            axes.plot(steps[:own], middle[:own, j], color=color, linewidth=1.4, label=curve.name if j == 0 else None)
            axes.plot(steps[own - 1 :], middle[own - 1 :, j], color=color, linewidth=0.8, linestyle=":")
            axes.fill_between(steps[:own], low[:own, j], high[:own, j], color=color, alpha=0.18, linewidth=0)
    for axes, name in zip(panels, ("hypervolume of the front", "best accuracy"), strict=True):
        axes.set(xlabel="evaluations", ylabel=f"{name} (search split)")
        _style(axes)
    widest = max(len(curve.name) for curve in curves)
    columns = max(1, min(5, len(curves), 110 // (widest + 8)))  # some 110 letters fit across
    figure.legend(frameon=False, loc="outside upper center", ncols=columns)
    figure.savefig(path, dpi=150)
