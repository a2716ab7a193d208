"""Kills workers of a search, and its driver, and counts what is lost.

python studies/scaling/killed.py workers                 # 20 of 4 processes and their successors, in one search
python studies/scaling/killed.py driver                  # killed 10 times in one search, with 2 processes
python studies/scaling/killed.py driver --virtual        # with 8 workers on a clock of their own: seconds
python studies/scaling/killed.py driver --pace generational
python studies/scaling/killed.py node                    # 4 times a machine of a Ray cluster is cut off, and comes back

Models are stood in for by the landscape, as in studies/reliability/kills.py, whose ways to kill, and to compare, these
are. Exits with 1 if anything is lost, there twice, or not what it must be.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

from clocks import Skewed, Sleepers, VirtualCrew

from sae_moo.study.crew import Crew
from sae_moo.study.events import Event, Finished
from sae_moo.study.pool import PooledExecutor
from sae_moo.study.processes import ProcessCrew
from sae_moo.study.record import Ended
from sae_moo.testing.searchers import Landscape

sys.path.append(str(Path(__file__).parents[1] / "reliability"))

import kills

from sae_moo.searchers.nsga import NsgaSearcher
from sae_moo.searchers.space import LineageSpace
from sae_moo.study.local import LocalExecutor

PACES = ("generational", "steady-state")
PATIENCE = 10.0
"""Seconds that a worker whose driver was killed has to end."""


def searcher(pace: str) -> NsgaSearcher:
    """Return a fresh searcher."""
    return NsgaSearcher(LineageSpace(kills.GROUND), *kills.SHARED, population=8, seed=0, pace=pace)


def faults(where: str, pace: str, evaluations: int) -> list[str]:
    """Return what is wrong with a finished study: it must be whole, and what its search would have asked for.

    A generational one must equal, trial by trial, one that a single process made without being killed; but for when
    candidates were asked for, and in which order their results were told.
    """
    records, landscape = kills.opened(where).records(), Landscape()
    wrong = []
    if [record.number for record in records] != list(range(evaluations)):
        wrong.append(f"trials {len(records)}, wanted {evaluations}")
    if unended := [record.number for record in records if not isinstance(record, Ended)]:
        return [*wrong, f"never ended: {unended}"]
    if sorted(record.told for record in records) != list(range(evaluations)):
        wrong.append("not each was told once")
    if late := [record.number for record in records if record.asked_after > record.told]:
        wrong.append(f"told before they were asked for: {late}")
    if failed := [record.number for record in records if not record.evaluation.ok]:
        wrong.append(f"failed: {failed}")
    evaluated = Counter(record.identity for record in records if record.repeats is None)
    if twice := [identity for identity, count in evaluated.items() if count > 1]:
        wrong.append(f"evaluated twice: {twice}")
    if other := [r.number for r in records if r.evaluation.ok and r.evaluation.scores != landscape(r.asked).scores]:
        wrong.append(f"other scores than the candidate's: {other}")
    again = kills.study(where, searcher(pace), LocalExecutor(landscape), evaluations)
    before = kills.facts(records)
    again.run()  # replays every trial, and raises if one is not what the search asks for
    if kills.facts(kills.opened(where).records()) != before:
        wrong.append("running it again changed it")
    if pace == "generational" and not wrong:
        with tempfile.TemporaryDirectory() as folder:
            unbroken = str(Path(folder) / "s.journal")
            kills.study(unbroken, searcher(pace), LocalExecutor(landscape), evaluations).run()
            if lasting(where) != lasting(unbroken):
                wrong.append("not the trials of an unbroken search")
    return wrong


def lasting(where: str) -> list[tuple[object, ...]]:
    """Return what of a study does not depend on who evaluated it, nor on how long that took."""
    return [
        (r.number, r.state, r.asked, r.recipe, r.digest, r.evaluation.scores, dict(r.values), r.parents, r.generation)
        for r in kills.opened(where).records()
    ]


def workers(count: int, pace: str, size: int, seed: int) -> int:
    """Kill workers in one search, a moment after every so many evaluations; say what became of it."""
    drawn, each, killed, told = random.Random(seed), 8, list[int](), Counter[str]()
    evaluations = each * (count + 2)

    def kill() -> None:
        there = crew()
        if there and len(killed) < count:
            victim = drawn.choice(there)
            with suppress(ProcessLookupError):  # it has ended by itself
                os.kill(victim, signal.SIGKILL)
                killed.append(victim)

    def heard(event: Event) -> None:
        if isinstance(event, Finished):
            told["all"] += 1
            if told["all"] % each == 0:
                threading.Timer(drawn.uniform(0, 0.3), kill).start()

    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        where = str(Path(folder) / "s.journal")
        with closing(PooledExecutor(ProcessCrew(Sleepers(Skewed(0.3)), size))) as executor:
            kills.study(where, searcher(pace), executor, evaluations, heard).run()
        records = kills.opened(where).records()
        wrong = faults(where, pace, evaluations)
    losses = sum(record.losses for record in records if isinstance(record, Ended))
    print(
        f"{pace}: {len(killed)} workers killed, {len(set(killed))} of them different, {losses} while they had a "
        f"candidate; {len(records)} of {evaluations} evaluations, {len({r.worker for r in records})} workers answered, "
        f"{time.perf_counter() - begun:.0f} s: {'; '.join(wrong) or 'whole'}",
        flush=True,
    )
    return bool(wrong) or len(killed) < count


def node(count: int, pace: str, seed: int) -> int:
    """Cut a machine of a made-up Ray cluster off, with its two workers, and let it come back; so many times a search.

    Three machines on this one; one after another, whichever is drawn, is gone for sixteen evaluations, then is back.
    """
    # what machines begin finds what this file's workers are made of
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    import ray
    from ray.cluster_utils import Cluster as Machines

    from sae_moo.study.cluster import Cluster, RayCrew

    drawn, each, told, begun = random.Random(seed), 16, 0, time.perf_counter()
    evaluations = each * (2 * count + 2)
    machines = Machines(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    there: list[object] = []
    cut = back = 0

    def change() -> None:
        nonlocal cut, back
        if len(there) < 3:
            there.append(machines.add_node(num_cpus=2))
            back += 1
        elif cut < count:
            machines.remove_node(there.pop(drawn.randrange(3)), allow_graceful=False)
            cut += 1

    def heard(event: Event) -> None:
        nonlocal told
        if isinstance(event, Finished):
            told += 1
            if told % each == 0:
                change()  # here: Ray begins a machine in the main thread only

    try:
        ray.init(machines.address, log_to_driver=False, logging_level=logging.ERROR)  # by the first one, which stays
        there += [machines.add_node(num_cpus=2) for _ in range(3)]
        machines.wait_for_nodes()
        ray._private.worker._worker_logs_enabled = False  # the ends of machines are not to be printed
        with tempfile.TemporaryDirectory() as folder:
            where = str(Path(folder) / "s.journal")
            members = RayCrew(Sleepers(Skewed(1.0)), Cluster(6, address=machines.address))
            with closing(PooledExecutor(members)) as executor:
                kills.study(where, searcher(pace), executor, evaluations, heard).run()
            records = kills.opened(where).records()
            wrong = faults(where, pace, evaluations)
    finally:
        ray.shutdown()
        machines.shutdown()
    losses = sum(record.losses for record in records if isinstance(record, Ended))
    by = Counter(record.worker for record in records if isinstance(record, Ended) and record.repeats is None)
    late = sum(number for worker, number in by.items() if int(worker.split()[1]) > 6)
    print(
        f"{pace}: a machine of three cut off {cut} times and back {back} times, {losses} workers lost while they had a "
        f"candidate, {late} evaluations by workers that began later; {len(records)} of {evaluations} evaluations, "
        f"{time.perf_counter() - begun:.0f} s: {'; '.join(wrong) or 'whole'}",
        flush=True,
    )
    return bool(wrong) or cut < count or back < count


def run(where: str, pace: str, evaluations: int, presence: str, pause: float) -> None:
    """Run a search to its end, or go on with one; by processes, or without a folder for their presence, virtually."""
    seconds = Skewed(pause + 0.02)
    crew: Crew = ProcessCrew(Sleepers(seconds, presence), 2) if presence else VirtualCrew(8, paused(pause), seconds)
    with closing(PooledExecutor(crew)) as executor:
        kills.study(where, searcher(pace), executor, evaluations).run()


def paused(seconds: float) -> object:
    """Return the landscape, seen after a while."""
    landscape = Landscape()

    def evaluate(recipe: object, rivals: object) -> object:
        time.sleep(seconds)
        return landscape(recipe, rivals)

    return evaluate


def driver(count: int, pace: str, virtual: bool, seed: int) -> int:
    """Kill the driver of one search, at writes to its journal and, where it is virtual, at random moments, too."""
    drawn, counts, begun = random.Random(seed), kills.Counts(), time.perf_counter()
    evaluations = 12 * count  # two writes each
    with tempfile.TemporaryDirectory() as folder:
        where, presence = str(Path(folder) / "s.journal"), Path(folder) / "workers"
        presence.mkdir()
        search = partial(run, where, pace, evaluations, "" if virtual else str(presence))
        moments = [
            ("time", drawn.uniform(0, 0.6)) if virtual and drawn.random() < 0.5 else ("write", drawn.randrange(2, 20))
            for _ in range(count)
        ]
        kills.interrupted(where, search, moments, counts)
        search(0.0)
        time.sleep(0.0 if virtual else PATIENCE)
        left = [path.name for path in presence.iterdir() if alive(int(path.name))]
        wrong = counts.faults + faults(where, pace, evaluations)
        workers = len([*presence.iterdir()])
    if left:
        wrong.append(f"workers left: {left}")
    print(
        f"{pace}, {'8 virtual workers' if virtual else f'2 processes ({workers} in all)'}: driver killed {counts.kills} "
        f"times, {evaluations} evaluations, lost between kills {counts.lost}, there twice {counts.doubled}, workers left "
        f"{len(left)}, {time.perf_counter() - begun:.0f} s: {'; '.join(wrong) or 'whole'}",
        flush=True,
    )
    return bool(wrong or counts.lost or counts.doubled) or counts.kills < count


def crew() -> list[int]:
    """Return the workers that this process has begun and that are there: `ps` tells each by its name, ``worker 3``."""
    found = subprocess.run(["pgrep", "--parent", str(os.getpid()), "--full", "worker"], stdout=subprocess.PIPE)
    return [process for process in map(int, found.stdout.split()) if alive(process)]


def alive(process: int) -> bool:
    """Return whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("whom", choices=["workers", "driver", "node"])
    parser.add_argument("--kills", type=int, help="20 workers, a driver 10 times, or a machine 4 times")
    parser.add_argument("--pace", choices=PACES, help="both, unless it is given")
    parser.add_argument("--processes", type=int, default=4, help="workers at a time, where they are killed")
    parser.add_argument("--virtual", action="store_true", help="of a driver: its workers are on a clock of their own")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args()
    bad = 0
    for pace in [given.pace] if given.pace else PACES:
        if given.whom == "workers":
            bad += workers(given.kills or 20, pace, given.processes, given.seed)
        elif given.whom == "node":
            bad += node(given.kills or 4, pace, given.seed)
        else:
            bad += driver(given.kills or 10, pace, given.virtual, given.seed)
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main())
