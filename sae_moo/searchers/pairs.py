"""Every pair of experts by every operator, once: what merges of two are worth, and what predictors learn from.

Ours, after SimMerge (Bolton et al. 2026, arXiv 2601.09473), whose predictor learns from evaluated two-way merges.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations
from math import gcd, perm
from typing import Annotated

from sae_moo.recipe import BASE, Expert, Recipe
from sae_moo.recipe.operators import USUAL, Operator, OperatorSections, chained, operators_of
from sae_moo.recipe.section import Field, section_of
from sae_moo.searchers.baselines import OneShotSearcher, Pruned
from sae_moo.searchers.searcher import Assignment

EXPERT = "expert"  # what made a candidate that is no merge
CHAIN = " > "  # between the operators of a chain


class Pairwise(Pruned):
    """What every search over operators and pairs reads: the operators, and how long chains become."""

    operators: OperatorSections | None = Field(
        default=None,
        description="ways to merge two models, each the plain name of an operator or of a merge method, or a mapping "
        "with `method`, `weights` of the first and the second, `settings` and a `name`; null: the usual ones",
    )
    singles: bool = Field(default=True, description="whether the experts and the base are evaluated first, as they are")
    largest: Annotated[int, Field(ge=2, le=3)] = Field(
        default=2, description="how many experts are merged at most: 2, or 3 by two operators one after another"
    )

    @property
    def chosen(self) -> tuple[Operator, ...]:
        """The operators."""
        return USUAL if self.operators is None else operators_of(self.operators)


class Pairs(Pairwise):
    """``search.pairs``: which operators are tried on every pair of experts, and how many chains of three."""

    chains: Annotated[int, Field(ge=1, le=10**6)] = Field(
        default=100,
        description="with `largest: 3`, how many chains of three are tried after the pairs, spread evenly over all",
    )


def make(assignment: Assignment) -> OneShotSearcher:
    """Try every ordered pair by every operator, one order where it makes no difference; then chains, if asked for."""
    asked = section_of(assignment.settings, Pairs)
    experts, operators = assignment.ground.experts, asked.chosen
    merges: list[tuple[str, Recipe]] = []
    if asked.singles:
        merges += [(EXPERT, Expert(name)) for name in (*experts, BASE)]
    merges += [(operator.name, chained([operator], pair)) for operator, pair in pairs(experts, operators)]
    if asked.largest > 2:
        merges += [(called(each), chained(each, three)) for each, three in chains(experts, operators, asked.chains)]
    return OneShotSearcher(
        assignment.ground,
        assignment.objectives,
        assignment.constraints,
        merges=merges,
        levels=asked.levels,
        weights=assignment.weights,
    )


def pairs(experts: Sequence[str], operators: Sequence[Operator]) -> Iterator[tuple[Operator, tuple[str, str]]]:
    """Yield every operator with every ordered pair, pair by pair.

    Where the order makes no difference (`Operator.symmetric`), only that of the experts is there, so that n experts
    make n (n - 1) merges by an operator, or half as many.
    """
    for first, second in permutations(range(len(experts)), 2):
        for operator in operators:
            if first < second or not operator.symmetric:
                yield operator, (experts[first], experts[second])


def chains(
    experts: Sequence[str], operators: Sequence[Operator], count: int
) -> Iterator[tuple[tuple[Operator, Operator], tuple[str, str, str]]]:
    """Yield chains of three experts, different models each, spread over all of them by a stride near the golden ratio.

    Args:
        experts: the experts.
        operators: the operators.
        count: how many at most; of fewer that there are, all come.
    """
    orders = list(permutations(range(len(experts)), 3))
    total = perm(len(experts), 3) * len(operators) ** 2
    stride = next((each for each in range(round(total * 0.618), total) if gcd(each, total) == 1), 1)
    for number in range(total):
        if count == 0:
            return
        order, rest = divmod(number * stride % total, len(operators) ** 2)
        one, two = (operators[i] for i in divmod(rest, len(operators)))
        first, second, third = orders[order]
        if first < second or not one.symmetric:
            count -= 1
            yield (one, two), (experts[first], experts[second], experts[third])


def called(operators: Sequence[Operator]) -> str:
    """Return what tables call that which made a chain."""
    return CHAIN.join(operator.name for operator in operators)
