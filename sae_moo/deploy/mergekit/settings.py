"""Parameters in a mergekit configuration: numbers and truth values, gradients over the layers, filters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sae_moo.deploy.mergekit.document import Filtered, Scope, Setting
from sae_moo.deploy.mergekit.findings import Findings, shown
from sae_moo.deploy.mergekit.table import KNOWN, TABLE, Parameter, Value
from sae_moo.errors import nearest
from sae_moo.files.marked_yaml import Key, dotted

_TRUE, _FALSE = ("true", "yes", "on", "y", "t", "1", 1), ("false", "no", "off", "n", "f", "0", 0)


def read_scope(findings: Findings, method: str, key: Key, found: Any, of_one: bool = False) -> Scope:
    """Read the parameters of the whole, of a slice or of one model.

    Args:
        findings: gets what is wrong, and what has no effect.
        method: mergekit's name of the method; if it has none so named, nothing is read.
        key: where the parameters are.
        found: what is there.
        of_one: whether they are one model's.
    """
    if found is None:
        return {}
    if not isinstance(found, dict):
        findings.fault(key, f"expected a mapping of parameters, got {found!r}")
        return {}
    row = TABLE.get(method)
    scope: dict[str, Setting] = {}
    if row is None:
        return scope
    for name, value in found.items():
        here: Key = (*key, name)
        parameter = row.parameters.get(name)
        if parameter is None and name in KNOWN:
            findings.notes.append(f"{name} has no effect on {method}, as in mergekit")
        elif parameter is None:
            findings.ignored(here, nearest(str(name), row.parameters))
        elif of_one and not parameter.each:
            findings.notes.append(
                f"{dotted(here)} has no effect, as in mergekit: {name} is for the slice or the whole, not one model"
            )
        else:
            setting = _setting(findings, here, value, parameter)
            if setting:
                scope[name] = setting
            if name == "int8_mask":
                findings.notes.append("int8_mask changes mergekit's use of memory, no result; it has no effect here")
    return scope


def _setting(findings: Findings, key: Key, value: Any, parameter: Parameter) -> Setting:
    entries = value if isinstance(value, list) else [value]
    if not entries:
        findings.fault(key, "expected a value, got an empty list")
        return ()
    if not any(isinstance(entry, dict) for entry in entries):
        return (Filtered(None, _values(findings, key, entries, parameter)),)
    conditions = []
    for i, entry in enumerate(entries):
        here: Key = (*key, i) if isinstance(value, list) else key
        if not isinstance(entry, dict) or "value" not in entry:
            findings.fault(here, f"expected {{filter: TEXT, value: NUMBER}}, got {shown(entry)}")
            continue
        findings.keys(here, entry, ("filter", "value"))
        part = entry.get("filter")
        if part is not None and not isinstance(part, str):
            findings.fault((*here, "filter"), f"expected part of a tensor's name, got {part!r}")
        inner = entry["value"]
        inner = inner if isinstance(inner, list) else [inner]
        if not inner:
            findings.fault((*here, "value"), "expected a value, got an empty list")
        values = _values(findings, (*here, "value"), inner, parameter)
        conditions.append(Filtered(None if part == "*" else part, values))
    return tuple(conditions)


def _values(findings: Findings, key: Key, entries: Sequence[Any], parameter: Parameter) -> tuple[Value, ...]:
    found = []
    for entry in entries:
        value = _value(entry, parameter.kind)
        if value is None:
            kind = {"number": "a number", "whole": "a whole number", "flag": "true or false"}[parameter.kind]
            findings.fault(key, f"expected {kind}, got {shown(entry)}")
        elif parameter.only is not None and value != parameter.only:
            findings.fault(key, f"cannot be followed: this is here only as {_written(parameter.only)}, got {entry}")
        elif parameter.share and not 0 <= value <= 1:
            findings.fault(key, f"expected a share in [0, 1], got {entry}")
        else:
            found.append(value)
    return tuple(found)


def _value(entry: Any, kind: str) -> Value | None:
    """Return a number or truth value, None if it is none; YAML reads 1e-5 as text.

    Texts and numbers for truth values, and these for numbers, are taken as mergekit takes them.
    """
    if kind == "flag":
        text = entry.strip().lower() if isinstance(entry, str) else entry
        return text in _TRUE if isinstance(text, (str, int, float)) and text in (*_TRUE, *_FALSE) else None
    if not isinstance(entry, (int, float, str)):
        return None
    try:
        number = float(entry)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and (kind == "number" or number == int(number)) else None


def _written(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)
