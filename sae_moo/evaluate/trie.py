"""Sequences of tokens that begin alike, laid out in rows that hold what they share once.

A row is a trie written out depth first: the prompt of a question, then one choice after another, or the examples of a
few-shot prompt, then one question after another. A model reads it in one pass if every token attends to its own
ancestors and stands at its own depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

LEAST_SHARED = 8
"""Tokens that sequences must have in common to share a row: fewer do not pay for the attention mask."""


@dataclass(slots=True)
class TokenRow:
    """One trie.

    Args:
        tokens: depth first.
        depth: per token its position in the sequences that hold it.
        end: per token the index behind its last descendant: token i reads token j if ``j <= i < end[j]``.
        paths: index of a sequence -> where its tokens stand in the row, int64, shape (length,).
    """

    tokens: list[int] = field(default_factory=list)
    depth: list[int] = field(default_factory=list)
    end: list[int] = field(default_factory=list)
    paths: dict[int, NDArray[np.int64]] = field(default_factory=dict)

    def add(self, index: int, sequence: Sequence[int], previous: int | None, shared: int) -> None:
        """Add a sequence whose first `shared` tokens are those of the sequence `previous`."""
        before = self.paths[previous][:shared] if previous is not None else np.zeros(0, np.int64)
        start, new = len(self.tokens), len(sequence) - shared
        self.tokens += sequence[shared:]
        self.depth += range(shared, len(sequence))
        for place in before:
            self.end[place] = start + new
        self.end += [start + new] * new
        self.paths[index] = np.concatenate([before, np.arange(start, start + new)])


def rows(sequences: Sequence[tuple[int, ...]], most: int) -> list[TokenRow]:
    """Lay sequences out in rows.

    Two sequences share a row where that saves enough: at least `LEAST_SHARED` tokens, and half of what is new.

    Args:
        sequences: all different.
        most: tokens of a row; a longer sequence has one to itself.

    Returns:
        Rows in the order of their sequences' tokens; each sequence is in one of them.
    """
    found: list[TokenRow] = []
    before: int | None = None
    for index in sorted(range(len(sequences)), key=lambda i: sequences[i]):
        sequence = sequences[index]
        shared = 0 if before is None else _alike(sequences[before], sequence)  # sorted: no other has more in common
        new = len(sequence) - shared
        if before is None or shared < max(LEAST_SHARED, new / 2) or len(found[-1].tokens) + new > most:
            found.append(TokenRow())
            before, shared = None, 0
        found[-1].add(index, sequence, before, shared)
        before = index
    return found


def _alike(first: Sequence[int], second: Sequence[int]) -> int:
    count = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        count += 1
    return count
