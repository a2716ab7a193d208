"""Static pictures of a study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sae_moo.errors import InputError
from sae_moo.objectives import Objective
from sae_moo.storage import TrialRecord

FORMATS = (".png", ".svg", ".pdf")


def draw_front(
    path: Path,
    trials: Sequence[TrialRecord],
    front: Sequence[TrialRecord],
    objectives: Sequence[Objective],
    marked: TrialRecord | None = None,
) -> None:
    """Write a picture of all trials and the front over the last and the first objective, error bars one standard error.

    Args:
        path: the file to write; its ending says how.
        trials: all trials; those without values are left out.
        front: the non-dominated ones.
        objectives: two or more; with more than two the others are not shown.
        marked: the trial to call the knee.

    Raises:
        InputError: for an unknown ending, a single objective or an empty front.
    """
    if path.suffix not in FORMATS:
        raise InputError(f"{path}: expected a name ending in {', '.join(FORMATS)}")
    if len(objectives) < 2 or not front:
        raise InputError(f"{path}: expected a front over two objectives to draw, got {len(front)} trials")
    from matplotlib.figure import Figure  # no pyplot: nothing global, no window

    y, x = objectives[0].name, objectives[-1].name
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    done = [trial for trial in trials if trial.values]
    axes.scatter(
        [t.values[x] for t in done], [t.values[y] for t in done], s=14, c="#b9c2cc", label=f"{len(done)} trials"
    )
    steps = sorted(front, key=lambda trial: trial.values[x])
    axes.errorbar(
        [t.values[x] for t in steps],
        [t.values[y] for t in steps],
        yerr=[t.stderr[y] for t in steps],
        fmt="o-" if len(objectives) == 2 else "o",
        color="#1f5fa8",
        ecolor="#8fb3dc",
        drawstyle="steps-pre",  # below and left of the stairs is what the front dominates
        markersize=5,
        linewidth=1.2,
        label=f"front, {len(front)} trials (± one standard error)",
    )
    if marked is not None:
        place = (marked.values[x], marked.values[y])
        axes.annotate(
            f"knee: trial {marked.number}",
            place,
            xytext=(12, 14),
            textcoords="offset points",
            arrowprops={"arrowstyle": "->"},
        )
    axes.set(xlabel=x, ylabel=f"{y} (search split)")
    if len(objectives) > 2:
        others = ", ".join(objective.name for objective in objectives[1:-1])
        axes.set_title(f"2 of {len(objectives)} objectives; not shown: {others}", fontsize="small", loc="right")
    axes.grid(color="#e6e9ec")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside upper left", ncols=2)
    figure.savefig(path, dpi=150)


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
        axes.grid(color="#e6e9ec")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside upper center", ncols=min(5, len(curves)))
    figure.savefig(path, dpi=150)
