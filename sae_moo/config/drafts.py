"""What can be read of a configuration that has faults: the same sections, typed, for rules that look at several keys.

In a draft defaults are filled in, None stands for a value that could not be read, and there is nothing for what is
missing. So a rule need not know what a YAML may hold, and one pass finds all faults.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import ValidationError, create_model

from sae_moo.config.sections import SearchSection, read_search, search_section_of
from sae_moo.recipe.section import Section

S = TypeVar("S", bound=Section)


def draft(kind: type[S], raw: Any) -> S:
    """Return a section as far as it can be read.

    Args:
        kind: the section's class.
        raw: what stands there; the defaults are meant by what is no mapping.
    """
    given = raw if isinstance(raw, dict) else {}
    plain, sections = {}, {}
    for name, field in kind.model_fields.items():
        if _has_section(field.annotation):
            if name in given or field.is_required():
                sections[name] = _drafted(field.annotation, given.get(name))
        elif name in given:
            plain[name] = given[name]
    drafted: S = _read(_lenient(kind), plain).model_copy(update=sections)
    return drafted


@cache
def _lenient(kind: type[S]) -> type[S]:
    """Return a section's class with nothing required."""
    required: dict[str, Any] = {name: each.annotation for name, each in kind.model_fields.items() if each.is_required()}
    fields: Any = {name: (annotation | None, None) for name, annotation in required.items()}
    return create_model(kind.__name__, __base__=kind, **fields)


def _read(kind: type[S], plain: Mapping[str, Any]) -> S:
    """Return a section of values, with None for those that are refused; of a mapping only the entries at fault go."""
    kept = {name: dict(value) if isinstance(value, dict) else value for name, value in plain.items()}
    while True:
        try:
            read = kind.model_validate(kept)
        except ValidationError as error:
            for key in {fault["loc"][:2] for fault in error.errors()}:
                entry = isinstance(kept.get(str(key[0])), dict) and len(key) > 1 and key[1] in kept[str(key[0])]
                if entry:
                    del kept[str(key[0])][key[1]]
                else:
                    kept.pop(str(key[0]), None)
        else:
            unread = frozenset(plain.keys() - kept.keys())
            drafted = read.model_copy(update=dict.fromkeys(unread))
            drafted._unread = unread
            return drafted


def _has_section(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return True
    return any(_has_section(each) for each in get_args(annotation))


def _drafted(annotation: Any, value: Any) -> Any:
    """Return what an annotation with a section in it makes of a value."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        if annotation is SearchSection:
            return draft(search_section_of(value), read_search(value))
        return draft(annotation, value)
    arguments = get_args(annotation)
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        if isinstance(value, dict):
            return _drafted(next(each for each in arguments if _has_section(each)), value)
        return value if isinstance(value, str) and str in arguments else None
    if origin is list:
        return [_drafted(arguments[0], each) for each in value] if isinstance(value, list) else []
    entries = value.items() if isinstance(value, dict) else ()
    return {key: _drafted(arguments[1], each) for key, each in entries if isinstance(key, str)}
