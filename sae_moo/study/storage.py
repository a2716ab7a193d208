"""Trials in an Optuna study: one per evaluation, begun before it and finished after it.

The default storage is a journal file with one writer. Anything Optuna offers by URL works too. A trial stores only the
nodes its recipe adds; parents are referred to by digest.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from sae_moo.errors import InputError
from sae_moo.objectives import Constraint, Evaluation, Objective, Stopped, feasible, violations
from sae_moo.recipe import Recipe, decode, digest, dumps, encode
from sae_moo.recipe.catalogue import OtherGuest

log = logging.getLogger(__name__)

OptunaStorage: TypeAlias = BaseStorage
STATES = {TrialState.COMPLETE: "complete", TrialState.FAIL: "failed", TrialState.PRUNED: "stopped"}
# Numbers worth plotting are clipped into this range: Optuna wants a distribution that holds them.
PARAM_RANGE = (-10.0, 10.0)
# Attributes of a trial that are read again by us alone.
INTERNAL = {"recipe", "resolved", "instances", "vector", "group_sparsity", "sparseness", "asked_after", "told"}


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """One trial as the study holds it.

    Args:
        number: Optuna's trial number, from 0.
        state: ``complete``, ``failed``, ``stopped`` (in a race, see `objectives.Stopped`) or ``running``.
        recipe: what was asked for; once evaluated, with every pruning scope resolved.
        asked: what the search proposed; differs from `recipe` for group and global scopes only.
        digest: identity of `recipe`.
        asked_digest: identity of `asked`.
        evaluation: the result, or None while running.
        values: objective name -> value in the user's direction; empty unless complete.
        stderr: objective or task name -> standard error of the mean over instances.
        feasible: whether all limits are kept; False unless complete.
        operator, generation, parents: where the candidate comes from; parents are trial numbers.
        asked_after: how many evaluations had been told when this one was asked for.
        told: position of this evaluation among those told, or None while running.
        repeats: number of the trial whose weights and result this one shares, or None.
        params: the numbers worth plotting.
        vector: the coefficients that the recipe stands for, where the search is over vectors; else empty.
    """

    number: int
    state: str
    recipe: Recipe
    asked: Recipe
    digest: str
    asked_digest: str
    evaluation: Evaluation | None
    values: Mapping[str, float]
    stderr: Mapping[str, float]
    feasible: bool
    operator: str
    generation: int
    parents: tuple[int, ...]
    asked_after: int
    told: int | None
    repeats: int | None
    params: Mapping[str, float] = field(default_factory=dict)
    vector: tuple[float, ...] = ()


class FileLock:
    """Exclusive lock of a journal that dies with its process, unlike a lock file; for local disks."""

    def __init__(self, journal: Path) -> None:
        self._path = journal.with_name(journal.name + ".lock")
        self._handle: int | None = None
        self._threads = threading.Lock()  # flock is between processes only

    def acquire(self) -> bool:
        """Wait for the lock and take it.

        Raises:
            OSError: if its file cannot be opened or locked; the lock is free then.
        """
        self._threads.acquire()
        handle = None
        try:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except BaseException:  # goes on up; even after a Ctrl-C others can take the lock
            if handle is not None:
                os.close(handle)
            self._threads.release()
            raise
        self._handle = handle
        return True

    def release(self) -> None:
        """Give the lock back."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
            self._threads.release()


class JournalFile(JournalFileBackend):
    """Optuna's journal file, without waiting for the disk after every attribute of a trial.

    A dozen attributes come before the entry that ends a trial, and that entry waits for all of them. A killed process
    loses nothing either way; a power cut loses at most the trial that was being written.

    Args:
        path: the journal.
    """

    def __init__(self, path: Path) -> None:
        lock = FileLock(path)
        super().__init__(str(path), lock_obj=lock)  # type: ignore[arg-type]  # it has acquire and release
        self._path = path
        self._own_lock = lock

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append entries, a line each."""
        if not all("user_attr" in entry for entry in logs):
            super().append_logs(logs)
            return
        text = "".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in logs)
        self._own_lock.acquire()
        try:
            with self._path.open("ab") as file:
                file.write(text.encode())
        finally:
            self._own_lock.release()


class TrialStorage:
    """A study opened for reading or writing.

    Args:
        storage: an open Optuna storage.
        name: the study's name.
        objectives: what is maximized, in order.
        constraints: limits, stored as Optuna's constraints.
        fingerprints: expert name -> content fingerprint, for digests.
    """

    def __init__(
        self,
        storage: BaseStorage,
        name: str,
        objectives: Sequence[Objective],
        constraints: Sequence[Constraint],
        fingerprints: Mapping[str, str],
    ) -> None:
        self.study = study_of(storage, name)
        self._storage = storage
        self._id = storage.get_study_id_from_name(name)
        self.objectives = tuple(objectives)
        self.constraints = tuple(constraints)
        self._fingerprints = dict(fingerprints)
        self._digests: dict[Recipe, str] = {}  # every evaluated recipe -> what children call it
        self._recipes: dict[str, Recipe] = {}

    def records(self) -> list[TrialRecord]:
        """Return all trials in order of their numbers.

        Raises:
            InputError: if a trial cannot be read as one of ours.
        """
        return [self._record(trial) for trial in self.study.get_trials(deepcopy=False)]

    def begin(
        self,
        recipe: Recipe,
        params: Mapping[str, float],
        parents: Sequence[int],
        operator: str,
        generation: int,
        asked_after: int,
        versions: str,
        vector: Sequence[float] = (),
    ) -> int:
        """Write a running trial and return its number.

        Args:
            recipe: what will be evaluated.
            params: at most some fifteen numbers worth plotting.
            parents: trial numbers.
            operator: what made the recipe.
            generation: of the search.
            asked_after: how many evaluations were told before.
            versions: of the software that evaluates.
            vector: the coefficients that the recipe stands for, where the search is over vectors.
        """
        low, high = PARAM_RANGE
        template = create_trial(
            state=TrialState.RUNNING,
            params={name: min(max(float(value), low), high) for name, value in params.items()},
            distributions={name: FloatDistribution(low, high) for name in params},
            user_attrs={
                "generation": generation,
                "operator": operator,
                "parents": list(parents),
                "asked_after": asked_after,
                "digest": digest(recipe, self._fingerprints),
                "recipe": dumps(encode(recipe, self._digests)),
                "versions": versions,
                **({"vector": list(vector)} if vector else {}),
            },
        )
        identity = self._storage.create_new_trial(self._id, template_trial=template)
        return int(self._storage.get_trial_number_from_id(identity))

    def finish(self, number: int, evaluation: Evaluation, told: int, repeats: int | None = None) -> TrialRecord:
        """Write the evaluation of a running trial and end it.

        Args:
            number: the trial.
            evaluation: its result; a failed one ends the trial as failed, with its reason.
            told: position of this evaluation among those told.
            repeats: the trial it repeats, or None.
        """
        identity = self._storage.get_trial_id_from_study_id_trial_number(self._id, number)
        trial = Trial(self.study, identity)
        attributes: dict[str, Any] = {"told": told}
        if repeats is not None:
            attributes["repeats"] = repeats
        if not evaluation.ok:
            attributes["reason"] = evaluation.reason
        if evaluation.scores:
            for task in evaluation.scores:
                attributes[f"{task} score"] = evaluation.mean(task)  # a suffix: a task may be called anything
                attributes[f"{task} stderr"] = evaluation.stderr(task)
            attributes["instances"] = {task: packed(row) for task, row in evaluation.scores.items()}
        if evaluation.scores or evaluation.stopped is not None:
            attributes["sparsity"] = evaluation.sparsity
            attributes["group_sparsity"] = list(evaluation.group_sparsity)
        if evaluation.stopped is not None:
            attributes["stopped"] = asdict(evaluation.stopped)
        if evaluation.sparseness:
            attributes["sparseness"] = list(evaluation.sparseness)
        attributes["seconds merging"] = evaluation.seconds_merge
        attributes["seconds scoring"] = evaluation.seconds_score
        asked = decode(json.loads(trial.user_attrs["recipe"]), self._recipes)
        if evaluation.recipe != asked:
            attributes["resolved"] = dumps(encode(evaluation.recipe, self._digests))
        for key, value in attributes.items():
            trial.set_user_attr(key, value)
        if evaluation.ok:
            broken = violations(self.constraints, evaluation)
            labels = [label for constraint in self.constraints for label in constraint.labels]
            for label, amount in zip(labels, broken, strict=False):  # the last entry says only that it did not fail
                if label not in trial.constraints:  # set already if a run was killed right here
                    trial.set_constraint(label, float(amount))
            self.study.tell(number, [objective.value(evaluation) for objective in self.objectives])
        else:
            self.study.tell(number, state=TrialState.FAIL if evaluation.stopped is None else TrialState.PRUNED)
        return self._record(self._storage.get_trial(identity))

    def _record(self, trial: FrozenTrial) -> TrialRecord:
        attrs = trial.user_attrs
        try:
            asked = decode(json.loads(attrs["recipe"]), self._recipes)
            recipe = decode(json.loads(attrs["resolved"]), self._recipes) if "resolved" in attrs else asked
            evaluation = _evaluation(recipe, attrs, trial.state) if trial.state in STATES else None
            values = {}
            if trial.state == TrialState.COMPLETE:
                values = dict(zip((o.name for o in self.objectives), trial.values, strict=True))
            stderr = {}
            if evaluation is not None and evaluation.ok:
                stderr = {task: evaluation.stderr(task) for task in evaluation.scores}
                stderr |= {objective.name: objective.stderr(evaluation) for objective in self.objectives}
            name = attrs["digest"] if recipe == asked else digest(recipe, self._fingerprints)
            record = TrialRecord(
                number=trial.number,
                state=STATES.get(trial.state, "running"),
                recipe=recipe,
                asked=asked,
                digest=name,
                asked_digest=attrs["digest"],
                evaluation=evaluation,
                values=values,
                stderr=stderr,
                feasible=evaluation is not None and feasible(self.constraints, evaluation),
                operator=attrs["operator"],
                generation=attrs["generation"],
                parents=tuple(attrs["parents"]),
                asked_after=attrs["asked_after"],
                told=attrs.get("told") if evaluation is not None else None,
                repeats=attrs.get("repeats"),
                params=dict(trial.params),
                vector=tuple(attrs.get("vector", ())),
            )
        except OtherGuest as error:
            raise InputError(f"trial {trial.number}: {error}") from error
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(f"trial {trial.number} was not written by sae-moo or is damaged: {error!r}") from error
        if evaluation is not None:
            self._digests[recipe] = name
            self._recipes[name] = recipe
        return record


def study_of(storage: BaseStorage, name: str) -> optuna.Study:
    """Return a study of a storage as Optuna has it."""
    return optuna.load_study(study_name=name, storage=storage, sampler=optuna.samplers.RandomSampler(seed=0))


def trial_of(study: optuna.Study, identity: int) -> Trial:
    """Return a trial as Optuna has it, by its identity in the storage."""
    return Trial(study, identity)


def readable(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return trials for a reader's eyes; those given are not changed.

    What only we read is left out. Parameters have the range that the trials have used, 0 among it, since plots and
    importances are of the whole range; one that only some trials have and that never differs is left out. Limits are
    also given where Optuna kept them before its release 5.
    """
    values: dict[str, list[float]] = {}
    for trial in trials:
        for name, value in trial.params.items():
            values.setdefault(name, []).append(value)
    ranges = {}
    for name, row in values.items():
        if len(set(row)) > 1 or len(row) == len(trials):
            low, high = min(0.0, *row), max(0.0, *row)
            ranges[name] = FloatDistribution(low, high if high > low else low + 1.0)
    shown = []
    for trial in trials:
        own = copy(trial)
        own.params = {name: value for name, value in trial.params.items() if name in ranges}
        own.distributions = {name: ranges[name] for name in own.params}
        own.user_attrs = {key: value for key, value in trial.user_attrs.items() if key not in INTERNAL}
        if trial.constraints:
            own.system_attrs = {**trial.system_attrs, "constraints": list(trial.constraints.values())}
        shown.append(own)
    return shown


def _sqlite_file(where: str) -> Path | None:
    """Return the file of an SQLite URL; None for what lies in no plain file."""
    from sqlalchemy.engine import make_url

    url = make_url(where)
    plain = url.get_backend_name() == "sqlite" and url.database and not url.database.startswith(("file:", ":memory:"))
    return Path(str(url.database)) if plain else None


def absolute(where: str, directory: Path) -> str:
    """Return an Optuna URL whose SQLite file, like every path, starts from the configuration's folder."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        file = _sqlite_file(where)
    except (ArgumentError, ValueError):
        return where  # opening it says what is wrong
    if file is None or file.is_absolute():
        return where
    return make_url(where).set(database=str(directory / file)).render_as_string(hide_password=False)


def open_storage(where: str | Path, write: bool) -> BaseStorage:
    """Open a journal file or an Optuna URL.

    A journal whose last line was torn by a crash is cut back to its last whole line, when opened for writing only.

    Raises:
        InputError: if it is missing (for reading), not a study, or cannot be written.
    """
    if isinstance(where, str) and "://" in where:
        from sqlalchemy.exc import SQLAlchemyError

        try:
            file = _sqlite_file(where)
            if write or file is None or file.is_file():  # Optuna would make an empty one
                return RDBStorage(where)
        except (SQLAlchemyError, ImportError, ValueError) as error:
            shown = re.sub(r"//([^/:@]*):[^/@]*@", r"//\1:***@", where)  # no password on the screen
            raise InputError(f"storage {shown}: Optuna cannot open it: {str(error).splitlines()[0]}") from error
        raise InputError(f"no study at {file}")
    path = Path(where)
    try:
        if write:
            path.parent.mkdir(parents=True, exist_ok=True)
            _check_journal(path)
            _cut_torn_line(path)
            with path.open("ab"):
                pass  # fails here, before anything is computed, if the journal cannot be written
        elif not path.is_file():
            raise InputError(f"no study at {path}")
        else:
            _check_journal(path)
        return JournalStorage(JournalFile(path))
    except OSError as error:
        raise InputError(f"{path}: cannot {'write' if write else 'read'} the study: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AssertionError, RecursionError) as error:  # as Optuna meets odd entries
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a study, or damaged: {error}") from error


def create_or_load(storage: BaseStorage, name: str, objectives: Sequence[Objective]) -> optuna.Study:
    """Return the study of that name, made if there is none, all objectives maximized.

    Raises:
        InputError: if it exists with other objectives.
    """
    if name not in (study.study_name for study in storage.get_all_studies()):
        with _less_talk():
            storage.create_new_study([StudyDirection.MAXIMIZE] * len(objectives), name)
    study = optuna.load_study(study_name=name, storage=storage)
    names = [objective.name for objective in objectives]
    if study.metric_names is None and not study.get_trials(deepcopy=False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(names)
    elif study.metric_names != names:
        raise InputError(f"study {name!r} has the objectives {study.metric_names}, the configuration asks for {names}")
    return study


def describe(study: optuna.Study, attributes: Mapping[str, Any]) -> None:
    """Give a study user attributes, in their order, those that it does not have so already."""
    stored = study.user_attrs
    for key, value in attributes.items():
        if key not in stored or stored[key] != value:
            study.set_user_attr(key, value)


def only_study(storage: BaseStorage) -> str:
    """Return the name of the one study in a storage.

    Raises:
        InputError: if there is none, or more than one.
    """
    names = sorted(study.study_name for study in storage.get_all_studies())
    if len(names) != 1:
        raise InputError(f"expected one study, found {len(names)}: {', '.join(names) or 'none'}")
    return names[0]


@contextmanager
def _less_talk() -> Iterator[None]:
    """Keep Optuna from announcing on stderr what the caller says better."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _check_journal(path: Path) -> None:
    """Raise InputError unless the file is absent, empty, or begins as a journal does."""
    if not path.exists():
        return
    with path.open("rb") as file:
        first = file.readline(1 << 20)
        more = bool(file.read(1))
    if not first or (not first.endswith(b"\n") and not more and first.startswith(b'{"op_code"')):
        return  # empty, or killed while the very first line was written
    try:
        entry = json.loads(first)
    except ValueError:
        entry = None
    if not isinstance(entry, dict) or "op_code" not in entry:
        raise InputError(f"{path}: not a study: its first line is no entry of an Optuna journal")


def _cut_torn_line(path: Path) -> None:
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        keep = end
        while keep:
            step = min(keep, 1 << 16)
            file.seek(keep - step)
            newline = file.read(step).rfind(b"\n")
            if newline >= 0:
                keep = keep - step + newline + 1
                break
            keep -= step
        if keep < end:
            log.warning("%s: the last line was torn by a crash; %d bytes of it are dropped", path, end - keep)
            file.truncate(keep)


def packed(row: Sequence[float]) -> str | list[float]:
    """Write scores that are all 0 or 1 as a text of digits, others as they are."""
    return "".join(str(int(score)) for score in row) if all(score in (0.0, 1.0) for score in row) else list(row)


def unpacked(row: str | Sequence[float]) -> tuple[float, ...]:
    """Return what `packed` was given."""
    return tuple((np.frombuffer(row.encode("ascii"), np.uint8) - 48.0).tolist()) if isinstance(row, str) else tuple(row)


def _evaluation(recipe: Recipe, attrs: Mapping[str, Any], state: TrialState) -> Evaluation:
    # what a run wrote that was killed before it told the trial's end may be left: the state says what counts
    return Evaluation(
        recipe,
        {task: unpacked(row) for task, row in attrs.get("instances", {}).items()},
        attrs.get("sparsity", 0.0),
        tuple(attrs.get("group_sparsity", ())),
        None if state == TrialState.COMPLETE else attrs.get("reason", "unknown"),
        Stopped(**attrs["stopped"]) if state == TrialState.PRUNED else None,
        attrs.get("seconds merging", 0.0),
        attrs.get("seconds scoring", 0.0),
        tuple(attrs.get("sparseness", ())),
    )
