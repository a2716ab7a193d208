"""How fast and in how much memory recipes become weights.

    python studies/materialize/measure.py speed --size 60M        # methods against a memory copy and plain torch
    python studies/materialize/measure.py tiny                    # cost per tensor: 219 small tensors
    python studies/materialize/measure.py peer --size 60M         # against mergekit's in-memory path, to disk and back
    python studies/materialize/measure.py memory --size 250M      # resident set of every method, K up to 10, 200 nodes
    python studies/materialize/measure.py large                   # a 1.5B merge of three experts
    python studies/materialize/measure.py lineage --size 60M      # deep lineages: cost per node, with and without cache

    python studies/materialize/measure.py cache --run runs/quickstart   # merges of a real search, by size of the cache

Checkpoints are random, written once into --folder. Figures are medians of interleaved rounds. `peer` needs
SAE_MOO_ORACLE: a Python that has mergekit.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

GIB = 2**30
# vocabulary, width, feed-forward width, layers, heads
SIZES = {
    "specks": (515, 32, 72, 2, 2),
    "odd": (1031, 96, 520, 2, 4),  # no block of kernels divides its tensors
    "tiny": (256, 64, 128, 24, 4),
    "60M": (8000, 768, 2048, 8, 12),
    "250M": (32000, 1024, 2816, 16, 16),
    "1.5B": (32000, 2048, 8192, 22, 16),
}


def described(size: str) -> tuple:
    """Return the configuration of a model of that size, and tensor name -> shape."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    vocabulary, width, wide, layers, heads = SIZES[size]
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=wide,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        tie_word_embeddings=True,
        max_position_embeddings=256,
        architectures=["LlamaForCausalLM"],
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return config, {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def checkpoints(folder: Path, size: str, count: int) -> list[Path]:
    """Write a base and `count` experts of random bf16 weights, a few percent apart, unless they are there."""
    import torch
    from safetensors.torch import save_file

    config, shapes = described(size)
    paths = []
    for number in range(count + 1):
        path = folder / size / str(number)
        paths.append(path)
        if (path / "model.safetensors").exists():
            continue
        path.mkdir(parents=True, exist_ok=True)
        weights = {}
        for i, (name, shape) in enumerate(shapes.items()):
            base = torch.empty(shape).normal_(0, 0.02, generator=torch.Generator().manual_seed(i))
            seed = 1000 * number + i
            if number:
                base.add_(torch.empty(shape).normal_(0, 0.002, generator=torch.Generator().manual_seed(seed)))
            weights[name] = base.bfloat16()
        save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(path)
    return paths


def opened(folder: Path, size: str, count: int):
    """Return the pool over such checkpoints."""
    import sae_moo as sm

    base, *experts = checkpoints(folder, size, count)
    return sm.ExpertPool.open(base=str(base), experts={f"x{i}": str(path) for i, path in enumerate(experts)})


def recipes(count: int = 3) -> dict:
    """Return name -> recipe, operands read (the base counts), of what is measured."""
    import sae_moo as sm

    xs = tuple(sm.Expert(f"x{i}") for i in range(count))
    pair = xs[:2]
    weights, two = tuple(0.2 + 0.1 * i for i in range(count)), (0.4, 0.6)
    half = {"density": 0.5}
    made = {
        "linear": (sm.Merge("linear", xs, weights), count),
        "task_arithmetic": (sm.Merge("task_arithmetic", xs, weights), count + 1),
        "slerp": (sm.Merge("slerp", pair, two), 2),
        "zero_aware": (sm.Merge("zero_aware", pair, two), 2),
        "magnitude .5": (sm.Prune(xs[0], 0.5), 1),
        "linear, then magnitude .5": (sm.Prune(sm.Merge("linear", xs, weights), 0.5), count),
        "ties .5": (sm.Merge("ties", xs, weights, half), count + 1),
        "dare_linear .5": (sm.Merge("dare_linear", xs, weights, half), count + 1),
        "dare_ties .5": (sm.Merge("dare_ties", xs, weights, half), count + 1),
        "della .5": (sm.Merge("della", xs, weights, half), count + 1),
        "sce .5": (sm.Merge("sce", xs, weights, {"select_topk": 0.5}), count + 1),
        "breadcrumbs .5": (sm.Merge("breadcrumbs", xs, weights, half), count + 1),
        "model_stock": (sm.Merge("model_stock", xs, (1.0,) * count), count + 1),
    }
    return {name: (sm.Cast(recipe, "bfloat16"), read) for name, (recipe, read) in made.items()}


def timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def speed(folder: Path, size: str, rounds: int, only: str | None = None, rounds_plain: int = 1) -> None:
    """Print every method's time over a memory copy of the same bytes, and plain chunked torch beside it."""
    import torch

    import sae_moo as sm
    from sae_moo.materialization.ops import fused

    pool = opened(folder, size, 3)
    model = pool.live_model(torch.bfloat16)
    parameters = pool.parameters(model)
    stored = {name: {i.name: pool.load(name, i.name) for i in pool.tensors} for name in pool.names}
    for tensors in stored.values():  # read once, so that all are in the page cache
        for tensor in tensors.values():
            tensor.float().sum()

    def copy(operands: int) -> None:
        """Move as many bytes as reading `operands` models and writing one does."""
        left = (operands + 1) / 2
        for name in pool.names:
            for info in pool.tensors:
                source, target = stored[name][info.name].view(-1), parameters[info.name].view(-1)
                part = int(info.numel * min(left, 1.0))
                target[:part].copy_(source[:part])
            left -= 1
            if left <= 0:
                return

    todo = {name: row for name, row in recipes().items() if only is None or only in name}
    first = {name: timed(lambda r=recipe: sm.materialize(r, pool, model)) for name, (recipe, _) in todo.items()}
    times: dict[str, list[float]] = {name: [] for name in todo}
    plain: dict[str, list[float]] = {name: [] for name in todo}
    floor: dict[str, list[float]] = {name: [] for name in todo}
    ready = fused.available
    for number in range(rounds):
        for name, (recipe, read) in todo.items():
            floor[name].append(timed(lambda n=read: copy(n)))
            times[name].append(timed(lambda r=recipe: sm.materialize(r, pool, model)))
            if number < rounds_plain:
                fused.available = lambda: False
                plain[name].append(timed(lambda r=recipe: sm.materialize(r, pool, model)))
                fused.available = ready
    print(f"{size}, {torch.get_num_threads()} threads, {rounds} rounds\n")
    print(
        "| method | ms | over a memory copy | plain path over a memory copy | first call, ms |\n|---|---|---|---|---|"
    )
    for name in todo:
        own, copied, slowly = (statistics.median(kind[name]) for kind in (times, floor, plain))
        print(f"| {name} | {own * 1e3:.1f} | {own / copied:.2f} | {slowly / copied:.1f} | {first[name] * 1e3:.0f} |")


def tiny(folder: Path, rounds: int) -> None:
    """Print the cost per tensor on a model of 219 small tensors."""
    import torch

    import sae_moo as sm

    pool = opened(folder, "tiny", 3)
    model = pool.live_model(torch.bfloat16)
    print("| method | microseconds per tensor |\n|---|---|")
    for name, (recipe, _) in recipes().items():
        sm.materialize(recipe, pool, model)
        own = statistics.median(timed(lambda r=recipe: sm.materialize(r, pool, model)) for _ in range(rounds))
        print(f"| {name} | {own * 1e6 / len(pool.tensors):.0f} |")
    print(f"\n{len(pool.tensors)} tensors")


PEER = """
import json, sys, time
import torch, transformers
from mergekit.config import MergeConfiguration
from mergekit.architecture import arch_info_for_config
from mergekit.common import ModelReference
from mergekit.graph import Executor
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner
config = None
for line in sys.stdin:
    job = json.loads(line)
    start = time.perf_counter()
    merge = MergeConfiguration.model_validate(job["config"])
    if config is None:
        config = transformers.AutoConfig.from_pretrained(job["path"])
        model = transformers.AutoModelForCausalLM.from_config(config).bfloat16()
        parameters = dict(model.named_parameters())
        info = arch_info_for_config(config)
        options = MergeOptions(lazy_unpickle=True)
        start = time.perf_counter()
    if job["disk"]:
        run_merge(merge, job["disk"], MergeOptions(lazy_unpickle=True, copy_tokenizer=False, quiet=True))
        model = transformers.AutoModelForCausalLM.from_pretrained(job["disk"], dtype=torch.bfloat16)
        print(json.dumps(time.perf_counter() - start), flush=True)
        continue
    planner = MergePlanner(merge, info, options, config)
    planner._plan()  # what plan_in_memory does before it fails on its own task class in this release
    names = {task: weight.name for weight, task in planner._tensors}
    for task, value in Executor(list(names), math_device="cpu", storage_device="cpu").run(quiet=True):
        if names[task] in parameters:
            parameters[names[task]].data.copy_(value)
    print(json.dumps(time.perf_counter() - start), flush=True)
"""


def peer(folder: Path, size: str, rounds: int) -> None:
    """Print our time against mergekit's in-memory path, and against a merge written to disk and loaded again."""
    import torch

    import sae_moo as sm
    from sae_moo.experts.pool import load_model

    pool = opened(folder, size, 3)
    base, *paths = (str(path.resolve()) for path in checkpoints(folder, size, 3))
    model = pool.live_model(torch.bfloat16)
    settings = {"linear": {}, "task_arithmetic": {}, "ties .5": {"density": 0.5}, "dare_ties .5": {"density": 0.5}}
    worker = subprocess.Popen(
        [os.environ["SAE_MOO_ORACLE"], "-c", PEER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def theirs(name: str, disk: str | None = None) -> float:
        models = [
            {"model": path, "parameters": {"weight": 0.2 + 0.1 * i, **settings[name]}} for i, path in enumerate(paths)
        ]
        config = {"merge_method": name.split()[0], "models": models, "dtype": "bfloat16"}
        if name != "linear":
            config["base_model"] = base
        worker.stdin.write(json.dumps({"config": config, "path": base, "disk": disk}) + "\n")
        worker.stdin.flush()
        return float(worker.stdout.readline())

    def theirs_through_disk(name: str) -> float:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            return theirs(name, place)

    def through_disk(recipe: sm.Recipe) -> None:
        sm.materialize(recipe, pool, model)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            model.save_pretrained(place)
            load_model(Path(place), torch.bfloat16, "cpu")

    todo = recipes()
    print(
        "| method | ms | mergekit in memory | mergekit to disk and loaded | ours to disk and loaded |\n"
        "|---|---|---|---|---|"
    )
    for name in settings:
        recipe = todo[name][0]
        theirs(name), theirs_through_disk(name), sm.materialize(recipe, pool, model)
        own, other, disk, both = [], [], [], []
        for _ in range(rounds):
            own.append(timed(lambda r=recipe: sm.materialize(r, pool, model)))
            other.append(theirs(name))
            own.append(timed(lambda r=recipe: sm.materialize(r, pool, model)))
            both.append(theirs_through_disk(name))
            disk.append(timed(lambda r=recipe: through_disk(r)))
        mine = statistics.median(own)
        print(
            f"| {name} | {mine * 1e3:.1f} | {statistics.median(other) / mine:.1f} | "
            f"{statistics.median(both) / mine:.1f} | {statistics.median(disk) / mine:.1f} |"
        )
    worker.stdin.close()
    worker.wait()


def anonymous() -> int:
    """Return this process's anonymous resident memory in bytes: what the page cache cannot take back.

    Memory that was freed is given back to the system first: kept by the allocator, it would hide what comes next.
    """
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return resident()


def resident() -> int:
    """Return the anonymous resident memory as it is."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no RssAnon in /proc/self/status: this measure needs Linux")


def peak(action: Callable[[], object]) -> int:
    """Return the most anonymous memory during an action, in bytes."""
    most = anonymous()
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.0005):
            most = max(most, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        action()
    finally:
        done.set()
        watcher.join()
    return most


def deep(depth: int):
    """Return a lineage of `depth` nodes: merge with an expert, prune, round, again and again."""
    import sae_moo as sm

    recipe: sm.Recipe = sm.Cast(sm.Expert("x0"), "bfloat16")
    for i in range(max(1, depth // 3)):
        merged = sm.Merge("zero_aware", (recipe, sm.Expert(f"x{1 + i % 2}")), (0.5 + i / 10_000, 0.5))
        recipe = sm.Cast(sm.Prune(merged, 0.3), "bfloat16")
    return recipe


def wide(width: int, generations: int):
    """Return a lineage in which every candidate is a parent of two of the next generation."""
    import sae_moo as sm

    def paired(inputs: tuple, share: float) -> sm.Recipe:
        return sm.Cast(sm.Prune(sm.Merge("zero_aware", inputs, (share, 1 - share)), 0.3), "bfloat16")

    layer = [paired((sm.Expert(f"x{i % 9}"), sm.Expert(f"x{i % 9 + 1}")), 0.2 + i / 100) for i in range(width)]
    for _ in range(generations):
        layer = [paired(pair, 0.5) for pair in zip(layer, layer[1:] + layer[:1], strict=True)]
    return sm.Cast(sm.Merge("linear", tuple(layer), (1.0,) * width), "bfloat16")


def adapted(folder: Path, size: str, count: int):
    """Return the pool over a base and adapters of rank 16 on every linear layer and on the embeddings' untied head."""
    import torch
    from safetensors.torch import load_file, save_file

    import sae_moo as sm

    source = checkpoints(folder, size, 0)[0]
    base = folder / size / "untied"
    if not (base / "model.safetensors").exists():
        base.mkdir(parents=True, exist_ok=True)
        config = json.loads((source / "config.json").read_text())
        (base / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
        weights = load_file(source / "model.safetensors")
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    shapes = {name: tuple(each.shape) for name, each in load_file(base / "model.safetensors").items()}
    experts = {}
    for number in range(count):
        path = folder / size / f"adapter{number}"
        experts[f"x{number}"] = str(path)
        if (path / "adapter_model.safetensors").exists():
            continue
        path.mkdir()
        generator = torch.Generator().manual_seed(number)
        factors = {}
        for name, shape in shapes.items():
            if len(shape) == 2 and "embed" not in name:
                module = "base_model.model." + name.removesuffix(".weight")
                factors[f"{module}.lora_A.weight"] = torch.randn(16, shape[1], generator=generator) * 0.01
                factors[f"{module}.lora_B.weight"] = torch.randn(shape[0], 16, generator=generator) * 0.01
        save_file(factors, path / "adapter_model.safetensors")
        settings = {"peft_type": "LORA", "r": 16, "lora_alpha": 16, "bias": "none", "target_modules": "all-linear"}
        (path / "adapter_config.json").write_text(json.dumps(settings))
    return sm.ExpertPool.open(base=str(base), experts=experts)


def memory(folder: Path, size: str) -> None:
    """Print the peak anonymous memory beside the live model, in units of the largest tensor in float32."""
    import torch

    pool = opened(folder, size, 10)
    model = pool.live_model(torch.bfloat16)
    largest = max(info.numel for info in pool.tensors) * 4
    todo = {f"{name}, K = {k}": recipe for k in (3, 10) for name, (recipe, _) in recipes(k).items()}
    todo["lineage of 200 nodes"] = deep(200)
    todo["lineage 24 wide, 4 generations"] = wide(24, 4)
    print(f"{size}: largest tensor in float32 {largest / 2**20:.0f} MiB\n")
    _print_peaks(todo, pool, model, largest)
    del pool, model
    pool = adapted(folder, size, 10)
    model = pool.live_model(torch.bfloat16)
    _print_peaks({f"{name}, ten adapters": recipe for name, (recipe, _) in recipes(10).items()}, pool, model, largest)


def _print_peaks(todo: dict, pool, model, largest: int) -> None:
    import sae_moo as sm

    sm.materialize(next(iter(todo.values())), pool, model)  # compiled code is not counted
    before = anonymous()  # once: what is remembered of the experts counts from then on
    print("| | largest tensors | seconds |\n|---|---|---|")
    for name, recipe in todo.items():
        seconds: list[float] = []
        most = peak(lambda r=recipe, s=seconds: s.append(timed(lambda: sm.materialize(r, pool, model)))) - before
        print(f"| {name} | {most / largest:.2f} | {seconds[0]:.2f} |", flush=True)


def large(folder: Path) -> None:
    """Print the resident set of a process that merges three 1.5B experts."""
    import torch

    import sae_moo as sm

    pool = opened(folder, "1.5B", 3)
    model = pool.live_model(torch.bfloat16)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters / 1e9:.2f}B parameters, live model {parameters * 2 / GIB:.2f} GiB\n")
    print("| method | seconds | anonymous memory at its peak, GiB |\n|---|---|---|")
    for name in ("linear", "ties .5", "linear, then magnitude .5"):
        recipe = recipes()[name][0]
        seconds: list[float] = []
        most = peak(lambda r=recipe, s=seconds: s.append(timed(lambda: sm.materialize(r, pool, model))))
        print(f"| {name} | {seconds[0]:.1f} | {most / GIB:.2f} |", flush=True)


def lineage(folder: Path, size: str) -> None:
    """Print what a node of a deep lineage costs to replay, and what a cache saves."""
    import torch

    import sae_moo as sm

    pool = opened(folder, size, 3)
    model = pool.live_model(torch.bfloat16)
    sm.materialize(deep(3), pool, model)
    print("| nodes | ms | ms per node |\n|---|---|---|")
    for depth in (3, 30, 120):
        own = statistics.median(timed(lambda d=depth: sm.materialize(deep(d), pool, model)) for _ in range(3))
        print(f"| {depth} | {own * 1e3:.0f} | {own * 1e3 / depth:.1f} |")


def cache(run: Path) -> None:
    """Print what the candidates of a finished search cost to merge again, by how many models the cache may hold."""
    import sae_moo as sm
    from sae_moo.recipe import Cast, children
    from sae_moo.study.record import ended

    opened_run = sm.Run.open(run)
    bench = sm.Bench.open(opened_run.config)
    model = bench.live_model()
    trials = [trial.recipe for trial in ended(opened_run.trials()) if trial.repeats is None]
    size = sum(parameter.nbytes for parameter in model.parameters())

    def parents(recipe: sm.Recipe) -> set:
        found, stack = set(), list(children(recipe))
        while stack:
            node = stack.pop()
            if isinstance(node, Cast):
                found.add(node)
            else:
                stack.extend(children(node))
        return {each for each in found if not isinstance(each.input, sm.Expert)}

    print(f"{len(trials)} candidates, {size / 2**20:.1f} MiB each\n")
    print("| models held | parents found | seconds | ms per candidate |\n|---|---|---|---|")
    for models in (len(trials), 96, 48, 24, 12, 6, 3, 0):
        held = sm.WeightCache(models * size)
        asked = hits = 0
        seconds = 0.0
        for recipe in trials:
            wanted = parents(recipe)
            asked += len(wanted)
            hits += sum(parent in held for parent in wanted)
            seconds += timed(lambda r=recipe, h=held: sm.materialize(r, bench.pool, model, h))
        print(f"| {models} | {hits / asked:.0%} | {seconds:.1f} | {seconds / len(trials) * 1e3:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "tiny", "peer", "memory", "large", "lineage", "cache"))
    parser.add_argument("--size", choices=SIZES, default="60M")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", help="measure the methods whose name holds this text")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "sae_moo_materialize")
    parser.add_argument("--run", type=Path, help="a finished search, for `cache`")
    options = parser.parse_args()
    match options.what:
        case "speed":
            speed(options.folder, options.size, options.rounds, options.only)
        case "tiny":
            tiny(options.folder, options.rounds)
        case "peer":
            peer(options.folder, options.size, options.rounds)
        case "memory":
            memory(options.folder, options.size)
        case "large":
            large(options.folder)
        case "cache":
            cache(options.run)
        case "lineage":
            lineage(options.folder, options.size)


if __name__ == "__main__":
    sys.exit(main())
