"""What is wrong with a configuration, told with its key, what was expected, and the nearest valid name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from sae_moo.errors import nearest
from sae_moo.files.marked_yaml import Key

UNIONS = ("objectives",), ("compare", "methods")
"""Lists whose entries are names or sections."""


def faults_of(model: type[BaseModel], error: ValidationError) -> Iterator[tuple[Key, str]]:
    """Yield each fault with its key.

    Args:
        model: what was to be read.
        error: what pydantic raised.
    """
    faults = [(_own_key(fault), fault) for fault in error.errors() if not _of_another_branch(fault)]
    unknown = [key for key, fault in faults if fault["type"] == "extra_forbidden"]
    for key, fault in faults:
        if not (fault["type"] == "missing" and any(_meant(each, key) for each in unknown)):
            yield key, _explained(model, key, fault)


def _meant(unknown: Key, missing: Key) -> bool:
    """Say whether an unknown key is the missing one beside it, misspelt: one mistake, told once."""
    return unknown[:-1] == missing[:-1] and bool(nearest(str(unknown[-1]), [str(missing[-1])]))


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
    location = tuple(fault["loc"])
    if location[-1:] == ("[key]",) and str(location[-2]) == str(fault["input"]):
        location = location[:-1]
    at = _branch_at(location)
    return location if at is None else (*location[:at], *location[at + 1 :])


def _explained(model: type[BaseModel], key: Key, fault: Any) -> str:
    got = fault["input"]
    shown = repr(got) if not isinstance(got, (dict, list)) else type(got).__name__
    match fault["type"]:
        case "extra_forbidden":
            siblings = _keys_beside(model, key)
            return f"no such key{nearest(str(key[-1]), siblings)}; expected one of {', '.join(siblings)}"
        case "missing":
            return "expected this key, it is missing"
        case "value_error":
            return str(fault["ctx"]["error"])
        case "string_pattern_mismatch":
            return f"expected letters, digits, '.', '_' and '-', beginning with a letter or digit, got {shown}"
        case "literal_error":
            near = nearest(str(got), [part.strip("' ") for part in re.split(",| or ", fault["ctx"]["expected"])])
            return f"expected {fault['ctx']['expected']}, got {shown}{near}"
        case _:
            if (
                isinstance(got, str)
                and fault["type"] in ("float_type", "int_type")
                and re.fullmatch(r"-?\d+e-?\d+", got)
            ):
                return f"expected a number; YAML reads {got} as text, write {float(got)!r}"
            text = str(fault["msg"]).removeprefix("Input should be ").replace("a valid ", "")
            text = re.sub(r"dictionary or instance of \w+|dictionary", "a mapping", text)
            text = re.sub(r"List should have at least 1 item.*", "at least one entry", text)
            return f"expected {text}, got {shown}"


def _keys_beside(model: type[BaseModel], key: Key) -> list[str]:
    current: Any = model
    for part in key[:-1]:
        if isinstance(current, type) and issubclass(current, BaseModel) and part in current.model_fields:
            current = current.model_fields[str(part)].annotation
        while not (isinstance(current, type) and issubclass(current, BaseModel)):
            inner = [each for each in get_args(current) if isinstance(each, type) and each not in (str, type(None))]
            inner += [each for each in get_args(current) if get_origin(each) is not None]
            if not inner:
                break
            current = inner[-1]
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []
