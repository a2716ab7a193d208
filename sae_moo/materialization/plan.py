"""The order of work for one recipe: every node's tensor, in as few passes and as little memory as can be.

A merge or a pruning is not computed where it stands in the recipe but where its result is needed: a cast that follows
rounds on the way out, and the last node writes straight into the live model's parameter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from sae_moo.experts.anatomy import anatomy, transposed
from sae_moo.experts.pool import ExpertPool, TensorInfo
from sae_moo.materialization.buffers import Buffers
from sae_moo.materialization.feed import Feed
from sae_moo.materialization.guarded import guarded
from sae_moo.materialization.ops import prune as pruning
from sae_moo.materialization.ops.operands import Operands, Place
from sae_moo.materialization.ops.select import NOTHING, compact, lowest
from sae_moo.materialization.ops.write import restoring, write, write_pruned, write_restored
from sae_moo.materialization.parents import WeightCache
from sae_moo.recipe import (
    BASE,
    COUNTED,
    STRUCTURED,
    Cast,
    Expert,
    Merge,
    Prune,
    Recipe,
    children,
    pattern,
    walk,
)
from sae_moo.recipe.criteria import CRITERIA
from sae_moo.recipe.methods import METHODS, Method
from sae_moo.recipe.rows import Rows

ROOM = 1.5
"""Intermediate tensors held in memory beside the live model, in units of the largest one in float32; see `Buffers`.

Room for the largest merge and a parent of it, and for a child of two parents that are held, pruned before and after:
pruned tensors are seldom the largest. What works on one tensor at a time needs its own beside it: a composed adapter,
variances.
"""
SMALL = 1 << 26
"""Bytes of intermediate tensors that are held in memory in any case."""


@dataclass(slots=True)
class _Value:
    """One node's tensor while a plan runs: flat and ready, or how to write it where it will be needed.

    `dtype` is what the node's result is rounded to: float32 for arithmetic, the stored dtype otherwise.
    """

    dtype: torch.dtype
    numel: int
    users: int
    tensor: Tensor | None = None
    writer: Callable[[Tensor], int] | None = None
    needs: tuple[_Value, ...] = ()
    name: str | None = None
    buffer: Tensor | None = None


@dataclass(frozen=True, slots=True)
class _Work:
    """What does not change from tensor to tensor of one merge: its row of the catalogue and its inputs in order.

    `params` are all settings as the recipe has them, `numbers` those of them that are rows of numbers.
    """

    method: Method
    order: tuple[int, ...]
    keys: tuple[str, ...]
    weights: Rows
    params: Mapping[str, Any]
    numbers: Mapping[str, Rows]


class Plan:
    """The order of work for one recipe, the same for every tensor.

    Args:
        recipe: with every pruning scope resolved.
        pool: the experts.
        device: where to work.
        cache: weights of candidates already materialized; read only.
    """

    def __init__(self, recipe: Recipe, pool: ExpertPool, device: torch.device | str, cache: WeightCache | None) -> None:
        self._pool = pool
        self._device = torch.device(device)
        self._prunable = {info.name: i for i, info in enumerate(t for t in pool.tensors if t.prunable)}
        held = cache if cache is not None else ()
        self._order = list(walk(recipe, stop=held))
        self._cached = {node: cache.get(node) for node in self._order if cache is not None and node in cache}
        self._inputs = {node: () if node in self._cached else children(node) for node in self._order}
        self._uses = Counter(child for inputs in self._inputs.values() for child in inputs)
        self._work = {node: _work(node) for node in self._order if isinstance(node, Merge) and node not in self._cached}
        scopes = {node.scope for node in self._order if isinstance(node, Prune) and node.scope in STRUCTURED}
        self._parts = {scope: {part.info.name: part for part in anatomy(pool, scope).parts} for scope in scopes}
        sizes = [info.numel for info in pool.tensors]
        self._buffers = Buffers(device, max(SMALL, int(ROOM * 4 * max(sizes))))
        self._feed = Feed(pool, device, self._read())
        self._following = {here.name: (there,) for here, there in pairwise(pool.tensors)}
        self._index = {info.name: i for i, info in enumerate(pool.tensors)}
        self._offsets = [0, *accumulate(sizes)]

    def tensor(self, info: TensorInfo) -> Tensor:
        """Return one tensor of the recipe: float32 inside, the stored dtype for a bare expert or a cached candidate.

        A new tensor, unless the recipe is an expert or a cached candidate itself: do not write to it.
        """
        if not info.numel:
            return torch.empty(info.shape, device=self._device)
        value = self._value(info)
        if value.tensor is not None and value.buffer is None:
            return value.tensor.view(info.shape)
        out = torch.empty(info.numel, dtype=value.dtype, device=self._device)
        self._write(value, out)
        return out.view(info.shape)

    def write(self, info: TensorInfo, out: Tensor) -> int:
        """Write one tensor of the recipe, rounded to the output's dtype; return how many zeros it holds now."""
        if not info.numel:
            return 0  # of no elements, no method has anything to say
        value = self._value(info)
        whole = out.is_contiguous()
        flat = out.view(-1) if whole else torch.empty(info.numel, dtype=out.dtype, device=out.device)
        if value.tensor is None and value.dtype not in (flat.dtype, torch.float32):
            self._ready(value)
        zeros = self._write(value, flat)
        if not whole:
            out.copy_(flat.view(info.shape))
        return zeros

    def _read(self) -> list[str]:
        """Return the experts that the recipe reads."""
        experts = {node.name: None for node in self._order if isinstance(node, Expert)}
        if any(work.method.needs_base(work.params) for work in self._work.values()):
            experts[BASE] = None
        return list(experts)

    def _value(self, info: TensorInfo) -> _Value:
        self._feed.begin((info,), self._following.get(info.name, ()))
        values: dict[Recipe, _Value] = {}
        base: list[Tensor] = []  # read once, however many merges of the lineage need it
        for node in self._order:
            inputs = [values[child] for child in self._inputs[node]]
            values[node] = self._apply(node, inputs, info, base)
        return values[self._order[-1]]

    def _apply(self, node: Recipe, inputs: Sequence[_Value], info: TensorInfo, base: list[Tensor]) -> _Value:
        users = self._uses[node]
        if node in self._cached:
            return self._stored(self._cached[node][info.name], users)
        match node:
            case Expert():
                return self._expert(node.name, info, users)
            case Cast():
                return self._cast(inputs[0], info.cast(node.dtype), users)
            case Prune():
                return self._pruned(node, inputs[0], info, users)
            case Merge():
                return self._merged(node, inputs, info, base, users)
            case _:
                raise TypeError(f"not a recipe node: {type(node).__name__}")

    def _stored(self, tensor: Tensor, users: int) -> _Value:
        flat = tensor.to(self._device, non_blocking=True).reshape(-1)
        return _Value(flat.dtype, flat.numel(), users, flat)

    def _expert(self, name: str, info: TensorInfo, users: int) -> _Value:
        flat = self._feed.get(name, info.name).reshape(-1)
        buffer = None
        if flat.is_cpu and not self._pool.stored(name, info.name):
            buffer = self._buffers.take(info.numel, flat.dtype)  # many at once count into what is bounded
            flat = buffer[: flat.nbytes].view(flat.dtype).copy_(flat)
        return _Value(flat.dtype, info.numel, users, flat, name=name, buffer=buffer)

    def _cast(self, value: _Value, dtype: torch.dtype, users: int) -> _Value:
        if value.dtype == dtype and value.users == 1:
            value.users = users
            return value
        if value.writer is not None and value.users == 1 and value.dtype == torch.float32:
            return _Value(dtype, value.numel, users, None, value.writer, value.needs)
        source = self._ready(value)
        return _Value(dtype, value.numel, users, None, lambda out: write_pruned(source, NOTHING, out), (value,))

    def _pruned(self, node: Prune, value: _Value, info: TensorInfo, users: int) -> _Value:
        if node.scope in STRUCTURED:
            return self._without_units(node, value, info, users)
        asked = Rows.by_group(node.sparsity).of_group(info.group)
        if not info.prunable or (asked == 0.0 and node.counts is None):
            return self._cast(value, value.dtype, users)
        source = self._ready(value)
        scoring = scoring_of(node, info, source, self._pool)
        if node.scope not in COUNTED:
            _, of = pattern(node.scope) or (0, scoring.grid.inputs)
            count = pruning.target_count(asked, of)

            def lines(out: Tensor) -> int:
                return scoring.write_lines(of - count, count, out)

            if node.rescale:
                restored = lambda out: write_restored(source, lines, out)  # noqa: E731
                return _Value(torch.float32, value.numel, users, None, restored, (value,))
            return _Value(value.dtype, value.numel, users, None, lines, (value,))
        if node.counts is not None:
            count = node.counts[self._prunable[info.name]]
        else:
            count = pruning.target_count(asked, info.numel)
        scores = scoring.scores()
        remembered = self._pool.remembered
        if value.name is None:
            cut = lowest(scores, count)
        else:
            place = (node.criterion, node.calibration, info.name, value.name)
            high = remembered.get(("scores", *place), lambda: compact(scores.high())) if count else None
            cut = remembered.get(
                ("cut", *place, count), lambda: lowest(scores, count, None if high is None else high.whole())
            )
        part = None if scoring.plain else scoring.part
        if node.rescale:
            factor = restoring(source, cut, part)
            rescaled = lambda out: write_pruned(source, cut, out, part, factor)  # noqa: E731
            return _Value(torch.float32, value.numel, users, None, rescaled, (value,))
        return _Value(value.dtype, value.numel, users, None, lambda out: write_pruned(source, cut, out, part), (value,))

    def _without_units(self, node: Prune, value: _Value, info: TensorInfo, users: int) -> _Value:
        assert node.units is not None  # the recipe is resolved
        part = self._parts[node.scope].get(info.name)
        if part is None or not node.units[part.block]:
            return self._cast(value, value.dtype, users)
        source = self._ready(value)
        gone = part.indices(torch.tensor(node.units[part.block], device=self._device))
        return _Value(
            value.dtype,
            value.numel,
            users,
            None,
            lambda out: pruning.write_without(source, info.shape, part.axis, gone, out),
            (value,),
        )

    def _merged(
        self, node: Merge, inputs: Sequence[_Value], info: TensorInfo, base: list[Tensor], users: int
    ) -> _Value:
        work = self._work[node]
        order, method = work.order, work.method
        position = self._index[info.name]
        place = position, info.group, len(self._pool.groups)
        weights = work.weights.at(*place)
        rows = {name: numbers.at(*place) for name, numbers in work.numbers.items()}
        params = {
            **work.params,
            **{name: tuple(row[i] for i in order) if len(row) == len(order) else row for name, row in rows.items()},
        }
        needed = method.needs_base(params)
        if needed and not base:
            base.append(self._feed.get(BASE, info.name).reshape(-1))
        ready = tuple(self._ready(inputs[i]) for i in order)
        names = tuple(inputs[i].name for i in order)
        operands = Operands(ready, base[0] if needed else None, info.shape, names, work.keys)
        where = Place(
            info.name, info.prunable, params, self._offsets[position], self._offsets[-1], self._pool.remembered
        )
        step = guarded(METHODS, method, method.function)(operands, [float(weights[i]) for i in order], where)
        writer = guarded(METHODS, method, lambda out: write(step, operands, out))
        return _Value(torch.float32, info.numel, users, None, writer, tuple(inputs))

    def _ready(self, value: _Value) -> Tensor:
        """Return a value's tensor, written into a buffer if it was not yet."""
        if value.tensor is None:
            assert value.writer is not None
            value.buffer = self._buffers.take(value.numel, value.dtype)
            value.tensor = value.buffer[: value.numel * value.dtype.itemsize].view(value.dtype)
            value.writer(value.tensor)
            self._release(value)
        return value.tensor

    def _write(self, value: _Value, out: Tensor) -> int:
        if value.tensor is not None:
            zeros = write_pruned(value.tensor, NOTHING, out)
            value.users = 1
            self._used(value)
            return zeros
        assert value.writer is not None
        zeros = value.writer(out)
        self._release(value)
        return zeros

    def _release(self, value: _Value) -> None:
        """What a value was computed from is not needed any more on its behalf."""
        needs, value.needs, value.writer = value.needs, (), None
        for each in needs:
            self._used(each)

    def _used(self, value: _Value) -> None:
        value.users -= 1
        if value.users == 0 and value.buffer is not None:
            self._buffers.give(value.buffer)
            value.buffer = value.tensor = None


def scoring_of(node: Prune, info: TensorInfo, source: Tensor, pool: ExpertPool) -> pruning.Scoring:
    """Return the scores that a pruning gives the weights of a flat tensor."""
    criterion, norms = CRITERIA.find(node.criterion), None
    if criterion.calibrated:
        assert node.calibration is not None  # the recipe was checked
        norms = pool.norms[node.calibration][info.name].to(source.device)
    made = pruning.Scoring.whole if criterion.whole else pruning.Scoring
    score = guarded(CRITERIA, criterion, criterion.function)
    return made(source, pruning.Grid(info.shape, transposed(pool)), score, norms)


def _work(node: Merge) -> _Work:
    method = METHODS.find(node.method)
    params = method.filled(node.params) | dict(method.fixed)
    weights = Rows.of(node.weights)
    numbers = {name: Rows.of(value) for name, value in sorted(params.items()) if isinstance(value, tuple)}

    def column(i: int) -> Iterator[float]:
        """Yield every number that belongs to one input: inputs listed twice are told apart by them."""
        for rows in (weights, *numbers.values()):
            yield from rows.column(i)

    order = tuple(sorted(range(len(node.inputs)), key=lambda i: (node.inputs[i].key, *column(i))))
    return _Work(method, order, tuple(node.inputs[i].key for i in order), weights, params, numbers)
