"""The whole terminal for as long as something runs, given back as it was."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import IO, Any

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live

SIGNALS = (signal.SIGTERM, signal.SIGTSTP)  # that end or stop a process without a word; Ctrl-C is an exception
PER_SECOND = 4  # how often a picture is drawn anew
STDERR = 2


class Canvas:
    """Draws a picture over the whole terminal until it is put away; use it as a context.

    It is the terminal's second screen: a resize leaves nothing behind, and what was on the first one is there again
    afterwards. What this process, its libraries and its children write to stderr meanwhile is kept where that would
    paint over the picture, and written once the terminal is given back; a process that is killed loses it.

    Args:
        console: of a terminal that understands control codes.
        picture: width and height -> rows to show, a renderable each, no more than fit. Called in a thread of its own.
    """

    def __init__(self, console: Console, picture: Callable[[int, int], list[RenderableType]]) -> None:
        self._picture = picture
        self._live = Live(
            console=console,
            screen=True,
            refresh_per_second=PER_SECOND,
            get_renderable=lambda: self,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._stderr: int | None = None  # where it leads, while what is written to it is kept
        self._kept: IO[bytes] | None = None
        self._told = 0  # bytes of it that have been written since
        self._before: dict[int, Any] = {}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        yield Group(*self._picture(options.max_width, options.height or console.height))

    def __enter__(self) -> Canvas:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) == signal.SIG_DFL:  # a handler raises something, which leaves the context
                    self._before[number] = signal.signal(number, self._aside)
        self._take()
        return self

    def __exit__(self, *exception: object) -> None:
        self._give_back()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self) -> None:
        if os.isatty(STDERR):
            sys.stderr.flush()
            if self._kept is None:  # one for good: children go on writing to it
                self._kept = tempfile.TemporaryFile("a+b")  # noqa: SIM115
            self._stderr = os.dup(STDERR)
            os.dup2(self._kept.fileno(), STDERR)
        try:
            self._live.start(refresh=True)
        except BaseException:  # goes on up; even after a Ctrl-C stderr is what it was
            self._give_back()
            raise

    def _give_back(self) -> None:
        self._live.stop()
        if self._stderr is None or self._kept is None:
            return
        sys.stderr.flush()
        os.dup2(self._stderr, STDERR)
        os.close(self._stderr)
        self._stderr = None
        with open(STDERR, "wb", closefd=False) as stderr:
            self._kept.seek(self._told)
            shutil.copyfileobj(self._kept, stderr)
            self._told = self._kept.tell()

    def _aside(self, number: int, frame: object) -> None:  # noqa: ARG002  # Python hands it in
        """Give the terminal back before a signal ends or stops this process; take it again if it goes on."""
        self._give_back()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
        signal.signal(number, self._aside)
        self._take()
