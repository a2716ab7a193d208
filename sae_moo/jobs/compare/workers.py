"""Searches of a comparison in processes of their own, several at a time."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from sae_moo.config.document import Config
from sae_moo.config.sections import MethodSection
from sae_moo.errors import InputError, SaeMooError
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
        InputError: if a search cannot be run or resumed; the others are ended.
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
                kind, text = _heard(receiver, cell, made)
                if sentinel not in ready and not kind:
                    continue
                process.join()
                del out[sentinel]
                if not kind:  # what it said last may have come after the first look
                    kind, text = _heard(receiver, cell, made)
                if not kind:
                    kind, text = "failed", f"its process died (exit code {process.exitcode})"
                if kind == "input":
                    raise InputError(text)
                if kind == "interrupted":
                    raise KeyboardInterrupt
                ended(cell, None if kind == "done" else text)
    finally:
        for process, _, _ in out.values():  # nothing stored is lost by that
            process.terminate()
            process.join()


def _heard(receiver: Connection, cell: Cell, made: Callable[[Made], None]) -> tuple[str, str]:
    """Take in what a search has said since, and return how it ended; two empty texts if it has not said that."""
    try:
        while receiver.poll():
            kind, said = receiver.recv()
            if kind != "made":
                return kind, said
            made(Made(cell, *said))
    except (EOFError, OSError):  # it is gone, perhaps within a message
        pass
    return "", ""


def _work(
    config: Config, method: MethodSection, seed: int, folder: ComparisonFolder, threads: int, answer: Connection
) -> None:
    """Run one search in this process and say how it went."""
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        cell = Cell.of(config, method, seed)

        def heard(made: Made) -> None:
            answer.send(("made", (made.evaluations, made.new, made.budget)))

        failure = failure_of(lambda: run_cell(cell, lambda: Bench.open(config), folder, heard))
        answer.send(("done", "") if failure is None else ("failed", failure))
    except SaeMooError as error:
        answer.send(("input", str(error)))
    except KeyboardInterrupt:
        answer.send(("interrupted", ""))


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, whatever became of it: nothing stored is lost by that."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
