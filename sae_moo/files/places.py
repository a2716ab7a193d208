"""Paths as users write them in configurations and on the command line."""

from __future__ import annotations

import os
from pathlib import Path

from sae_moo.errors import InputError, shown


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
