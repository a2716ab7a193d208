"""Tensors sent to a device through a ring of page-locked memory, which threads fill from the experts' files.

What is sent together, a shipment, lies there in one block of memory, the tensors one behind the other, and is cut into
pieces of the size of a slot of the ring: many small tensors are one piece and one copy, a large one is many. A thread
copies the bytes of a piece from the mapped files into a slot and asks for the copy to the device; the slot is filled
again when that copy is over. So the files are read, the copies run and the device works at once, and the memory that
this takes of the host is that of the ring, whatever is sent.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from queue import SimpleQueue
from threading import Lock, RLock, local
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_moo.materialization.link import Event, Link, NoStreams, link_to

SLOTS = 16
SLOT_BYTES = 1 << 24
"""The ring: 256 MiB, taken once for each device and kept. A slot is long enough that the way takes most of its time,
and short enough that a tensor of a gigabyte is read by many threads at once."""
THREADS = 12
"""Most threads that fill the ring; where there are fewer processors, one less than these. One copies some 5 GB in a
second, the way to a device of the kind H100 is ten times as wide."""
ALIGNED = 256
"""Bytes on which every tensor begins in its block, as torch has it for tensors of their own."""

Bytes = NDArray[np.uint8]


class Source:
    """A tensor that is to be sent: its form, and how it is read; read once, by the first thread that needs of it.

    Args:
        name: what it is called in messages.
        dtype: of the tensor.
        shape: of the tensor.
        read: returns it, on the CPU.
    """

    def __init__(self, name: str, dtype: torch.dtype, shape: Sequence[int], read: Callable[[], Tensor]) -> None:
        self.dtype = dtype
        self.shape = tuple(shape)
        self.nbytes = math.prod(self.shape) * dtype.itemsize
        self._name = name
        self._read = read
        self._bytes: Bytes | None = None
        self._lock = Lock()

    def bytes(self) -> Bytes:
        """Return the tensor's bytes.

        Raises:
            RuntimeError: if it is not of the form that was said.
        """
        with self._lock:
            if self._bytes is None:
                tensor = self._read()
                if tensor.dtype != self.dtype or tuple(tensor.shape) != self.shape:
                    said, got = f"{self.dtype} {self.shape}", f"{tensor.dtype} {tuple(tensor.shape)}"
                    raise RuntimeError(f"{self._name}: expected a tensor of {said}, as it was opened, got {got}")
                self._bytes = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
            return self._bytes


@dataclass(slots=True)
class _Slot:
    """A part of the ring: the same memory as torch and as numpy see it, and the end of the last copy from it."""

    memory: Tensor
    bytes: Bytes
    sent: Event = None


@dataclass(frozen=True, slots=True)
class _Part:
    """Bytes of a tensor that lie in a piece: from where in the tensor, to where in the piece."""

    source: Source
    begin: int
    end: int
    at: int


class Shipment:
    """Tensors on their way into one block of a device's memory.

    Args:
        link: the way.
        sources: the tensors.
        piece: bytes of a piece.

    Raises:
        torch.OutOfMemoryError: if the device has no room for them.
    """

    def __init__(self, link: Link, sources: Sequence[Source], piece: int) -> None:
        self._link = link
        self._forms = [(source.dtype, source.shape, source.nbytes) for source in sources]
        self._piece = piece
        self._offsets = [0, *accumulate(-(-source.nbytes // ALIGNED) * ALIGNED for source in sources)]
        self._block: Tensor | None = link.empty(self._offsets[-1])
        self._after = link.mark()  # the block may be what earlier work still reads
        self._pieces: list[Future[Event]] = []
        self._begun: set[int] = set()
        self._joined: set[int] = set()
        self._there: dict[int, Tensor] = {}
        self._lock = RLock()  # a shipment may be dropped by the collection of garbage in any thread

    @property
    def nbytes(self) -> int:
        """Bytes of its block."""
        return self._offsets[-1]

    def parts(self, sources: Sequence[Source]) -> list[list[_Part]]:
        """Return what lies in each piece."""
        pieces: list[list[_Part]] = [[] for _ in range(-(-self.nbytes // self._piece))]
        for source, offset in zip(sources, self._offsets, strict=False):
            for i in self._crossed(offset, source.nbytes):
                begin, end = max(offset, i * self._piece), min(offset + source.nbytes, (i + 1) * self._piece)
                pieces[i].append(_Part(source, begin - offset, end - offset, begin - i * self._piece))
        return pieces

    def begin(self, pieces: Sequence[Future[Event]]) -> None:
        """Take note of the pieces on their way."""
        self._pieces.extend(pieces)

    def send(self, i: int, staged: Tensor) -> Event:
        """Begin to copy a piece; None if nobody waits for it any more."""
        with self._lock:
            if self._block is None:
                return None
            self._begun.add(i)
            begin = i * self._piece
            return self._link.send(self._block[begin : begin + staged.numel()], staged, self._after)

    def extent(self, i: int) -> int:
        """Return the bytes of a piece."""
        return min(self._piece, self.nbytes - i * self._piece)

    def arrived(self, place: int) -> Tensor:
        """Return a tensor by its place among the sources; the work that is given from now on waits for it.

        The host waits until its copy has been asked for.

        Raises:
            Exception: what reading it has raised.
        """
        if place not in self._there:
            assert self._block is not None
            dtype, shape, nbytes = self._forms[place]
            offset = self._offsets[place]
            for i in self._crossed(offset, nbytes):
                if i not in self._joined:
                    self._link.join(self._pieces[i].result())
                    self._joined.add(i)
            self._there[place] = self._block[offset : offset + nbytes].view(dtype).view(shape)
        return self._there[place]

    def drop(self) -> None:
        """Send nothing more, and give the block back when the device is done with it."""
        for piece in self._pieces:
            piece.cancel()
        with self._lock:
            if self._block is not None and self._begun - self._joined:
                self._link.abandon(self._block)
            self._block = None
            self._there.clear()

    def _crossed(self, offset: int, nbytes: int) -> range:
        """Return the pieces that bytes lie in."""
        return range(offset // self._piece, -(-(offset + nbytes) // self._piece)) if nbytes else range(0)


class Staging:
    """A ring of page-locked memory and the threads that fill it.

    Args:
        link: the way to the device.
        slots: parts of the ring.
        slot_bytes: bytes of each, a multiple of `ALIGNED`.
        threads: how many fill it, at most `slots`; None: by the processors, at most `THREADS`.
    """

    def __init__(
        self, link: Link, slots: int = SLOTS, slot_bytes: int = SLOT_BYTES, threads: int | None = None
    ) -> None:
        if slots < 1 or slot_bytes < ALIGNED or slot_bytes % ALIGNED:
            raise ValueError(f"expected slots of a multiple of {ALIGNED} bytes, got {slots} of {slot_bytes}")
        self._link = link
        self._slot_bytes = slot_bytes
        self._slots: SimpleQueue[_Slot] = SimpleQueue()  # the one that was sent first comes first
        ring = link.staging(slots * slot_bytes)
        for i in range(slots):
            memory = ring[i * slot_bytes : (i + 1) * slot_bytes]
            self._slots.put(_Slot(memory, memory.numpy()))
        threads = min(THREADS, max(2, _processors() - 1)) if threads is None else threads
        self._threads = ThreadPoolExecutor(min(threads, slots), "sae_moo feed")
        self._entered = local()  # not an initializer of the threads: what that raises, nobody is told

    def shipment(self, sources: Sequence[Source]) -> Shipment:
        """Return room for tensors on the device; whoever has it drops it, whether it is begun or not.

        Raises:
            torch.OutOfMemoryError: if the device has too little.
        """
        return Shipment(self._link, sources, self._slot_bytes)

    def begin(self, shipment: Shipment, sources: Sequence[Source]) -> None:
        """Begin to send the tensors of a shipment, in their order, behind what was begun before."""
        parts = shipment.parts(sources)
        shipment.begin([self._threads.submit(self._fill, shipment, i, held) for i, held in enumerate(parts)])

    def _fill(self, shipment: Shipment, i: int, parts: Sequence[_Part]) -> Event:
        if not hasattr(self._entered, "link"):
            self._link.enter()
            self._entered.link = True
        read: list[tuple[_Part, Any]] = [(part, part.source.bytes()) for part in parts]  # may take long: no slot yet
        slot = self._slots.get()
        try:
            if slot.sent is not None:
                self._link.wait(slot.sent)
                slot.sent = None
            for part, content in read:
                # by numpy: one copy of memory by this thread alone, and Python goes on in the others
                np.copyto(slot.bytes[part.at : part.at + part.end - part.begin], content[part.begin : part.end])
            slot.sent = shipment.send(i, slot.memory[: shipment.extent(i)])
            return slot.sent
        finally:
            self._slots.put(slot)


def _processors() -> int:
    """Return how many processors the process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def staging_to(device: torch.device) -> Staging:
    """Return the ring of a device, the same for a whole process; where copies have no order, one of plain memory."""
    return Staging(link_to(device) or NoStreams())
