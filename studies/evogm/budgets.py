"""What each method of a comparison had after fewer evaluations, on the test split, read off its finished searches.

    sae-moo compare studies/evogm/compare.yaml --workers 2
    python studies/evogm/budgets.py studies/evogm/compare.yaml --budgets 88 160 240

None of these searches knows how many evaluations it will have in all (a search that repairs its front at the end would),
so its first 88 are what a search of 88 would have made. Models that were on the front then and are not on it at the end
are scored on the test split once, and kept with the others.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from sae_moo.config.document import Config
from sae_moo.explore.run import Run
from sae_moo.explore.view import View
from sae_moo.jobs.bench import Bench
from sae_moo.jobs.compare.cells import cells_of, outcome_of
from sae_moo.jobs.compare.statistics import Outcome, summaries
from sae_moo.jobs.compare.tables import difference_text, tokens_text, value_text
from sae_moo.jobs.judge import judge
from sae_moo.objectives.front import front_of
from sae_moo.study.folder import RUNS, ComparisonFolder
from sae_moo.study.record import told

QUANTITIES = ("accuracy", "accuracy at sparsity >= 0.5", "hypervolume")


def early(view: View, budget: int) -> View:
    """Return a study as it was after its first evaluations."""
    records = sorted(told(view.records)[:budget], key=lambda record: record.number)
    return replace(view, records=tuple(records), front=front_of(records, view.objectives).ranked)


def outcomes_of(config: Config, root: Path, budgets: Sequence[int]) -> dict[int, list[Outcome]]:
    """Return, for each budget, what every search that made any evaluations had come to by then."""
    folder = ComparisonFolder(root / config.study.name)
    bench = cache(lambda: Bench.open(config))
    found: dict[int, list[Outcome]] = {budget: [] for budget in budgets}
    for cell in cells_of(config):
        place = folder.search(cell.config.study.name)
        if not place.begun:
            print(f"not begun: {cell}")
            continue
        run = Run.open(place.path)
        views = {budget: early(run.view(), budget) for budget in budgets}
        recipes = {record.digest: record.recipe for view in views.values() for record in view.front}
        kept = place.judged(run.tasks) or {}
        judged = kept if recipes.keys() <= kept.keys() else judge(run, bench().configured(cell.config), recipes)
        for budget, view in views.items():
            found[budget].append(outcome_of(cell, view, judged))
    return found


def table(config: Config, outcomes: Sequence[Outcome], budget: int) -> str:
    """Return what the methods had after so many evaluations, and minus the reference, as Markdown."""
    assert config.compare is not None
    section = config.compare
    reference = section.reference or section.named[0].name
    once = [cell.method.name for cell in cells_of(config) if not cell.seeded]
    found = summaries(
        outcomes, config.objective_list(), reference, section.thresholds, section.resamples, unseeded=once
    )
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


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="What each method of a comparison had after fewer evaluations.")
    parser.add_argument("config", type=Path, help="configuration of the comparison")
    parser.add_argument("--budgets", type=int, nargs="+", default=[88, 160, 240])
    parser.add_argument("--runs", type=Path, default=RUNS, help="where run folders lie")
    parser.add_argument("--smoke", action="store_true", help="of the smallest comparison that runs everything once")
    options = parser.parse_args()
    config = Config.load(options.config)
    config = config.smoke() if options.smoke else config
    for budget, outcomes in outcomes_of(config, options.runs, options.budgets).items():
        print(table(config, outcomes, budget), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
