"""Which merges are held out together: by how many experts of a merge nothing was learned of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

PAIR_FOLDS = 10
"""In how many parts pairs are held out, at most."""
COUPLES = 15
"""How many sets of two experts are held out together, at most."""
FEWEST_PAIRS = 4
"""How many pairs of experts a regression is learned from, at least."""


@dataclass(frozen=True, slots=True)
class Fold:
    """Rows that are learned from and rows that are held out; the rest is left aside."""

    learned: tuple[int, ...]
    held_out: tuple[int, ...]


def folds_of(pairs: Sequence[tuple[str, str]], unseen: int) -> list[Fold]:
    """Return what to hold out to learn how well merges are predicted of which a number of experts is unseen.

    Both orders of a pair, on all tasks, are always held out together.

    Args:
        pairs: the experts of each row.
        unseen: 0: pairs are held out, of experts that are seen in other pairs; 1: all pairs of an expert, each in
            turn; 2: all pairs of two experts, of which the pairs between them are predicted.

    Returns:
        Folds in a fixed order that does not depend on that of the rows, those left out whose learned rows have fewer
        than `FEWEST_PAIRS` pairs.
    """
    couples = sorted({tuple(sorted(pair)) for pair in pairs})
    experts = sorted({name for pair in couples for name in pair})
    rows = [tuple(sorted(pair)) for pair in pairs]
    folds = []
    if unseen == 0:
        parts = min(PAIR_FOLDS, len(couples))
        for part in range(parts):
            out = set(couples[part::parts])
            folds.append(_fold(rows, [pair in out for pair in rows], [pair not in out for pair in rows]))
    elif unseen == 1:
        for name in experts:
            folds.append(_fold(rows, [name in pair for pair in rows], [name not in pair for pair in rows]))
    else:
        for two in [two for two in _spread(experts) if two in set(couples)][:COUPLES]:
            folds.append(_fold(rows, [pair == two for pair in rows], [not {*two} & {*pair} for pair in rows]))
    return [fold for fold in folds if len({rows[row] for row in fold.learned}) >= FEWEST_PAIRS]


def _fold(rows: Sequence[tuple[str, ...]], held_out: Sequence[bool], learned: Sequence[bool]) -> Fold:
    places = range(len(rows))
    return Fold(tuple(i for i in places if learned[i]), tuple(i for i in places if held_out[i]))


def _spread(experts: Sequence[str]) -> list[tuple[str, ...]]:
    """Return all pairs, those first of which each expert is in one, as in the rounds of a tournament."""
    players = [*experts, None] if len(experts) % 2 else [*experts]
    count = len(players)
    order: list[tuple[str, ...]] = []
    for turn in range(count - 1):
        seats = [players[0], *(players[1 + (turn + seat) % (count - 1)] for seat in range(count - 1))]
        meetings = [(seats[seat], seats[count - 1 - seat]) for seat in range(count // 2)]
        order += [tuple(sorted((one, two))) for one, two in meetings if one is not None and two is not None]
    assert sorted(order) == [*combinations(sorted(experts), 2)]
    return order
