"""What is found on the way through a file: faults, all of them told at once, and notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sae_moo.errors import nearest
from sae_moo.files.marked_yaml import Key, Places, dotted


@dataclass(slots=True)
class Findings:
    """Faults and notes of one file.

    Args:
        places: where its values stand.
        faults: what is wrong.
        notes: what the user should know.
    """

    places: Places
    faults: list[str]
    notes: list[str] = field(default_factory=list)

    def fault(self, key: Key, text: str) -> None:
        """Add a fault with its place."""
        self.faults.append(self.places.fault(key, text))

    def keys(self, key: Key, found: Mapping[Any, Any], known: Sequence[str]) -> None:
        """Note the keys that are read by nobody: mergekit passes over them, and files in public carry some."""
        for name in found:
            if name not in known:
                self.ignored((*key, str(name)), nearest(str(name), known))

    def ignored(self, key: Key, near: str) -> None:
        """Note that a key has no effect."""
        self.notes.append(f"{dotted(key)} has no effect, as in mergekit{near}")


def shown(value: Any) -> str:
    """Return a value as messages show it: of what is nested only the type."""
    return type(value).__name__ if isinstance(value, (dict, list)) else repr(value)
