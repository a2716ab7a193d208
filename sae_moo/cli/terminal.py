"""The whole terminal for as long as something runs, given back as it was."""

from __future__ import annotations

import io
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live

SIGNALS = (signal.SIGTERM, signal.SIGTSTP)  # that end or stop a process without a word; Ctrl-C is an exception
PER_SECOND = 4  # how often a picture is drawn anew


class Canvas:
    """Draws a picture over the whole terminal until it is put away; use it as a context.

    It is the terminal's second screen: a resize leaves nothing behind, and what was on the first one is there again
    afterwards. What others write to stderr meanwhile is kept, and written after that.

    Args:
        console: of a terminal that understands control codes.
        picture: width and height -> rows to show, a renderable each, no more than fit.
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
        self._kept = io.StringIO()
        self._stderr: TextIO = sys.stderr
        self._before: dict[int, Any] = {}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        yield Group(*self._picture(options.max_width, options.height or console.height))

    def __enter__(self) -> Canvas:
        self._stderr = sys.stderr
        self._turn_stderr(self._stderr, self._kept)
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._aside) for number in SIGNALS}
        self._live.start(refresh=True)
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._turn_stderr(self._kept, self._stderr)
        print(self._kept.getvalue(), end="", file=sys.stderr, flush=True)

    def _turn_stderr(self, old: TextIO, new: TextIO) -> None:
        sys.stderr = new
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is old:
                handler.setStream(new)

    def _aside(self, number: int, frame: object) -> None:  # noqa: ARG002  # Python hands it in
        """Give the terminal back before a signal ends or stops this process; take it again if it goes on."""
        self._live.stop()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
        signal.signal(number, self._aside)
        self._live.start(refresh=True)
