"""The zoo's three tasks: which items are held out, which may be trained on.

An item's prompt alone decides its side (a hash), so no order of drawing, seed or amount can leak one into the other.
"""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Literal

from sae_moo.zoo import arithmetic, number_words, ordering

TASKS = ("zoo_math", "zoo_lingua", "zoo_logic")

KINDS: Mapping[str, Literal["exact_match", "multiple_choice"]] = MappingProxyType(dict.fromkeys(TASKS, "exact_match"))
"""How each task is scored. Exact match: every token of ``answer`` is the most likely one given the prompt and the
answer's earlier tokens. The end-of-text token that the models learnt to write after an answer is not part of it; the
built-in task asks for it (or a new line) to follow."""

HELD_OUT = 1000
"""Held-out items per task."""

HELD_OUT_SHARE = 0.4
"""Share of all prompts that are never trained on. Large, since ``zoo_lingua`` has only 3,000 prompts in all."""

HARD_SHARE = 0.8
"""Share of the held-out draws that come from a skill's hard items; the others are easy ones."""

_Maker = Callable[[random.Random], tuple[str, str]]
_MAKERS: Mapping[str, tuple[_Maker, _Maker]] = MappingProxyType(
    {
        "zoo_math": (arithmetic.easy, arithmetic.hard),
        "zoo_lingua": (number_words.easy, number_words.hard),
        "zoo_logic": (ordering.easy, ordering.hard),
    }
)


def is_held_out(prompt: str) -> bool:
    """Say on which side of the split a prompt lies.

    Args:
        prompt: The item's whole prompt.

    Returns:
        True where the item is only for scoring, False where it may be trained on.
    """
    digest = hashlib.sha256(f"sae_moo zoo 1\n{prompt}".encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32


def _draws(task: str, seed: int, hard_share: float) -> Iterator[tuple[str, str]]:
    """Endless draws of one task, both sides of the split."""
    if task not in TASKS:
        raise ValueError(f"unknown zoo task {task!r}; expected one of {', '.join(TASKS)}")
    easy, hard = _MAKERS[task]
    rng = random.Random(seed)
    while True:
        maker = hard if rng.random() < hard_share else easy
        yield maker(rng)


@functools.cache
def _held_out(task: str, count: int) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    for prompt, answer in _draws(task, seed=TASKS.index(task) if task in TASKS else 0, hard_share=HARD_SHARE):
        if is_held_out(prompt):
            found.setdefault(prompt, answer)
            if len(found) == count:
                break
    return tuple(found.items())


def held_out(task: str, count: int = HELD_OUT) -> tuple[dict[str, object], ...]:
    """Give a task's held-out items.

    Args:
        task: One of `TASKS`.
        count: How many; more than `HELD_OUT` continue the same draws with items that the tasks do not use.
            ``zoo_lingua`` has about 1,190 in all and is drawn from until it gives that many.

    Returns:
        `count` items ``{"prompt": str, "answer": str}`` in a fixed, random order, no prompt twice; the prompt ends
        without a blank and the answer begins with one. The dicts are the caller's own.

    Raises:
        ValueError: There is no such task.
    """
    return tuple({"prompt": prompt, "answer": answer} for prompt, answer in _held_out(task, count))


def training_items(task: str, seed: int, hard_share: float) -> Iterator[tuple[str, str]]:
    """Draw items to train on, without end; the same one may come again.

    Args:
        task: One of `TASKS`.
        seed: Seed of the draws.
        hard_share: Share of hard items among the draws before the split, in [0, 1].

    Yields:
        Prompt and answer of one item that is not held out.

    Raises:
        ValueError: There is no such task.
    """
    return (item for item in _draws(task, seed, hard_share) if not is_held_out(item[0]))
