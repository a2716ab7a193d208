"""What a pymoo individual of a search carries beside its recipe, and how one is made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pymoo.core.individual import Individual
from pymoo.core.population import Population

from sae_moo.objectives import Evaluation
from sae_moo.recipe import Recipe

Rng = np.random.Generator
ORIGIN = "origin"  # key of an individual's Origin in pymoo's population
TOTAL = "total"  # key of an individual's local SAE score per group
ALTERNATIVES = "alternatives"  # key of other allocations of an individual's budget


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a candidate comes from.

    Args:
        operator: what made it.
        parents: its parents' evaluations.
        numbers: settings worth plotting.
    """

    operator: str
    parents: tuple[Evaluation, ...] = ()
    numbers: dict[str, float] = field(default_factory=dict)


def born(drawn: list[tuple[Recipe, Origin]]) -> Population:
    """Return individuals of recipes and where each comes from."""
    individuals = []
    for recipe, origin in drawn:
        individual = Individual(X=row_of(recipe))
        individual.data[ORIGIN] = origin
        individuals.append(individual)
    return Population.create(*individuals)


def row_of(recipe: Recipe) -> Any:
    """Return a recipe as pymoo has it: a row of one variable."""
    row = np.empty(1, dtype=object)
    row[0] = recipe
    return row


def required(rng: Rng | None) -> Rng:
    """Return the generator that pymoo hands on.

    Raises:
        ValueError: if it hands on none.
    """
    if rng is None:
        raise ValueError("random_state: expected a numpy Generator; without one a run could not be repeated")
    return rng
