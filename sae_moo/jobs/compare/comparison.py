"""A comparison: methods times seeds at one budget, each search a study of its own, all judged on the test split."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sae_moo.config.document import Config
from sae_moo.errors import InputError, Interrupted, RunError
from sae_moo.explore.draw.print.plots import Curve
from sae_moo.explore.pages.figures import draw_progress
from sae_moo.explore.run import Run
from sae_moo.files.whole import whole_file
from sae_moo.jobs.bench import Bench, resolve_device
from sae_moo.jobs.compare.away import Away
from sae_moo.jobs.compare.cells import Cell, Made, cells_of, failure_of, finished, outcome_of, run_cell
from sae_moo.jobs.compare.statistics import Comparison, summaries
from sae_moo.jobs.compare.tables import csv_text, document_of, markdown_text
from sae_moo.jobs.compare.workers import run_apart
from sae_moo.jobs.executors import crew_of, workers_of
from sae_moo.study.crew import Crew
from sae_moo.study.folder import RUNS, ComparisonFolder, RunFolder


@dataclass(frozen=True, slots=True)
class Milestone:
    """A search began or ended.

    Args:
        cell: which.
        done: searches that ended so far, this one counted.
        total: searches there are.
    """

    cell: Cell
    done: int
    total: int


class CellBegun(Milestone):
    """A search begins, or goes on."""


class CellDone(Milestone):
    """A search used its budget up, or had nothing left to try, and is judged."""


@dataclass(frozen=True, slots=True)
class CellFailed(Milestone):
    """A search cannot go on.

    Args:
        why: why not.
    """

    why: str


def compare(
    config: Config,
    listener: Callable[[Milestone | Made], None] = lambda step: None,
    root: str | Path = RUNS,
    workers: int | None = None,
) -> Comparison:
    """Run every search of a comparison that has not ended yet, judge their fronts, and write what came out.

    Searches of one seed come together, so that an unfinished comparison compares what it has. A method whose seed
    changes nothing is run once. Of a killed comparison everything finished is kept, down to the evaluation.

    Args:
        config: the configuration, with a section ``compare``.
        listener: told of every search that begins and ends, and of every evaluation.
        root: folder of run folders; everything lies in ``root/NAME``.
        workers: searches at a time, each on a worker of ``executor``, or in a process of its own where that is this
            process; None: as many as configured, and one here.

    Raises:
        InputError: if there is nothing to compare, or a search cannot be resumed.
        Interrupted: on Ctrl-C.
        RunError: if every search of the reference, or of all methods, failed.
        StorageError: if a place that is written to has no room; the same call goes on where it was.
    """
    if config.compare is None:
        raise InputError("the configuration has no section compare; expected e.g. compare: {methods: [nsga2, pso]}")
    folder = ComparisonFolder(Path(root) / config.study.name)
    plan = cells_of(config)
    failed: dict[Cell, str] = {}
    done = 0

    def ended(cell: Cell, why: str | None) -> None:
        nonlocal done
        done += 1
        if why is None:
            listener(CellDone(cell, done, len(plan)))
        else:
            failed[cell] = why
            listener(CellFailed(cell, done, len(plan), why))

    def begins(cell: Cell) -> None:
        listener(CellBegun(cell, done, len(plan)))

    bench = cache(lambda: Bench.open(config))  # once, and only if there is anything to do
    waiting = [cell for cell in plan if not finished(cell, folder)]
    done = len(plan) - len(waiting)
    try:
        crew = _crew(config, workers, len(waiting))
        if waiting and crew is not None:
            run_apart(waiting, folder, crew, begins, ended, listener)
        else:
            for cell in waiting:
                begins(cell)
                ended(cell, failure_of(lambda cell=cell: run_cell(cell, bench, folder, listener)))  # type: ignore[misc]
    except KeyboardInterrupt:
        kept = f"{done} finished searches and every evaluation are kept"
        raise Interrupted(f"stopped; {kept}, the same command goes on") from None
    return _concluded(config, plan, failed, folder)


def _crew(config: Config, workers: int | None, searches: int) -> Crew | None:
    """Return the workers that so many searches run on; None where they run in this process."""
    section, device = config.executor, resolve_device(config.models.device)
    if section.kind == "local":
        if workers is None or min(workers, searches) < 2:
            return None
        section = section.model_copy(update={"kind": "processes"})
    asked = workers_of(section, device) if workers is None else workers
    section = section.model_copy(update={"workers": max(1, min(asked, searches))})
    return crew_of(section, device, lambda sharing: Away(config, sharing))


def _concluded(
    config: Config, plan: Sequence[Cell], failed: Mapping[Cell, str], folder: ComparisonFolder
) -> Comparison:
    """Return what the finished searches of a comparison came to, written beside them."""
    assert config.compare is not None
    section = config.compare
    reference = section.reference or section.named[0].name
    runs = {cell: Run.open(folder.search(cell.config.study.name).path) for cell in plan if cell not in failed}
    judged = {cell: RunFolder(run.folder).judged(run.tasks) or {} for cell, run in runs.items()}
    outcomes = tuple(outcome_of(cell, run.view(), judged[cell]) for cell, run in runs.items())
    if reference not in {outcome.method for outcome in outcomes}:
        raise RunError(f"every search of the reference {reference} failed: {'; '.join(dict.fromkeys(failed.values()))}")
    objectives = config.objective_list()
    once = [cell.method.name for cell in plan if not cell.seeded]
    methods = summaries(outcomes, objectives, reference, section.thresholds, section.resamples, unseeded=once)
    document, rows, page, picture = (folder.results(ending) for ending in ("json", "csv", "md", "png"))
    comparison = Comparison(
        name=config.study.name,
        folder=folder.path,
        reference=reference,
        methods=methods,
        outcomes=outcomes,
        failed={str(cell): why for cell, why in failed.items()},
        objectives=tuple(objective.name for objective in objectives),
        files=(document, rows, page, picture),
    )
    _write(document, json.dumps(document_of(comparison), indent=1, allow_nan=False))
    _write(rows, csv_text(comparison))
    _write(page, markdown_text(comparison))
    draw_progress(picture, [Curve(name, [o.progress for o in outcomes if o.method == name]) for name in methods])
    return comparison


def _write(path: Path, text: str) -> None:
    with whole_file(path, replace=True) as partial:
        partial.write_text(text, encoding="utf-8")
