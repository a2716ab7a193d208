"""How much of each expert is in a candidate, to first order: the numbers worth plotting of a lineage."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sae_moo.recipe.methods import METHODS
from sae_moo.recipe.nodes import BASE, Cast, Expert, Merge, Prune, Recipe, Repair, walk
from sae_moo.recipe.rows import Rows


def mixing_weights(
    recipe: Recipe, names: Sequence[str], groups: int, memo: MutableMapping[Recipe, NDArray[np.float64]] | None = None
) -> NDArray[np.float64]:
    """Return the effective coefficient of each expert in each parameter group.

    Linear in the merges' weights: methods that add task vectors put what is left of 1 on the base, every other method
    counts as a weighted mean of its inputs, a `scale` stretches the distance from the base. Weights given by tensor
    count by their mean. Pruning, thinning out and rounding do not count. Every group's coefficients sum to 1.

    Args:
        recipe: any recipe over the named experts.
        names: expert names, ``base`` among them; the order of the result.
        groups: number of parameter groups.
        memo: coefficients of candidates and experts already known; filled in, so that a child costs its own nodes only.

    Returns:
        float64, shape (groups, experts).
    """
    memo = {} if memo is None else memo
    place = {name: i for i, name in enumerate(names)}
    base = np.zeros((groups, len(names)))
    if BASE in place:
        base[:, place[BASE]] = 1.0
    found: dict[Recipe, NDArray[np.float64]] = {}
    for node in walk(recipe, stop=memo):
        if node in memo:
            found[node] = memo[node]
            continue
        match node:
            case Expert():
                found[node] = np.zeros((groups, len(names)))
                found[node][:, place[node.name]] = 1.0
            case Merge():
                method = METHODS.find(node.method)
                params = method.filled(node.params)
                weights = Rows.of(node.weights).per_group(groups)
                scale = params.get("scale", 1.0)
                if not isinstance(scale, (int, float)):
                    scale = Rows.of(scale).per_group(groups).mean(axis=1, keepdims=True)
                inputs = np.array([found[child] for child in node.inputs])
                if method.adds_to_base and not params.get("normalize", False):
                    found[node] = base + np.einsum("gi,igx->gx", weights * scale, inputs - base)
                else:
                    total = weights.sum(axis=1, keepdims=True)
                    shares = np.divide(weights, total, out=np.zeros_like(weights), where=total != 0)
                    found[node] = base + scale * (np.einsum("gi,igx->gx", shares, inputs) - base)
            case Prune() | Repair() | Cast():
                found[node] = found[node.input]
        if isinstance(node, (Cast, Expert)):
            memo[node] = found[node]
    return found[recipe]
