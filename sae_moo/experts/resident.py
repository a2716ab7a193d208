"""What of the experts stays on a device: the tensors used most, within a budget of bytes."""

from __future__ import annotations

import functools
import logging
import sys
from collections import Counter
from collections.abc import Collection, Iterable
from threading import RLock

import torch
from torch import Tensor

from sae_moo.errors import out_of_memory

log = logging.getLogger(__name__)

SHARE = 0.5
"""What the experts' tensors may take of a device's memory that is free when the first of them is asked for."""
SET_ASIDE = 0.25
"""Most of the budget for whose sake tensors have to go: what else is kept of the experts; see `Resident.reserve`."""
RATIO, LEAD = 1.25, 8
"""How much more an expert has to be used than another to take its place: both a quarter more often and 8 times more.

Where all are used alike, counts differ by chance and nothing moves: a move costs what it could save in many uses.
"""
MEMORY = 1 << 12
"""Uses after which all counts are halved: what a search uses now counts more than what it used at its beginning."""


class Resident:
    """Experts' tensors that stay on one device, and how often each expert was used.

    First come, first kept, while the budget lasts. After that a tensor takes the place of others whose expert is used
    clearly less (`RATIO`, `LEAD`). One use of an expert is one recipe that reads it, so that the base, which most
    methods need, is the last to go. Tensors are worked with on the stream of the device that was current when they were
    kept, as all work of a process is by default.

    Args:
        budget: most bytes to keep; see `budget_of`.

    Attributes:
        tensors: name of an expert -> name of a tensor -> the tensor there: do not write to it. To be read, not changed;
            a look costs no more than that.
        reserved: bytes of the budget that are set aside; see `reserve`.
    """

    def __init__(self, budget: int) -> None:
        self.tensors: dict[str, dict[str, Tensor]] = {}
        self.reserved = 0
        self._budget = budget
        self._sizes: Counter[str] = Counter()
        self._uses: Counter[str] = Counter()
        self._left: list[Tensor] = []
        self._lock = RLock()

    @property
    def bytes(self) -> int:
        """Bytes of the tensors."""
        return self._sizes.total()

    @property
    def budget(self) -> int:
        """Most bytes to keep, with those set aside; tensors go when it is made smaller."""
        return self._budget

    @budget.setter
    def budget(self, most: int) -> None:
        with self._lock:
            self._budget = most
            self._drop(self._taken - most, self._by_uses())

    def get(self, name: str, tensor: str) -> Tensor | None:
        """Return one tensor of one expert if it is here: do not write to it."""
        held = self.tensors.get(name)
        return None if held is None else held.get(tensor)

    def count(self, names: Iterable[str]) -> None:
        """Note that a recipe reads experts."""
        with self._lock:
            self._uses.update(names)
            if self._uses.total() > MEMORY:
                self._uses = Counter({name: uses // 2 for name, uses in self._uses.items()})

    def keep(self, name: str, tensor: str, sent: Tensor, *, own: bool) -> Tensor:
        """Keep a tensor that is on the device now, if there is room for it or another is used less.

        Too little memory on the device is no failure: nothing more is kept then.

        Args:
            name: the expert.
            tensor: the tensor's name.
            sent: the tensor.
            own: whether its memory is its own; otherwise a copy is kept, made on the current stream.

        Returns:
            What is kept, or the tensor as it was given.
        """
        size = sent.nbytes
        with self._lock:
            there = self.get(name, tensor)
            if there is not None or size > self._room(name):
                return sent if there is None else there
            self._drop(self._taken + size - self._budget, self._used_less(name))
            if not own:
                try:
                    sent = sent.clone()
                except RuntimeError as error:
                    if not out_of_memory(error):
                        raise
                    self._budget = self._taken
                    _tell_full()
                    return sent
            self.tensors.setdefault(name, {})[tensor] = sent
            self._sizes[name] += size
            return sent

    def reserve(self, nbytes: int) -> bool:
        """Set bytes of the budget aside for what else is kept on the device, such as histograms of experts.

        Where the budget is used up, the tensors used least go, for at most `SET_ASIDE` of the budget in all.

        Returns:
            Whether the bytes are set aside; if not, whoever asks has to do without.
        """
        with self._lock:
            short = self._taken + nbytes - self._budget
            if short > self.bytes or (short > 0 and self.reserved + nbytes > SET_ASIDE * self._budget):
                return False
            self._drop(short, self._by_uses())
            self.reserved += nbytes
            return True

    def release(self, nbytes: int) -> None:
        """Give back bytes that were set aside."""
        with self._lock:
            self.reserved -= nbytes

    def give_back(self, nbytes: int, but: Collection[str] = ()) -> int:
        """Let tensors go, the least used first, and do without that room from now on: the device needs it elsewhere.

        Args:
            nbytes: bytes that should become free; less do if there is no more.
            but: names of the tensors that are being worked on: these stay.

        Returns:
            Bytes that are free now.
        """
        with self._lock:
            before = len(self._left)
            freed = self._drop(nbytes, self._by_uses(), but)
            del self._left[before:]
            self._budget = min(self._budget, self._taken)
            return freed

    def left(self) -> list[Tensor]:
        """Return the tensors that had to go since this was last asked: whoever was given one may still read it."""
        with self._lock:
            gone, self._left = self._left, []
        return gone

    @property
    def _taken(self) -> int:
        return self.bytes + self.reserved

    def _room(self, name: str) -> int:
        """Return the bytes that a tensor of an expert could have, others giving way."""
        return self._budget - self._taken + sum(self._sizes[other] for other in self._used_less(name))

    def _by_uses(self) -> list[str]:
        return sorted(self.tensors, key=lambda name: self._uses[name])

    def _used_less(self, name: str) -> list[str]:
        """Return the experts that give way to another, the least used first."""
        most = min(self._uses[name] / RATIO, self._uses[name] - LEAD)
        return [other for other in self._by_uses() if self._uses[other] <= most]

    def _drop(self, nbytes: int, names: Iterable[str], but: Collection[str] = ()) -> int:
        """Let tensors of experts go, in this order and the last of each first, until so many bytes are free."""
        freed = 0
        for name in names:
            held = self.tensors[name]
            for tensor in [tensor for tensor in reversed(held) if tensor not in but] if freed < nbytes else ():
                gone = held.pop(tensor)
                self._sizes[name] -= gone.nbytes
                freed += gone.nbytes
                self._left.append(gone)
                if freed >= nbytes:
                    break
        return freed


def budget_of(device: torch.device) -> int:
    """Return how many bytes of experts' tensors a device keeps by itself.

    `SHARE` of what is free on a CUDA device now; on the CPU, where they are mapped from their files, there is no bound;
    elsewhere nothing is known of the memory, and nothing is kept.
    """
    if device.type == "cpu":
        return sys.maxsize
    return int(SHARE * torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else 0


@functools.cache
def _tell_full() -> None:
    log.warning("the device's memory is full: no more of the experts is kept there, the rest is sent each time")
