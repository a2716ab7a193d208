"""Features: what is known of two models and a task without merging them; one row for each ordered pair and task."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from sae_moo.errors import InputError, first_few, itemized, nearest

Key: TypeAlias = tuple[str, str, str]
"""First expert, second expert, task."""
Numbers: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class FeatureTable:
    """Named numbers of ordered pairs of experts and tasks; a value.

    Args:
        names: of the features, in the order of each row; the same for every architecture.
        rows: (first, second, task) -> one number for each name. NaN where the models do not have what is measured, e.g.
            no attention; never infinite. Copied, and read-only from then on; in the order given.

    Raises:
        InputError: listing what is wrong with names and rows.
    """

    names: tuple[str, ...]
    rows: Mapping[Key, Numbers]

    def __post_init__(self) -> None:
        names = tuple(self.names)
        faults = [f"a feature is named twice: {name!r}" for name in dict.fromkeys(names) if names.count(name) > 1]
        faults += [
            f"expected a feature's name, got {name!r}" for name in names if not isinstance(name, str) or not name
        ]
        if not names:
            faults.append("expected at least one feature, got none")
        rows: dict[Key, Numbers] = {}
        for key, row in self.rows.items():
            numbers = np.array(row, dtype=np.float64)
            fault = _fault(key, numbers, names)
            if fault is not None:
                faults.append(f"{' + '.join(map(str, key))}: {fault}")
            numbers.setflags(write=False)
            rows[key] = numbers
        if faults:
            raise InputError(itemized("this is no table of features", first_few(faults)))
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "rows", MappingProxyType(rows))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FeatureTable):
            return NotImplemented
        return (
            self.names == other.names
            and list(self.rows) == list(other.rows)
            and all(np.array_equal(row, other.rows[key], equal_nan=True) for key, row in self.rows.items())
        )

    def __reduce__(self) -> tuple[type[FeatureTable], tuple[tuple[str, ...], dict[Key, Numbers]]]:
        return FeatureTable, (self.names, dict(self.rows))

    __hash__ = None  # type: ignore[assignment]  # compared by its numbers, and too large a key

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def experts(self) -> tuple[str, ...]:
        """The experts, in the order in which rows name them."""
        return tuple(dict.fromkeys(name for first, second, _ in self.rows for name in (first, second)))

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, in the order in which rows name them."""
        return tuple(dict.fromkeys(task for _, _, task in self.rows))

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The ordered pairs, in the order of rows."""
        return tuple(dict.fromkeys((first, second) for first, second, _ in self.rows))

    def of(self, first: str, second: str, task: str) -> Numbers:
        """Return the features of an ordered pair on a task; read-only, one number for each of `names`.

        Raises:
            InputError: if there is no such row, saying which of the three names is unknown.
        """
        row = self.rows.get((first, second, task))
        if row is not None:
            return row
        for what, name, known in (
            ("expert", first, self.experts),
            ("expert", second, self.experts),
            ("task", task, self.tasks),
        ):
            if name not in known:
                raise InputError(f"features: there are none of {what} {name!r}{nearest(name, known)}")
        raise InputError(f"features: there are none of {first!r} merged with {second!r}, in this order, on {task!r}")

    def matrix(self, keys: Sequence[Key]) -> Numbers:
        """Return the rows of several keys below each other, shape (keys, features).

        Raises:
            InputError: as `of`.
        """
        if not keys:
            return np.empty((0, len(self.names)))
        return np.stack([self.of(*key) for key in keys])

    def column(self, name: str) -> Numbers:
        """Return one feature of all rows, in their order.

        Raises:
            InputError: if there is no such feature.
        """
        if name not in self.names:
            raise InputError(f"features: there is none named {name!r}{nearest(name, self.names)}")
        place = self.names.index(name)
        return np.array([row[place] for row in self.rows.values()])

    def only(
        self,
        names: Sequence[str] | None = None,
        experts: Iterable[str] | None = None,
        tasks: Iterable[str] | None = None,
    ) -> FeatureTable:
        """Return the part with these features, experts (both of a pair) and tasks; None: all.

        Raises:
            InputError: if there is no such feature.
        """
        unknown = [name for name in names or () if name not in self.names]
        if unknown:
            raise InputError(f"features: there is none named {unknown[0]!r}{nearest(unknown[0], self.names)}")
        places = [self.names.index(name) for name in (self.names if names is None else names)]
        among = self.experts if experts is None else tuple(experts)
        asked = self.tasks if tasks is None else tuple(tasks)
        rows = {
            key: row[places]
            for key, row in self.rows.items()
            if key[0] in among and key[1] in among and key[2] in asked
        }
        return FeatureTable(tuple(self.names[place] for place in places), rows)

    def joined(self, other: FeatureTable) -> FeatureTable:
        """Return the rows of both, those of the other last; a feature that one lacks is missing (NaN) in its rows.

        Raises:
            InputError: if both have a row of the same key with other numbers.
        """
        names = (*self.names, *(name for name in other.names if name not in self.names))
        rows = dict(_spread(self, names))
        for key, row in _spread(other, names).items():
            if key in rows and not np.array_equal(rows[key], row, equal_nan=True):
                raise InputError(f"features of {' + '.join(key)}: there are two rows, and they differ")
            rows[key] = row
        return FeatureTable(names, rows)

    def renamed(self, experts: Mapping[str, str]) -> FeatureTable:
        """Return the table with other names for experts; those not named keep theirs.

        Raises:
            InputError: if two experts would have the same name.
        """
        names = [experts.get(name, name) for name in self.experts]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise InputError(f"features: two experts would be named {twice[0]!r}")
        rows = {
            (experts.get(first, first), experts.get(second, second), task): row
            for (first, second, task), row in self.rows.items()
        }
        return FeatureTable(self.names, rows)


def _fault(key: object, numbers: Numbers, names: tuple[str, ...]) -> str | None:
    """Return what is wrong with a row, None if nothing is."""
    if not (isinstance(key, tuple) and len(key) == 3 and all(isinstance(name, str) and name for name in key)):
        return "expected the names of two experts and a task"
    if key[0] == key[1]:
        return "expected two experts, got one twice"
    if numbers.shape != (len(names),):
        return f"expected {len(names)} numbers, one for each feature, got shape {numbers.shape}"
    infinite = [name for name, number in zip(names, numbers.tolist(), strict=True) if math.isinf(number)]
    return f"expected finite numbers, or NaN where one is missing, got an infinite {infinite[0]}" if infinite else None


def _spread(table: FeatureTable, names: tuple[str, ...]) -> dict[Key, Numbers]:
    """Return the rows of a table under more names, NaN where it has none."""
    places = [names.index(name) for name in table.names]
    rows = {}
    for key, row in table.rows.items():
        wide = np.full(len(names), np.nan)
        wide[places] = row
        rows[key] = wide
    return rows
