"""Disks that have no room left: who writes names the place, so that a full disk is one line wherever it is met."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sae_moo.errors import SaeMooError, StorageError, no_room

KEPT = "what was finished before is kept"


@contextmanager
def writing(place: object) -> Iterator[None]:
    """Name a place in the error of a disk that has no room for what is written there.

    Args:
        place: what the user calls it; a file's name under which it is not known yet would say nothing.

    Raises:
        StorageError: instead of whatever the writer raises for want of room; other errors pass.
    """
    try:
        yield
    except Exception as error:
        why = None if isinstance(error, SaeMooError) else no_room(error)
        if why is None:
            raise
        raise StorageError(f"{place}: {why}; {KEPT}") from error
