"""What features of pairs cost: processor seconds against evaluations of merges, and memory.

    python cost.py pairs CONFIG        # of all experts of a configuration, of its first two alone, and read again
    python cost.py memory              # structural features of two experts of 1.5B weights (Qwen2.5-1.5B's tensors), 9 GB of disk

Processor seconds are of one process and all its threads, so that they hold on a machine that does other things, too.
Caches of features are begun anew in a folder that goes; memory is what the process has of its own (RssAnon), the files
that are mapped not among it, looked at every 5 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

EVALUATED = 7
"""Merges that are evaluated; the first one, which lays tasks out, is not counted."""
VOCABULARY, WIDTH, WIDE, LAYERS, HEADS, KEYS = 151_936, 1536, 8960, 28, 12, 2


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    found = action()
    return time.process_time() - start, found


def pairs(config: Path) -> None:
    from sae_moo.config.document import Config
    from sae_moo.evaluate.asking import ProbesSection
    from sae_moo.evaluate.probes import probes_of
    from sae_moo.evaluate.trace_likeness import trace_likenesses
    from sae_moo.evaluate.traces import Traces
    from sae_moo.jobs.bench import Bench
    from sae_moo.materialization.likeness import likenesses
    from sae_moo.recipe import BASE, Cast, Expert, Merge

    bench = Bench.open(Config.load(config))
    experts = [name for name in bench.pool.names if name != BASE]
    every = list(combinations(experts, 2))
    evaluator = bench.evaluator()
    seconds, tokens = [], []
    for one, other in (every * EVALUATED)[:EVALUATED]:
        recipe = Cast(Merge("linear", (Expert(one), Expert(other)), (0.4 + 0.01 * len(seconds), 0.6)), bench.rounding)
        took, found = timed(lambda r=recipe: evaluator.evaluate(r))
        seconds.append(took)
        tokens.append(found.tokens)
    evaluation = statistics.median(seconds[1:])
    print(
        f"{len(experts)} experts, {len(every)} pairs, {len(bench.tasks)} tasks; one evaluation of a merge reads {tokens[-1]:,} tokens\n"
    )
    print("| what | processor seconds | evaluations of a merge |\n|---|---|---|")

    def row(what: str, took: float) -> None:
        print(f"| {what} | {took:.2f} | {took / evaluation:.2f} |", flush=True)

    row(f"one evaluation of a merge (median of {len(seconds) - 1})", evaluation)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        begun, _ = timed(lambda: bench.features(experts=experts[:2]))
        row(f"features of one pair, both orders, {len(bench.tasks)} tasks, nothing known", begun)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        probes = probes_of(bench.tasks, bench.pool, ProbesSection(), bench.config.directory)
        traces = Traces(bench.pool, probes, bench.config.models.dtype, bench.device)
        passes, _ = timed(lambda: traces.make({each.task: bench.pool.names for each in probes}))
        row(f"forward passes of {len(bench.pool.names)} models over probes, {traces.tokens:,} tokens", passes)
        compared = 0.0
        for each in probes:
            compared += timed(lambda task=each.task: trace_likenesses(traces.of(bench.pool.names, task), every))[0]
        row(f"comparing what they left, {len(every)} pairs", compared)
        weights, _ = timed(lambda: likenesses(bench.pool, every))
        row(f"comparing weights, {len(every)} pairs", weights)
        row("all of it, of one pair", (passes + compared + weights) / len(every))
        size = sum(path.stat().st_size for path in (Path(folder) / "sae_moo" / "traces").iterdir())
        table = bench.features()
        again, _ = timed(lambda: bench.features())
        row(f"the whole table read again, {len(table)} rows", again)
    print(f"\ntraces on disk: {size / 2**20 / len(bench.pool.names):.1f} MiB a model")


def memory(folder: Path | None, layers: int) -> None:
    from sae_moo.experts.pool import ExpertPool
    from sae_moo.materialization.likeness import likenesses

    with tempfile.TemporaryDirectory(dir=folder) as made:
        # written by a process of its own, whose memory is gone: what is free in a heap would hide what is taken
        subprocess.run([sys.executable, __file__, "write", made, "--layers", str(layers)], check=True)
        pool = ExpertPool.open(f"{made}/base", {name: f"{made}/{name}" for name in ("one", "two")})
        before = anonymous()
        (took, found), most = peak(lambda: timed(lambda: likenesses(pool, [("one", "two")])))
    count = sum(info.numel for info in pool.tensors)
    largest = max(info.numel for info in pool.tensors) * 4 / 2**20
    print(
        "| weights of a model | largest tensor in float32, MiB | processor seconds | own memory before, MiB | at its peak |"
    )
    print("|---|---|---|---|---|")
    print(f"| {count / 1e9:.2f}B | {largest:.0f} | {took:.0f} | {before / 2**20:.0f} | {most / 2**20:.0f} |")
    print(f"\n{json.dumps(found['one', 'two'])}")


def write(folder: Path, layers: int) -> None:
    """Write a base and two experts of random bf16 weights."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, Qwen2Config

    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=WIDE,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KEYS,
        tie_word_embeddings=True,
        architectures=["Qwen2ForCausalLM"],
    )
    with torch.device("meta"):
        shapes = {name: each.shape for name, each in AutoModelForCausalLM.from_config(config).named_parameters()}
    for number, name in enumerate(("base", "one", "two")):
        (folder / name).mkdir()
        config.save_pretrained(folder / name)
        weights = {}
        for i, (key, shape) in enumerate(shapes.items()):
            base = torch.empty(shape).normal_(0, 0.02, generator=torch.Generator().manual_seed(i))
            if number:
                base += torch.empty(shape).normal_(0, 0.002, generator=torch.Generator().manual_seed(1000 * number + i))
            weights[key] = base.bfloat16()
        save_file(weights, folder / name / "model.safetensors", metadata={"format": "pt"})
        del weights


def anonymous() -> int:
    """Return the bytes that are this process's own, and no mapped file's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no RssAnon in /proc/self/status: this measure needs Linux")


def peak(action: Callable[[], Any]) -> tuple[Any, int]:
    """Return what an action gives, and the most bytes that were seen meanwhile."""
    seen, over = [anonymous()], threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            seen.append(anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        found = action()
    finally:
        over.set()
        watcher.join()
    return found, max(seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("pairs").add_argument("config", type=Path)
    measure = parts.add_parser("memory")
    measure.add_argument(
        "--folder", type=Path, help="where the models are written for a while; default: temporary files"
    )
    models = parts.add_parser("write", help="what `memory` does first")
    models.add_argument("folder", type=Path)
    for each in (measure, models):
        each.add_argument(
            "--layers", type=int, default=LAYERS, help="fewer take less disk, and the largest tensor stays"
        )
    asked = parser.parse_args()
    if asked.part == "pairs":
        pairs(asked.config)
    elif asked.part == "memory":
        memory(asked.folder, asked.layers)
    else:
        write(asked.folder, asked.layers)


if __name__ == "__main__":
    main()
