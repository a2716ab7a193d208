"""Where studies lie: a journal file with one writer unless a URL names another place; anything that Optuna offers."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import threading
import time
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, TypeAlias

import optuna
from optuna.exceptions import DuplicatedStudyError, StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState

from sae_moo.errors import NO_ROOM, Hint, InputError, SaeMooError, StorageError, no_room
from sae_moo.files.room import KEPT
from sae_moo.objectives import Objective

log = logging.getLogger(__name__)

OptunaStorage: TypeAlias = BaseStorage

_LINE = json.JSONEncoder(separators=(",", ":"), check_circular=False)

ATTRIBUTES = ("user_attr", "system_attr", "param_name")
"""Keys of the entries that add something to a trial or a study."""

PAUSES = (0.2, 0.5, 1.0)
"""Seconds between attempts to open a database in which somebody else is making the tables."""


class FileLock:
    """Exclusive lock of a journal that dies with its process, unlike a lock file; for local disks."""

    def __init__(self, journal: Path) -> None:
        self._path = journal.with_name(journal.name + ".lock")
        self._handle: int | None = None
        self._threads = threading.Lock()  # flock is between processes only
        self._holder: int | None = None  # the thread that has it

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
        self._handle, self._holder = handle, threading.get_ident()
        return True

    def release(self) -> None:
        """Give the lock back; nothing, if this thread does not have it."""
        if self._handle is not None and self._holder == threading.get_ident():
            os.close(self._handle)
            self._handle = self._holder = None
            self._threads.release()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Have the lock, however that is left."""
        try:
            self.acquire()
            yield
        finally:
            self.release()


class JournalFile(JournalFileBackend):
    """Optuna's journal file, several entries of which are written at once, and waited for only where something ends.

    Args:
        path: the journal.

    Attributes:
        path: the journal.
        size: of the file in bytes after what was last appended here; None: nothing was.
    """

    def __init__(self, path: Path) -> None:
        lock = FileLock(path)
        super().__init__(str(path), lock_obj=lock)  # type: ignore[arg-type]  # it has acquire and release
        self.path = path
        self._own_lock = lock
        self._least = 0  # bytes that were read or appended here: entries that nobody may take away
        self.size: int | None = None

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append entries; see `append`. Nobody waits for the disk where a trial begins.

        Nor where a trial or a study gets an attribute: what makes it worth keeping is waited for later.
        """
        last = logs[-1]
        begins = "study_id" in last and last.get("state") == TrialState.RUNNING
        self.append(logs, wait=not (begins or any(key in last for key in ATTRIBUTES)))

    def append(self, entries: Sequence[Mapping[str, Any]], *, wait: bool, behind: int | None = None) -> int | None:
        """Append entries, a line each, all of them or none.

        Args:
            entries: as Optuna writes them.
            wait: whether to wait until they are on the disk.
            behind: size that the file must have, in bytes; None: any.

        Returns:
            The size of the file then, in bytes; None if it was another one before than it must have, and nothing was
            appended.

        Raises:
            StorageError: if the disk has no room for them, or fails; if the file has lost what was in it, or ends with
                what is no entry.
        """
        lines = "".join([_LINE.encode(entry) + "\n" for entry in entries]).encode()
        try:
            with self._own_lock.held():
                size = self._checked_size()
                if behind is not None and behind != size:
                    return None
                if size != self.size and (fault := _fault_at_end(self.path)):
                    raise StorageError(f"{self.path}: {fault}; {KEPT}")
                self._append(lines, wait=wait)
                self.size = self._least = size + len(lines)
                return self.size
        except OSError as error:
            raise StorageError(f"{self.path}: {error.strerror or error}; {KEPT}") from error

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Yield the entries from a number on.

        Raises:
            StorageError: if the file is gone, has lost what was in it, or a line of it is no entry.
        """
        number = log_number_from
        try:
            self._checked_size()
            for entry in super().read_logs(log_number_from):
                if not isinstance(entry, dict) or "op_code" not in entry:
                    raise StorageError(f"{self.path}: line {number + 1} is no entry of a study")
                number += 1
                yield entry
        except OSError as error:
            raise StorageError(f"{self.path}: {error.strerror or error}") from error
        except ValueError as error:
            raise StorageError(f"{self.path}: line {number + 1} is no entry of a study: {error}") from error
        self._least = max(self._least, self._log_number_offset.get(number, 0))

    def _checked_size(self) -> int:
        """Return the size of the file in bytes."""
        size = os.stat(self._file_path).st_size
        if size < self._least:
            raise StorageError(f"{self.path}: shorter than it was; somebody has cut or replaced it meanwhile")
        return size

    def _append(self, rest: bytes, wait: bool) -> None:
        """Append bytes, all of them or none, and wait for the disk where asked to."""
        with FileIO(self._file_path, "ab") as file:
            size, unwritten = file.seek(0, os.SEEK_END), memoryview(rest)
            try:
                while unwritten:
                    unwritten = unwritten[file.write(unwritten) :]
                if wait:
                    os.fsync(file.fileno())
            except OSError:
                file.truncate(size)
                raise


class Journal(JournalStorage):
    """A journal file as Optuna's storage.

    Args:
        file: the journal.
    """

    def __init__(self, file: JournalFile) -> None:
        super().__init__(file)
        self.file = file


@contextmanager
def reached(storage: BaseStorage) -> Iterator[None]:
    """Name a database in the error of reading or writing it; a journal names itself.

    Raises:
        StorageError: instead of whatever Optuna raises for a database that is full, damaged, locked or gone.
    """
    if not isinstance(storage, RDBStorage):
        yield
        return
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        raise StorageError(f"storage {_without_password(storage.url)}: {_first_line(error)}; {KEPT}") from error


def _has_studies(url: str) -> bool:
    """Say whether a database holds Optuna's tables."""
    from sqlalchemy import create_engine, inspect

    engine = create_engine(url)
    try:
        return inspect(engine).has_table("studies")
    finally:
        engine.dispose()


def _first_line(error: Exception) -> str:
    """Return what a database says, without the statement that Optuna had for it."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    text = str(getattr(cause, "orig", None) or cause or error)
    return text.splitlines()[0] if text else type(error).__name__


def _without_password(url: str) -> str:
    return re.sub(r"//([^/:@]*):[^/@]*@", r"//\1:***@", url)


def sqlite_file(where: str) -> Path | None:
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
        file = sqlite_file(where)
    except (ArgumentError, ValueError):
        return where  # opening it says what is wrong
    if file is None or file.is_absolute():
        return where
    return make_url(where).set(database=str(directory / file)).render_as_string(hide_password=False)


def begun(where: str | Path) -> bool:
    """Say whether there are studies at a place, a journal file or an Optuna URL; nothing is written.

    Raises:
        InputError: if there are none and there can be none.
    """
    if isinstance(where, Path):
        return where.exists()
    from sqlalchemy import create_engine, inspect

    with _blamed(where):
        file, engine = sqlite_file(where), create_engine(where)  # which knows the database; nothing is connected yet
        if file is None or file.exists():
            return inspect(engine).has_table("studies")
        if not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
            why = "cannot be written to" if file.parent.is_dir() else "does not exist"
            raise InputError(f"storage {where}: the folder {file.parent} {why}")
        return False


@contextmanager
def _blamed(where: str) -> Iterator[None]:
    """Turn what a database says into our error."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except SaeMooError:
        raise
    except (SQLAlchemyError, StorageInternalError, RuntimeError, ImportError, ValueError) as error:
        shown, why = _without_password(where), _first_line(error)
        if no_room(error) is not None:
            raise StorageError(f"storage {shown}: {why}; {KEPT}") from error
        raise InputError(f"storage {shown}: Optuna cannot open it: {why}") from error


def _database(url: str) -> RDBStorage:
    """Open a database, in which Optuna makes its tables where there are none.

    Whoever begins at the same time may make them first: Optuna then fails over tables that it did not find before.
    """
    from sqlalchemy.exc import SQLAlchemyError

    for pause in () if _has_studies(url) else PAUSES:
        try:
            return RDBStorage(url)
        except SQLAlchemyError:
            if not _has_studies(url):
                raise
            time.sleep(pause)
    return RDBStorage(url)


def open_storage(where: str | Path, write: bool) -> BaseStorage:
    """Open a journal file or an Optuna URL.

    A journal whose last line was torn by a crash is cut back to its last whole line, when opened for writing only.

    Raises:
        InputError: if it is missing (for reading), not a study, or cannot be written.
    """
    if isinstance(where, str) and "://" in where:
        with _blamed(where):
            file = sqlite_file(where)
            if write or (_has_studies(where) if file is None else file.is_file()):  # Optuna would make empty ones
                return _database(where)
        raise InputError(f"no study at {_without_password(where) if file is None else file}")
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
        return Journal(JournalFile(path))
    except OSError as error:
        if error.errno in NO_ROOM:
            raise StorageError(f"{path}: {error.strerror}; {KEPT}") from error
        raise InputError(f"{path}: cannot {'write' if write else 'read'} the study: {error.strerror}") from error
    except InputError:
        raise
    except Exception as error:  # whatever Optuna raises at entries that are not its own
        why = (str(error) or repr(error)).removeprefix(f"{path}: ")
        raise InputError(f"{path}: not a study, or damaged: {why}") from error


def create_or_load(storage: BaseStorage, name: str, objectives: Sequence[Objective]) -> optuna.Study:
    """Return the study of that name, made if there is none, all objectives maximized.

    Raises:
        InputError: if it exists with other objectives, or somebody else makes it at this moment.
    """
    if name not in (study.study_name for study in storage.get_all_studies()):
        try:
            with _less_talk():
                storage.create_new_study([StudyDirection.MAXIMIZE] * len(objectives), name)
        except DuplicatedStudyError:
            message = (
                f"study {name!r}: another process has begun it at this moment; a study is written by one at a time"
            )
            raise InputError(message) from None
    study = optuna.load_study(study_name=name, storage=storage)
    names = [objective.name for objective in objectives]
    if study.metric_names is None and not study.get_trials(deepcopy=False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(names)
    elif study.metric_names != names:
        difference = f"study {name!r} has the objectives {study.metric_names}, the configuration asks for {names}"
        raise InputError(difference, Hint.RENAME)
    return study


def describe(study: optuna.Study, attributes: Mapping[str, Any]) -> None:
    """Give a study user attributes, in their order, those that it does not have so already."""
    stored = study.user_attrs
    for key, value in attributes.items():
        if key not in stored or stored[key] != value:
            study.set_user_attr(key, value)


def holds_trials(storage: BaseStorage, name: str) -> bool:
    """Say whether there is a study of that name in which a trial was begun."""
    names = [study.study_name for study in storage.get_all_studies()]
    return name in names and storage.get_n_trials(storage.get_study_id_from_name(name)) > 0


def only_study(storage: BaseStorage) -> str:
    """Return the name of the one study in a storage.

    Raises:
        InputError: if there is none, or more than one.
    """
    with reached(storage):
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


def _fault_at_end(path: Path) -> str | None:
    """Return what is wrong with the last line of a journal."""
    with path.open("rb") as file:
        size, count = file.seek(0, os.SEEK_END), 1 << 14
        while True:
            start = max(0, size - count)
            file.seek(start)
            tail = file.read(size - start)
            before = tail.rfind(b"\n", 0, max(0, len(tail) - 1))  # the end of the line before
            if before >= 0 or start == 0:
                break
            count *= 4
    last = tail[before + 1 :]
    if not last:
        return None
    if not last.endswith(b"\n"):
        return (
            "its last line is torn, whoever wrote it was killed or still writes; it is dropped when this is run again"
        )
    try:
        entry = json.loads(last)
    except ValueError:
        entry = None
    return None if isinstance(entry, dict) and "op_code" in entry else "its last line is no entry of a study"


def _cut_torn_line(path: Path) -> None:
    if not path.exists():
        return
    with FileLock(path).held(), path.open("rb+") as file:
        end = keep = file.seek(0, os.SEEK_END)
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
