"""A real (pseudo-)terminal, and the signals that a person sends from it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

PROGRAM = """
import time
from rich.console import Console
from rich.text import Text
from sae_moo.cli.terminal import Canvas
with Canvas(Console(), lambda width, height: [Text(f"at work on {width} x {height}")]):
    time.sleep(60)
"""
TALKATIVE = """
import logging, signal, subprocess, sys, time
from rich.console import Console
from rich.text import Text
from sae_moo.cli.terminal import Canvas
logging.basicConfig()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
try:
    with Canvas(Console(), lambda width, height: [Text("at work")]):
        sys.stderr.write("written\\n")
        logging.getLogger("x").warning("logged")
        child = subprocess.Popen(["sh", "-c", "echo said by a child >&2; sleep 3; echo said later >&2"])
        time.sleep(60)
finally:
    print("cleaned up")
"""
BROKEN = """
import sys
from rich.console import Console
from sae_moo.cli.terminal import Canvas
try:
    Canvas(Console(), lambda width, height: 1 / 0).__enter__()
except ZeroDivisionError:
    sys.stderr.write("stderr is there\\n")
"""
TAKEN, GIVEN_BACK, CURSOR = b"\x1b[?1049h", b"\x1b[?1049l", b"\x1b[?25h"


@contextmanager
def running(program: str) -> Iterator[tuple[subprocess.Popen, int]]:
    """A program in a terminal of 80 x 24, and the terminal's other end."""
    main, end = pty.openpty()
    resize(end, 80, 24)
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=end,
        stderr=end,
        stdin=end,
        env={key: os.environ[key] for key in os.environ if key not in ("COLUMNS", "LINES")} | {"TERM": "xterm"},
        process_group=0,
    )
    os.close(end)
    try:
        yield process, main
    finally:
        process.kill()
        process.wait()
        os.close(main)


def test_a_stopped_or_ended_process_gives_the_terminal_back():
    with running(PROGRAM) as (process, main):
        said = read(main, b"at work on 80 x 24")
        assert TAKEN in said
        resize(main, 30, 8)
        read(main, b"at work on 30 x 8")
        frame = (read(main, b"on 30 x 8") + read(main, b"on 30 x 8")).split(b"\x1b[H")[-2]
        assert frame.count(b"\n") == 7, "all of the screen, so that nothing is left on it, and not a row more"
        process.send_signal(signal.SIGTSTP)
        assert CURSOR in read(main, GIVEN_BACK)
        assert b"at work" not in read(main, b"at work", 0.5), "stopped"
        process.send_signal(signal.SIGCONT)
        assert TAKEN in read(main, b"at work")
        process.send_signal(signal.SIGTERM)
        read(main, GIVEN_BACK)
        assert process.wait(30) == -signal.SIGTERM


def test_what_is_written_to_stderr_comes_after_and_an_ending_process_cleans_up():
    with running(TALKATIVE) as (process, main):
        read(main, b"at work")
        read(main, b"at work")
        time.sleep(1)
        process.send_signal(signal.SIGTSTP)
        first = read(main, b"said by a child")
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)  # what continues it before it has stopped is lost
        process.send_signal(signal.SIGCONT)
        read(main, b"at work")
        time.sleep(3)
        process.send_signal(signal.SIGTERM)
        second = read(main, b"cleaned up")
        assert process.wait(30) == 143
    shown, _, kept = first.partition(GIVEN_BACK)
    assert [word in kept for word in (b"written", b"WARNING:x:logged", b"said by a child")] == [True] * 3
    assert not any(word in shown for word in (b"written", b"logged", b"said"))
    shown, _, kept = second.partition(GIVEN_BACK)
    assert b"said later" in kept, "by a child that was there before the stop"
    assert b"said" not in shown
    assert b"written" not in kept, "told once"


def test_a_picture_that_cannot_be_drawn_leaves_the_terminal_as_it_was():
    with running(BROKEN) as (process, main):
        said = read(main, b"stderr is there")
        assert process.wait(30) == 0
    assert said.count(TAKEN) == said.count(GIVEN_BACK)


def resize(handle: int, columns: int, rows: int) -> None:
    fcntl.ioctl(handle, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def read(handle: int, until: bytes, seconds: float = 30.0) -> bytes:
    """What a terminal is sent up to some bytes, or in so many seconds."""
    said, end = b"", time.monotonic() + seconds
    while until not in said and time.monotonic() < end:
        if select.select([handle], [], [], 0.1)[0]:
            said += os.read(handle, 4096)
    assert seconds < 1 or until in said, said
    return said
