"""Kills searches, resumes them, counts what is lost: ``python studies/reliability/kills.py [--kills N] [--seed S]``.

A search of stand-ins for models (milliseconds an evaluation) is a process of its own, killed with SIGKILL: at random
moments, and at chosen points, at the n-th write to its storage. It is begun again until it ends, and then held against
a search that nobody killed: every trial, bit for bit. Each storage (journal, SQLite, PostgreSQL where it is installed)
meets each algorithm.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path

import optuna
import postgres_server

from sae_moo.objectives import Constraint, Sparsity, TaskMean
from sae_moo.searchers.ground import Ground
from sae_moo.searchers.nsga import NsgaSearcher
from sae_moo.searchers.optuna_samplers import OptunaSearcher
from sae_moo.searchers.sae import SaeSearcher
from sae_moo.searchers.scalar import CovarianceAdaptation, ParticleSwarm, ScalarSearcher
from sae_moo.searchers.searcher import Searcher
from sae_moo.searchers.space import CoefficientSpace, LineageSpace
from sae_moo.study.events import Listener
from sae_moo.study.executor import Executor
from sae_moo.study.journal import create_or_load, open_storage
from sae_moo.study.local import LocalExecutor
from sae_moo.study.loop import Study
from sae_moo.study.record import TrialRecord
from sae_moo.study.trials import TrialStorage
from sae_moo.testing.searchers import Landscape

OBJECTIVES = (TaskMean("accuracy", ("a", "b")), Sparsity())
LIMITS = (Constraint(Sparsity(), high=0.5),)
GROUND = Ground(("math", "code", "law"), Landscape.prunable)
SPACE = CoefficientSpace(GROUND)
EVALUATIONS = 24
SHARED = (OBJECTIVES, LIMITS)

ALGORITHMS: dict[str, Callable[[], Searcher]] = {
    "nsga2": lambda: NsgaSearcher(LineageSpace(GROUND), *SHARED, population=8, seed=0),
    "sae-local": lambda: SaeSearcher(GROUND, *SHARED, size=8, local=True),
    "pso": lambda: ScalarSearcher(SPACE, *SHARED, optimizer=ParticleSwarm(SPACE, 8, 0.6), name="moved"),
    "cmaes": lambda: ScalarSearcher(SPACE, *SHARED, optimizer=CovarianceAdaptation(SPACE, 8, 0.6), name="moved"),
    "tpe": lambda: OptunaSearcher(SPACE, *SHARED, sampler="TPESampler", population=8),
}


@dataclass
class Counts:
    """What happened to the searches of one storage and algorithm."""

    searches: int = 0
    kills: int = 0
    lost: int = 0
    doubled: int = 0
    different: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not (self.lost or self.doubled or self.different or self.faults)


def opened(where: str) -> TrialStorage:
    """Open the study that lies somewhere, for writing."""
    storage = open_storage(where if "://" in where else Path(where), write=True)
    create_or_load(storage, "s", OBJECTIVES)
    return TrialStorage(storage, "s", OBJECTIVES, LIMITS, Landscape.fingerprints)


def study(
    where: str,
    searcher: Searcher,
    executor: Executor,
    evaluations: int = EVALUATIONS,
    listener: Listener = lambda event: None,
) -> Study:
    """Return the study that lies somewhere, of stand-ins for models, begun or not; see `Study`."""
    known = {"fingerprints": Landscape.fingerprints, "groups": Landscape.groups}
    rest = {"evaluations": evaluations, "versions": "v", "listener": listener}
    return Study(opened(where), searcher, executor, **known, **rest)


def search(where: str, algorithm: str, pause: float = 0.0) -> None:
    """Run a search to its end, or go on with one.

    Args:
        where: a journal's path, or a URL.
        algorithm: one of `ALGORITHMS`.
        pause: seconds that an evaluation lasts longer.
    """
    landscape = Landscape()

    def evaluate(recipe: object, rivals: object) -> object:
        time.sleep(pause)
        return landscape(recipe, rivals)

    study(where, ALGORITHMS[algorithm](), LocalExecutor(evaluate)).run()


def kill_after(write: int) -> None:
    """Have this process killed at its n-th write to a storage, counted from 0.

    Of an entry of a journal nothing, half or all reaches the file; of a database's statements and commits nothing.
    """
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    from sae_moo.study.journal import JournalFile

    writes = count()

    def reached() -> bool:
        return next(writes) == write

    def die(*_: object) -> None:
        if reached():
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(Engine, "commit", die)
    event.listen(Engine, "before_cursor_execute", die)
    append = JournalFile._append

    def torn(self: JournalFile, rest: memoryview, wait: bool) -> None:
        if reached():  # half of it reaches the file
            append(self, rest[: len(rest) * (write % 3) // 2], True)
            os.kill(os.getpid(), signal.SIGKILL)
        append(self, rest, wait)

    JournalFile._append = torn


def facts(records: list[TrialRecord]) -> list[tuple[object, ...]]:
    """Return what of trials a kill must not change."""
    return [
        (r.number, r.state, r.asked, r.recipe, r.digest, r.evaluation, dict(r.values), r.told, r.repeats, r.parents)
        for r in records
    ]


def told(where: str) -> list[int]:
    """Return the numbers of the trials that have ended, as Optuna has them; it may be any moment."""
    try:
        storage = open_storage(where if "://" in where else Path(where), write=False)
    except ValueError:  # killed before there was a study
        return []
    try:
        study = optuna.load_study(study_name="s", storage=storage)
        return [trial.number for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    except KeyError:
        return []
    finally:
        if hasattr(storage, "engine"):
            storage.engine.dispose()


def killed(run: Callable[[float], None], what: str, moment: float) -> tuple[int, str]:
    """Run a search in a process that is killed at a moment; return how it ended, and what it raised if it did.

    Args:
        run: seconds that an evaluation lasts longer -> nothing; runs the search to its end.
        what: ``time`` or ``write``.
        moment: see `broken`.
    """
    reader, writer = os.pipe()
    child = os.fork()  # everything is imported: a fresh interpreter would take seconds
    if child == 0:
        os.close(reader)
        try:
            if what == "write":
                kill_after(int(moment))
            os.write(writer, b"begins\n")
            run(0.01 if what == "time" else 0.0)
            os._exit(0)
        except BaseException as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as said:
        said.readline()
        if what == "time":
            time.sleep(moment)
            os.kill(child, signal.SIGKILL)
        error = said.read().decode(errors="replace")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), error


def interrupted(where: str, run: Callable[[float], None], moments: Iterable[tuple[str, float]], counts: Counts) -> None:
    """Kill a search at moments, and begin it again each time but the last; count into `counts` what that did to it.

    Args:
        where: its storage.
        run: runs it, see `killed`.
        moments: ``("time", seconds)`` after its first sign of life, or ``("write", n)``.
        counts: of such searches.
    """
    before: list[int] = []
    for what, moment in moments:
        status, error = killed(run, what, moment)
        if status == 0:
            return
        if status != -signal.SIGKILL:
            counts.faults.append(error)
            return
        counts.kills += 1
        now = told(where)
        counts.lost += len(set(before) - set(now))
        counts.doubled += len(now) - len(set(now))
        before = now


def broken(where: str, algorithm: str, moments: Iterable[tuple[str, float]], counts: Counts) -> None:
    """Kill a search at moments, begin it again each time, and let it end; count into `counts` what that did to it.

    Args:
        where: its storage.
        algorithm: its algorithm.
        moments: see `interrupted`.
        counts: of the storage and algorithm.
    """
    counts.searches += 1
    interrupted(where, partial(search, where, algorithm), moments, counts)
    search(where, algorithm)
    storage = opened(where)
    records = storage.records()
    unbroken = reference(algorithm)
    counts.lost += max(0, len(unbroken) - len(records))
    counts.doubled += max(0, len(records) - len(unbroken))
    counts.different += facts(records) != unbroken


REFERENCES: dict[str, list[tuple[object, ...]]] = {}


def reference(algorithm: str) -> list[tuple[object, ...]]:
    """Return the trials of a search that nobody killed."""
    if algorithm not in REFERENCES:
        with tempfile.TemporaryDirectory() as folder:
            where = str(Path(folder) / "s.journal")
            search(where, algorithm)
            REFERENCES[algorithm] = facts(opened(where).records())
    return REFERENCES[algorithm]


def campaign(kills: int, seed: int, storages: list[str], algorithms: list[str]) -> dict[tuple[str, str], Counts]:
    """Kill about so many times in all, the same number of times for every storage and algorithm; half at random."""
    drawn = random.Random(seed)
    table: dict[tuple[str, str], Counts] = {}
    each = max(1, round(kills / (len(storages) * len(algorithms))))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(postgres_server.server()) if "postgres" in storages else None
        names = count()
        for storage in storages:
            for algorithm in algorithms:
                counts = table[storage, algorithm] = Counts()
                while counts.kills < each and counts.searches <= each and not counts.faults:
                    number = next(names)
                    match storage:
                        case "journal":
                            where = str(folder / f"{number}.journal")
                        case "sqlite":
                            where = f"sqlite:///{folder}/{number}.db"
                        case _:
                            assert server is not None
                            where = server.url(f"d{number}")
                    left, last = each - counts.kills, 30 if storage == "journal" else 150
                    moments = [
                        ("time", drawn.uniform(0, 0.6)) if drawn.random() < 0.5 else ("write", drawn.randrange(2, last))
                        for _ in range(min(left, 4))
                    ]
                    broken(where, algorithm, iter(moments), counts)
                print(f"{storage:9} {algorithm:10} {said(counts)}", flush=True)
    return table


def said(counts: Counts) -> str:
    faults = f"  {counts.faults[0]}" if counts.faults else ""
    same = counts.searches - counts.different - len(counts.faults)
    return (
        f"{counts.searches:3} searches {counts.kills:4} kills {counts.lost:3} lost {counts.doubled:3} doubled "
        f"{same:3} identical{faults}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="in all, about")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--storages", nargs="+", default=["journal", "sqlite", "postgres"])
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), choices=list(ALGORITHMS))
    given = parser.parse_args()
    why = postgres_server.missing()
    if "postgres" in given.storages and why is not None:
        print(f"without PostgreSQL: {why}")
        given.storages.remove("postgres")
    table = campaign(given.kills, given.seed, given.storages, given.algorithms)
    total = Counter[str]()
    for counts in table.values():
        total.update({key: getattr(counts, key) for key in ("searches", "kills", "lost", "doubled", "different")})
        total["faults"] += len(counts.faults)
    print("in all: " + ", ".join(f"{number} {what}" for what, number in total.items()))
    return 0 if all(counts.good for counts in table.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
