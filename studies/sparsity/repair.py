"""What repairing a pruned merge gives and costs.

python studies/sparsity/repair.py zoo                              # accuracy of a merge of the embedded models
python studies/sparsity/repair.py language-model FOLDER            # loss of any model on the standard library's docstrings
python studies/sparsity/repair.py block --hidden 1536 --mlp 8960   # seconds and memory of blocks of that size

Seconds are of the CPU, so that other work on the machine disturbs less: run with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch

from sae_moo import Cast, Expert, ExpertPool, Prune, Recipe, Repair, calibration_texts, materialize
from sae_moo.config.document import Config
from sae_moo.experts.checkpoint import Checkpoint
from sae_moo.jobs.bench import Bench
from sae_moo.materialization import repair as repairing

os.environ.setdefault("HF_HUB_OFFLINE", "1")
CONFIG = Path(__file__).parent.parent / "table1" / "config.yaml"
JUDGED = ("decimal", "random", "argparse", "pickle", "fractions", "statistics", "datetime", "heapq", "typing")
READ = (
    "asyncio", "collections", "concurrent.futures", "contextlib", "csv", "doctest", "email", "functools", "http.client",
    "inspect", "itertools", "json", "logging", "multiprocessing", "os", "pathlib", "re", "shutil", "smtplib", "sqlite3",
    "string", "subprocess", "tarfile", "textwrap", "threading", "tokenize", "unittest", "urllib.request", "zipfile",
    "ipaddress", "optparse", "ast", "calendar", "cmd", "configparser", "copy", "ftplib", "difflib", "mailbox", "ssl",
)  # fmt: skip
BLOCKS = 2
PARTS = {
    "_read": "passes to each set of layers, moments",
    "_advance": "passes through whole blocks",
    "_writer": "which layer writes to the stream",
    "_stages": "which layers read the same",
    "_estimate": "what the stream lacks: factors, solutions",
    "_repaired": "factors, sweeps",
}
SCOPES = {"tensor": (0.5, 0.6, 0.7), "row": (0.5, 0.6, 0.7), "2:4": (0.5,), "neurons": (0.3, 0.5), "heads": (0.3,)}


def table(rows: dict[str, tuple[float, ...]], judge: Callable[[Recipe], float], dense: Recipe, texts: str) -> None:
    """Print a row for each scope and level: what is left when pruned, and repaired."""
    print(f"unpruned: {judge(dense):.3f}\n")
    print("| scope | asked | sparsity | pruned | repaired | seconds |\n|---|---|---|---|---|---|")
    for scope, levels in rows.items():
        for level in levels:
            pruning = Prune(dense, level, scope=scope)
            before = judge(pruning)
            start = time.process_time()
            again = judge(Cast(Repair(pruning, texts), "float32"))
            seconds = time.process_time() - start
            print(f"| {scope} | {level:g} | {SEEN[-1]:.3f} | {before:.3f} | {again:.3f} | {seconds:.1f} |", flush=True)


SEEN: list[float] = []  # sparsities, in the order in which they were materialized


def zoo() -> None:
    bench = Bench.open(Config.load(CONFIG))
    pool, live, scorer, ground = bench.pool, bench.live_model(), bench.scorer(), bench.ground()
    prompts = [dict.fromkeys(request.context for request in task.requests("search")) for task in bench.tasks]
    texts = [prompt for row in zip_longest(*prompts) for prompt in row if prompt is not None]

    def judge(recipe: Recipe, split: str = "test") -> float:
        SEEN.append(materialize(recipe, pool, live).sparsity)
        return float(np.mean([each.mean() for each in scorer.score(live, split).values()]))

    rng = np.random.default_rng(0)
    scales = [rng.uniform(0.0, 1.2, len(ground.experts)) for _ in range(60)]
    merges = [ground.task_arithmetic(np.tile(each, (ground.rows, 1))) for each in scales]
    best = max(merges, key=lambda merge: judge(merge, "search"))
    print("mean accuracy on the test split; the most accurate of 60 random merges by the search split, whose prompts")
    print("the repair reads\n")
    table(SCOPES, judge, best, calibration_texts(pool, texts))


def docstrings() -> str:
    """Return documentation of the standard library's modules and of what is in them, none of it that is judged on."""
    parts = []
    for name in READ:
        module = importlib.import_module(name)
        parts.append(module.__doc__ or "")
        found = (value.__doc__ for key, value in sorted(vars(module).items()) if not key.startswith("_"))
        parts += [inspect.cleandoc(text) for text in found if isinstance(text, str) and len(text) > 200]
    return "\n".join(parts)


def language_model(folder: Path, sequences: int, tokens: int, scope: str, levels: tuple[float, ...]) -> None:
    from transformers import AutoTokenizer

    pool = ExpertPool({"base": Checkpoint(str(folder))})
    live, tokenizer = pool.live_model("float32", "cpu"), AutoTokenizer.from_pretrained(folder)
    text = "\n".join(importlib.import_module(name).__doc__ or "" for name in JUDGED)
    ids = tokenizer(text, return_tensors="pt").input_ids[0]
    rows = ids[: len(ids) // 256 * 256].view(-1, 256)[:sequences]
    read = tokenizer(docstrings()).input_ids
    texts = calibration_texts(pool, [read[i : i + 512] for i in range(0, len(read) - 512, 512)], tokens)

    @torch.inference_mode()
    def judge(recipe: Recipe) -> float:
        SEEN.append(materialize(recipe, pool, live).sparsity)
        return float(np.mean([float(live(row[None], labels=row[None]).loss) for row in rows]))

    print(f"loss in nats per token, {len(rows)} sequences of 256 tokens; the repair reads {tokens} others\n")
    table({scope: levels}, judge, Expert("base"), texts)


def block(hidden: int, mlp: int, tokens: int, length: int, blocks: int) -> None:
    """Repair a model of few blocks of random weights; tell seconds by part, and what as many blocks would take."""
    import transformers as hf

    heads = max(1, hidden // 128)
    config = hf.Qwen2Config(
        vocab_size=1024, hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=BLOCKS, num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 6), max_position_embeddings=length,
    )  # fmt: skip
    seconds: Counter[str] = Counter()

    def timed(module: object, name: str) -> None:
        inner = getattr(module, name)

        def outer(*arguments: object, **named: object) -> object:
            start = time.process_time()
            made = inner(*arguments, **named)
            seconds[name] += time.process_time() - start
            return made

        setattr(module, name, outer)

    for name in PARTS:
        timed(repairing, name)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        hf.Qwen2ForCausalLM(config).save_pretrained(folder)
        pool = ExpertPool({"base": Checkpoint(folder)})
        live = pool.live_model("float32", "cpu")
        rows = torch.randint(0, 1024, (-(-tokens // length), length)).tolist()
        texts = calibration_texts(pool, rows, tokens)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        start = time.process_time()
        materialize(Cast(Repair(Prune(Expert("base"), 0.5, scope="row"), texts), "float32"), pool, live)
        whole = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{BLOCKS} blocks of {hidden} x {mlp}, {tokens} tokens, {torch.get_num_threads()} threads: CPU seconds")
    for name, what in PARTS.items():
        print(f"  {what:40} {seconds[name]:8.1f}")
    print(f"  {'the rest: first passes, merging, writing':40} {whole - sum(seconds.values()):8.1f}")
    print(f"  {'together':40} {whole:8.1f}")
    print(f"peak {peak:.2f} GiB, {peak - before:.2f} beside the model of {BLOCKS} blocks and Python")
    total = whole / BLOCKS
    print(f"{blocks} blocks: {blocks * total / 60:.0f} CPU minutes, {blocks * total / 120:.0f} on two cores")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    commands.add_parser("zoo")
    language = commands.add_parser("language-model")
    language.add_argument("folder", type=Path)
    language.add_argument("--sequences", type=int, default=8)
    language.add_argument("--tokens", type=int, default=16_384)
    language.add_argument("--scope", default="row")
    language.add_argument("--levels", type=float, nargs="+", default=[0.3, 0.5])
    one = commands.add_parser("block")
    for name, default in (("hidden", 1536), ("mlp", 8960), ("tokens", 16_384), ("length", 1024), ("blocks", 28)):
        one.add_argument(f"--{name}", type=int, default=default)
    given = vars(parser.parse_args())
    what = given.pop("what")
    if what == "zoo":
        zoo()
    elif what == "block":
        block(**given)
    else:
        language_model(**given | {"levels": tuple(given["levels"])})


if __name__ == "__main__":
    main()
