"""The tensors of a plan's nodes while it runs: how they will be written, where they are, and until when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sae_moo.materialization.buffers import Buffers
from sae_moo.materialization.ops.engine import Engine, Zeros
from sae_moo.materialization.ops.jobs import Job, Pruned

APART = 256
"""Bytes that tensors in one piece of memory begin at multiples of: kernels read many elements at once if they can."""


@dataclass(slots=True, eq=False)
class Value:
    """One node's tensor while a plan runs: flat and ready, or how to write it where it will be needed.

    Args:
        dtype: what the node's result is rounded to: float32 for arithmetic, the stored dtype otherwise.
        numel: number of elements.
        users: how many nodes still need it.
        tensor: itself, once it is ready.
        job: how to write it, until then.
        needs: what that reads.
        name: the expert it is of, or None.
        lease: the memory it lies in, if it is the plan's.
    """

    dtype: torch.dtype
    numel: int
    users: int
    tensor: Tensor | None = None
    job: Job | None = None
    needs: tuple[Value, ...] = ()
    name: str | None = None
    lease: Lease | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return self.numel * self.dtype.itemsize

    @property
    def work(self) -> Job:
        """What writes it somewhere: a copy, if it is ready."""
        if self.tensor is not None:
            return Pruned(self.tensor)
        assert self.job is not None
        return self.job


@dataclass(slots=True, eq=False)
class Lease:
    """A buffer lent to some values, until none of them is needed any more."""

    buffer: Tensor
    values: int


Values = list[Value | None]
"""A node's tensors of a band; None where a question about them has no answer yet."""


class Desk:
    """Where values are written and kept until they have been used.

    Args:
        engine: who writes.
        device: where.
        bound: most bytes of values in memory, on the CPU; see `Buffers`.
    """

    def __init__(self, engine: Engine, device: torch.device, bound: int) -> None:
        self._engine = engine
        self._device = device
        self._buffers = Buffers(device, bound)

    def copied(self, tensor: Tensor) -> tuple[Tensor, Lease]:
        """Return a copy of a flat tensor in lent memory."""
        lease = Lease(self._buffers.take(tensor.numel(), tensor.dtype), 1)
        return lease.buffer[: tensor.nbytes].view(tensor.dtype).copy_(tensor), lease

    def ready(self, values: Sequence[Value]) -> list[Tensor]:
        """Return values' tensors, written into lent memory if they were not yet."""
        waiting = list({id(value): value for value in values if value.tensor is None}.values())
        if waiting:
            sizes = _sizes(waiting)
            if self._engine.batched:
                lease = Lease(torch.empty(sum(sizes), dtype=torch.uint8, device=self._device), len(waiting))
            else:
                lease = Lease(self._buffers.take(sum(sizes), torch.uint8), len(waiting))
            tensors = _split(lease.buffer, sizes, waiting)
            self._engine.write(
                [(value.work, tensor) for value, tensor in zip(waiting, tensors, strict=True)], counted=False
            )
            for value, tensor in zip(waiting, tensors, strict=True):
                value.tensor, value.lease = tensor, lease
                self._release(value)
        return [ready for value in values if (ready := value.tensor) is not None]

    def fresh(self, values: Sequence[Value]) -> list[Tensor]:
        """Return memory of nobody's for some values: where many are worked on at once, one piece for all."""
        if not self._engine.batched:
            return [torch.empty(value.numel, dtype=value.dtype, device=self._device) for value in values]
        sizes = _sizes(values)
        return _split(torch.empty(sum(sizes), dtype=torch.uint8, device=self._device), sizes, values)

    def write(self, values: Sequence[Value], outs: Sequence[Tensor], *, counted: bool = True) -> Zeros:
        """Write values for the last time."""
        work = [(value.work, out) for value, out in zip(values, outs, strict=True)]
        zeros = self._engine.write(work, counted=counted)
        for value in values:
            if value.tensor is not None:
                value.users = 1
                self._used(value)
            else:
                self._release(value)
        return zeros

    def _release(self, value: Value) -> None:
        """What a value was computed from is not needed any more on its behalf."""
        needs, value.needs, value.job = value.needs, (), None
        for each in needs:
            self._used(each)

    def _used(self, value: Value) -> None:
        value.users -= 1
        if value.users == 0 and value.lease is not None:
            lease, value.lease, value.tensor = value.lease, None, None
            lease.values -= 1
            if not lease.values and not self._engine.batched:
                self._buffers.give(lease.buffer)


def _sizes(values: Sequence[Value]) -> list[int]:
    """Return the bytes of values in one piece of memory."""
    if len(values) == 1:
        return [values[0].nbytes]
    return [-(-value.nbytes // APART) * APART for value in values]


def _split(piece: Tensor, sizes: Sequence[int], values: Sequence[Value]) -> list[Tensor]:
    """Return a piece of memory, of that size at least, in parts."""
    parts, start = [], 0
    for size, value in zip(sizes, values, strict=True):
        parts.append(piece[start : start + value.nbytes].view(value.dtype))
        start += size
    return parts
