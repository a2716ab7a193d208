"""Weights of candidates already materialized, bounded in bytes: on the device that made them, then on the host."""

from __future__ import annotations

import functools
import logging
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain

import torch
from torch import Tensor

from sae_moo.errors import out_of_memory
from sae_moo.materialization.link import Event, Link, link_to, located
from sae_moo.recipe import Recipe

log = logging.getLogger(__name__)

SHARE = 0.25
"""What candidates may take of a device's memory that is free when the first of them is held: the live model, experts
and what merging needs are there by then; scoring needs the rest."""
PART, SMALLEST = 1 << 29, 1 << 24
"""Bytes of a candidate that lie together, at most and at least: one copy moves them. Torch rounds page-locked memory up
to powers of two, so parts are of such sizes, and a dropped candidate's are there for the next."""
ALIGNED = 256
"""Bytes on which every tensor begins, as torch has it for tensors of their own."""


class WeightCache:
    """Materialized candidates, least recently used out first, bounded in bytes.

    It never changes a bit: it holds what a `Cast` node rounded, and an evicted candidate is recomputed from its recipe.

    Candidates made on a CUDA device stay there while there is room; the least recently used go to the host's memory
    (page-locked where it can be had, so that they come back fast), and from there out. Too little memory on the device
    is no failure: the host's is used. What was made elsewhere is held in the host's memory.

    Args:
        max_bytes: most bytes of weights to hold in all, on the device and the host; 0 switches it off.
        device_bytes: most of them on the device; None: `SHARE` of what is free there when the first candidate is held.
    """

    def __init__(self, max_bytes: int, device_bytes: int | None = None) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes: expected 0 or more, got {max_bytes}")
        if device_bytes is not None and device_bytes < 0:
            raise ValueError(f"device_bytes: expected 0 or more, got {device_bytes}")
        self.max_bytes = max_bytes
        self.device_bytes = device_bytes
        self.bytes = 0
        self._held: OrderedDict[Recipe, _Held] = OrderedDict()

    def __contains__(self, recipe: object) -> bool:
        return recipe in self._held

    def __iter__(self) -> Iterator[Recipe]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    @property
    def bytes_on_device(self) -> int:
        """Bytes of the weights that are held on a device."""
        return sum(held.bytes_on_device for held in self._held.values())

    def get(self, recipe: Recipe) -> Mapping[str, Tensor]:
        """Return the weights of a held recipe, on the device or the host, and mark it as just used: do not write."""
        self._held.move_to_end(recipe)
        return self._held[recipe].weights()

    def put(self, recipe: Recipe, parameters: Iterable[tuple[str, Tensor]], size: int) -> None:
        """Hold a copy, dropping the least recently used; a model larger than the bound is not held.

        Args:
            recipe: what the weights are of; a `Cast` to their own dtype.
            parameters: names and weights, taken one by one.
            size: bytes of all of them.
        """
        if recipe in self._held or size > self.max_bytes:
            return
        while self.bytes + size > self.max_bytes:
            self.bytes -= self._held.popitem(last=False)[1].size
        named = ((name, weight.detach()) for name, weight in parameters)
        first = next(named, None)
        link = None if first is None else link_to(located(first[1].device))
        every = named if first is None else chain([first], named)
        if link is None:
            # in host memory: on another device nothing is known of the room there
            self._held[recipe] = _Held(size, {name: weight.to("cpu", copy=True) for name, weight in every})
        else:
            self._held[recipe] = self._copied(every, size, link)
        self.bytes += size

    def to_host(self, nbytes: int) -> int:
        """Move candidates from the device to the host, the least recently used first: the device needs the room.

        Args:
            nbytes: bytes that should become free on the device.

        Returns:
            Bytes that become free there as soon as the copies that were begun are over.
        """
        moved = 0
        for held in self._held.values():
            if moved >= nbytes:
                break
            moved += held.to_host()
        return moved

    def _copied(self, named: Iterable[tuple[str, Tensor]], size: int, link: Link) -> _Held:
        """Return a copy of weights that are on a device: there, or what has no room there on the host."""
        if self.device_bytes is None:
            self.device_bytes = int(SHARE * link.free())
        fits = size <= self.device_bytes
        if fits:
            self.to_host(self.bytes_on_device + size - self.device_bytes)
        held = _Held(size)
        for tensors in _parts(named, size):
            part = _Part(tensors, link)
            if fits:
                try:
                    part.copy_on_device_(tensors)
                except RuntimeError as error:
                    if not out_of_memory(error):
                        raise
                    fits = False
                    self.device_bytes = self.bytes_on_device + held.bytes_on_device
                    _tell_full()
            if not fits:
                part.copy_to_host_(tensors)
            held.parts.append(part)
        return held


class _Part:
    """Some tensors of a candidate in one piece of memory, of the device or the host.

    Args:
        tensors: names and weights, for their forms.
        link: to their device.
    """

    def __init__(self, tensors: Sequence[tuple[str, Tensor]], link: Link) -> None:
        self._link = link
        self._forms = [(name, weight.dtype, weight.shape, weight.numel()) for name, weight in tensors]
        self._offsets = [0, *accumulate(_aligned(weight.nbytes) for _, weight in tensors)]
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._weights: dict[str, Tensor] = {}
        self._there: Event = None
        self.on_device = False

    @property
    def nbytes(self) -> int:
        return self._offsets[-1]

    def copy_on_device_(self, tensors: Sequence[tuple[str, Tensor]]) -> None:
        """Hold a copy on the device, made in the order of the work."""
        self._place(self._link.empty(self.nbytes), on_device=True)
        by_dtype: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for copy, (_, weight) in zip(self.weights().values(), tensors, strict=True):
            copies, weights = by_dtype.setdefault(weight.dtype, ([], []))
            copies.append(copy)
            weights.append(weight)
        for copies, weights in by_dtype.values():
            torch._foreach_copy_(copies, weights)

    def copy_to_host_(self, tensors: Sequence[tuple[str, Tensor]]) -> None:
        """Hold a copy on the host."""
        self._place(self._link.staging(self.nbytes), on_device=False)
        copies = list(self.weights().values())
        self._there = self._link.fetch([weight for _, weight in tensors], copies)
        self._link.join(self._there)  # these may be a live model's, which the work writes over next

    def to_host(self) -> None:
        """Move from the device to the host; who was given the weights has them there still."""
        host = self._link.staging(self.nbytes)
        self._there = self._link.fetch([self._memory], [host])
        self._place(host, on_device=False)

    def weights(self) -> dict[str, Tensor]:
        """Return the tensors by name, when they are there."""
        if self._there is not None:
            self._link.wait(self._there)
            self._there = None
        return self._weights

    def _place(self, memory: Tensor, *, on_device: bool) -> None:
        self._memory, self.on_device = memory, on_device
        typed = {dtype: memory.view(dtype) for dtype in {dtype for _, dtype, _, _ in self._forms}}
        self._weights = {}
        for (name, dtype, shape, numel), offset in zip(self._forms, self._offsets, strict=False):
            begin = offset // dtype.itemsize
            self._weights[name] = typed[dtype][begin : begin + numel].view(shape)


class _Held:
    """The weights of one candidate: tensors of their own, or parts.

    Args:
        size: bytes.
        tensors: by name; None where they are in `parts`.
    """

    def __init__(self, size: int, tensors: Mapping[str, Tensor] | None = None) -> None:
        self.size = size
        self.parts: list[_Part] = []
        self._tensors = tensors

    @property
    def bytes_on_device(self) -> int:
        return sum(part.nbytes for part in self.parts if part.on_device)

    def weights(self) -> Mapping[str, Tensor]:
        if self._tensors is not None:
            return self._tensors
        return {name: tensor for part in self.parts for name, tensor in part.weights().items()}

    def to_host(self) -> int:
        """Move what is on the device; return how many bytes that was."""
        moved = [part for part in self.parts if part.on_device]
        for part in moved:
            part.to_host()
        return sum(part.nbytes for part in moved)


def _parts(named: Iterable[tuple[str, Tensor]], size: int) -> Iterator[list[tuple[str, Tensor]]]:
    """Yield weights in parts, each of as many as fit into a power of two of bytes, and of one at least."""
    part: list[tuple[str, Tensor]] = []
    held, left, most = 0, size, _power(size)
    for name, weight in named:
        taken = _aligned(weight.nbytes)
        if part and held + taken > most:
            yield part
            left -= held
            part, held, most = [], 0, _power(left)
        part.append((name, weight))
        held += taken
    if part:
        yield part


def _power(nbytes: int) -> int:
    """Return the bytes of the next part, where so many are left."""
    return min(PART, max(SMALLEST, 1 << max(nbytes, 1).bit_length() - 1))


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNED) * ALIGNED


@functools.cache
def _tell_full() -> None:
    log.warning("the device's memory is full: no more candidates are held there, the host's memory holds them")
