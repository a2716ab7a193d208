"""Islands: studies that search beside each other, each by a process of its own, and take over what the others find.

Each writes its own study and reads those of the others: run folders beside its own, or studies of the same database.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from sae_moo.errors import InputError, first_few, itemized
from sae_moo.explore.run import Run
from sae_moo.jobs.bench import Bench
from sae_moo.jobs.extending import apart
from sae_moo.searchers.ranking import by_front
from sae_moo.study.folder import RunFolder, StudyHeader
from sae_moo.study.journal import OptunaStorage, holds_trials, reached
from sae_moo.study.migration import Migrant
from sae_moo.study.record import Inherited


class Islands:
    """The other islands of a search; a `Migration`.

    Args:
        bench: what evaluates here.
        storage: where this study is written.
        root: folder of run folders.
    """

    def __init__(self, bench: Bench, storage: OptunaStorage, root: Path) -> None:
        section = bench.config.study.islands
        assert section is not None
        self._bench, self._storage, self._root = bench, storage, root
        self._every, self._count = section.every, section.migrants
        self._names = [name for name in section.names if name != bench.config.study.name]
        self._runs: dict[str, Run] = {}
        self._visits: int | None = None
        for name in self._names:  # what is there and does not fit is told before anything is evaluated
            self._run(name)

    def due(self, made: int) -> bool:
        """Say whether so many more evaluations were made since the last visit, or since it began; see `Migration`."""
        visits = made // self._every
        if self._visits is None:
            self._visits = visits
        due, self._visits = visits > self._visits, visits
        return due

    def arrivals(self, known: Collection[str], whole: bool) -> Sequence[Migrant]:
        """Return members of the other islands' fronts that are not known here; see `Migration`."""
        found: dict[str, Migrant] = {}
        for name in self._names:
            run = self._run(name)
            if run is None:
                continue
            front = run.front()
            order = by_front([each.evaluation for each in front], run.objectives, run.config.constraint_list())
            new = [front[i] for i in order if front[i].digest not in known and front[i].digest not in found]
            for record in new if whole else new[: self._count]:
                found[record.digest] = Migrant(record, record.inherited or Inherited(run.name, record.number))
        return list(found.values())

    def _run(self, name: str) -> Run | None:
        """Return the run of an island, None if it has not begun."""
        if name not in self._runs:
            run = self._opened(name)
            if run is None:
                return None
            faults = list(apart(run, self._bench))
            if [task.name for task in self._bench.tasks] != list(run.tasks):
                faults.append(f"tasks: it has {', '.join(run.tasks)}")
            if faults:
                raise InputError(itemized(f"study.islands: {name} searches something else", first_few(faults)))
            self._runs[name] = run
        return self._runs[name]

    def _opened(self, name: str) -> Run | None:
        if self._bench.config.study.storage is None:
            folder = RunFolder(self._root / name)
            return Run.open(folder.path) if folder.begun else None
        with reached(self._storage):  # one without trials that does not describe itself yet is being made
            there = StudyHeader.of(self._storage, name) is not None or holds_trials(self._storage, name)
        return Run(self._storage, name, self._root / name) if there else None
