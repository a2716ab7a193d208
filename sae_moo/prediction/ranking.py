"""Ranking: which operators, experts and orders promise most; where there are too many to look at each, the best go on.

A merge of k experts is a chain of k - 1 merges of two: of n experts by o operators there are n! / (n - k)! * o^(k - 1),
less those that begin with an operator to which the order of its two experts makes no difference: half of these.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import perm
from typing import Generic, Protocol, TypeVar

import numpy as np

from sae_moo.errors import InputError
from sae_moo.prediction.predictor import Prediction, by_size
from sae_moo.prediction.table import FeatureTable, Key
from sae_moo.prediction.untrained import SIGNALS, chain_signal

MOST_REASONS = 6
"""How many reasons are told of."""


@dataclass(frozen=True, slots=True, order=True)
class Chain:
    """Experts merged one after another, by name: ``((first op second) op third)``.

    Args:
        experts: two or more, all different, in the order of merging.
        operators: one less, in the order in which they are applied.
    """

    experts: tuple[str, ...]
    operators: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.experts) < 2 or len(self.operators) != len(self.experts) - 1:
            raise ValueError(f"expected one operator between every two of two or more experts, got {self}")

    def then(self, operator: str, expert: str) -> Chain:
        """Return this chain with one more expert merged in."""
        return Chain((*self.experts, expert), (*self.operators, operator))


class Promise(Protocol):
    """What is expected of a merge."""

    @property
    def score(self) -> float:
        """By what merges are ranked; larger is better."""


P = TypeVar("P", bound=Promise)


@dataclass(frozen=True, slots=True)
class Ranked(Generic[P]):
    """One merge in a ranking.

    Args:
        chain: the merge.
        promise: what is expected of it.
    """

    chain: Chain
    promise: P


@dataclass(frozen=True, slots=True)
class Ranking(Generic[P]):
    """Merges in the order of what they promise.

    Args:
        merges: the best first; of equal ones those of fewer experts, then those that were looked at first.
        judged: number of experts -> how many merges of so many were looked at.
        possible: number of experts -> how many there are.
    """

    merges: tuple[Ranked[P], ...]
    judged: dict[int, int]
    possible: dict[int, int]

    @property
    def complete(self) -> bool:
        """Whether every merge was looked at."""
        return self.judged == self.possible


def number_of(experts: int, operators: int, size: int, symmetric: int = 0) -> int:
    """Return how many different merges there are of so many out of some experts.

    Args:
        experts: how many experts there are.
        operators: how many operators.
        size: experts in one merge, from 2.
        symmetric: to how many of the operators the order of two experts makes no difference.
    """
    orders, firsts = perm(experts, size), 2 * operators - symmetric
    return orders * firsts * int(operators ** (size - 2)) // 2


def rank(
    experts: Sequence[str],
    operators: Sequence[str],
    judge: Callable[[Sequence[Chain]], Sequence[P]],
    *,
    largest: int,
    most: int,
    symmetric: Collection[str] = (),
) -> Ranking[P]:
    """Rank merges of two experts, then of three, and so on.

    All pairs are judged. Of more experts all are where these are not more than `most`; else those that go on from the
    most promising merges of one expert less, as many of these as `most` allows.

    Args:
        experts: names of the experts; two at least.
        operators: names of the operators; one at least.
        judge: returns what is expected of each of some merges.
        largest: experts in one merge at most, from 2.
        most: merges of one number of experts beyond two that are judged at most; one prefix is gone on from at least.
        symmetric: operators to which the order of two experts makes no difference: these are named in the order of
            `experts` alone. What is merged in after them comes second, so that its place is told.

    Raises:
        InputError: if there are not two experts.
    """
    if len(experts) < 2:
        raise InputError(f"models.experts: expected two or more to merge, got {', '.join(experts) or 'none'}")
    place = {name: i for i, name in enumerate(experts)}
    pairs = [
        Chain((first, second), (operator,))
        for first in experts
        for second in experts
        for operator in operators
        if first != second and (operator not in symmetric or place[first] < place[second])
    ]
    level = _judged(pairs, judge)
    ranked, judged, possible = list(level), {2: len(level)}, {2: len(level)}
    for size in range(3, min(largest, len(experts)) + 1):
        further = (len(experts) - size + 1) * len(operators)
        kept = sorted(level, key=_promising)[: max(1, most // further)]
        longer = [
            each.chain.then(operator, expert)
            for each in kept
            for expert in experts
            if expert not in each.chain.experts
            for operator in operators
        ]
        level = _judged(longer, judge)
        ranked += level
        judged[size] = len(level)
        possible[size] = number_of(len(experts), len(operators), size, len({*operators} & {*symmetric}))
    return Ranking(tuple(sorted(ranked, key=_promising)), judged, possible)


def in_order(chain: Chain, experts: Sequence[str], symmetric: Collection[str]) -> Chain:
    """Return a merge as `rank` names it: of two orders of its first two experts that make no difference, the one told.

    Args:
        chain: the merge.
        experts: names of the experts, in the order of the configuration.
        symmetric: operators to which the order of two experts makes no difference.
    """
    first, second, *others = chain.experts
    if chain.operators[0] not in symmetric or experts.index(first) < experts.index(second):
        return chain
    return Chain((second, first, *others), chain.operators)


def weighed(predictions: Mapping[str, Prediction], shares: Mapping[str, float]) -> Prediction:
    """Return what is expected of a merge on several tasks together.

    Score and ends of the interval are weighted means. Errors on different tasks cancel in part, which the ends do not
    know: the interval is rather too wide. Of the reasons, the `MOST_REASONS` that count most on all tasks are told.

    Args:
        predictions: task -> what is expected there.
        shares: task -> what it counts, with the sum 1.
    """
    reasons: dict[str, float] = {}
    for task, share in shares.items():
        for name, amount in predictions[task].reasons:
            reasons[name] = reasons.get(name, 0.0) + share * amount
    several = [predictions[task] for task in shares]
    score, low, high = (
        sum(share * getattr(predictions[task], end) for task, share in shares.items())
        for end in ("score", "low", "high")
    )
    return Prediction(
        score=score,
        low=low,
        high=high,
        reasons=by_size(reasons)[:MOST_REASONS],
        model=", ".join(dict.fromkeys(each.model for each in several)),
        labelled=any(each.labelled for each in several),
        unseen=tuple(dict.fromkeys(name for each in several for name in each.unseen)),
        missing=tuple(dict.fromkeys(name for each in several for name in each.missing)),
    )


@dataclass(frozen=True, slots=True)
class Signal:
    """What orders a merge among others where nothing was learned; no score, and it tells no operators apart.

    Args:
        score: mean rank of what it is made of among all pairs, in [0, 1]; larger is better.
    """

    score: float


def weighed_signal(chain: Chain, signals: Mapping[Key, float], shares: Mapping[str, float]) -> Signal:
    """Return the untrained signal of a merge on several tasks together.

    Args:
        chain: the merge.
        signals: of all ordered pairs and tasks, see `untrained.untrained`.
        shares: task -> what it counts, with the sum 1.
    """
    return Signal(sum(share * chain_signal(signals, chain.experts, task) for task, share in shares.items()))


def signs(chain: Chain, table: FeatureTable, shares: Mapping[str, float]) -> dict[str, float]:
    """Return what untrained signals are made of: the features themselves, means over the pairs of a merge and tasks."""
    pairs = list(combinations(chain.experts, 2))
    found = {}
    for name in SIGNALS:
        if name in table.names:
            column = table.names.index(name)
            found[name] = sum(
                share * float(np.mean([table.of(first, second, task)[column] for first, second in pairs]))
                for task, share in shares.items()
            )
    return found


def _judged(chains: Sequence[Chain], judge: Callable[[Sequence[Chain]], Sequence[P]]) -> list[Ranked[P]]:
    return [Ranked(chain, promise) for chain, promise in zip(chains, judge(chains), strict=True)]


def _promising(each: Ranked[P]) -> float:
    return -each.promise.score
