"""What was computed once on this machine and is worth keeping: small files in the user's cache folder.

Losing them costs time and nothing else, so that a folder that cannot be read or written is no error.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)


def folder(kind: str) -> Path:
    """Return where files of a kind are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sae_moo" / kind


def kept(kind: str, name: str) -> str | None:
    """Return the text kept under a name; None if there is none that can be read."""
    try:
        return (folder(kind) / name).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def keep(kind: str, name: str, content: str | Callable[[Path], object]) -> None:
    """Keep a file, whole or not at all.

    Args:
        kind: what it is, in the plural.
        name: of the file.
        content: its text, or what writes it to a path.
    """
    place = folder(kind)
    partial = place / f"{name}.{os.getpid()}"
    try:
        place.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            partial.write_text(content, encoding="utf-8")
        else:
            content(partial)
        partial.replace(place / name)
    except OSError as error:
        log.info("%s are not kept: %s", kind, error)
