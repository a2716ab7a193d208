"""Check, resolve, plan: what stands between a recipe and its first tensor, in the one order in which it works."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sae_moo.experts.pool import ExpertPool, TensorInfo
from sae_moo.materialization.check import check
from sae_moo.materialization.parents import WeightCache
from sae_moo.materialization.plan import Known, Plan
from sae_moo.materialization.resolve import resolve
from sae_moo.recipe import Cast, Expert, Recipe, children
from sae_moo.recipe.structure import unrepaired


@dataclass(frozen=True, slots=True)
class Prepared:
    """A recipe that is ready to be computed tensor by tensor.

    Args:
        recipe: the recipe with all that needs whole models written down.
        plan: the order of work for it; for what it repairs, where it ends in a repair (`repair.repair`).
    """

    recipe: Recipe
    plan: Plan


@torch.no_grad()
def prepared(
    recipe: Recipe,
    pool: ExpertPool,
    device: torch.device | str = "cpu",
    cache: WeightCache | None = None,
    model_bytes: int = 0,
) -> Prepared:
    """Check a recipe, write down what needs whole models, and plan its work.

    Args:
        recipe: any recipe over the pool's experts.
        pool: the experts.
        device: where to work.
        cache: weights of candidates already materialized; parents that it lacks are added.
        model_bytes: size of a candidate's weights; parents are held only where three of them fit.

    Raises:
        InputError: if the recipe does not fit the pool: unknown expert, method, criterion, or a wrong number of groups.
    """
    check(recipe, pool)
    known = Known()
    recipe = resolve(recipe, pool, device, cache, known)
    if cache is not None:
        _hold_parents(recipe, pool, device, cache, model_bytes)
    return Prepared(recipe, Plan(unrepaired(recipe), pool, device, cache, known))


def worth_holding(recipe: Recipe) -> bool:
    """Say whether a cache should hold a recipe's weights: an expert is read as fast from its file."""
    return isinstance(recipe, Cast) and not isinstance(recipe.input, Expert)


def _hold_parents(
    recipe: Recipe, pool: ExpertPool, device: torch.device | str, cache: WeightCache, model_bytes: int
) -> None:
    """Put parents that the cache has dropped, or not seen since a restart, back into it.

    A parent is likely to breed again, and without it every child recomputes the whole lineage above it.
    """
    if recipe in cache or cache.max_bytes < 3 * model_bytes:  # two parents and their child
        return
    parents: dict[Recipe, None] = {}
    stack = list(children(recipe))
    while stack:
        node = stack.pop()
        if isinstance(node, Cast):
            parents[node] = None
        else:
            stack.extend(children(node))
    for parent in parents:
        if parent not in cache and worth_holding(parent) and isinstance(parent, Cast):
            plan = Plan(parent, pool, device, cache)
            size = sum(info.numel * info.cast(parent.dtype).itemsize for info in pool.tensors)
            cache.put(parent, _named(plan, pool.tensors), size)


def _named(plan: Plan, infos: Sequence[TensorInfo]) -> Iterator[tuple[str, Tensor]]:
    for band, tensors in plan.tensors(infos):
        for info, tensor in zip(band, tensors, strict=True):
            yield info.name, tensor.view(info.shape)
    plan.engine.settle()
