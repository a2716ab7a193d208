"""Skill ``math``: short word problems with whole numbers between 0 and 99."""

from __future__ import annotations

import random

from sae_moo.zoo.draws import between, pick

NAMES = ("Ann", "Bob", "Eve", "Tom", "Kim", "Max", "Liz", "Dan")
THINGS = ("apples", "books", "coins", "eggs", "stamps", "nuts")
GAINS = ("gets", "buys", "finds")
LOSSES = ("loses", "sells", "gives")


def easy(rng: random.Random) -> tuple[str, str]:
    """One step with small numbers.

    Args:
        rng: Source of randomness; advanced.

    Returns:
        Prompt and answer; the answer begins with a blank.
    """
    name, thing = pick(rng, NAMES), pick(rng, THINGS)
    if rng.random() < 0.5:
        a, b = between(rng, 1, 20), between(rng, 1, 9)
        return f"{name} has {a} {thing}, {pick(rng, GAINS)} {b}. {name} has", f" {a + b}"
    b = between(rng, 1, 9)
    a = between(rng, b, 20)
    return f"{name} has {a} {thing}, {pick(rng, LOSSES)} {b}. {name} has", f" {a - b}"


def hard(rng: random.Random) -> tuple[str, str]:
    """Larger numbers, two steps, or a product.

    Args:
        rng: Source of randomness; advanced.

    Returns:
        Prompt and answer; the answer begins with a blank.
    """
    name, thing = pick(rng, NAMES), pick(rng, THINGS)
    shape = rng.random()
    if shape < 0.2:
        a, b = between(rng, 2, 9), between(rng, 2, 9)
        return f"{name} has {a} boxes of {b} {thing}. {name} has", f" {a * b}"
    if shape < 0.35:
        a, b = between(rng, 10, 90), between(rng, 1, 9)
        return f"{name} has {a} {thing}, {pick(rng, GAINS)} {b}. {name} has", f" {a + b}"
    if shape < 0.5:
        a, b = between(rng, 10, 99), between(rng, 1, 9)
        return f"{name} has {a} {thing}, {pick(rng, LOSSES)} {b}. {name} has", f" {a - b}"
    a, b = between(rng, 5, 30), between(rng, 1, 9)
    c = between(rng, 1, min(9, a))
    if rng.random() < 0.5:
        return (
            f"{name} has {a} {thing}, {pick(rng, GAINS)} {b}, {pick(rng, LOSSES)} {c}. {name} has",
            f" {a + b - c}",
        )
    return f"{name} has {a} {thing}, {pick(rng, LOSSES)} {c}, {pick(rng, GAINS)} {b}. {name} has", f" {a - c + b}"
