"""From recipe to weights: tensor by tensor, straight into a live model's parameters.

At any moment only the live model and a few tensors are in memory: as many as the lineage is wide, however deep it is.
Arithmetic is float32, streamed in chunks from the experts' own files; the one rounding to the model's dtype happens
when a parameter is written. Sparsity is counted on what was written. Inputs of a merge are taken in the order of their
keys, so that listing the same experts with the same weights in another order gives the same bits.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sae_moo.experts.layout import dtype_of
from sae_moo.experts.pool import ExpertPool, TensorInfo
from sae_moo.experts.removed_experts import mask_removed_experts_
from sae_moo.materialization.parents import WeightCache
from sae_moo.materialization.prepare import prepared, worth_holding
from sae_moo.materialization.repair import repair
from sae_moo.recipe import BASE, STORED, Cast, Recipe
from sae_moo.recipe.structure import repair_of


@dataclass(frozen=True, slots=True)
class Report:
    """What was written.

    Args:
        recipe: the recipe with every pruning scope resolved to counts; materializing it again takes one pass.
        sparsity: fraction of exact zeros over all prunable weights, in [0, 1].
        group_sparsity: group name -> the same within the group; 0.0 where nothing is prunable.
        tensor_sparsity: tensor name -> fraction of exact zeros, prunable or not; what the live model has no place for
            is left out.
        seconds: wall time.
        tokens: forward tokens that a repair took; 0 where nothing was repaired.
    """

    recipe: Recipe
    sparsity: float
    group_sparsity: Mapping[str, float]
    tensor_sparsity: Mapping[str, float]
    seconds: float
    tokens: int


def materialize(
    recipe: Recipe, pool: ExpertPool, into: nn.Module, cache: WeightCache | None = None, *, hold: bool = True
) -> Report:
    """Write the weights of a recipe into a live model, in that model's dtypes and on its device.

    Args:
        recipe: any recipe over the pool's experts.
        pool: the experts.
        into: a model of the pool's architecture (`ExpertPool.live_model`); its parameters are overwritten.
        cache: weights of candidates already materialized; read and, if `recipe` is a `Cast`, added to.
        hold: whether the cache is added to: not by what nothing will be bred from.

    Returns:
        What was written, sparsity counted on it.

    Raises:
        InputError: if the recipe does not fit the pool: unknown expert, method, criterion, or a wrong number of groups.
    """
    start = time.perf_counter()
    written = write(recipe, pool, into, cache, hold=hold)
    found = fractions(pool, written.zeros)
    return Report(written.recipe, *found, seconds=time.perf_counter() - start, tokens=written.tokens)


@dataclass(frozen=True, slots=True)
class Written:
    """What `write` has written.

    Args:
        recipe: as in `Report`.
        exact: tensor name -> its values, where the live model has them or, where that rounds them, beside it.
        zeros: tensor name -> how many of them are zero.
        tokens: as in `Report`.
    """

    recipe: Recipe
    exact: Mapping[str, Tensor]
    zeros: Mapping[str, int]
    tokens: int


@torch.no_grad()
def write(
    recipe: Recipe, pool: ExpertPool, into: nn.Module, cache: WeightCache | None = None, *, hold: bool = True
) -> Written:
    """Do what `materialize` does, and return the tensors instead of their sparsity."""
    parameters = pool.parameters(into)
    first = next(iter(parameters.values()))
    size = sum(parameter.nbytes for parameter in parameters.values())
    ready = prepared(recipe, pool, first.device, cache, size)
    recipe, exact = ready.recipe, dict(parameters)
    places: list[tuple[TensorInfo, Tensor]] = []
    stored = isinstance(recipe, Cast) and recipe.dtype == STORED
    for info in pool.tensors:
        place = parameters.get(info.name)
        if place is None and info.prunable:  # counted, and nothing else
            place = torch.empty(info.shape, dtype=info.dtype, device=first.device)
            exact[info.name] = place
        if place is None:
            continue
        if stored and torch.promote_types(place.dtype, info.dtype) != place.dtype:
            # the model rounds once more: zeros are those of the weights that are exported and inherited
            exact[info.name] = torch.empty(info.shape, dtype=info.dtype, device=place.device)
        places.append((info, exact[info.name]))
    zeros = dict(zip((info.name for info, _ in places), ready.plan.write(places), strict=True))
    for info, written in places:
        if info.name in parameters and written is not parameters[info.name]:
            parameters[info.name].copy_(written)
    tokens = 0
    if repair_of(recipe) is not None:
        assert isinstance(recipe, Cast)
        done = repair(recipe, pool, into, exact, cache)
        zeros, tokens = {**zeros, **done.zeros}, done.tokens
    mask_removed_experts_(into, pool, parameters, zeros)
    rounded = isinstance(recipe, Cast) and (stored or dtype_of(recipe.dtype) == first.dtype)
    bred = hold and repair_of(recipe) is None  # nothing is bred of what was repaired
    if cache is not None and bred and rounded and worth_holding(recipe):
        cache.put(recipe, exact.items(), size)
    return Written(recipe, exact, zeros, tokens)


def measured_sparsity(pool: ExpertPool, model: nn.Module) -> float:
    """Return the fraction of exact zeros over all prunable weights of a model as it is, in [0, 1].

    What it has no place for is the base's.
    """
    parameters = pool.parameters(model)
    prunable = [info for info in pool.tensors if info.prunable]
    counts = _numbers(
        torch.count_nonzero(parameters[info.name] if info.name in parameters else pool.load(BASE, info.name))
        for info in prunable
    )
    zeros = {info.name: info.numel - int(count) for info, count in zip(prunable, counts, strict=True)}
    return fractions(pool, zeros)[0]


def sparseness(pool: ExpertPool, model: nn.Module, measure: str, reference: Mapping[str, float]) -> tuple[float, ...]:
    """Return how sparse a model is by its norms, over its prunable weights.

    Args:
        pool: the experts.
        model: a model of theirs, as it is.
        measure: ``l1``: ``1 - |w|_1 / |w_base|_1``, below 0 for what is larger than the base; or ``hoyer`` (Hoyer
            2004): ``(sqrt(n) - |w|_1 / |w|_2) / (sqrt(n) - 1)``, 0 where all n weights are alike, 1 where one is left,
            and 0 for no weights at all.
        reference: `l1_norms` of the base; read for ``l1``.

    Returns:
        Of the whole model, then of each parameter group, in the pool's order; 0 where nothing is prunable. Rounded to
        nine digits, since sums depend on the machine in their last ones.
    """
    parameters = pool.parameters(model)
    ones, twos, sizes, before = (np.zeros(len(pool.groups)) for _ in range(4))
    there = [info for info in pool.tensors if info.prunable and info.name in parameters]
    norms = _numbers(
        torch.linalg.vector_norm(parameters[info.name].float(), order, dtype=torch.float64)
        for info in there
        for order in (1, 2)
    )
    for info, one, two in zip(there, norms[::2], norms[1::2], strict=True):
        ones[info.group] += one
        twos[info.group] += two**2
        sizes[info.group] += info.numel
        before[info.group] += reference.get(info.name, 0.0)
    rows = [np.concatenate([[row.sum()], row]) for row in (ones, twos, sizes, before)]
    if measure == "l1":
        found = 1.0 - np.divide(rows[0], rows[3], out=np.ones_like(rows[0]), where=rows[3] > 0)
    else:
        root = np.sqrt(rows[2])
        ratio = np.divide(rows[0], np.sqrt(rows[1]), out=root.copy(), where=rows[1] > 0)
        found = np.divide(root - ratio, root - 1, out=np.zeros_like(root), where=root > 1)
    return tuple(float(value) for value in np.round(found, 9))


def _numbers(found: Iterable[Tensor]) -> list[float]:
    """Return numbers that were found on a device, fetched at once."""
    by_device: dict[torch.device, list[tuple[int, Tensor]]] = {}
    for i, number in enumerate(found):
        by_device.setdefault(number.device, []).append((i, number))
    numbers: dict[int, float] = {}
    for each in by_device.values():
        numbers |= dict(zip((i for i, _ in each), torch.stack([number for _, number in each]).tolist(), strict=True))
    return [numbers[i] for i in range(len(numbers))]


def l1_norms(pool: ExpertPool, name: str) -> dict[str, float]:
    """Return the L1 norm of every prunable tensor of an expert."""
    prunable = [info.name for info in pool.tensors if info.prunable]
    return {
        tensor: float(torch.linalg.vector_norm(pool.load(name, tensor).float(), 1, dtype=torch.float64))
        for tensor in prunable
    }


def fractions(pool: ExpertPool, zeros: Mapping[str, int]) -> tuple[float, dict[str, float], dict[str, float]]:
    """Return sparsity from numbers of zeros by tensor: over all prunable weights, by group, by tensor; in [0, 1]."""
    size, empty = Counter[int](), Counter[int]()
    for info in pool.tensors:
        if info.prunable:
            size[info.group] += info.numel
            empty[info.group] += zeros[info.name]
    whole = sum(empty.values()) / max(sum(size.values()), 1)
    groups = {name: empty[i] / size[i] if size[i] else 0.0 for i, name in enumerate(pool.groups)}
    shares = {info.name: zeros[info.name] / max(info.numel, 1) for info in pool.tensors if info.name in zeros}
    return whole, groups, shares
