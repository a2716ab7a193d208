"""A run folder looked over: what is wrong with it, what of that can be mended, and mending it without a loss."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sae_moo.config.document import Config
from sae_moo.errors import InputError, SaeMooError, StorageError, first_few
from sae_moo.experts.pool import ExpertPool
from sae_moo.files.whole import remove, unfinished, whole_file
from sae_moo.objectives.scores import Scores
from sae_moo.recipe import digest
from sae_moo.study.folder import JUDGED, NEEDED, POINTER, RUNS, ComparisonFolder, RunFolder, StudyHeader
from sae_moo.study.journal import OptunaStorage, only_study, open_storage, reached, sqlite_file
from sae_moo.study.lines import FaultyLine, faulty_lines, without
from sae_moo.study.record import Ended, Running, TrialRecord, ended
from sae_moo.study.trials import TrialStorage, study_of

TOLERANCE = 1e-9  # between a stored number and the same one computed again
State = Literal["wrong", "mendable", "mended", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that was found in a run folder.

    Args:
        place: the file, or the part of the study.
        what: what is wrong with it, or worth knowing.
        cure: what can be done about it, or was done; empty: nothing need be, or can be.
        mend: does it, losing nothing; None where a person has to.
        state: ``wrong``, ``mendable`` (by `mend`), ``mended``, or ``note``: nothing is wrong.
    """

    place: str
    what: str
    cure: str = ""
    mend: Callable[[], None] | None = None
    state: State = "wrong"


@dataclass(frozen=True, slots=True)
class Checkup:
    """What came of looking a run folder over.

    Args:
        run: the folder.
        checked: what was looked at, a few words each.
        findings: what was found, in the order of looking.
    """

    run: Path
    checked: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong, or nothing any more."""
        return all(finding.state in ("mended", "note") for finding in self.findings)


def examine(run: str | Path, fix: bool = False, root: str | Path = RUNS) -> Checkup:
    """Look a run folder over, or that of a comparison with all its searches.

    Args:
        run: the folder, or its name under `root`.
        fix: mend what can be mended without losing anything; a journal is copied first.
        root: folder of run folders.

    Raises:
        InputError: if there is no such folder, or it is to be mended and a search is running there.
        StorageError: if there is no room to mend it.
    """
    folder = RunFolder.find(run, Path(root))
    searches = ComparisonFolder(folder.path).searches
    if not searches or folder.begun or folder.journal.exists():
        return _examined(folder, fix)
    parts = [_examined(search, fix) for search in searches]
    named = [replace(finding, place=f"{part.run.name}: {finding.place}") for part in parts for finding in part.findings]
    own = _mended([*_results(ComparisonFolder(folder.path)), *_leftovers(folder.path)], fix)
    return Checkup(folder.path, (f"{len(parts)} searches of a comparison", *_summed(parts)), (*named, *own))


def _summed(parts: Sequence[Checkup]) -> list[str]:
    counts = Counter[str]()
    for part in parts:
        for words in part.checked:
            number, _, what = words.partition(" ")
            counts[what if number.isdecimal() else words] += int(number) if number.isdecimal() else 0
    return [f"{number} {what}" if number else what for what, number in counts.items()]


def _examined(folder: RunFolder, fix: bool) -> Checkup:
    if not fix:
        return _Examination(folder).checkup(fix=False)
    with folder.held():  # nobody searches while it is mended
        return _Examination(folder).checkup(fix=True)


def _mended(findings: Sequence[Finding], fix: bool) -> list[Finding]:
    """Mend what can be, where asked to."""
    done = []
    for finding in findings:
        if fix and finding.mend is not None:
            finding.mend()
            finding = replace(finding, state="mended", mend=None)
        done.append(finding)
    return done


@dataclass(slots=True)
class _Examination:
    """One look at a run folder; parts that need another part whole come after it."""

    folder: RunFolder
    checked: list[str] = field(default_factory=list)
    broken: bool = False  # whether the journal cannot be read until its lines are mended

    def checkup(self, fix: bool) -> Checkup:
        busy = not fix and self.folder.busy  # who mends holds it
        findings = []
        for part in (self._lock, self._lines, self._pointer, self._study):
            findings += _mended(list(part(busy)), fix)
        findings += _mended(_leftovers(self.folder.path), fix)
        return Checkup(self.folder.path, tuple(self.checked), tuple(findings))

    def _lock(self, busy: bool) -> Iterator[Finding]:
        holder = self.folder.holder
        if busy:
            yield Finding("search", f"is running{'' if holder is None else f': {holder}'}", state="note")
        elif holder is not None and holder.process != os.getpid():
            told = "the next search goes on where it was" if holder.here else "if it still runs there, let it"
            yield Finding("search", f"{holder} did not end by itself, or runs on another machine", told, state="note")
        lock = self.folder.journal.with_name(self.folder.journal.name + ".lock")
        if lock.is_symlink() or lock.is_dir():
            yield Finding(
                lock.name, "is no file, so that nothing can lock the journal by it", "removed", partial(remove, lock),
                "mendable",
            )  # fmt: skip

    def _pointer(self, busy: bool) -> Iterator[Finding]:  # noqa: ARG002
        self.checked.append("the pointer to the study")
        try:
            if self.folder.study()[1] is not None:
                return
            why = "is missing: a search was killed before it wrote it"
        except InputError as error:
            why = error.message.partition(": ")[2]
        name = self._only_name()
        if name is None:
            yield Finding(POINTER, why, "the next search of the same configuration writes it")
        else:
            cure = f"written anew: study {name}, in {self.folder.journal.name}"
            yield Finding(POINTER, why, cure, partial(self._point, name), "mendable")

    def _point(self, name: str) -> None:
        damaged = self.folder.path / POINTER
        if damaged.exists():
            _kept_aside(damaged)
        self.folder.point(name, None)

    def _only_name(self) -> str | None:
        """Return the name of the one study in the journal; None if there is no such thing."""
        if not self.folder.journal.is_file():
            return None
        try:
            return only_study(open_storage(self.folder.journal, write=False))
        except SaeMooError:
            return None

    def _lines(self, busy: bool) -> Iterator[Finding]:
        journal = self.folder.journal
        if not journal.is_file():
            return
        faults = faulty_lines(journal)
        if busy and faults and faults[-1].fault == "torn":
            del faults[-1]  # it is being written
        self.checked.append("the lines of the journal")
        mendable = all(fault.mendable for fault in faults)
        self.broken = mendable and any(fault.fault != "torn" for fault in faults)
        words = {
            "torn": "the last line was torn by a crash",
            "blank": "nothing is written there",
            "joined": "a line torn by a crash, and behind it a whole entry",
            "garbled": "cannot be read; what it said is lost",
        }
        for i, fault in enumerate(faults):
            place = f"{journal.name}, line {fault.number}"
            if fault.fault == "garbled":
                cure = "put back a copy of the journal, or start anew, which keeps this one aside"
                yield Finding(place, words[fault.fault], cure)
            elif not mendable:
                yield Finding(place, words[fault.fault], "mended once every line can be")
            else:
                cure = "left out; the journal as it was is kept beside it"
                mend = partial(self._rewrite, faults) if i == 0 else _nothing  # all of them at once
                yield Finding(place, words[fault.fault], cure, mend, "mendable")

    def _rewrite(self, faults: Sequence[FaultyLine]) -> None:
        """Write the journal anew without faulty lines, its earlier content kept beside it.

        Raises:
            InputError: if what would be left is no study; nothing is changed then.
        """
        journal = self.folder.journal
        self.broken = False
        with whole_file(journal, replace=True) as anew:
            without(journal, faults, anew)
            open_storage(anew, write=False)
            with whole_file(_free(journal)) as copy:
                shutil.copyfile(journal, copy)

    def _study(self, busy: bool) -> Iterator[Finding]:
        try:
            where, name = self.folder.study()
        except InputError:
            return  # told of already
        if isinstance(where, str):
            yield from _database(where)
        place = self.folder.journal.name if isinstance(where, Path) else "storage"
        if isinstance(where, Path) and self.broken:
            yield Finding(place, "is read once its lines are mended", state="note")
            return
        try:
            storage = open_storage(where, write=False)
            name = name or only_study(storage)
            with reached(storage):
                attributes = storage.get_study_user_attrs(storage.get_study_id_from_name(name))
        except (InputError, StorageError) as error:
            yield Finding(place, str(error))
            return
        except KeyError:
            yield Finding(place, f"holds no study {name!r}")
            return
        header = StudyHeader.read(attributes)
        if header is None:
            yield self._headless(storage, name, attributes)
            return
        self.checked.append("the attributes of the study")
        try:
            config = Config.from_dict(header.config, header.directory)
        except InputError as error:
            yield Finding("attributes of the study", f"the configuration cannot be read: {error}")
            return
        for key in sorted({"groups", "anchors", "items"} - set(attributes)):
            cure = "the next search of the same configuration writes it"
            yield Finding("attributes of the study", f"{key} is missing", cure, state="note")
        trials = TrialStorage(storage, name, config.objective_list(), config.constraint_list(), header.fingerprints)
        records, damaged = trials.examined()
        for fault in first_few(damaged):
            yield Finding("trials", fault)
        self.checked.append(f"{len(records) + len(damaged)} trials")
        yield from _trials(records, config, header, trials)
        for record in records:
            if isinstance(record, Running) and not busy:
                told = f"trial {record.number} was begun and not ended, and no process is at work on it"
                yield Finding("trials", told, "the next search evaluates it", state="note")
        yield from self._experts(config, header)
        yield from self._judged(config)

    def _headless(self, storage: OptunaStorage, name: str, attributes: Mapping[str, Any]) -> Finding:
        missing = ", ".join(key for key in NEEDED if key not in attributes)
        with reached(storage):
            trials = study_of(storage, name).get_trials(deepcopy=False)
        if trials:
            return Finding("attributes of the study", f"missing: {missing}; {len(trials)} trials cannot be read so")
        cure = "the next search of the same configuration writes them"
        return Finding("attributes of the study", f"missing: {missing}; no trial was begun yet", cure, state="note")

    def _experts(self, config: Config, header: StudyHeader) -> Iterator[Finding]:
        models = config.models
        try:
            pool = ExpertPool.open(
                models.base,
                models.experts,
                relative_to=config.directory,
                roots=models.roots,
                vocabulary=models.vocabulary,
            )
        except InputError as error:
            told = f"cannot be opened, digests are those of the recorded fingerprints: {str(error).splitlines()[0]}"
            yield Finding("experts", told, state="note")
            return
        self.checked.append(f"{len(pool.fingerprints)} models")
        for expert in dict.fromkeys((*header.fingerprints, *pool.fingerprints)):
            if header.fingerprints.get(expert) != pool.fingerprints.get(expert):
                told = f"{expert}: its weights are not those that the study was made with"
                yield Finding("experts", told, "put back the models, or give the configuration's new ones a new study")

    def _judged(self, config: Config) -> Iterator[Finding]:
        path = self.folder.path / JUDGED
        if not path.exists():
            return
        self.checked.append("scores on the test split")
        cure = f"put aside as {_free(path).name}; scores are computed again when they are asked for"
        mend = partial(_kept_aside, path)
        try:
            judged = self.folder.judged([task.name for task in config.tasks]) or {}
        except (InputError, OSError) as error:
            yield Finding(JUDGED, f"cannot be read: {str(error).partition(': ')[2]}", cure, mend, "mendable")
            return
        expected = {task.name: task.test for task in config.tasks}
        for name, scores in judged.items():
            if (why := _unscored(scores, expected)) is not None:
                yield Finding(JUDGED, f"{name[:8]}: {why}", cure, mend, "mendable")
                return


def _nothing() -> None:
    """Done already, with another finding."""


def _trials(
    records: Sequence[TrialRecord], config: Config, header: StudyHeader, trials: TrialStorage
) -> Iterator[Finding]:
    """Yield what of trials does not agree with the rest of them."""
    faults: list[str] = []
    known = {record.number: record for record in records}
    for record in records:
        faults += [f"trial {record.number}: {why}" for why in _contradictions(record, known, header, trials, config)]
    order = sorted(record.told for record in ended(records))
    if order != list(range(len(order))):
        faults.append("the order in which the search was told of them has gaps or repeats")
    for fault in first_few(faults):
        yield Finding("trials", fault)


def _contradictions(
    record: TrialRecord,
    known: Mapping[int, TrialRecord],
    header: StudyHeader,
    trials: TrialStorage,
    config: Config,
) -> Iterator[str]:
    if digest(record.asked, header.fingerprints) != record.asked_digest:
        yield "its digest is not that of its recipe"
    if any(parent >= record.number or parent not in known for parent in record.parents):
        yield f"its parents {record.parents} are no earlier trials"
    if record.asked_after > record.number:
        yield f"it was asked for after {record.asked_after} evaluations, more than there were"
    if not isinstance(record, Ended):
        return
    evaluation = record.evaluation
    if record.repeats is not None:
        first = known.get(record.repeats)
        if first is None or first.identity != record.identity:
            yield f"it repeats trial {record.repeats}, which has another recipe"
    if not 0 <= evaluation.sparsity < 1:
        yield f"its sparsity {evaluation.sparsity} is outside of [0, 1)"
    if bool(header.costs) != (evaluation.speed is not None) and (evaluation.ok or evaluation.stopped is not None):
        yield f"its speed is {evaluation.speed}, the study models {'every' if header.costs else 'no'} candidate's"
        return
    if not evaluation.ok:
        if evaluation.reason == "unknown":
            yield "it failed without a reason"
        return
    expected = {task.name: len(header.anchors.get(task.name, ())) or task.search for task in config.tasks}
    why = _unscored({task: np.array(row) for task, row in evaluation.scores.items()}, expected)
    if why is not None:
        yield why
        return
    for objective in trials.objectives:
        stored, again = record.values[objective.name], objective.value(evaluation)
        if not abs(again - stored) <= TOLERANCE:
            yield f"its {objective.name} is {stored:g}, its scores give {again:g}"


def _unscored(scores: Scores, expected: Mapping[str, int]) -> str | None:
    """Return what is wrong with scores per instance; None if nothing is.

    Args:
        scores: of one model.
        expected: task name -> how many instances it has.
    """
    if set(scores) != set(expected):
        return f"it has scores of {', '.join(scores) or 'no task'}, expected {', '.join(expected)}"
    for task, row in scores.items():
        if len(row) != expected[task]:
            return f"{task} has {len(row)} scores, expected {expected[task]}"
        if not np.all((row >= 0) & (row <= 1)):
            return f"scores of {task} are outside of [0, 1]"
    return None


def _database(url: str) -> Iterator[Finding]:
    """Yield what SQLite finds wrong with its file; other databases see to themselves."""
    file = sqlite_file(url)
    if file is None or not file.is_file():
        return
    cure = "put back a copy; sqlite3 FILE .recover reads what is left of it"
    try:
        connection = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)
        try:
            found = [row[0] for row in connection.execute("PRAGMA integrity_check(8)")]
            found += [
                f"{row[0]}: row {row[1]} refers to none" for row in connection.execute("PRAGMA foreign_key_check")
            ]
        finally:
            connection.close()
    except sqlite3.Error as error:
        found = [str(error)]
    for text in first_few([each for each in found if each != "ok"]):
        yield Finding(str(file), " ".join(text.split()), cure)


def _leftovers(folder: Path) -> list[Finding]:
    """Return what processes that are gone left unfinished in and beside a run folder, and in the current one."""
    places = dict.fromkeys(place.resolve() for place in (folder, folder.parent, Path.cwd()))
    left = [path for place in places for path in unfinished(place)] + sorted(folder.glob("*.tmp"))
    what = "was left unfinished by a process that is gone"
    return [Finding(str(path), what, "removed", partial(remove, path), "mendable") for path in left]


def _results(folder: ComparisonFolder) -> Iterator[Finding]:
    """Yield what is wrong with the results of a comparison; they are made of its searches again at any time."""
    path = folder.results("json")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict) or "methods" not in document:
            raise ValueError("no methods in it")
    except FileNotFoundError:
        yield Finding(path.name, "is not there: the comparison has not ended", state="note")
    except (OSError, ValueError) as error:
        cure = "compare writes it anew"
        yield Finding(
            path.name, f"cannot be read: {error}", f"put aside; {cure}", lambda: _kept_aside(path), "mendable"
        )


def _kept_aside(path: Path) -> None:
    """Give a damaged file another name."""
    path.rename(_free(path))


def _free(path: Path) -> Path:
    """Return a free name for what a file held before it was mended."""
    number = 1
    while path.with_name(f"{path.name}.damaged-{number}").exists():
        number += 1
    return path.with_name(f"{path.name}.damaged-{number}")
