"""Annealing schedules: pure functions of the step; and one that learns, with its state in an object of its own.

Within each cycle the value climbs from `low` to `high`; a restart drops it back to `low`. Cycle i (from 0) lasts
``period * growth**i`` steps. Source: the cyclic annealing of Zhang, Zhang et al. 2026 (arXiv 2602.08218); the forms are
ours except `sae-published`, the sine form over the upper half of the range that the published code runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

SHAPES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda u: 1.0,
    "sawtooth": lambda u: u,
    "sine": lambda u: math.sin(math.pi * u / 2),
    "cosine": lambda u: (1 - math.cos(math.pi * u)) / 2,
    "sae-published": lambda u: 0.5 + 0.5 * math.sin(math.pi * u / 2),
}


ADAPTIVE = "adaptive"  # the schedule that learns: `Adaptive`


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
        _, into, length = self.cycle(step)
        return into / length

    def cycle(self, step: int) -> tuple[int, float, float]:
        """Return which cycle a step is in (from 0), how many steps into it, and how many steps it lasts.

        Raises:
            ValueError: for a negative step.
        """
        if step < 0:
            raise ValueError(f"step: expected 0 or more, got {step}")
        number, start, length = 0, 0.0, float(self.period)
        while step >= start + length:
            number += 1
            start += length
            length *= self.growth
        return number, step - start, length


class Uniform(Protocol):
    """What `Bandit.draw` draws with; a `numpy.random.Generator` is one."""

    def random(self) -> float:
        """Return a number in [0, 1)."""


@dataclass(frozen=True, slots=True)
class Adaptive:
    """Settings of a schedule that learns which ratio pays; see `Bandit`. Ours: the papers name it as future work.

    Args:
        low: smallest ratio, in [0, 1).
        high: largest ratio, in [low, 1).
        arms: ratios to choose from, evenly spaced, both ends among them; at least 2.
        rate: share of an estimate that a new gain replaces, in (0, 1]; what paid early in a search need not pay late.
        floor: least probability of every arm, in (0, 1 / arms].

    Raises:
        ValueError: naming the setting out of range.
    """

    low: float = 0.0
    high: float = 0.6
    arms: int = 7
    rate: float = 0.1
    floor: float = 0.05

    def __post_init__(self) -> None:
        if not 0.0 <= self.low <= self.high < 1.0:
            raise ValueError(f"low, high: expected 0 <= low <= high < 1, got low={self.low}, high={self.high}")
        if self.arms < 2:
            raise ValueError(f"arms: expected at least 2, got {self.arms}")
        if not 0.0 < self.rate <= 1.0:
            raise ValueError(f"rate: expected a number in (0, 1], got {self.rate}")
        if not 0.0 < self.floor <= 1.0 / self.arms:
            raise ValueError(f"floor: expected a number in (0, 1/{self.arms}], got {self.floor}")

    @property
    def ratios(self) -> tuple[float, ...]:
        """The arms, ascending."""
        return tuple(self.low + (self.high - self.low) * i / (self.arms - 1) for i in range(self.arms))


class Bandit:
    """Chooses pruning ratios by the hypervolume that children pruned at them have gained: probability matching.

    An arm's estimate begins at its first child's gain and follows those of the next, a new one replacing the share
    `Adaptive.rate` of it. An arm is drawn in proportion to its estimate, never below `Adaptive.floor`; one without a
    child yet counts as the best, and as long as nothing was gained all are alike. The state is the estimates, and what
    is drawn and credited in the same order gives the same ones.

    Args:
        settings: the arms, and how fast estimates move.

    Attributes:
        estimates: hypervolume gained per child, one per arm; None before its first child.
    """

    def __init__(self, settings: Adaptive) -> None:
        self.settings = settings
        self.estimates: list[float | None] = [None] * settings.arms

    @property
    def probabilities(self) -> tuple[float, ...]:
        """Probability of every arm."""
        arms, floor = self.settings.arms, self.settings.floor
        best = max((estimate for estimate in self.estimates if estimate is not None), default=0.0)
        hopes = [best if estimate is None else estimate for estimate in self.estimates]
        if best <= 0.0:
            return (1.0 / arms,) * arms
        return tuple(floor + (1.0 - arms * floor) * hope / sum(hopes) for hope in hopes)

    def draw(self, rng: Uniform) -> float:
        """Return one arm's ratio."""
        place = float(rng.random())
        for ratio, probability in zip(self.settings.ratios, self.probabilities, strict=True):
            place -= probability
            if place < 0.0:
                return ratio
        return self.settings.ratios[-1]

    def credit(self, ratio: float, gain: float) -> None:
        """Take in what a child gained.

        Args:
            ratio: what it was pruned at, as `draw` returned it.
            gain: hypervolume that it added to the front, at least 0.
        """
        arm = min(range(self.settings.arms), key=lambda i: abs(self.settings.ratios[i] - ratio))
        before = self.estimates[arm]
        self.estimates[arm] = gain if before is None else before + self.settings.rate * (gain - before)
