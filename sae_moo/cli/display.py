"""What the command line shows: a live view of a search, plain lines where there is no terminal, tables, JSON shapes."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from sae_moo.compare import Comparison, Step, difference_text, value_text
from sae_moo.config import Config
from sae_moo.deploy.estimate import Estimate
from sae_moo.deploy.tensor_files import in_bytes
from sae_moo.evaluate.summary import Score
from sae_moo.evaluate.task import Metric
from sae_moo.objectives import Objective
from sae_moo.run import front_of
from sae_moo.storage import TrialRecord
from sae_moo.study import Event, Exhausted, Finished, Resumed

FRONT_ROWS = 8  # rows of the live view's front; the whole front is printed at the end
PLAIN_SECONDS = 5.0  # between lines where there is no terminal


class SearchView:
    """Shows a search as it runs; use it as a context and as the study's listener.

    Args:
        config: the configuration.
        console: where to show; without a terminal it prints a plain line now and then.
        show: whether to show anything at all.
    """

    def __init__(self, config: Config, console: Console, show: bool = True) -> None:
        self._objectives = config.objective_list()
        self._tasks = [task.name for task in config.tasks]
        self._budget = config.search.evaluations
        self._console = console
        self._show = show
        self._records: list[TrialRecord] = []
        self._replayed = 0
        self._looked = False
        self._start = time.monotonic()
        self._last_line = 0.0
        self._live = (
            Live(console=console, refresh_per_second=4, get_renderable=self._picture, transient=True)
            if show and console.is_terminal
            else None
        )

    def __enter__(self) -> SearchView:
        self._start = time.monotonic()
        if self._live is not None:
            self._live.start(refresh=True)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def seconds(self) -> float:
        """Wall time since the context was entered."""
        return time.monotonic() - self._start

    @property
    def evaluated(self) -> int:
        """Evaluations ended in this session."""
        return len(self._records) - self._replayed

    @property
    def earlier(self) -> str:
        """What to say of evaluations made before this session; nothing if there were none."""
        return f" ({len(self._records)} with those of earlier sessions)" if self._replayed else ""

    def __call__(self, event: Event) -> None:
        """Take in one event of the study."""
        match event:
            case Resumed():
                self._records += [record for record in event.records if record.evaluation is not None]
                self._replayed = len(self._records)
                if self._show:
                    self._console.print(f"resumed: {self._replayed} evaluations replayed in {event.seconds:.2f} s")
            case Exhausted() if self._show:
                self._console.print(f"nothing left to try after {event.evaluations} of {event.budget} evaluations")
            case Finished():
                self._records.append(event.record)
                if event.record.generation == 1 and not self._looked and self._show:
                    self._look()
                if event.record.state == "failed" and self._show and event.record.evaluation is not None:
                    self._console.print(f"trial {event.record.number} failed: {event.record.evaluation.reason}")
                if self._show and self._live is None:
                    self._plain_line()

    def _look(self) -> None:
        """Say once, after the first generation, which tasks nobody solves anything of."""
        self._looked = True
        for task, best in self._best().items():
            if best == 0.0:
                self._console.print(
                    f"task {task}: every candidate so far scores 0 on it; "
                    "evaluate --samples shows what models are asked and answer",
                    highlight=False,
                    soft_wrap=True,
                )

    def _plain_line(self) -> None:
        now = time.monotonic()
        if now - self._last_line < PLAIN_SECONDS and len(self._records) < self._budget:
            return
        self._last_line = now
        front = front_of(self._records, self._objectives)
        best = "  ".join(f"{task} {value:.3f}" for task, value in self._best().items())
        self._console.print(
            f"{len(self._records)}/{self._budget} evaluations  {self._speed():.2f}/s  left {self._left()}  "
            f"best: {best}  front: {len(front)}{self._stopped()}",
            highlight=False,
            soft_wrap=True,
        )

    def _picture(self) -> Group:
        bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[more]}")
        )
        more = f"{self._speed():.2f} evaluations/s   left {self._left()}"
        bar.add_task("evaluations", total=self._budget, completed=len(self._records), more=more)
        best = Text("best score   " + "   ".join(f"{task} {value:.3f}" for task, value in self._best().items()))
        front = front_of(self._records, self._objectives)
        table = front_table(
            _spread(front, FRONT_ROWS),
            self._objectives,
            self._tasks,
            f"front: {len(front)} of {len(self._records)}{self._stopped()}",
        )
        return Group(bar, best, table)

    def _best(self) -> dict[str, float]:
        done = [record.evaluation for record in self._records if record.evaluation is not None and record.evaluation.ok]
        return {task: max((evaluation.mean(task) for evaluation in done), default=0.0) for task in self._tasks}

    def _stopped(self) -> str:
        count = sum(record.state == "stopped" for record in self._records)
        return f"  stopped early: {count}" if count else ""

    def _speed(self) -> float:
        return self.evaluated / max(self.seconds, 1e-9)

    def _left(self) -> str:
        if not self.evaluated:
            return "--:--"
        seconds = round((self._budget - len(self._records)) / self._speed())
        return (
            f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
            if seconds >= 3600
            else f"{seconds // 60}:{seconds % 60:02d}"
        )


class CompareView:
    """Says which search of a comparison begins and which has ended; use it as the comparison's listener.

    Args:
        console: where to say it.
        show: whether to say anything.
    """

    def __init__(self, console: Console, show: bool = True) -> None:
        self._console = console
        self._show = show
        self._began: dict[str, float] = {}

    def __call__(self, step: Step) -> None:
        """Take in one step."""
        name = str(step.job)
        if step.what == "begins":
            self._began[name] = time.monotonic()
            return
        if self._show:
            seconds = time.monotonic() - self._began[name]
            how = "" if step.what == "done" else f" failed: {step.what}"
            self._console.print(
                f"{step.done}/{step.total}  {name}  {seconds:.0f} s{how}", highlight=False, soft_wrap=True, markup=False
            )


def comparison_tables(found: Comparison) -> list[Table]:
    """Return what a comparison found, as tables: what each method reached, and how it differs from the reference."""
    quantities = list(next(iter(found.methods.values())))
    shown = [name for name in quantities if not name.startswith("accuracy on ")]
    table = bare_table(
        f"{found.name}: test split, mean over seeds ± half the 95 % interval; models chosen on the search split"
    )
    for name in ("method", "seeds", *shown, "evaluations", "seconds"):
        short = name.replace("accuracy at sparsity ", "")
        table.add_column(short, justify="left" if name == "method" else "right")
    for name, summaries in found.methods.items():
        own = [cell for cell in found.cells if cell.method == name]
        spent = [f"{sum(getattr(cell, key) for cell in own) / len(own):.0f}" for key in ("evaluations", "seconds")]
        table.add_row(escape(name), str(len(own)), *(value_text(summaries[quantity]) for quantity in shown), *spent)
    differences = bare_table(f"minus {found.reference}: 95 % interval and p over seeds (t) and instances (bootstrap)")
    told = [name for name in shown if name != "sparsity"]
    for name in ("method", *told):
        differences.add_column(
            name.replace("accuracy at sparsity ", ""), justify="left" if name == "method" else "right"
        )
    for name, summaries in found.methods.items():
        if name != found.reference:
            differences.add_row(escape(name), *(difference_text(summaries[quantity]) for quantity in told))
    return [table, differences]


def front_table(
    records: Sequence[TrialRecord], objectives: Sequence[Objective], tasks: Sequence[str], title: str = ""
) -> Table:
    """Return a table of trials: values of the objectives with standard errors, then every other task's mean."""
    single = [task for task in tasks if task not in {objective.name for objective in objectives}]
    table = bare_table(title)
    table.add_column("trial", justify="right")
    for objective in objectives:
        table.add_column(objective.name, justify="right")
    for task in single:
        table.add_column(task, justify="right", style="dim")
    for record in records:
        assert record.evaluation is not None
        cells = [with_error(record.values[o.name], record.stderr[o.name]) for o in objectives]
        more = [f"{record.evaluation.mean(task):.3f}" for task in single]
        table.add_row(str(record.number), *cells, *more)
    return table


def trial_table(records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> Table:
    """Return a table of all trials."""
    table = bare_table("")
    for name in ("trial", "state", *(o.name for o in objectives), "operator", "digest", "note"):
        left = name in ("state", "operator", "digest", "note")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    for record in records:
        cells = [with_error(record.values[o.name], record.stderr[o.name]) if record.values else "" for o in objectives]
        table.add_row(str(record.number), record.state, *cells, record.operator, record.digest[:8], _note(record))
    return table


def score_table(scores: Mapping[str, Score], title: str) -> Table:
    """Return a table of a model's scores."""
    table = bare_table(title)
    table.add_column("task")
    table.add_column("score", justify="right")
    table.add_column("instances", justify="right")
    for task, score in scores.items():
        table.add_row(task, with_error(score.score, score.stderr), str(score.instances))
    return table


def estimate_table(found: Sequence[Estimate], title: str) -> Table:
    """Return a table of what a model takes in every format."""
    table = bare_table(title)
    for name in ("format", "weights", "of dense"):
        table.add_column(name, justify="left" if name == "format" else "right")
    table.add_column("which runtimes gain", overflow="fold")
    for each in found:
        size = "-" if each.nbytes is None else in_bytes(each.nbytes)
        table.add_row(each.format, size, "-" if each.share is None else f"{each.share:.3f}", each.gains)
    return table


def trial_json(record: TrialRecord) -> dict[str, Any]:
    """Return the JSON shape of a trial."""
    evaluation = record.evaluation
    scored = evaluation is not None and evaluation.ok
    return {
        "number": record.number,
        "state": record.state,
        "values": dict(record.values),
        "stderr": {name: finite(error) for name, error in record.stderr.items()},
        "sparsity": evaluation.sparsity if evaluation is not None and (scored or evaluation.stopped) else None,
        "digest": record.digest,
        "tasks": {task: evaluation.mean(task) for task in evaluation.scores}
        if scored and evaluation is not None
        else {},
        "feasible": record.feasible,
        "operator": record.operator,
        "generation": record.generation,
        "parents": list(record.parents),
        "repeats": record.repeats,
        "reason": evaluation.reason if evaluation is not None else None,
        "stopped": asdict(evaluation.stopped) if evaluation is not None and evaluation.stopped is not None else None,
    }


def trials_json(study: str, records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> dict[str, Any]:
    """Return the JSON shape of `front` and `trials`."""
    names = [objective.name for objective in objectives]
    return {
        "study": study,
        "objectives": names,
        "split": "search",
        "trials": [trial_json(record) for record in records],
    }


def scores_json(scores: Mapping[str, Score]) -> dict[str, Any]:
    """Return the JSON shape of scores by task."""
    return {t: {"score": s.score, "stderr": finite(s.stderr), "instances": s.instances} for t, s in scores.items()}


def metrics_json(metrics: Mapping[str, Metric]) -> dict[str, Any]:
    """Return the JSON shape of a task's further numbers."""
    return {
        name: {"value": finite(each.value), "stderr": None if each.stderr is None else finite(each.stderr)}
        for name, each in metrics.items()
    }


def finite(number: float) -> float | None:
    """Return the number, or None for what JSON cannot say."""
    return number if math.isfinite(number) else None


def bare_table(title: str) -> Table:
    """Return an empty table whose title is not folded to the width of its columns."""
    return Table(title=Text(title, no_wrap=True, overflow="ignore") if title else None, title_justify="left", box=None)


def _note(record: TrialRecord) -> str:
    if record.evaluation is not None and record.evaluation.reason is not None:
        return record.evaluation.reason
    if record.repeats is not None:
        return f"same weights as trial {record.repeats}"
    if record.state == "running":
        return "begun, not ended"
    return "" if record.feasible else "breaks a limit"


def with_error(value: float, stderr: float) -> str:
    """Return a value with its standard error, as tables show it; without where there is none."""
    return f"{value:.3f} ± {stderr:.3f}" if stderr > 0 else f"{value:.3f}"


def _spread(records: Sequence[TrialRecord], most: int) -> list[TrialRecord]:
    """Return at most `most` records, evenly spread, both ends among them."""
    if len(records) <= most:
        return list(records)
    return [records[round(i * (len(records) - 1) / (most - 1))] for i in range(most)]
