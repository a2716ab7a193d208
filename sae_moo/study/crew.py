"""The contract of workers elsewhere: they are begun, sent letters, heard, and replaced when they are lost."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from sae_moo.errors import InputError, RunError, SaeMooError, StorageError
from sae_moo.files.disks import unplaced

RAISED: tuple[type[SaeMooError], ...] = (InputError, StorageError, RunError, SaeMooError)
"""Kinds of errors that are told in one line, wherever they are raised; the last one stands for all others."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker has opened experts and tasks and waits for a letter.

    Args:
        worker: its name.
        facts: about it, for people: ``host``, ``process``, ``device``, ``merging``.
    """

    worker: str
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Replied:
    """A worker answers the letter it was sent.

    Args:
        worker: its name.
        letter: the answer.
    """

    worker: str
    letter: bytes


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker is gone, and the letter it was sent with it.

    Args:
        worker: its name; it is never heard again.
        why: as far as can be told, a clause.
    """

    worker: str
    why: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A worker cannot do what it is for.

    Args:
        worker: its name.
        message: what was wrong.
        kind: of the error that the message is of, one of `RAISED`; None: it is a fault of ours, and the message a
            traceback.
    """

    worker: str
    message: str
    kind: type[SaeMooError] | None

    @classmethod
    def over(cls, worker: str, error: Exception, where: str = "") -> Refused:
        """Return what a worker says of an error that it has just caught.

        Args:
            worker: its name.
            error: what was raised; one about a disk without room becomes a `StorageError`, as where a search evaluates
                by itself.
            where: put before the message.
        """
        told = error if isinstance(error, SaeMooError) else unplaced(error)
        kind = next((kind for kind in RAISED if isinstance(told, kind)), None)
        return cls(worker, where + (traceback.format_exc() if kind is None else str(told)), kind)


Heard: TypeAlias = Ready | Replied | Lost | Refused


class Crew(Protocol):
    """Workers, wherever they are: each opens experts and tasks for itself and answers one letter at a time.

    Promises: a worker is heard `Ready` before it is sent anything, and `Lost` at most once, as the last that is heard
    of it. Whatever is sent to a worker that is gone gets no answer, and the worker is heard `Lost`. Workers end by
    themselves within seconds when this process is gone. After `close` none is left.
    """

    @property
    def size(self) -> int:
        """How many workers there are to be."""

    def begin(self) -> None:
        """Let the workers begin; what becomes of them is heard.

        Raises:
            InputError: if what they need is not there: a package, a cluster, so many processors or devices.
        """

    def send(self, worker: str, letter: bytes) -> None:
        """Send a letter to a worker that is ready."""

    def hear(self, seconds: float | None = None) -> Sequence[Heard]:
        """Return what was heard since, in its order, once there is anything.

        Args:
            seconds: how long to wait for it at most, then nothing is returned; None: as long as it takes.
        """

    def replace(self, worker: str) -> None:
        """Let another worker begin in the place of a lost one, under another name."""

    def close(self) -> None:
        """End all workers."""
