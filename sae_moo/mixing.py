"""How much of each expert is in a candidate, to first order: the numbers worth plotting of a lineage."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sae_moo.recipe import BASE, Cast, Expert, Merge, Prune, Recipe, walk

ADDING = ("task_arithmetic", "dare_linear", "dare_ties", "della_linear", "breadcrumbs", "breadcrumbs_ties")
"""Methods whose weights are not divided by their sum unless asked: task vectors are added to the base."""


def mixing_weights(
    recipe: Recipe, names: Sequence[str], memo: MutableMapping[Recipe, NDArray[np.float64]] | None = None
) -> NDArray[np.float64]:
    """Return the effective coefficient of each expert, averaged over groups.

    Linear in the merges' weights: methods that add task vectors put what is left of 1 on the base, every other method
    counts as a weighted mean of its inputs, a `scale` stretches the distance from the base. Pruning, thinning out and
    rounding do not count. The coefficients sum to 1.

    Args:
        recipe: any recipe over the named experts.
        names: expert names, ``base`` among them; the order of the result.
        memo: coefficients of subtrees already known; filled in, so that a child costs its own nodes only.

    Returns:
        float64, shape (experts,).
    """
    memo = {} if memo is None else memo
    place = {name: i for i, name in enumerate(names)}
    base = np.zeros(len(names))
    if BASE in place:
        base[place[BASE]] = 1.0
    for node in walk(recipe, stop=memo):
        if node in memo:
            continue
        match node:
            case Expert():
                memo[node] = np.zeros(len(names))
                memo[node][place[node.name]] = 1.0
            case Merge():
                weights = np.asarray(node.weights, dtype=np.float64).reshape(-1, len(node.inputs))
                scale = float(np.mean(dict(node.params).get("scale", 1.0)))  # type: ignore[arg-type]
                inputs = np.stack([memo[child] for child in node.inputs])
                if node.method in ADDING and not dict(node.params).get("normalize", False):
                    mean = (weights * scale).mean(axis=0)
                    memo[node] = base + mean @ (inputs - base)
                else:
                    total = weights.sum(axis=1, keepdims=True)
                    mean = np.divide(weights, total, out=np.zeros_like(weights), where=total != 0).mean(axis=0)
                    memo[node] = base + scale * (mean @ inputs - base)
            case Prune() | Cast():
                memo[node] = memo[node.input]
    return memo[recipe]
