"""Pictures of a study as files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sae_moo.errors import InputError
from sae_moo.explore.draw.learned import moves_of, panels_of
from sae_moo.explore.draw.numbers import agreement_of, ancestry_of, blocks_of
from sae_moo.explore.draw.print.front import front_picture
from sae_moo.explore.draw.print.learned import learning_picture, moves_picture
from sae_moo.explore.draw.print.plots import (
    Curve,
    agreement_picture,
    block_picture,
    generation_picture,
    hypervolume_picture,
    lineage_picture,
    progress_picture,
)
from sae_moo.explore.draw.print.timeline import timeline_picture
from sae_moo.explore.draw.timeline import rows_of
from sae_moo.explore.history import generations
from sae_moo.explore.pages.trace import write_trace
from sae_moo.explore.view import View
from sae_moo.files.whole import whole_file, whole_folder
from sae_moo.searchers.ratio import RATIO
from sae_moo.study.folder import TIMELINE
from sae_moo.study.record import Ended

if TYPE_CHECKING:
    from matplotlib.figure import Figure


ENDINGS = (".png", ".svg", ".pdf")
DPI = 150  # of PNGs


def draw_front(path: Path, view: View) -> None:
    """Write a picture of the front; see `print.front.front_picture`.

    Args:
        path: the file to write, whole; its ending says how. One that is there is replaced.
        view: the study.

    Raises:
        InputError: for an unknown ending or an empty front.
    """
    if path.suffix not in ENDINGS:
        raise InputError(f"{path}: expected a name ending in {', '.join(ENDINGS)}")
    if not view.front:
        raise InputError(f"{path}: {view.nothing}")
    _save(front_picture(view), path)


@dataclass(frozen=True, slots=True)
class Written:
    """What `write_figures` made.

    Args:
        trial: number of the trial that was looked into; None where there is no front to take one from.
        files: what each shows -> name of its file in the folder, in order.
        without: what could not be shown -> why.
    """

    trial: int | None
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
        ending: of the files, one of `ENDINGS`.

    Raises:
        InputError: if no trial has a result, a trial is unknown or has none, both trials are the same or were asked no
            instances in common, or the folder cannot be made.
    """
    if not view.done:
        raise InputError(view.nothing)
    if trial is None and not view.front:
        return _write_progress(view, output, ending)
    record = view.picks[0].record if trial is None else view.trial(trial)
    if against == record.number:
        raise InputError(f"trial {against} cannot be held against itself")
    other = view.held_against(record) if against is None else view.trial(against)
    number = record.number
    title = f"{view.name}, {_with_names(view, record)}"
    draw, without = _progress(view)
    draw["blocks"] = f"blocks-{number}", lambda: block_picture(blocks_of(view, record), title)
    ancestry = ancestry_of(view, record)
    if ancestry is not None:
        draw["lineage"] = f"lineage-{number}", lambda: lineage_picture(ancestry, title)
    else:
        without["lineage"] = f"trial {number} has no parents"
    agreed = agreement_of(view, record, other) if other is not None else None
    if other is not None and agreed is not None:
        name = f"agreement-{number}-{other.number}"
        draw["agreement"] = name, lambda: agreement_picture(agreed, f"{title} and {_with_names(view, other)}")
    elif against is not None:
        raise InputError(f"trials {number} and {against} were asked no instances in common that are right or wrong")
    else:
        why = (
            f"trial {other.number} was asked other instances"
            if other is not None
            else "neither the average nor the base was evaluated, to hold it against"
        )
        graded = view.graded.issuperset(view.tasks)
        without["agreement"] = "no task's answers are right or wrong" if graded else f"{why}; name a trial"
    return Written(number, _drawn(view, draw, output, ending), without)


def _write_progress(view: View, output: Path, ending: str) -> Written:
    """Write the figures that need no trial to look into."""
    draw, without = _progress(view)
    without |= dict.fromkeys(("blocks", "lineage", "agreement"), "there is no front to take a trial from; name one")
    return Written(None, _drawn(view, draw, output, ending), without)


def _progress(view: View) -> tuple[dict[str, tuple[str, Callable[[], Figure]]], dict[str, str]]:
    """Return what to draw of the whole study, each with the name of its file, and what cannot be, with why."""
    grown, without = generations(view.records, RATIO), {}
    draw: dict[str, tuple[str, Callable[[], Figure]]] = {}
    if view.front:
        draw["front"] = "front", lambda: front_picture(view)
    else:
        without["front"] = view.nothing
    draw["hypervolume"] = "hypervolume", lambda: hypervolume_picture(view.hypervolumes)
    if len(grown.number) > 1:
        draw["generations"] = "generations", lambda: generation_picture(grown)
    else:
        without["generations"] = "all trials are of one generation"
    panels, moves = panels_of(view), moves_of(view)
    if panels:
        draw["learning"] = "learning", lambda: learning_picture(panels)
    if moves is not None:
        draw["moves"] = "moves", lambda: moves_picture(view, moves)
    rows = rows_of(view.timeline)
    if rows is not None:
        draw["timeline"] = "timeline", lambda: timeline_picture(rows, view.name)
    return draw, without


def _drawn(view: View, draw: dict[str, tuple[str, Callable[[], Figure]]], output: Path, ending: str) -> dict[str, str]:
    """Write figures and a trace into a new folder; return what each file shows with its name."""
    files = {what: f"{name}{ending}" for what, (name, _) in draw.items()}
    with whole_folder(output) as folder:
        for name, make in draw.values():
            make().savefig(folder / f"{name}{ending}", dpi=DPI)
        if write_trace(folder / TIMELINE, view.name, view.records):
            files["trace"] = TIMELINE
    return files


def _with_names(view: View, record: Ended) -> str:
    names = [each.name for each in (*view.picks, *view.references) if each.record.number == record.number]
    return f"trial {record.number}" + (f" ({'; '.join(names)})" if names else "")


def draw_progress(path: Path, curves: Sequence[Curve]) -> None:
    """Write a picture of how searches went; see `print.plots.progress_picture`.

    Args:
        path: the file to write, whole; its ending says how. One that is there is replaced.
        curves: the methods, at least one.
    """
    _save(progress_picture(curves), path)


def _save(figure: Figure, path: Path) -> None:
    with whole_file(path, replace=True) as partial:
        figure.savefig(partial, dpi=DPI, format=path.suffix[1:])
