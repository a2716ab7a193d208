"""What a pick may ask for: limits that it must keep, and the rule that chooses among what keeps them."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from sae_moo.errors import InputError
from sae_moo.objectives import SPEED

_CONDITION = re.compile(r"^\s*(?P<name>.+?)\s*(?P<sign>>=|<=)\s*(?P<limit>[-+.\deE]+)\s*$")


@dataclass(frozen=True, slots=True)
class Condition:
    """A limit on one quantity: ``name >= limit`` or ``name <= limit``."""

    name: str
    at_least: bool
    limit: float

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read ``accuracy>=0.7``.

        Raises:
            InputError: if it does not read so.
        """
        found = _CONDITION.match(text)
        if not found:
            raise InputError(f'where {text!r}: expected NAME>=NUMBER or NAME<=NUMBER, e.g. "sparsity>=0.3"')
        try:
            return cls(found["name"], found["sign"] == ">=", float(found["limit"]))
        except ValueError:
            raise InputError(f"where {text!r}: expected a number, got {found['limit']!r}") from None

    def holds(self, value: float) -> bool:
        """Say whether a value keeps the limit."""
        return value >= self.limit if self.at_least else value <= self.limit

    def missing(self, value: float) -> float:
        """Return by how much a value misses the limit; below 0 if there is room."""
        return self.limit - value if self.at_least else value - self.limit

    def __str__(self) -> str:
        return f"{self.name} {'>=' if self.at_least else '<='} {self.limit:g}"


@dataclass(frozen=True, slots=True)
class Knee:
    """The largest plain sum of the objectives, each scaled to the front's range.

    With two objectives that is the point farthest above the line through the front's ends.
    """


@dataclass(frozen=True, slots=True)
class WeightedSum:
    """The largest weighted sum of quantities, each scaled to the front's range.

    Args:
        weights: quantity -> weight, at least 0, not all 0.

    Raises:
        InputError: if a weight is below 0 or not finite, or none is above 0.
    """

    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        _check_weights("weights", self.weights)


@dataclass(frozen=True, slots=True)
class PseudoWeighted:
    """The trial whose pseudo-weights (`scalarizing.pseudo_weights`) are nearest, by the sum of absolute differences.

    Unlike the largest weighted sum it finds trials in the hollows of a front.

    Args:
        weights: objective -> share, at least 0, not all 0; those not named have 0.

    Raises:
        InputError: as for `WeightedSum`.
    """

    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        _check_weights("pseudo", self.weights)


@dataclass(frozen=True, slots=True)
class Wish:
    """The trial nearest to a wish (`scalarizing.achievement`); one that keeps all of it, if there is one.

    Args:
        values: quantity -> wished value, in [0, 1]; of speed any number from 0.

    Raises:
        InputError: if a value is not, or there is none.
    """

    values: Mapping[str, float]

    def __post_init__(self) -> None:
        if not self.values:
            raise InputError("wish: expected at least one quantity")
        for name, value in self.values.items():
            if not 0 <= value <= (sys.float_info.max if name == SPEED else 1):
                numbers = "a number from 0" if name == SPEED else "values from 0 to 1"
                raise InputError(f"wish: expected {numbers}, got {name}={value:g}")


@dataclass(frozen=True, slots=True)
class Lexicographic:
    """The best in the last quantity among those about as good as the best in the earlier ones, taken in their order.

    Args:
        names: quantities, the most important first.
        tolerance: how much less than the best counts as good, in each quantity but the last, in [0, 1]; None: one
            standard error of the best (0 for sparsity, which is counted).

    Raises:
        InputError: if a quantity comes twice, there is none, or the tolerance is out of range.
    """

    names: tuple[str, ...]
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if not self.names:
            raise InputError("order: expected at least one quantity")
        for i, name in enumerate(self.names):
            if name in self.names[:i]:
                raise InputError(f"order: expected every quantity once, {name!r} comes again")
        if self.tolerance is not None and not 0 <= self.tolerance <= 1:
            raise InputError(f"tolerance: expected a number from 0 to 1, got {self.tolerance:g}")


Rule: TypeAlias = Knee | WeightedSum | PseudoWeighted | Wish | Lexicographic
KNEE = Knee()


def rule_of(
    *,
    knee: bool = False,
    weights: Mapping[str, float] | None = None,
    pseudo: Mapping[str, float] | None = None,
    wish: Mapping[str, float] | None = None,
    order: Sequence[str] | None = None,
    tolerance: float | None = None,
) -> Rule:
    """Return the one rule that was asked for; the knee without any.

    Raises:
        InputError: if two are asked for, or one cannot be followed.
    """
    asked = {"knee": knee or None, "weights": weights, "pseudo": pseudo, "wish": wish, "order": order}
    given = [name for name, value in asked.items() if value is not None]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} choose differently: give one of them")
    if tolerance is not None and order is None:
        raise InputError("tolerance: belongs to order, which is not given")
    if weights is not None:
        return WeightedSum(weights)
    if pseudo is not None:
        return PseudoWeighted(pseudo)
    if wish is not None:
        return Wish(wish)
    if order is not None:
        return Lexicographic(tuple(order), tolerance)
    return KNEE


def _check_weights(argument: str, weights: Mapping[str, float]) -> None:
    for value in weights.values():
        if not 0 <= value < math.inf:
            raise InputError(f"{argument}: expected finite weights of at least 0, got {value:g}")
    if not sum(weights.values()) > 0:
        raise InputError(f"{argument}: expected at least one weight above 0")
