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

PROGRAM = """
import time
from rich.console import Console
from rich.text import Text
from sae_moo.cli.terminal import Canvas
with Canvas(Console(), lambda width, height: [Text(f"at work on {width} x {height}")]):
    time.sleep(60)
"""
TAKEN, GIVEN_BACK, CURSOR = b"\x1b[?1049h", b"\x1b[?1049l", b"\x1b[?25h"


def test_a_stopped_or_ended_process_gives_the_terminal_back():
    main, end = pty.openpty()
    resize(end, 80, 24)
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdout=end,
        stderr=end,
        stdin=end,
        env={**os.environ, "TERM": "xterm"},
        process_group=0,
    )
    os.close(end)
    try:
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
    finally:
        process.kill()
        process.wait()
        os.close(main)


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
