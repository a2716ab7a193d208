"""Paths as users write them in configurations and on the command line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from sae_moo.errors import InputError, shown


def rooted(given: str, roots: Sequence[str], start: Path | None = None) -> str:
    """Return what finds a path in the first of some folders that has it, or the text as it was given where none has.

    Args:
        given: the text; what is absolute or begins with ``~`` stays as it is.
        roots: the folders, as users write them.
        start: what relative folders start from; None: the current folder.

    Raises:
        InputError: if no path can be called so.
    """
    if located(given).is_absolute():
        return given
    places = (located(given, located(root, start)) for root in roots)
    return next((str(place.absolute()) for place in places if place.exists()), given)


def folder_at(given: str, start: Path | None = None) -> Path:
    """Return the folder that a text names; it need not be there.

    Args:
        given: the text.
        start: as of `located`.

    Raises:
        InputError: as `located`, or if what is there is no folder.
    """
    path = located(given, start)
    if os.path.exists(path) and not os.path.isdir(path):  # False where nobody may look
        raise InputError(f"expected a folder, or a path that does not exist here, and {shown(given)} is a file")
    return path


def located(given: str, start: Path | None = None) -> Path:
    """Return the path that a text names.

    Args:
        given: the text; ``~`` and ``~user`` are home folders.
        start: what relative paths start from; None: the current folder.

    Raises:
        InputError: if no path can be called so, or there is no such user.
    """
    try:
        path = Path(given).expanduser()
    except RuntimeError:
        raise InputError(f"{shown(given)}: the home folder of {given.partition('/')[0]} is not known") from None
    try:
        if b"\0" in os.fsencode(given):
            raise InputError(f"{shown(given)}: no path holds the character NUL")
    except UnicodeEncodeError as error:
        raise InputError(f"{shown(given)}: no path can be called so: {error.reason}") from error
    return path if start is None else start / path
