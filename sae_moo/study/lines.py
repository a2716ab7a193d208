"""The lines of a journal: which are whole, what is wrong with the others, and the journal without them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

BLANK = b" \t\r\n\0"  # a power cut leaves zeros where it was about to write
OPENING = b'{"op_code":'  # how Optuna begins every entry

Fault = Literal["torn", "blank", "joined", "garbled"]


@dataclass(frozen=True, slots=True)
class FaultyLine:
    """A line of a journal that is no entry.

    Args:
        number: from 1.
        fault: ``torn``: the last one, without an end; ``blank``: nothing is written there; ``joined``: the torn line
            of a process that died, and behind it an entry of the next one; ``garbled``: something was written that
            cannot be read any more.
        entry: what is whole of it, with its end; empty where nothing is.
    """

    number: int
    fault: Fault
    entry: bytes = b""

    @property
    def mendable(self) -> bool:
        """Whether nothing is lost that was ever written whole, if all but `entry` is left out."""
        return self.fault != "garbled"


def faulty_lines(journal: Path) -> list[FaultyLine]:
    """Return the lines of a journal that are no entries, in their order; the file is read a line at a time."""
    return list(_faults(journal))


def without(journal: Path, faults: Sequence[FaultyLine], target: Path) -> None:
    """Write a journal anew without what is wrong with it.

    Args:
        journal: the file; it is not changed.
        faults: what `faulty_lines` found there.
        target: the file to write.
    """
    entries = {fault.number: fault.entry for fault in faults}
    with journal.open("rb") as source, target.open("wb") as file:
        for number, line in enumerate(source, 1):
            file.write(entries.get(number, line))


def _faults(journal: Path) -> Iterator[FaultyLine]:
    worker = None  # who wrote the last whole entry
    with journal.open("rb") as file:
        for number, line in enumerate(file, 1):
            entry = _entry(line)
            if entry is not None and line.endswith(b"\n"):
                worker = entry.get("worker_id")
            elif not line.endswith(b"\n"):
                yield FaultyLine(number, "torn")
            elif not line.strip(BLANK):
                yield FaultyLine(number, "blank")
            else:
                rest = line[line.rfind(OPENING) :] if OPENING in line else b""
                entry = _entry(rest)
                # nothing that came after it was told before the torn one's process had died
                if entry is not None and (not line[: -len(rest)].strip(BLANK) or entry.get("worker_id") != worker):
                    worker = entry.get("worker_id")
                    yield FaultyLine(number, "joined", rest)
                else:
                    yield FaultyLine(number, "garbled")


def _entry(line: bytes) -> dict[str, Any] | None:
    """Return the entry that a line holds; None if it holds none."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) and "op_code" in entry else None
