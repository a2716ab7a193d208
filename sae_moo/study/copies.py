"""A run folder that is kept elsewhere while a search runs in it: what is new there is sent, and written to the copy.

A journal only grows, and of it what was added is sent; other files are replaced whole. Locks stay where they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sae_moo.files.room import writing
from sae_moo.files.whole import whole_file
from sae_moo.study.folder import JOURNAL, LOCK, RunFolder


@dataclass(frozen=True, slots=True)
class Piece:
    """What is new in a file of a run folder.

    Args:
        name: of the file.
        content: what was added to it, or all of it.
        start: where in the file that begins, in bytes; None: it replaces the file.
    """

    name: str
    content: bytes
    start: int | None = None


class Original:
    """A run folder in which a search runs, as another process keeps a copy of it.

    Args:
        folder: where the search runs.
        pieces: what the copy holds when it begins; written into the folder.
    """

    def __init__(self, folder: RunFolder, pieces: Sequence[Piece] = ()) -> None:
        self._folder = folder
        self._sent: int | None = 0  # bytes of the journal; None: it is sent anew
        self._seen: dict[str, tuple[int, int]] = {}  # name of another file -> when and how large it was written
        folder.path.mkdir(parents=True, exist_ok=True)
        for piece in pieces:
            write(folder, piece)
        self.news()
        if any(piece.name == JOURNAL and not piece.content.endswith(b"\n") for piece in pieces):
            self._sent = None  # whoever kept the copy was killed within a line, which is cut on opening

    def news(self) -> tuple[Piece, ...]:
        """Return what is new since the last time; a process that writes meanwhile may be anywhere in its writing."""
        pieces = []
        for path in _files(self._folder):
            if path.name == JOURNAL:
                pieces += self._added(path)
                continue
            found = path.stat()
            now = found.st_mtime_ns, found.st_size
            if self._seen.get(path.name) != now:
                self._seen[path.name] = now
                pieces.append(Piece(path.name, path.read_bytes()))
        return tuple(pieces)

    def _added(self, journal: Path) -> list[Piece]:
        """Return the entries that were added to a journal, whole ones only; all of it if it was cut."""
        with journal.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = None if self._sent is None or size < self._sent else self._sent
            file.seek(start or 0)
            added = file.read()
        added = added[: added.rfind(b"\n") + 1]
        self._sent = (start or 0) + len(added)
        return [Piece(journal.name, added, start)] if added or start is None else []


def whole(folder: RunFolder) -> tuple[Piece, ...]:
    """Return all that a run folder holds; nothing if there is none."""
    return tuple(Piece(path.name, path.read_bytes()) for path in _files(folder))


def write(folder: RunFolder, piece: Piece) -> None:
    """Write what is new to a copy.

    Raises:
        ValueError: if a piece does not go on where the copy ends.
        StorageError: if there is no room.
    """
    path = folder.path / piece.name
    if piece.start is None:
        with whole_file(path, replace=True) as partial:
            partial.write_bytes(piece.content)
        return
    with writing(path), path.open("ab") as file:
        if file.tell() != piece.start:
            raise ValueError(f"{path}: expected what goes on at byte {file.tell()}, got a piece from {piece.start}")
        file.write(piece.content)


def _files(folder: RunFolder) -> Iterator[Path]:
    for path in sorted(folder.path.iterdir()) if folder.path.is_dir() else ():
        if path.is_file() and path.name != LOCK and path.suffix != ".lock" and not path.name.startswith("."):
            yield path
