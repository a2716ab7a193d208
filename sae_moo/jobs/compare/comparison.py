"""A comparison: methods times seeds at one budget, each search a study of its own, all judged on the test split."""

from __future__ import annotations

import csv
import io
import json
import math
import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sae_moo.config.document import Config, differences
from sae_moo.config.sections import MethodSection
from sae_moo.errors import InputError, Interrupted, RunError, SaeMooError
from sae_moo.explore.draw.print.plots import Curve
from sae_moo.explore.history import hypervolumes
from sae_moo.explore.pages.figures import draw_progress
from sae_moo.explore.run import Run
from sae_moo.files.whole import whole
from sae_moo.jobs import search as jobs
from sae_moo.jobs.bench import Bench, versions
from sae_moo.jobs.compare.statistics import Cell, Point, Summary, compare
from sae_moo.jobs.judge import judge
from sae_moo.objectives.front import Accuracy
from sae_moo.searchers.algorithms import ALGORITHMS
from sae_moo.study.folder import RUNS, ComparisonFolder, RunFolder
from sae_moo.study.loop import Event, Finished, Resumed
from sae_moo.study.records import evaluations, told


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One search to make; itself only, however alike another may be.

    Args:
        method: its method.
        seed: its seed.
        config: its configuration, see `Config.cell`.
    """

    method: MethodSection
    seed: int
    config: Config

    @classmethod
    def of(cls, config: Config, method: MethodSection, seed: int) -> Job:
        """Return a search of the comparison that a configuration describes."""
        return cls(method, seed, config.cell(method, seed))

    @property
    def seeded(self) -> bool:
        """Whether its seed changes anything."""
        return ALGORITHMS[self.config.search.algorithm].seeded

    def __str__(self) -> str:
        return f"{self.method.name}, seed {self.seed}"


@dataclass(frozen=True, slots=True)
class Step:
    """A job began, ended or failed.

    Args:
        job: which.
        done: jobs that ended so far, this one counted.
        total: jobs there are.
        what: ``begins``, ``done``, or why it failed.
    """

    job: Job
    done: int
    total: int
    what: str


@dataclass(frozen=True, slots=True)
class Made:
    """A search that is running made an evaluation, or found those of earlier sessions.

    Args:
        job: which.
        evaluations: how many it has now.
        new: how many of them were made in this session.
        budget: how many it will have.
    """

    job: Job
    evaluations: int
    new: int
    budget: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a comparison found.

    Args:
        name: the study's name.
        folder: where everything lies.
        reference: the method that others are held against.
        methods: method -> quantity -> what it was on the test split; see `statistics.compare`.
        cells: every search that ended.
        failed: search -> why it failed.
        objectives: names of the objectives; the hypervolume is above the origin of these.
        files: what was written.
    """

    name: str
    folder: Path
    reference: str
    methods: Mapping[str, Mapping[str, Summary]]
    cells: tuple[Cell, ...]
    failed: Mapping[str, str]
    objectives: tuple[str, ...]
    files: tuple[Path, ...]


def run(
    config: Config,
    listener: Callable[[Step | Made], None] = lambda step: None,
    root: str | Path = RUNS,
    workers: int = 1,
) -> Comparison:
    """Run every search of a comparison that has not ended yet, judge their fronts, and write what came out.

    Searches of one seed come together, so that an unfinished comparison compares what it has. A method whose seed
    changes nothing is run once. Of a killed comparison everything finished is kept, down to the evaluation.

    Args:
        config: the configuration, with a section ``compare``.
        listener: told of every search that begins and ends, and of every evaluation.
        root: folder of run folders; everything lies in ``root/NAME``.
        workers: searches at a time, each in a process of its own; the processor's cores are shared out among them.

    Raises:
        InputError: if there is nothing to compare, or a search cannot be resumed.
        Interrupted: on Ctrl-C.
        RunError: if every search of the reference, or of all methods, failed.
    """
    if config.compare is None:
        raise InputError("the configuration has no section compare; expected e.g. compare: {methods: [nsga2, pso]}")
    folder = ComparisonFolder(Path(root) / config.study.name)
    plan = jobs_of(config)
    failed: dict[Job, str] = {}
    done = 0

    def ended(job: Job, why: str | None) -> None:
        nonlocal done
        done += 1
        if why is not None:
            failed[job] = why
        listener(Step(job, done, len(plan), "done" if why is None else why))

    def begins(job: Job) -> None:
        listener(Step(job, done, len(plan), "begins"))

    bench = cache(lambda: Bench.open(config))  # once, and only if there is anything to do
    waiting = [job for job in plan if not _finished(job, folder)]
    done = len(plan) - len(waiting)
    try:
        if workers > 1:
            _run_apart(config, waiting, folder, workers, begins, ended, listener)
        else:
            for job in waiting:
                begins(job)
                ended(job, _failure(lambda job=job: run_cell(job, bench, folder, listener)))  # type: ignore[misc]
    except KeyboardInterrupt:
        kept = f"{done} finished searches and every evaluation are kept"
        raise Interrupted(f"stopped; {kept}, the same command goes on") from None
    return _concluded(config, plan, failed, folder)


def jobs_of(config: Config) -> list[Job]:
    """Return the searches of a comparison, those of a seed together."""
    assert config.compare is not None
    methods = config.compare.named
    seeds = [config.study.seed + i for i in range(config.compare.seeds)]
    possible = [Job.of(config, method, seed) for seed in seeds for method in methods]
    return [job for job in possible if job.seeded or job.seed == config.study.seed]


def run_cell(
    job: Job,
    bench: Callable[[], Bench],
    folder: ComparisonFolder,
    listener: Callable[[Made], None] = lambda made: None,
) -> None:
    """Run or resume one search and judge its front on the test split; see `run`.

    Args:
        job: the search.
        bench: opens experts and tasks of the comparison, if that has not been done yet.
        folder: of the comparison.
        listener: told of every evaluation.
    """
    counts = Counter[str]()

    def heard(event: Event) -> None:
        match event:
            case Resumed():
                counts["all"] = evaluations(event.records)
            case Finished():
                counts.update(("all", "new"))
            case _:
                return
        listener(Made(job, counts["all"], counts["new"], cell.search.evaluations))

    cell = job.config
    place = folder.search(cell.study.name)
    made, budget = evaluations(Run.open(place.path).trials()) if place.begun else 0, cell.search.evaluations
    if made > budget:  # looked at before the study is told of another budget
        raise InputError(
            f"{job}: {place.path} holds {made} evaluations, the budget is {budget}; use another study.name"
        )
    configured = bench().configured(cell)
    try:
        found = jobs.search(cell, heard, root=folder.path, bench=configured)
    except InputError as error:
        raise InputError(
            f"{job}: {error.message}\n  give the comparison another study.name, or remove {place.path}"
        ) from error
    judge(found, configured, {record.digest: record.recipe for record in found.front()})


def _finished(job: Job, folder: ComparisonFolder) -> bool:
    """Say whether a search used its budget up, or had nothing left to try, and its front is judged."""
    cell = job.config
    place = folder.search(cell.study.name)
    if not place.begun:
        return False
    found = Run.open(place.path)
    made, budget = evaluations(found.trials()), cell.search.evaluations
    complete = made == budget or (made < budget and not ALGORITHMS[cell.search.algorithm].spaces)
    if not complete or differences(_settings(found.config), _settings(cell)):
        return False
    judged = place.judged(found.tasks)
    return judged is not None and all(record.digest in judged for record in found.front())


def _settings(config: Config) -> dict[str, Any]:
    return {**config.identity(), "models": config.models.model_dump_json(), "budget": config.search.evaluations}


def _failure(work: Callable[[], None]) -> str | None:
    """Do something and return why it failed, if the fault is the search's own; wrong input and Ctrl-C go on up."""
    try:
        work()
    except RunError as error:
        return error.message  # searches of a comparison are not put aside one by one
    except Interrupted:
        raise KeyboardInterrupt from None
    return None


def _run_apart(
    config: Config,
    waiting: Sequence[Job],
    folder: ComparisonFolder,
    workers: int,
    begins: Callable[[Job], None],
    ended: Callable[[Job, str | None], None],
    made: Callable[[Made], None],
) -> None:
    """Run searches in processes of their own, so many at a time; a process that dies fails its search only."""
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // workers)
    queue = list(waiting)
    out: dict[Any, tuple[Any, Job, Connection]] = {}  # by what tells that a process has ended
    try:
        while queue or out:
            while queue and len(out) < workers:
                job = queue.pop(0)
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(
                    target=_work, args=(config, job.method, job.seed, folder, threads, sender), daemon=True
                )
                begins(job)
                process.start()
                sender.close()
                out[process.sentinel] = (process, job, receiver)
            ready = wait([*out, *(receiver for _, _, receiver in out.values())])
            for sentinel, (process, job, receiver) in list(out.items()):
                kind, text = _heard(receiver, job, made)
                if sentinel not in ready and not kind:
                    continue
                process.join()
                del out[sentinel]
                if not kind:  # what it said last may have come after the first look
                    kind, text = _heard(receiver, job, made)
                if not kind:
                    kind, text = "failed", f"its process died (exit code {process.exitcode})"
                if kind == "input":
                    raise InputError(text)
                if kind == "interrupted":
                    raise KeyboardInterrupt
                ended(job, None if kind == "done" else text)
    finally:
        for process, _, _ in out.values():  # nothing stored is lost by that
            process.terminate()
            process.join()


def _heard(receiver: Connection, job: Job, made: Callable[[Made], None]) -> tuple[str, str]:
    """Take in what a search has said since, and return how it ended; two empty texts if it has not said that."""
    try:
        while receiver.poll():
            kind, said = receiver.recv()
            if kind != "made":
                return kind, said
            made(Made(job, *said))
    except (EOFError, OSError):  # it is gone, perhaps within a message
        pass
    return "", ""


def _work(
    config: Config, method: MethodSection, seed: int, folder: ComparisonFolder, threads: int, answer: Connection
) -> None:
    """Run one search in this process and say how it went."""
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        job = Job.of(config, method, seed)

        def heard(made: Made) -> None:
            answer.send(("made", (made.evaluations, made.new, made.budget)))

        failure = _failure(lambda: run_cell(job, lambda: Bench.open(config), folder, heard))
        answer.send(("done", "") if failure is None else ("failed", failure))
    except SaeMooError as error:
        answer.send(("input", str(error)))
    except KeyboardInterrupt:
        answer.send(("interrupted", ""))


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, whatever became of it: nothing stored is lost by that."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _concluded(config: Config, plan: Sequence[Job], failed: Mapping[Job, str], folder: ComparisonFolder) -> Comparison:
    assert config.compare is not None
    section = config.compare
    reference = section.reference or section.named[0].name
    searched = [job for job in plan if job not in failed]
    cells = tuple(_cell(job, Run.open(folder.search(job.config.study.name).path)) for job in searched)
    if reference not in {cell.method for cell in cells}:
        raise RunError(f"every search of the reference {reference} failed: {'; '.join(dict.fromkeys(failed.values()))}")
    objectives = config.objective_list()
    once = [job.method.name for job in plan if not job.seeded]
    methods = compare(cells, objectives, reference, section.thresholds, section.resamples, unseeded=once)
    files = tuple(folder.results(ending) for ending in ("json", "csv", "md", "png"))
    found = Comparison(
        config.study.name,
        folder.path,
        reference,
        methods,
        cells,
        {str(job): why for job, why in failed.items()},
        tuple(o.name for o in objectives),
        files,
    )
    _write(files[0], json.dumps(document_of(found), indent=1, allow_nan=False))
    _write(files[1], _csv(found))
    _write(files[2], markdown(found))
    curves = [Curve(name, [c.progress for c in cells if c.method == name]) for name in methods]
    draw_progress(files[3], curves)
    return found


def _cell(job: Job, found: Run) -> Cell:
    judged = RunFolder(found.folder).judged(found.tasks) or {}
    records = told(found.trials())
    volume = hypervolumes(records, found.objectives)
    accuracy = Accuracy(found.objectives)
    best = np.maximum.accumulate([accuracy.value(r) if r.feasible else 0.0 for r in records])
    front = []
    for record in found.front():
        assert record.evaluation is not None
        scores = judged[record.digest]
        front.append(Point(record.number, accuracy.value(record), record.evaluation.sparsity, scores))
    own = [r.evaluation for r in records if r.evaluation is not None and r.repeats is None]
    seconds = sum(evaluation.seconds_merge + evaluation.seconds_score for evaluation in own)
    return Cell(job.method.name, job.seed, tuple(front), len(records), seconds, np.stack([volume, best], axis=1))


def document_of(found: Comparison) -> dict[str, Any]:
    """Return the JSON shape of a comparison."""
    return {
        "study": found.name,
        "run": str(found.folder),
        "split": "test",
        "objectives": list(found.objectives),
        "reference": found.reference,
        "reference_point": [0.0] * len(found.objectives),
        "versions": versions(),
        "methods": [
            {
                "name": name,
                "seeds": [cell.seed for cell in found.cells if cell.method == name],
                "evaluations": [cell.evaluations for cell in found.cells if cell.method == name],
                "seconds": [round(cell.seconds, 3) for cell in found.cells if cell.method == name],
                "quantities": {quantity: _summary_json(summary) for quantity, summary in quantities.items()},
            }
            for name, quantities in found.methods.items()
        ],
        "failed": dict(found.failed),
        "files": [str(file) for file in found.files],
    }


def _summary_json(summary: Summary) -> dict[str, Any]:
    return {
        "values": list(summary.values),
        "mean": summary.mean,
        "interval": None if math.isnan(summary.half) else [summary.mean - summary.half, summary.mean + summary.half],
        "difference": None if summary.difference is None else asdict(summary.difference),
    }


def _csv(found: Comparison) -> str:
    """Return a line per search."""
    quantities = list(next(iter(found.methods.values())))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "seed", "evaluations", "seconds", *quantities])
    for name, summaries in found.methods.items():
        for i, cell in enumerate(sorted((c for c in found.cells if c.method == name), key=lambda c: c.seed)):
            values = [f"{summaries[quantity].values[i]:.6f}" for quantity in quantities]
            writer.writerow([name, cell.seed, cell.evaluations, f"{cell.seconds:.1f}", *values])
    return text.getvalue()


def markdown(found: Comparison) -> str:
    """Return the results as Markdown tables."""
    quantities = list(next(iter(found.methods.values())))
    lines = [
        f"# {found.name}",
        "",
        "Test split. Models are chosen by the search split; the hypervolume is that of the front above the origin of "
        f"({', '.join(found.objectives)}). Mean over seeds ± half the 95 % t interval; differences from "
        f"{found.reference}, paired, with 95 % intervals and p over seeds (Student's t) and instances (bootstrap).",
        "",
        "| method | seeds | evaluations | seconds | " + " | ".join(quantities) + " |",
        "|---" * (len(quantities) + 4) + "|",
    ]
    for name, summaries in found.methods.items():
        own = [cell for cell in found.cells if cell.method == name]
        evaluations, seconds = (np.mean([getattr(c, key) for c in own]) for key in ("evaluations", "seconds"))
        cells = [value_text(summaries[quantity]) for quantity in quantities]
        lines.append(
            f"| {_cell_text(name)} | {len(own)} | {evaluations:.0f} | {seconds:.0f} | " + " | ".join(cells) + " |"
        )
    told = [q for q in quantities if q != "sparsity" and not q.startswith("accuracy on ")]
    lines += ["", f"| minus {found.reference} | " + " | ".join(told) + " |", "|---" * (len(told) + 1) + "|"]
    for name, summaries in found.methods.items():
        if name != found.reference:
            lines.append(f"| {_cell_text(name)} | " + " | ".join(difference_text(summaries[q]) for q in told) + " |")
    lines += [f"\nfailed: {job}: {why}" for job, why in found.failed.items()]
    return "\n".join(lines) + "\n"


def _cell_text(name: str) -> str:
    return name.replace("|", "\\|")


def value_text(summary: Summary) -> str:
    """Return a mean with half its interval, as tables show it."""
    return f"{summary.mean:.3f}" + ("" if math.isnan(summary.half) else f" ± {summary.half:.3f}")


def difference_text(summary: Summary) -> str:
    """Return a difference with its interval and p value, as tables show it."""
    d = summary.difference
    if d is None:
        return ""
    p = f"p={d.p:.3f}" if d.p >= 0.001 else "p<0.001"
    return f"{d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}] {p}"


def _write(path: Path, text: str) -> None:
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
