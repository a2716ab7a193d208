"""What the command line shows of a decision: a pick's neighbours, both splits and their optimism, two models' diff."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from sae_moo.cli.display import bare_table, finite, front_table, say, score_table, scores_json, with_error
from sae_moo.explore.decide.neighbours import Neighbour
from sae_moo.explore.decide.significance import HOW_TESTED, Paired, paired
from sae_moo.explore.view import View
from sae_moo.objectives import Objective, TaskMean, objective_scores, scored
from sae_moo.objectives.scores import Optimism, Score, Split, mean_score, optimism, task_scores
from sae_moo.study.record import Ended

if TYPE_CHECKING:  # what opens models: a pick needs none
    from sae_moo.jobs.diff import Diff
    from sae_moo.jobs.judge import Tested

OPTIMISTIC = (
    "optimism is search minus test. The search chose by the search split, so luck there was part of the choice: "
    "what to expect is the score on the test split. Models that were not chosen show how much the splits differ anyway"
)


def paired_text(difference: Paired) -> str:
    """Return a difference with its interval, p and verdict, as tables show it."""
    if difference.equal:
        return difference.verdict
    return f"{difference.mean:+.3f} {difference.verdict}"


def paired_json(difference: Paired) -> dict[str, Any]:
    """Return the JSON shape of a difference."""
    return {
        "mean": difference.mean,
        "stderr": finite(difference.stderr),
        "low": finite(difference.low),
        "high": finite(difference.high),
        "p": difference.p,
        "significant": difference.significant,
        "won": difference.won,
        "lost": difference.lost,
    }


def show_pick(
    console: Console,
    view: View,
    record: Ended,
    why: str,
    beside: Sequence[Neighbour],
    tested: Sequence[Tested] | None,
) -> None:
    """Print a pick, why, what its neighbours would cost or gain and, if it was tested, both splits."""
    console.print(front_table([record], view.objectives, view.tasks))
    say(console, f"{why}\n")
    for caution in view.cautions(record):
        say(console, f"{caution}.\n")
    if view.meaning:
        say(console, f"{view.meaning}\n")
    if beside:
        console.print(neighbour_table(beside, view.objectives, record.number))
        say(console, f"{HOW_TESTED}\n")
    if tested is not None:
        for table in tested_tables(tested, view.objectives):
            console.print(table)
        say(console, f"{OPTIMISTIC}\n")


def show_repaired(console: Console, record: Ended, repaired: Ended, objectives: Sequence[Objective]) -> None:
    """Print what repairing a trial changed, on the search split."""
    table = bare_table(f"trial {record.number} repaired (search split, mean ± standard error)")
    for name in ("", "pruned", "repaired", "repaired minus pruned"):
        table.add_column(name, justify="right" if name else "left")
    for objective in objectives:
        before, after = (
            with_error(each.values[objective.name], each.stderr.get(objective.name, 0.0)) for each in (record, repaired)
        )
        change = f"{repaired.values[objective.name] - record.values[objective.name]:+.3f}"
        if isinstance(objective, TaskMean):
            change = paired_text(paired(repaired.evaluation.scores, record.evaluation.scores, objective.tasks))
        table.add_row(objective.name, before, after, change)
    console.print(table)


def show_export(console: Console, scores: Mapping[Split, Mapping[str, Score]], objectives: Sequence[Objective]) -> None:
    """Print the scores that an export was verified by."""
    told = {split: {**objective_scores(tasks, objectives), **tasks} for split, tasks in scores.items()}
    if "test" in scores:
        console.print(split_table(told, "both splits, the test split never seen by the search"))
        say(console, f"{OPTIMISTIC}\n")
    elif scores:
        console.print(score_table(told["search"], "search split"))


def neighbour_table(found: Sequence[Neighbour], objectives: Sequence[Objective], number: int) -> Table:
    """Return a table of what a pick's neighbours would cost or gain."""
    table = bare_table(f"neighbours on the front, minus trial {number} (search split)")
    table.add_column("trial", justify="right")
    table.add_column("has")
    for objective in objectives:
        table.add_column(objective.name, justify="right")
    for each in found:
        cells = [
            paired_text(each.tests[o.name]) if o.name in each.tests else f"{each.difference[o.name]:+.3f}"
            for o in objectives
        ]
        table.add_row(str(each.record.number), ", ".join(each.towards), *cells)
    return table


def neighbours_json(found: Sequence[Neighbour]) -> list[dict[str, Any]]:
    """Return the JSON shape of a pick's neighbours; differences are theirs minus the pick's."""
    return [
        {
            "number": each.record.number,
            "has": list(each.towards),
            "difference": dict(each.difference),
            "significance": {name: paired_json(test) for name, test in each.tests.items()},
        }
        for each in found
    ]


def tested_tables(found: Sequence[Tested], objectives: Sequence[Objective]) -> list[Table]:
    """Return tables of a pick and what it is held against on both splits, then of the pick's tasks."""
    from sae_moo.jobs.judge import BEST_EXPERT

    pick = found[0]
    best_by = " by accuracy" if len(scored(objectives)) > 1 else ""  # which is no table's own objective
    tables = []
    for objective in scored(objectives):
        table = bare_table(f"{objective.name} on both splits (mean ± standard error)")
        for name in ("model", "sparsity", "search", "test", "optimism", f"{pick.name} minus it, test"):
            table.add_column(name, justify="left" if name == "model" else "right")
        for model in found:
            means = {split: mean_score(task_scores(rows), objective.tasks) for split, rows in model.scores.items()}
            difference = "" if model is pick else paired_text(_difference(pick, model, objective))
            cells = [with_error(means[split].score, means[split].stderr) for split in ("search", "test")]
            cells.append(_optimism_text(optimism(means["search"], means["test"])))
            name = model.name + (best_by if model.name.startswith(BEST_EXPERT) else "")
            table.add_row(name, f"{model.sparsity:.3f}", *cells, difference)
        tables.append(table)
    return [
        *tables,
        split_table({split: task_scores(rows) for split, rows in pick.scores.items()}, f"{pick.name}, by task"),
    ]


def split_table(scores: Mapping[Split, Mapping[str, Score]], title: str) -> Table:
    """Return a table of a model's tasks on both splits, with the optimism of the search."""
    table = bare_table(title)
    for name in ("", "search", "instances", "test", "instances", "optimism"):
        table.add_column(name, justify="right" if name else "left")
    for task, search in scores["search"].items():
        test = scores["test"][task]
        cells = [cell for each in (search, test) for cell in (with_error(each.score, each.stderr), str(each.instances))]
        table.add_row(task, *cells, _optimism_text(optimism(search, test)))
    return table


def tested_json(found: Sequence[Tested], objectives: Sequence[Objective]) -> dict[str, Any]:
    """Return the JSON shape of a pick on both splits; under ``references`` what it is held against."""
    pick, *references = found
    return {
        "split": "test",
        **_both_json(pick, objectives),
        "references": {
            each.name: {
                "trial": each.trial,
                "sparsity": each.sparsity,
                **_both_json(each, objectives),
                "difference": {o.name: paired_json(_difference(pick, each, o)) for o in scored(objectives)},
            }
            for each in references
        },
    }


def optimism_json(scores: Mapping[Split, Mapping[str, Score]]) -> dict[str, Any]:
    """Return the JSON shape of the optimism of tasks; empty without both splits."""
    if not {"search", "test"} <= set(scores):
        return {}
    return {task: _optimism_json(optimism(own, scores["test"][task])) for task, own in scores["search"].items()}


def diff_tables(found: Diff) -> list[Table]:
    """Return what two models differ in, as tables: scores, then weights by group."""
    first, second = found.names
    scores = bare_table(f"scores on the {found.split} split (mean ± standard error)")
    for name in ("", first, second, "second minus first", "won", "lost"):
        scores.add_column(name, justify="right" if name else "left")
    for name, each in found.scores.items():
        means = [with_error(score.score, score.stderr) for score in (each.first, each.second)]
        scores.add_row(name, *means, paired_text(each.change), str(each.change.won), str(each.change.lost))
    if not found.groups:
        return [scores]
    weights = bare_table("weights by group: relative L2 distance, sparsity")
    for name in ("group", "distance", first, second):
        weights.add_column(name, justify="left" if name == "group" else "right")
    for group in found.groups:
        zeros = ("", "") if group.sparsity is None else tuple(f"{share:.3f}" for share in group.sparsity)
        weights.add_row(group.name, f"{group.distance:.4f}", *zeros)
    return [scores, weights]


def diff_json(found: Diff) -> dict[str, Any]:
    """Return the JSON shape of what two models differ in; differences are the second's minus the first's."""
    told = {
        group.name: {
            "distance": finite(group.distance),
            "sparsity": None if group.sparsity is None else list(group.sparsity),
        }
        for group in found.groups
    }
    return {
        "models": list(found.names),
        "split": found.split,
        "scores": {
            name: {
                "first": scores_json({name: each.first})[name],
                "second": scores_json({name: each.second})[name],
                "difference": paired_json(each.change),
            }
            for name, each in found.scores.items()
        },
        "unlike": found.unlike or None,
        "weights": told.pop(found.groups[0].name) if found.groups else None,
        "groups": told,
    }


def _difference(pick: Tested, other: Tested, objective: TaskMean) -> Paired:
    return paired(pick.scores["test"], other.scores["test"], objective.tasks)


def _both_json(model: Tested, objectives: Sequence[Objective]) -> dict[str, Any]:
    means = {split: task_scores(rows) for split, rows in model.scores.items()}
    own: dict[str, Any] = {}
    for objective in scored(objectives):
        search, test = (mean_score(means[split], objective.tasks) for split in ("search", "test"))
        own[objective.name] = {
            "search": scores_json({"": search})[""],
            "test": scores_json({"": test})[""],
            "optimism": _optimism_json(optimism(search, test)),
        }
    tasks = {split: scores_json(scores) for split, scores in means.items()}
    return {"objectives": own, "tasks": tasks["test"], "search": tasks["search"], "optimism": optimism_json(means)}


def _optimism_text(found: Optimism) -> str:
    return f"{found.mean:+.3f} ± {found.stderr:.3f}"


def _optimism_json(found: Optimism) -> dict[str, Any]:
    return {"mean": found.mean, "stderr": finite(found.stderr)}
