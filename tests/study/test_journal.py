from __future__ import annotations

import errno
import io
import os
import resource
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from optuna.study import StudyDirection
from optuna.trial import TrialState
from scripted_study import LIMITS, OBJECTIVES, Setup
from sqlalchemy.exc import OperationalError
from stand_ins import Landscape

from sae_moo.errors import InputError, StorageError
from sae_moo.study import journal
from sae_moo.study.journal import FileLock, absolute, open_storage
from sae_moo.study.trials import TrialStorage


def test_a_database_works_as_well(tmp_path):
    whole = Setup(tmp_path / "whole").run(evaluations=12)
    assert Setup(None, where=f"sqlite:///{tmp_path}/s.db").run(evaluations=12) == whole


@pytest.mark.parametrize("content", ["hello\nworld\n", '{"a": 1}\n', "[1]\n", "\x00\x01binary", "no newline at all"])
def test_a_file_that_is_no_study_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_text(content)
    for write in (True, False):
        with pytest.raises(InputError, match="not a study"):
            open_storage(path, write=write)
    assert path.read_text() == content


@pytest.mark.parametrize("url", ["sqlite:////no/such/folder/x.db", "nosuchdb://x"])
def test_a_storage_that_cannot_be_opened(url):
    with pytest.raises(InputError, match="Optuna cannot open it"):
        open_storage(url, write=True)


def entries(storage):
    return [(each.number, each.state, each.user_attrs, each.values) for each in storage.get_all_trials(0)]


def test_what_was_written_is_read_whoever_wrote_it(tmp_path):
    first = open_storage(tmp_path / "s", write=True)
    first.create_new_study([StudyDirection.MAXIMIZE], "s")
    second = open_storage(tmp_path / "s", write=True)
    rng = np.random.default_rng(0)
    for number in range(40):
        storage = first if rng.random() < 0.5 else second
        trial = storage.create_new_trial(0)
        storage.set_trial_user_attr(trial, "who", (trial, "\n", 0.1))
        if number % 3:
            storage.set_trial_state_values(trial, TrialState.COMPLETE, [1 / 3])
        if rng.random() < 0.7:
            assert len(entries(first)) == number + 1
    assert entries(first) == entries(second) == entries(open_storage(tmp_path / "s", write=False))
    assert [each[2] for each in entries(first)] == [{"who": [number, "\n", 0.1]} for number in range(40)]


def test_a_database_with_settings_in_its_url_is_found_again(tmp_path):
    url = f"sqlite:///{tmp_path}/s.db?timeout=20"
    with pytest.raises(InputError, match=r"no study at .*s\.db$"):
        open_storage(url, write=False)
    Setup(None, where=url).run(evaluations=6)
    assert (tmp_path / "s.db").is_file()
    assert (
        len(TrialStorage(open_storage(url, write=False), "s", OBJECTIVES, LIMITS, Landscape.fingerprints).records())
        == 6
    )


def test_a_lock_that_could_not_be_taken_is_free_afterwards(tmp_path):
    lock = FileLock(tmp_path / "j")
    (tmp_path / "j.lock").mkdir()
    for _ in range(2):
        with pytest.raises(IsADirectoryError):
            lock.acquire()
    (tmp_path / "j.lock").rmdir()
    assert lock.acquire()
    lock.release()


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("sqlite:///s.db", "sqlite:////c/s.db"),
        ("sqlite+pysqlite:///d/s.db?timeout=20", "sqlite+pysqlite:////c/d/s.db?timeout=20"),
        ("sqlite:////d/s.db", "sqlite:////d/s.db"),
        ("postgresql://me:secret@h/d", "postgresql://me:secret@h/d"),
        ("no url://", "no url://"),
        ("mysql://me:secret@h:33o6/d", "mysql://me:secret@h:33o6/d"),
    ],
)
def test_databases_start_from_the_configurations_folder(url, found):
    assert absolute(url, Path("/c")) == found


@pytest.mark.parametrize("fits", [0, 1, 100])
def test_a_full_disk_leaves_a_journal_as_it_was_and_names_it(tmp_path, monkeypatch, fits):
    setup = Setup(tmp_path / "s")
    setup.run(evaluations=3)
    before = setup.path.read_bytes()
    write, left = io.FileIO.write, [fits]

    class Full(io.FileIO):
        def write(self, data):
            if left[0] == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            part = data[: left[0]]
            left[0] -= len(part)
            return write(self, part)

    with monkeypatch.context() as patched:
        patched.setattr(journal, "FileIO", Full)
        with pytest.raises(StorageError, match=r"/s: No space left on device; what was finished before is kept$"):
            setup.run(evaluations=6)
    assert setup.path.read_bytes() == before
    assert setup.run(evaluations=6) == Setup(tmp_path / "whole").run(evaluations=6)


def test_a_full_database_is_one_line_and_goes_on(tmp_path):
    url = f"sqlite:///{tmp_path}/s.db"
    Setup(None, where=url).run(evaluations=3)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "s.db").stat().st_size + 4096, limits[1]))
    try:
        with pytest.raises(
            StorageError, match=r"^storage sqlite:///[^\n]*s\.db: [^\n]*; what was finished before is kept$"
        ):
            Setup(None, where=url).run(evaluations=40)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert Setup(None, where=url).run(evaluations=12) == Setup(tmp_path / "whole").run(evaluations=12)


def test_a_database_whose_tables_somebody_else_makes_meanwhile_is_opened(tmp_path, monkeypatch):
    url, made, pauses = f"sqlite:///{tmp_path}/s.db", [], []

    def opened(where):
        made.append(where)
        if len(made) < 3:  # another process has made some of the tables since Optuna looked for them
            with closing(sqlite3.connect(tmp_path / "s.db")) as file:
                file.execute("CREATE TABLE IF NOT EXISTS studies (study_id INTEGER)")
            raise OperationalError("CREATE TABLE", {}, Exception("table studies already exists"))
        return "open"

    monkeypatch.setattr(journal, "RDBStorage", opened)
    monkeypatch.setattr(journal.time, "sleep", pauses.append)
    assert open_storage(url, write=True) == "open"
    assert pauses == list(journal.PAUSES[:2])


def test_a_database_that_cannot_be_opened_is_tried_once(tmp_path, monkeypatch):
    tried = []

    def opened(where):
        tried.append(where)
        raise OperationalError("CREATE TABLE", {}, Exception("attempt to write a readonly database"))

    monkeypatch.setattr(journal, "RDBStorage", opened)
    with pytest.raises(InputError, match="Optuna cannot open it: attempt to write a readonly database"):
        open_storage(f"sqlite:///{tmp_path}/s.db", write=True)
    assert len(tried) == 1
