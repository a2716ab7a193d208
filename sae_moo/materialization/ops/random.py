"""Random numbers that are a function of their place: counter-based, the same on every device and in any order.

The number of an element is a hash of its position under two keys drawn from seed, tensor and input: a 32-bit finalizer
(two multiplications and three shifts that mix every input bit into every output bit), keyed before it and in its
middle. So no state is passed along, and two streams are not one stream in another order.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
FIRST, SECOND = 0x7FEB352D, 0x846CA68B


@dataclass(frozen=True, slots=True)
class Draws:
    """Random 32-bit numbers by position.

    Args:
        keys: two 32-bit keys.
    """

    keys: tuple[int, int]

    @classmethod
    def of(cls, seed: int, *place: str) -> Draws:
        """Return the stream of a seed at a place (names of tensor and input)."""
        digest = hashlib.sha256("\0".join([str(seed), *place]).encode()).digest()
        return cls((int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")))

    def draw(self, start: int, count: int, device: torch.device | str = "cpu") -> Tensor:
        """Return the numbers at positions ``start ... start + count - 1``; int64 in [0, 2^32)."""
        position = torch.arange(start, start + count, dtype=torch.int64, device=device)
        x = (position & MASK) ^ self.keys[0]
        x = x ^ (x >> 16)
        x = (x * FIRST) & MASK  # wraps around in int64; the low 32 bits are right all the same
        x = x ^ self.keys[1] ^ (position >> 32)
        x = x ^ (x >> 15)
        x = (x * SECOND) & MASK
        return x ^ (x >> 16)


def threshold(density: float) -> int:
    """Return the number under which elements are dropped, for a chance `density` to stay."""
    return round((1.0 - min(max(density, 0.0), 1.0)) * 2**32)
