"""Settings: a frozen class of checked values stands beside what it sets, and is the section of the YAML that says them.

So a setting has one name, one default, one range and one description. Here pydantic enters; who declares settings takes
from here what they are made of.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

__all__ = [
    "AfterValidator",
    "Amount",
    "BeforeValidator",
    "Count",
    "Discriminator",
    "Field",
    "Section",
    "Share",
    "Sparsity",
    "Tag",
    "ValidationError",
    "ValidationInfo",
    "field_validator",
    "model_validator",
    "section_of",
]

Sparsity = Annotated[float, Field(ge=0.0, lt=1.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Amount = Annotated[float, Field(ge=0.0, le=1e6)]
Count = Annotated[int, Field(ge=1, le=10**9)]


class Section(BaseModel):
    """What all settings are: frozen, strict, and without unknown keys; every field says in words what it is."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    later: ClassVar[frozenset[str]] = frozenset()
    """Keys that earlier versions did not have: while they have their default, nothing tells that they are there."""
    _unread: frozenset[str] = PrivateAttr(default=frozenset())

    @property
    def unread(self) -> frozenset[str]:
        """Names of what could not be read, in a draft of a configuration that has faults; else empty."""
        return self._unread

    @property
    def unsaid(self) -> frozenset[str]:
        """The keys of `later` that have their default."""
        return frozenset(key for key in self.later if getattr(self, key) == type(self).model_fields[key].default)


S = TypeVar("S", bound=Section)


def section_of(settings: Mapping[str, Section], kind: type[S]) -> S:
    """Return the settings of a class among several, or its defaults where there are none."""
    for each in settings.values():
        if isinstance(each, kind):
            return each
    return kind()
