"""Repair of a pruned merge, block by block: what is left of its weights is moved to make up for what is gone.

Teacher and start are what the innermost pruning of the chain prunes. The token sequences of a calibration run through
the live model, one block after another, and their hidden states are kept between them. Of each block, with all its
weights yet unpruned, the second moments of what its matrices read are added up; its matrices are swept
(`ops.reconstruct`), and what the repaired block makes of the sequences is what the next one reads. So every block makes
up for what went wrong before it, too, as far as its inputs tell.

A stretch of blocks that is removed has its work taken over by the last block before it, as far as that can: the layer
of it that writes straight to the residual stream writes, beside what it wrote, the least-squares estimate of what the
stretch added (blocks replaced by something linear, as in ReplaceMe, arXiv 2505.02819; of the layer's own inputs here).
Where none writes straight to the stream, since a norm comes after it, and before the first block, nobody takes it over.

Zeros are exactly as many as the pruning has: in each tensor, each row, or every M along a row. Rows and columns of
units and blocks that are removed stay removed, and what reads the rest of the units has its optimum over them.
Which weights go otherwise is chosen anew, by what they cost with the others moved. Norms that a pruning restores
(`Prune.rescale`) are not: outputs are restored here. In memory are the live model, the hidden states of the sequences
and one block's moments.

The bits are those of one kind of machine: BLAS adds up in an order that depends on the processor, the number of
threads and the version of torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sae_moo.errors import InputError, WeightsError
from sae_moo.experts.anatomy import transposed
from sae_moo.experts.pool import ExpertPool, TensorInfo
from sae_moo.materialization.linear import linear_layers
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
from sae_moo.recipe.groups import in_block
from sae_moo.recipe.structure import chain, merged, repair_of

BATCH_TOKENS = 2048
"""Tokens of a forward pass; a longer single sequence is its own batch."""

STRAIGHT = 0.05
"""What is added to a layer's outputs comes out of the block as it is, if it differs by no more than such a part."""


@dataclass(frozen=True, slots=True)
class Repaired:
    """What a repair has done.

    Args:
        zeros: how many zeros each of the repaired tensors holds now.
        tokens: how many forward tokens it took: what blocks have read, over the number of blocks, rounded up.
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
    blocks = _blocks(pool, model)
    turned = transposed(pool)
    zeros: dict[str, int] = {}

    def write(info: TensorInfo, weights: Tensor) -> None:
        exact, place = places[info.name], parameters[info.name]
        exact.copy_(weights.to(info.cast(recipe.dtype)))
        if exact is not place:
            place.copy_(exact)

    def put(block: _Block, plan: Plan) -> dict[str, Tensor]:
        """Give a block its weights by a plan; return them."""
        weights = {info.name: plan.tensor(info).float() for info in block.infos}
        for info in block.infos:
            write(info, weights[info.name])
        return weights

    with _counting(blocks) as passed:
        batches = _hidden_states(model, blocks, pool.texts[node.calibration], device)
        stays = [any(parameters[name].any() for name in block.layers) for block in blocks]
        for number, block in enumerate(blocks):
            if stays[number]:
                after = {info.name: pruned.tensor(info).float() for info in block.infos}
                before = put(block, dense)
                moments = _moments(block, batches, number)
                stretch = list(itertools.takewhile(lambda i: not stays[i], range(number + 1, len(blocks))))
                writer = _writer(block, batches[0], number) if stretch else None
                if writer is not None:
                    for i in stretch:
                        put(blocks[i], dense)
                    missing = _missing(blocks, number, stretch, writer, batches)
                    for i in stretch:
                        put(blocks[i], pruned)
                    before[writer] = _with_added(before[writer], missing, moments.of(writer), node.damping, turned)
                for info in block.infos:
                    if info.name in block.layers:
                        moment = moments.of(info.name)
                        gone = after[info.name] == 0
                        write(info, _repaired(before[info.name], gone, moment, scope, node.damping, turned))
                        zeros[info.name] = info.numel - int(torch.count_nonzero(places[info.name]))
                    else:
                        write(info, after[info.name])
            if number + 1 < len(blocks):
                for batch in batches:
                    batch.hidden = block.run(batch, number)
    return Repaired(zeros, -(-sum(passed) // len(blocks)))


@contextmanager
def _counting(blocks: Sequence[_Block]) -> Iterator[list[int]]:
    """While entered, note how many tokens a block has read whenever one has."""
    passed: list[int] = []

    def note(_: nn.Module, __: tuple[Any, ...], made: Any) -> None:
        passed.append(_output(made)[..., 0].numel())

    handles = [block.module.register_forward_hook(note) for block in blocks]
    try:
        yield passed
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, slots=True)
class _Moments:
    """Second moments of what a block's layers read, those that read the same once.

    Args:
        sums: the first layer that reads it -> moments, lower triangles.
        first: layer -> that first layer.
    """

    sums: dict[str, Tensor]
    first: dict[str, str]

    def of(self, layer: str) -> Tensor:
        """Return the moments of what a layer reads, a lower triangle."""
        return self.sums[self.first[layer]]


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


@dataclass(slots=True)
class _Batch:
    """Sequences of one length on their way through the model.

    Args:
        hidden: what the next block reads, shape (sequences, length, features).
        calls: what each block is given beside that, one for every block: positional and named.
    """

    hidden: Tensor
    calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class _Block:
    """One block of the live model.

    Args:
        name: of its group.
        module: the block.
        infos: its tensors.
        layers: tensor name -> the linear layer whose weight it is, of the prunable ones.
    """

    name: str
    module: nn.Module
    infos: tuple[TensorInfo, ...]
    layers: Mapping[str, nn.Module]

    def run(self, batch: _Batch, number: int) -> Tensor:
        """Return what the block makes of a batch's hidden states."""
        positional, named = batch.calls[number]
        return _output(self.module(batch.hidden, *positional, **named))


def _output(made: Any) -> Tensor:
    found = made[0] if isinstance(made, tuple) else made
    assert isinstance(found, Tensor)
    return found


def _blocks(pool: ExpertPool, model: nn.Module) -> list[_Block]:
    """Return the blocks in the model's order.

    Raises:
        InputError: naming a prunable tensor that is not the weight of a linear layer of its own, or a block that is
            none of a list of blocks.
    """
    layers = linear_layers(pool, model)
    names = {module: name for name, module in model.named_modules()}
    blocks = []
    for group, called in enumerate(pool.groups):
        infos = tuple(info for info in pool.tensors if info.group == group)
        prunable = [info.name for info in infos if info.prunable]
        lost = [name for name in prunable if name not in layers]
        if lost or (prunable and not in_block(called)):
            raise InputError(
                f"Repair: {(lost or prunable)[0]} is not the weight of a linear layer of the text model's blocks, so "
                "that what it reads is not known; mixtures of experts and sub-models are like that"
            )
        if prunable:
            mine = {name: layers[name] for name in prunable}
            blocks.append(_Block(called, _module([names[each] for each in mine.values()], model), infos, mine))
    return blocks


def _module(names: Sequence[str], model: nn.Module) -> nn.Module:
    """Return the innermost entry of a list of modules that holds all of those named."""
    paths = [name.split(".") for name in names]
    shared = [parts[0] for parts in zip(*paths, strict=False)][: _common(paths)]
    for end in range(len(shared), 0, -1):
        if isinstance(model.get_submodule(".".join(shared[: end - 1])), nn.ModuleList):
            return model.get_submodule(".".join(shared[:end]))
    raise InputError(f"Repair: {names[0]} lies in no list of blocks that could be run one after another")


def _common(paths: Sequence[Sequence[str]]) -> int:
    """Return how many first parts all paths share."""
    return next((i for i, parts in enumerate(zip(*paths, strict=False)) if len(set(parts)) > 1), min(map(len, paths)))


class _Reached(Exception):  # no error: the first block has been given its inputs
    pass


def _hidden_states(
    model: Any, blocks: Sequence[_Block], sequences: Sequence[Sequence[int]], device: torch.device
) -> list[_Batch]:
    """Return what the first block reads of all sequences, in batches of equally long ones.

    Raises:
        InputError: if the blocks alone, run one after another, give other hidden states than the model has; also where
            they are given something of the tokens beside hidden states, which differs from batch to batch.
    """
    known: dict[tuple[int, int], list[tuple[tuple[Any, ...], dict[str, Any]]]] = {}
    by_length: dict[int, list[Sequence[int]]] = {}
    for sequence in sequences:
        by_length.setdefault(len(sequence), []).append(sequence)
    batches: list[_Batch] = []
    shared = False  # whether blocks can be given what they were given of another batch of that shape
    for length in sorted(by_length):
        rows = max(1, BATCH_TOKENS // length)
        for start in range(0, len(by_length[length]), rows):
            tokens = torch.tensor(by_length[length][start : start + rows], device=device)
            shape = (tokens.shape[0], tokens.shape[1])
            again = shape in known
            if again and shared:
                batches.append(_Batch(_first(model, blocks[0].module, tokens), known[shape]))
                continue
            first, calls, last = _calls(model, blocks, tokens)
            batches.append(_Batch(first, known.setdefault(shape, calls)))
            if again or len(batches) == 1:
                _check_chain(blocks, batches[-1], last)
                shared = again
    return batches


def _check_chain(blocks: Sequence[_Block], batch: _Batch, expected: Tensor) -> None:
    alone = _Batch(batch.hidden, batch.calls)
    for number, block in enumerate(blocks):
        alone.hidden = block.run(alone, number)
    if not torch.isfinite(expected).all():
        raise WeightsError("repair: the activations of the merged model are not finite")
    if not torch.allclose(alone.hidden, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max())):
        raise InputError(
            "Repair: this architecture's blocks, run one after another, do not compute what the model does"
        )


def _first(model: Any, block: nn.Module, tokens: Tensor) -> Tensor:
    """Return what the first block reads."""
    found: list[Tensor] = []

    def stop(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        found.append(args[0] if args else named["hidden_states"])
        raise _Reached

    handle = block.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model.base_model(input_ids=tokens, use_cache=False)
    except _Reached:
        pass
    finally:
        handle.remove()
    return found[0]


def _calls(
    model: Any, blocks: Sequence[_Block], tokens: Tensor
) -> tuple[Tensor, list[tuple[tuple[Any, ...], dict[str, Any]]], Tensor]:
    """Return what the first block reads, what each is given beside, and what the last one makes."""
    first: list[Tensor] = []
    last: list[Tensor] = []
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def note(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        if not first:
            first.append(args[0] if args else named["hidden_states"])
        rest = {key: value for key, value in named.items() if key != "hidden_states"}
        calls.append((args[1:], rest))

    def end(_: nn.Module, __: tuple[Any, ...], made: Any) -> None:
        last.append(_output(made))

    handles = [block.module.register_forward_pre_hook(note, with_kwargs=True) for block in blocks]
    handles.append(blocks[-1].module.register_forward_hook(end))
    try:
        model.base_model(input_ids=tokens, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return first[0], calls, last[0]


def _moments(block: _Block, batches: Sequence[_Batch], number: int) -> _Moments:
    """Return the second moments of what a block's layers read, over all sequences."""
    found = _Moments({}, {})
    with _reading(block, found) as begin:
        for batch in batches:
            begin()
            block.run(batch, number)
    return found


def _writer(block: _Block, batch: _Batch, number: int) -> str | None:
    """Return the layer with the most inputs whose outputs are added to the block's as they are; None if there is none.

    It is tried: what is added to the layer's outputs has to come out of the block.
    """
    plain, found = block.run(batch, number), []
    added = torch.linspace(-1, 1, plain.shape[-1], device=plain.device, dtype=plain.dtype) * plain.std()
    for name, layer in block.layers.items():
        handle = layer.register_forward_hook(lambda _, __, made: made + added if made.shape[-1] == len(added) else None)
        try:
            moved = block.run(batch, number) - plain
        finally:
            handle.remove()
        if float((moved - added).float().norm()) < STRAIGHT * float(added.expand_as(moved).float().norm()):
            found.append(name)
    sizes = {info.name: info.numel for info in block.infos}
    return max(found, key=lambda name: sizes[name], default=None)


def _missing(
    blocks: Sequence[_Block], number: int, stretch: Sequence[int], writer: str, batches: Sequence[_Batch]
) -> Tensor:
    """Return the products of what a layer reads with what the blocks behind its own add, summed over all tokens.

    Args:
        blocks: all of them; those of the stretch with all their weights.
        number: of the layer's block.
        stretch: numbers of the blocks that are to go.
        writer: the layer.
        batches: what its block reads.

    Returns:
        Float32, shape (inputs, outputs).
    """
    read: list[Tensor] = []
    handle = blocks[number].layers[writer].register_forward_pre_hook(lambda _, args: read.append(args[0]))
    total: Tensor | None = None
    try:
        for batch in batches:
            written = blocks[number].run(batch, number)
            through = _Batch(written, batch.calls)
            for i in stretch:
                through.hidden = blocks[i].run(through, i)
            features = read.pop()
            added = (through.hidden - written).float()
            product = features.reshape(-1, features.shape[-1]).float().t() @ added.reshape(-1, added.shape[-1])
            total = product if total is None else total + product
    finally:
        handle.remove()
    assert total is not None  # there are sequences
    return total


def _with_added(weights: Tensor, missing: Tensor, moments: Tensor, damping: float, turned: bool) -> Tensor:
    """Return weights that write, beside what they wrote, the least-squares estimate of something missing.

    Args:
        weights: float32.
        missing: products of what the layer reads with what is missing, shape (inputs, outputs).
        moments: second moments of what it reads, a lower triangle.
        damping: see `Repair`.
        turned: whether weights are stored inputs x outputs.
    """
    factor = factorized(moments, damping)
    if factor is None:
        return weights
    added = torch.cholesky_solve(missing, factor)
    return weights + (added if turned else added.t())


@contextmanager
def _reading(block: _Block, found: _Moments) -> Iterator[Callable[[], None]]:
    """While entered, add up second moments; what is yielded is to be called before each pass."""
    inputs: dict[str, Tensor] = {}  # of this pass, by the first layer that reads each

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            features = args[0]
            same = next((first for first, read in inputs.items() if read is features), None)
            if found.first.setdefault(name, same or name) != name:
                return
            inputs[name] = features
            flat = features.reshape(-1, features.shape[-1])
            if name not in found.sums:
                found.sums[name] = flat.new_zeros(flat.shape[1], flat.shape[1], dtype=torch.float32)
            add_moments(found.sums[name], flat)

        return add

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in block.layers.items()]
    try:
        yield inputs.clear
    finally:
        for handle in handles:
            handle.remove()
