"""Seeded draws that give the same items under every Python version.

Only ``random.Random.random`` is used: its sequence for a seed is the one the standard library promises to keep.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def pick(rng: random.Random, options: Sequence[T]) -> T:
    """Draw one of some options, each equally likely.

    Args:
        rng: Source of randomness; advanced by one draw.
        options: At least one option.

    Returns:
        The option drawn.

    Raises:
        ValueError: There is no option.
    """
    if not options:
        raise ValueError("pick: expected at least one option, got none")
    return options[int(rng.random() * len(options))]


def between(rng: random.Random, low: int, high: int) -> int:
    """Draw a whole number, each of ``low..high`` (both ends included) equally likely.

    Args:
        rng: Source of randomness; advanced by one draw.
        low: Smallest number.
        high: Largest number, at least ``low``.

    Returns:
        The number drawn.

    Raises:
        ValueError: ``high < low``.
    """
    if high < low:
        raise ValueError(f"between: expected low <= high, got {low} > {high}")
    return low + int(rng.random() * (high - low + 1))


def shuffled(rng: random.Random, options: Sequence[T], count: int | None = None) -> list[T]:
    """Draw without replacement, in random order (Fisher-Yates from the front).

    Args:
        rng: Source of randomness; advanced by ``count`` draws.
        options: What to draw from; unchanged.
        count: How many, at most ``len(options)``; None: all of them.

    Returns:
        A new list of ``count`` options.

    Raises:
        ValueError: More were asked for than there are.
    """
    wanted = len(options) if count is None else count
    if wanted > len(options):
        raise ValueError(f"shuffled: expected count <= {len(options)}, got {wanted}")
    left = list(options)
    for i in range(wanted):
        j = i + int(rng.random() * (len(left) - i))
        left[i], left[j] = left[j], left[i]
    return left[:wanted]
