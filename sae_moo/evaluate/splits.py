"""Dealing items into a search split and a test split that share none."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from sae_moo.errors import InputError
from sae_moo.objectives.scores import Split


def deal(
    name: str, pool: Sequence[str], tested: Sequence[str] | None, search: int, test: int
) -> dict[Split, list[int]]:
    """Choose which items the search sees and which are kept for the test.

    Equal texts are one item (the first stays). Items are ordered by a hash of their text, which no seed changes: the
    search takes from the front, the test from the back, so that an item once searched on does not become a test item
    when the counts change.

    Args:
        name: the task's, for messages.
        pool: text of every item that may be searched on.
        tested: text of every item that may be tested on; None: both splits come from `pool`.
        search: how many items of the search split.
        test: how many of the test split.

    Returns:
        Positions in `pool` and in `tested` (or `pool`).

    Raises:
        InputError: if there are fewer different items than asked for.
    """
    if tested is None:
        ordered = _ordered(pool)
        if search + test > len(ordered):
            raise InputError(
                f"task {name}: asked for {search} search and {test} test instances, {search + test} in all; it has "
                f"{len(ordered)} different items"
            )
        return {"search": ordered[:search], "test": ordered[len(ordered) - test :]}
    kept = _ordered(tested)
    if test > len(kept):
        raise InputError(f"task {name}: asked for {test} test instances; it has {len(kept)} different items for them")
    also_tested = set(tested)  # all of them, chosen or not: other counts must not mix the two
    ordered = [i for i in _ordered(pool) if pool[i] not in also_tested]
    if search > len(ordered):
        raise InputError(
            f"task {name}: asked for {search} search instances; it has {len(ordered)} different items that are not "
            "among those of the test split"
        )
    return {"search": ordered[:search], "test": kept[len(kept) - test :]}


def _ordered(texts: Sequence[str]) -> list[int]:
    first: dict[str, int] = {}
    for i, text in enumerate(texts):
        first.setdefault(text, i)
    return [first[text] for text in sorted(first, key=lambda text: hashlib.sha256(text.encode()).digest())]
