"""How much of their time workers evaluate, by how candidates are shared out among them.

python studies/scaling/utilisation.py                            # 8 processes that sleep, a second in the mean
python studies/scaling/utilisation.py --crew ray                 # the same by actors of a Ray cluster on this machine
python studies/scaling/utilisation.py --crew virtual --workers 8 64 256
python studies/scaling/utilisation.py --figure studies/scaling/utilisation.png

Evaluations last log-normally (sigma 0.7), the same time for a recipe wherever it is evaluated; scores come from the
landscape that stands in for models. Counted are the seconds that a worker has a candidate, between two moments: the end
of the first population, which every search waits for, and the moment at which the last candidate is taken up.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from clocks import Batched, Skewed, Sleepers, VirtualCrew

from sae_moo.study.crew import Crew
from sae_moo.study.executor import Executor
from sae_moo.study.pool import PooledExecutor
from sae_moo.study.processes import ProcessCrew
from sae_moo.testing.searchers import Landscape

POPULATION = 24
PACES = {
    "steady state": ("steady-state", False),
    "steady state, in batches": ("steady-state", True),
    "generational": ("generational", False),
}
GOAL = 0.97


@dataclass(frozen=True, slots=True)
class Span:
    """One evaluation: who, from when, to when."""

    worker: str
    began: float
    ended: float


def busy(spans: Sequence[Span], workers: int, start: float, end: float) -> float:
    """Return which share of their time so many workers evaluated between two moments."""
    inside = sum(max(0.0, min(span.ended, end) - max(span.began, start)) for span in spans)
    return inside / (workers * (end - start))


def steady(spans: Sequence[Span], workers: int) -> float:
    """Return that share from the end of the first population until the last candidate was taken up."""
    return busy(spans, workers, max(span.ended for span in spans[:POPULATION]), max(span.began for span in spans))


def searched(executor: Executor, pace: str, evaluations: int) -> list[Span]:
    """Run a search of stand-ins for models; return its evaluations, those of the first population first."""
    sys.path.append(str(Path(__file__).parents[1] / "reliability"))
    import kills  # here, since every worker's process imports this file

    from sae_moo.searchers.nsga import NsgaSearcher
    from sae_moo.searchers.space import LineageSpace

    searcher = NsgaSearcher(LineageSpace(kills.GROUND), *kills.SHARED, population=POPULATION, seed=0, pace=pace)
    with tempfile.TemporaryDirectory() as folder:
        where = str(Path(folder) / "s.journal")
        kills.study(where, searcher, executor, evaluations).run()
        records = kills.opened(where).records()
    evaluated = [record for record in records if record.repeats is None]
    return [Span(record.worker, record.began, record.began + record.evaluation.seconds) for record in evaluated]


def crew_of(kind: str, workers: int, seconds: Skewed) -> Crew:
    """Return a crew of sleeping workers, or of workers on a clock of their own."""
    match kind:
        case "virtual":
            return VirtualCrew(workers, Landscape(), seconds)
        case "ray":
            # what actors begin with finds what they are made of
            os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
            from sae_moo.study.cluster import Cluster, RayCrew  # only where Ray is installed

            return RayCrew(Sleepers(seconds), Cluster(workers))
        case _:
            return ProcessCrew(Sleepers(seconds), workers)


def row(pace: str, workers: int, spans: Sequence[Span], evaluations: int) -> str:
    """Return a search as a row of the table."""
    first, last = min(span.began for span in spans), max(span.ended for span in spans)
    start = max(span.ended for span in spans[:POPULATION])
    end = max(span.began for span in spans)
    each = np.mean([span.ended - span.began for span in spans])
    whole = busy(spans, workers, first, last)
    best = len(spans) * each / workers
    return (
        f"| {workers} | {pace} | {evaluations} | {each:.2f} | **{steady(spans, workers):.1%}** | {start - first:.1f} to {end - first:.1f} | "
        f"{whole:.1%} | {last - first:.1f} | {(last - first) / best:.2f} |"
    )


def draw(path: Path, searches: dict[str, list[Span]], workers: int, seconds: float) -> None:
    """Draw who evaluated when, for so many seconds after the first population."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(searches), 1, figsize=(8, 1.45 * len(searches)), sharex=True, layout="constrained")
    for axis, (pace, spans) in zip(axes, searches.items(), strict=True):
        names = sorted({span.worker for span in spans})
        start = max(span.ended for span in spans[:POPULATION])
        for place, name in enumerate(names):
            bars = [(span.began - start, span.ended - span.began) for span in spans if span.worker == name]
            colors = ["#2f6f9f" if i % 2 else "#7fb2d6" for i in range(len(bars))]
            axis.broken_barh(bars, (place + 0.08, 0.84), facecolors=colors, linewidth=0)
        axis.set_title(f"{pace}: workers evaluate {steady(spans, workers):.0%} of the time", fontsize=9, loc="left")
        axis.set(xlim=(0, seconds), ylim=(0, workers), yticks=[], ylabel=f"{workers} workers")
        axis.invert_yaxis()
        axis.spines[["top", "right", "left"]].set_visible(False)
    axes[-1].set_xlabel("seconds after the first population; a bar is an evaluation")
    figure.savefig(path, dpi=90)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--crew", choices=["processes", "ray", "virtual"], default="processes")
    parser.add_argument("--workers", type=int, nargs="+", default=[8])
    parser.add_argument("--evaluations", type=int, default=240, help="or 16 for each worker, where that is more")
    parser.add_argument("--mean", type=float, default=1.0, help="seconds of an evaluation")
    parser.add_argument("--figure", type=Path, help="a timeline, of the first number of workers")
    given = parser.parse_args()
    seconds = Skewed(given.mean)
    print(
        "| workers | search | evaluations | each, s | evaluating | from when to when, s | whole search | it took, s | over the least |"
    )
    print("| --- |" + " --- |" * 8)
    reached = []
    for workers in given.workers:
        evaluations, searches = max(given.evaluations, 16 * workers), dict[str, list[Span]]()
        with closing(PooledExecutor(crew_of(given.crew, workers, seconds))) as executor:  # they begin once
            for name, (pace, batched) in PACES.items():
                spans = searched(Batched(executor) if batched else executor, pace, evaluations)
                searches[name] = spans
                print(row(name, workers, spans, evaluations), flush=True)
        reached.append(steady(searches["steady state"], workers) >= GOAL)
        if given.figure and workers == given.workers[0]:
            draw(given.figure, searches, workers, 30 * given.mean)
    return 0 if all(reached) else 3


if __name__ == "__main__":
    sys.exit(main())
