"""Numbers by place: one for everything, one for each input, or rows of these by parameter group or by tensor.

A recipe writes all of them as numbers and tuples; `Rows` is the one reading of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

from sae_moo.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Scalar: TypeAlias = float | int | bool | str
Param: TypeAlias = Scalar | tuple[float, ...] | tuple[tuple[float, ...], ...]
Weights: TypeAlias = tuple[float, ...] | tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Rows:
    """What holds where.

    Args:
        rows: numbers, a row for each parameter group or for each tensor, in the pool's order; or a single row. A row
            holds one number for all inputs of a merge, or one for each.
        placed: whether the rows are by place; if not, the single row holds everywhere.
    """

    rows: tuple[tuple[Any, ...], ...]
    placed: bool

    @classmethod
    def of(cls, given: object) -> Rows:
        """Read weights or a setting of a merge: one value, one for each input, or rows of them."""
        if not isinstance(given, tuple):
            return cls(((given,),), placed=False)
        placed = bool(given) and isinstance(given[0], tuple)
        return cls(given if placed else (given,), placed)

    @classmethod
    def of_places(cls, given: float | tuple[float, ...]) -> Rows:
        """Read the sparsity of a pruning: one number, or one for each parameter group or tensor."""
        if isinstance(given, tuple):
            return cls(tuple((value,) for value in given), placed=True)
        return cls(((given,),), placed=False)

    @classmethod
    def gathered(cls, rows: Sequence[tuple[Any, ...]], groups: Sequence[int]) -> Rows:
        """Return rows by tensor in the shortest form: one if all are alike, by group if groups are alike inside.

        Args:
            rows: one for each tensor.
            groups: the parameter group of each tensor; every group has one.
        """
        if len(set(rows)) == 1:
            return cls((rows[0],), placed=False)
        inside: dict[int, set[tuple[Any, ...]]] = {}
        for group, row in zip(groups, rows, strict=True):
            inside.setdefault(group, set()).add(row)
        if all(len(different) == 1 for different in inside.values()):
            return cls(tuple(next(iter(inside[group])) for group in sorted(inside)), placed=True)
        return cls(tuple(rows), placed=True)

    @property
    def value(self) -> tuple[Any, ...]:
        """As a recipe writes it: a row of numbers, or rows by place."""
        return self.rows if self.placed else self.rows[0]

    @property
    def numbers(self) -> tuple[Any, ...]:
        """Every number, row by row."""
        return tuple(number for row in self.rows for number in row)

    def fits(self, *places: int) -> bool:
        """Say whether there are as many rows as there are places of some kind (groups, tensors), or one for all."""
        return not self.placed or len(self.rows) in places

    def at(self, position: int, group: int, groups: int) -> tuple[Any, ...]:
        """Return the row that holds for one tensor.

        Args:
            position: of the tensor in the pool's order.
            group: the tensor's parameter group.
            groups: how many groups there are; as many rows are rows by group.
        """
        if not self.placed:
            return self.rows[0]
        return self.rows[group if len(self.rows) == groups else position]

    def of_group(self, group: int) -> float:
        """Return the one number of a parameter group, of what `of_places` has read by group."""
        return float(self.rows[group if self.placed else 0][0])

    def per_group(self, groups: int) -> NDArray[np.float64]:
        """Return a row for each group, the mean of all rows where they are by tensor; shape (groups, row's length)."""
        import numpy as np  # here, so that what only reads the catalogues starts at once

        rows, widths = self.rows, set(map(len, self.rows))
        width = max(widths)
        if len(widths) > 1:
            rows = tuple(row * width if len(row) == 1 else row for row in rows)
        table = np.array(rows, dtype=np.float64)
        if self.placed and len(table) == groups:
            return table
        return np.broadcast_to(table.mean(axis=0) if self.placed else table[0], (groups, width))

    def column(self, i: int) -> Iterator[Any]:
        """Yield every number that belongs to the i-th input of a merge."""
        for row in self.rows:
            yield row[i] if i < len(row) else row[0]


def rounded(value: float) -> float:
    """Round to nine significant digits (all that float32 arithmetic can use), so that a recipe read back is equal.

    Raises:
        ValueError: for NaN or an infinity.
    """
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number, got {value}")
    return float(f"{float(value):.9g}") + 0.0  # + 0.0 turns -0.0 into 0.0: one value, one text


def number(value: object, where: str) -> float:
    """Return what somebody gave as a number, rounded.

    Raises:
        InputError: saying where, if it is none that a recipe can hold.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        try:
            if isinstance(value, (str, bytes)) or str(getattr(value, "dtype", type(value).__name__)).endswith("bool"):
                raise TypeError  # float() would read some
            value = float(value)  # type: ignore[arg-type]  # numpy scalars arrive here
        except (TypeError, ValueError):
            raise InputError(f"{where}: expected a number, got {value!r}") from None
    try:
        return rounded(value)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{where}: {error}") from None


def numbers(values: Any, where: str) -> Any:
    """Return what somebody gave as a row of numbers, or as rows of them; see `number`."""
    entries = _entries(values, where)
    kinds = set(map(type, entries))
    rows: Sequence[Sequence[object]]
    if kinds <= {tuple, list} and kinds:
        rows = entries  # type: ignore[assignment]  # as nearly all tables come
    elif not all(hasattr(kind, "__len__") for kind in kinds) or all(issubclass(kind, (str, bytes)) for kind in kinds):
        return _row(entries, where)
    else:
        rows = [_entries(row, where) for row in entries]
    widths = set(map(len, rows))
    if len(widths) == 1 and (width := widths.pop()):  # a table is looked at as one row
        return tuple(zip(*[iter(_row(list(chain.from_iterable(rows)), where))] * width, strict=True))
    return tuple(_row(row, where) for row in rows)


def _entries(values: Any, where: str) -> Sequence[object]:
    """Return what is in a row; what has no order, or is text, is none."""
    if isinstance(values, (tuple, list)):
        return values
    if not isinstance(values, (str, bytes, bytearray, Mapping, Set)):
        try:
            return list(values)
        except TypeError:
            pass
    raise InputError(f"{where}: expected numbers or rows of numbers, got {values!r}")


def _row(values: Sequence[object], where: str) -> tuple[float, ...]:
    # nearly all rows are of ordinary floats; their sum is finite only if all of them are, else each is looked at
    if set(map(type, values)) == {float} and math.isfinite(sum(values)):  # type: ignore[arg-type]
        return tuple([_ordinary(value) for value in values])  # type: ignore[arg-type]
    return tuple(number(value, where) for value in values)


def _ordinary(value: float) -> float:
    """Return `rounded` of a finite number, sooner where it has few digits, as what searches draw has."""
    if -1e5 < value < 1e5 and (short := round(value * 1e4) / 1e4) == value:
        return short  # nearest to a decimal of at most nine digits; -0.0 has become 0.0
    return float(f"{value:.9g}") + 0.0
