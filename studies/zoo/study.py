"""Is searching merges of the zoo worth it? The quickstart, over seeds, held against the one-shot merges.

    python studies/zoo/study.py --seeds 5 --workers 2 --output quickstart.jsonl

A model is always chosen on the search split and judged on the test split (400 items a task, disjoint from it), and once
more on fresh items (`FRESH`): further draws that belong to no task and that nobody looked at while the zoo was made.
Intervals are paired over test items: 95 %, normal approximation, the three tasks weighing the same.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "quickstart.yaml"
FRESH = {"zoo_math": 1000, "zoo_lingua": 180, "zoo_logic": 1000}
THRESHOLDS = (0.0, 0.3, 0.5, 0.6)
SCALES = tuple(round(0.1 * i, 1) for i in range(1, 13))
LEVELS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


def searched(seed: int, evaluations: int) -> dict:
    """Run one search and judge its front on the test split."""
    import torch

    import sae_moo as sm
    from sae_moo.evaluate.scorer import Scorer
    from sae_moo.objectives.pareto import hypervolume

    torch.set_num_threads(1)
    raw = sm.Config.load(CONFIG).model_dump(mode="json")
    raw["study"]["seed"] = seed
    raw["search"]["prescreening"] = {"factor": 1}
    if evaluations:
        raw["search"]["evaluations"] = evaluations
    config = sm.Config.from_dict(raw)
    with tempfile.TemporaryDirectory() as root:
        run = sm.search(config, root=root)
        records, front = run.trials(), run.front()
    bench = sm.Bench.open(config)
    model, scorer = bench.live_model(), bench.scorer()
    fresh = Scorer(fresh_tasks(bench), bench.device)

    def test(recipe: sm.Recipe) -> tuple[list[list[float]], float]:
        report = sm.materialize(recipe, bench.pool, model)
        return [row.tolist() for row in scorer.score(model, "test").values()], report.sparsity

    judged = {record.number: test(record.recipe) for record in front}
    points = np.array([[np.mean([np.mean(row) for row in rows]), rho] for rows, rho in judged.values()])
    chosen = {}
    for threshold in THRESHOLDS:
        kept = [record for record in front if record.values["sparsity"] >= threshold]
        if kept:
            best = max(kept, key=lambda record: record.values["accuracy"])
            chosen[str(threshold)] = {"test": judged[best.number][0], "sparsity": judged[best.number][1]}
            sm.materialize(best.recipe, bench.pool, model)
            chosen[str(threshold)]["fresh"] = [row.tolist() for row in fresh.score(model, "test").values()]
    seconds = sum(record.evaluation.seconds_merge + record.evaluation.seconds_score for record in records)
    return {
        "seed": seed,
        "hypervolume": hypervolume(points),
        "chosen": chosen,
        "front": sorted(points.tolist()),
        "seconds evaluating": seconds,
    }


def fresh_tasks(bench) -> list:
    """Return the zoo's tasks over items that no split holds."""
    from sae_moo.evaluate.tasks import Item, ItemTask
    from sae_moo.zoo.items import HELD_OUT, KINDS, held_out

    tasks = []
    for name, count in FRESH.items():
        new = held_out(name, HELD_OUT + count)[HELD_OUT:]
        items = [Item(str(item["prompt"]), (str(item["answer"]),)) for item in new]
        tasks.append(ItemTask(name, KINDS[name], {"search": (), "test": items}, bench.pool.tokenizer()))
    return tasks


def references() -> dict:
    """Score the base, the experts and the one-shot merges; the one-number scale is tuned on the search split."""
    import torch

    import sae_moo as sm
    from sae_moo.evaluate.scorer import Scorer

    torch.set_num_threads(1)
    bench = sm.Bench.open(sm.Config.load(CONFIG))
    model, scorer, ground = bench.live_model(), bench.scorer(), bench.ground()

    fresh = Scorer(fresh_tasks(bench), bench.device)

    def score(recipe: sm.Recipe, split: str) -> list[list[float]]:
        sm.materialize(recipe, bench.pool, model)
        if split == "fresh":
            return [row.tolist() for row in fresh.score(model, "test").values()]
        return [row.tolist() for row in scorer.score(model, split).values()]

    def mean(rows: list[list[float]]) -> float:
        return float(np.mean([np.mean(row) for row in rows]))

    recipes = {name: sm.Expert(name) for name in bench.pool.names}
    experts = tuple(sm.Expert(name) for name in ground.experts)
    recipes["uniform average"] = sm.Merge("linear", experts, (1.0,) * len(experts))
    ones = np.ones((ground.rows, len(experts)))
    tuned = max(SCALES, key=lambda scale: mean(score(ground.task_arithmetic(scale * ones), "search")))
    recipes[f"task arithmetic, scale {tuned}"] = ground.task_arithmetic(tuned * ones)
    average = recipes["uniform average"]
    pruned = {level: mean(score(sm.Prune(average, level), "test")) for level in LEVELS}
    judged = {split: {name: score(recipe, split) for name, recipe in recipes.items()} for split in ("test", "fresh")}
    return judged | {"pruned average": pruned}


def paired(a: list[list[float]], b: list[list[float]]) -> tuple[float, float]:
    """Return the mean difference over tasks and half its 95 % interval, paired by item."""
    differences = [np.subtract(x, y) for x, y in zip(a, b, strict=True)]
    variance = sum(row.var(ddof=1) / len(row) for row in differences) / len(differences) ** 2
    return float(np.mean([row.mean() for row in differences])), 1.96 * math.sqrt(variance)


def spread(values: list[float]) -> str:
    """Return a mean over seeds with the half width of its 95 % t interval."""
    t = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}
    half = t[len(values) - 1] * np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{np.mean(values):.3f} ± {half:.3f}"


def accuracy(result: dict, threshold: float, split: str = "test") -> float:
    """Return the accuracy of the model chosen at a sparsity; 0 where the front holds none."""
    chosen = result["chosen"].get(str(threshold))
    return float(np.mean([np.mean(row) for row in chosen[split]])) if chosen else 0.0


def show_references(reference: dict) -> None:
    """Print the tables of base, experts and one-shot merges."""
    for split in ("test", "fresh"):
        show_scores(reference[split], split)
    print("\n| uniform average pruned by magnitude to | " + " | ".join(f"{level}" for level in LEVELS) + " |")
    print("|---" * (len(LEVELS) + 1) + "|")
    print("| test accuracy | " + " | ".join(f"{value:.3f}" for value in reference["pruned average"].values()) + " |")


def show_scores(scores: dict, split: str) -> None:
    """Print one table of scores."""
    print(f"\n| {split} accuracy | math | lingua | logic | mean |\n|---|---|---|---|---|")
    for name, rows in scores.items():
        means = [np.mean(row) for row in rows]
        print(f"| {name} | " + " | ".join(f"{m:.3f}" for m in [*means, np.mean(means)]) + " |")


def show_gains(results: list[dict], reference: dict, split: str) -> None:
    """Print, per seed, the chosen model against the references."""
    scores = reference[split]
    best = max(("math", "lingua", "logic"), key=lambda name: np.mean([np.mean(row) for row in scores[name]]))
    against = [best, *(name for name in scores if name.startswith(("uniform", "task")))]
    print(f"\n| seed | {split} accuracy | sparsity | " + " | ".join(f"minus {name}" for name in against) + " |")
    print("|---" * (len(against) + 3) + "|")
    for result in results:
        chosen = result["chosen"]["0.0"]
        cells = ["{:+.3f} ± {:.3f}".format(*paired(chosen[split], scores[name])) for name in against]
        own = accuracy(result, 0.0, split)
        print(f"| {result['seed']} | {own:.3f} | {chosen['sparsity']:.3f} | " + " | ".join(cells) + " |")


def show_means(results: list[dict]) -> None:
    """Print means over seeds."""
    print("\n| test hypervolume | " + " | ".join(f"accuracy at sparsity >= {t}" for t in THRESHOLDS) + " |")
    print("|---" * (len(THRESHOLDS) + 1) + "|")
    cells = [spread([accuracy(result, threshold) for result in results]) for threshold in THRESHOLDS]
    print(f"| {spread([r['hypervolume'] for r in results])} | " + " | ".join(cells) + " |")


def main() -> None:
    """Run what was asked for and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--evaluations", type=int, default=0, help="of every search; 0: as configured")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, required=True, help="JSON lines; searches found there are not run again")
    arguments = parser.parse_args()
    results = (
        [json.loads(line) for line in arguments.output.read_text().splitlines()] if arguments.output.exists() else []
    )
    left = set(range(arguments.seeds)) - {result["seed"] for result in results}
    with ProcessPoolExecutor(arguments.workers) as pool, arguments.output.open("a") as kept:
        reference = pool.submit(references)
        for future in as_completed([pool.submit(searched, seed, arguments.evaluations) for seed in sorted(left)]):
            results.append(future.result())
            kept.write(json.dumps(results[-1]) + "\n")
            kept.flush()
    results.sort(key=lambda result: result["seed"])
    show_references(reference.result())
    for split in ("test", "fresh"):
        show_gains(results, reference.result(), split)
    show_means(results)


if __name__ == "__main__":
    main()
