"""Searches of a comparison in processes of their own, several at a time."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from sae_moo.config.document import Config
from sae_moo.config.sections import MethodSection
from sae_moo.errors import SaeMooError
from sae_moo.jobs.bench import Bench
from sae_moo.jobs.compare.cells import Cell, Made, failure_of, run_cell
from sae_moo.study.folder import ComparisonFolder


def run_apart(
    config: Config,
    waiting: Sequence[Cell],
    folder: ComparisonFolder,
    workers: int,
    begins: Callable[[Cell], None],
    ended: Callable[[Cell, str | None], None],
    made: Callable[[Made], None],
) -> None:
    """Run searches in processes of their own, so many at a time; a process that dies fails its search only.

    Args:
        config: the comparison's.
        waiting: the searches, in their order.
        folder: of the comparison.
        workers: how many at a time; the processor's cores are shared out among them.
        begins: told of a search that begins.
        ended: told of one that ended, and why it failed, if it did.
        made: told of every evaluation.

    Raises:
        SaeMooError: what a search raises that cannot be run or resumed, or has no room to write; the others are ended.
        KeyboardInterrupt: on Ctrl-C; likewise.
    """
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // workers)
    queue = list(waiting)
    out: dict[Any, tuple[Any, Cell, Connection]] = {}  # by what tells that a process has ended
    try:
        while queue or out:
            while queue and len(out) < workers:
                cell = queue.pop(0)
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(
                    target=_work, args=(config, cell.method, cell.seed, folder, threads, sender), daemon=True
                )
                begins(cell)
                process.start()
                sender.close()
                out[process.sentinel] = (process, cell, receiver)
            ready = wait([*out, *(receiver for _, _, receiver in out.values())])
            for sentinel, (process, cell, receiver) in list(out.items()):
                end = _heard(receiver, cell, made)
                if sentinel not in ready and end is None:
                    continue
                process.join()
                del out[sentinel]
                if end is None:  # what it said last may have come after the first look
                    end = _heard(receiver, cell, made)
                if end is None:
                    end = _End(failure=f"its process died (exit code {process.exitcode})")
                if end.error is not None:
                    raise end.error
                ended(cell, end.failure)
    finally:
        for process, _, _ in out.values():  # nothing stored is lost by that
            process.terminate()
            process.join()


@dataclass(frozen=True, slots=True)
class _End:
    """How a search ended.

    Args:
        failure: why it failed, if the fault is its own.
        error: what ends the comparison: wrong input, no room, Ctrl-C.
    """

    failure: str | None = None
    error: SaeMooError | KeyboardInterrupt | None = None


def _heard(receiver: Connection, cell: Cell, made: Callable[[Made], None]) -> _End | None:
    """Take in what a search has said since, and return how it ended; None if it has not said that."""
    try:
        while receiver.poll():
            said = receiver.recv()
            if isinstance(said, _End):
                return said
            made(Made(cell, *said))
    except (EOFError, OSError):  # it is gone, perhaps within a message
        pass
    return None


def _work(
    config: Config, method: MethodSection, seed: int, folder: ComparisonFolder, threads: int, answer: Connection
) -> None:
    """Run one search in this process and say how it went."""
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        cell = Cell.of(config, method, seed)

        def heard(made: Made) -> None:
            answer.send((made.evaluations, made.new, made.budget))

        answer.send(_End(failure_of(lambda: run_cell(cell, lambda: Bench.open(config), folder, heard))))
    except SaeMooError as error:
        answer.send(_End(error=error))
    except KeyboardInterrupt:
        answer.send(_End(error=KeyboardInterrupt()))
    except Exception as error:
        answer.send(_End(f"{type(error).__name__}: {error}"))
        raise  # a fault of ours; its traceback says where


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, whatever became of it: nothing stored is lost by that."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
