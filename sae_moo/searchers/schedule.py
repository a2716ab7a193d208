"""Annealing schedules: pure functions of the step; and one that learns, with its state in an object of its own.

Within each cycle the value climbs from `low` to `high`; a restart drops it back to `low`. Cycle i (from 0) lasts
``period * growth**i`` steps. Source: the cyclic annealing of Zhang, Zhang et al. 2026 (arXiv 2602.08218); the forms are
ours except `sae-published`, the sine form over the upper half of the range that the published code runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

from sae_moo.recipe.section import Count, Field, Section, Sparsity, ValidationInfo, field_validator

SHAPES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda u: 1.0,
    "sawtooth": lambda u: u,
    "sine": lambda u: math.sin(math.pi * u / 2),
    "cosine": lambda u: (1 - math.cos(math.pi * u)) / 2,
    "sae-published": lambda u: 0.5 + 0.5 * math.sin(math.pi * u / 2),
}


ADAPTIVE = "adaptive"  # the schedule that learns: `Adaptive`
PUBLISHED = ("cosine", 0.6)  # schedule and high of the methods of others


def _above(high: float, info: ValidationInfo) -> float:
    """Return the upper end of a range, checked against the lower."""
    low = info.data.get("low", 0.0)
    if low > high:
        raise ValueError(f"expected low <= high, got {low} > {high}")
    return high


class Schedule(Section):
    """``annealing``: how hard pruning-merging cycles prune; a period counts generations.

    Call it with a step. Where `schedule` or `high` is None it follows what is `PUBLISHED`, unless a search algorithm
    fills in its own (`filled`).
    """

    schedule: Literal["cosine", "sine", "sawtooth", "constant", "sae-published", "adaptive"] | None = Field(
        default=None,
        description="course of the largest pruning ratio over the generations; null: constant in our own search, "
        "cosine in the methods of others",
    )
    low: Sparsity = Field(default=0.0, description="ratio at the start of every cycle")
    high: Sparsity | None = Field(
        default=None,
        description="ratio that every cycle approaches; null: 0.8 in our own search, 0.6 in the methods of others. "
        "Over coefficients it bounds the first population alone",
    )
    period: Count = Field(default=8, description="generations of the first cycle")
    growth: Annotated[float, Field(ge=1.0, le=1000.0)] = Field(
        default=2.0, description="how many times as long each cycle is as the one before"
    )

    @field_validator("high")
    @classmethod
    def _ascends(cls, high: float | None, info: ValidationInfo) -> float | None:
        return None if high is None else _above(high, info)

    def filled(self, schedule: str, high: float) -> Schedule:
        """Return it with what is None filled in.

        Raises:
            ValueError: if `low` is above what `high` becomes.
        """
        mine = {"schedule": self.schedule or schedule, "high": high if self.high is None else self.high}
        return Schedule.model_validate({**self.model_dump(), **mine})

    @property
    def top(self) -> float:
        """The largest ratio."""
        return PUBLISHED[1] if self.high is None else self.high

    @property
    def adapts(self) -> bool:
        """Whether ratios are learned (`learning`), so that no step has one."""
        return self.schedule == ADAPTIVE

    def learning(self) -> Adaptive:
        """Return the settings of what learns ratios within the same bounds."""
        return Adaptive(low=self.low, high=self.top)

    def __call__(self, step: int) -> float:
        """Return the value at `step` (from 0), in [low, high].

        Raises:
            ValueError: for a negative step, or if it adapts.
        """
        if self.adapts:
            raise ValueError("schedule: an adaptive one has no value for a step; it learns")
        return self.low + (self.top - self.low) * SHAPES[self.schedule or PUBLISHED[0]](self.position(step))

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


class Adaptive(Section):
    """Settings of a schedule that learns which ratio pays; see `Bandit`. Ours: the papers name it as future work."""

    low: Sparsity = Field(default=0.0, description="smallest ratio")
    high: Sparsity = Field(default=0.6, validate_default=True, description="largest ratio, at least `low`")
    arms: Annotated[int, Field(ge=2)] = Field(
        default=7, description="ratios to choose from, evenly spaced, both ends among them"
    )
    rate: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=0.1,
        description="share of an estimate that a new gain replaces; what paid early in a search need not pay late",
    )
    floor: Annotated[float, Field(gt=0.0)] = Field(
        default=0.05, validate_default=True, description="least probability of every arm, at most 1 / arms"
    )

    @field_validator("high")
    @classmethod
    def _ascends(cls, high: float, info: ValidationInfo) -> float:
        return _above(high, info)

    @field_validator("floor")
    @classmethod
    def _possible(cls, floor: float, info: ValidationInfo) -> float:
        if floor > 1.0 / info.data.get("arms", 1):
            raise ValueError(f"expected at most 1/{info.data['arms']}, got {floor}")
        return floor

    @property
    def top(self) -> float:
        """The largest ratio."""
        return self.high

    @property
    def ratios(self) -> tuple[float, ...]:
        """The arms, ascending."""
        return tuple(self.low + (self.high - self.low) * i / (self.arms - 1) for i in range(self.arms))


class Arms(Protocol):
    """What a `Bandit` chooses from; `Adaptive` is one."""

    @property
    def ratios(self) -> tuple[float, ...]:
        """What the arms are called, ascending."""

    @property
    def rate(self) -> float:
        """Share of an estimate that a new gain replaces, above 0, at most 1."""

    @property
    def floor(self) -> float:
        """Least probability of every arm, above 0, at most 1 / arms."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Arms that are no pruning ratios; see `Arms`."""

    ratios: tuple[float, ...]
    rate: float = 0.1
    floor: float = 0.05


class Bandit:
    """Chooses pruning ratios by the hypervolume that children pruned at them have gained: probability matching.

    An arm's estimate begins at its first child's gain and follows those of the next, a new one replacing the share
    `Arms.rate` of it. An arm is drawn in proportion to its estimate, never below `Arms.floor`; one without a child yet
    counts as the best, and as long as nothing was gained all are alike. The state is the estimates, and what is drawn
    and credited in the same order gives the same ones. Arms may stand for other choices than ratios.

    Args:
        settings: the arms, and how fast estimates move.

    Attributes:
        estimates: hypervolume gained per child, one per arm; None before its first child.
    """

    def __init__(self, settings: Arms) -> None:
        self.settings = settings
        self.estimates: list[float | None] = [None] * len(settings.ratios)

    @property
    def probabilities(self) -> tuple[float, ...]:
        """Probability of every arm."""
        arms, floor = len(self.estimates), self.settings.floor
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
        arm = min(range(len(self.estimates)), key=lambda i: abs(self.settings.ratios[i] - ratio))
        before = self.estimates[arm]
        self.estimates[arm] = gain if before is None else before + self.settings.rate * (gain - before)
