"""A made-up catalogue: experts with skills, features that tell of them, and what merges of them score."""

from __future__ import annotations

from itertools import combinations, permutations

import numpy as np

from sae_moo.prediction.observations import Observation
from sae_moo.prediction.table import FeatureTable
from sae_moo.recipe.operators import named

TASKS = ("sums", "words")
OPERATORS = named("linear", "linear-0.7")
NAMES = ("x", "y", "likeness")


def catalogue(count=7, seed=0, law="features", noise=0.0, prefix="e"):
    """Return a table, observations (experts alone among them) and own scores.

    By the law ``features`` a merge scores 0.5 + 0.1 x - 0.06 y, by ``experts`` what its experts are worth, by ``own``
    the mean of their own scores and 0.1 x.
    """
    rng = np.random.default_rng(seed)
    experts = [f"{prefix}{i}" for i in range(count)]
    own = {(expert, task): float(rng.uniform(0.3, 0.7)) for expert in experts for task in TASKS}
    worth = {expert: rng.uniform(-0.2, 0.2) for expert in experts}
    rows, observations = {}, [Observation.of_expert(*key, score, 50) for key, score in own.items()]
    for first, second in permutations(experts, 2):
        likeness = rng.normal()
        for task in TASKS:
            rows[first, second, task] = np.array([rng.normal(), rng.normal(), likeness])
    for operator in OPERATORS:
        for first, second in combinations(experts, 2) if operator.symmetric else permutations(experts, 2):
            for task in TASKS:
                there, back = rows[first, second, task], rows[second, first, task]
                row = (there + back) / 2 if operator.symmetric else there
                level = 0.5 if task == "sums" else 0.4
                score = {
                    "features": level + 0.1 * row[0] - 0.06 * row[1],
                    "experts": level + worth[first] + (1 if operator.symmetric else 0.3) * worth[second],
                    "own": (own[first, task] + own[second, task]) / 2 + 0.1 * row[0],
                }[law]
                score = float(np.clip(score + noise * rng.normal(), 0, 1))
                observations.append(Observation.of_pair(operator.name, first, second, task, score, 50))
    return FeatureTable(NAMES, rows), observations, own


def without(observations, *pairs):
    """Return the observations but those of some pairs, in either order."""
    out = [frozenset(pair) for pair in pairs]
    return [each for each in observations if frozenset(each.experts) not in out]
