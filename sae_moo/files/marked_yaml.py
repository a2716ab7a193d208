"""YAML files read whole, with the line of every value, so that all faults can be told at once and in their places."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import yaml

from sae_moo.errors import InputError

Key = tuple[str | int, ...]
MOST_VALUES = 20_000
"""Entries of a file, aliases counted as often as they stand: a few lines of them can stand for billions."""
MOST_BYTES = 2**20
MOST_BITS = 4096
"""Size of an integer; Python shows none of many more digits."""
MOST_TOLD = 40
"""How many faults of a file are told of."""
LONGEST = 1000
"""Characters of one fault that are told; what it lists may be as long as the file."""
TIME = "tag:yaml.org,2002:timestamp"
PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map")}


UNREADABLE = (ValueError, ArithmeticError, LookupError, AttributeError, TypeError)
"""What PyYAML raises of a scalar that is none of the type its tag says."""


class _Loader(yaml.SafeLoader):
    """Reads what JSON could hold as well: a date is the text that stands there, other tags are refused."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # as PyYAML has it
        first: [(tag, rule) for tag, rule in rules if tag != TIME]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {  # noqa: RUF012
        tag: build for tag, build in yaml.SafeLoader.yaml_constructors.items() if tag is None or tag in PLAIN
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.composed = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose one node, as long as there are not too many."""
        self.composed += 1
        if self.composed > 2 * MOST_VALUES + 1:  # keys are nodes too
            raise TooMuch
        node: yaml.Node | None = super().compose_node(parent, index)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Construct one value, or say where one stands that is not of the type its tag says."""
        try:
            value = super().construct_object(node, deep)
        except UNREADABLE as error:
            told = f"a value that cannot be read: {_told(error)}"
            raise yaml.constructor.ConstructorError(None, None, told, node.start_mark) from error
        if type(value) is int and value.bit_length() > MOST_BITS:
            told = f"expected a number of at most {MOST_BITS} bits"
            raise yaml.constructor.ConstructorError(None, None, told, node.start_mark)
        return value


class TooMuch(Exception):  # told as an InputError by who knows the file
    """A file holds more entries than are read."""


def _told(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


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
    return parse(text_of(path, what), str(path), keys)


def text_of(path: Path, what: str) -> str:
    """Return the text of a YAML file.

    Raises:
        InputError: if it cannot be read, saying that `what` was expected.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"cannot read the {what} {path}: expected at most {MOST_BYTES} bytes")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"cannot read the {what} {path}: {reason}") from error


def documents(text: str) -> list[str]:
    """Return the YAML documents of a text that are not empty, each with as many blank lines before it as there were
    lines: lines are counted as in the whole. What is not YAML is one document.
    """
    starts: list[Any] = []
    try:
        events = list(yaml.parse(text, Loader=yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, RecursionError):
        return [text]
    for event, inside in pairwise(events):
        empty = isinstance(inside, yaml.ScalarEvent) and not inside.value and inside.style is None
        if isinstance(event, yaml.DocumentStartEvent) and not empty:
            starts.append(event.start_mark)
    if not starts:
        return [text]
    marks: list[Any] = [event.end_mark for event in events if isinstance(event, yaml.DocumentEndEvent)]
    bounds = [next(end.index for end in marks if end.index > mark.index) for mark in starts]
    return ["\n" * mark.line + text[mark.index : end] for mark, end in zip(starts, bounds, strict=True)]


def parse(text: str, source: str, keys: Iterable[str]) -> tuple[dict[str, Any], dict[Key, str], list[str]]:
    """Read YAML text that holds one mapping; see `read`.

    Args:
        text: the text.
        source: where it is from, for messages.
        keys: the keys expected at the top, for messages.
    """
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is not None and sum(1 for _ in islice(_lines(root), MOST_VALUES + 1)) > MOST_VALUES:
            raise TooMuch
        duplicates = [] if root is None else list(_duplicates(root, source))  # before merge keys are filled in
        raw = None if root is None else loader.construct_document(root)
        lines = {} if root is None else {key: f"{source}:{line}" for key, line in _lines(root)}
    except TooMuch:
        raise InputError(
            f"{source}: expected at most {MOST_VALUES} values, aliases counted as often as they stand"
        ) from None
    except yaml.YAMLError as error:
        raise InputError(f"{source}: not YAML: {error}".replace('"<unicode string>"', Path(source).name)) from error
    except RecursionError:
        raise InputError(f"{source}: nested too deeply, or an alias that refers to itself") from None
    if not isinstance(raw, dict):
        raise InputError(f"{source}: expected a mapping with the keys {', '.join(keys)}")
    return raw, lines, duplicates


def override_(raw: dict[str, Any], lines: dict[Key, str], change: str, source: str) -> list[str]:
    """Change `raw`, and `lines` by where that came from, in place by one ``key.path=value``; return what is wrong."""
    path, equals, text = change.partition("=")
    if not equals or not path:
        return [f"{source}: expected key.path=value, e.g. search.population=32"]
    try:
        value = _Loader(text).get_single_data()
    except (yaml.YAMLError, RecursionError, TooMuch) as error:
        return [f"{source}: the value is not YAML: {_told(error)}"]
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


class Places:
    """Where the values of a file stand, and which of them were overridden.

    Args:
        lines: key -> ``FILE:LINE``, or what a value was overridden by.
        source: what to call a place of which nothing is known.
    """

    def __init__(self, lines: Mapping[Key, str], source: str) -> None:
        file = lines.get((), source).rpartition(":")[0]  # what lies in the file begins so
        self._lines, self._source = lines, source
        self._given = [(key, at) for key, at in lines.items() if not at.startswith(f"{file}:")]

    def fault(self, key: Key, text: str) -> str:
        """Return a fault as it is told: where, of which key if there is one, and what is wrong."""
        return f"{self.of(key)}: {dotted(key)}: {text}" if key else f"{self.of(key)}: {text}"

    def of(self, key: Key) -> str:
        """Return ``FILE:LINE`` of a key, of the nearest above it, or the source; with the overrides of what is in it.

        Whether what is wrong with the whole was wrong before it was overridden in part, nobody can tell from its place.
        """
        if key in self._lines:
            here = self._lines[key]
            given = list(dict.fromkeys(at for each, at in self._given if each[: len(key)] == key and key))
            return here + ("" if not given or here in given else f" with {' '.join(given)}")
        while key and key not in self._lines:
            key = key[:-1]
        return self._lines.get(key, self._source)


def dotted(key: Key) -> str:
    """Return a key as one writes it: ``tasks[0].name``."""
    return re.sub(r"\.(?=\[)", "", ".".join(f"[{part}]" if isinstance(part, int) else str(part) for part in key))


def refusal(what: str, faults: Iterable[str]) -> InputError:
    """Return the error that lists every fault once, in the order of lines; of very many, the first and their number."""
    listed = sorted(dict.fromkeys(faults), key=_line_number)
    number = "one fault" if len(listed) == 1 else f"{len(listed)} faults"
    told = [fault if len(fault) <= LONGEST else f"{fault[:LONGEST]}..." for fault in listed[:MOST_TOLD]]
    more = [f"... and {len(listed) - MOST_TOLD} more"] if len(listed) > MOST_TOLD else []
    return InputError(f"the {what} has {number}:\n" + "\n".join(f"  {fault}" for fault in (*told, *more)))


def _lines(node: yaml.Node, key: Key = ()) -> Iterator[tuple[Key, int]]:
    yield key, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if not isinstance(name, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "expected text as a key", name.start_mark)
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
