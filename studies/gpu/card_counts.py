"""What one candidate asks of a card: kernels, waits of the host, memory."""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

REGION = "one candidate"
WAITS = (
    "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
    "cudaEventSynchronize",
    "cudaMemcpy",
    "cudaMemcpy2D",
    "cuStreamSynchronize",
    "cuCtxSynchronize",
    "cuEventSynchronize",
    "cuMemcpyDtoH_v2",
)
"""Calls in which the host waits for the device. A copy to pageable memory waits in one of them."""
ALLOCATIONS = ("cudaMalloc", "cudaFree", "cudaHostAlloc", "cudaFreeHost", "cudaHostRegister", "cuMemAlloc_v2")
"""Calls that may wait for all streams too."""
ITEM = "aten::_local_scalar_dense"
CALLS = ("cuda_runtime", "cuda_driver")
SYNCHRONISING = "called a synchronizing CUDA operation"


@dataclass(frozen=True, slots=True)
class Counts:
    """What one candidate took.

    Args:
        launches: kernels that ran on the device.
        waits: calls in which the host waited for the device, whatever made them.
        items: numbers fetched to the host one at a time.
        warned: operations that torch itself calls synchronizing.
        allocations: calls for memory of the device or page-locked memory that no allocator had left.
        peak: most bytes on the device beside what was there before.
        grown: bytes on the device that are still held after it.
    """

    launches: int
    waits: int
    items: int
    warned: int
    allocations: int
    peak: int
    grown: int


def tallied(events: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """Return how many launches, waits, items and allocations a trace shows from the begin of the region on.

    What the host calls counts until the region ends; kernels count later too, for the device lags behind.

    Args:
        events: ``traceEvents`` of a Chrome trace, as `torch.profiler` writes it.
    """
    seen = [each for each in events if each.get("ph") == "X"]
    inside = [each for each in seen if each["name"] == REGION and each.get("cat") == "user_annotation"]
    if len(inside) != 1:
        raise RuntimeError(f"expected one region of the profiler, got {len(inside)}")
    first = inside[0]["ts"]
    last = first + inside[0]["dur"]
    found: Counter[str] = Counter()
    for each in seen:
        if each["ts"] < first:
            continue
        kind, name = each.get("cat"), each["name"]
        found["launches"] += kind == "kernel"
        if each["ts"] <= last:
            found["waits"] += kind in CALLS and name in WAITS
            found["allocations"] += kind in CALLS and name in ALLOCATIONS
            found["items"] += kind == "cpu_op" and name == ITEM
    return found


def counted(action: Callable[[], object], device: torch.device) -> Counts:
    """Run an action three times, warm, and return what one run takes; on the CPU only numbers fetched can be seen."""
    on_card = device.type == "cuda"
    peak, grown = _memory(action, device) if on_card else (0, 0)
    warned = _warned(action) if on_card else 0
    found = tallied(_traced(action, device))
    return Counts(found["launches"], found["waits"], found["items"], warned, found["allocations"], peak, grown)


def _traced(action: Callable[[], object], device: torch.device) -> list[dict[str, Any]]:
    """Return the trace of an action; by way of a file, which is ten times as fast as the profiler's own events."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with warnings.catch_warnings(), _hushed():
        warnings.simplefilter("ignore")  # the profiler's own, of releases
        with profile(activities=activities) as profiler:
            with record_function(REGION):
                action()
            synchronize(device)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(file))
            return json.loads(file.read_text(encoding="utf-8"))["traceEvents"]


@contextmanager
def _hushed() -> Iterator[None]:
    """Keep stderr from the profiler, some releases of which write there from C++ that they start and stop."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _memory(action: Callable[[], object], device: torch.device) -> tuple[int, int]:
    gc.collect()
    synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    action()
    synchronize(device)
    gc.collect()
    return torch.cuda.max_memory_allocated(device) - before, torch.cuda.memory_allocated(device) - before


def _warned(action: Callable[[], object]) -> int:
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            action()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    return sum(SYNCHRONISING in str(each.message) for each in told)


def synchronize(device: torch.device) -> None:
    """Wait for a device; nothing on the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
