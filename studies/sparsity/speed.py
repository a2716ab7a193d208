"""How well the modelled speed predicts that of really smaller models: random weights, sizes of small language models.

OMP_NUM_THREADS=1 python studies/sparsity/speed.py --output studies/sparsity/speed.md

Tables are measured as a search measures them. Then the dense model and models that are really built smaller (fewer
layers, fewer neurons and heads in their `config.json`) are timed in turns, and the fastest pass of each counts, by the
time in which this program computed. What else the machine does still empties caches under it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sae_moo import ExpertPool
from sae_moo.evaluate.costs import CostTable
from sae_moo.evaluate.timing import fastest, forward, measured
from sae_moo.experts.built import built_model
from sae_moo.experts.layers import with_layers
from sae_moo.experts.live import parsed_config
from sae_moo.experts.widths import narrower
from sae_moo.recipe import BASE, Cast, Expert, Prune, Recipe

SIZES: Mapping[str, dict[str, Any]] = {
    "34M": {
        "vocab_size": 8192,
        "hidden_size": 480,
        "intermediate_size": 1280,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
    "SmolLM2-135M": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
}
WORK = (("decode", 1, 128), ("decode", 16, 128), ("prompt", 1, 128), ("prompt", 16, 32))
# name -> shares of blocks, of neurons in each block, and of key/value groups that go
STRUCTURES = {
    "1/6 of the blocks": (1 / 6, 0.0, 0.0),
    "1/3 of the blocks": (1 / 3, 0.0, 0.0),
    "3/8 of the neurons": (0.0, 3 / 8, 0.0),
    "5/8 of the neurons": (0.0, 5 / 8, 0.0),
    "1/3 of the heads, or 1/4": (0.0, 0.0, 1 / 3),
    "1/6 of the blocks, 3/8 of the neurons, 1/3 of the heads": (1 / 6, 3 / 8, 1 / 3),
}


def pool_of(settings: Mapping[str, Any], folder: Path) -> ExpertPool:
    """Write a random model down, twice by name, since a pool has an expert."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**settings, tie_word_embeddings=True, max_position_embeddings=2048))
    model.save_pretrained(folder)
    return ExpertPool.open(str(folder), {"same": str(folder)})


def gone_of(settings: Mapping[str, Any], shares: tuple[float, float, float]) -> dict[str, int]:
    """Return how many blocks, neurons of each and key/value groups of each go."""
    wholes = ("num_hidden_layers", "intermediate_size", "num_key_value_heads")
    return {
        scope: round(share * settings[whole])
        for scope, share, whole in zip(("blocks", "neurons", "heads"), shares, wholes, strict=True)
    }


def recipe_of(settings: Mapping[str, Any], gone: Mapping[str, int]) -> Recipe:
    """Return a candidate that lacks so much; which of the units makes no difference."""
    blocks, recipe = settings["num_hidden_layers"], Expert("same")
    if gone["blocks"]:
        rows = [(0,) if i < gone["blocks"] else () for i in range(blocks)]
        recipe = Prune(recipe, gone["blocks"] / blocks, scope="blocks", units=rows)
    for scope in ("neurons", "heads"):
        if gone[scope]:
            recipe = Prune(recipe, 0.3, scope=scope, units=[tuple(range(gone[scope]))] * blocks)
    return Cast(recipe, "float32")


def built(pool: ExpertPool, settings: Mapping[str, Any], gone: Mapping[str, int]) -> Any:
    """Return a model that really is so much smaller."""
    checkpoint = pool.checkpoints[BASE]
    parsed = parsed_config(checkpoint.folder) or {}
    config = with_layers(checkpoint.config, parsed, range(settings["num_hidden_layers"] - gone["blocks"]))
    for scope, whole in (("neurons", "intermediate_size"), ("heads", "num_key_value_heads")):
        if gone[scope]:
            config |= narrower(pool, scope, settings[whole] - gone[scope]) or {}
    return built_model(config, torch.float32, "cpu")


def study(name: str, lines: list[str], work: tuple[tuple[str, int, int], ...]) -> None:
    settings = SIZES[name]
    errors = []
    with tempfile.TemporaryDirectory() as folder:
        pool = pool_of(settings, Path(folder))
        gone = {title: gone_of(settings, shares) for title, shares in STRUCTURES.items()}
        models = {("dense", 0): built(pool, settings, gone_of(settings, (0.0, 0.0, 0.0)))}
        models |= {(title, 0): built(pool, settings, each) for title, each in gone.items()}
        for mode, batch, length in work:
            table: CostTable = measured(pool, "float32", "cpu", {}, mode=mode, batch=batch, length=length)
            best = fastest({key: forward(each, mode, batch, length) for key, each in models.items()}, "cpu")
            dense = best["dense", 0]
            tokens = batch * (length if mode == "prompt" else 1)
            lines += [
                "",
                f"**{name}, {mode}, batch {batch}, {length} tokens**: dense {tokens / dense:,.0f} tokens/s",
                "",
            ]
            lines += ["| what is gone | modelled | measured | error |", "| --- | --- | --- | --- |"]
            for title in STRUCTURES:
                modelled, real = table.speed(recipe_of(settings, gone[title])), dense / best[title, 0]
                errors.append(modelled / real - 1)
                lines.append(f"| {title} | {modelled:.2f} | {real:.2f} | {errors[-1]:+.1%} |")
            print("\n".join(lines[-len(STRUCTURES) - 4 :]), flush=True)
    found = np.abs(errors)
    lines += ["", f"{name}: median absolute error {np.median(found):.1%}, largest {found.max():.1%}."]
    print(lines[-1], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    lines: list[str] = []
    for name in given.sizes:
        study(name, lines, WORK)
    if given.output is not None:
        load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
        head = f"CPU, float32, {torch.get_num_threads()} thread; load of the machine at the end: {load}."
        given.output.write_text("\n".join(["## Modelled and measured speed", "", head, *lines]) + "\n")


if __name__ == "__main__":
    main()
