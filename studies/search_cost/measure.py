"""What a search costs beside forward passes and merging: time and memory.

python studies/search_cost/measure.py quickstart      # the whole quickstart in a process of its own
python studies/search_cost/measure.py memory          # peak memory on a 60M-parameter model, three experts
python studies/search_cost/measure.py start           # start of the command line
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
MIB = 2**20
DEPTHS = (1, 4, 16)


def quickstart() -> None:
    """Run the quickstart and print where its wall time went."""
    from sae_moo.run import Run

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        command = [sys.executable, "-m", "sae_moo.cli.main", "search", str(ROOT / "configs/quickstart.yaml"), "--json"]
        document = json.loads(subprocess.run(command, cwd=folder, check=True, capture_output=True).stdout)
        whole = time.perf_counter() - start
        trials = Run.open(Path(folder) / document["run"]).trials()
    merging = sum(trial.evaluation.seconds_merge for trial in trials)
    scoring = sum(trial.evaluation.seconds_score for trial in trials)
    search = document["seconds"]
    print("| | |\n|---|---|")
    print(f"| whole process | {whole:.1f} s |")
    print(f"| search, models and tasks opened included | {search:.1f} s |")
    print(f"| evaluations | {len(trials)}, {len(trials) / search:.2f} per second |")
    print(f"| forward passes | {scoring:.1f} s, {scoring / len(trials) * 1e3:.0f} ms each |")
    print(f"| merging | {merging:.1f} s, {merging / len(trials) * 1e3:.0f} ms each |")
    print(
        f"| neither | {search - merging - scoring:.1f} s, {(search - merging - scoring) / search:.1%} of the search |"
    )


def start() -> None:
    """Print the median time of `sae-moo --help` over nine starts."""
    command = [str(Path(sys.executable).with_name("sae-moo")), "--help"]
    times = []
    for _ in range(9):
        begin = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - begin)
    print(f"sae-moo --help: median {statistics.median(times):.2f} s of {len(times)}")


def memory() -> None:
    """Print the peak anonymous memory of a deep lineage at 60M parameters, with and without a cache."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, __file__, "_write", folder], check=True)
        print("| | anonymous memory over the live model, in model sizes |\n|---|---|")
        for models, label in ((0, "no cache"), (4, "cache for 4 models")):
            out = subprocess.run(
                [sys.executable, __file__, "_lineage", folder, str(models)], check=True, capture_output=True, text=True
            )
            print(f"| {label}, lineage {' / '.join(map(str, DEPTHS))} deep | {out.stdout.strip()} |")


def _write(folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=8000, hidden_size=768, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=12
    )
    for seed, name in enumerate(("base", "a", "b")):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / name)


def _lineage(folder: Path, models: int) -> None:
    import sae_moo as sm

    pool = sm.ExpertPool.open(str(folder / "base"), {"a": str(folder / "a"), "b": str(folder / "b")})
    model = pool.live_model("bfloat16")
    size = sum(parameter.nbytes for parameter in pool.parameters(model).values())
    cache = sm.WeightCache(models * size + 1)
    sm.materialize(sm.Expert("base"), pool, model)  # until it is written, a loaded model is a mapped file
    before = _anonymous()
    peaks: list[float] = []
    recipe: sm.Recipe = sm.Cast(sm.Expert("a"), "bfloat16")
    for depth in range(1, DEPTHS[-1] + 1):
        merged = sm.Merge("zero_aware", (recipe, sm.Prune(sm.Expert("b"), 0.2)), (0.5, 0.5))
        recipe = sm.Cast(sm.Prune(merged, 0.3), "bfloat16")
        if depth in DEPTHS or models:
            with _Peak() as peak:
                sm.materialize(recipe, pool, model, cache)
            if depth in DEPTHS:
                peaks.append((peak.bytes - before) / size)
    print(" / ".join(f"{peak:.2f}" for peak in peaks) + f" (model: {size / MIB:.0f} MiB)")


class _Peak:
    """The largest anonymous resident memory of this process while in the context, sampled every millisecond (Linux)."""

    def __enter__(self) -> _Peak:
        self.bytes, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.001):
            self.bytes = max(self.bytes, _anonymous())


def _anonymous() -> int:
    """Return this process's anonymous resident memory in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


if __name__ == "__main__":
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    commands = {"quickstart": quickstart, "memory": memory, "start": start}
    if sys.argv[1:2] == ["_write"]:
        _write(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["_lineage"]:
        _lineage(Path(sys.argv[2]), int(sys.argv[3]))
    elif len(sys.argv) == 2 and sys.argv[1] in commands:
        commands[sys.argv[1]]()
    else:
        sys.exit(__doc__)
