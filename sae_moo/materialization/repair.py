"""Repair of a pruned merge, block by block: what is left of its weights is moved to make up for what is gone.

The teacher is what the innermost pruning of the chain prunes. The token sequences of a calibration run through both,
the teacher and the live model that is being repaired, one block after another, and the hidden states of both are kept
between them. The matrices of a block are repaired in the order in which they are used, those that read the same
together: the second moments of what they read, behind all that is repaired before them, are added up, and they are
swept (`ops.reconstruct`) from the teacher's weights, so that on such inputs their outputs change least.

Before a matrix is swept it is moved to give the teacher's outputs of inputs that are the repaired model's, as far as it
can (as GPTAQ does for rounding, arXiv 2504.02692). The largest matrix that writes straight to the residual stream does
more: beside what it wrote it writes the least-squares estimate, from its inputs, of all that the stream lacks by then
of the teacher's. So every block makes up for what went wrong before and inside it. The block before a stretch of blocks
that is removed has the teacher's stream behind the stretch to come up to, and so takes over the stretch's work (blocks
replaced by something linear, as in ReplaceMe, arXiv 2505.02819; of the layer's own inputs here). Where no matrix writes
straight to the stream, since a norm comes after it, and before the first block, nobody takes over.

Zeros are exactly as many as the pruning has: in each tensor, each row, or every M along a row. Rows and columns of
units and blocks that are removed stay removed, and what reads the rest of the units has its optimum over them.
Which weights go otherwise is chosen anew, by what they cost with the others moved. Norms that a pruning restores
(`Prune.rescale`) are not: outputs are restored here. In memory are the live model, the hidden states of the sequences
twice, and of one block the teacher's weights, what its layers read, and the moments of one of these.

The bits are those of one kind of machine: BLAS adds up in an order that depends on the processor, the number of
threads and the version of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sae_moo.errors import InputError, WeightsError
from sae_moo.experts.anatomy import transposed
from sae_moo.experts.pool import ExpertPool, TensorInfo
from sae_moo.materialization.blockwise import Batch, Block, Reached, blocks_of, counting, hidden_states
from sae_moo.materialization.ops.reconstruct import (
    Cheapest,
    CheapestOf,
    Choice,
    Fixed,
    add_moments,
    factorized,
    swept,
)
from sae_moo.materialization.parents import WeightCache
from sae_moo.materialization.plan import Plan
from sae_moo.recipe import COUNTED, STRUCTURED, Cast, pattern
from sae_moo.recipe.structure import chain, merged, repair_of

MADE_UP = 10.0
"""How many times a sweep's damping is that of what is made up for: most of it is noise, of a draw of few tokens."""
STRAIGHT = 0.05
"""What is added to a layer's outputs comes out of the block as it is, if it differs by no more than such a part."""


@dataclass(frozen=True, slots=True)
class Repaired:
    """What a repair has done.

    Args:
        zeros: how many zeros each of the repaired tensors holds now.
        tokens: how many forward tokens it took, see `blockwise.counting`; rounded up.
    """

    zeros: Mapping[str, int]
    tokens: int


@torch.no_grad()
def repair(
    recipe: Cast, pool: ExpertPool, model: Any, places: Mapping[str, Tensor], cache: WeightCache | None = None
) -> Repaired:
    """Repair the prunable tensors of a pruned merge that a live model holds.

    Args:
        recipe: checked and resolved; it ends in a repair, under its cast.
        pool: the experts.
        model: a live model that holds the recipe without its repair; overwritten.
        places: tensor name -> where its exact values are written; of those that the model itself rounds another tensor
            than its parameter.
        cache: weights of candidates already materialized; read.

    Raises:
        InputError: if the architecture is not made of blocks that can be run one after another.
        WeightsError: if activations are not finite.
    """
    node = repair_of(recipe)
    assert node is not None  # the caller asked
    parameters = pool.parameters(model)
    device = next(iter(parameters.values())).device
    dense, pruned = (Plan(each, pool, device, cache) for each in (merged(recipe), node.input))
    scope = next((each.scope for each in reversed(chain(recipe)) if each.scope not in STRUCTURED), COUNTED[0])
    blocks = blocks_of(pool, model)
    turned = transposed(pool)
    zeros: dict[str, int] = {}

    def write(info: TensorInfo, weights: Tensor) -> None:
        exact, place = places[info.name], parameters[info.name]
        exact.copy_(weights.to(info.cast(recipe.dtype)))
        if exact is not place:
            place.copy_(exact)

    def put(block: Block, plan: Plan) -> dict[str, Tensor]:
        """Give a block its weights by a plan; return them."""
        weights = {info.name: plan.tensor(info).float() for info in block.infos}
        for info in block.infos:
            write(info, weights[info.name])
        return weights

    with counting(blocks) as tokens:
        batches = hidden_states(model, blocks, pool.texts[node.calibration], device)
        teacher = [Batch(batch.hidden, batch.calls) for batch in batches]
        stays = [
            any(parameters[name].any() for name in block.layers) or not _hands_on(block, batches[0], number)
            for number, block in enumerate(blocks)
        ]
        lost = False  # whether the stream may differ from the teacher's
        for number, stretch in _parts(stays):
            block = blocks[number]
            infos = {info.name: info for info in block.infos}
            before = put(block, dense)
            gone = {name: pruned.tensor(infos[name]).float() == 0 for name in block.layers}
            lost = lost or bool(stretch) or any(bool(each.any()) for each in gone.values())
            stages = _stages(block, batches[0], number) if lost and stays[number] else []
            writer = _writer(block, stages, batches[0], number, turned)
            stages = [stage for stage in stages if writer in stage or any(bool(gone[name].any()) for name in stage)]
            with _hearing(block, [stage[0] for stage in stages if writer not in stage]) as heard:
                _advance(teacher, block, number)
            for i in stretch:
                put(blocks[i], dense)
                _advance(teacher, blocks[i], i)
                put(blocks[i], pruned)
            if not stays[number]:
                put(block, pruned)
                continue
            for info in block.infos:
                if info.name not in block.layers:
                    write(info, pruned.tensor(info).float())
            mended = _mended(
                _Part(block, number, stages, before, gone, writer, heard),
                batches, teacher, scope, node.damping, turned,
            )  # fmt: skip
            for name, weights in mended:
                write(infos[name], weights)
            zeros |= {name: infos[name].numel - int(torch.count_nonzero(places[name])) for name in gone}
            if number + len(stretch) + 1 < len(blocks):
                _advance(batches, block, number)
        return Repaired(zeros, tokens())


def _hands_on(block: Block, batch: Batch, number: int) -> bool:
    """Say whether a block puts out what it reads: one whose matrices are all zero may have biases yet."""
    return torch.equal(block.run(batch, number), batch.hidden)


def _parts(stays: Sequence[bool]) -> list[tuple[int, list[int]]]:
    """Return the blocks, those that are removed with the last one before them that stays, if there is one."""
    found: list[tuple[int, list[int]]] = []
    for number, here in enumerate(stays):
        if here or not any(stays[:number]):
            found.append((number, []))
        else:
            found[-1][1].append(number)
    return found


@dataclass(frozen=True, slots=True)
class _Part:
    """A block that is to be repaired.

    Args:
        block: with all its weights yet the teacher's.
        number: its own.
        stages: names of the layers to repair in the order in which they are used, those that read the same together.
        before: tensor name -> the teacher's weights, float32.
        gone: layer -> where its pruning has zeros.
        writer: the layer that makes up for what the stream lacks, or None.
        heard: first layer of each stage, but the writer's -> what it reads in the teacher, of each batch.
    """

    block: Block
    number: int
    stages: list[list[str]]
    before: Mapping[str, Tensor]
    gone: Mapping[str, Tensor]
    writer: str | None
    heard: Mapping[str, list[Tensor]]


def _mended(
    part: _Part, batches: Sequence[Batch], teacher: Sequence[Batch], scope: str, damping: float, turned: bool
) -> Iterator[tuple[str, Tensor]]:
    """Yield the layers of a block with their weights repaired, each to be written before the next is asked for.

    Args:
        part: the block.
        batches: what it reads.
        teacher: the stream that is to be come up to behind it.
        scope: of the pruning that is not structured.
        damping: see `Repair`.
        turned: whether tensors are stored inputs x outputs.
    """
    for stage in part.stages:
        writes = part.writer in stage
        wanted = [batch.hidden for batch in teacher] if writes else part.heard[stage[0]]
        moments, lacking = _read(part.block, stage[0], batches, part.number, wanted, whole=writes)
        estimate = _estimate(lacking, moments, MADE_UP * damping)
        for name in stage:
            weights = part.before[name]
            if name == part.writer:
                weights = weights + (estimate if turned else estimate.t())
            elif not writes:
                weights = weights + (estimate @ weights if turned else weights @ estimate.t())
            yield name, _repaired(weights, part.gone[name], moments, scope, damping, turned)


def _advance(batches: Sequence[Batch], block: Block, number: int) -> None:
    """Run a block on all sequences: their hidden states are what it makes of them, afterwards."""
    for batch in batches:
        batch.hidden = block.run(batch, number)


def _stages(block: Block, batch: Batch, number: int) -> list[list[str]]:
    """Return a block's layers in the order in which they are used, those that read the same together.

    Raises:
        InputError: naming a layer that the block does not use.
    """
    stages: list[tuple[Tensor, list[str]]] = []

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            same = next((names for features, names in stages if features is args[0]), None)
            if same is None:
                stages.append((args[0], [name]))
            else:
                same.append(name)

        return hook

    handles = [layer.register_forward_pre_hook(note(name)) for name, layer in block.layers.items()]
    try:
        block.run(batch, number)
    finally:
        for handle in handles:
            handle.remove()
    used = [name for _, names in stages for name in names]
    if sorted(used) != sorted(block.layers):
        odd = sorted(set(block.layers) - set(used)) or sorted(name for name in used if used.count(name) > 1)
        raise InputError(f"Repair: {odd[0]} is not used once when its block is run, so that what it reads is not known")
    return [names for _, names in stages]


@contextmanager
def _hearing(block: Block, layers: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    """While entered, keep what layers of a block read in each of its passes, by their names."""
    heard: dict[str, list[Tensor]] = {name: [] for name in layers}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, args: heard[name].append(args[0])

    handles = [block.layers[name].register_forward_pre_hook(keep(name)) for name in layers]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def _read(
    block: Block, layer: str, batches: Sequence[Batch], number: int, wanted: Sequence[Tensor], whole: bool
) -> tuple[Tensor, Tensor]:
    """Return what a layer reads of all sequences, in sums over their tokens.

    Args:
        block: the layer's.
        layer: its name.
        batches: what the block reads.
        number: of the block.
        wanted: of each batch what should come out of the block, or what the layer should read.
        whole: whether it is the first; else a pass ends at the layer.

    Returns:
        Second moments of what the layer reads, a lower triangle, float32, shape (inputs, inputs); and the products of
        what it reads with what is lacking of what is wanted, shape (inputs, features of what is wanted).
    """
    features = torch.empty(0)
    moments: Tensor | None = None
    lacking: Tensor | None = None

    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        nonlocal features
        features = args[0]
        if not whole:
            raise Reached

    handle = block.layers[layer].register_forward_pre_hook(hook)
    try:
        for batch, goal in zip(batches, wanted, strict=True):
            try:
                made = block.run(batch, number)
            except Reached:
                made = features
            rows = features.reshape(-1, features.shape[-1])
            if moments is None or lacking is None:
                moments = rows.new_zeros(rows.shape[1], rows.shape[1], dtype=torch.float32)
                lacking = rows.new_zeros(rows.shape[1], goal.shape[-1], dtype=torch.float32)
            add_moments(moments, rows)
            lacking.addmm_(rows.float().t(), (goal - made).reshape(-1, goal.shape[-1]).float())
    finally:
        handle.remove()
    assert moments is not None  # there are sequences
    assert lacking is not None
    return moments, lacking


def _repaired(weights: Tensor, gone: Tensor, moments: Tensor, scope: str, damping: float, turned: bool) -> Tensor:
    """Return a tensor repaired.

    Args:
        weights: as they were before pruning, float32.
        gone: where the pruning has zeros.
        moments: of what the layer reads, a lower triangle.
        scope: of the pruning that is not structured.
        damping: see `Repair`.
        turned: whether the tensor is stored inputs x outputs.
    """
    matrix, zeros = (each if turned else each.t() for each in (weights, gone))  # inputs x outputs
    if not zeros.any():
        return weights
    removed = zeros.all(dim=1)
    inputs, outputs = (~removed).nonzero().flatten(), (~zeros.all(dim=0)).nonzero().flatten()
    order = torch.cat([inputs, removed.nonzero().flatten()])
    if len(inputs) < len(order):  # inputs of which nothing is left are settled first
        moments = (moments.tril() + moments.tril(-1).t())[order][:, order]
    factor = factorized(moments, damping)
    if factor is None:
        return weights.masked_fill(gone, 0)
    choice = _choice(zeros[inputs][:, outputs], scope, whole=len(inputs) == len(order))
    result = torch.zeros_like(matrix, memory_format=torch.contiguous_format)
    left = matrix[order][:, outputs].contiguous()
    result[order[:, None], outputs[None]] = swept(left, factor, choice, len(order) - len(inputs))
    return result if turned else result.t().contiguous()


def _choice(zeros: Tensor, scope: str, whole: bool) -> Choice:
    """Return what chooses as many zeros as a pruning has.

    Args:
        zeros: the pruning's, shape (inputs, outputs), without what is removed altogether.
        scope: what competed for them.
        whole: whether no inputs are missing, so that a pattern's are side by side.
    """
    kept = pattern(scope)
    if kept is not None:
        step, count = kept[1], kept[1] - kept[0]
        if whole and bool((zeros.t().reshape(zeros.shape[1], -1, step).sum(dim=2) == count).all()):
            return CheapestOf(step, count)
        return Fixed(zeros)  # some are there beside the pattern's
    return Cheapest(zeros.sum(dim=0) if scope == "row" else int(zeros.sum()), len(zeros))


def _writer(block: Block, stages: Sequence[Sequence[str]], batch: Batch, number: int, turned: bool) -> str | None:
    """Return the largest layer whose outputs are added to the block's as they are; None if there is none.

    It is tried: what is added to the layer's outputs has to come out of the block. Of equally large ones it is the last
    in the order of stages.
    """
    if not stages:
        return None
    plain = block.run(batch, number)
    added = torch.linspace(-1, 1, plain.shape[-1], device=plain.device, dtype=plain.dtype) * plain.std()
    infos = {info.name: info for info in block.infos}
    fitting = [name for stage in reversed(stages) for name in stage if infos[name].shape[turned] == len(added)]
    for name in sorted(fitting, key=lambda name: -infos[name].numel):
        handle = block.layers[name].register_forward_hook(lambda _, __, made: made + added)
        try:
            moved = block.run(batch, number) - plain
        finally:
            handle.remove()
        if float((moved - added).float().norm()) < STRAIGHT * float(added.expand_as(moved).float().norm()):
            return name
    return None


def _estimate(lacking: Tensor, moments: Tensor, damping: float) -> Tensor:
    """Return the matrix that tells best, by least squares, what is lacking from what a layer reads.

    Args:
        lacking: products of what the layer reads with what is lacking, float32, shape (inputs, features).
        moments: second moments of what it reads, a lower triangle.
        damping: see `Repair`.

    Returns:
        Float32, shape (inputs, features); zeros if the layer never reads anything but zeros.

    Raises:
        WeightsError: if what is lacking is not finite: the teacher's activations.
    """
    if not torch.isfinite(lacking).all():
        raise WeightsError("repair: the activations of the unpruned merge are not finite")
    factor = factorized(moments, damping)
    return torch.zeros_like(lacking) if factor is None else torch.cholesky_solve(lacking, factor)
