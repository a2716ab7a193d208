"""The way to a device and back: page-locked memory here, memory there, and copies that run while the device works.

CUDA's streams and events (and ROCm's, which torch calls the same) behind the few words that `staging` and `parents`
need, so that the order of work can be tested on a machine that has none.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

log = logging.getLogger(__name__)

Event = Any
"""Something that a device has done or will do, as the link that made it knows it; None: done."""


class Link(Protocol):
    """A device that works in order on what it is given, and copies to and from it in orders of their own.

    *The work* is what is given to the device by whoever calls, on the stream that is current for them.
    """

    def free(self) -> int:
        """Return the bytes that are free on the device."""

    def staging(self, nbytes: int) -> Tensor:
        """Return memory of the host, bytes, from which the device can copy while it works."""

    def empty(self, nbytes: int) -> Tensor:
        """Return memory of the device, bytes; what the work did with it before may not be over.

        Raises:
            torch.OutOfMemoryError: if there is too little.
        """

    def mark(self) -> Event:
        """Return an event after all the work that was given so far."""

    def enter(self) -> None:
        """Make a thread ready to `send`; called once in each."""

    def send(self, into: Tensor, staged: Tensor, after: Event) -> Event:
        """Begin to copy from `staging` to the device once an event is over; return the event of its end."""

    def fetch(self, held: Sequence[Tensor], into: Sequence[Tensor]) -> Event:
        """Begin to copy what the work given so far has written to memory of `staging`; return the event of its end."""

    def wait(self, event: Event) -> None:
        """Wait on the host until an event is over."""

    def join(self, event: Event) -> None:
        """Let the work that is given from now on begin after an event; the host does not wait."""

    def abandon(self, memory: Tensor) -> None:
        """Let nothing else have a device's memory before the copies into it that were begun are over."""


class Streams:
    """The link to a CUDA device.

    Args:
        device: with its index.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._to, self._back = torch.cuda.Stream(device), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def free(self) -> int:
        """Return the bytes that are free on the device."""
        free: int = torch.cuda.mem_get_info(self._device)[0]
        return free

    def staging(self, nbytes: int) -> Tensor:
        """Return page-locked bytes; where the system locks no more, others, from which the device copies slower."""
        try:
            return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
        except RuntimeError as error:
            _tell_unlocked(str(error).splitlines()[0])
            return torch.empty(nbytes, dtype=torch.uint8)

    def empty(self, nbytes: int) -> Tensor:
        """Return bytes of the device: torch gives them out again in the order of the current stream."""
        return torch.empty(nbytes, dtype=torch.uint8, device=self._device)

    def mark(self) -> Event:
        """Return an event after all that the current stream was given."""
        return self._recorded(torch.cuda.current_stream(self._device))

    def enter(self) -> None:
        """Make the copies' stream a thread's current one: it is known by thread."""
        torch.cuda.set_device(self._device)
        torch.cuda.set_stream(self._to)

    def send(self, into: Tensor, staged: Tensor, after: Event) -> Event:
        """Begin to copy on the stream that `enter` has set."""
        self._to.wait_event(after)
        into.copy_(staged, non_blocking=True)
        return self._recorded(self._to)

    def fetch(self, held: Sequence[Tensor], into: Sequence[Tensor]) -> Event:
        """Begin to copy on a stream of its own."""
        self._back.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._back):
            for source, copy in zip(held, into, strict=True):
                copy.copy_(source, non_blocking=True)
                source.record_stream(self._back)
        return self._recorded(self._back)

    def wait(self, event: Event) -> None:
        """Wait without a stream's name: other copies may run on."""
        event.synchronize()

    def join(self, event: Event) -> None:
        """Let the current stream wait."""
        torch.cuda.current_stream(self._device).wait_event(event)

    def abandon(self, memory: Tensor) -> None:
        """Tell torch of the stream that it does not know to use the memory."""
        memory.record_stream(self._to)

    def _recorded(self, stream: Any) -> Event:
        # a thread that waits for it sleeps: the processor has other tensors to copy meanwhile
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(stream)
        return event


class NoStreams:
    """Memory that the work reads as it lies: every copy is over when it has been asked for."""

    def free(self) -> int:
        """Return that there is nothing to keep elsewhere."""
        return 0

    def staging(self, nbytes: int) -> Tensor:
        """Return bytes."""
        return torch.empty(nbytes, dtype=torch.uint8)

    empty = staging

    def mark(self) -> Event:
        """Return None: all is done."""

    def enter(self) -> None:
        """Nothing has to be made ready."""

    def send(self, into: Tensor, staged: Tensor, after: Event) -> Event:  # noqa: ARG002  # it is over
        """Copy."""
        into.copy_(staged)

    def fetch(self, held: Sequence[Tensor], into: Sequence[Tensor]) -> Event:
        """Copy."""
        for source, copy in zip(held, into, strict=True):
            copy.copy_(source)

    def wait(self, event: Event) -> None:
        """Do nothing: it is over."""

    join = wait

    def abandon(self, memory: Tensor) -> None:
        """Do nothing: no copy is on its way."""


@functools.cache
def link_to(device: torch.device) -> Link | None:
    """Return the link to a device, the same for a whole process; None if copies there run in no order of their own."""
    return Streams(device) if device.type == "cuda" else None


def located(device: torch.device | str) -> torch.device:
    """Return a device with its index: in another thread, another one may be the current one."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


@functools.cache
def _tell_unlocked(reason: str) -> None:
    log.warning("no page-locked memory could be had, experts are sent from other memory, which is slower: %s", reason)
