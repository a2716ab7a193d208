"""What a merge of a real model keeps when it is pruned: SmolLM2-135M-Instruct with two adapters (`experts.py`).

    python studies/sparsity/language_model.py dense      --model smol --experts experts     # base, experts, merges
    python studies/sparsity/language_model.py criteria   --model smol --experts experts     # what goes first, and where
    python studies/sparsity/language_model.py allocation --model smol --experts experts     # levels that differ by block
    python studies/sparsity/language_model.py removal    --model smol --experts experts     # 2, 4, 6 of 30 blocks gone
    python studies/sparsity/language_model.py greedy     --model smol --experts experts     # the same, one by one
    python studies/sparsity/language_model.py repair     --model smol --experts experts     # second-order repair
    python studies/sparsity/language_model.py take-over  --model smol --experts experts     # repair of blocks gone
    python studies/sparsity/language_model.py tailor     --model smol --experts experts     # each block from any model

Every number in a table is of texts that nothing was trained, calibrated or chosen by (`texts.py`). One thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from bench import DTYPE, LEVELS, MEASURES, Bench, Table, Teacher, numbers, pruned
from blocks import SWAPPED, by_magnitude, chosen, greedy, influences, stretch, swapped, without
from texts import TASKS

from sae_moo import Cast, Expert, Merge, Recipe
from sae_moo.evaluate.screening import Measure
from sae_moo.searchers.allocation import switched

SCALE = 0.8
SCALES = (0.4, 0.6, 0.8, 1.0)
SLOPES = (-0.15, 0.0, 0.15, 0.3)
COUNTS = (2, 4, 6)
REPAIRED = 16_384
TAILORED, TRIES = 4, 60
MEASURED: tuple[Measure, ...] = ("tv", "kl")


def dense(bench: Bench) -> None:
    """Print the base, the experts, and merges by their scale."""
    table = Table("model", "loss, choose", *MEASURES)
    models: dict[str, Recipe] = {"base": Expert("base")} | {f"expert {name}": Expert(name) for name in TASKS}
    models |= {f"merge, scale {scale}": bench.merged(scale) for scale in SCALES}
    base = bench.losses(Expert("base"))
    for name, recipe in models.items():
        chosen = bench.losses(recipe, "choose").mean
        table.row(name, chosen, *numbers(bench.losses(recipe), base))


def calibrations(bench: Bench) -> dict[str, str]:
    """Return norms of the base, of the experts' average, and of the merge itself."""
    average = Cast(Merge("linear", tuple(Expert(name) for name in TASKS), (0.5, 0.5)), bench.merge.dtype)
    return {
        name: bench.norms(each)
        for name, each in (("base", Expert("base")), ("average", average), ("merge", bench.merge))
    }


def criteria(bench: Bench) -> None:
    """Print the merge pruned by every criterion, scope and model that norms are of."""
    norms = calibrations(bench)
    ways: dict[str, tuple[str | None, str]] = {f"magnitude per {scope}": (None, scope) for scope in ("tensor", "row")}
    ways |= {f"wanda per row, norms of the {name}": (norms[name], "row") for name in norms}
    ways |= {"wanda per tensor, norms of the merge": (norms["merge"], "tensor")}
    unpruned = bench.losses(bench.merge)
    table = Table("way", "sparsity", *MEASURES)
    table.row("unpruned", 0, *numbers(unpruned, unpruned))
    for level in LEVELS:
        for way, (digest, scope) in ways.items():
            table.row(way, level, *numbers(bench.losses(pruned(bench.merge, level, digest, scope)), unpruned))


def evolved(
    bench: Bench, teacher: Teacher, levels: Sequence[float], norms: str, rounds: int, children: int, seed: int
) -> tuple[tuple[float, ...], float]:
    """Return levels of the blocks, from given ones by level switches that keep the budget, and how alike they are.

    The parent takes part in every round: EvoPress (arXiv 2410.14649), on one stage of texts.
    """
    rng, sizes = np.random.default_rng(seed), np.ones(len(levels))

    def alike(levels: Sequence[float]) -> float:
        return teacher.alike(pruned(bench.merge, bench.by_block(levels), norms, "row"))

    best, most = tuple(levels), alike(levels)
    for _ in range(rounds):
        drawn = [tuple(switched(np.array(best), sizes, 0.9, rng).tolist()) for _ in range(children)]
        for each, value in [(each, alike(each)) for each in drawn]:
            if value > most:
                best, most = each, value
    return best, most


def allocation(bench: Bench) -> None:
    """Print the merge pruned by wanda per row with levels that differ by block, chosen by 1 - TV to the merge."""
    norms = bench.norms(bench.merge)
    unpruned, teacher = bench.losses(bench.merge), Teacher(bench, bench.merge)
    depth = np.linspace(-0.5, 0.5, len(bench.blocks))
    table = Table("way", "sparsity", "1 - TV", "tokens read", *MEASURES)

    def told(way: str, level: float, levels: Sequence[float]) -> float:
        recipe = pruned(bench.merge, bench.by_block(levels), norms, "row")
        alike = teacher.alike(recipe)
        table.row(way, level, alike, teacher.tokens, *numbers(bench.losses(recipe), unpruned))
        return alike

    for level in (0.5, 0.3):
        sloped = {slope: (level + slope * depth).round(4).tolist() for slope in SLOPES}
        alike = {slope: told(f"slope {slope:+.2f}", level, levels) for slope, levels in sloped.items()}
        best = sloped[max(alike, key=lambda slope: alike[slope])]
        teacher.tokens = 0
        levels, _ = evolved(bench, teacher, best, norms, rounds=6, children=6, seed=0)
        told("level switches", level, levels)
        bench.keep(f"levels {level}", levels)


def removal(bench: Bench) -> None:
    """Print the merge, and the better expert, without 2, 4 and 6 blocks that rules choose, or stretches by 1 - TV."""
    unpruned, blocks = bench.losses(bench.merge), len(bench.blocks)
    experts = {name: bench.losses(Expert(name), "choose").mean for name in TASKS}
    better = min(experts, key=lambda name: experts[name])
    table = Table("model", "gone", "rule", "blocks", *MEASURES)
    for name, recipe in (("merge", bench.merge), (f"expert {better}", Expert(better))):

        def told(count: int, rule: str, gone: Sequence[int], name: str = name, recipe: Recipe = recipe) -> None:
            losses = bench.losses(without(recipe, gone, blocks))
            table.row(name, count, rule, " ".join(map(str, gone)), *numbers(losses, unpruned))

        told(0, "", ())
        order = np.argsort(influences(bench, recipe), kind="stable").tolist()
        for count in COUNTS:
            told(count, "block influence", sorted(order[:count]))
            told(count, "magnitude", by_magnitude(bench, recipe, count))
        for measure in MEASURED:
            teacher = Teacher(bench, recipe, measure)
            for count in COUNTS:
                told(count, f"stretch, {measure}", stretch(teacher, recipe, count, blocks))


def one_by_one(bench: Bench) -> None:
    """Print the merge without 2, 4 and 6 blocks that go one by one, by KL to the merge, and after swaps."""
    unpruned, blocks = bench.losses(bench.merge), len(bench.blocks)
    table = Table("model", "gone", "rule", "blocks", "tokens read", *MEASURES)
    teacher = Teacher(bench, bench.merge, "kl")

    def told(rule: str, gone: Sequence[int], repaired: bool = False) -> None:
        recipe = without(bench.merge, gone, blocks)
        losses = bench.losses(bench.repaired(recipe, REPAIRED) if repaired else recipe)
        table.row("merge", len(gone), rule, " ".join(map(str, gone)), teacher.tokens, *numbers(losses, unpruned))

    found, order = greedy(teacher, bench.merge, COUNTS, blocks)
    for gone in found.values():
        told("greedy, kl", gone)
        told("greedy, kl, repaired", gone, repaired=True)
    for gone in found.values():
        told("greedy and swaps, kl", swapped(teacher, bench.merge, gone, order[:SWAPPED], blocks))


def repaired(bench: Bench) -> None:
    """Print the merge pruned by wanda, before and after its repair, by how many tokens that reads."""
    norms, unpruned = bench.norms(bench.merge), bench.losses(bench.merge)
    table = Table("way", "sparsity", "tokens read", "seconds", *MEASURES)
    for level in sorted(LEVELS, reverse=True):
        for scope, tokens in (("row", 0), ("row", 4096), ("tensor", 4096), ("row", REPAIRED)):
            recipe = pruned(bench.merge, level, norms, scope)
            if tokens:
                recipe = bench.repaired(recipe, tokens)
            start = time.process_time()
            losses = bench.losses(recipe)
            seconds = round(time.process_time() - start)
            table.row(
                f"wanda per {scope}{', repaired' if tokens else ''}", level, tokens, seconds, *numbers(losses, unpruned)
            )


def taken_over(bench: Bench) -> None:
    """Print the merge without 2, 4 and 6 blocks of least influence, and with their work taken over by a repair."""
    unpruned, blocks = bench.losses(bench.merge), len(bench.blocks)
    order = np.argsort(influences(bench, bench.merge), kind="stable").tolist()
    table = Table("gone", "blocks", "tokens read", *MEASURES)
    for count in COUNTS:
        gone = sorted(order[:count])
        recipe = bench.repaired(without(bench.merge, gone, blocks), REPAIRED)
        table.row(count, " ".join(map(str, gone)), REPAIRED, *numbers(bench.losses(recipe), unpruned))


def tailored(bench: Bench) -> None:
    """Print models without four blocks whose others are each of an expert or of the merge, chosen with labels."""
    unpruned, blocks = bench.losses(bench.merge), len(bench.blocks)
    sources = {"gsm8k": (1.0, 0.0), "languages": (0.0, 1.0), "merge": (bench.scale, bench.scale)}
    order = np.argsort(influences(bench, bench.merge), kind="stable").tolist()
    least = tuple(sorted(order[:TAILORED]))

    def model(names: Sequence[str]) -> Callable[[tuple[int, ...]], Recipe]:
        def of(choice: tuple[int, ...]) -> Recipe:
            rows = [(0.0, 0.0)] * len(bench.pool.groups)
            for group, number in zip(bench.blocks, choice, strict=True):
                rows[group] = sources[names[number]]
            return Cast(Merge("task_arithmetic", tuple(Expert(name) for name in TASKS), tuple(rows)), DTYPE)

        return of

    table = Table("each block of", "gone", "evaluations", "loss, choose", "blocks of each", *MEASURES)
    for names in (("merge",), ("languages", "gsm8k"), ("merge", "languages", "gsm8k")):
        of = model(names)

        def loss(choice: tuple[int, ...], gone: tuple[int, ...], of: Callable[..., Recipe] = of) -> float:
            return bench.losses(without(of(choice), gone, blocks), "choose").mean

        for tries in (1, TRIES):
            choice, gone, lost = chosen(loss, (0,) * blocks, least, len(names), tries, seed=0)
            counts = ", ".join(
                f"{sum(1 for block, number in enumerate(choice) if number == i and block not in gone)} {name}"
                for i, name in enumerate(names)
            )
            losses = bench.losses(without(of(choice), gone, blocks))
            table.row(" or ".join(names), " ".join(map(str, gone)), tries, lost, counts, *numbers(losses, unpruned))


PARTS = {
    "dense": dense,
    "criteria": criteria,
    "allocation": allocation,
    "removal": removal,
    "greedy": one_by_one,
    "repair": repaired,
    "take-over": taken_over,
    "tailor": tailored,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--model", type=Path, default=Path("smol"))
    parser.add_argument("--experts", type=Path, default=Path("experts"))
    parser.add_argument("--scale", type=float, default=SCALE, help="of both task vectors in the merge")
    given = parser.parse_args()
    PARTS[given.part](Bench(given.model, given.experts, given.scale))


if __name__ == "__main__":
    main()
