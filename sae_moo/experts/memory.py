"""What is computed once about the experts and kept for all candidates."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class Remembered:
    """Numbers about the experts' own tensors, which no candidate changes: computed once, kept for all candidates."""

    def __init__(self) -> None:
        self._values: dict[Hashable, Any] = {}

    def get(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return what is kept under a key, computed now if it is the first time."""
        if key not in self._values:
            self._values[key] = compute()
        value: T = self._values[key]
        return value

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def find(self, key: Hashable) -> Any:
        """Return what is kept under a key, None if nothing is."""
        return self._values.get(key)

    def put(self, key: Hashable, value: Any) -> None:
        """Keep what was computed elsewhere."""
        self._values[key] = value

    def __len__(self) -> int:
        return len(self._values)
