"""What is wrong with a configuration, told with its key, what was expected, and the nearest valid name."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from sae_moo.config.sections import ONE, SEVERAL
from sae_moo.errors import nearest
from sae_moo.files.marked_yaml import Key, dotted
from sae_moo.searchers.algorithms import ALGORITHMS

UNIONS = ("objectives",), ("compare", "methods")
"""Lists whose entries are names or sections."""


MOST_EXPLAINED = 500
"""How many faults are told in our words: of more, few are shown, and finding the nearest names takes time."""
Kinds = Mapping[Key, type[BaseModel]]
"""Key -> the class that is read there, where it hangs on another key and no annotation says it."""


def faults_of(model: type[BaseModel], error: ValidationError, kinds: Kinds) -> Iterator[tuple[Key, str]]:
    """Yield each fault with its key.

    Args:
        model: what was to be read.
        error: what pydantic raised.
        kinds: see `Kinds`.
    """
    faults = [(_own_key(fault), fault) for fault in error.errors() if not _of_another_branch(fault)]
    unknown: dict[Key, list[Key]] = defaultdict(list)
    for key, fault in faults:
        if fault["type"] == "extra_forbidden":
            unknown[key[:-1]].append(key)
    for number, (key, fault) in enumerate(faults):
        if number >= MOST_EXPLAINED:
            yield key, str(fault["msg"])
        elif not (fault["type"] == "missing" and any(_meant(each, key) for each in unknown[key[:-1]])):
            yield key, _explained(model, key, fault, kinds)


def _meant(unknown: Key, missing: Key) -> bool:
    """Say whether an unknown key is the missing one beside it, misspelt: one mistake, told once."""
    return bool(nearest(str(unknown[-1]), [str(missing[-1])]))


def _branch_at(location: tuple[str | int, ...]) -> int | None:
    """Return the position in a location at which pydantic tells the branch of a union, ``str`` or a model's name."""
    for union in UNIONS:
        if location[: len(union)] == union and len(location) > len(union) + 1:
            return len(union) + 1
    return None


def _of_another_branch(fault: Any) -> bool:
    """Say whether a fault is only that the value is not of the other type of a union."""
    at = _branch_at(fault["loc"])
    if at is None:
        return False
    if isinstance(fault["input"], dict):
        return bool(fault["loc"][at] == "str")
    return bool(fault["loc"][at] != "str" and fault["type"] == "model_type")


def _own_key(fault: Any) -> Key:
    """Return a fault's location without what pydantic adds: the branch of a union, a mark that a key is at fault."""
    location = tuple(part for part in fault["loc"] if part not in (ONE, SEVERAL))
    if location[-1:] == ("[key]",) and str(location[-2]) == str(fault["input"]):
        location = location[:-1]
    at = _branch_at(location)
    return location if at is None else (*location[:at], *location[at + 1 :])


def _explained(model: type[BaseModel], key: Key, fault: Any, kinds: Kinds) -> str:
    got = fault["input"]
    shown = _shown(got)
    match fault["type"]:
        case "extra_forbidden":
            return _unknown(model, key, kinds)
        case "missing":
            return "expected this key, it is missing"
        case "value_error":
            return str(fault["ctx"]["error"])
        case "string_pattern_mismatch":
            return f"expected letters, digits, '.', '_' and '-', beginning with a letter or digit, got {shown}"
        case "too_short" | "too_long" | "string_too_short" | "string_too_long":
            return f"expected {_length(fault['type'], fault['ctx'])}, got {_with_length(got)}"
        case "literal_error":
            near = nearest(str(got), [part.strip("' ") for part in re.split(",| or ", fault["ctx"]["expected"])])
            return f"expected {fault['ctx']['expected']}, got {shown}{near}"
        case _:
            if isinstance(got, str) and fault["type"] in NUMBERS and (plain := _plain(got, fault["type"])):
                return f"expected {NUMBERS[fault['type']]}; YAML reads {got} as text, write {plain}"
            text = str(fault["msg"]).removeprefix("Input should be ").replace("a valid ", "")
            text = re.sub(r"dictionary or instance of \w+|dictionary", "a mapping", text)
            return f"expected {text}, got {shown}"


def _length(kind: str, bounds: Mapping[str, Any]) -> str:
    """Return how many entries, or characters, were expected at least or at most."""
    one, several = ("character", "characters") if kind.startswith("string") else ("entry", "entries")
    word, number = ("least", bounds.get("min_length")) if kind.endswith("short") else ("most", bounds.get("max_length"))
    return f"at {word} {'one' if number == 1 else number} {one if number == 1 else several}"


def _with_length(got: Any) -> str:
    """Return a value that is too short or too long, with its length where it does not show it."""
    return f"a list of {len(got)}" if isinstance(got, list) and got else _shown(got)


NUMBERS = {"int_type": "an integer", "float_type": "a number"}
"""What pydantic calls a fault of a number's type -> the number that was expected."""
MOST_DIGITS = 15  # that a float holds exactly


def _shown(got: Any) -> str:
    """Return a value as YAML has it, of what has entries what it is."""
    match got:
        case None:
            return "null"
        case bool():
            return str(got).lower()
        case dict():
            return "a mapping"
        case list():
            return "a list" if got else "an empty list"
        case _:
            return repr(got)


def _plain(got: str, wanted: str) -> str:
    """Return a number in powers of ten as YAML reads it as one; nothing for what is none of the kind that is wanted."""
    if not re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d{1,3}", got):
        return ""
    number = float(got)
    if not math.isfinite(number) or (not number and re.match(r"[-+]?0*\.?0*[1-9]", got)):  # beyond what a float holds
        return ""
    if wanted == "float_type":
        text = repr(number)
        return text if "." in text else text.replace("e", ".0e")
    return str(int(number)) if abs(number) < 10**MOST_DIGITS and number.is_integer() else ""


def _unknown(model: type[BaseModel], key: Key, kinds: Kinds) -> str:
    """Return why a key is none: it is another algorithm's, it stands in another section, or it is misspelt."""
    readers = [name for name, row in ALGORITHMS.items() if key[:-1] == ("search",) and key[-1] in row.settings]
    if readers:
        chosen = getattr(_kind_at(model, key[:-1], kinds), "for_algorithm", "")
        return f"is for {', '.join(readers)}; algorithm: {chosen} does not read it"
    for name, kind in _fields(_kind_at(model, key[:-2], kinds)).items() if len(key) > 2 else ():
        if name != key[-2] and str(key[-1]) in _fields(kind):
            return f"no such key here; it is {dotted((*key[:-2], name, key[-1]))}"
    siblings = list(_fields(_kind_at(model, key[:-1], kinds)))
    return f"no such key{nearest(str(key[-1]), siblings)}; expected one of {', '.join(siblings)}"


def _fields(kind: Any) -> dict[str, Any]:
    """Return the keys of a section, each with the section within it, if there is one."""
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return {}
    return {name: _within(field.annotation) for name, field in kind.model_fields.items()}


def _kind_at(model: type[BaseModel], key: Key, kinds: Kinds) -> Any:
    """Return the section that stands at a key."""
    current: Any = model
    for i, part in enumerate(key):
        if isinstance(part, str) and part in _fields(current):
            current = kinds.get(key[: i + 1], _fields(current)[part])
    return current


def _within(annotation: Any) -> Any:
    """Return the section that an annotation holds, alone, in a list, a mapping or a union; else what it is."""
    while not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        inner = [each for each in get_args(annotation) if isinstance(each, type) and each not in (str, type(None))]
        inner += [each for each in get_args(annotation) if get_origin(each) is not None]
        if not inner:
            break
        annotation = inner[-1]
    return annotation
