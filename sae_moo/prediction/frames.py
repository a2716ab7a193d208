"""Tables of features as pandas' frames and as CSV files; pandas enters here."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_moo.errors import InputError, first_few, itemized
from sae_moo.files.whole import whole_file
from sae_moo.prediction.extra import absent
from sae_moo.prediction.table import FeatureTable, Key, Numbers

if TYPE_CHECKING:
    import pandas

KEYS = ("first", "second", "task")
"""The columns before the features."""


def _pandas(purpose: str) -> Any:
    try:
        import pandas
    except ImportError as error:
        raise absent("pandas", purpose) from error
    return pandas


def frame(table: FeatureTable) -> pandas.DataFrame:
    """Return a table as a frame: the columns `KEYS`, then one for each feature.

    Raises:
        InputError: if pandas is not installed.
    """
    frames = _pandas("a frame of features")
    keys = {name: [key[place] for key in table.rows] for place, name in enumerate(KEYS)}
    numbers = np.stack(list(table.rows.values())) if table.rows else np.empty((0, len(table.names)))
    return frames.concat(
        [frames.DataFrame(keys, dtype=object), frames.DataFrame(numbers, columns=list(table.names))], axis=1
    )


def write_csv(table: FeatureTable, path: Path, replace: bool = False) -> None:
    """Write a table as CSV, whole or not at all; every number reads back as it was, a missing one is an empty cell.

    Args:
        table: the features.
        path: a new file.
        replace: whether a file that is there is replaced.

    Raises:
        InputError: if the file is taken or cannot be written, if a feature has the name of one of `KEYS`, or if pandas
            is not installed.
        StorageError: if there is no room.
    """
    taken = [name for name in table.names if name in KEYS]
    if taken:
        raise InputError(f"{path}: a feature cannot be named {taken[0]!r}, as a column before the features is")
    rows = frame(table)
    with whole_file(path, replace=replace) as partial:
        rows.to_csv(partial, index=False, lineterminator="\n")


def read_csv(path: Path) -> FeatureTable:
    """Read what `write_csv` wrote, or a table made elsewhere: the columns `KEYS`, then numbers.

    Raises:
        InputError: naming the file and each line and column that cannot be read, or if pandas is not installed.
    """
    frames = _pandas(f"{path}: a table of features")
    try:
        cells = frames.read_csv(  # this engine tells a cell that a line lacks, which is no text, from an empty one
            path, dtype=str, keep_default_na=False, header=None, skip_blank_lines=False, engine="python"
        )
    except FileNotFoundError:
        raise InputError(f"{path}: expected a CSV file of features, there is none") from None
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise InputError(f"{path}: expected a CSV file of features: {str(error).splitlines()[0]}") from error
    head, *lines = cells.to_numpy().tolist()
    if tuple(head[: len(KEYS)]) != KEYS:
        raise InputError(f"{path}: expected the columns {', '.join(KEYS)}, then features; got {', '.join(head[:4])}")
    rows: dict[Key, Numbers] = {}
    faults = []
    for line, row in enumerate(lines, start=2):
        there = sum(isinstance(text, str) for text in row)
        if there < len(head):
            faults.append(f"line {line}: expected {len(head)} cells, as in the first line, got {there}")
            continue
        key = (row[0], row[1], row[2])
        if key in rows:
            faults.append(f"line {line}: {' + '.join(key)} is there twice")
        numbers = []
        for name, text in zip(head[len(KEYS) :], row[len(KEYS) :], strict=True):
            number = _number(text)
            if number is None:
                faults.append(f"line {line}, {name}: expected a finite number or nothing, got {text!r}")
            numbers.append(math.nan if number is None else number)
        rows[key] = np.array(numbers)
    if faults:
        raise InputError(itemized(f"{path}", first_few(faults)))
    try:
        return FeatureTable(tuple(head[len(KEYS) :]), rows)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _number(text: str) -> float | None:
    """Return a cell's number, NaN for an empty one; None if it holds something else."""
    if text.strip().lower() in ("", "nan"):
        return math.nan
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
