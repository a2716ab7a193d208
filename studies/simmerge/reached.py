"""How many evaluations a pre-screened search needs for the hypervolume that the plain one ends with.

    sae-moo compare studies/simmerge/prescreen.yaml --workers 2
    python studies/simmerge/reached.py studies/simmerge/prescreen.yaml

A method is held against the one of the same name without `SUFFIX`, seed by seed. On the search split every evaluation is
looked at, on the test split the front after every second population (`--every`). A search that never gets there counts with its whole
budget, and is told apart. Ratios are geometric means with 95 % t intervals over the seeds that both have ended.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import stats

sys.path.append(str(Path(__file__).parents[1] / "evogm"))

from budgets import outcomes_of, table

from sae_moo.config.document import Config
from sae_moo.jobs.compare.statistics import Outcome, summaries
from sae_moo.study.folder import RUNS

SUFFIX = " pre-screened"
Curve = Sequence[tuple[int, float]]
"""Evaluations, ascending, and the hypervolume after them."""


def reached(curve: Curve, target: float) -> int | None:
    """Return after how many evaluations a hypervolume was reached; None if never."""
    return next((count for count, volume in curve if volume >= target - 1e-12), None)


def ratio_text(plain: Mapping[int, Curve], other: Mapping[int, Curve]) -> str:
    """Return cells: seeds, those that got there, evaluations that plain and the other took, their ratio.

    Args:
        plain: seed -> how the plain search went.
        other: seed -> how the other one did.
    """
    seeds = [seed for seed in plain if seed in other]
    if not seeds:
        return "0 | | | | "
    first = {seed: reached(plain[seed], plain[seed][-1][1]) or plain[seed][-1][0] for seed in seeds}
    second = {seed: reached(other[seed], plain[seed][-1][1]) for seed in seeds}
    spent = {seed: second[seed] or other[seed][-1][0] for seed in seeds}
    logs = np.log([spent[seed] / first[seed] for seed in seeds])
    centre, half = float(logs.mean()), math.nan
    if len(seeds) > 1:
        half = float(stats.t.ppf(0.975, len(seeds) - 1) * logs.std(ddof=1) / math.sqrt(len(seeds)))
    interval = "" if math.isnan(half) else f" [{math.exp(centre - half):.2f}, {math.exp(centre + half):.2f}]"
    got = sum(count is not None for count in second.values())
    lists = (", ".join(str(each[seed]) for seed in seeds) for each in (first, spent))
    return " | ".join([str(len(seeds)), str(got), *lists, f"{math.exp(centre):.2f}{interval}"])


def curves(
    config: Config, outcomes: Mapping[int, Sequence[Outcome]]
) -> tuple[dict[str, dict[int, Curve]], dict[str, dict[int, Curve]]]:
    """Return method -> seed -> how it went, on the search split and on the test split, of searches that have ended."""
    search: dict[str, dict[int, Curve]] = {}
    test: dict[str, dict[int, Curve]] = {}
    budgets = sorted(outcomes)
    whole = [each for each in outcomes[budgets[-1]] if each.evaluations >= budgets[-1]]
    for end in whole:
        search.setdefault(end.method, {})[end.seed] = [(i, float(v)) for i, v in enumerate(end.progress[:, 0], 1)]
        steps = [
            (b, each) for b in budgets for each in outcomes[b] if (each.method, each.seed) == (end.method, end.seed)
        ]
        volumes = [
            summaries([each], config.objective_list(), end.method, resamples=1)[end.method]["hypervolume"].mean
            for _, each in steps
        ]
        test.setdefault(end.method, {})[end.seed] = [(b, v) for (b, _), v in zip(steps, volumes, strict=True)]
    return search, test


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Evaluations for the hypervolume that the plain search ends with.")
    parser.add_argument("config", type=Path, help="configuration of the comparison")
    parser.add_argument("--runs", type=Path, default=RUNS, help="where run folders lie")
    parser.add_argument("--smoke", action="store_true", help="of the smallest comparison that runs everything once")
    parser.add_argument("--every", type=int, default=2, help="populations between two looks at the test split")
    options = parser.parse_args()
    config = Config.load(options.config)
    config = config.smoke() if options.smoke else config
    step, whole = options.every * config.population, config.search.evaluations
    outcomes = outcomes_of(config, options.runs, [*range(step, whole, step), whole])
    search, test = curves(config, outcomes)
    print("| split | method | seeds | got there | plain: evaluations | its own | ratio |\n|" + " --- |" * 7)
    for split, found in (("search", search), ("test", test)):
        for method in found:
            plain = method.removesuffix(SUFFIX)
            if plain != method and plain in found:
                print(f"| {split} | {method} | {ratio_text(found[plain], found[method])} |")
    for budget in (whole // 2 // step * step, whole):
        kept = [each for each in outcomes.get(budget, ()) if each.seed in search.get(each.method, {})]
        if any(each.method == (config.compare and config.compare.reference) for each in kept):
            print("\nOn the test split:\n\n" + table(config, kept, budget), flush=True)


if __name__ == "__main__":
    main()
