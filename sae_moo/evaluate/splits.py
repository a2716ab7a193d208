"""Dealing items into a search split and a test split that share none."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from sae_moo.errors import InputError
from sae_moo.objectives.scores import Split

log = logging.getLogger(__name__)


class Identity(NamedTuple):
    """What makes an item this one.

    Args:
        prompt: its prompt, without regard to case and white space: items that share it are kept on one side of the
            splits as far as the counts allow, for whoever answered the one may know the other.
        whole: all that a model and a score see of it. Two items are one where this is equal, and only there.
    """

    prompt: str
    whole: str


def plain(prompt: str) -> str:
    """Return a prompt without regard to case and white space."""
    return " ".join(prompt.casefold().split())


def repeated(items: Sequence[Identity]) -> int:
    """Return how many items are the same as an earlier one."""
    return len(items) - len({item.whole for item in items})


def deal(
    name: str, pool: Sequence[Identity], tested: Sequence[Identity] | None, search: int, test: int
) -> dict[Split, list[int]]:
    """Choose which items the search sees and which are kept for the test; tell how many were left out, and why.

    Equal items are one (the first stays). Items are ordered by a hash of their prompts, which no seed changes, those of
    one prompt side by side: the search takes from the front, the test from the back, so that an item once searched on
    does not become a test item when the counts change, and at most one prompt stands in both splits. Of two pools, the
    search takes no item that may be tested on, and prompts that may be tested on only where others do not suffice.

    Args:
        name: the task's, for messages.
        pool: every item that may be searched on.
        tested: every item that may be tested on; None: both splits come from `pool`.
        search: how many items of the search split.
        test: how many of the test split.

    Returns:
        Positions in `pool` and in `tested` (or `pool`).

    Raises:
        InputError: if there are fewer different items than asked for.
    """
    several = f"items of task {name} are left out: each is in all it holds the same as an earlier one"
    if tested is None:
        ordered = _ordered(pool)
        if search + test > len(ordered):
            raise InputError(
                f"task {name}: asked for {search} search and {test} test instances, {search + test} in all; it has "
                f"{len(ordered)} different items{_of_all(pool)}"
            )
        _tell(repeated(pool), len(pool), several)
        dealt: dict[Split, list[int]] = {"search": ordered[:search], "test": ordered[len(ordered) - test :]}
        _tell_shared(name, [pool[i] for i in dealt["search"]], [pool[i] for i in dealt["test"]])
        return dealt
    kept = _ordered(tested)
    if test > len(kept):
        raise InputError(
            f"task {name}: asked for {test} test instances; it has {len(kept)} different items for them"
            f"{_of_all(tested)}"
        )
    items, prompts = {item.whole for item in tested}, {item.prompt for item in tested}
    # all of them, chosen or not: other counts must not mix the two
    ordered = [i for i in _ordered(pool) if pool[i].whole not in items]
    ordered.sort(key=lambda i: pool[i].prompt in prompts)
    if search > len(ordered):
        raise InputError(
            f"task {name}: asked for {search} search instances; it has {len(ordered)} different items that are not "
            "among those of the test split"
        )
    _tell(repeated(tested), len(tested), f"test {several}")
    _tell(repeated(pool), len(pool), f"search {several}")
    also = len({item.whole for item in pool} & items)
    _tell(also, len(pool), f"search items of task {name} are left out: the test split is dealt from them too")
    dealt = {"search": ordered[:search], "test": kept[len(kept) - test :]}
    _tell_shared(name, [pool[i] for i in dealt["search"]], [tested[i] for i in dealt["test"]])
    return dealt


def _of_all(items: Sequence[Identity]) -> str:
    return f", {repeated(items)} of its {len(items)} being the same as others" if repeated(items) else ""


def _tell(count: int, total: int, what: str) -> None:
    if count:
        log.warning("%d of %d %s", count, total, what)


def _tell_shared(name: str, searched: Sequence[Identity], tested: Sequence[Identity]) -> None:
    prompts = Counter(item.prompt for item in tested)
    shared = [item for item in searched if item.prompt in prompts]
    if shared:
        log.warning(
            "task %s: %d search and %d test items have the same prompts and differ in the rest only",
            name,
            len(shared),
            sum(prompts[prompt] for prompt in {item.prompt for item in shared}),
        )


def _ordered(items: Sequence[Identity]) -> list[int]:
    first: dict[str, int] = {}
    for i, item in enumerate(items):
        first.setdefault(item.whole, i)
    return sorted(first.values(), key=lambda i: (_hash(items[i].prompt), _hash(items[i].whole)))


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()
