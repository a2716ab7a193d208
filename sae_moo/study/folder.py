"""What lies in a run folder, under which name, and what a study says of itself: written and read here alone."""

from __future__ import annotations

import fcntl
import functools
import json
import logging
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from sae_moo.errors import NO_ROOM, InputError, StorageError, nearest
from sae_moo.files.disks import Mount, mount_of
from sae_moo.files.json_text import parsed
from sae_moo.files.room import KEPT, writing
from sae_moo.files.whole import whole_file
from sae_moo.objectives.scores import packed, unpacked
from sae_moo.study.journal import OptunaStorage

log = logging.getLogger(__name__)

RUNS = Path("runs")
"""Where run folders lie unless another place is named."""

JOURNAL = "study.journal"  # the study, unless it lies elsewhere; Optuna's entries. Its lock is called the same + .lock
POINTER = "run.json"  # which study it is, and where
LOCK = "search.lock"  # held by the one process that searches there, which it names
JUDGED = "test.json"  # digest -> task -> scores on the test split, packed
TIMELINE = "timeline.json"  # who was busy when, for trace viewers; made from the study
RESULTS = "compare"  # in the folder of a comparison, by ending


def run_names(root: Path = RUNS) -> list[str]:
    """Return the names of folders under `root`, sorted."""
    return sorted(path.name for path in root.glob("*") if path.is_dir()) if root.is_dir() else []


def runs_there(root: Path = RUNS) -> str:
    """Return which runs there are, as a message ends; nothing if there are none."""
    names = run_names(root)
    return f"; there are {', '.join(names)}" if names else ""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of one run.

    Args:
        path: where it is; it need not exist.
    """

    path: Path

    @classmethod
    def find(cls, run: str | Path, root: Path = RUNS) -> RunFolder:
        """Return the folder of a run that is given by its folder or by its name under `root`.

        Raises:
            InputError: if there is none.
        """
        if run == "":
            raise InputError(f"expected a run folder or the name of a run, got no name{runs_there(root)}")
        path = Path(run) if Path(run).is_dir() else root / run
        if not path.is_dir():
            names, there = run_names(root), runs_there(root)
            place = root.resolve()
            raise InputError(
                f"no run {str(run)!r}{nearest(str(run), names)}: neither a folder nor a name in {place}{there}"
            )
        return cls(path)

    @property
    def journal(self) -> Path:
        """The file of the study, unless that lies elsewhere."""
        return self.path / JOURNAL

    @property
    def timeline(self) -> Path:
        """The file that tells trace viewers who was busy when."""
        return self.path / TIMELINE

    @property
    def begun(self) -> bool:
        """Whether a study was begun here."""
        return (self.path / POINTER).is_file()

    def point(self, study: str, storage: str | None) -> None:
        """Write which study this is.

        Args:
            study: its name.
            storage: the Optuna URL of where it lies; None: in `journal`.
        """
        with whole_file(self.path / POINTER, replace=True) as partial:
            partial.write_text(json.dumps({"study": study, "storage": storage}) + "\n", encoding="utf-8")

    def study(self) -> tuple[str | Path, str | None]:
        """Return where the study lies, a journal or an Optuna URL, and its name; None if that was never written.

        Raises:
            InputError: if what was written cannot be read.
        """
        try:
            pointer = parsed((self.path / POINTER).read_text(encoding="utf-8"))
            storage, name = pointer["storage"] or self.journal, pointer["study"]
            if not isinstance(storage, (str, Path)) or not isinstance(name, str):
                raise TypeError("storage and study are text")
        except FileNotFoundError:
            return self.journal, None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.path / POINTER}: expected the place of a study: {error!r}") from error
        return storage, name

    def judged(self, tasks: Sequence[str]) -> dict[str, dict[str, NDArray[np.float64]]] | None:
        """Return scores on the test split that were kept.

        Args:
            tasks: of these tasks.

        Returns:
            Digest -> task name -> score per instance; None if none were kept so far.

        Raises:
            InputError: if they cannot be read, or are of other tasks.
        """
        path = self.path / JUDGED
        if not path.exists():
            return None
        try:
            kept = dict(parsed(path.read_text(encoding="utf-8")))
            return {digest: {task: np.array(unpacked(rows[task])) for task in tasks} for digest, rows in kept.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: expected scores on the test split: {error!r}; remove the file") from error

    def keep_judged(self, scores: Mapping[str, Mapping[str, NDArray[np.float64]]]) -> None:
        """Keep scores on the test split instead of those that were; nothing where the folder cannot be written."""
        if not os.access(self.path, os.W_OK):
            return
        rows = {digest: {task: packed(row.tolist()) for task, row in tasks.items()} for digest, tasks in scores.items()}
        with whole_file(self.path / JUDGED, replace=True) as partial:
            partial.write_text(json.dumps(rows), encoding="utf-8")

    @contextmanager
    def held(self, aside: Callable[[Path], None] | None = None) -> Iterator[None]:
        """Hold the folder for one writer; it is made, and vanishes again if nothing was written.

        Args:
            aside: an earlier run is put aside (as NAME.1, NAME.2, ...), and this is told where; None: it stays.

        Raises:
            InputError: if it cannot be written, or another process is searching there, or may be.
            StorageError: if there is no room.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = (self.path / LOCK).open("a+", encoding="utf-8", errors="replace")
        except OSError as error:
            if error.errno in NO_ROOM:
                raise StorageError(f"{self.path}: {error.strerror}; {KEPT}") from error
            raise InputError(f"{self.path}: the run folder cannot be written: {error.strerror}") from error
        with handle:
            self._lock(handle)
            if aside is not None and not self._blank:
                number = 1
                while self.path.with_name(f"{self.path.name}.{number}").exists():
                    number += 1
                aside(self.path.rename(self.path.with_name(f"{self.path.name}.{number}")))
                handle.truncate(0)
                with self.held():
                    yield
                return
            try:
                yield
            finally:
                if self._blank:  # refused before anything was stored
                    shutil.rmtree(self.path)
                else:
                    handle.truncate(0)  # whoever ended otherwise is named there still

    @property
    def holder(self) -> Holder | None:
        """Who searches there, or did until it was killed; None if nobody does, or it is not known."""
        try:
            return Holder.read((self.path / LOCK).read_text(encoding="utf-8", errors="replace"))
        except OSError:
            return None

    @property
    def busy(self) -> bool:
        """Whether a process of this machine searches there now; looks without waiting."""
        try:
            with (self.path / LOCK).open("rb") as handle:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # nobody ever did, or nothing can be locked there
            return False
        return False

    @property
    def _blank(self) -> bool:
        return all(path.name == LOCK for path in self.path.iterdir())

    def _lock(self, handle: TextIO) -> None:
        handle.seek(0)
        holder = Holder.read(handle.read())
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = "" if holder is None else f" (process {holder.process}){holder.whereabouts}"
            raise InputError(f"{self.path}: another search is running there{who}") from None
        except OSError as error:  # some network file systems have no locks
            raise InputError(f"{self.path}: the run folder cannot be locked: {error.strerror}") from error
        mount = mount_of(self.path)
        shared = mount is not None and mount.shared
        if mount is not None and shared:
            _tell_limits(mount)
        if holder is not None:
            if shared and not holder.here:
                raise InputError(
                    f"{self.path}: {holder} began to search there and never said that it ended; whether it still runs "
                    f"cannot be seen from this machine. If it does not, remove {self.path / LOCK}"
                )
            log.warning("%s: %s searched there and did not end by itself; what it finished is kept", self.path, holder)
        handle.truncate(0)
        with writing(self.path / LOCK):
            handle.write(Holder.me().text())
            handle.flush()


@functools.cache
def _tell_limits(mount: Mount) -> None:
    """Say once, not for every search of a comparison, what a network file system does not promise."""
    log.warning(
        "the run folder lies on a network file system (%s), where locks may not hold between machines: search there "
        "from one machine at a time",
        mount,
    )


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that holds a run folder.

    Args:
        process: its id.
        host: name of its machine; empty if that was not written.
        since: when it began, as local time to the second, ISO 8601; empty likewise.
    """

    process: int
    host: str = ""
    since: str = ""

    @classmethod
    def me(cls) -> Holder:
        """Return this process, from now on."""
        return cls(os.getpid(), platform.node(), datetime.now().astimezone().isoformat(" ", "seconds"))

    @classmethod
    def read(cls, text: str) -> Holder | None:
        """Return what `text` wrote; None if that is nothing of the kind."""
        process, host, since, *_ = [*text.splitlines(), "", "", ""]
        return cls(int(process), host, since) if process.isdecimal() else None

    def text(self) -> str:
        """Return what `read` reads, a line each."""
        return f"{self.process}\n{self.host}\n{self.since}\n"

    @property
    def here(self) -> bool:
        """Whether it is of this machine, as far as is known."""
        return self.host in ("", platform.node())

    def __str__(self) -> str:
        return f"process {self.process}" + self.whereabouts

    @property
    def whereabouts(self) -> str:
        """Where it is and since when, as far as is known; goes on a sentence."""
        return (f" on {self.host}" if self.host else "") + (f", since {self.since}" if self.since else "")


@dataclass(frozen=True, slots=True)
class ComparisonFolder:
    """The folder of a comparison: a run folder for each search, and results beside them.

    Args:
        path: where it is; it need not exist.
    """

    path: Path

    @property
    def searches(self) -> list[RunFolder]:
        """The folders of its searches that were begun, in the order of their names."""
        there = sorted(self.path.iterdir()) if self.path.is_dir() else []
        folders = [RunFolder(path) for path in there if path.is_dir()]
        return [folder for folder in folders if folder.begun or folder.journal.exists()]

    def search(self, study: str) -> RunFolder:
        """Return the folder of one of its searches."""
        return RunFolder(self.path / study)

    def results(self, ending: str) -> Path:
        """Return the file of results that has this ending."""
        return self.path / f"{RESULTS}.{ending}"


NEEDED = ("config", "directory", "fingerprints", "identity")
"""The attributes without which a study is not known to be ours."""


SHAPES: Mapping[str, Any] = {
    "config": dict,
    "directory": str,
    "fingerprints": {str: str},
    "groups": [str],
    "identity": dict,
    "anchors": {str: [int]},
    "items": {str: {str: str}},
    "exhausted": int,
    "merging": str,
    "batches": {str: int},
    "costs": dict,
}
"""Attribute of a study -> what it holds: a type, a list of one, or a mapping from texts."""


def _fits(value: Any, shape: Any) -> bool:
    """Say whether a value has a shape of `SHAPES`."""
    if isinstance(shape, list):
        return isinstance(value, (list, tuple)) and all(_fits(each, shape[0]) for each in value)
    if isinstance(shape, dict):
        inner = shape[str]
        return isinstance(value, Mapping) and all(isinstance(k, str) and _fits(v, inner) for k, v in value.items())
    return isinstance(value, shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyHeader:
    """What a study says of itself, in its user attributes.

    Args:
        config: the configuration it was made with, or resumed with last, as nested dictionaries.
        directory: where relative paths of it start.
        fingerprints: expert name -> content fingerprint, in the pool's order.
        groups: parameter group names, in the pool's order.
        identity: what the study is bound to; see `bench.Bench.identity`.
        anchors: task name -> the instances of its search split that are asked, where not all are.
        items: task name -> split -> where its items come from, for a reader's eyes.
        exhausted: how many trials there were when the search had nothing left to try, or no forward tokens; None while
            it has.
        merging: how recipes became weights in the session that ran last, for a reader's eyes: by which form of the
            arithmetic, on which device; empty where that is not known.
        batches: what is computed of a candidate -> how many tokens of it at once, where that was measured on the device
            or changed since its memory ran out: scores may depend on it in their last digits.
        costs: what a token costs, as it was measured when the study began (`costs.CostTable`): the speed of every
            candidate is modelled by it; empty where none is.
    """

    config: Mapping[str, Any]
    directory: str
    fingerprints: Mapping[str, str]
    groups: Sequence[str] = ()
    identity: Mapping[str, Any]
    anchors: Mapping[str, Sequence[int]] = field(default_factory=dict)
    items: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    exhausted: int | None = None
    merging: str = ""
    batches: Mapping[str, int] = field(default_factory=dict)
    costs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, attributes: Mapping[str, Any]) -> StudyHeader | None:
        """Return the header in a study's user attributes; None if there is none, or it was never written whole.

        Raises:
            InputError: naming an attribute that does not hold what it should.
        """
        if not set(NEEDED) <= set(attributes):
            return None
        for name, shape in SHAPES.items():
            if name in attributes and not _fits(attributes[name], shape):
                raise InputError(
                    f"the study's attribute {name!r} is damaged: it does not hold what a search writes there"
                )
        return cls(
            config=attributes["config"],
            directory=attributes["directory"],
            fingerprints=attributes["fingerprints"],
            groups=tuple(attributes.get("groups", ())),
            identity=attributes["identity"],
            anchors=attributes.get("anchors", {}),
            items=attributes.get("items", {}),
            exhausted=attributes.get("exhausted"),
            merging=attributes.get("merging", ""),
            batches=attributes.get("batches", {}),
            costs=attributes.get("costs", {}),
        )

    @classmethod
    def of(cls, storage: OptunaStorage, study: str) -> StudyHeader | None:
        """Return what a study says of itself, as `read` does; None, too, if there is no study of that name.

        A search that begins makes its study and then describes it, an attribute at a time: whoever reads the same
        database may see any part of that.
        """
        if study not in (each.study_name for each in storage.get_all_studies()):
            return None
        return cls.read(storage.get_study_user_attrs(storage.get_study_id_from_name(study)))

    def attributes(self) -> dict[str, Any]:
        """Return the user attributes that `read` reads; in the order to write them, what makes it whole last."""
        later: dict[str, Any] = {} if self.exhausted is None else {"exhausted": self.exhausted}
        later |= {"batches": dict(self.batches)} if self.batches else {}
        later |= {"costs": dict(self.costs)} if self.costs else {}
        return {
            "fingerprints": dict(self.fingerprints),
            "groups": list(self.groups),
            "anchors": {task: list(instances) for task, instances in self.anchors.items()},
            "config": dict(self.config),
            "directory": self.directory,
            "items": {task: dict(sources) for task, sources in self.items.items()},
            **later,
            **({"merging": self.merging} if self.merging else {}),
            "identity": dict(self.identity),
        }
