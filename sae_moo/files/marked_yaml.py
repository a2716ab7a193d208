"""YAML files read whole, with the line of every value, so that all faults can be told at once and in their places."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from sae_moo.errors import InputError

Key = tuple[str | int, ...]
MOST_VALUES = 100_000  # a few lines of YAML aliases can stand for billions


def read(path: Path, what: str, keys: Iterable[str]) -> tuple[dict[str, Any], dict[Key, str], list[str]]:
    """Read a YAML file that holds one mapping.

    Args:
        path: the file.
        what: what it should be, for messages, e.g. ``configuration``.
        keys: the keys expected at the top, for messages.

    Returns:
        The mapping, key -> ``FILE:LINE``, and one fault for every key that stands twice.

    Raises:
        InputError: if the file cannot be read, is not YAML, or holds something else than a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"cannot read the {what} {path}: {reason}") from error
    return parse(text, str(path), keys)


def parse(text: str, source: str, keys: Iterable[str]) -> tuple[dict[str, Any], dict[Key, str], list[str]]:
    """Read YAML text that holds one mapping; see `read`.

    Args:
        text: the text.
        source: where it is from, for messages.
        keys: the keys expected at the top, for messages.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = yaml.safe_load(text)
        if root is not None and sum(1 for _ in islice(_lines(root), MOST_VALUES + 1)) > MOST_VALUES:
            raise InputError(f"{source}: expected at most {MOST_VALUES} values, aliases counted as often as they stand")
    except yaml.YAMLError as error:
        raise InputError(f"{source}: not YAML: {error}".replace('"<unicode string>"', Path(source).name)) from error
    except RecursionError:
        raise InputError(f"{source}: nested too deeply, or an alias that refers to itself") from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{source}: a value that YAML cannot read: {error}") from error
    if not isinstance(raw, dict) or root is None:
        raise InputError(f"{source}: expected a mapping with the keys {', '.join(keys)}")
    return raw, {key: f"{source}:{line}" for key, line in _lines(root)}, list(_duplicates(root, source))


def override_(raw: dict[str, Any], lines: dict[Key, str], change: str, source: str) -> list[str]:
    """Change `raw`, and `lines` by where that came from, in place by one ``key.path=value``; return what is wrong."""
    path, equals, text = change.partition("=")
    if not equals or not path:
        return [f"{source}: expected key.path=value, e.g. search.population=32"]
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return [f"{source}: the value is not YAML: {str(error).splitlines()[0]}"]
    first, *rest = path.split(".")
    keys: list[str | int] = [first, *(int(part) if re.fullmatch("[0-9]{1,9}", part) else part for part in rest)]
    target: Any = raw
    for i, key in enumerate(keys[:-1]):
        if isinstance(target, dict) and target.get(key) is None:
            target[key] = {}
            lines[tuple(keys[: i + 1])] = source
        if not _holds(target, key):
            return [f"{source}: {dotted(tuple(keys[: i + 1]))}: {_there(target, keys[:i])}"]
        target = target[key]
    if not isinstance(target, dict) and not _holds(target, keys[-1]):
        return [f"{source}: {dotted(tuple(keys))}: {_there(target, keys[:-1])}"]
    target[keys[-1]] = value
    whole = tuple(keys)
    for gone in [each for each in lines if each[: len(whole)] == whole]:
        del lines[gone]  # with all within it
    lines[whole] = source
    return []


def _there(target: Any, keys: list[str | int]) -> str:
    """Return what there is instead of a place that there is not, within a value of these keys."""
    where = dotted(tuple(keys))
    if not isinstance(target, list):
        return f"expected a mapping at {where} to go into, got {target!r}"
    entries = f"{len(target)} entries, number 0 to {len(target) - 1}" if len(target) > 1 else "one entry, number 0"
    return f"{where} has {entries if target else 'no entries'}"


def _holds(target: Any, key: str | int) -> bool:
    if isinstance(target, list):
        return isinstance(key, int) and key < len(target)
    return isinstance(target, dict) and key in target


def place(key: Key, lines: Mapping[Key, str], source: str) -> str:
    """Return ``FILE:LINE`` of a key, or of the nearest one above it, or `source`; with the overrides of what is in it.

    Whether what is wrong with the whole was wrong before it was overridden in part, nobody can tell from its place.
    """
    if key in lines:
        file = lines.get((), source).rpartition(":")[0]  # what lies in the file begins so
        within = (at for each, at in lines.items() if each[: len(key)] == key and key)
        given = [at for at in dict.fromkeys(within) if not at.startswith(f"{file}:")]
        return lines[key] + ("" if not given or lines[key] in given else f" with {' '.join(given)}")
    while key and key not in lines:
        key = key[:-1]
    return lines.get(key, source)


def dotted(key: Key) -> str:
    """Return a key as one writes it: ``tasks[0].name``."""
    return re.sub(r"\.(?=\[)", "", ".".join(f"[{part}]" if isinstance(part, int) else str(part) for part in key))


def refusal(what: str, faults: Iterable[str]) -> InputError:
    """Return the error that lists every fault once, in the order of lines."""
    listed = sorted(dict.fromkeys(faults), key=_line_number)
    number = "one fault" if len(listed) == 1 else f"{len(listed)} faults"
    return InputError(f"the {what} has {number}:\n" + "\n".join(f"  {fault}" for fault in listed))


def _lines(node: yaml.Node, key: Key = ()) -> Iterator[tuple[Key, int]]:
    yield key, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            inner = (*key, name.value)
            for sub, line in _lines(value, inner):
                yield sub, name.start_mark.line + 1 if sub == inner else line
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield from _lines(value, (*key, i))


def _duplicates(node: yaml.Node, source: str, key: Key = ()) -> Iterator[str]:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for name, value in node.value:
            if name.value in seen:
                here = dotted((*key, name.value))
                yield f"{source}:{name.start_mark.line + 1}: {here}: expected every key once, it came before"
            seen.add(name.value)
            yield from _duplicates(value, source, (*key, name.value))
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield from _duplicates(value, source, (*key, i))


def _line_number(fault: str) -> int:
    """Return the line a fault is on; faults of the command line come first."""
    found = re.match(r"[^\n]*?:(\d+): ", fault)
    return int(found.group(1)) if found else 0
