"""Pictures of a study as files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sae_moo.errors import InputError
from sae_moo.explore import pictures
from sae_moo.explore.figure_data import agreement_of, ancestry_of, blocks_of
from sae_moo.explore.front_picture import front_picture
from sae_moo.explore.history import generations
from sae_moo.explore.pictures import styled_
from sae_moo.explore.view import View
from sae_moo.files import whole_folder
from sae_moo.searchers.ratio import RATIO
from sae_moo.storage import TrialRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")
DPI = 150  # of PNGs


def draw_front(path: Path, view: View) -> None:
    """Write a picture of the front; see `front_picture.front_picture`.

    Args:
        path: the file to write; its ending says how.
        view: the study.

    Raises:
        InputError: for an unknown ending or an empty front.
    """
    if path.suffix not in FORMATS:
        raise InputError(f"{path}: expected a name ending in {', '.join(FORMATS)}")
    if not view.front:
        raise InputError(f"{path}: the front is empty, there is nothing to draw")
    front_picture(view).savefig(path, dpi=DPI)


@dataclass(frozen=True, slots=True)
class Written:
    """What `write_figures` made.

    Args:
        trial: number of the trial that was looked into.
        files: what each shows -> name of its file in the folder, in order.
        without: what could not be shown -> why.
    """

    trial: int
    files: dict[str, str]
    without: dict[str, str]


def write_figures(
    view: View, output: Path, trial: int | None = None, against: int | None = None, ending: str = ".png"
) -> Written:
    """Write all figures of a study and of one of its trials into a new folder, whole or not at all.

    Args:
        view: the study.
        output: the folder to make; it must not exist yet, or be empty.
        trial: number of the trial to look into; None: the knee.
        against: number of the trial whose answers it is held against; None: `View.held_against`.
        ending: of the files, one of `FORMATS`.

    Raises:
        InputError: if the front is empty, a trial is unknown or has no result, both trials are the same or were asked
            no instances in common, or the folder cannot be made.
    """
    if not view.front:
        raise InputError(f"the front of {view.name} is empty: no evaluation so far is feasible")
    record = view.picks[0].record if trial is None else view.trial(trial)
    if against == record.number:
        raise InputError(f"trial {against} cannot be held against itself")
    other = view.held_against(record) if against is None else view.trial(against)
    number, grown = record.number, generations(view.records, RATIO)
    title = f"{view.name}, {_with_names(view, record)}"
    draw: dict[str, tuple[str, Callable[[], Figure]]] = {
        "front": ("front", lambda: front_picture(view)),
        "hypervolume": ("hypervolume", lambda: pictures.hypervolume_picture(view.hypervolumes)),
    }
    without: dict[str, str] = {}
    if len(grown.number) > 1:
        draw["generations"] = "generations", lambda: pictures.generation_picture(grown)
    else:
        without["generations"] = "all trials are of one generation"
    draw["blocks"] = f"blocks-{number}", lambda: pictures.block_picture(blocks_of(view, record), title)
    ancestry = ancestry_of(view, record)
    if ancestry is not None:
        draw["lineage"] = f"lineage-{number}", lambda: pictures.lineage_picture(ancestry, title)
    else:
        without["lineage"] = f"trial {number} has no parents"
    agreed = agreement_of(view, record, other) if other is not None else None
    if other is not None and agreed is not None:
        name = f"agreement-{number}-{other.number}"
        draw["agreement"] = name, lambda: pictures.agreement_picture(agreed, f"{title} and {_with_names(view, other)}")
    elif against is not None:
        raise InputError(f"trials {number} and {against} were asked no instances in common")
    else:
        without["agreement"] = "there is neither average nor base to hold it against; name a trial"
    with whole_folder(output) as folder:
        for name, make in draw.values():
            make().savefig(folder / f"{name}{ending}", dpi=DPI)
    return Written(number, {what: f"{name}{ending}" for what, (name, _) in draw.items()}, without)


def _with_names(view: View, record: TrialRecord) -> str:
    names = [each.name for each in (*view.picks, *view.references) if each.record.number == record.number]
    return f"trial {record.number}" + (f" ({'; '.join(names)})" if names else "")


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
        styled_(axes)
    widest = max(len(curve.name) for curve in curves)
    columns = max(1, min(5, len(curves), 110 // (widest + 8)))  # some 110 letters fit across
    figure.legend(frameon=False, loc="outside upper center", ncols=columns)
    figure.savefig(path, dpi=DPI)
