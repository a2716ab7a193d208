"""How many instances does racing save, how often is it wrong, and is the front it finds as good?

    python studies/racing/study.py --sets zoo,graded --seeds 5 --workers 2 --output racing.jsonl

Every search runs with all instances and racing under several rules. A candidate that was stopped is evaluated in full
afterwards: it was stopped wrongly if it is not dominated (by more than the margin) by the front of that time. The
final fronts are scored again on the test split.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
EVERYTHING = "every instance"
RULES: dict[str, dict] = {
    EVERYTHING: {},
    "confidence 0.95, margin 0": {"racing": {"confidence": 0.95, "margin": 0.0}},
    "confidence 0.9, margin 0.01": {"racing": {"confidence": 0.9, "margin": 0.01}},
    "anchors 0.5": {"anchors": 0.5},
}
GRADED = {"math": "zoo_math", "logic": "zoo_logic"}
SEARCH, TEST = 400, 600  # instances of a graded task


def configured(task_set: str, rule: str, seed: int, evaluations: int, folder: Path) -> dict:
    """Return the quickstart; or two tasks over other items, scored by likelihood, an objective each."""
    import sae_moo as sm
    from sae_moo.zoo.items import HELD_OUT, held_out

    raw = sm.Config.load(CONFIG).model_dump(mode="json")
    raw["study"]["seed"] = seed
    raw["search"]["evaluations"] = evaluations or raw["search"]["evaluations"]
    raw["search"]["prescreening"] = {"factor": 1}
    raw["evaluation"] = RULES[rule]
    if task_set == "graded":
        raw["tasks"] = []
        for name, items in GRADED.items():
            new = held_out(items, HELD_OUT + SEARCH + TEST)[HELD_OUT:]
            lines = [json.dumps({"prompt": each["prompt"], "answer": each["answer"]}) for each in new]
            (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
            task = {"name": name, "data": f"{name}.jsonl", "kind": "likelihood", "search": SEARCH, "test": TEST}
            raw["tasks"].append(task)
        raw["objectives"] = [*GRADED, "sparsity"]
        raw["search"]["algorithm"] = "nsga3"
    return raw


def searched(task_set: str, rule: str, seed: int, evaluations: int) -> dict:
    """Run one search; return its course, what was stopped wrongly, and its front on the test split."""
    import torch

    import sae_moo as sm
    from sae_moo.objectives.front import Front
    from sae_moo.objectives.pareto import hypervolume
    from sae_moo.study.record import told

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        raw = configured(task_set, rule, seed, evaluations, Path(root))
        config = sm.Config.from_dict(raw, root)
        run = sm.search(config, root=Path(root) / "runs")
        records = told(run.trials())
        bench = sm.Bench.open(config).anchored(run.anchors)
        everything = sum(task.instances("search") for task in bench.tasks)
        course, front, asked, wrong = [], Front(run.objectives), 0, 0
        evaluator = bench.evaluator()
        margin = RULES[rule].get("racing", {}).get("margin", 0.0)
        for record in records:
            stopped = record.evaluation.stopped
            if stopped is not None:
                whole = evaluator.evaluate(record.asked)
                value = np.array([each.value(whole) for each in run.objectives])
                ahead = front.points + margin - value
                wrong += not bool(((ahead >= 0).all(axis=1) & (ahead > 0).any(axis=1)).any())
            if record.repeats is None:
                asked += everything if stopped is None else sum(stopped.instances.values())
            front = front.after(record)
            course.append([asked, front.volume])
        model, scorer = bench.live_model(), bench.scorer()
        judged = []
        for record in front.ranked:
            report = sm.materialize(record.recipe, bench.pool, model)
            scores = {task: tuple(row.tolist()) for task, row in scorer.score(model, "test").items()}
            evaluation = sm.Evaluation(record.recipe, scores, report.sparsity)
            judged.append([each.value(evaluation) for each in run.objectives])
    return {
        "set": task_set,
        "rule": rule,
        "seed": seed,
        "course": course,
        "stopped": sum(record.state == "stopped" for record in records),
        "wrong": wrong,
        "trials": len(records),
        "test": hypervolume(np.array(judged)),
        "seconds": sum(r.evaluation.seconds_merge + r.evaluation.seconds_score for r in records),
    }


def reached(course: list, wanted: float) -> float:
    """Return how many instances were asked when a hypervolume was reached; NaN if it never was."""
    return next((asked for asked, volume in course if volume >= wanted), math.nan)


def spread(values: list[float]) -> str:
    """Return a mean over seeds with the half width of its 95 % t interval."""
    from scipy.stats import t

    if len(values) < 2:
        return f"{np.mean(values):.3f}"
    half = t.isf(0.025, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return f"{np.mean(values):.3f} ± {half:.3f}"


def show(results: list[dict], task_set: str) -> None:
    """Print a row per rule: medians and means over seeds, against the same seed's search with every instance."""
    own = {(r["rule"], r["seed"]): r for r in results if r["set"] == task_set}
    seeds = sorted({seed for _, seed in own})
    print(f"\n{task_set}, {len(seeds)} seeds")
    print(
        "| rule | instances asked | asked until 99 % of the full search's hypervolume | until all of it | stopped | "
        "of these wrongly | hypervolume | on test | on test minus full | seconds |"
    )
    print("|---" * 10 + "|")
    for rule in RULES:
        rows = [(own[rule, seed], own[EVERYTHING, seed]) for seed in seeds if (rule, seed) in own]
        if not rows:
            continue
        shares = [r["course"][-1][0] / full["course"][-1][0] for r, full in rows]
        cells = [rule, f"{np.median(shares):.2f}"]
        for part in (0.99, 1.0):
            ratios = []
            for r, full in rows if "anchors" not in RULES[rule] else ():  # its hypervolumes are of other instances
                wanted = part * full["course"][-1][1]
                ratios.append(reached(r["course"], wanted) / reached(full["course"], wanted))
            missed = sum(math.isnan(ratio) for ratio in ratios)
            known = sorted(math.inf if math.isnan(ratio) else ratio for ratio in ratios)
            never = f" ({missed} of {len(ratios)} never)" if missed else ""
            cells.append(f"{np.median(known):.2f}{never}" if known else "")
        stopped, wrong = (sum(r[key] for r, _ in rows) for key in ("stopped", "wrong"))
        cells += [
            f"{stopped / sum(r['trials'] for r, _ in rows):.2f}",
            f"{wrong} of {stopped}" if stopped else "",
            spread([r["course"][-1][1] for r, _ in rows]),
            spread([r["test"] for r, _ in rows]),
            spread([r["test"] - full["test"] for r, full in rows]),
            f"{np.median([r['seconds'] for r, _ in rows]):.0f}",
        ]
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    """Run what was asked for and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default="zoo,graded", help="zoo, graded, or both with a comma between")
    parser.add_argument("--rules", default="0,1,2,3", help="numbers of the rules, in the order of the tables")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--evaluations", type=int, default=0, help="of every search; 0: as configured")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, required=True, help="JSON lines; searches found there are not run again")
    arguments = parser.parse_args()
    lines = arguments.output.read_text().splitlines() if arguments.output.exists() else []
    results = [json.loads(line) for line in lines]
    done = {(r["set"], r["rule"], r["seed"]) for r in results}
    sets = arguments.sets.split(",")
    rules = [list(RULES)[int(number)] for number in arguments.rules.split(",")]
    jobs = [(each, rule, seed) for each in sets for seed in range(arguments.seeds) for rule in rules]
    with ProcessPoolExecutor(arguments.workers) as pool, arguments.output.open("a") as kept:
        running = [pool.submit(searched, *job, arguments.evaluations) for job in jobs if job not in done]
        for future in as_completed(running):
            results.append(future.result())
            kept.write(json.dumps(results[-1]) + "\n")
            kept.flush()
    for each in sets:
        show(results, each)


if __name__ == "__main__":
    main()
