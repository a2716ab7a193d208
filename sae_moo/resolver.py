"""Writing down what needs whole models: exact counts of group and global pruning, RankMean's ranks.

Done once, when a recipe is first materialized; the resolved recipe then takes one pass wherever it is replayed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sae_moo.experts import ExpertPool
from sae_moo.ops import prune as pruning
from sae_moo.ops.measure import WHOLE, l1_norm
from sae_moo.ops.select import rank
from sae_moo.plan import Plan
from sae_moo.recipe import BASE, Cast, Merge, Prune, Recipe, walk
from sae_moo.weight_cache import WeightCache


@torch.no_grad()
def resolve(
    recipe: Recipe, pool: ExpertPool, device: torch.device | str = "cpu", cache: WeightCache | None = None
) -> Recipe:
    """Return the recipe with all that needs whole models computed and written down.

    Group and global pruning scopes become exact counts per tensor, RankMean gets its ranks. Costs two passes over the
    weights per such node, nothing where there is none.
    """
    held: WeightCache | tuple[()] = cache if cache is not None else ()
    if not any(_unresolved(node) for node in walk(recipe, stop=held)):
        return recipe
    new: dict[Recipe, Recipe] = {}
    for node in walk(recipe, stop=held):
        if node in held:
            new[node] = node
            continue
        match node:
            case Merge():
                inputs = tuple(new[child] for child in node.inputs)
                params = node.params
                if _unresolved(node):
                    params = (*params, ("ranks", _ranks(inputs, pool, device, cache)))
                node_now: Recipe = Merge(node.method, inputs, node.weights, params)
            case Prune():
                node_now = Prune(new[node.input], node.sparsity, node.criterion, node.scope, node.counts)
                if _unresolved(node):
                    counts = _resolved_counts(node_now, pool, device, cache)
                    node_now = Prune(new[node.input], node.sparsity, node.criterion, node.scope, counts)
            case Cast():
                node_now = Cast(new[node.input], node.dtype)
            case _:
                node_now = node
        new[node] = node_now
    return new[recipe]


def _unresolved(node: Recipe) -> bool:
    if isinstance(node, Merge):
        return node.method == "rankmean" and "ranks" not in dict(node.params)
    return isinstance(node, Prune) and node.scope != "tensor" and node.counts is None


def _ranks(
    inputs: Sequence[Recipe], pool: ExpertPool, device: torch.device | str, cache: WeightCache | None
) -> tuple[tuple[float, ...], ...]:
    """Return RankMean's rank of every input's tensors among its own, rows per tensor; 1 outside blocks."""
    columns = []
    for node in inputs:
        plan = Plan(node, pool, device, cache)
        changes = []
        for info in pool.tensors:
            base = pool.load(BASE, info.name).to(device).flatten()
            changes.append(l1_norm(plan.tensor(info).flatten(), base, WHOLE, 1))
        inside = [i for i, info in enumerate(pool.tensors) if pool.groups[info.group].startswith("block.")]
        column = [1.0] * len(pool.tensors)
        for place, i in enumerate(sorted(inside, key=lambda i: (changes[i], i)), start=1):
            column[i] = float(place)
        columns.append(column)
    return tuple(zip(*columns, strict=True))


def _resolved_counts(
    node: Prune, pool: ExpertPool, device: torch.device | str, cache: WeightCache | None
) -> tuple[int, ...]:
    plan = Plan(node.input, pool, device, cache)
    score = pruning.CRITERIA[node.criterion]
    prunable = [info for info in pool.tensors if info.prunable]
    units: dict[int, list[int]] = {}  # positions within `prunable` that compete with each other
    for position, info in enumerate(prunable):
        units.setdefault(info.group if node.scope == "group" else 0, []).append(position)
    high = [score(plan.tensor(info).flatten()).high() for info in prunable]
    bins: dict[int, int] = {}
    left: dict[int, int] = {}
    for unit, members in units.items():
        asked = node.sparsity if isinstance(node.sparsity, float) else node.sparsity[unit]
        count = pruning.target_count(asked, sum(prunable[position].numel for position in members))
        bins[unit], left[unit] = (
            rank(np.sum([high[position] for position in members], axis=0), count) if count else (0, 0)
        )
    counts = [0] * len(prunable)
    for unit, members in units.items():
        low = []
        for position in members:
            low.append(score(plan.tensor(prunable[position]).flatten()).low(bins[unit]))
            counts[position] = int(high[position][: bins[unit]].sum())
        cut, ties = rank(np.sum(low, axis=0), left[unit]) if left[unit] else (0, 0)
        for position, histogram in zip(members, low, strict=True):
            tied = min(ties, int(histogram[cut]))  # equal scores go in the pool's order, as within a tensor by index
            counts[position] += int(histogram[:cut].sum()) + tied
            ties -= tied
    return tuple(counts)
