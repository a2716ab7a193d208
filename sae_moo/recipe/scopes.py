"""Pruning scopes: what competes with what for zeros, and what a pruning of each can be asked for and hold."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sae_moo.errors import InputError
from sae_moo.recipe.rows import rounded

BLOCKS = "blocks"
"""The scope that removes whole transformer blocks: a block is one unit."""
MOE_EXPERTS = "moe-experts"
"""The scope that removes whole experts of a mixture, the same number from each."""
STRUCTURED = ("neurons", "heads", MOE_EXPERTS, BLOCKS)
"""Scopes that remove whole units of blocks, or the blocks themselves."""
SCOPES = ("tensor", "group", "global", "row", *STRUCTURED)
"""Pruning scopes by name; a pattern such as ``2:4`` is one too (`pattern`)."""
COUNTED = ("tensor", "group", "global")
"""Scopes that come down to one count per tensor."""


def pattern(scope: str) -> tuple[int, int] | None:
    """Return (N, M) of a scope ``N:M``: of every M consecutive weights along the input at most N stay; else None."""
    found = re.fullmatch(r"([1-9]\d{0,3}):([1-9]\d{0,3})", scope)
    if found is None or int(found[1]) >= int(found[2]):
        return None
    return int(found[1]), int(found[2])


def pattern_sparsity(scope: str) -> float | None:
    """Return the sparsity 1 - N/M of a scope ``N:M``, as a recipe writes it; None for other scopes."""
    kept = pattern(scope)
    return None if kept is None else rounded(1.0 - kept[0] / kept[1])


def going(share: float, units: int, stay: int = 1) -> int:
    """Return how many of some units, or blocks, go where a share of them is asked to: the nearest whole number.

    Some stay, whatever the share: a model without any block is no merge, and what a block keeps of its neurons or heads
    is what a smaller model of it has.

    Args:
        share: in [0, 1).
        units: how many there are.
        stay: how many of them stay at least.
    """
    return max(0, min(round(share * units), units - stay))


def check_scope(scope: object, asked: Sequence[float], single: bool) -> None:
    """Raise InputError unless a scope is one, and can be asked for such sparsities.

    Args:
        scope: what was given as its name.
        asked: the sparsities, each in [0, 1).
        single: whether it is one number, not a row of them.
    """
    if not isinstance(scope, str) or (scope not in SCOPES and pattern(scope) is None):
        raise InputError(
            f"Prune: expected a scope among {', '.join(SCOPES)}, or N:M with N < M such as 2:4, got {scope!r}"
        )
    share = pattern_sparsity(scope)
    for value in asked if share is not None else ():
        if value != share and (single or value != 0.0):
            raise InputError(f"Prune: scope {scope!r} has sparsity {share}, got {value}")
    if scope == BLOCKS and not single:
        raise InputError(f"Prune: scope {scope!r} takes one sparsity, the share of blocks, got {len(asked)}")


def checked_counts(given: Any, scope: str) -> tuple[int, ...]:
    """Return numbers of zeros by tensor that a pruning of a scope can hold, else raise InputError."""
    counts = tuple(given)
    if scope not in COUNTED:
        raise InputError(f"Prune: counts belong to the scopes {', '.join(COUNTED)}, got them with {scope!r}")
    if not all(type(count) is int and count >= 0 for count in counts):
        raise InputError(f"Prune: expected whole numbers from 0 as counts, got {given!r}")
    return counts


def checked_units(given: Any, scope: str) -> tuple[tuple[int, ...], ...]:
    """Return units by block that a pruning of a scope can remove, else raise InputError."""
    if scope not in STRUCTURED:
        raise InputError(f"Prune: units belong to the scopes {', '.join(STRUCTURED)}, got them with {scope!r}")
    rows = tuple(tuple(row) for row in given)
    for row in rows:
        if not all(type(unit) is int and unit >= 0 for unit in row) or list(row) != sorted(set(row)):
            raise InputError(f"Prune: expected ascending whole numbers from 0 as units of a block, got {row!r}")
    return rows
