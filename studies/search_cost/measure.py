"""What a search costs beside forward passes and merging: time and memory.

python studies/search_cost/measure.py quickstart      # the whole quickstart in a process of its own
python studies/search_cost/measure.py memory          # peak memory on a 60M-parameter model, three experts
python studies/search_cost/measure.py start           # start of the command line
python studies/search_cost/measure.py algorithms      # every algorithm: cost of a trial, replay of 2,000 trials
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
    from sae_moo.explore.run import Run

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


def algorithms() -> None:
    """Print what a trial costs beside merging and forward passes, and how long 2,000 trials take to replay."""
    from sae_moo.searchers.algorithms import ALGORITHMS

    seconds = _candidate()
    print(f"a candidate of the zoo, {SIZE} instances a task: {seconds * 1e3:.0f} ms of merging and forward passes")
    print("| algorithm | a trial beside those, ms | share of the candidate | replay of 2,000 trials, s |")
    print("|---" * 4 + "|")
    for name, algorithm in ALGORITHMS.items():
        if algorithm.spaces and name not in SLOW:
            each, replayed = _cost(name)
            print(f"| {name} | {each * 1e3:.1f} | {each / seconds:.2%} | {replayed:.1f} |", flush=True)


SIZE = 1000
SLOW = ("optuna:GPSampler", "optuna:CmaEsSampler")  # seconds a trial by design; needs a package of its own


def _candidate() -> float:
    """Return the median time of evaluating a merge of the zoo on so many instances a task."""
    import sae_moo as sm

    raw = sm.Config.load(ROOT / "configs/quickstart.yaml").model_dump(mode="json")
    raw["tasks"] = [{**task, "search": SIZE, "test": 0} for task in raw["tasks"]]
    bench = sm.Bench.open(sm.Config.from_dict(raw))
    evaluator, ground = bench.evaluator(), bench.ground()
    times = []
    for scale in (0.3, 0.4, 0.5, 0.6):
        recipe = ground.candidate(ground.task_arithmetic(_full(ground, scale)))
        found = evaluator.evaluate(recipe)
        times.append(found.seconds_merge + found.seconds_score)
    return statistics.median(times[1:])  # the first lays out the batches


def _full(ground, scale: float):
    import numpy as np

    return np.full((ground.rows, len(ground.experts)), scale)


def _cost(name: str) -> tuple[float, float]:
    """Return seconds of a trial beside its evaluation, at an archive of 100, and seconds that 2,000 take to replay."""
    import numpy as np

    import sae_moo as sm
    from sae_moo.objectives import Evaluation
    from sae_moo.study.events import Resumed
    from sae_moo.study.journal import create_or_load, open_storage
    from sae_moo.study.local import LocalExecutor
    from sae_moo.study.loop import Study
    from sae_moo.study.trials import TrialStorage

    raw = sm.Config.load(ROOT / "configs/quickstart.yaml").model_dump(mode="json", exclude_unset=True)
    raw["search"] = {"algorithm": name, "population": 100}
    raw["space"] = {}
    config = sm.Config.from_dict(raw)
    bench = sm.Bench.open(config)
    tasks, groups = [task.name for task in config.tasks], len(bench.pool.groups)
    spent = 0.0

    def evaluate(recipe, rivals=None) -> Evaluation:  # noqa: ARG001  # nobody races
        """Answer for a model: as many instances right as its digits say, in an order of their own."""
        nonlocal spent
        start = time.perf_counter()
        rng = np.random.default_rng(int(recipe.key[:12], 16))
        rows = {task: tuple((rng.random(SIZE) < rng.uniform(0.3, 0.7)).astype(float).tolist()) for task in tasks}
        sparsity = rng.uniform(0, 0.8, groups)
        found = Evaluation(recipe, rows, float(sparsity.mean()), tuple(sparsity.tolist()))
        spent += time.perf_counter() - start
        return found

    trials = 200 if name == "optuna:TPESampler" else 1000  # of 2,000: replay grows with their number
    with tempfile.TemporaryDirectory() as folder:

        def study(budget: int, listener=lambda event: None) -> Study:
            storage = open_storage(Path(folder) / "study.journal", write=True)
            create_or_load(storage, "s", config.objective_list())
            limits = config.constraint_list()
            opened = TrialStorage(storage, "s", config.objective_list(), limits, bench.pool.fingerprints)
            known = {"fingerprints": bench.pool.fingerprints, "groups": bench.pool.groups}
            rest = {"evaluations": budget, "versions": "v", "listener": listener}
            return Study(opened, bench.searcher(), LocalExecutor(evaluate), **known, **rest)

        start = time.perf_counter()
        study(trials).run()
        each = (time.perf_counter() - start - spent) / trials
        found: list[Resumed] = []
        start = time.perf_counter()
        study(trials, found.append).run()
        replayed = time.perf_counter() - start
    return each, replayed * 2000 / trials


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
    commands = {"quickstart": quickstart, "memory": memory, "start": start, "algorithms": algorithms}
    if sys.argv[1:2] == ["_write"]:
        _write(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["_lineage"]:
        _lineage(Path(sys.argv[2]), int(sys.argv[3]))
    elif len(sys.argv) == 2 and sys.argv[1] in commands:
        commands[sys.argv[1]]()
    else:
        sys.exit(__doc__)
