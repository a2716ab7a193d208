"""What one pruned merge keeps: by slope of the sparsities over depth, with norms restored or not.

python studies/allocation/measure.py zoo                        # accuracy of a merge of the embedded models
python studies/allocation/measure.py language-model FOLDER      # loss of any model on the standard library's docstrings
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import numpy as np
import torch

from sae_moo import Expert, ExpertPool, Prune, Recipe, materialize
from sae_moo.config.document import Config
from sae_moo.experts.checkpoint import Checkpoint
from sae_moo.jobs.bench import Bench

CONFIG = Path(__file__).parent.parent / "table1" / "config.yaml"
MODULES = ("decimal", "random", "argparse", "pickle", "fractions", "statistics", "datetime", "heapq", "typing")


def pruned(recipe: Recipe, level: float, slope: float, depth: np.ndarray, rescale: bool) -> Recipe:
    asked = np.where(depth.mask, 0.0, np.clip(level + slope * depth.data, 0.0, 0.95)).round(4)
    return Prune(recipe, tuple(float(value) for value in asked), rescale=rescale)


def table(name: str, levels: list[float], slopes: list[float], depth: np.ndarray, recipe: Recipe, judge) -> None:
    """Print a row for each level and a column for each slope, without and with norms restored."""
    print("| level |", " | ".join(f"slope {slope:+.2f} | norms restored" for slope in slopes), "|")
    print("|---" * (1 + 2 * len(slopes)) + "|")
    for level in levels:
        found = [judge(pruned(recipe, level, slope, depth, way)) for slope in slopes for way in (False, True)]
        print(f"| {level:.1f} |", " | ".join(f"{value:.3f}" for value in found), "|", flush=True)
    print(f"\n{name}")


def depth_of(pool: ExpertPool) -> np.ndarray:
    """Place of each group from -0.5, first prunable, to 0.5, last; masked where nothing is prunable."""
    here = sorted({info.group for info in pool.tensors if info.prunable})
    depth = np.ma.masked_all(len(pool.groups))
    depth[here] = np.linspace(-0.5, 0.5, len(here))
    return depth


def zoo() -> None:
    bench = Bench.open(Config.load(CONFIG))
    pool, live, scorer = bench.pool, bench.live_model(), bench.scorer()

    def judge(recipe: Recipe, split: str = "test") -> float:
        materialize(recipe, pool, live)
        return float(np.mean([each.mean() for each in scorer.score(live, split).values()]))

    rng, ground = np.random.default_rng(0), bench.ground()
    scales = [rng.uniform(0.0, 1.2, len(ground.experts)) for _ in range(60)]
    merges = [ground.task_arithmetic(np.tile(each, (ground.rows, 1))) for each in scales]
    best = max(merges, key=lambda merge: judge(merge, "search"))
    print(f"unpruned: {judge(best):.3f}\n")
    name = "mean accuracy on the test split; the most accurate of 60 random merges by the search split"
    table(name, [0.3, 0.4, 0.5, 0.6, 0.7], [0.0, 0.2, 0.4, 0.6], depth_of(pool), best, judge)


def language_model(folder: Path, sequences: int) -> None:
    from transformers import AutoTokenizer

    pool = ExpertPool({"base": Checkpoint(str(folder))})
    live, tokenizer = pool.live_model("float32", "cpu"), AutoTokenizer.from_pretrained(folder)
    text = "\n".join(importlib.import_module(name).__doc__ or "" for name in MODULES)
    ids = tokenizer(text, return_tensors="pt").input_ids[0]
    rows = ids[: len(ids) // 256 * 256].view(-1, 256)[:sequences]

    @torch.inference_mode()
    def judge(recipe: Recipe) -> float:
        materialize(recipe, pool, live)
        losses = [float(live(row[None], labels=row[None]).loss) for row in rows]
        return float(np.mean(losses))

    print(f"unpruned: {judge(Expert('base')):.3f}\n")
    name = f"loss in nats per token, {len(rows)} sequences of 256 tokens"
    table(name, [0.3, 0.4, 0.5, 0.6], [0.0, -0.15, 0.15], depth_of(pool), Expert("base"), judge)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["zoo", "language-model"])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--sequences", type=int, default=8)
    given = parser.parse_args()
    zoo() if given.what == "zoo" else language_model(given.folder, given.sequences)
