"""What each method of a comparison had after fewer evaluations, on the test split, read off its finished searches.

    sae-moo compare studies/evogm/compare.yaml --workers 2
    python studies/evogm/budgets.py studies/evogm/compare.yaml --budgets 88 160 240
    python studies/evogm/budgets.py studies/evogm/compare.yaml --budgets --tokens 600000   # forward tokens instead
    python studies/evogm/budgets.py studies/evogm/compare.yaml --keep                      # and keep, and take, what is kept

None of these searches knows how many evaluations it will have in all (a search that repairs its front at the end would),
so its first 88 are what a search of 88 would have made. Models that were on the front then and are not on it at the end
are scored on the test split once, and kept with the others. With ``--keep`` what every search came to is written to
``compare.jsonl`` (`kept`), and read from there where its run folder is gone.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import kept
import numpy as np

from sae_moo.config.document import Config
from sae_moo.explore.run import Run
from sae_moo.explore.view import View
from sae_moo.jobs.bench import Bench
from sae_moo.jobs.compare.cells import cells_of, finished, outcome_of
from sae_moo.jobs.compare.statistics import Outcome, Summary, summaries
from sae_moo.jobs.compare.tables import difference_text, tokens_text, value_text
from sae_moo.jobs.judge import judge
from sae_moo.objectives.front import front_of
from sae_moo.study.folder import RUNS, ComparisonFolder
from sae_moo.study.record import Ended, told

QUANTITIES = ("accuracy", "accuracy at sparsity >= 0.5", "hypervolume")


Cut = Callable[[Sequence[Ended], int], Sequence[Ended]]
"""Trials in the order they were told of, and a budget -> those that it allowed."""


def after_evaluations(records: Sequence[Ended], budget: int) -> Sequence[Ended]:
    """Return the first so many trials."""
    return records[:budget]


def after_tokens(records: Sequence[Ended], budget: int) -> Sequence[Ended]:
    """Return the first trials that took at most so many forward tokens in all; repeated ones took none."""
    spent = np.cumsum([0 if record.repeats is not None else record.evaluation.spent or 0 for record in records])
    return records[: int(np.searchsorted(spent, budget, side="right"))]


def early(view: View, budget: int, cut: Cut = after_evaluations) -> View:
    """Return a study as it was when a budget was used up."""
    records = sorted(cut(told(view.records), budget), key=lambda record: record.number)
    return replace(view, records=tuple(records), front=front_of(records, view.objectives).ranked)


def outcomes_of(
    config: Config, root: Path, budgets: Sequence[int], cut: Cut = after_evaluations
) -> dict[int, list[Outcome]]:
    """Return, for each budget, what every search that has ended had come to by then."""
    folder = ComparisonFolder(root / config.study.name)
    bench = cache(lambda: Bench.open(config))
    found: dict[int, list[Outcome]] = {budget: [] for budget in budgets}
    for cell in cells_of(config):
        place = folder.search(cell.config.study.name)
        if not place.begun:
            print(f"not begun: {cell}")
            continue
        run = Run.open(place.path)
        if not finished(cell, folder):
            print(f"not finished: {cell}")
            continue
        whole = run.view()
        views = {budget: early(whole, budget, cut) for budget in budgets}
        recipes = {record.digest: record.recipe for view in views.values() for record in view.front}
        known = place.judged(run.tasks) or {}
        judged = known if recipes.keys() <= known.keys() else judge(run, bench().configured(cell.config), recipes)
        for budget, view in views.items():
            found[budget].append(outcome_of(cell, view, judged))
    return found


def summed_up(config: Config, outcomes: Sequence[Outcome]) -> tuple[str, dict[str, dict[str, Summary]]]:
    """Return the name of the reference, and method -> quantity -> what it was on the test split."""
    assert config.compare is not None
    section = config.compare
    reference = section.reference or section.named[0].name
    once = [cell.method.name for cell in cells_of(config) if not cell.seeded]
    found = summaries(
        outcomes, config.objective_list(), reference, section.thresholds, section.resamples, unseeded=once
    )
    return reference, found


def table(config: Config, outcomes: Sequence[Outcome], budget: int | str) -> str:
    """Return what the methods had when a budget was used up, and minus the reference, as Markdown."""
    reference, found = summed_up(config, outcomes)
    shown = [quantity for quantity in QUANTITIES if quantity in found[reference]]
    heads = ["seeds", "evaluations", "forward tokens", *shown, *(f"{quantity} minus {reference}" for quantity in shown)]
    lines = [f"| after {budget} | " + " | ".join(heads) + " |", "| --- |" + " --- |" * len(heads)]
    for name, quantities in found.items():
        own = [outcome for outcome in outcomes if outcome.method == name]
        cells = [str(len(own)), f"{np.mean([outcome.evaluations for outcome in own]):.0f}", tokens_text(own)]
        cells += [value_text(quantities[quantity]) for quantity in shown]
        cells += [difference_text(quantities[quantity]) for quantity in shown]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def rows(config: Config, outcomes: Mapping[str, Sequence[Outcome]]) -> list[list[str]]:
    """Return a row for every search at every budget, under a first one that names the columns."""
    lines: list[list[str]] = []
    for budget, ended in outcomes.items():
        for name, quantities in summed_up(config, ended)[1].items():
            if not lines:
                lines.append(["budget", "method", "seed", "evaluations", "tokens", "seconds", *quantities])
            own = sorted((outcome for outcome in ended if outcome.method == name), key=lambda outcome: outcome.seed)
            for i, each in enumerate(own):
                first = [budget, name, str(each.seed), str(each.evaluations), str(each.tokens)]
                values = [f"{quantity.values[i]:.6f}" for quantity in quantities.values()]
                lines.append([*first, f"{each.seconds:.1f}", *values])
    return lines


def all_outcomes(path: Path, options: argparse.Namespace) -> dict[str, list[Outcome]]:
    """Return budget in words -> what every search of a comparison had come to by then, kept ones among them."""
    config = Config.load(path)
    config = config.smoke() if options.smoke else config
    budgets = [budget for budget in options.budgets if budget <= config.search.evaluations]
    found = {f"{b} evaluations": each for b, each in outcomes_of(config, options.runs, budgets).items()}
    if options.tokens:
        by_tokens = outcomes_of(config, options.runs, options.tokens, after_tokens)
        found |= {f"{b:,} forward tokens": each for b, each in by_tokens.items()}
    searches: dict[tuple[str, int], dict[str, Outcome]] = {}
    place = path.with_suffix(".jsonl")
    if options.keep and place.exists():
        searches = kept.read(place)
    for budget, outcomes in found.items():
        for outcome in outcomes:
            searches.setdefault((outcome.method, outcome.seed), {})[budget] = outcome
    if options.keep:
        place.write_text(kept.lines(searches.values()), encoding="ascii")
    order = {(cell.method.name, cell.seed): i for i, cell in enumerate(cells_of(config))}
    known = sorted((key for key in searches if key in order), key=order.__getitem__)
    return {budget: [searches[key][budget] for key in known if budget in searches[key]] for budget in found}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="What each method of a comparison had after fewer evaluations.")
    parser.add_argument("config", type=Path, help="configuration of the comparison")
    parser.add_argument("--budgets", type=int, nargs="*", default=[88, 160, 240], help="evaluations")
    parser.add_argument("--tokens", type=int, nargs="*", default=[], help="forward tokens")
    parser.add_argument("--csv", type=Path, help="where to write a line for every search at every budget")
    parser.add_argument("--beside", type=Path, help="another comparison: its searches stand in the same tables")
    parser.add_argument("--keep", action="store_true", help="keep what searches came to beside their configuration")
    parser.add_argument("--runs", type=Path, default=RUNS, help="where run folders lie")
    parser.add_argument("--smoke", action="store_true", help="of the smallest comparison that runs everything once")
    options = parser.parse_args()
    config = Config.load(options.config)
    found = all_outcomes(options.config, options)
    if options.beside is not None:
        for budget, outcomes in all_outcomes(options.beside, options).items():
            found[budget] += outcomes
    for budget, outcomes in found.items():
        print(table(config, outcomes, budget), end="\n\n", flush=True)
    if options.csv is not None:
        with options.csv.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows(config, found))


if __name__ == "__main__":
    main()
