"""Experts' tensors on the device of the work, sent there one tensor ahead of it.

On a GPU the host reads and sends the next tensor's operands while the kernels of this one run: from page-locked memory,
on a stream of its own, and the work waits for what it needs alone. Page-locked memory for about two tensors of every
expert is taken for it and kept. On the CPU nothing has to be sent. Written for CUDA
and tested on the CPU, where the same order of work runs without streams; experimental until it was run on a GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from sae_moo.experts.pool import ExpertPool, TensorInfo

Sent = tuple[Tensor, Any]
"""A tensor, and the event after which it is there (None: at once)."""


class Feed:
    """Experts' tensors on a device, the next ones on their way while these are worked on.

    Args:
        pool: the experts.
        device: where the tensors are needed.
        names: the experts whose tensors will be asked for.
        ahead: whether to send ahead; None: on CUDA devices.
    """

    def __init__(
        self, pool: ExpertPool, device: torch.device | str, names: Sequence[str], ahead: bool | None = None
    ) -> None:
        self._pool = pool
        self._device = torch.device(device)
        if (
            self._device.type == "cuda" and self._device.index is None
        ):  # the sender's thread has a current one of its own
            self._device = torch.device("cuda", torch.cuda.current_device())
        self._names = tuple(names)
        self._ahead = self._device.type == "cuda" if ahead is None else ahead
        on = functools.partial(pool.load_on, device=self._device)
        self._direct = pool.load if self._device.type == "cpu" else on
        self._on_its_way: dict[str, dict[str, Future[Sent]]] = {}

    def begin(self, band: Sequence[TensorInfo], following: Sequence[TensorInfo] = ()) -> None:
        """Begin to send tensors of all experts, unless they are on their way, and those that follow them."""
        if not self._ahead:
            return
        wanted = [info.name for info in (*band, *following)]
        self._on_its_way = {tensor: self._on_its_way.get(tensor) or self._begun(tensor) for tensor in wanted}

    def get(self, name: str, tensor: str) -> Tensor:
        """Return one tensor of one expert on the device, as `ExpertPool.load_on`: do not write to it."""
        if not self._ahead:
            return self._direct(name, tensor)
        future = self._on_its_way.get(tensor, {}).get(name) or self._submitted(name, tensor)
        sent, ready = future.result()
        if ready is not None:
            work = torch.cuda.current_stream(self._device)
            work.wait_event(ready)
            sent.record_stream(work)
        return sent

    def _begun(self, tensor: str) -> dict[str, Future[Sent]]:
        return {name: self._submitted(name, tensor) for name in self._names}

    def _submitted(self, name: str, tensor: str) -> Future[Sent]:
        return _sender(str(self._device)).submit(self._send, name, tensor)

    def _send(self, name: str, tensor: str) -> Sent:
        if self._device.type != "cuda":
            return self._pool.load_on(name, tensor, self._device), None
        stream = _stream(str(self._device))
        with torch.cuda.stream(stream):
            sent = self._pool.load_on(name, tensor, self._device)
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record(stream)
        return sent, ready


@functools.cache
def _sender(device: str) -> ThreadPoolExecutor:
    """One thread for each device: what is sent there comes in the order it was asked for."""
    return ThreadPoolExecutor(1, thread_name_prefix=f"sae_moo to {device}")


@functools.cache
def _stream(device: str) -> Any:
    return torch.cuda.Stream(torch.device(device))  # type: ignore[no-untyped-call]
