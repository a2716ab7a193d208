"""A study that goes on from an earlier one: what that has evaluated is taken over when the new one begins.

Operators, tasks and experts may have joined since. What was taken over is part of what the new study is bound to, so
that it is resumed as it began, even if the earlier one goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sae_moo.errors import Hint, InputError, first_few, itemized
from sae_moo.explore.run import Run
from sae_moo.files.places import located
from sae_moo.jobs.bench import Bench
from sae_moo.jobs.namesakes import asked_otherwise
from sae_moo.recipe import dumps
from sae_moo.searchers.finishing import REPAIR
from sae_moo.study.folder import RunFolder
from sae_moo.study.record import Ended, Inherited, inherited, told, weight_of
from sae_moo.study.trials import TrialStorage

COUNT, DIGEST = "earlier trials", "digest of earlier trials"  # what the identity of a study calls them
ALIKE = ("models.dtype", "models.vocabulary", "evaluation.generation", "generation_config.json of base", "device")
"""Keys of a study's identity that scores, or recipes, depend on whatever the tasks are."""


@dataclass(frozen=True, slots=True)
class Inheritance:
    """What a study takes over.

    Args:
        study: name of the earlier study.
        records: its trials with a result, repeated and repaired ones left out, in the order in which its search was
            told of them; evaluations have scores of the new study's tasks alone, and are not ok where one lacks.
    """

    study: str
    records: tuple[Ended, ...]

    @property
    def facts(self) -> dict[str, Any]:
        """How many they are, and a digest of recipes and scores."""
        rows = [
            [each.digest, {task: list(row) for task, row in each.evaluation.scores.items()}] for each in self.records
        ]
        return {COUNT: len(rows), DIGEST: hashlib.sha256(dumps(rows).encode()).hexdigest()}


def facts_of(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a study's identity says of what it has taken over; empty if it says nothing."""
    return {key: identity[key] for key in (COUNT, DIGEST) if key in identity}


def inheritance(bench: Bench, root: Path) -> Inheritance | None:
    """Return what the configured study takes over if it begins now; None if it extends none.

    Args:
        bench: what will evaluate.
        root: folder of run folders.

    Raises:
        InputError: if there is no such run, it cannot be gone on from here, or has evaluated nothing.
    """
    config = bench.config
    if config.study.extends is None:
        return None
    place = located(config.study.extends, config.directory)
    try:
        folder = RunFolder.find(place if place.is_dir() else config.study.extends, root).path
        if folder.resolve() == (root / config.study.name).resolve():
            raise InputError("a study does not extend itself; expected an earlier run, or another study.name")
        run = Run.open(folder)
    except InputError as error:
        raise InputError(f"study.extends: {error.message}", error.hint) from error
    faults = list(apart(run, bench))
    if faults:
        raise InputError(itemized(f"study.extends: {run.folder} cannot be gone on from here", first_few(faults)))
    tasks = [task.name for task in bench.tasks]
    records = [_as_here(record, tasks) for record in told(run.trials()) if _counts(record, tasks)]
    if not records:
        raise InputError(f"study.extends: {run.folder} has evaluated nothing so far that could be taken over")
    return Inheritance(run.name, tuple(records))


def adopt(trials: TrialStorage, bench: Bench, root: Path) -> None:
    """Write what the study takes over into it, as far as it is not there: it may have been killed while it was written.

    Args:
        trials: the study's.
        bench: what evaluates; `Bench.earlier` says what is to be there.
        root: folder of run folders.

    Raises:
        InputError: if something is missing, and the earlier study does not have it as it was.
        StorageError: if it cannot be written.
    """
    if not bench.earlier:
        return
    there = inherited(trials.records())
    count = bench.earlier[COUNT]
    if len(there) == count:
        return
    found = inheritance(bench, root)
    assert found is not None  # the study is bound to its configuration
    found = Inheritance(found.study, found.records[:count])
    if found.facts != bench.earlier:
        raise InputError(
            f"study.extends: {len(there)} of {count} earlier trials were written when the study was stopped, and "
            f"{found.study} no longer has the others as they were",
            Hint.ANEW,
        )
    numbers: dict[int, int] = {}  # of the earlier study -> of this one, of which they are the first
    for position, record in enumerate(found.records):
        if position >= len(there):
            parents = tuple(numbers[parent] for parent in record.parents if parent in numbers)
            params = {weight_of(name): 0.0 for name in bench.pool.names} | dict(record.params)
            source = record.inherited or Inherited(found.study, record.number)
            trials.adopt(replace(record, parents=parents), source, position, params)
        numbers[record.number] = position


def _counts(record: Ended, tasks: Sequence[str]) -> bool:
    """Say whether a trial is taken over: what failed may do better, what repeats or repairs another says nothing."""
    scored = record.state in ("complete", "partial") and not set(tasks).isdisjoint(record.evaluation.scores)
    return scored and record.repeats is None and record.operator != REPAIR


def _as_here(record: Ended, tasks: Sequence[str]) -> Ended:
    """Return a trial with scores of these tasks alone, in their order."""
    known = record.evaluation.scores
    missing = [task for task in tasks if task not in known]
    reason = f"not scored on {', '.join(missing)}" if missing else None
    scores = {task: known[task] for task in tasks if task in known}
    return replace(record, evaluation=replace(record.evaluation, scores=scores, reason=reason))


def apart(run: Run, bench: Bench) -> Iterator[str]:
    """Yield why trials of a run would not mean the same here."""
    before, here = run.identity, bench.identity()
    shape = "config.json of base"
    if before.get(shape) != here[shape]:
        yield "its base has another architecture (config.json)"
    elif run.fingerprints["base"] != bench.pool.fingerprints["base"]:
        yield "its base has other weights"
    for name, fingerprint in run.fingerprints.items():
        if name not in bench.pool.fingerprints:
            yield f"models.experts: it has {name!r}, which this configuration lacks; experts may join, none may leave"
        elif name != "base" and bench.pool.fingerprints[name] != fingerprint:
            yield f"models.experts.{name}: it has other weights under this name; give the new expert a new name"
    tasks = [task.name for task in bench.tasks if task.name in run.tasks]
    if not tasks:
        yield f"tasks: none of its tasks is here; it has {', '.join(run.tasks)}"
    for task in tasks:
        changed, items = asked_otherwise(before, here, task), f"items of {task}"
        if changed:
            yield from changed
        elif before.get(items) != here[items]:
            yield f"{items}: it has others under this name; give the new task a new name"
    for key in ALIKE:
        if before.get(key) != here.get(key):
            yield f"{key}: it has {before.get(key)!r}, here it is {here.get(key)!r}"
    if "activation norms" in before and before["activation norms"] != here.get("activation norms"):
        yield "pruning.calibration: it weighs by other activation norms"
    if run.config.pruning.submodels != bench.config.pruning.submodels:
        yield f"pruning.submodels: it has {run.config.pruning.submodels}, here it is {bench.config.pruning.submodels}"
    if run.anchors or bench.config.evaluation.anchors is not None:
        yield "evaluation.anchors: scores of chosen instances are of one study; expected all to be asked in both"
    if run.costs or bench.config.modelled is not None:
        yield "speed: what is modelled is of one study's machine; expected neither to ask for speed"
