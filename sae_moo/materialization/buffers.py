"""Memory for intermediate tensors: reused, and bounded however many a recipe needs at once."""

from __future__ import annotations

import functools
import logging
import os
import tempfile

import torch
from torch import Tensor

log = logging.getLogger(__name__)


class Buffers:
    """Memory for intermediate tensors, used again and again: fresh memory costs as much as the arithmetic.

    Beyond a bound it lies in temporary files that no other process sees, mapped into memory: the system may write them
    out when it needs the room, and they are gone with the process. They are made in Python's folder for temporary files
    (set TMPDIR where that is itself in memory). Where the disk has no room, memory is used all the same, with a
    warning. On other devices than the CPU there is no bound.

    Args:
        device: where the memory is.
        bound: most bytes outside of files; None is no bound.
    """

    def __init__(self, device: torch.device | str, bound: int | None = None) -> None:
        self._device = torch.device(device)
        self._bound = bound if self._device.type == "cpu" else None
        self._free: list[Tensor] = []
        self._mapped: set[int] = set()  # where the buffers in files begin
        self.bytes = 0
        """Bytes outside of files, lent or free."""

    def take(self, numel: int, dtype: torch.dtype) -> Tensor:
        """Return at least as many bytes as so many elements need; what they hold is undefined."""
        size = numel * dtype.itemsize
        fitting = [buffer for buffer in self._free if buffer.numel() >= size]
        if fitting:
            chosen = min(fitting, key=lambda buffer: (buffer.data_ptr() in self._mapped, buffer.numel()))
            self._remove(chosen)
            return chosen
        if self._free:  # too small: make room for one that serves both
            largest = max(self._free, key=lambda buffer: buffer.numel())
            self._remove(largest)
            if largest.data_ptr() in self._mapped:
                self._mapped.remove(largest.data_ptr())
            else:
                self.bytes -= largest.numel()
            del largest
        if self._bound is not None and self.bytes + size > self._bound:
            in_file = _in_file(size)
            if in_file is not None:
                self._mapped.add(in_file.data_ptr())
                return in_file
        self.bytes += size
        return torch.empty(size, dtype=torch.uint8, device=self._device)

    def give(self, buffer: Tensor) -> None:
        """Take a buffer back."""
        self._free.append(buffer)

    def _remove(self, buffer: Tensor) -> None:
        self._free = [each for each in self._free if each is not buffer]


def _in_file(size: int) -> Tensor | None:
    """Return memory that lies in a file without a name; None if there is no room for it."""
    if size == 0:
        return None
    try:
        with tempfile.NamedTemporaryFile(prefix="sae_moo_") as file:
            _reserve(file.fileno(), size)
            return torch.from_file(file.name, shared=True, size=size, dtype=torch.uint8)
    except (OSError, RuntimeError) as error:  # torch's word for a mapping that fails is RuntimeError
        _warn(str(error))
        return None


@functools.cache
def _warn(reason: str) -> None:
    """Say once, not for every candidate, that the bound is not kept."""
    log.warning("no room for intermediate results in files under %s, memory is used: %s", tempfile.gettempdir(), reason)


def _reserve(descriptor: int, size: int) -> None:
    """Make a file so long, its blocks set aside: a full disk must be an error here, not a crash at the first write."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.truncate(descriptor, size)
