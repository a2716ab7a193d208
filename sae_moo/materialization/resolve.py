"""Writing down what needs whole models: exact counts of group and global pruning, removed units, ranks of RankMean.

Done once, when a recipe is first materialized; the resolved recipe then takes one pass wherever it is replayed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from sae_moo.errors import WeightsError
from sae_moo.experts.anatomy import Anatomy, Part, anatomy
from sae_moo.experts.pool import ExpertPool, TensorInfo
from sae_moo.materialization.guarded import guarded
from sae_moo.materialization.ops import prune as pruning
from sae_moo.materialization.ops.select import Cut, Importances, rank
from sae_moo.materialization.parents import WeightCache
from sae_moo.materialization.plan import Known, Plan, scoring_of
from sae_moo.materialization.thresholds import counts as counts_at_once
from sae_moo.recipe import BLOCKS, MOE_EXPERTS, STRUCTURED, Cast, Expert, Merge, Prune, Recipe, Repair, walk
from sae_moo.recipe.catalogue import resolved
from sae_moo.recipe.criteria import CRITERIA
from sae_moo.recipe.methods import METHODS, Method, WholeModel
from sae_moo.recipe.rows import Rows
from sae_moo.recipe.scopes import going

if TYPE_CHECKING:
    from sae_moo.materialization.ops.device.engine import Banded


@torch.no_grad()
def resolve(
    recipe: Recipe,
    pool: ExpertPool,
    device: torch.device | str = "cpu",
    cache: WeightCache | None = None,
    known: Known | None = None,
) -> Recipe:
    """Return the recipe with all that needs whole models computed and written down.

    Group and global pruning scopes become exact counts per tensor, structured ones the units removed of each block,
    merge methods get the setting that their row's `whole_model` measures. Costs two passes over the weights per such
    node (one if structured), nothing where there is none. What is found on the way and is not of the recipe is added to
    `known`.
    """
    known = Known() if known is None else known
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
                method = METHODS.find(node.method)
                if method.whole_model is not None and _unresolved(node):
                    measured = _measured(method, method.whole_model, inputs, pool, device, cache, known)
                    params = (*params, (method.whole_model.setting, measured))
                node_now: Recipe = Merge(node.method, inputs, node.weights, params)
            case Prune():
                pruned = replace(node, input=new[node.input])
                if not _unresolved(node):
                    node_now = pruned
                elif node.scope in STRUCTURED:
                    units, there = _resolved_units(pruned, pool, device, cache, known)
                    node_now = replace(pruned, units=units)
                    if there is not None:
                        known.units[node_now] = there
                else:
                    counts, cuts = _resolved_counts(pruned, pool, device, cache, known)
                    node_now = replace(pruned, counts=counts)
                    known.cuts[node_now] = cuts
            case Repair():
                node_now = replace(node, input=new[node.input])
            case Cast():
                node_now = Cast(new[node.input], node.dtype)
            case _:
                node_now = node
        new[node] = node_now
    return new[recipe]


def _unresolved(node: Recipe) -> bool:
    if isinstance(node, Merge):
        whole = METHODS.find(node.method).whole_model
        return whole is not None and whole.setting not in dict(node.params)
    if not isinstance(node, Prune):
        return False
    return node.units is None if node.scope in STRUCTURED else node.scope in ("group", "global") and node.counts is None


def _measured(
    method: Method,
    whole: WholeModel,
    inputs: Sequence[Recipe],
    pool: ExpertPool,
    device: torch.device | str,
    cache: WeightCache | None,
    known: Known,
) -> tuple[tuple[float, ...], ...]:
    def measured_now() -> tuple[tuple[float, ...], ...]:
        models = (Plan(node, pool, device, cache, known).tensor for node in inputs)
        measure = guarded(METHODS, method, resolved(whole.measure))
        found: tuple[tuple[float, ...], ...] = measure(models, pool, device)
        return found

    of_experts = all(isinstance(node, Expert) for node in inputs)
    key = ("whole models", method.name, tuple(inputs))
    measured = pool.remembered.get(key, measured_now) if of_experts else measured_now()
    if len(measured) != len(pool.tensors):
        raise WeightsError(
            f"{method.name}: {whole.setting}: expected {len(pool.tensors)} rows, one per tensor, got {len(measured)}"
        )
    return measured


def _resolved_counts(
    node: Prune, pool: ExpertPool, device: torch.device | str, cache: WeightCache | None, known: Known
) -> tuple[tuple[int, ...], dict[str, Cut]]:
    plan = Plan(node.input, pool, device, cache, known)

    def score(info: TensorInfo) -> Importances:
        return scoring_of(node, info, plan.tensor(info).flatten(), pool).scores()

    prunable = [info for info in pool.tensors if info.prunable]
    units: dict[int, list[int]] = {}  # positions within `prunable` that compete with each other
    for position, info in enumerate(prunable):
        units.setdefault(info.group if node.scope == "group" else 0, []).append(position)
    rows = Rows.of_places(node.sparsity)
    asked = {
        unit: pruning.target_count(rows.of_group(unit), sum(prunable[position].numel for position in members))
        for unit, members in units.items()
    }
    if plan.engine.batched:

        def bands() -> Iterator[tuple[list[TensorInfo], list[pruning.Scoring]]]:
            for infos, tensors in plan.tensors(prunable):
                pairs = zip(infos, tensors, strict=True)
                yield infos, [scoring_of(node, info, tensor, pool) for info, tensor in pairs]

        return counts_at_once(cast("Banded", plan.engine), bands, prunable, units, asked)
    high = [score(info).high() for info in prunable]
    bins: dict[int, int] = {}
    left: dict[int, int] = {}
    for unit, members in units.items():
        bins[unit], left[unit] = (
            rank(np.sum([high[position] for position in members], axis=0), asked[unit]) if asked[unit] else (0, 0)
        )
    counts = [0] * len(prunable)
    for unit, members in units.items():
        low = []
        for position in members:
            low.append(score(prunable[position]).low(bins[unit]))
            counts[position] = int(high[position][: bins[unit]].sum())
        cut, ties = rank(np.sum(low, axis=0), left[unit]) if left[unit] else (0, 0)
        for position, histogram in zip(members, low, strict=True):
            tied = min(ties, int(histogram[cut]))  # equal scores go in the pool's order, as within a tensor by index
            counts[position] += int(histogram[:cut].sum()) + tied
            ties -= tied
    return tuple(counts), {}


def _resolved_units(
    node: Prune, pool: ExpertPool, device: torch.device | str, cache: WeightCache | None, known: Known
) -> tuple[tuple[tuple[int, ...], ...], list[Tensor] | None]:
    """Return the lowest units of every block, and, where that is as many in each, the same on the device; equal scores
    go in order.

    A unit's score is the L2 norm of its weights in all its matrices; weighed by activations, it is the norm of what its
    columns of the reading matrix hold, each times its feature's norm (for a neuron: the norm of its output times that
    of its column). Units compete within their block, where one stays at least; whole blocks, all of whose matrices
    count, with each other, and one of them stays. Sums are float64.
    """
    whole = anatomy(pool, node.scope)
    weighed = CRITERIA.find(node.criterion).calibrated
    plan = Plan(node.input, pool, device, cache, known)
    totals = torch.zeros(whole.blocks, whole.units, dtype=torch.float64, device=device)
    parts = {part.info.name: part for part in whole.parts if _counts(part, node.scope) and (part.output or not weighed)}
    for infos, tensors in plan.tensors([part.info for part in parts.values()]):
        mine = [parts[info.name] for info in infos]
        scorings = [_unit_scoring(node, part, tensor, pool) for part, tensor in zip(mine, tensors, strict=True)]
        for part, squares in zip(mine, plan.engine.unit_squares(scorings), strict=True):
            totals[part.block] += part.per_unit(squares, whole.units)
    rows = Rows.of_places(node.sparsity)
    if node.scope == BLOCKS:
        count = going(rows.of_group(0), whole.blocks)
        lowest = set(torch.argsort(totals.flatten(), stable=True)[:count].tolist())
        return tuple((0,) if block in lowest else () for block in range(whole.blocks)), None
    if node.scope == MOE_EXPERTS:
        counts = _as_many_everywhere(pruning.target_count(rows.of_group(0), whole.units), totals, whole)
    else:
        group = {part.block: part.info.group for part in whole.parts}
        counts = [going(rows.of_group(group[block]), whole.units) for block in range(whole.blocks)]
    order = torch.argsort(totals, dim=1, stable=True)[:, : max(counts)]
    if min(counts) == max(counts):
        there = order.sort(dim=1).values
        return tuple(tuple(row) for row in there.tolist()), list(there)
    chosen = zip(order.tolist(), counts, strict=True)
    return tuple(tuple(sorted(row[:count])) for row, count in chosen), None


def _counts(part: Part, scope: str) -> bool:
    """Say whether a tensor has a say in the scores of units: matrices have, stacks of them, but no biases."""
    return len(part.info.shape) > 1 and (scope == BLOCKS or part.info.prunable)


def _unit_scoring(node: Prune, part: Part, tensor: Tensor, pool: ExpertPool) -> tuple[pruning.Scoring, int]:
    """Return the scores of a tensor's weights and the axis along which its units lie; a stack of matrices is one."""
    shape = part.info.shape
    if len(shape) == 2:
        return scoring_of(node, part.info, tensor, pool), part.axis
    if part.axis not in (0, len(shape) - 1):
        raise ValueError(f"{part.info.name}: expected units along the first or last of {shape}, got {part.axis}")
    first = part.axis == 0
    rows, columns = (shape[0], part.info.numel // shape[0]) if first else (part.info.numel // shape[-1], shape[-1])
    return scoring_of(node, replace(part.info, shape=(rows, columns)), tensor, pool), 0 if first else 1


def _as_many_everywhere(asked: int, totals: Tensor, whole: Anatomy) -> list[int]:
    """Return how many experts go of every block: as many as asked, or as some block has lost already.

    A configuration has one number of experts for all mixtures. Of those that have none left, whose block was removed,
    nothing is asked.

    Raises:
        WeightsError: if fewer would be left than the router chooses.
    """
    lost = [row.count(0.0) for block, row in enumerate(totals.tolist()) if block not in whole.bare]
    count = max(asked, *(gone for gone in lost if gone < whole.units), 0)
    if count > whole.units - whole.least:
        raise WeightsError(
            f"some mixture has {count} experts of zeros among {whole.units}; {whole.least} have to stay in each"
        )
    return [0 if block in whole.bare else count for block in range(whole.blocks)]
