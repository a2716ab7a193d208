"""Files of JSON objects, one a line or all in one list, read with the place of each; other files are called by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sae_moo.errors import InputError, shown
from sae_moo.files.json_text import parsed

T = TypeVar("T")
BINARY = {
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"\x1f\x8b": "a gzip archive",
    b"PK\x03\x04": "a zip archive or a spreadsheet",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"BZh": "a bzip2 archive",
    b"SQLite format 3": "an SQLite database",
    b"\x80\x04": "a Python pickle",
    b"\x80\x05": "a Python pickle",
    b"\xff\xfe": "text in UTF-16",
    b"\xfe\xff": "text in UTF-16",
}
"""How files begin that are taken for JSON lines by mistake."""
EXPECTED = "a JSON object a line, or one JSON list of objects"


def read(path: Path, what: str, take: Callable[[Any], T]) -> tuple[list[T], list[str]]:
    """Read a file of JSON values.

    Args:
        path: the file.
        what: what it holds, for messages.
        take: makes of a value what is returned; raises ValueError saying what was expected.

    Returns:
        What was made of the values, and a fault for each line that is not JSON and each value that was not taken, with
        its place (``FILE:LINE``, or ``FILE, entry N`` of a list).

    Raises:
        InputError: if the file cannot be read, or is of another kind altogether.
    """
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path}: cannot read {what}: {why}") from error
    other = next((name for begins, name in BINARY.items() if content.startswith(begins)), None)
    if other is not None:
        raise InputError(f"{path}: cannot read {what}: expected {EXPECTED}; this is {other}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot read {what}: expected text in UTF-8: {error}") from error
    lines = text.split("\n")  # splitlines also cuts at U+2028, which JSON allows
    number, first = next(((i, line) for i, line in enumerate(lines, start=1) if line.strip()), (1, ""))
    if first.strip() and first.lstrip()[0] not in "{[":
        raise InputError(f"{path}:{number}: expected {EXPECTED}; got {shown(first.strip())}{_table(path, first)}")
    if not _is_json(first):  # spread over lines
        try:
            whole = parsed(text)
        except ValueError as error:
            if first.lstrip().startswith("["):
                raise InputError(f"{path}: cannot read {what}: the JSON list that begins it is {error}") from error
        else:
            if isinstance(whole, list):
                return _taken(path, whole, take)
            holds = ", ".join(map(repr, list(whole)[:5]))
            raise InputError(f"{path}: expected {EXPECTED}; this is one object, with {holds}")
    elif sum(1 for line in lines if line.strip()) == 1 and first.lstrip().startswith("["):
        return _taken(path, parsed(first), take)
    found: list[T] = []
    faults = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.append(take(parsed(line)))
        except ValueError as error:
            faults.append(f"{path}:{number}: {error}")
    return found, faults


def _taken(path: Path, values: list[Any], take: Callable[[Any], T]) -> tuple[list[T], list[str]]:
    found: list[T] = []
    faults = []
    for number, value in enumerate(values, start=1):
        try:
            found.append(take(value))
        except ValueError as error:
            faults.append(f"{path}, entry {number}: {error}")
    return found, faults


def _is_json(line: str) -> bool:
    try:
        parsed(line)
    except ValueError:
        return False
    return True


def _table(path: Path, line: str) -> str:
    """Return how a table becomes lines of JSON, if the file looks like one."""
    separator = next((each for each in "\t,;|" if each in line), None)
    if separator is None or not re.fullmatch(r"[\w\s\"'.,;|-]+", line):
        return ""
    return (
        f'; a table is read by pandas: python -c "import pandas; pandas.read_csv({path.name!r}, sep={separator!r})'
        f".to_json({path.stem + '.jsonl'!r}, orient='records', lines=True)\""
    )
