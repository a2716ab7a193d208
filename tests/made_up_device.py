"""A device that is made up: streams that run late, memory that is given out again, and no mercy for a wrong order.

Nothing that it is given runs before it has to, or in what order a generator of random numbers likes, as far as the
order of each stream and the events allow. Memory is the host's, known by its address alone, as a kernel knows it: what
is read too late holds something else by then.
"""

from __future__ import annotations

import ctypes
import functools
import random
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from threading import RLock

import numpy as np
import torch
from torch import Tensor

WORK, TO, BACK = "work", "to", "back"


class Event:
    def __init__(self, stream: str) -> None:
        self.stream = stream
        self.over = False


class MadeUpDevice:
    """A `link.Link` to memory of the host.

    Args:
        seed: of the order of work; None: nothing runs before it has to.
        room: bytes of memory.
        prompt: whether the work runs as soon as it is given, with all it waits for: for code that works on tensors
            itself.
    """

    def __init__(self, seed: int | None = None, room: int = 1 << 30, *, prompt: bool = False) -> None:
        self.random = None if seed is None else random.Random(seed)
        self.room = room
        self.prompt = prompt
        self.sends = 0
        self.blocks: list[bytearray] = []
        self._lent: set[int] = set()
        self._pending: dict[int, Event] = {}
        self._staging: list[Tensor] = []
        self._streams: dict[str, deque[Callable[[], None] | Event]] = {WORK: deque(), TO: deque(), BACK: deque()}
        self._lock = RLock()

    # what a link can do

    def free(self) -> int:
        return self.room - self.lent

    def staging(self, nbytes: int) -> Tensor:
        self._staging.append(torch.full((nbytes,), 0xEE, dtype=torch.uint8))
        return self._staging[-1]

    def empty(self, nbytes: int) -> Tensor:
        with self._lock:
            if nbytes > self.free():
                self.drain()  # as torch does: what only waits for the end of copies is free then
            if nbytes > self.free():
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            fitting = [
                i
                for i, block in enumerate(self.blocks)
                if i not in self._lent and len(block) >= nbytes and (i not in self._pending or self._pending[i].over)
            ]
            if not fitting:
                fitting = [len(self.blocks)]
                self.blocks.append(bytearray(max(nbytes, 1)))
            place = fitting[-1]
            self._lent.add(place)
            whole = np.frombuffer(self.blocks[place], dtype=np.uint8)
            weakref.finalize(whole, self._lent.discard, place)
            given = torch.from_numpy(whole[:nbytes])
            address, size = whole.ctypes.data, len(whole)
            self.work(lambda: ctypes.memset(address, 0xDD, size))
            return given

    def mark(self) -> Event:
        return self._recorded(WORK)

    def enter(self) -> None:
        pass

    def send(self, into: Tensor, staged: Tensor, after: Event) -> Event:
        self.sends += 1
        return self._copied(TO, into, staged, after)

    def fetch(self, held: Sequence[Tensor], into: Sequence[Tensor]) -> Event:
        with self._lock:
            self._streams[BACK].append(self.mark())
            for source, copy in zip(held, into, strict=True):  # torch is told that the stream has what it copies
                self._streams[BACK].append(functools.partial(copy.copy_, source))
            return self._recorded(BACK)

    def wait(self, event: Event) -> None:
        with self._lock:
            while not event.over:
                streams = [event.stream]
                if self.random is not None:
                    streams = self.random.sample(list(self._streams), len(self._streams))
                if not any(self._step(stream) for stream in streams):
                    raise RuntimeError("nothing can run: an event waits for itself")

    def join(self, event: Event) -> None:
        with self._lock:
            self._streams[WORK].append(event)
            if self.prompt:
                self.wait(event)

    def abandon(self, memory: Tensor) -> None:
        with self._lock:
            self._pending[self._place(memory)] = self._recorded(TO)

    # what a test can do

    @property
    def lent(self) -> int:
        return sum(len(self.blocks[i]) for i in self._lent)

    def work(self, step: Callable[[], object]) -> None:
        """Give work to the device."""
        with self._lock:
            self._streams[WORK].append(step)
            if self.prompt:
                self.drain()

    def read(self, tensor: Tensor) -> list[bytes]:
        """Let the work read a tensor, by its address; what it reads is in the list once that has run."""
        address, size = tensor.data_ptr(), tensor.nbytes
        found: list[bytes] = []
        self.work(lambda: found.append(ctypes.string_at(address, size)))
        return found

    def drain(self) -> None:
        """Run all that was given."""
        for stream in self._streams:
            self.wait(self._recorded(stream))

    def _place(self, memory: Tensor) -> int:
        addresses = [np.frombuffer(block, dtype=np.uint8).ctypes.data for block in self.blocks]
        return next(i for i, a in enumerate(addresses) if a <= memory.data_ptr() < a + len(self.blocks[i]))

    def _copied(self, stream: str, into: Tensor, source: Tensor, after: Event) -> Event:
        to, here, size = into.data_ptr(), source.data_ptr(), source.nbytes
        with self._lock:
            self._streams[stream] += [after, lambda: ctypes.memmove(to, here, size)]
            return self._recorded(stream)

    def _recorded(self, stream: str) -> Event:
        event = Event(stream)
        with self._lock:
            self._streams[stream].append(lambda: setattr(event, "over", True))
        return event

    def _step(self, stream: str) -> bool:
        """Run one thing of a stream, or what it waits for; say whether anything ran."""
        queue = self._streams[stream]
        while queue and isinstance(queue[0], Event):
            if not queue[0].over:
                return self.random is None and self._step(queue[0].stream)
            queue.popleft()
        if not queue:
            return False
        queue.popleft()()
        return True
