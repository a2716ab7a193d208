"""The whole jobs: search, evaluate, export, merge. Each is one call of the command line."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sae_moo.config.document import Config, differences
from sae_moo.errors import Hint, InputError
from sae_moo.evaluate.task import Metric
from sae_moo.experts.checkpoint import Checkpoint
from sae_moo.experts.pool import ExpertPool
from sae_moo.explore.run import Run
from sae_moo.jobs.bench import Bench, open_tasks, resolve_device, versions
from sae_moo.jobs.bench import scorer as scorer_of
from sae_moo.jobs.export import estimate, export
from sae_moo.jobs.judge import check_has_test
from sae_moo.jobs.merge import merge, read_recipe, to_mergekit
from sae_moo.materialization.into_model import materialize, measured_sparsity
from sae_moo.objectives.scores import SPLITS, Score, Split, summary
from sae_moo.recipe import BASE
from sae_moo.searchers.searcher import Searcher
from sae_moo.study.folder import RUNS, RunFolder, StudyHeader
from sae_moo.study.local import LocalExecutor
from sae_moo.study.loop import Event, Exhausted, Listener, PutAside, Study
from sae_moo.study.storage import TrialStorage, absolute, create_or_load, describe, open_storage

__all__ = [
    "Evaluated",
    "check_resumable",
    "estimate",
    "evaluate",
    "export",
    "merge",
    "search",
    "tell_twins",
    "to_mergekit",
]

log = logging.getLogger(__name__)


def search(
    config: Config,
    listener: Listener = lambda event: None,
    root: str | Path = RUNS,
    fresh: bool = False,
    searcher: Callable[[Bench], Searcher] | None = None,
    bench: Bench | None = None,
) -> Run:
    """Run a search, or go on with one.

    Args:
        config: the configuration.
        listener: told of every event: what was there already, trials that begin and end, nothing left to try.
        root: folder of run folders; the run lies in ``root/NAME``.
        fresh: put an earlier run of that name aside (as NAME.1, NAME.2, ...) instead of resuming it.
        searcher: makes the searcher instead of the configured one, e.g. with operators of one's own; the study cannot
            tell the two apart, so give it a name of its own.
        bench: what evaluating needs, if it is open already (`Bench.configured`).

    Returns:
        The run, to look at.

    Raises:
        InputError: if anything does not fit, or the stored study was made under other settings, naming the differences.
        Interrupted: on Ctrl-C, after saving.
    """
    if bench is None:
        bench = Bench.open(config)
        tell_twins(bench)
    folder = RunFolder(Path(root) / config.study.name)
    place = None if config.study.storage is None else absolute(config.study.storage, config.directory)
    if fresh and place is not None:
        raise InputError("a fresh run puts a journal file aside; with study.storage, give the study a new name instead")
    aside = (lambda path: listener(PutAside(path))) if fresh else None
    with folder.held(aside):
        storage = open_storage(place or folder.journal, write=True)
        study = create_or_load(storage, config.study.name, config.objective_list())
        stored = StudyHeader.read(study.user_attrs)
        if stored is None and study.get_trials(deepcopy=False):
            raise InputError(f"study {config.study.name!r} holds trials that sae-moo did not make; use another name")
        anchors = bench.anchors() if stored is None else stored.anchors
        bench = bench.anchored(anchors)
        if stored is not None:
            _check_same(folder, stored.identity, bench, place)
        header = StudyHeader(  # models may have moved since, their contents are checked
            config=config.model_dump(mode="json"),
            directory=str(config.directory),
            fingerprints=bench.pool.fingerprints,
            groups=bench.pool.groups,
            identity=bench.identity() if stored is None else stored.identity,
            anchors=anchors,
            items={task.name: {split: task.source(split) for split in SPLITS} for task in bench.tasks},
            exhausted=None if stored is None else stored.exhausted,
        )
        describe(study, header.attributes())
        folder.point(config.study.name, place)
        evaluator = bench.evaluator()

        def heard(event: Event) -> None:
            if isinstance(event, Exhausted):
                describe(study, replace(header, exhausted=event.evaluations).attributes())
            listener(event)

        Study(
            TrialStorage(
                storage, config.study.name, config.objective_list(), config.constraint_list(), bench.pool.fingerprints
            ),
            searcher(bench) if searcher is not None else bench.searcher(),
            LocalExecutor(evaluator.evaluate),
            bench.pool.fingerprints,
            bench.pool.groups,
            config.search.evaluations,
            versions(),
            heard,
            bench.rivals(),
        ).run()
    return Run.open(folder.path)


def tell_twins(bench: Bench) -> None:
    """Warn of experts that are the same model as another or as the base: nothing can come of merging them."""
    seen: dict[str, str] = {}
    for name, fingerprint in bench.pool.fingerprints.items():
        if fingerprint in seen:
            log.warning("%s and %s are the same model", seen[fingerprint], name)
        seen.setdefault(fingerprint, name)


def check_resumable(config: Config, bench: Bench, root: str | Path = RUNS) -> None:
    """Raise InputError if a run of that name exists under other settings; writes nothing."""
    folder = RunFolder(Path(root) / config.study.name)
    if folder.begun:
        run = Run.open(folder.path)
        _check_same(folder, run.identity, bench.anchored(run.anchors), config.study.storage)


def _check_same(folder: RunFolder, stored: Mapping[str, Any], bench: Bench, place: str | None) -> None:
    found = differences(stored, bench.identity())
    if found:
        raise InputError(
            f"{folder.path}: the study was made under other settings and is not resumed:\n"
            + "\n".join(f"  - {difference}" for difference in found),
            Hint.FRESH if place is None else Hint.RENAME,
        )


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What `evaluate` found.

    Args:
        scores: task name -> score.
        sparsity: the fraction of zeros over all prunable weights.
        metrics: task name -> further numbers by name; empty for tasks that have none.
        samples: one per instance, with ``name`` (the task's), ``instance`` (its number), ``score``, and what the task
            tells of it.
    """

    scores: Mapping[str, Score]
    sparsity: float
    metrics: Mapping[str, Mapping[str, Metric]]
    samples: tuple[Mapping[str, Any], ...]


def evaluate(target: str, config: Config, split: Split, bench: Bench | None = None) -> Evaluated:
    """Score a model folder, a hub id, ``zoo:NAME`` or a recipe with the configured tasks.

    Args:
        target: what to score; a path ending in ``.json`` is a recipe over the configured experts.
        config: the configuration.
        split: which items to score on.
        bench: the configuration's, if it is open already; recipes are made with it.

    Raises:
        InputError: if the target or the configuration cannot be used.
        TaskError: if the model's answers are not finite.
    """
    if split == "test":
        check_has_test(config)
    device = resolve_device(config.models.device)
    if target.endswith(".json"):
        bench = Bench.open(config) if bench is None else bench
        recipe = read_recipe(Path(target), bench.pool)
        pool, tasks, model = bench.pool, bench.tasks, bench.live_model()
        materialize(recipe, pool, model)
    else:
        pool = ExpertPool({BASE: Checkpoint(target)})
        tasks = open_tasks(config, pool)
        model = pool.live_model(config.models.dtype, device)
    scorer = scorer_of(config, pool, tasks, device)
    answers = scorer.answers(model, split)
    scores = scorer.judge(split, answers)
    metrics = {task.name: task.metrics(split, answers[task.name]) for task in tasks}
    samples = tuple(
        {"name": task.name, "instance": i, "score": float(scores[task.name][i]), **sample}
        for task in tasks
        for i, sample in enumerate(task.samples(split, answers[task.name]))
    )
    return Evaluated(summary(scores), measured_sparsity(pool, model), metrics, samples)
