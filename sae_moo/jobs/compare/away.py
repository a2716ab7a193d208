"""A search of a comparison on a worker: it runs in a folder there, and what is new in it is sent to whoever compares.

Whoever compares asks, the worker answers: every letter has one answer, and the next news have to be asked for.
"""

from __future__ import annotations

import logging
import os
import pickle
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sae_moo.config.document import Config
from sae_moo.config.sections import MethodSection
from sae_moo.errors import SaeMooError
from sae_moo.evaluate.costs import CostTable
from sae_moo.jobs.bench import Bench
from sae_moo.jobs.compare.cells import Cell, Made, failure_of, run_cell
from sae_moo.study.copies import Original, Piece
from sae_moo.study.folder import ComparisonFolder

log = logging.getLogger(__name__)

LONGEST = 5.0
"""Seconds that a worker waits for something new before it answers that there is nothing."""
SHORTEST = 0.5
"""Seconds between two answers at least, unless the search has ended."""


@dataclass(frozen=True, slots=True)
class Begin:
    """Begin a search, or go on with one.

    Args:
        method: its method.
        seed: its seed.
        pieces: what its run folder holds.
        costs: what a token costs, as the first of the searches measured it; None: it is not known yet.
    """

    method: MethodSection
    seed: int
    pieces: tuple[Piece, ...]
    costs: CostTable | None


@dataclass(frozen=True, slots=True)
class GoOn:
    """Say what is new."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a search ended.

    Args:
        failure: why it failed, if the fault is its own.
        error: what ends the comparison: wrong input, no room.
    """

    failure: str | None = None
    error: SaeMooError | None = None


@dataclass(frozen=True, slots=True)
class News:
    """What is new of a search.

    Args:
        pieces: in its run folder.
        made: for each evaluation since, how many it has, how many of them of this session, and how many it will have.
        ending: how it ended; None: it goes on.
    """

    pieces: tuple[Piece, ...]
    made: tuple[tuple[int, int, int], ...] = ()
    ending: Ending | None = None


@dataclass(frozen=True, slots=True)
class Away:
    """Opens a worker that runs searches of a comparison, one at a time.

    Args:
        config: the comparison's.
        sharing: how many workers share this machine's processor; 0: whoever begins them says how many threads they
            have.
    """

    config: Config
    sharing: int = 0

    def __call__(self) -> tuple[Callable[[bytes], bytes], dict[str, str]]:
        """Open experts and tasks in this process; return what answers letters, and facts for people.

        Raises:
            InputError: if they cannot be opened here.
        """
        if self.sharing:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // self.sharing))
        alone = self.config.executor.model_copy(update={"kind": "local", "workers": None})
        config = self.config.model_copy(update={"executor": alone})
        bench = Bench.open(config)
        return _Desk(config, bench), {"device": bench.device}


@dataclass(slots=True)
class _Running:
    """A search that runs in a thread of its own."""

    original: Original
    thread: threading.Thread
    changed: threading.Event = field(default_factory=threading.Event)
    made: deque[tuple[int, int, int]] = field(default_factory=deque)
    ending: Ending | None = None


class _Desk:
    """Answers letters, one at a time."""

    def __init__(self, config: Config, bench: Bench) -> None:
        self._config = config
        self._bench = bench
        self._running: _Running | None = None
        self._place = ExitStack()  # of the folder in which it runs

    def __call__(self, letter: bytes) -> bytes:
        match pickle.loads(letter):
            case Begin() as begin:
                self._begin(begin)
        return pickle.dumps(self._news(), pickle.HIGHEST_PROTOCOL)

    def _begin(self, begin: Begin) -> None:
        cell = Cell.of(self._config, begin.method, begin.seed)
        root = Path(self._place.enter_context(tempfile.TemporaryDirectory(prefix="sae-moo-")))
        folder = ComparisonFolder(root)
        original = Original(folder.search(cell.config.study.name), begin.pieces)
        thread = threading.Thread(target=self._run, args=(cell, folder, begin.costs), daemon=True)
        self._running = _Running(original, thread)
        thread.start()

    def _run(self, cell: Cell, folder: ComparisonFolder, costs: CostTable | None) -> None:
        running = self._running
        assert running is not None

        def heard(made: Made) -> None:
            running.made.append((made.evaluations, made.new, made.budget))
            running.changed.set()

        try:
            bench = self._bench if costs is None else self._bench.costed(costs)
            running.ending = Ending(failure_of(lambda: run_cell(cell, lambda: bench, folder, heard)))
        except SaeMooError as error:
            running.ending = Ending(error=error)
        except Exception as error:  # a fault of ours ends this search; it is logged, and told as its failure
            running.ending = Ending(f"{type(error).__name__}: {error}")
            log.exception("%s failed by a fault of this package", cell)
        finally:
            running.changed.set()

    def _news(self) -> News:
        running, start = self._running, time.monotonic()
        assert running is not None
        running.changed.wait(LONGEST)
        if running.ending is None and (early := start + SHORTEST - time.monotonic()) > 0:
            running.thread.join(early)
        running.changed.clear()
        ending = running.ending
        made = tuple(running.made.popleft() for _ in range(len(running.made)))
        pieces = running.original.news()  # after its end was looked at: of a search that has ended they are all
        if ending is not None:
            running.thread.join()
            self._running = None
            self._place.close()
        return News(pieces, made, ending)
