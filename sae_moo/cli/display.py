"""What the command line shows of what was found: tables and JSON shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sae_moo.evaluate.task import Metric
from sae_moo.objectives import Constraint, Objective
from sae_moo.objectives.scores import Score
from sae_moo.study.record import Ended, Running, TrialRecord

if TYPE_CHECKING:  # what opens models: most commands need none
    from sae_moo.deploy.estimate import Estimate
    from sae_moo.jobs.compare.statistics import Comparison
    from sae_moo.jobs.doctor import Checkup


def comparison_tables(found: Comparison) -> list[Table]:
    """Return what a comparison found, as tables: what each method reached, and how it differs from the reference."""
    from sae_moo.jobs.compare.statistics import ON_TASK
    from sae_moo.jobs.compare.tables import difference_text, tokens_text, value_text

    quantities = list(next(iter(found.methods.values())))
    shown = [name for name in quantities if not name.startswith(ON_TASK)]
    table = bare_table(
        f"{found.name}: test split, mean over seeds ± half the 95 % interval; models chosen on the search split"
    )
    for name in ("method", "seeds", *shown, "evaluations", "tokens", "seconds"):
        short = name.replace("accuracy at sparsity ", "")
        table.add_column(short, justify="left" if name == "method" else "right")
    for name, summaries in found.methods.items():
        own = [outcome for outcome in found.outcomes if outcome.method == name]
        evaluations, seconds = (
            f"{sum(getattr(outcome, key) for outcome in own) / len(own):.0f}" for key in ("evaluations", "seconds")
        )
        reached = [value_text(summaries[quantity]) for quantity in shown]
        table.add_row(name, str(len(own)), *reached, evaluations, tokens_text(own), seconds)
    differences = bare_table(f"minus {found.reference}: 95 % interval and p over seeds (t) and instances (bootstrap)")
    told = [name for name in shown if name != "sparsity"]
    for name in ("method", *told):
        differences.add_column(
            name.replace("accuracy at sparsity ", ""), justify="left" if name == "method" else "right"
        )
    for name, summaries in found.methods.items():
        if name != found.reference:
            differences.add_row(name, *(difference_text(summaries[quantity]) for quantity in told))
    return [table, differences]


def front_table(
    records: Sequence[Ended],
    objectives: Sequence[Objective],
    tasks: Sequence[str],
    title: str = "",
    errors: bool = True,
) -> Table:
    """Return a table of trials: values of the objectives with standard errors, then every other task's mean."""
    single = [task for task in tasks if task not in {objective.name for objective in objectives}]
    table = bare_table(title)
    table.add_column("trial", justify="right")
    for objective in objectives:
        table.add_column(objective.name, justify="right", no_wrap=True)
    for task in single:
        table.add_column(task, justify="right", style="dim", no_wrap=True)
    for record in records:
        cells = [with_error(record.values[o.name], record.stderr[o.name] if errors else 0.0) for o in objectives]
        more = [f"{record.evaluation.mean(task):.3f}" for task in single]
        table.add_row(str(record.number), *cells, *more)
    return table


def trial_table(
    records: Sequence[TrialRecord], objectives: Sequence[Objective], constraints: Sequence[Constraint] = ()
) -> Table:
    """Return a table of all trials; of those that break one of the limits it says which."""
    table = bare_table("")
    for name in ("trial", "state", *(o.name for o in objectives), "operator", "digest", "note"):
        left = name in ("state", "operator", "digest", "note")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    for record in records:
        name, cells = record.asked_digest, [""] * len(objectives)
        if isinstance(record, Ended):
            name = record.digest
            if record.values:
                cells = [with_error(record.values[o.name], record.stderr[o.name]) for o in objectives]
        table.add_row(str(record.number), record.state, *cells, record.operator, name[:8], _note(record, constraints))
    return table


def score_table(scores: Mapping[str, Score], title: str) -> Table:
    """Return a table of a model's scores."""
    table = bare_table(title)
    table.add_column("")
    table.add_column("score", justify="right")
    table.add_column("instances", justify="right")
    for task, score in scores.items():
        table.add_row(task, with_error(score.score, score.stderr), str(score.instances))
    return table


def estimate_table(found: Sequence[Estimate], title: str) -> Table:
    """Return a table of what a model takes in every format."""
    from sae_moo.deploy.tensor_files import in_bytes

    table = bare_table(title)
    for name in ("format", "weights", "of dense"):
        table.add_column(name, justify="left" if name == "format" else "right")
    table.add_column("which runtimes gain", overflow="fold")
    for each in found:
        size = "-" if each.nbytes is None else in_bytes(each.nbytes)
        table.add_row(each.format, size, "-" if each.share is None else f"{each.share:.3f}", each.gains)
    return table


def trial_json(record: TrialRecord) -> dict[str, Any]:
    """Return the JSON shape of a trial; one that has not ended has the same keys."""
    document: dict[str, Any] = {
        "number": record.number,
        "state": record.state,
        "values": {},
        "stderr": {},
        "sparsity": None,
        "speed": None,
        "digest": record.asked_digest,
        "tasks": {},
        "feasible": False,
        "operator": record.operator,
        "generation": record.generation,
        "parents": list(record.parents),
        "repeats": None,
        "reason": None,
        "stopped": None,
        "tokens": None,
        "screened": None,
        "inherited": None,
        "worker": None,
        "workers_lost": 0,
    }
    if isinstance(record, Running):
        return document
    evaluation = record.evaluation
    return document | {
        "values": dict(record.values),
        "stderr": {name: finite(error) for name, error in record.stderr.items()},
        "sparsity": evaluation.sparsity if evaluation.ok or evaluation.stopped else None,
        "speed": evaluation.speed,
        "digest": record.digest,
        "tasks": {task: evaluation.mean(task) for task in evaluation.scores} if evaluation.ok else {},
        "feasible": record.feasible,
        "repeats": record.repeats,
        "reason": evaluation.reason,
        "stopped": asdict(evaluation.stopped) if evaluation.stopped is not None else None,
        "tokens": evaluation.tokens,
        "screened": asdict(evaluation.screened) if evaluation.screened is not None else None,
        "inherited": asdict(record.inherited) if record.inherited is not None else None,
        "worker": record.worker or None,
        "workers_lost": record.losses,
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


def checkup_lines(checkup: Checkup) -> list[str]:
    """Return what came of looking a run folder over, a line each."""
    lines = []
    for finding in checkup.findings:
        cure = f" ({finding.cure})" if finding.cure else ""
        if finding.state == "mendable":
            cure = f" (--fix: {finding.cure})"
        lines.append(f"{finding.state:8}  {finding.place}: {finding.what}{cure}")
    looked = f"looked at: {', '.join(checkup.checked) or 'nothing'}"
    wrong = sum(finding.state in ("wrong", "mendable") for finding in checkup.findings)
    mendable = sum(finding.state == "mendable" for finding in checkup.findings)
    if checkup.whole:
        return [*lines, f"{checkup.run}: whole; {looked}"]
    return [*lines, f"{checkup.run}: {wrong} wrong, {mendable} of them can be mended by --fix; {looked}"]


def checkup_json(checkup: Checkup) -> dict[str, Any]:
    """Return the JSON shape of what came of looking a run folder over."""
    return {
        "run": str(checkup.run),
        "whole": checkup.whole,
        "checked": list(checkup.checked),
        "findings": [
            {"state": each.state, "place": each.place, "what": each.what, "cure": each.cure or None}
            for each in checkup.findings
        ],
    }


def say(console: Console, text: str) -> None:
    """Print prose: folded between words in a terminal, a line as it is in a pipe."""
    console.print(text, soft_wrap=not console.is_terminal)


def bare_table(title: str) -> Table:
    """Return an empty table whose title is not folded to the width of its columns."""
    return Table(title=Text(title, no_wrap=True, overflow="ignore") if title else None, title_justify="left", box=None)


def _note(record: TrialRecord, constraints: Sequence[Constraint]) -> str:
    if isinstance(record, Running):
        return "begun, not ended"
    if record.inherited is not None:
        return ": ".join(filter(None, (str(record.inherited), record.evaluation.reason)))
    if record.evaluation.reason is not None:
        return record.evaluation.reason
    if record.repeats is not None:
        return f"same weights as trial {record.repeats}"
    broken = [clause for constraint in constraints for clause in constraint.broken(record.evaluation)]
    return "" if record.feasible else ": ".join(filter(None, ("breaks a limit", "; ".join(broken))))


def with_error(value: float, stderr: float) -> str:
    """Return a value with its standard error, as tables show it; without where there is none."""
    return f"{value:.3f} ± {stderr:.3f}" if stderr > 0 else f"{value:.3f}"
