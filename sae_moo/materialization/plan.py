"""The order of work for one recipe: every node's tensor, in as few passes and as little memory as can be.

A merge or a pruning is not computed where it stands in the recipe but where its result is needed: a cast that follows
rounds on the way out, and the last node writes straight into the live model's parameter.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, zip_longest

import torch
from torch import Tensor

from sae_moo.experts.anatomy import Part, anatomy, transposed
from sae_moo.experts.pool import ExpertPool, TensorInfo
from sae_moo.materialization.engines import engine_on
from sae_moo.materialization.feed import Feed
from sae_moo.materialization.guarded import guarded
from sae_moo.materialization.merging import Merging
from sae_moo.materialization.ops import prune as pruning
from sae_moo.materialization.ops.engine import Engine, OneByOne, Sought, Zeros
from sae_moo.materialization.ops.jobs import Job, Lines, Pruned, Stepped, Without
from sae_moo.materialization.ops.operands import Operands, Place
from sae_moo.materialization.ops.select import Cut
from sae_moo.materialization.parents import WeightCache
from sae_moo.materialization.values import Desk, Value, Values
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
from sae_moo.recipe.methods import METHODS
from sae_moo.recipe.rows import Rows

ROOM = 1.5
"""Intermediate tensors held in memory beside the live model, in units of the largest one in float32; see `Buffers`.

Room for the largest merge and a parent of it, and for a child of two parents that are held, pruned before and after:
pruned tensors are seldom the largest. What works on one tensor at a time needs its own beside it: a composed adapter,
variances.
"""
SMALL = 1 << 26
"""Bytes of intermediate tensors that are held in memory in any case."""
WORKSPACE = 64
"""On a GPU, intermediate tensors of a band may take one such part of its memory beside two of the largest tensor in
float32."""
AHEAD = 1 << 26
"""Most elements of a band where experts, or parents, are sent to the device: of experts the next band is on its way
meanwhile."""
PARTS = 6
"""In how many bands a large model is worked on at least."""
FEW = 1 << 16
"""Most elements worked on together on the CPU: of small tensors many, of others one."""


@dataclass(frozen=True, slots=True)
class Known:
    """What resolving a recipe has found of its prunings on the way, so that it is not looked for again.

    Args:
        cuts: pruning -> tensor name -> cut.
        units: pruning -> the units that go of each block, on the device; int64.
    """

    cuts: dict[Prune, dict[str, Cut]] = field(default_factory=dict)
    units: dict[Prune, list[Tensor]] = field(default_factory=dict)


class Plan:
    """The order of work for one recipe, the same for every tensor.

    Args:
        recipe: with every pruning scope resolved.
        pool: the experts.
        device: where to work.
        cache: weights of candidates already materialized; read only.
        known: what resolving the recipe has found.
        engine: who does the arithmetic; None: the device's own.
    """

    def __init__(
        self,
        recipe: Recipe,
        pool: ExpertPool,
        device: torch.device | str,
        cache: WeightCache | None,
        known: Known | None = None,
        engine: Engine | None = None,
    ) -> None:
        self._recipe = recipe
        self._pool = pool
        self._cache = cache
        self._device = torch.device(device)
        self._engine = engine_on(self._device, pool) if engine is None else engine
        self._prunable = {info.name: i for i, info in enumerate(t for t in pool.tensors if t.prunable)}
        held = cache if cache is not None else ()
        self._order = list(walk(recipe, stop=held))
        self._cached = {node: cache.get(node) for node in self._order if cache is not None and node in cache}
        self._inputs = {node: () if node in self._cached else children(node) for node in self._order}
        self._uses = Counter(child for inputs in self._inputs.values() for child in inputs)
        place = {node: i for i, node in enumerate(self._order)}
        # looked up once, not for every band: a recipe's hash is that of its whole lineage
        self._nodes = [
            (node, [place[child] for child in self._inputs[node]], self._uses[node], self._cached.get(node))
            for node in self._order
        ]
        self._work = {
            node: Merging.of(node) for node in self._order if isinstance(node, Merge) and node not in self._cached
        }
        scopes = {node.scope for node in self._order if isinstance(node, Prune) and node.scope in STRUCTURED}
        self._parts = {scope: {part.info.name: part for part in anatomy(pool, scope).parts} for scope in scopes}
        sizes = [info.numel for info in pool.tensors]
        self._desk = Desk(self._engine, self._device, max(SMALL, int(ROOM * 4 * max(sizes))))
        self._feed = Feed(pool, device, self._read())
        self._index = {info.name: i for i, info in enumerate(pool.tensors)}
        self._offsets = [0, *accumulate(sizes)]
        self._largest = max(sizes)
        few = min(FEW, self._largest)
        self._most = self._band_size(self._largest) if self._engine.batched else few
        self._most_kept = self._band_size(self._largest, kept=True) if self._engine.batched else few
        self._known = known or Known()
        self._units: dict[Prune, list[Tensor]] = {}

    @property
    def engine(self) -> Engine:
        """Who does the arithmetic."""
        return self._engine

    def tensor(self, info: TensorInfo) -> Tensor:
        """Return one tensor of the recipe: float32 inside, the stored dtype for a bare expert or a cached candidate.

        A new tensor, unless the recipe is an expert or a cached candidate itself: do not write to it.
        """
        ((_, tensors),) = self.tensors([info])
        self._engine.settle()
        return tensors[0].view(info.shape)

    def tensors(self, infos: Sequence[TensorInfo]) -> Iterator[tuple[list[TensorInfo], list[Tensor]]]:
        """Yield tensors of the recipe, flat, a band at a time; see `tensor`.

        What an engine tells only when it settles, that a cut falls among NaN, is not told yet.
        """
        empty = [info for info in infos if not info.numel]
        if empty:
            yield empty, [torch.empty(0, device=self._device) for _ in empty]
        for info in filter(self._beyond, infos):
            yield [info], [self._beside.tensor(info).flatten().to(self._device)]
        here = [info for info in infos if info.numel and not self._beyond(info)]
        for band, following in self._bands(here, self._most_kept):
            todo = band
            while todo:
                values = self._values(todo, following)
                there = [value for value in values if value is not None]
                owned = [value for value in there if value.tensor is None or value.lease is not None]
                own = {id(value): out for value, out in zip(owned, self._desk.fresh(owned), strict=True)}
                found = [own.get(id(value), value.tensor) for value in there]
                self._desk.write(owned, list(own.values()), counted=False)
                if len(there) < len(values):
                    self._engine.settle()
                ready = [info for info, value in zip(todo, values, strict=True) if value is not None]
                if ready:
                    yield ready, [tensor for tensor in found if tensor is not None]
                todo = [info for info, value in zip(todo, values, strict=True) if value is None]

    def write(self, places: Sequence[tuple[TensorInfo, Tensor]]) -> list[int]:
        """Write tensors of the recipe, each rounded to its output's dtype.

        Args:
            places: tensors and where to write them: contiguous or not, of the tensor's shape, on the plan's device.

        Returns:
            How many zeros each holds now.
        """
        outs = {info.name: out for info, out in places}
        written: list[tuple[list[str], Zeros]] = []
        # of no elements, no method has anything to say
        todo = [info for info, _ in places if info.numel and not self._beyond(info)]
        while todo:
            later = []
            for band, following in self._bands(todo, self._most):
                values = self._values(band, following)
                there = [(info, value) for info, value in zip(band, values, strict=True) if value is not None]
                later += [info for info, value in zip(band, values, strict=True) if value is None]
                if there:
                    zeros = self._write_out([value for _, value in there], [outs[info.name] for info, _ in there])
                    written.append(([info.name for info, _ in there], zeros))
            self._engine.settle()
            todo = later
        found = {name: count for names, zeros in written for name, count in zip(names, zeros.counts, strict=True)}
        for info, out in places:
            if self._beyond(info):
                held = torch.empty(info.shape, dtype=out.dtype, device="cpu")
                (found[info.name],) = self._beside.write([(info, held)])
                out.copy_(held)
        return [found.get(info.name, 0) for info, _ in places]

    def _write_out(self, values: Sequence[Value], outs: Sequence[Tensor]) -> Zeros:
        """Write values into tensors of any layout."""
        flats = []
        for out in outs:
            whole = out.is_contiguous()
            flats.append(out.view(-1) if whole else torch.empty(out.numel(), dtype=out.dtype, device=out.device))
        twice = [
            value
            for value, flat in zip(values, flats, strict=True)
            if value.tensor is None and value.dtype not in (flat.dtype, torch.float32)
        ]
        self._desk.ready(twice)  # rounded to one dtype, then to that of the output
        zeros = self._desk.write(values, flats)
        for out, flat in zip(outs, flats, strict=True):
            if not out.is_contiguous():
                out.copy_(flat.view(out.shape))
        return zeros

    def _read(self) -> list[str]:
        """Return the experts that the recipe reads."""
        experts = {node.name: None for node in self._order if isinstance(node, Expert)}
        if any(work.method.needs_base(work.params) for work in self._work.values()):
            experts[BASE] = None
        return list(experts)

    def _band_size(self, largest: int, *, kept: bool = False) -> int:
        """Return how many elements to work on at once, so that intermediate tensors stay within their room.

        Args:
            largest: elements of the largest tensor.
            kept: whether results lie beside them, and not where somebody has room for the whole model.
        """
        # the host lines up the next part while the device works on this one
        there = self._feed.complete and not self._parents_elsewhere
        bound = max(AHEAD, self._offsets[-1] // PARTS) if there else AHEAD
        held = self._held(kept=kept)
        return min(bound, self._room(largest) // held) if held else bound

    def _room(self, largest: int) -> int:
        """Return how many elements of float32 there is room for beside experts and live model."""
        return 2 * largest + _workspace(self._device) // 4

    def _beyond(self, info: TensorInfo) -> bool:
        """Whether a tensor alone has more intermediate ones than there is room for on a device: the CPU has files."""
        return info.numel > self._limit

    @functools.cached_property
    def _limit(self) -> int:
        """Most elements of a tensor that the device has room to work on."""
        held = self._held(kept=False) if self._engine.batched else 0
        return self._room(self._largest) // held if held else self._offsets[-1]

    @functools.cached_property
    def _beside(self) -> Plan:
        """The same recipe's plan on the CPU: the same bits."""
        known = Known(cuts=self._known.cuts)
        return Plan(self._recipe, self._pool, "cpu", self._cache, known, OneByOne(self._pool.remembered))

    def _held(self, *, kept: bool) -> int:
        """Return how many intermediate tensors of a band there are at once, in float32; `kept` as for `_band_size`."""
        left, live, most, scratch = dict(self._uses), set[Recipe](), 0, 0
        rounded_on = {child for user, inputs in self._inputs.items() if isinstance(user, Cast) for child in inputs}
        for node in self._order:
            inside = isinstance(node, (Cast, Prune, Merge)) and node not in self._cached
            if node == self._order[-1]:
                most = max(most, (len(live) + 2) * (inside and kept))  # those of the band before are in use, too
                inside = False
            if inside and not (self._uses[node] == 1 and node in rounded_on):
                live.add(node)
            most = max(most, len(live))
            scratch = max(scratch, self._written_down(node))
            for child in self._inputs[node]:
                left[child] -= 1
                if not left[child]:
                    live.discard(child)
        return most + scratch

    @functools.cached_property
    def _parents_elsewhere(self) -> bool:
        """Whether weights of candidates have to be sent to the device."""
        kind = self._device.type
        return any(weight.device.type != kind for held in self._cached.values() for weight in held.values())

    def _written_down(self, node: Recipe) -> int:
        """Return how many float32 tensors the work of a node writes beside its result: scores, variances, masks."""
        if isinstance(node, Prune):
            return int(CRITERIA.find(node.criterion).guest is not None or (node.rescale and node.scope not in COUNTED))
        if node not in self._work or not isinstance(node, Merge):
            return 0
        settings = self._work[node].method.settings
        if "epsilon" in settings:
            return -(-len(node.inputs) // 4)  # a byte of each input's mask
        return int("select_topk" in settings)

    def _bands(self, infos: Sequence[TensorInfo], most: int) -> Iterator[tuple[list[TensorInfo], list[TensorInfo]]]:
        """Yield the tensors to work on at once, of `most` elements or one, with those that come after them."""
        bands: list[list[TensorInfo]] = []
        size = 0
        for info in infos:
            if not bands or size + info.numel > most:
                bands.append([])
                size = 0
            bands[-1].append(info)
            size += info.numel
        yield from zip_longest(bands, bands[1:], fillvalue=[])

    def _values(self, band: Sequence[TensorInfo], following: Sequence[TensorInfo]) -> Values:
        self._feed.begin(band, following)
        values: list[Values] = []
        base: dict[str, Tensor] = {}  # read once, however many merges of the lineage need it
        for node, places, users, held in self._nodes:
            inputs = [values[place] for place in places]
            if held is None:
                values.append(self._apply(node, inputs, band, base, users))
            else:
                values.append([self._stored(held[info.name], users) for info in band])
        return values[-1]

    def _apply(
        self, node: Recipe, inputs: Sequence[Values], band: Sequence[TensorInfo], base: dict[str, Tensor], users: int
    ) -> Values:
        match node:
            case Expert():
                return [self._expert(node.name, info, users) for info in band]
            case Cast():
                asked = [(value, info.cast(node.dtype)) for value, info in zip(inputs[0], band, strict=True)]
                return self._cast(asked, users)
            case Prune():
                return self._pruned(node, inputs[0], band, users)
            case Merge():
                return self._merged(node, inputs, band, base, users)
            case _:
                raise TypeError(f"not a recipe node: {type(node).__name__}")

    def _stored(self, tensor: Tensor, users: int) -> Value:
        # to the CPU it has to have come before it is read
        flat = tensor.to(self._device, non_blocking=self._device.type != "cpu").reshape(-1)
        return Value(flat.dtype, flat.numel(), users, flat)

    def _expert(self, name: str, info: TensorInfo, users: int) -> Value:
        flat = self._feed.get(name, info.name).reshape(-1)
        if self._engine.batched:
            return Value(flat.dtype, info.numel, users, flat, name=name)
        lease = None
        if flat.is_cpu and not self._pool.stored(name, info.name):
            flat, lease = self._desk.copied(flat)  # many at once count into what is bounded
        return Value(flat.dtype, flat.numel(), users, flat, name=name, lease=lease)

    def _cast(self, asked: Sequence[tuple[Value | None, torch.dtype]], users: int) -> Values:
        made: Values = [None] * len(asked)
        copied: list[tuple[int, Value, torch.dtype]] = []
        for i, (value, dtype) in enumerate(asked):
            if value is None:
                continue
            if value.dtype == dtype and value.users == 1:
                value.users = users
                made[i] = value
            elif value.job is not None and value.users == 1 and value.dtype == torch.float32:
                made[i] = Value(dtype, value.numel, users, None, value.job, value.needs)
            else:
                copied.append((i, value, dtype))
        sources = self._desk.ready([value for _, value, _ in copied])
        for (i, value, dtype), source in zip(copied, sources, strict=True):
            made[i] = Value(dtype, value.numel, users, None, Pruned(source), (value,))
        return made

    def _passed(self, values: Values, touched: Sequence[bool], users: int) -> Values:
        """Return what a pruning does not touch as it is."""
        return self._cast(
            [
                (None if here or value is None else value, torch.float32 if value is None else value.dtype)
                for value, here in zip(values, touched, strict=True)
            ],
            users,
        )

    def _pruned(self, node: Prune, values: Values, band: Sequence[TensorInfo], users: int) -> Values:
        if node.scope in STRUCTURED:
            return self._without_units(node, values, band, users)
        rows, groups = Rows.of_places(node.sparsity), len(self._pool.groups)
        asked = [float(rows.at(self._index[info.name], info.group, groups)[0]) for info in band]
        touched = [
            value is not None and info.prunable and (share != 0.0 or node.counts is not None)
            for value, info, share in zip(values, band, asked, strict=True)
        ]
        made = self._passed(values, touched, users)
        chosen = [i for i, here in enumerate(touched) if here]
        here = [value for i in chosen if (value := values[i]) is not None]
        sources = self._desk.ready(here)
        infos = [band[i] for i in chosen]
        scorings = [scoring_of(node, info, source, self._pool) for info, source in zip(infos, sources, strict=True)]
        if node.scope in COUNTED:
            shares = [asked[i] for i in chosen]
            jobs = self._cut_jobs(node, here, infos, scorings, shares)
        else:
            jobs = [_line_job(node, scoring, asked[i]) for i, scoring in zip(chosen, scorings, strict=True)]
        for i, value, job in zip(chosen, here, jobs, strict=True):
            made[i] = Value(torch.float32 if node.rescale else value.dtype, value.numel, users, None, job, (value,))
        return made

    def _cut_jobs(
        self,
        node: Prune,
        values: Sequence[Value],
        infos: Sequence[TensorInfo],
        scorings: Sequence[pruning.Scoring],
        shares: Sequence[float],
    ) -> list[Job]:
        """Return what writes tensors without what is below a cut of their own scores."""
        known = self._known.cuts.get(node, {})
        sought = []
        for value, info, scoring, share in zip(values, infos, scorings, shares, strict=True):
            if node.counts is not None:
                count = node.counts[self._prunable[info.name]]
            else:
                count = pruning.target_count(share, info.numel)
            key = None if value.name is None else (node.criterion, node.calibration, info.name, value.name)
            sought.append(Sought(scoring, count, key, known.get(info.name)))
        cuts = self._engine.cuts(sought)
        jobs = [Pruned(each.scoring.source, cut, each.scoring) for each, cut in zip(sought, cuts, strict=True)]
        if not node.rescale:
            return list(jobs)
        factors = self._engine.factors(jobs)
        return [replace(job, factor=factor) for job, factor in zip(jobs, factors, strict=True)]

    def _without_units(self, node: Prune, values: Values, band: Sequence[TensorInfo], users: int) -> Values:
        assert node.units is not None  # the recipe is resolved
        parts = [self._parts[node.scope].get(info.name) for info in band]
        touched = [
            value is not None and part is not None and part.touched(node.units[part.block])
            for value, part in zip(values, parts, strict=True)
        ]
        made = self._passed(values, touched, users)
        chosen = [i for i, here in enumerate(touched) if here]
        here = [value for i in chosen if (value := values[i]) is not None]
        for i, value, source in zip(chosen, here, self._desk.ready(here), strict=True):
            part = parts[i]
            assert part is not None
            gone = self._gone(node, part)
            job = Without(source, band[i].shape, part.axis, gone)
            made[i] = Value(value.dtype, value.numel, users, None, job, (value,))
        return made

    def _gone(self, node: Prune, part: Part) -> Tensor:
        """Return the indices of a tensor's axis that a pruning's units hold."""
        if node not in self._units:
            assert node.units is not None
            known = self._known.units.get(node)
            if known is not None:
                self._units[node] = known
            else:  # all of them in one piece: a transfer for every tensor would take longer than the work
                flat = torch.tensor([unit for row in node.units for unit in row], dtype=torch.int64, device="cpu")
                sent = flat.to(self._device, non_blocking=True)
                self._units[node] = list(torch.split(sent, [len(row) for row in node.units]))
        return part.indices(self._units[node][part.block])

    def _merged(
        self,
        node: Merge,
        inputs: Sequence[Values],
        band: Sequence[TensorInfo],
        base: dict[str, Tensor],
        users: int,
    ) -> Values:
        work = self._work[node]
        method = work.method
        made: Values = [None] * len(band)
        there = [i for i in range(len(band)) if all(values[i] is not None for values in inputs)]
        mine = {i: [value for each in work.order if (value := inputs[each][i]) is not None] for i in there}
        self._desk.ready([value for i in there for value in mine[i]])
        begun = []
        for i in there:
            info = band[i]
            position = self._index[info.name]
            given = work.given(position, info.group, len(self._pool.groups))
            if given.needs_base and info.name not in base:
                base[info.name] = self._feed.get(BASE, info.name).reshape(-1)
            ready = tuple([value.tensor for value in mine[i] if value.tensor is not None])
            names = tuple([value.name for value in mine[i]])
            ground = base[info.name] if given.needs_base else None
            operands = Operands(ready, ground, info.shape, names, work.keys)
            place = Place(
                info.name, info.prunable, given.params, self._offsets[position], self._offsets[-1],
                self._pool.remembered,
            )  # fmt: skip
            begun.append((i, work.begun(given, operands, place), operands, place))
        blame = None if method.guest is None else functools.partial(guarded, METHODS, method)
        for i, step, operands in work.steps(self._engine, begun):
            needs = tuple(value for values in inputs if (value := values[i]) is not None)
            made[i] = Value(torch.float32, band[i].numel, users, None, Stepped(step, operands, blame), needs)
        return made


def _line_job(node: Prune, scoring: pruning.Scoring, share: float) -> Job:
    _, of = pattern(node.scope) or (0, scoring.grid.inputs)
    count = pruning.target_count(share, of)
    return Lines(scoring, of - count, count, node.rescale)


@functools.cache
def _workspace(device: torch.device) -> int:
    """Return how many bytes that is."""
    if device.type != "cuda":
        return SMALL
    total: int = torch.cuda.get_device_properties(device).total_memory
    return total // WORKSPACE


def scoring_of(node: Prune, info: TensorInfo, source: Tensor, pool: ExpertPool) -> pruning.Scoring:
    """Return the scores that a pruning gives the weights of a flat tensor."""
    criterion, norms = CRITERIA.find(node.criterion), None
    if criterion.calibrated:
        assert node.calibration is not None  # the recipe was checked
        norms = _norms(pool, node.calibration, info.name, source.device)
    made = pruning.Scoring.whole if criterion.whole else pruning.Scoring
    score = guarded(CRITERIA, criterion, criterion.function)
    return made(source, pruning.Grid(info.shape, transposed(pool)), score, norms)


def _norms(pool: ExpertPool, calibration: str, tensor: str, device: torch.device) -> Tensor:
    norms = pool.norms[calibration][tensor]
    if device.type == "cpu":
        return norms
    return pool.remembered.get(("norms", calibration, tensor, device), lambda: norms.to(device))
