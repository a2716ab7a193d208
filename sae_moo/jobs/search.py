"""Running a search, or going on with one: what is configured is opened, and its study is run to the budget's end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from sae_moo.config.document import Config, differences
from sae_moo.errors import Hint, InputError, Interrupted, RunError, itemized
from sae_moo.evaluate.costs import CostTable
from sae_moo.explore.pages.trace import write_trace
from sae_moo.explore.run import Run
from sae_moo.jobs.bench import Bench, versions
from sae_moo.jobs.executors import check_workers, executor_of
from sae_moo.jobs.extending import adopt, facts_of, inheritance
from sae_moo.jobs.islands import Islands
from sae_moo.jobs.memory import tell_too_much
from sae_moo.materialization.forms import form
from sae_moo.objectives.scores import SPLITS
from sae_moo.searchers.searcher import Searcher
from sae_moo.study.events import Arrived, Event, Exhausted, Finished, Listener, Opened, PutAside, Resumed, Spent
from sae_moo.study.executor import Executor
from sae_moo.study.folder import RUNS, RunFolder, StudyHeader
from sae_moo.study.journal import (
    OptunaStorage,
    absolute,
    begun,
    create_or_load,
    describe,
    holds_trials,
    open_storage,
    reached,
)
from sae_moo.study.loop import Study
from sae_moo.study.record import TrialRecord
from sae_moo.study.trials import TrialStorage


def search(
    config: Config,
    listener: Listener = lambda event: None,
    root: str | Path = RUNS,
    fresh: bool = False,
    searcher: Callable[[Bench], Searcher] | None = None,
    bench: Bench | None = None,
    executor: Callable[[Bench], Executor] | None = None,
) -> Run:
    """Run a search, or go on with one.

    Args:
        config: the configuration.
        listener: told of every event: how merging is done here, what was there already, trials that begin and end,
            nothing left to try.
        root: folder of run folders; the run lies in ``root/NAME``.
        fresh: put an earlier run of that name aside (as NAME.1, NAME.2, ...) instead of resuming it.
        searcher: makes the searcher instead of the configured one, e.g. with operators of one's own; the study cannot
            tell the two apart, so give it a name of its own.
        bench: what evaluating needs, if it is open already (`Bench.configured`).
        executor: makes what evaluates instead of the configured one, e.g. by a crew of one's own, from the bench as the
            study is anchored; it is closed at the end. Batch sizes that it measures are not kept.

    Returns:
        The run, to look at.

    Raises:
        InputError: if anything does not fit, or the stored study was made under other settings, naming the differences.
        Interrupted: on Ctrl-C, after saving.
        StorageError: if what is written to has no room, or its database is gone; what was finished before is kept.
        RunError: if all first candidates fail, or as many in a row as ``executor.failures`` says, after saving.
    """
    check_workers(config)  # before models are opened, which may take minutes
    if bench is None:
        bench = Bench.open(config)
        bench.tell_twins()
    if executor is None:
        tell_too_much(bench)
    url = None if config.study.storage is None else absolute(config.study.storage, config.directory)
    if fresh and url is not None:
        raise InputError("a fresh run puts a journal file aside; with study.storage, give the study a new name instead")
    folder = RunFolder(Path(root) / config.study.name)
    if fresh or not begun(url or folder.journal):
        _check_texts(bench)
        inheritance(bench, Path(root))  # what is wrong with it is told before anything is written
    aside = (lambda path: listener(PutAside(path))) if fresh else None
    with folder.held(aside):
        storage = open_storage(url or folder.journal, write=True)
        with reached(storage):
            header = StudyHeader.of(storage, config.study.name)
            if header is None:
                taken = inheritance(bench, Path(root))
                bench = bench if taken is None else bench.extending(taken.facts)
            else:
                bench = bench.extending(facts_of(header.identity))
                bench = bench.anchored(header.anchors).sized(header.batches)
                bench = bench.costed(CostTable.read(header.costs)) if header.costs else bench
                _check_same(folder, header.identity, bench, url)
                bench.tell_other_costs()
            _check_no_other(storage, config.study.name, header)
            anchors = bench.anchors() if header is None else header.anchors
            bench = bench.anchored(anchors).costed(bench.cost_table()) if header is None else bench
            # only now, so that whoever is killed while costs are measured leaves no study that says nothing of itself
            stored = create_or_load(storage, config.study.name, config.objective_list())
            said = _header(bench, anchors, header)
            describe(stored, said.attributes())
        listener(Opened(said.merging))
        folder.point(config.study.name, url)

        def noted(**changes: Any) -> None:
            nonlocal said
            said = replace(said, **changes)
            with reached(storage):
                describe(stored, said.attributes())

        records: dict[int, TrialRecord] = {}  # as the study holds them, by number

        def heard(event: Event) -> None:
            match event:
                case Exhausted() | Spent():
                    noted(exhausted=event.evaluations)
                case Resumed():
                    records.update((record.number, record) for record in event.records)
                case Finished() | Arrived():
                    records[event.record.number] = event.record
            listener(event)

        def sized(batches: Mapping[str, int]) -> None:
            noted(batches=dict(batches))

        trials = TrialStorage(
            storage, config.study.name, config.objective_list(), config.constraint_list(), bench.pool.fingerprints
        )
        adopt(trials, bench, Path(root))
        islands = None if config.study.islands is None else Islands(bench, storage, Path(root))
        with (
            _traced(folder, config.study.name, records),
            closing(
                executor_of(bench, anchors, sized, listener) if executor is None else executor(bench)
            ) as evaluating,
        ):
            chosen = bench.searcher() if searcher is None else searcher(bench)
            _study(bench, trials, chosen, heard, evaluating, islands).run()
    return Run.open(folder.path)


@contextmanager
def _traced(folder: RunFolder, name: str, records: Mapping[int, TrialRecord]) -> Iterator[None]:
    """Write who was busy when once the search has ended, or was stopped with all that it finished stored.

    A search that is killed leaves the file as it is: the next one, and `sae-moo figures`, make it from the study.

    Args:
        folder: of the run.
        name: the study's.
        records: its trials by number, as it holds them when the search ends; they would take longer to read again.
    """
    try:
        yield
    except (Interrupted, RunError, SystemExit):  # the last one: a signal asks for the end
        write_trace(folder.timeline, name, records.values())
        raise
    write_trace(folder.timeline, name, records.values())


def check_resumable(config: Config, bench: Bench, root: str | Path = RUNS) -> None:
    """Raise InputError if a study can have no place, or there is one under other settings; writes nothing.

    Of a study that is not begun, texts that repairs will read are checked, too; of one that is, as it goes on.
    """
    folder = RunFolder(Path(root) / config.study.name)
    there = next(path for path in (folder.path, *folder.path.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        why = "cannot be written to" if there.is_dir() else "is no folder"
        raise InputError(f"{folder.path}: the run folder cannot be written: {there} {why}")
    url = None if config.study.storage is None else absolute(config.study.storage, config.directory)
    if not begun(url or folder.journal):
        _check_texts(bench)
        inheritance(bench, Path(root))
        return
    header = StudyHeader.of(open_storage(url or folder.journal, write=False), config.study.name)
    if header is None:
        inheritance(bench, Path(root))
    else:
        bench = bench.extending(facts_of(header.identity))
        _check_same(folder, header.identity, bench.anchored(header.anchors), url)


def _check_texts(bench: Bench) -> None:
    """Raise InputError if a search will repair members of its front, and there are no texts for it."""
    if bench.config.search.finish:
        bench.repairing()


def _check_no_other(storage: OptunaStorage, name: str, header: StudyHeader | None) -> None:
    """Raise InputError if a study of that name holds trials and does not say that it was made here."""
    if header is None and holds_trials(storage, name):
        raise InputError(f"study {name!r} holds trials that sae-moo did not make; use another name")


def _check_same(folder: RunFolder, stored: Mapping[str, Any], bench: Bench, url: str | None) -> None:
    changed = differences(stored, bench.identity())
    if changed:
        title = f"{folder.path}: the study was made under other settings and is not resumed"
        raise InputError(itemized(title, changed), Hint.FRESH if url is None else Hint.RENAME)


def _header(bench: Bench, anchors: Mapping[str, Sequence[int]], stored: StudyHeader | None) -> StudyHeader:
    """Return what a study says of itself from now on: models may have moved since, their contents were checked.

    Args:
        bench: what evaluates.
        anchors: what it was anchored to.
        stored: what it said so far, if it said anything.
    """
    config = bench.config
    return StudyHeader(
        config=config.model_dump(mode="json"),
        directory=str(config.directory),
        fingerprints=bench.pool.fingerprints,
        groups=bench.pool.groups,
        identity=bench.identity() if stored is None else stored.identity,
        anchors=anchors,
        items={task.name: {split: task.source(split) for split in SPLITS} for task in bench.tasks},
        exhausted=None if stored is None else stored.exhausted,
        merging=form(bench.device).words,
        batches={} if stored is None else stored.batches,
        costs={} if bench.costs is None else bench.costs.document(),
    )


def _study(
    bench: Bench,
    trials: TrialStorage,
    searcher: Searcher,
    listener: Listener,
    executor: Executor,
    islands: Islands | None,
) -> Study:
    config = bench.config
    return Study(
        trials,
        searcher,
        executor,
        fingerprints=bench.pool.fingerprints,
        groups=bench.pool.groups,
        tensors=bench.pool.prunable_sizes,
        evaluations=config.search.evaluations,
        versions=versions(),
        listener=listener,
        rivals=bench.rivals(),
        by_generation=config.executor.kind != "local" and config.algorithm.by_generation(config.pace),
        tokens=config.search.tokens,
        finishing=bench.finishing(),
        failures=config.executor.failures,
        migration=islands,
    )
