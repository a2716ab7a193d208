"""optuna-dashboard over a study."""

from __future__ import annotations

import abc
import threading
import time
from collections.abc import Callable, Mapping
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from sae_moo.errors import InputError
from sae_moo.explore.notes import Notes, plain
from sae_moo.storage import OptunaStorage

HOST = "127.0.0.1"  # the dashboard can edit and delete trials: it is for this machine only


FRESH = 20.0  # s that notes are shown before the study is read again


def _passing(cls: type[OptunaStorage]) -> type[OptunaStorage]:
    """Let a storage hand over to ``self.storage`` whatever it does not do itself."""

    def passed(name: str) -> Callable[..., Any]:
        return lambda self, *args, **kwargs: getattr(self.storage, name)(*args, **kwargs)

    for name in sorted(cls.__abstractmethods__):
        setattr(cls, name, passed(name))
    return abc.update_abstractmethods(cls)


@_passing
class Noted(OptunaStorage):
    """An Optuna storage that shows notes of ours beside what it holds; they are never written to it.

    Notes are computed when they are looked at: they follow a search that is running, and its journal is left to it. A
    note that a reader has edited was written by the dashboard; it is shown instead of ours.

    Args:
        storage: the storage.
        name: the study that has notes.
        read: computes them.
    """

    def __init__(self, storage: OptunaStorage, name: str, read: Callable[[], Notes]) -> None:
        self.storage = storage
        self._study = storage.get_study_id_from_name(name)
        self._read = read
        self._lock = threading.Lock()  # requests come in threads of their own
        self._notes: dict[int | None, str] = {}
        self._read_at = -FRESH

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Return a study's system attributes, notes among them."""
        stored = self.storage.get_study_system_attrs(study_id)
        return self._with_notes(stored) if study_id == self._study else stored

    def get_all_studies(self) -> list[Any]:
        """Return all studies, notes among their system attributes."""
        studies = self.storage.get_all_studies()
        for study in studies:
            if study._study_id == self._study:
                study.system_attrs = self._with_notes(study.system_attrs)
        return studies

    def _with_notes(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        from optuna_dashboard._note import note_ver_key, split_body

        shown = dict(stored)
        for trial, text in self._current().items():
            if note_ver_key(trial) not in stored:  # not edited
                shown |= {note_ver_key(trial): 0, **split_body(text, trial)}
        return shown

    def _current(self) -> Mapping[int | None, str]:
        """Return trial id -> note; None stands for the study."""
        with self._lock:
            if time.monotonic() - self._read_at >= FRESH:
                try:
                    notes = self._read()
                except InputError as error:  # of a damaged trial; the others can still be looked at
                    notes = Notes(plain(str(error)))
                to_id = self.storage.get_trial_id_from_study_id_trial_number
                self._notes = {None: notes.study} | {to_id(self._study, n): text for n, text in notes.trials.items()}
                self._read_at = time.monotonic()
            return self._notes


def with_notes(storage: OptunaStorage, name: str, read: Callable[[], Notes]) -> OptunaStorage:
    """Return a storage that also shows notes of ours; see `Noted`."""
    return Noted(storage, name, read)  # type: ignore[abstract]  # `_passing` made it whole


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Say nothing about single requests."""


def serve(storage: OptunaStorage, port: int, ready: Callable[[str], None]) -> None:
    """Serve the dashboard until interrupted.

    Args:
        storage: an open Optuna storage.
        port: TCP port on 127.0.0.1; 0 takes a free one.
        ready: called with the page's address once it is served.

    Raises:
        InputError: if the port is taken.
    """
    from optuna_dashboard import wsgi

    try:
        server = make_server(HOST, port, wsgi(storage), server_class=_Server, handler_class=_Quiet)
    except OSError as error:
        raise InputError(f"port {port} of {HOST}: {error.strerror}; give another --port") from error
    with server:
        ready(f"http://{HOST}:{server.server_port}/dashboard")
        server.serve_forever()
