"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sae_moo.errors import InputError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a name beside `path` to write to; the file takes its own name on leaving, and after an error it is gone.

    Args:
        path: of the file; one that is there is replaced.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def check_new(path: Path) -> None:
    """Raise InputError unless a file of that name could be made: it exists, or its folder does not or is closed."""
    if path.exists() or path.is_symlink():
        raise InputError(f"{path}: exists already; give a new name, or remove it")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{path}: the folder {path.parent} cannot be written to")
