"""What depends on where a model computes: how many tokens at once, and how far two ways to one number may differ."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TokensAtOnce:
    """How many tokens are computed together, by kind of device.

    Args:
        what: is computed, in the plural.
        cpu: how many on a CPU.
        elsewhere: how many on other devices.
    """

    what: str
    cpu: int
    elsewhere: int

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
# 0.26 with 8192 (activations leave the cache); GPUs want more at once.
PASSES = TokensAtOnce("forward passes", cpu=1024, elsewhere=8192)
# Prompts and answers together: a step costs one pass through all weights however many rows it serves, until their keys
# and values fill memory.
TEXTS = TokensAtOnce("batches of texts to write", cpu=16_384, elsewhere=131_072)


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
