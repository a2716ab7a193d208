"""Asynchronous against generational search at equal evaluations, with several workers in flight.

python studies/scaling/async.py                                  # half an hour on a core; the same command goes on
python studies/scaling/async.py --seeds 1 --evaluations 48       # that it works
python studies/scaling/async.py --smoke                          # the same, with the fewest evaluations and items there can be
python studies/scaling/async.py --table                          # of what there is, nothing is run

Every search evaluates the zoo's models in this process; the workers, and how long they take (log-normal, sigma 0.7, by
recipe), are on a clock of their own (`clocks.VirtualCrew`), which says in which order answers come back. A search that ended is
judged on the test split, and its figures are printed and kept.
"""

from __future__ import annotations

import argparse
import heapq
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from clocks import Skewed, VirtualCrew

from sae_moo.config.document import Config
from sae_moo.explore.run import Run
from sae_moo.jobs.bench import Bench
from sae_moo.jobs.compare.cells import Cell, cells_of, finished, outcome_of
from sae_moo.jobs.compare.statistics import HYPERVOLUME, Outcome, Summary, summaries
from sae_moo.jobs.compare.tables import difference_text, value_text
from sae_moo.jobs.judge import judge
from sae_moo.jobs.search import search
from sae_moo.study.executor import Executor
from sae_moo.study.folder import RUNS, ComparisonFolder
from sae_moo.study.pool import PooledExecutor
from sae_moo.study.record import Ended, ended

CONFIG = Path(__file__).with_name("async.yaml")
SHOWN = ("accuracy", "accuracy at sparsity >= 0.5", HYPERVOLUME)
IN_FLIGHT = (1, 4, 16)


def configured(seeds: int, evaluations: int) -> Config:
    """Return the comparison; one with another budget is another study."""
    raw = Config.load(CONFIG).model_dump(mode="json", exclude_unset=True)
    raw["study"]["name"] += f"-{evaluations}"
    raw["search"]["evaluations"] = evaluations
    raw["compare"]["seeds"] = seeds
    return Config.from_dict(raw, CONFIG.parent)


def workers_of(cell: Cell) -> int:
    """Return how many evaluations of a search are in flight: as its method's name ends, else one."""
    last = cell.method.name.split()[-1]
    return int(last) if last.isdigit() else 1


def executor(bench: Bench, workers: int) -> Executor:
    """Return what evaluates in this process as so many workers would."""
    evaluator = bench.evaluator()
    best_of = None if evaluator.screening is None else evaluator.best_of
    return PooledExecutor(VirtualCrew(workers, evaluator.evaluate, Skewed(), best_of=best_of))


def run(cell: Cell, bench: Bench, folder: ComparisonFolder) -> None:
    """Run or resume one search, and judge its front on the test split."""
    bench, workers = bench.configured(cell.config), workers_of(cell)
    made = search(cell.config, root=folder.path, bench=bench, executor=lambda bench: executor(bench, workers))
    judge(made, bench, {record.digest: record.recipe for record in made.front()})


def lasts(records: Sequence[Ended], workers: int, generational: bool) -> float:
    """Return how long a search takes in means of an evaluation, where workers take candidates up in their order.

    Args:
        records: its trials, in the order in which they were asked for; one that repeats another takes no time.
        workers: how many.
        generational: whether every generation waits for the last one's end; else the first population alone is waited for.
    """
    seconds, free, waits = Skewed(), [0.0] * workers, 0
    for record in records:
        if record.repeats is not None:
            continue
        generation = record.generation if generational else min(record.generation, 1)
        if generation > waits:
            waits, free = generation, [max(free)] * workers
        heapq.heapreplace(free, free[0] + seconds(record.asked))
    return max(free)


def outcome(cell: Cell, folder: ComparisonFolder) -> Outcome:
    """Return what a finished search came to."""
    place = folder.search(cell.config.study.name)
    made = Run.open(place.path)
    return outcome_of(cell, made.view(), place.judged(made.tasks) or {})


def row(reached: Outcome, config: Config) -> str:
    """Return one search as a line."""
    quantities = summaries([reached], config.objective_list(), reached.method, (0.5,), 2)[reached.method]
    return f"{reached.method}, seed {reached.seed}: " + ", ".join(
        f"{quantity} {quantities[quantity].mean:.4f}" for quantity in SHOWN
    )


def ratio_text(summary: Summary, reference: Summary) -> str:
    """Return the geometric mean over seeds of one method over another, with its 95 % interval (paired, t)."""
    logs = np.log(np.array(summary.values) / np.array(reference.values[: len(summary.values)]))
    if len(logs) < 2:
        return f"{np.exp(logs.mean()):.3f}"
    from scipy import stats

    half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs))
    low, middle, high = np.exp(logs.mean() + np.array([-half, 0.0, half]))
    return f"{middle:.3f} ({low:.3f}-{high:.3f})"


def table(config: Config, folder: ComparisonFolder) -> None:
    """Print what the finished searches came to, those seeds alone that all methods have."""
    plan = cells_of(config)
    lacking = {cell.seed for cell in plan if not finished(cell, folder)}
    cells = [cell for cell in plan if cell.seed not in lacking]
    seeds = {cell.seed for cell in cells}
    if not cells:
        print("no seed has been searched by every method yet")
        return
    outcomes = [outcome(cell, folder) for cell in cells]
    reference = config.compare.reference
    found = summaries(outcomes, config.objective_list(), reference, (0.5,), config.compare.resamples)
    print(f"\n| {config.search.evaluations} evaluations, {len(seeds)} seeds | " + " | ".join(SHOWN), end=" | ")
    print("hypervolume minus generational | hypervolume over generational |")
    print("| --- |" + " --- |" * (len(SHOWN) + 2))
    for name, quantities in found.items():
        columns = [value_text(quantities[quantity]) for quantity in SHOWN]
        columns += [difference_text(quantities[HYPERVOLUME])]
        columns += [ratio_text(quantities[HYPERVOLUME], found[reference][HYPERVOLUME])]
        print(f"| {name} | " + " | ".join(columns) + " |")
    print("\n| means of an evaluation that a search takes | " + " | ".join(f"{k} workers" for k in IN_FLIGHT) + " |")
    print("| --- |" + " --- |" * len(IN_FLIGHT))
    for name in found:
        own = [cell for cell in cells if cell.method.name == name]
        trials = [ended(Run.open(folder.search(cell.config.study.name).path).trials()) for cell in own]
        columns = IN_FLIGHT if name == reference else (workers_of(own[0]),)
        means = {k: np.mean([lasts(records, k, name == reference) for records in trials]) for k in columns}
        print(f"| {name} | " + " | ".join(f"{means[k]:.1f}" if k in means else "" for k in IN_FLIGHT) + " |")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--evaluations", type=int, default=240)
    parser.add_argument("--runs", type=Path, default=RUNS, help="where run folders lie")
    parser.add_argument("--smoke", action="store_true", help="the smallest comparison that runs everything once")
    parser.add_argument("--table", action="store_true", help="of the searches that there are; run none")
    given = parser.parse_args()
    config = configured(given.seeds, given.evaluations)
    config = config.smoke() if given.smoke else config
    folder = ComparisonFolder(given.runs / config.study.name)
    bench = cache(lambda: Bench.open(config))
    for cell in [] if given.table else cells_of(config):
        if not finished(cell, folder):
            run(cell, bench(), folder)
        print(row(outcome(cell, folder), config), flush=True)
    table(config, folder)


if __name__ == "__main__":
    main()
