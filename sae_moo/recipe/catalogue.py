"""Catalogues: a kind is one row, and its row is the only place that knows its name.

Merge methods, pruning criteria, search algorithms, task kinds and export formats each have a catalogue. A row holds
what others need to know of a kind without doing any work: name, settings, traits, and where its implementation is,
which is imported on first use. Rows of the house are listed in the catalogue; rows of **guests** come from installed
packages by entry points and are named ``package/name``. A configuration never names a path to import.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sae_moo.errors import InputError, RunError, SaeMooError, nearest, out_of_memory

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

# What reads installed packages is imported on first use: `sae-moo --help` shows the house's rows, at once.

SEPARATOR = "/"


@dataclass(frozen=True, slots=True)
class Guest:
    """The installed package that a row comes from.

    Args:
        distribution: name of the package, normalized as package indexes do (lower case, single hyphens).
        version: its installed version. Together they enter the digest of every recipe that uses the row.
    """

    distribution: str
    version: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


class OtherGuest(InputError):
    """What was written used a package that is not installed here, or is in another version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What every row of a catalogue has.

    Args:
        name: how configurations and recipes call it; of a guest, what stands in front of it is added when it is found.
        guest: the package it comes from; None for rows of the house.
    """

    name: str
    guest: Guest | None = None


R = TypeVar("R", bound=Row)


class Catalogue(Mapping[str, R], Generic[R]):
    """The rows of one kind, by name.

    Iteration, length and `keys` are of the house's rows alone and read no entry points, so that help texts cost
    nothing. A look-up of ``package/name`` asks that package, once.

    Args:
        kind: what a row is, in words, such as ``merge method``.
        group: the entry points' group, such as ``sae_moo.methods``.
        row: the class of its rows; what a guest offers has to be one.
        rows: the house's rows, in the order that help texts show.
    """

    def __init__(self, kind: str, group: str, row: type[R], rows: Sequence[R]) -> None:
        self.kind, self.group = kind, group
        self._row = row
        self._house = {each.name: each for each in rows}
        self._guests: dict[str, R] = {}
        if len(self._house) != len(rows):
            raise ValueError(f"{kind}: expected every name once")

    def __getitem__(self, name: str) -> R:
        """Return a row by its name.

        Raises:
            KeyError: if there is none of this name.
            InputError: if a package offers it and it cannot be imported, or is no such row.
        """
        if name in self._house:
            return self._house[name]
        if name not in self._guests:
            if not isinstance(name, str) or SEPARATOR not in name:
                raise KeyError(name)
            package, _, short = name.partition(SEPARATOR)
            offered = [point for point in self._points(package) if point.name == short]
            if not offered:
                raise KeyError(name)
            self._guests[name] = self._loaded(offered[0])
        return self._guests[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._house)

    def __len__(self) -> int:
        return len(self._house)

    def find(self, name: str) -> R:
        """Return a row by its name.

        Raises:
            InputError: if there is none; it says what there is, and which package to install for a guest's.
        """
        try:
            return self[name]
        except KeyError:
            raise InputError(self.unknown(name)) from None

    def unknown(self, name: object) -> str:
        """Return why a name finds no row: what was expected, what came, and the nearest name."""
        if isinstance(name, str) and SEPARATOR in name:
            package, _, short = name.partition(SEPARATOR)
            installed = release(package)
            if installed is None:
                return f"{self.kind} {name!r} needs the package {package!r}, which is not installed here"
            offered = [point.name for point in self._points(package)]
            there = f"it has {', '.join(sorted(offered))}" if offered else "it has none"
            return f"{self.kind} {name!r}: {package} {installed} has no {short!r}{nearest(short, offered)}; {there}"
        return f"expected a {self.kind}, one of {', '.join(self)}; got {name!r}{nearest(str(name), self)}"

    def guests(self) -> tuple[R, ...]:
        """Return the rows of all installed packages, by name.

        Raises:
            InputError: if one cannot be imported, or is no such row.
        """
        names = {f"{normalized(point.dist.name)}{SEPARATOR}{point.name}" for point in self._points() if point.dist}
        return tuple(self[name] for name in sorted(names))

    def _points(self, package: str | None = None) -> list[EntryPoint]:
        """Return the entry points of a package, or of all."""
        return [
            point
            for point in entry_points(group=self.group)
            if point.dist is not None and (package is None or normalized(package) == normalized(point.dist.name))
        ]

    def _loaded(self, point: EntryPoint) -> R:
        assert point.dist is not None  # asked for by the distribution's name
        guest = Guest(normalized(point.dist.name), point.dist.version)
        name = f"{guest.distribution}{SEPARATOR}{point.name}"
        try:
            row = point.load()
        except Exception as error:  # whatever a guest's module raises when it is imported
            raise InputError(f"{self.kind} {name!r}: {guest} cannot be imported: {error!r}") from error
        if not isinstance(row, self._row):
            raise InputError(
                f"{self.kind} {name!r}: {guest} offers {point.value} as {self.group}, which is no "
                f"{self._row.__name__} but {type(row).__name__}"
            )
        return replace(row, name=name, guest=guest)


def check_implemented(catalogue: Catalogue[R], row: R, place: str) -> None:
    """Raise InputError if what a guest's row names as its implementation cannot be imported, naming the guest.

    Of the house's rows a test says so.
    """
    if row.guest is None:
        return
    try:
        resolved(place)
    except Exception as error:  # whatever a guest's module raises when it is imported
        raise InputError(
            f"{catalogue.kind} {row.name!r}: {row.guest} names {place}, which cannot be imported: {error!r}"
        ) from error


def check_guests(written: object) -> None:
    """Check that the packages that something was written with are here, in the same versions.

    Args:
        written: name of a row -> its guest as text, as in the ``guests`` of a recipe.

    Raises:
        OtherGuest: naming the first row whose package is missing or has another version, and both versions.
        InputError: if this is no such mapping.
    """
    if not isinstance(written, dict) or not all(isinstance(text, str) for text in written.values()):
        raise InputError(f'expected "guests": {{NAME: "PACKAGE VERSION"}}, got {written!r}')
    for name, text in sorted(written.items()):
        distribution, _, wanted = text.partition(" ")
        here = release(distribution)
        if here is None:
            raise OtherGuest(f"{name!r} needs the package {text}, which is not installed here")
        if here != wanted:
            raise OtherGuest(
                f"{name!r} was used as of {text}, here is {distribution} {here}, which may compute something else: "
                f"install {distribution}=={wanted}"
            )


def canonical(name: str) -> str:
    """Return the one spelling of a row's name: of a guest's, the package as indexes compare it."""
    package, separator, short = name.partition(SEPARATOR)
    return f"{normalized(package)}{separator}{short}" if separator else name


def entry_points(group: str) -> Iterable[EntryPoint]:
    """Return what installed packages offer in a group."""
    from importlib.metadata import entry_points as offered

    return offered(group=group)


def release(distribution: str) -> str | None:
    """Return the release of an installed package, as its metadata says; None if there are none of this name.

    This package itself may have none, or those of another copy: it runs from a checkout on ``PYTHONPATH`` as well. Its
    code says its version, ``sae_moo.__version__``.

    Args:
        distribution: the package's name as indexes know it.
    """
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except (PackageNotFoundError, ValueError):  # the latter of a name that can be none
        return None


def normalized(distribution: str) -> str:
    """Return a package's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


@cache
def resolved(place: str) -> Callable[..., Any]:
    """Return the implementation that a row names.

    Args:
        place: ``module:attribute``, of the house or of the guest's own package.
    """
    module, _, attribute = place.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), attribute)
    return found


@contextmanager
def blamed(row: Row, what: str, error: type[SaeMooError] = RunError) -> Iterator[None]:
    """Let what a guest's code raises say whose it is.

    Our own errors, errors of the house, and want of memory, which is nobody's fault, stay as they are.

    Args:
        row: whose code runs.
        what: what it is the code of, such as ``format 'acme/onnx'``.
        error: what is raised instead.
    """
    try:
        yield
    except SaeMooError:
        raise
    except Exception as raised:  # whatever a guest's code raises
        if row.guest is None or out_of_memory(raised):
            raise
        raise error(f"{what}: {row.guest} failed: {type(raised).__name__}: {raised}") from raised
