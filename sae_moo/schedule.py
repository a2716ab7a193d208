"""Annealing schedules: pure functions of the step.

Within each cycle the value climbs from `low` to `high`; a restart drops it back to `low`. Cycle i (from 0) lasts
``period * growth**i`` steps. Source: the cyclic annealing of Zhang, Zhang et al. 2026 (arXiv 2602.08218); the forms are
ours except `sae-published`, the sine form over the upper half of the range that the published code runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

SHAPES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda u: 1.0,
    "sawtooth": lambda u: u,
    "sine": lambda u: math.sin(math.pi * u / 2),
    "cosine": lambda u: (1 - math.cos(math.pi * u)) / 2,
    "sae-published": lambda u: 0.5 + 0.5 * math.sin(math.pi * u / 2),
}


@dataclass(frozen=True, slots=True)
class Schedule:
    """One schedule's settings; call it with a step.

    Args:
        shape: a name of `SHAPES`; ``constant`` stays at `high`.
        low: value at the start of every cycle, in [0, 1).
        high: value that the end of every cycle approaches, in [low, 1).
        period: steps of the first cycle, at least 1.
        growth: factor from one cycle's length to the next, at least 1.

    Raises:
        ValueError: naming the setting out of range.
    """

    shape: str = "cosine"
    low: float = 0.0
    high: float = 0.6
    period: int = 8
    growth: float = 2.0

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"shape: expected one of {', '.join(SHAPES)}, got {self.shape!r}")
        if not 0.0 <= self.low <= self.high < 1.0:
            raise ValueError(f"low, high: expected 0 <= low <= high < 1, got low={self.low}, high={self.high}")
        if self.period < 1:
            raise ValueError(f"period: expected at least 1 step, got {self.period}")
        if self.growth < 1.0:
            raise ValueError(f"growth: expected at least 1, got {self.growth}")

    def __call__(self, step: int) -> float:
        """Return the value at `step` (from 0), in [low, high]."""
        return self.low + (self.high - self.low) * SHAPES[self.shape](self.position(step))

    def position(self, step: int) -> float:
        """Return the place in the current cycle, u in [0, 1); 0 right after a restart.

        Raises:
            ValueError: for a negative step.
        """
        if step < 0:
            raise ValueError(f"step: expected 0 or more, got {step}")
        start, length = 0.0, float(self.period)
        while step >= start + length:
            start += length
            length *= self.growth
        return (step - start) / length
