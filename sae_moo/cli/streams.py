"""Standard output and stderr, which may be closed, have a reader that leaves, or lie on a disk that is full."""

from __future__ import annotations

import io
import os
import sys
from typing import IO


class NamedOutput(io.TextIOWrapper):
    """Standard output that is named in its errors, as files are; characters that it does not know are shown as ?."""

    def write(self, text: str) -> int:
        """Write text."""
        try:
            return super().write(text)
        except OSError as error:
            raise _named(error) from None

    def flush(self) -> None:
        """Hand on what was written."""
        try:
            super().flush()
        except OSError as error:
            raise _named(error) from None


def _named(error: OSError) -> OSError:
    return OSError(error.errno, error.strerror, "standard output")  # of the same class: errno says which


def open_streams() -> None:
    """Make this process's standard output and stderr what commands expect of them."""
    out, err = sys.stdout, sys.stderr  # None where they were closed
    if isinstance(out, io.TextIOWrapper):
        encoding, buffering = out.encoding, out.line_buffering
        sys.stdout = NamedOutput(out.detach(), encoding, "replace", line_buffering=buffering)
    if isinstance(err, io.TextIOWrapper):
        err.reconfigure(errors="replace")


def tell(text: str) -> None:
    """Say something on stderr, where there is anybody to say it to."""
    try:
        print(f"sae-moo: {text}", file=sys.stderr, flush=True)
    except OSError:  # it lies on a full disk itself, or its reader has left: the exit code says it then
        let_go_of(sys.stderr)


def unprinted() -> str | None:
    """Return what to say of standard output that did not take all that was printed; None if it did."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()  # not at the interpreter's end, where a full disk would be a traceback
    except BrokenPipeError:
        let_go_of(sys.stdout)
    except OSError as error:  # what was printed is still in its buffer
        let_go_of(sys.stdout)
        return f"{error.filename or 'standard output'}: {error.strerror}"
    return None


def let_go_of(stream: IO[str]) -> None:
    """Forget a reader that has left (e.g. head), or a full disk: the interpreter flushes once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
