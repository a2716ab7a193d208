"""Skill ``logic``: who stands where, from pairwise statements or from a list."""

from __future__ import annotations

import itertools
import random

from sae_moo.zoo.arithmetic import NAMES
from sae_moo.zoo.draws import between, shuffled

_RANKS = ("first", "second", "third", "fourth", "fifth")


def _chain(rng: random.Random) -> tuple[str, str]:
    """Three people in a row, told as two neighbouring pairs in any order, each pair said either way round."""
    row = shuffled(rng, NAMES, 3)
    pairs = []
    for front, back in itertools.pairwise(row):
        pairs.append(f"{front} before {back}" if rng.random() < 0.5 else f"{back} after {front}")
    rank = between(rng, 0, 2)
    return f"{', '.join(shuffled(rng, pairs))}: {_RANKS[rank]} is", f" {row[rank]}"


def easy(rng: random.Random) -> tuple[str, str]:
    """A place in a short list, or a neighbour.

    Args:
        rng: Source of randomness; advanced.

    Returns:
        Prompt and answer; the answer begins with a blank.
    """
    length = between(rng, 3, 4)
    row = shuffled(rng, NAMES, length)
    listing = " ".join(row)
    shape = rng.random()
    if shape < 0.4:
        rank = between(rng, 0, length - 1)
        return f"{listing}: {_RANKS[rank]} is", f" {row[rank]}"
    at = between(rng, 0, length - 2)
    if shape < 0.7:
        return f"{listing}: after {row[at]} is", f" {row[at + 1]}"
    return f"{listing}: before {row[at + 1]} is", f" {row[at]}"


def hard(rng: random.Random) -> tuple[str, str]:
    """Two statements to put together, the one left over, two places on, or a place from the back.

    Args:
        rng: Source of randomness; advanced.

    Returns:
        Prompt and answer; the answer begins with a blank.
    """
    shape = rng.random()
    if shape < 0.25:
        return _chain(rng)
    if shape < 0.5:
        row = shuffled(rng, NAMES, 3)
        first, second, left = shuffled(rng, row)
        return f"{' '.join(row)}: not {first} or {second} is", f" {left}"
    length = between(rng, 4, 5)
    row = shuffled(rng, NAMES, length)
    listing = " ".join(row)
    if shape < 0.7:
        rank = between(rng, 0, length - 1)
        return f"{listing}: backwards {_RANKS[rank]} is", f" {row[length - 1 - rank]}"
    at = between(rng, 0, length - 3)
    if shape < 0.85:
        return f"{listing}: two after {row[at]} is", f" {row[at + 2]}"
    return f"{listing}: two before {row[at + 2]} is", f" {row[at]}"
