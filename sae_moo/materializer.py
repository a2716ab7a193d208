"""From recipe to weights: tensor by tensor, straight into a live model's parameters.

At any moment only the live model and a few tensors are in memory: as many as the lineage is wide, however deep it is.
Arithmetic is float32; the one rounding to the model's dtype happens when a parameter is written. Sparsity is counted on
what was written.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sae_moo.errors import InputError, nearest
from sae_moo.experts import ExpertPool, TensorInfo
from sae_moo.ops import prune as pruning
from sae_moo.ops.merge import METHODS, Param, Place
from sae_moo.recipe import BASE, Cast, Expert, Merge, Prune, Recipe, children, walk


@dataclass(frozen=True, slots=True)
class Report:
    """What was written.

    Args:
        recipe: the recipe with every pruning scope resolved to counts; materializing it again takes one pass.
        sparsity: fraction of exact zeros over all prunable weights, in [0, 1].
        group_sparsity: group name -> the same within the group; 0.0 where nothing is prunable.
        tensor_sparsity: tensor name -> fraction of exact zeros, prunable or not.
        seconds: wall time.
    """

    recipe: Recipe
    sparsity: float
    group_sparsity: Mapping[str, float]
    tensor_sparsity: Mapping[str, float]
    seconds: float


class WeightCache:
    """Materialized candidates, least recently used out first, bounded in bytes.

    It never changes a bit: it holds what a `Cast` node rounded, and an evicted candidate is recomputed from its recipe.

    Args:
        max_bytes: most bytes of weights to hold; 0 switches it off.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes: expected 0 or more, got {max_bytes}")
        self.max_bytes = max_bytes
        self.bytes = 0
        self._held: OrderedDict[Recipe, dict[str, Tensor]] = OrderedDict()

    def __contains__(self, recipe: object) -> bool:
        return recipe in self._held

    def __iter__(self) -> Iterator[Recipe]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    def get(self, recipe: Recipe) -> Mapping[str, Tensor]:
        """Return the weights of a held recipe and mark it as just used."""
        self._held.move_to_end(recipe)
        return self._held[recipe]

    def put(self, recipe: Recipe, parameters: Mapping[str, Tensor]) -> None:
        """Hold a copy, dropping the least recently used; a model larger than the bound is not held."""
        size = sum(parameter.nbytes for parameter in parameters.values())
        if recipe in self._held or size > self.max_bytes:
            return
        while self.bytes + size > self.max_bytes:
            _, dropped = self._held.popitem(last=False)
            self.bytes -= sum(tensor.nbytes for tensor in dropped.values())
        # in host memory: on a GPU the live model and its activations need the room more
        self._held[recipe] = {name: weight.detach().to("cpu", copy=True) for name, weight in parameters.items()}
        self.bytes += size


@torch.no_grad()
def materialize(recipe: Recipe, pool: ExpertPool, into: nn.Module, cache: WeightCache | None = None) -> Report:
    """Write the weights of a recipe into a live model, in that model's dtype and on its device.

    Args:
        recipe: any recipe over the pool's experts.
        pool: the experts.
        into: a model of the pool's architecture (`ExpertPool.live_model`); its parameters are overwritten.
        cache: weights of candidates already materialized; read and, if `recipe` is a `Cast`, added to.

    Returns:
        What was written, sparsity counted on it.

    Raises:
        InputError: if the recipe does not fit the pool: unknown expert, method, criterion, or a wrong number of groups.
    """
    start = time.perf_counter()
    check(recipe, pool)
    parameters = pool.parameters(into)
    device = next(iter(parameters.values())).device
    recipe = resolve(recipe, pool, device, cache)
    if cache is not None:
        _hold_parents(recipe, pool, device, cache, sum(parameter.nbytes for parameter in parameters.values()))
    plan = _Plan(recipe, pool, device, cache)
    zeros: dict[str, int] = {}
    for info in pool.tensors:
        parameter = parameters[info.name]
        parameter.copy_(plan.tensor(info))
        zeros[info.name] = info.numel - int(torch.count_nonzero(parameter))
    if cache is not None and _worth_holding(recipe):
        cache.put(recipe, parameters)
    return Report(recipe, *_fractions(pool, zeros), seconds=time.perf_counter() - start)


def _worth_holding(recipe: Recipe) -> bool:
    return isinstance(recipe, Cast) and not isinstance(recipe.input, Expert)  # an expert is read as fast from its file


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
        if parent not in cache and _worth_holding(parent) and isinstance(parent, Cast):
            plan = _Plan(parent, pool, device, cache)
            cache.put(parent, {info.name: plan.tensor(info) for info in pool.tensors})


def measured_sparsity(pool: ExpertPool, model: nn.Module) -> float:
    """Return the fraction of exact zeros over all prunable weights of a model as it is, in [0, 1]."""
    parameters = pool.parameters(model)
    zeros = {info.name: info.numel - int(torch.count_nonzero(parameters[info.name])) for info in pool.tensors}
    return _fractions(pool, zeros)[0]


def check(recipe: Recipe, pool: ExpertPool) -> None:
    """Raise InputError if the pool or the tables of methods cannot serve the recipe."""
    groups = len(pool.groups)
    sizes = [info.numel for info in pool.tensors if info.prunable]
    for node in walk(recipe):
        match node:
            case Expert() if node.name not in pool.names:
                raise InputError(
                    f"no expert named {node.name!r}{nearest(node.name, pool.names)}; there are {', '.join(pool.names)}"
                )
            case Merge():
                _check_merge(node, groups)
            case Prune():
                if node.criterion not in pruning.CRITERIA:
                    known = ", ".join(pruning.CRITERIA)
                    raise InputError(f"no pruning criterion {node.criterion!r}; there are {known}")
                if isinstance(node.sparsity, tuple) and node.scope == "global":
                    raise InputError("Prune: scope 'global' takes one sparsity, got one per group")
                if isinstance(node.sparsity, tuple) and len(node.sparsity) != groups:
                    raise InputError(f"Prune: expected {groups} sparsities, one per group, got {len(node.sparsity)}")
                if node.counts is not None and len(node.counts) != len(sizes):
                    raise InputError(f"Prune: expected {len(sizes)} counts, one per tensor, got {len(node.counts)}")
                for count, size in zip(node.counts or (), sizes, strict=False):
                    if count > size:
                        raise InputError(f"Prune: expected counts of at most the tensor's size {size}, got {count}")


def resolve(
    recipe: Recipe, pool: ExpertPool, device: torch.device | str = "cpu", cache: WeightCache | None = None
) -> Recipe:
    """Return the recipe with group and global pruning scopes turned into exact counts per tensor.

    Costs two passes over the weights per unresolved node, nothing where all are resolved.
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
                node_now: Recipe = Merge(
                    node.method, tuple(new[child] for child in node.inputs), node.weights, node.params
                )
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
    return isinstance(node, Prune) and node.scope != "tensor" and node.counts is None


def _resolved_counts(
    node: Prune, pool: ExpertPool, device: torch.device | str, cache: WeightCache | None
) -> tuple[int, ...]:
    plan = _Plan(node.input, pool, device, cache)
    score = pruning.CRITERIA[node.criterion]
    prunable = [info for info in pool.tensors if info.prunable]
    units: dict[int, list[int]] = {}  # positions within `prunable` that compete with each other
    for position, info in enumerate(prunable):
        units.setdefault(info.group if node.scope == "group" else 0, []).append(position)
    high = [pruning.high_histogram(score(plan.tensor(info))) for info in prunable]
    bins: dict[int, int] = {}
    left: dict[int, int] = {}
    for unit, members in units.items():
        asked = node.sparsity if isinstance(node.sparsity, float) else node.sparsity[unit]
        count = pruning.target_count(asked, sum(prunable[position].numel for position in members))
        total = np.cumsum(sum(high[position] for position in members))
        bins[unit] = int(np.searchsorted(total, count)) if count else 0
        left[unit] = count - (int(total[bins[unit] - 1]) if bins[unit] else 0)
    counts = [0] * len(prunable)
    for unit, members in units.items():
        low = []
        for position in members:
            low.append(pruning.low_histogram(score(plan.tensor(prunable[position])), bins[unit]))
            counts[position] = int(high[position][: bins[unit]].sum())
        total = np.cumsum(sum(low))
        cut = int(np.searchsorted(total, left[unit])) if left[unit] else 0
        ties = left[unit] - (int(total[cut - 1]) if cut else 0)
        for position, histogram in zip(members, low, strict=True):
            tied = min(ties, int(histogram[cut]))  # equal scores go in the pool's order, as within a tensor by index
            counts[position] += int(histogram[:cut].sum()) + tied
            ties -= tied
    return tuple(counts)


class _Plan:
    """The order of work for one recipe, the same for every tensor."""

    def __init__(self, recipe: Recipe, pool: ExpertPool, device: torch.device | str, cache: WeightCache | None) -> None:
        self._pool = pool
        self._device = device
        self._prunable = {info.name: i for i, info in enumerate(t for t in pool.tensors if t.prunable)}
        held = cache if cache is not None else ()
        self._order = list(walk(recipe, stop=held))
        self._cached = {node: cache.get(node) for node in self._order if cache is not None and node in cache}
        self._inputs = {node: () if node in self._cached else children(node) for node in self._order}
        self._uses = Counter(child for inputs in self._inputs.values() for child in inputs)

    def tensor(self, info: TensorInfo) -> Tensor:
        """Return one tensor of the recipe: float32 inside, the stored dtype for a bare expert or a cached candidate."""
        values: dict[Recipe, Tensor] = {}
        uses = dict(self._uses)
        base: list[Tensor] = []  # read once, however many merges of the lineage need it
        for node in self._order:
            inputs = [values[child] for child in self._inputs[node]]
            values[node] = self._apply(node, inputs, info, base)
            for child in self._inputs[node]:
                uses[child] -= 1
                if not uses[child]:
                    del values[child]
        return values[self._order[-1]]

    def _apply(self, node: Recipe, inputs: Sequence[Tensor], info: TensorInfo, base: list[Tensor]) -> Tensor:
        if node in self._cached:
            return self._cached[node][info.name].to(self._device)
        match node:
            case Expert():
                return self._pool.load(node.name, info.name).to(self._device)
            case Cast():
                return inputs[0].to(getattr(torch, node.dtype))
            case Prune():
                if not info.prunable:
                    return inputs[0]
                tensor = inputs[0].float()
                if node.counts is not None:
                    count = node.counts[self._prunable[info.name]]
                else:
                    asked = node.sparsity if isinstance(node.sparsity, float) else node.sparsity[info.group]
                    count = pruning.target_count(asked, info.numel)
                return pruning.prune(tensor, pruning.CRITERIA[node.criterion](tensor), count)
            case Merge():
                method = METHODS[node.method]
                weights = node.weights[info.group] if isinstance(node.weights[0], tuple) else node.weights
                params = _settings(node)
                needed = method.reads_base(params)
                if needed and not base:
                    base.append(self._pool.load(BASE, info.name).to(self._device).float())
                place = Place(info.name, info.prunable, base[0] if needed else None, params)
                return method.kernel([tensor.float() for tensor in inputs], weights, place)
            case _:
                raise TypeError(f"not a recipe node: {type(node).__name__}")


def _settings(node: Merge) -> dict[str, Param]:
    return {**METHODS[node.method].defaults, **dict(node.params)}


def _check_merge(node: Merge, groups: int) -> None:
    if node.method not in METHODS:
        raise InputError(
            f"no merge method {node.method!r}{nearest(node.method, METHODS)}; there are {', '.join(METHODS)}"
        )
    method = METHODS[node.method]
    least, most = method.inputs
    if len(node.inputs) < least or (most is not None and len(node.inputs) > most):
        bound = f"{least}" if least == most else f"at least {least}"
        raise InputError(f"{node.method}: expected {bound} inputs, got {len(node.inputs)}")
    for name, value in node.params:
        if name not in method.defaults:
            known = ", ".join(method.defaults) or "none"
            raise InputError(f"{node.method}: no setting {name!r}; there are: {known}")
        truth = isinstance(method.defaults[name], bool)
        if truth != isinstance(value, bool) or isinstance(value, str) != isinstance(method.defaults[name], str):
            raise InputError(f"{node.method}: {name}: expected {type(method.defaults[name]).__name__}, got {value!r}")
    per_group = isinstance(node.weights[0], tuple)
    if per_group and len(node.weights) != groups:
        raise InputError(f"{node.method}: expected {groups} rows of weights, one per group, got {len(node.weights)}")
    for row in node.weights if per_group else (node.weights,):
        numbers = [float(value) for value in row]  # type: ignore[union-attr, arg-type]
        if method.weights == "sum" and _settings(node).get("normalize", True) and sum(numbers) == 0:
            raise InputError(f"{node.method}: expected weights whose sum is not 0, got {row}")
        if method.weights == "mixing" and (min(numbers) < 0 or sum(numbers) <= 0):
            raise InputError(f"{node.method}: expected weights of at least 0 with a sum above 0, got {row}")


def _fractions(pool: ExpertPool, zeros: Mapping[str, int]) -> tuple[float, dict[str, float], dict[str, float]]:
    size, empty = Counter[int](), Counter[int]()
    for info in pool.tensors:
        if info.prunable:
            size[info.group] += info.numel
            empty[info.group] += zeros[info.name]
    whole = sum(empty.values()) / sum(size.values())
    groups = {name: empty[i] / size[i] if size[i] else 0.0 for i, name in enumerate(pool.groups)}
    return whole, groups, {info.name: zeros[info.name] / info.numel for info in pool.tensors}
