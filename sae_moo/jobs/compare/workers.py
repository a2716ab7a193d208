"""Searches of a comparison on workers, each a search at a time."""

from __future__ import annotations

import pickle
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from sae_moo.jobs.compare.away import Begin, GoOn, News
from sae_moo.jobs.compare.cells import Cell, Made, known_costs
from sae_moo.study.copies import whole, write
from sae_moo.study.crew import Crew, Ready, Replied
from sae_moo.study.executor import WorkerLost
from sae_moo.study.folder import ComparisonFolder, RunFolder
from sae_moo.study.roster import Roster

LOSSES = 2
"""Workers that may be lost over one search; then it has failed, for it may be what kills them."""
LAST = 2.0
"""Seconds in which workers may still say what is new when Ctrl-C comes; then they are ended."""


@dataclass(slots=True)
class _Out:
    """A search that a worker has.

    Args:
        cell: the search.
        folder: the copy of its run folder that is kept here.
        held: holds it.
    """

    cell: Cell
    folder: RunFolder
    held: ExitStack = field(default_factory=ExitStack)


def run_apart(
    waiting: Sequence[Cell],
    folder: ComparisonFolder,
    crew: Crew,
    begins: Callable[[Cell], None],
    ended: Callable[[Cell, str | None], None],
    made: Callable[[Made], None],
) -> None:
    """Run searches on workers; only this process writes the run folders, which are copies of theirs.

    The search of a worker that is lost goes on with another from what was copied; one over which `LOSSES` workers were
    lost has failed. On Ctrl-C what workers say within `LAST` seconds is copied still.

    Args:
        waiting: the searches, in their order.
        folder: of the comparison.
        crew: the workers, opened by `away.Away`.
        begins: told of a search that begins.
        ended: told of one that ended, and why it failed, if it did.
        made: told of evaluations.

    Raises:
        SaeMooError: what a search raises that cannot be run or resumed, or has no room to write; the others are ended.
        RunError: if no worker is left.
        KeyboardInterrupt: on Ctrl-C; likewise.
    """
    queue, losses = deque(waiting), Counter[Cell]()
    begun: set[Cell] = set()
    idle: list[str] = []
    out: dict[str, _Out] = {}
    roster = Roster(crew)

    def give(worker: str) -> None:
        if not queue:
            idle.append(worker)
            return
        cell = queue.popleft()
        given = out[worker] = _Out(cell, folder.search(cell.config.study.name))
        if cell not in begun:
            begun.add(cell)
            begins(cell)
        given.held.enter_context(given.folder.held())
        costs = None if cell.config.modelled is None else known_costs(folder)
        roster.send(worker, pickle.dumps(Begin(cell.method, cell.seed, whole(given.folder), costs)))

    def keep(worker: str, news: News) -> None:
        for piece in news.pieces:
            write(out[worker].folder, piece)

    def take(worker: str, news: News) -> None:
        given = out[worker]
        keep(worker, news)
        for counts in news.made:
            made(Made(given.cell, *counts))
        if news.ending is None:
            roster.send(worker, pickle.dumps(GoOn()))
            return
        del out[worker]
        given.held.close()
        if news.ending.error is not None:
            raise news.ending.error
        ended(given.cell, news.ending.failure)
        give(worker)

    def lose(worker: str, why: str) -> None:
        if worker in idle:
            idle.remove(worker)
        given = out.pop(worker, None)
        if given is None:
            return
        given.held.close()
        losses[given.cell] += 1
        if losses[given.cell] < LOSSES:
            queue.appendleft(given.cell)
            if idle:
                give(idle.pop())
        else:
            ended(given.cell, f"{LOSSES} workers were lost over it, the last one: {why}")

    def keep_last() -> None:
        due, end = set(out), time.monotonic() + LAST
        while due and (last := crew.hear(max(0.0, end - time.monotonic()))):
            for heard in last:
                if isinstance(heard, Replied):
                    keep(heard.worker, pickle.loads(heard.letter))
                due.discard(heard.worker)

    try:
        roster.begin()
        while queue or out:
            for heard in roster.hear():
                match heard:
                    case Ready(worker):
                        give(worker)
                    case Replied(worker, letter):
                        take(worker, pickle.loads(letter))
                    case WorkerLost(worker, why):
                        lose(worker, why)
    except KeyboardInterrupt:
        keep_last()
        raise
    finally:
        roster.close()
        for given in out.values():  # nothing copied is lost
            given.held.close()
