"""What depends on where a model computes: how many tokens at once, and how far two ways to one number may differ."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TokensAtOnce:
    """How many tokens are computed together, by kind of device.

    Args:
        what: is computed, in the plural.
        cpu: how many on a CPU.
        elsewhere: how many on other devices that tell nothing of their memory.
        least, most: between which numbers it is measured how many suit a device that does (`sizes`); `least` is safe.
    """

    what: str
    cpu: int
    elsewhere: int
    least: int
    most: int

    def on(self, device: torch.device | str) -> int:
        """Return how many suit a device."""
        return self.cpu if torch.device(device).type == "cpu" else self.elsewhere

    def halved(self, tokens: int, used: int) -> int:
        """Return how many are left after memory ran out, and tell of it.

        Args:
            tokens: how many were allowed.
            used: how many there were when it ran out.
        """
        left = max(1, min(tokens, used) // 2)
        log.warning("out of memory: %s of at most %d tokens from now on", self.what, left)
        return left


# Padding included. On two CPU cores the zoo's search split took 0.13 s with 1024, 0.15 with 512, 0.16 with 4096 and
# 0.26 with 8192 (activations leave the cache); GPUs want more at once: on an H100, a model of 1.5 billion weights took
# 170 ms with 8192 for what took 143 ms with 32,768.
PASSES = TokensAtOnce("forward passes", cpu=1024, elsewhere=8192, least=2048, most=131_072)
# Prompts and answers together: a step costs one pass through all weights however many rows it serves, until their keys
# and values fill memory.
TEXTS = TokensAtOnce("batches of texts to write", cpu=16_384, elsewhere=131_072, least=8192, most=524_288)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a piece of work took of a device.

    Args:
        seconds: until it was done.
        bytes: the most memory that it held, beside what was held before.
    """

    seconds: float
    bytes: int


class Meter(Protocol):
    """Looks at a device while it works.

    Promises: nothing that was begun before counts to a cost, and what a run begins is done when its cost is told.
    """

    def free(self) -> int:
        """Return how many bytes of memory could be had now."""

    def cost(self, run: Callable[[], object]) -> Cost:
        """Run something once, and return what it took."""

    def tidy(self) -> None:
        """Give memory back to the device that nothing holds any more."""


class CudaMeter:
    """Looks at a GPU that torch calls ``cuda``, AMD's too; see `Meter`.

    Args:
        device: which one.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._device = torch.device(device)

    def free(self) -> int:
        """Return how many bytes are free, those that torch holds for later among them."""
        free, _ = torch.cuda.mem_get_info(self._device)
        return int(free + torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device))

    def cost(self, run: Callable[[], object]) -> Cost:
        """Return what a run took by the device's own clock."""
        torch.cuda.synchronize(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        held = torch.cuda.memory_allocated(self._device)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record(torch.cuda.current_stream(self._device))
        run()
        end.record(torch.cuda.current_stream(self._device))
        end.synchronize()
        return Cost(start.elapsed_time(end) / 1000, torch.cuda.max_memory_allocated(self._device) - held)

    def tidy(self) -> None:
        """Give back what torch holds for later: the largest that was tried may not be wanted again."""
        torch.cuda.empty_cache()


def meter_of(device: torch.device | str) -> Meter | None:
    """Return what looks at a device; None on a CPU, and where nothing tells how much memory work takes."""
    return CudaMeter(device) if torch.device(device).type == "cuda" else None


def name_of(device: torch.device | str) -> str:
    """Return what a device calls itself; of others than GPUs, what torch calls it."""
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else str(device)


@dataclass(frozen=True, slots=True)
class Rounding:
    """The largest difference of a log probability between two ways to compute it that counts as rounding, by dtype.

    Args:
        single: in float32.
        half: in narrower dtypes.
    """

    single: float
    half: float

    def allows(self, difference: float, dtype: torch.dtype) -> bool:
        """Say whether a difference may be rounding."""
        return difference <= (self.single if dtype == torch.float32 else self.half)


ENGINES = Rounding(single=0.01, half=0.5)
"""By another engine with other kernels."""
