"""Does likeness to the unpruned merge say which pruned merge is accurate, and by how many tokens of text?

    python studies/sparsity/screening.py --output screening.jsonl
    python studies/sparsity/screening.py --run runs/screening/not-screened-0

First, for a few random merges of the zoo's experts, many random allocations of one budget of zeros over the blocks: what
screening has to rank. Then many merges, each pruned once to one budget for all and once to a budget of its own. Pruned
merges are scored with labels on the test split and compared with their own unpruned
merge on unlabelled texts. Of a run: children of a search without screening, and what the allocations that screening
proposes beside their own would have been worth. What a search gains is in `screening.yaml`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

CONFIG = Path(__file__).with_name("screening.yaml")
BUDGET, MIXED = 0.5, (0.1, 0.8)
TOKENS = (128, 512, 2048, 16384)
MEASURES = ("tv", "kl")
ALLOCATIONS = 20
NEAR = 3  # sets of texts that all merges are compared on
RESAMPLES = 300
ONE_MERGE, MANY = "many allocations of one merge", "one allocation of many merges"


def texts(tokens: int) -> list[tuple[int, ...]]:
    """Return prompts of the zoo's tasks that are never scored, one task after another, each once."""
    from sae_moo import zoo
    from sae_moo.experts.checkpoint import Checkpoint
    from sae_moo.experts.pool import ExpertPool
    from sae_moo.zoo.items import HARD_SHARE, training_items

    tokenizer = ExpertPool({"base": Checkpoint("zoo:base")}).tokenizer()
    found: dict[tuple[int, ...], None] = {}
    for row in zip(*(training_items(name, 7, HARD_SHARE) for name in zoo.TASKS), strict=True):
        for prompt, _ in row:
            ids = tuple(tokenizer(prompt).input_ids)
            if ids not in found:
                tokens -= len(ids)
                if tokens < 0:
                    return list(found)
                found[ids] = None
    return list(found)


def recipes(ground, teachers: int, count: int) -> list[tuple[str, int, list]]:
    """Return for each unpruned merge its setting, its number in it, and pruned merges over it."""
    from sae_moo.searchers.alternatives import levelled

    rng = np.random.default_rng(0)

    def allocation(merge, budget):
        shape = rng.normal(0.0, 0.4) * ground.depth + rng.normal(0.0, 0.15, ground.groups)
        even = np.where(ground.sizes > 0, budget, 0.0)
        return ground.candidate(ground.pruned(merge, levelled(shape, ground.sizes, even, ground.most)))

    def merge():
        weights = rng.uniform(0.2, 1.0, len(ground.experts)) + rng.normal(0.0, 0.1, (ground.rows, len(ground.experts)))
        return ground.task_arithmetic(weights)

    found = []
    for i in range(teachers):
        own = merge()
        found.append((ONE_MERGE, i, [allocation(own, BUDGET) for _ in range(ALLOCATIONS)]))
    for i in range(count):
        own = merge()
        found.append((MANY, i, [allocation(own, BUDGET), allocation(own, rng.uniform(*MIXED))]))
    return found


def measure(output: Path, teachers: int, count: int, far: int, test: int) -> None:
    """Score and compare every merge; those that are there already are left alone."""
    import torch

    import sae_moo as sm
    from sae_moo.evaluate.screening import Texts, alike, log_probabilities, staged, teacher

    torch.set_num_threads(1)
    bench = sm.Bench.open(sm.Config.load(CONFIG))
    fewer = sm.Bench.open(sm.Config.load(CONFIG, [f"tasks.{i}.test={test}" for i in range(3)]))
    pool, model, scorers = bench.pool, bench.live_model(), {ONE_MERGE: bench.scorer(), MANY: fewer.scorer()}
    vocabulary = model.get_input_embeddings().weight.shape[0]
    stages, rest = [], texts(TOKENS[-1])
    for before, tokens in zip((0, *TOKENS), TOKENS, strict=False):
        first, rest = staged(rest, tokens - before)
        stages.append(Texts.of(first, vocabulary))
    done = [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []
    measured = {(row["setting"], row["merge"]) for row in done}
    with output.open("a") as kept:
        for setting, number, pruned in recipes(bench.ground(), teachers, count):
            if (setting, number) in measured:
                continue
            sm.materialize(teacher(pruned[0]), pool, model)
            read = stages[:NEAR] if setting == MANY and number >= far else stages
            unpruned = [log_probabilities(model, each) for each in read]
            lines = []
            for recipe in pruned:
                report = sm.materialize(recipe, pool, model)
                given = [log_probabilities(model, each) for each in read]
                likeness = {}
                for name in MEASURES:
                    rows = [
                        [alike(*batch, name).double().sum().item() for batch in zip(*each, strict=True)]
                        for each in zip(unpruned, given, strict=True)
                    ]
                    places = np.cumsum([each.tokens for each in read])
                    means = np.cumsum([sum(row) for row in rows]) / places
                    likeness[name] = dict(zip(map(str, TOKENS), means.tolist(), strict=False))
                accuracy = {
                    split: float(np.mean([row.mean() for row in scorers[setting].score(model, split).values()]))
                    for split in (("search", "test") if setting == ONE_MERGE else ("test",))
                }
                row = {"setting": setting, "merge": number, "sparsity": report.sparsity}
                lines.append(json.dumps(row | {"accuracy": accuracy, "alike": likeness}) + "\n")
            kept.writelines(lines)
            kept.flush()


def columns(rows: list[dict]) -> dict[tuple[str, int], np.ndarray]:
    """Return what merges may be ranked by, and the forward tokens of a merge that it takes; NaN where not measured."""
    found = {
        (name, tokens): np.array([row["alike"][name].get(str(tokens), np.nan) for row in rows])
        for name in MEASURES
        for tokens in TOKENS
    }
    labels = np.array([row["accuracy"].get("search", np.nan) for row in rows])
    return {
        key: row
        for key, row in (found | {("labels of the search split", 4278): labels}).items()
        if not np.isnan(row).all()
    }


def correlations(ranked: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
    """Return Spearman's and Kendall's rank correlations."""
    from scipy import stats

    return np.array([stats.spearmanr(ranked, accuracy).statistic, stats.kendalltau(ranked, accuracy).statistic])


def told(value: np.ndarray, drawn: list[np.ndarray]) -> str:
    """Return table cells of numbers with 95 % bootstrap intervals."""
    low, high = np.nanquantile(np.array(drawn), [0.025, 0.975], axis=0)
    return " | ".join(f"{v:.2f} [{a:.2f}, {b:.2f}]" for v, a, b in zip(value, low, high, strict=True))


def show(output: Path) -> None:
    """Print the tables."""
    rows, rng = [json.loads(line) for line in output.read_text().splitlines()], np.random.default_rng(0)
    many = [row for row in rows if row["setting"] == MANY]
    print("| merges | ranked by | tokens | Spearman | Kendall |\n|---|---|---|---|---|")
    for setting, own in (("one budget", many[::2]), ("mixed budgets", many[1::2])):
        test = np.array([row["accuracy"]["test"] for row in own])
        for (name, tokens), every in columns(own).items():
            there = np.flatnonzero(~np.isnan(every))
            ranked, known = every[there], test[there]
            drawn = rng.integers(len(there), size=(RESAMPLES, len(there)))
            resampled = [correlations(ranked[chosen], known[chosen]) for chosen in drawn]
            print(f"| {len(there)}, {setting} | {name} | {tokens:,} | {told(correlations(ranked, known), resampled)} |")
    one = [row for row in rows if row["setting"] == ONE_MERGE]
    test, merge = np.array([row["accuracy"]["test"] for row in one]), np.array([row["merge"] for row in one])
    groups = [np.flatnonzero(merge == each) for each in np.unique(merge)]
    gains = {}
    for (name, tokens), ranked in columns(one).items():
        each = np.array([correlations(ranked[group], test[group]) for group in groups])
        drawn = [each[rng.integers(len(each), size=len(each))].mean(axis=0) for _ in range(RESAMPLES)]
        label = f"{ALLOCATIONS} allocations each of {len(groups)} merges"
        print(f"| {label} | {name} | {tokens:,} | {told(each.mean(axis=0), drawn)} |")
        gains[name, tokens] = [gain(ranked[group], test[group]) for group in groups]
    print("\n| chosen by | tokens | best of 4 | best of 8 |\n|---|---|---|---|")
    for (name, tokens), found in gains.items():
        means, errors = np.mean(found, axis=0), np.std(found, axis=0, ddof=1) / len(found) ** 0.5
        cells = " | ".join(f"{mean:+.4f} ± {1.96 * error:.4f}" for mean, error in zip(means, errors, strict=True))
        print(f"| {name} | {tokens:,} | {cells} |")


def gain(ranked: np.ndarray, test: np.ndarray) -> list[float]:
    """Return how far above the mean the test accuracy of the best of 4, and of 8, random allocations is."""
    rng, found = np.random.default_rng(0), []
    for size in (4, 8):
        drawn = [rng.choice(len(test), size, replace=False) for _ in range(RESAMPLES)]
        found.append(float(np.mean([test[each[np.argmax(ranked[each])]] - test.mean() for each in drawn])))
    return found


def children(folder: Path, count: int = 12) -> None:
    """Print what choosing among 8 allocations would have been worth to children of a search, on its search split."""
    import torch

    import sae_moo as sm
    from sae_moo.evaluate.screening import Texts, log_probabilities, similarity, staged, teacher
    from sae_moo.searchers.alternatives import alternatives
    from sae_moo.searchers.breeding import Operators
    from sae_moo.study.record import ended

    torch.set_num_threads(1)
    bench = sm.Bench.open(sm.Config.load(CONFIG, ["evaluation.screening={tokens: 128, more: 512}"]))
    pool, model, scorer = bench.pool, bench.live_model(), bench.scorer()
    stages = [Texts.of(part, model.get_input_embeddings().weight.shape[0]) for part in staged(bench.screened, 128)]
    rng, made = np.random.default_rng(1), ended(sm.Run.open(folder).trials())
    bred = [each for each in made if each.generation >= 3 and 0.3 < each.evaluation.sparsity < 0.75]
    gains: dict[str, list[float]] = {}
    for record in [bred[i] for i in rng.choice(len(bred), count, replace=False)]:
        recipes = (record.asked, *alternatives(bench.ground(), record.asked, 7, Operators(), rng))
        sm.materialize(teacher(record.asked), pool, model)
        unpruned = [log_probabilities(model, each) for each in stages]
        accuracy, ranks = [], {f"{name} on {tokens} tokens": [] for name in MEASURES for tokens in (128, 512)}
        for recipe in recipes:
            sm.materialize(recipe, pool, model)
            for name in MEASURES:
                near, rest = (similarity(own, model, each, name) for own, each in zip(unpruned, stages, strict=True))
                ranks[f"{name} on 128 tokens"].append(near.mean())
                ranks[f"{name} on 512 tokens"].append(np.concatenate([near, rest]).mean())
            accuracy.append(float(np.mean([row.mean() for row in scorer.score(model, "search").values()])))
        found = np.array(accuracy) - accuracy[0]
        for name, row in ranks.items():
            gains.setdefault(name, []).append(found[int(np.argmax(row))])
        gains.setdefault("the labels themselves", []).append(found.max())
        gains.setdefault("chance, the own one left out", []).append(found[1:].mean())
    print(f"| of 8 allocations of {count} children, chosen by | accuracy over the own one |\n|---|---|")
    for name, row in gains.items():
        print(f"| {name} | {np.mean(row):+.3f} ± {1.96 * np.std(row, ddof=1) / len(row) ** 0.5:.3f} |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teachers", type=int, default=5, help="merges with many allocations")
    parser.add_argument("--far", type=int, default=40, help="of many merges, how many are compared on 16k tokens")
    parser.add_argument("--test", type=int, default=200, help="test instances a task of many merges; of few it is 400")
    parser.add_argument("--count", type=int, default=200, help="merges that are pruned once to each budget")
    parser.add_argument("--output", type=Path, help="JSON lines; what is found there is not done again")
    parser.add_argument("--run", type=Path, help="folder of a search of `screening.yaml` without screening")
    arguments = parser.parse_args()
    if arguments.run is not None:
        children(arguments.run)
    if arguments.output is None:
        return
    measure(arguments.output, arguments.teachers, arguments.count, arguments.far, arguments.test)
    show(arguments.output)


if __name__ == "__main__":
    main()
