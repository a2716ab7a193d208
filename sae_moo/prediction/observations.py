"""Observations: what merges, and experts by themselves, scored. They are what a predictor learns from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from sae_moo.errors import InputError
from sae_moo.objectives.scores import mean
from sae_moo.recipe import Cast, Expert, Recipe
from sae_moo.recipe.operators import Operator, chain_of

Own: TypeAlias = Mapping[tuple[str, str], float]
"""(expert, task) -> what the expert scores by itself, in [0, 1]: labelled data, which every search evaluates first."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What a chain of two-way merges of experts scored on a task; a single expert is a chain without operators.

    Args:
        operators: names of the operators, in the order in which they are applied: one less than experts.
        experts: in the order in which they are merged.
        task: the task's name.
        score: mean over instances, in [0, 1].
        instances: how many.

    Raises:
        InputError: if numbers are out of range or the operators are not one less than the experts.
    """

    operators: tuple[str, ...]
    experts: tuple[str, ...]
    task: str
    score: float
    instances: int

    def __post_init__(self) -> None:
        where = f"what {' + '.join(self.experts)} scored on {self.task}"
        if not self.experts or len(self.operators) != len(self.experts) - 1:
            raise InputError(
                f"{where}: expected one operator less than experts, got {len(self.operators)} for {len(self.experts)}"
            )
        if len(set(self.experts)) != len(self.experts):
            raise InputError(f"{where}: expected each expert once")
        if not (math.isfinite(self.score) and 0.0 <= self.score <= 1.0):
            raise InputError(f"{where}: expected a score in [0, 1], got {self.score}")
        if self.instances < 1:
            raise InputError(f"{where}: expected at least one instance, got {self.instances}")

    @classmethod
    def of_pair(cls, operator: str, first: str, second: str, task: str, score: float, instances: int) -> Observation:
        """Return what a merge of two scored."""
        return cls((operator,), (first, second), task, score, instances)

    @classmethod
    def of_expert(cls, expert: str, task: str, score: float, instances: int) -> Observation:
        """Return what an expert scored by itself."""
        return cls((), (expert,), task, score, instances)

    @property
    def operator(self) -> str | None:
        """The operator of a merge of two; None for anything else."""
        return self.operators[0] if len(self.operators) == 1 else None


def observations_of(
    scored: Iterable[tuple[Recipe, Mapping[str, Sequence[float] | NDArray[np.float64]]]], operators: Sequence[Operator]
) -> list[Observation]:
    """Return what can be learned from the trials of any study: experts by themselves, and chains of known operators.

    Pruned candidates, and those merged in another way, are left out.

    Args:
        scored: recipes, each with its score per instance by task: ``(trial.recipe, trial.evaluation.scores)`` for the
            search split, what was judged for the test split; failed and stopped trials have none.
        operators: those that are known.
    """
    found = []
    for recipe, scores in scored:
        node = recipe.input if isinstance(recipe, Cast) else recipe
        chain = chain_of(node, operators)
        if chain is not None:
            names, experts = tuple(operator.name for operator in chain[0]), chain[1]
        elif isinstance(node, Expert):
            names, experts = (), (node.name,)
        else:
            continue
        if len(set(experts)) == len(experts):
            found += [Observation(names, experts, task, mean(row), len(row)) for task, row in scores.items()]
    return found


def own_scores(observations: Iterable[Observation]) -> dict[tuple[str, str], float]:
    """Return what experts scored by themselves, of all that was observed; of several, the mean over all instances."""
    sums: dict[tuple[str, str], tuple[float, int]] = {}
    for each in observations:
        if not each.operators:
            total, instances = sums.get((each.experts[0], each.task), (0.0, 0))
            sums[each.experts[0], each.task] = (total + each.score * each.instances, instances + each.instances)
    return {key: total / instances for key, (total, instances) in sums.items()}
