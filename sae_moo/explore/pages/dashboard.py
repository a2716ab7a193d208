"""optuna-dashboard over a study."""

from __future__ import annotations

import abc
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from sae_moo.errors import InputError
from sae_moo.explore.draw.learned import moves_of, panels_of
from sae_moo.explore.history import generations, hypervolumes
from sae_moo.explore.pages.notes import Notes, notes_of, plain
from sae_moo.explore.view import View
from sae_moo.searchers.ratio import RATIO
from sae_moo.study.journal import OptunaStorage
from sae_moo.study.trials import readable, study_of, trial_of

if TYPE_CHECKING:
    from sae_moo.explore.draw.page.plots import Figure

HEIGHT = 450  # pixels; the dashboard's own figures have as many
HOST = "127.0.0.1"  # the dashboard can edit and delete trials: it is for this machine only


FRESH = 20.0  # s that notes and figures are shown before the study is read again


@dataclass(frozen=True, slots=True)
class Shown:
    """What the dashboard shows of a study beside what it holds.

    Args:
        notes: in words.
        figures: identifier (letters and hyphens) -> figure, for the study's first page.
    """

    notes: Notes
    figures: Mapping[str, Figure] = field(default_factory=dict)


def shown_of(view: View, run: str) -> Shown:
    """Return the notes and figures of a study as it is now.

    Args:
        view: the study.
        run: what commands call the run.
    """
    from sae_moo.explore.draw.page.front import front_figures
    from sae_moo.explore.draw.page.learned import learning_figure, moves_figure
    from sae_moo.explore.draw.page.plots import generation_figure, hypervolume_figure

    if not view.front:
        return Shown(notes_of(view, run))
    fronts = front_figures(view)
    if len(view.objectives) == 3:
        fronts = fronts[:1]  # three panels have no room here, and the dashboard draws any two objectives itself
    figures = {f"front-{i}": figure for i, figure in enumerate(fronts)}
    figures["hypervolume"] = hypervolume_figure(hypervolumes(view.records, view.objectives))
    found = generations(view.records, RATIO)
    if len(found.number) > 1:
        figures["generations"] = generation_figure(found)
    panels, moves = panels_of(view), moves_of(view)
    if panels:
        figures["learning"] = learning_figure(panels)
    if moves is not None:
        figures["moves"] = moves_figure(view, moves)
    for figure in figures.values():
        figure.update_layout(height=HEIGHT, legend_font_size=11)
    return Shown(notes_of(view, run), figures)


def _passing(cls: type[OptunaStorage]) -> type[OptunaStorage]:
    """Let a storage hand over to ``self.storage`` whatever it does not do itself."""

    def passed(name: str) -> Callable[..., Any]:
        return lambda self, *args, **kwargs: getattr(self.storage, name)(*args, **kwargs)

    for name in sorted(cls.__abstractmethods__):
        setattr(cls, name, passed(name))
    return abc.update_abstractmethods(cls)


@_passing
class _Kept(OptunaStorage):
    """An Optuna storage that keeps what is written of a study to itself, in `written`, and passes nothing on."""

    def __init__(self, storage: OptunaStorage, study: int) -> None:
        self.storage = storage
        self.written: dict[str, Any] = {}
        self._trials = {trial._trial_id: trial for trial in storage.get_all_trials(study, deepcopy=False)}
        self.ids = {trial.number: identity for identity, trial in self._trials.items()}

    def get_trial(self, trial_id: int) -> Any:
        return self._trials[trial_id]

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:  # noqa: ARG002  # there is one
        return dict(self.written)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:  # noqa: ARG002
        self.written[key] = value


@_passing
class Noted(OptunaStorage):
    """An Optuna storage that shows notes and figures of ours beside what it holds; they are never written to it.

    They are computed when they are looked at: they follow a search that is running, and its journal is left to it. A
    note that a reader has edited was written by the dashboard; it is shown instead of ours. Trials are shown as
    `storage.readable` has them.

    Args:
        storage: the storage.
        name: the study that has notes.
        read: computes them.
    """

    def __init__(self, storage: OptunaStorage, name: str, read: Callable[[], Shown]) -> None:
        self.storage = storage
        self._name = name
        self._study = storage.get_study_id_from_name(name)
        self._read = read
        self._lock = threading.Lock()  # requests come in threads of their own
        self._attributes: Sequence[Mapping[str, Any]] = ()
        self._read_at = -FRESH

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Return a study's system attributes, notes and figures among them."""
        stored = self.storage.get_study_system_attrs(study_id)
        return self._with_ours(stored) if study_id == self._study else stored

    def get_all_studies(self) -> list[Any]:
        """Return all studies, notes and figures among their system attributes."""
        studies = self.storage.get_all_studies()
        for study in studies:
            if study._study_id == self._study:
                study.system_attrs = self._with_ours(study.system_attrs)
        return studies

    def get_all_trials(self, study_id: int, deepcopy: bool = True, states: Any = None) -> list[Any]:
        """Return the trials of a study, ours as they are read best."""
        trials = self.storage.get_all_trials(study_id, deepcopy=deepcopy, states=states)
        return readable(trials) if study_id == self._study else trials

    def _with_ours(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        shown = dict(stored)
        for attributes in self._current():
            if not attributes.keys() & stored.keys():  # else it was edited
                shown |= attributes
        return shown

    def _current(self) -> Sequence[Mapping[str, Any]]:
        """Return the attributes that the dashboard would write, a mapping for each note and figure."""
        with self._lock:
            if time.monotonic() - self._read_at >= FRESH:
                try:
                    shown = self._read()
                except InputError as error:  # of a damaged trial; the others can still be looked at
                    shown = Shown(Notes(plain(str(error))))
                self._attributes = attributes_of(shown, self.storage, self._name)
                self._read_at = time.monotonic()
            return self._attributes


def attributes_of(shown: Shown, storage: OptunaStorage, name: str) -> list[dict[str, Any]]:
    """Return what the dashboard's own functions would write to a study to show something, a mapping each.

    Args:
        shown: what to show.
        storage: an Optuna storage; nothing is written to it.
        name: the study.
    """
    from optuna_dashboard import save_note, save_plotly_graph_object

    kept: Any = _Kept(storage, storage.get_study_id_from_name(name))  # type: ignore[abstract]  # `_passing` made it whole
    study = study_of(kept, name)
    found = []

    def take(save: Callable[..., Any], *what: Any, **more: Any) -> None:
        save(*what, **more)
        found.append(kept.written)
        kept.written = {}

    take(save_note, study, shown.notes.study)
    for number, text in shown.notes.trials.items():
        if number in kept.ids:
            take(save_note, trial_of(study, kept.ids[number]), text)
    for identifier, figure in shown.figures.items():
        take(save_plotly_graph_object, study, figure, graph_object_id=identifier)
    return found


def with_notes(storage: OptunaStorage, name: str, read: Callable[[], Shown]) -> OptunaStorage:
    """Return a storage that also shows notes and figures of ours; see `Noted`."""
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
        raise InputError(f"port {port} of {HOST}: {error.strerror}; give another port") from error
    with server:
        ready(f"http://{HOST}:{server.server_port}/dashboard")
        server.serve_forever()
