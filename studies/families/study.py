"""Does anything here depend on Llama? The same search over small experts of several architectures.

    python studies/families/study.py --seeds 3 --output families.jsonl
    python studies/families/study.py --smoke

Experts that are missing are trained first, minutes for each architecture. Models are chosen on the search split and
judged on the test split. Every model chosen is also exported, loaded again and compared score by score, which ends the
study where it differs. Intervals are paired over test items: 95 %, normal approximation, tasks weighing the same.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
ARCHITECTURES = ("llama", "qwen2", "gpt2", "gpt_neox", "gemma2")
EXPERTS = ("math", "lingua", "logic")  # in the order of the tasks
THRESHOLDS = (0.0, 0.3, 0.5)
Rows = list[list[float]]  # a score per task and item


@dataclass(frozen=True)
class Size:
    """How much is done: of training, items, scales of task arithmetic that are tried, one and three, and search."""

    training: tuple[str, ...] = ()
    scales: tuple[float, ...] = tuple(round(0.1 * i, 1) for i in range(1, 13))
    triples: int = 240  # as many as the search evaluates
    search: tuple[str, ...] = ()


FULL = Size()
SMOKE = Size(
    training=("--steps-scale", "0.001", "--items", "20"),
    scales=(0.5, 1.0),
    triples=2,
    search=(
        *(f"tasks.{i}.{split}=20" for i in range(3) for split in ("search", "test")),
        "search.population=6",
        "search.evaluations=12",
    ),
)


def train(architecture: str, folder: Path, size: Size) -> None:
    """Train base and experts of an architecture, unless they are there."""
    from sae_moo.zoo import train as trainer

    own = folder / architecture
    if not all((own / name / "tokenizer_config.json").exists() for name in ("base", *EXPERTS)):
        trainer.main(["--architecture", architecture, "--output", str(own), *size.training])


def configured(architecture: str, seed: int, folder: Path, size: Size):
    """Return the configuration with the experts of one architecture."""
    import sae_moo as sm

    own = folder.resolve() / architecture
    places = [f"models.base={own / 'base'}", *(f"models.experts.{name}={own / name}" for name in EXPERTS)]
    named = [f"study.name=families-{architecture}-{seed}", f"study.seed={seed}"]
    return sm.Config.load(HERE / "search.yaml", [*places, *named, *size.search])


def references(architecture: str, folder: Path, size: Size) -> dict:
    """Score base, experts and merges by task arithmetic on test; what is tuned is tuned on the search split."""
    import torch

    import sae_moo as sm

    torch.set_num_threads(1)
    bench = sm.Bench.open(configured(architecture, 0, folder, size))
    model, scorer, ground = bench.live_model(), bench.scorer(), bench.ground()

    def score(recipe: sm.Recipe, split: str) -> Rows:
        sm.materialize(recipe, bench.pool, model)
        return [row.tolist() for row in scorer.score(model, split).values()]

    experts = tuple(sm.Expert(name) for name in EXPERTS)
    recipes = {name: sm.Expert(name) for name in bench.pool.names}
    recipes["uniform average"] = sm.Merge("linear", experts, (1.0,) * len(experts))
    scaled = {s: ground.task_arithmetic(s * np.ones((ground.rows, len(experts)))) for s in size.scales}
    tuned = max(scaled, key=lambda s: mean(score(scaled[s], "search")))
    recipes["task arithmetic"] = scaled[tuned]
    drawn = np.random.default_rng(0).uniform(0.0, 1.2, (size.triples, len(experts))).round(3)
    tried = [sm.Merge("task_arithmetic", experts, tuple(map(float, row))) for row in drawn]
    recipes["a scale for each expert"] = max(tried, key=lambda recipe: mean(score(recipe, "search")))
    return {
        "architecture": architecture,
        "parameters": sum(tensor.numel for tensor in bench.pool.tensors),
        "prunable": sum(tensor.numel for tensor in bench.pool.tensors if tensor.prunable),
        "scale": tuned,
        "test": {name: score(recipe, "test") for name, recipe in recipes.items()},
    }


def searched(architecture: str, seed: int, folder: Path, size: Size) -> dict:
    """Run one search, judge its front on test, and export what it chooses."""
    import torch

    import sae_moo as sm
    from sae_moo.jobs.export import export
    from sae_moo.objectives.pareto import hypervolume

    torch.set_num_threads(1)
    config = configured(architecture, seed, folder, size)
    with tempfile.TemporaryDirectory() as root:
        run = sm.search(config, root=root)
        records, front = run.trials(), run.front()
        bench = sm.Bench.open(config)
        model, scorer = bench.live_model(), bench.scorer()
        judged = {}
        for record in front:
            report = sm.materialize(record.recipe, bench.pool, model)
            judged[record.number] = [row.tolist() for row in scorer.score(model, "test").values()], report.sparsity
        chosen = {}
        for threshold in THRESHOLDS:
            kept = [record for record in front if record.values["sparsity"] >= threshold]
            if kept:
                best = max(kept, key=lambda record: record.values["accuracy"])
                rows, sparsity = judged[best.number]
                chosen[str(threshold)] = {"trial": best.number, "test": rows, "sparsity": sparsity}
        for number in {each["trial"] for each in chosen.values()}:
            written = Path(root) / f"export-{number}"
            found = export(run, records[number], "chosen by the study", written, verify=True).scores
            again = [score.score for score in found["test"].values()]
            if again != [float(np.mean(row)) for row in judged[number][0]]:
                raise RuntimeError(f"{architecture}, seed {seed}, trial {number}: the export scores {again} on test")
        volume = run.hypervolume()
    return {
        "architecture": architecture,
        "seed": seed,
        "failed": sum(record.state == "failed" for record in records),
        "front": len(front),
        "hypervolume on search": volume,
        "hypervolume": hypervolume(np.array([[mean(rows), sparsity] for rows, sparsity in judged.values()])),
        "chosen": chosen,
        "seconds": sum(record.evaluation.seconds_merge + record.evaluation.seconds_score for record in records),
    }


def mean(rows: Rows) -> float:
    """Return the mean over tasks."""
    return float(np.mean([np.mean(row) for row in rows]))


def paired(a: Rows, b: Rows) -> tuple[float, float]:
    """Return the mean difference over tasks and half its 95 % interval, paired by item."""
    differences = [np.subtract(x, y) for x, y in zip(a, b, strict=True)]
    variance = sum(row.var(ddof=1) / len(row) for row in differences) / len(differences) ** 2
    return float(np.mean([row.mean() for row in differences])), 1.96 * math.sqrt(variance)


def spread(values: list[float]) -> str:
    """Return a mean over seeds and, of several, the smallest and the largest."""
    ends = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{ends}" if values else "none"


def show_models(reference: dict[str, dict], own: dict[str, list[dict]]) -> None:
    """Print the accuracies of all models; what searches choose is the mean over seeds."""
    print("\n| architecture | model | math | lingua | logic | mean |\n|---|---|---|---|---|---|")
    for name, each in reference.items():
        picks = [result["chosen"]["0.0"]["test"] for result in own[name]]
        titles = {"task arithmetic": f"task arithmetic, scale {each['scale']}"}
        scores = {titles.get(m, m): [float(np.mean(row)) for row in rows] for m, rows in each["test"].items()}
        if picks:
            means = np.mean([[np.mean(row) for row in rows] for rows in picks], axis=0).tolist()
            scores[f"search, mean of {len(picks)} seeds"] = means
        for model, row in scores.items():
            print(f"| {name} | {model} | " + " | ".join(f"{value:.3f}" for value in [*row, np.mean(row)]) + " |")


def show_gains(reference: dict[str, dict], own: dict[str, list[dict]]) -> None:
    """Print what the chosen models gain over the references: mean over seeds, range, intervals clear of zero."""
    merges = "uniform average", "task arithmetic", "a scale for each expert"
    print("\n| architecture | " + " | ".join(f"minus {title}" for title in ("best expert", *merges)) + " |")
    print("|---" * (len(merges) + 2) + "|")
    for name, each in reference.items():
        best = max(EXPERTS, key=lambda expert: mean(each["test"][expert]))
        cells = []
        for model in (best, *merges):
            gains = [paired(result["chosen"]["0.0"]["test"], each["test"][model]) for result in own[name]]
            clear = sum(abs(gain) > half for gain, half in gains)
            cells.append(f"{spread([gain for gain, _ in gains])}, {clear} of {len(gains)} clear of zero")
        print(f"| {name} | " + " | ".join(cells) + " |")


def show_fronts(reference: dict[str, dict], own: dict[str, list[dict]]) -> None:
    """Print the fronts, scored again on test: means over seeds, smallest and largest."""
    titles = ["architecture", "parameters", "prunable", "seeds", "failed", "hypervolume"]
    titles += [*(f"accuracy at sparsity >= {threshold}" for threshold in THRESHOLDS), "seconds"]
    print("\n| " + " | ".join(titles) + " |")
    print("|---" * len(titles) + "|")
    for name, each in reference.items():
        results = own[name]
        cells = [name, f"{each['parameters']:,}", f"{each['prunable'] / each['parameters']:.2f}", f"{len(results)}"]
        cells += [f"{sum(result['failed'] for result in results)}"]
        cells += [spread([result["hypervolume"] for result in results])]
        for threshold in map(str, THRESHOLDS):
            cells.append(spread([mean(r["chosen"][threshold]["test"]) for r in results if threshold in r["chosen"]]))
        cells.append(f"{np.median([result['seconds'] for result in results]):.0f}" if results else "")
        print("| " + " | ".join(cells) + " |")


def study(names: list[str], seeds: int, workers: int, folder: Path, size: Size, output: Path) -> None:
    """Train and search what is missing, and print the tables."""
    results = [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []
    done = {(result["architecture"], result.get("seed")) for result in results}
    with ProcessPoolExecutor(workers) as pool, output.open("a") as kept:
        for training in [pool.submit(train, name, folder, size) for name in names]:
            training.result()
        jobs = [pool.submit(references, name, folder, size) for name in names if (name, None) not in done]
        wanted = [(name, seed) for seed in range(seeds) for name in names]
        jobs += [pool.submit(searched, *each, folder, size) for each in wanted if each not in done]
        for future in as_completed(jobs):
            results.append(future.result())
            kept.write(json.dumps(results[-1]) + "\n")
            kept.flush()
    results.sort(key=lambda result: result.get("seed", -1))
    reference = {name: next(r for r in results if r["architecture"] == name and "seed" not in r) for name in names}
    own = {name: [r for r in results if r["architecture"] == name and "seed" in r] for name in names}
    for show in (show_models, show_gains, show_fronts):
        show(reference, own)


def main() -> None:
    """Run what was asked for and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", default=",".join(ARCHITECTURES), help="names with commas between")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=HERE / "checkpoints", help="of experts, a folder for each kind")
    parser.add_argument("--output", type=Path, help="JSON lines; what is found there is not run again")
    parser.add_argument("--smoke", action="store_true", help="everything once, in seconds: untrained models, 12 trials")
    arguments = parser.parse_args()
    names = arguments.architectures.split(",")
    if not arguments.smoke and arguments.output is None:
        parser.error("--output is needed, but for --smoke")
    if arguments.smoke:
        with tempfile.TemporaryDirectory() as folder:
            study(names, 1, 1, Path(folder), SMOKE, Path(folder) / "smoke.jsonl")
    else:
        study(names, arguments.seeds, arguments.workers, arguments.folder, FULL, arguments.output)


if __name__ == "__main__":
    main()
