"""What the driver of many workers spends on an evaluation, and from which length of an evaluation on it is in the way.

python studies/scaling/overhead.py parts                     # by part, as the study grows to 10,000 trials; minutes
python studies/scaling/overhead.py parts --trials 1000
python studies/scaling/overhead.py limit                     # 64 and 256 workers on a clock of their own, one driver
python studies/scaling/overhead.py profile --trials 300      # which functions it is

Models are stood in for by scores drawn from a recipe's name, so that all that costs is the driver: NSGA-II over lineages
of three experts with 24 blocks, a journal on this disk, letters as they go to processes. Seconds are processor seconds
of the driver alone, and beside them seconds that it waited for the disk.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from clocks import Skewed, VirtualCrew

from sae_moo.objectives import Constraint, Evaluation, Sparsity, TaskMean
from sae_moo.recipe import Recipe
from sae_moo.searchers.ground import Ground
from sae_moo.searchers.nsga import NsgaSearcher
from sae_moo.searchers.space import LineageSpace
from sae_moo.study.events import Event, Finished
from sae_moo.study.journal import create_or_load, open_storage
from sae_moo.study.loop import Study
from sae_moo.study.pool import PooledExecutor
from sae_moo.study.trials import TrialStorage

BLOCKS = 24
GROUPS = ("embeddings", *(f"block.{i}" for i in range(BLOCKS)), "head")
PRUNABLE = (False, *([True] * BLOCKS), False)
NAMES = ("base", "math", "code", "law")
TASKS = ("a", "b", "c")
OBJECTIVES = (TaskMean("accuracy", TASKS), Sparsity())
LIMITS = (Constraint(Sparsity(), high=0.9),)
FINGERPRINTS = dict.fromkeys(NAMES, "f")
PARTS = ("ask", "tell", "begin", "finish", "letters")
DISK, WORKERS, REST = "disk", "workers", "rest"
GOAL = 0.005


class Meter:
    """Processor seconds by part, each without the parts that it calls; of waits for the disk, wall time.

    Attributes:
        seconds: part -> seconds.
    """

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._inside: list[float] = []  # of every part that runs, seconds of the parts that it called

    def timed(self, part: str, function: Callable[..., Any], clock: Callable[[], float]) -> Callable[..., Any]:
        """Return a function whose time counts for a part."""

        def measured(*args: Any, **kwargs: Any) -> Any:
            self._inside.append(0.0)
            begun = clock()
            try:
                return function(*args, **kwargs)
            finally:
                took = clock() - begun
                self.seconds[part] += took - self._inside.pop()
                if self._inside and clock is time.process_time:
                    self._inside[-1] += took

        return measured

    def time(self, owner: object, part: str, *methods: str) -> None:
        """Count an object's methods for a part."""
        for method in methods:
            setattr(owner, method, self.timed(part, getattr(owner, method), time.process_time))

    def driver(self) -> float:
        """Return seconds of this process so far, waits for the disk counted, those of its workers too."""
        return time.process_time() + self.seconds[DISK]

    @contextmanager
    def of_disk(self) -> Iterator[None]:
        """Count waits for the disk, of whoever waits."""
        fsync = os.fsync
        os.fsync = self.timed(DISK, fsync, time.perf_counter)
        try:
            yield
        finally:
            os.fsync = fsync


def scored(instances: int) -> Callable[[Recipe, object], Evaluation]:
    """Return what answers for models: as many instances right as a recipe's digits say."""

    def evaluate(recipe: Recipe, _rivals: object = None) -> Evaluation:
        rng = np.random.default_rng(int(recipe.key[:12], 16))
        rows = {task: tuple((rng.random(instances) < rng.uniform(0.3, 0.7)).astype(float).tolist()) for task in TASKS}
        sparsity = rng.uniform(0, 0.8, len(GROUPS))
        return Evaluation(recipe, rows, float(sparsity.mean()), tuple(sparsity.tolist()))

    return evaluate


def made(
    folder: Path,
    crew: VirtualCrew,
    meter: Meter | None,
    trials: int,
    listener: Callable[[Event], None] = lambda event: None,
    pace: str = "steady-state",
) -> Study:
    """Return a study by a crew; a meter measures its parts."""
    journal = open_storage(folder / "study.journal", write=True)
    create_or_load(journal, "s", OBJECTIVES)
    storage = TrialStorage(journal, "s", OBJECTIVES, LIMITS, FINGERPRINTS)
    ground = Ground(NAMES[1:], PRUNABLE)
    searcher = NsgaSearcher(LineageSpace(ground), OBJECTIVES, LIMITS, population=24, seed=0, pace=pace)
    executor = PooledExecutor(crew)
    if meter is not None:
        meter.time(searcher, "ask", "ask")
        meter.time(searcher, "tell", "tell")
        meter.time(storage, "begin", "begin")
        meter.time(storage, "finish", "finish")
        meter.time(executor, "letters", "submit", "wait")
        meter.time(crew, WORKERS, "send", "hear")
    rest = {"evaluations": trials, "versions": "v", "listener": listener}
    return Study(storage, searcher, executor, fingerprints=FINGERPRINTS, groups=GROUPS, **rest)


def parts(trials: int, workers: int, instances: int, pace: str) -> None:
    """Print what an evaluation costs the driver, by part, around several numbers of trials."""
    meter, counts = Meter(), Counter[str]()
    marks = [mark for mark in (100, 300, 1000, 3000, 10_000, 30_000) if mark < trials] + [trials]
    windows = {mark - max(50, mark // 10): max(50, mark // 10) for mark in marks}
    before, window = (0.0, Counter[str]()), 0
    print("| trials | " + " | ".join((*PARTS, REST)) + " | driver, ms | waits for the disk, ms |")
    print("| --- |" + " --- |" * (len(PARTS) + 3))

    def heard(event: Event) -> None:
        nonlocal before, window
        if not isinstance(event, Finished):
            return
        counts["told"] += 1
        told = counts["told"]
        if told in windows or told in marks:
            now = time.process_time(), Counter(meter.seconds)
            window = windows.get(told, window)
            if told in marks:
                spent = {part: now[1][part] - before[1][part] for part in (*PARTS, WORKERS, DISK)}
                spent[REST] = now[0] - before[0] - sum(spent[part] for part in (*PARTS, WORKERS))
                each = {part: 1e3 * seconds / window for part, seconds in spent.items()}
                whole = sum(each[part] for part in (*PARTS, REST))
                cells = [f"{each[part]:.2f}" for part in (*PARTS, REST)]
                print(f"| {told} | " + " | ".join(cells) + f" | {whole:.2f} | {each[DISK]:.2f} |", flush=True)
            before = now

    with tempfile.TemporaryDirectory() as folder, meter.of_disk():
        crew = VirtualCrew(workers, scored(instances), Skewed())
        made(Path(folder), crew, meter, trials, heard, pace).run()
    jobs, answers = np.array(crew.letters).T
    print(
        f"a job: {np.median(jobs):.0f} bytes (median), {np.quantile(jobs, 0.99):.0f} (99 %), {jobs.max()} at most; "
        f"its answer: {np.median(answers):.0f}, {answers.max()} at most"
    )


def limit(sizes: list[int], lengths: list[float], rounds: int, instances: int) -> None:
    """Print how much of their time simulated workers evaluate, by how long an evaluation lasts."""
    print(
        "| workers | evaluations last, s | evaluations | driver, ms each | workers evaluate | at most, by the driver |"
    )
    print("| --- |" + " --- |" * 5)
    for size in sizes:
        for length in lengths:
            meter, trials = Meter(), size * rounds
            with tempfile.TemporaryDirectory() as folder, meter.of_disk():
                crew = VirtualCrew(size, scored(instances), Skewed(length), meter.driver)
                begun: list[tuple[float, float]] = []

                def heard(event: Event, begun: list[tuple[float, float]] = begun) -> None:
                    if isinstance(event, Finished):
                        begun.append((event.record.began, event.record.evaluation.seconds))

                study = made(Path(folder), crew, meter, trials, heard)
                start = meter.driver()
                study.run()
                each = (meter.driver() - start - meter.seconds[WORKERS]) / trials
            share = busy(begun, size, 24)
            most = min(1.0, length / (size * each))
            print(f"| {size} | {length:g} | {trials} | {each * 1e3:.1f} | {share:.1%} | {most:.1%} |", flush=True)


def busy(spans: list[tuple[float, float]], size: int, first: int) -> float:
    """Return which share of their time workers evaluated, once the first population was evaluated, until none was asked.

    Args:
        spans: when each evaluation was taken up, and its seconds, in the order in which they were told.
        size: how many workers.
        first: size of the first population.
    """
    start = max(began + seconds for began, seconds in spans[:first])
    end = max(began for began, _ in spans)
    inside = sum(max(0.0, min(began + seconds, end) - max(began, start)) for began, seconds in spans)
    return inside / (size * (end - start))


def profile(trials: int, workers: int, instances: int, pace: str) -> None:
    """Print which functions the driver spends its time in, over a whole study."""
    with tempfile.TemporaryDirectory() as folder:
        study = made(Path(folder), VirtualCrew(workers, scored(instances), Skewed()), None, trials, pace=pace)
        profiler = cProfile.Profile(time.process_time)  # others may want this processor, too
        profiler.runcall(study.run)
    statistics = pstats.Stats(profiler).strip_dirs()
    statistics.sort_stats("cumulative").print_stats(70)
    statistics.sort_stats("tottime").print_stats(25)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["parts", "limit", "profile"])
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[], help="8, or for `limit` 64 and 256")
    parser.add_argument("--instances", type=int, default=100, help="of each of three tasks")
    parser.add_argument("--pace", choices=["steady-state", "generational"], default="steady-state")
    parser.add_argument("--lengths", type=float, nargs="+", default=[0.25, 0.5, 1, 2, 4], help="of `limit`, seconds")
    parser.add_argument("--rounds", type=int, default=8, help="of `limit`: evaluations for each worker")
    given = parser.parse_args()
    if given.what == "limit":
        limit(given.workers or [64, 256], given.lengths, given.rounds, given.instances)
        return
    {"parts": parts, "profile": profile}[given.what](
        given.trials, (given.workers or [8])[0], given.instances, given.pace
    )


if __name__ == "__main__":
    main()
