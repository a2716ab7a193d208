"""The blocks of a live model run one after another, with hidden states kept between them.

What a block reads is known without running those before it again, so that a repair can change them as it goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sae_moo.errors import InputError, WeightsError
from sae_moo.experts.pool import ExpertPool, TensorInfo
from sae_moo.materialization.linear import linear_layers
from sae_moo.recipe.groups import in_block

HIDDEN = "hidden_states"
"""What architectures call what a block reads, where they name it."""
BATCH_TOKENS = 2048
"""Tokens of a forward pass; a longer single sequence is its own batch."""
DIFFERING = 0.01
"""How far hidden states of blocks run alone may be from the model's, as a part of what the blocks add."""


@dataclass(slots=True)
class Batch:
    """Sequences of one length on their way through the model.

    Args:
        hidden: what the next block reads, shape (sequences, length, features).
        calls: what each block is given beside that, one for every block: positional and named. Where it is given hidden
            states by their name, that name is among them, without a value.
    """

    hidden: Tensor
    calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Block:
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

    def run(self, batch: Batch, number: int) -> Tensor:
        """Return what the block makes of a batch's hidden states."""
        positional, named = batch.calls[number]
        if HIDDEN in named:
            return output_of(self.module(*positional, **{**named, HIDDEN: batch.hidden}))
        return output_of(self.module(batch.hidden, *positional, **named))


@contextmanager
def counting(blocks: Sequence[Block]) -> Iterator[Callable[[], int]]:
    """While entered, count what blocks read; what is yielded returns the tokens of that many whole forward passes.

    A pass that ends within a block counts by the weights of the layers that were reached.
    """
    read: list[int] = []

    def note(layer: nn.Module, _: tuple[Any, ...], made: Tensor) -> None:
        read.append(made[..., 0].numel() * int(layer.weight.numel()))  # type: ignore[operator]

    layers = [layer for block in blocks for layer in block.layers.values()]
    weights = sum(info.numel for block in blocks for info in block.infos if info.name in block.layers)
    handles = [layer.register_forward_hook(note) for layer in layers]
    try:
        yield lambda: -(-sum(read) // weights)
    finally:
        for handle in handles:
            handle.remove()


def output_of(made: Any) -> Tensor:
    """Return the hidden states among what a block returns."""
    return _states(made[0] if isinstance(made, (tuple, list)) else made)


def _states(found: Any) -> Tensor:
    if not isinstance(found, Tensor):
        raise InputError(
            "Repair: expected blocks that read and return hidden states, so that they can be run one after another; "
            f"one of this architecture has {type(found).__name__} in their place"
        )
    return found


def blocks_of(pool: ExpertPool, model: nn.Module) -> list[Block]:
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
            blocks.append(Block(called, _module([names[each] for each in mine.values()], model), infos, mine))
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


class Reached(Exception):
    """No error: what a hook raises that has what it wants, to leave the rest of a pass."""


def _read(args: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    return _states(args[0] if args and HIDDEN not in named else named.get(HIDDEN))


def hidden_states(
    model: Any, blocks: Sequence[Block], sequences: Sequence[Sequence[int]], device: torch.device
) -> list[Batch]:
    """Return what the first block reads of all sequences, in batches of equally long ones.

    Raises:
        InputError: if the blocks alone, run one after another, give other hidden states than the model has; also where
            they are given something of the tokens beside hidden states, which differs from batch to batch.
    """
    known: dict[tuple[int, int], list[tuple[tuple[Any, ...], dict[str, Any]]]] = {}
    by_length: dict[int, list[Sequence[int]]] = {}
    for sequence in sequences:
        by_length.setdefault(len(sequence), []).append(sequence)
    batches: list[Batch] = []
    shared = False  # whether blocks can be given what they were given of another batch of that shape
    for length in sorted(by_length):
        rows = max(1, BATCH_TOKENS // length)
        for start in range(0, len(by_length[length]), rows):
            tokens = torch.tensor(by_length[length][start : start + rows], device=device)
            shape = (tokens.shape[0], tokens.shape[1])
            again = shape in known
            if again and shared:
                batches.append(Batch(_first(model, blocks[0].module, tokens), known[shape]))
                continue
            first, calls, last = _calls(model, blocks, tokens)
            batches.append(Batch(first, known.setdefault(shape, calls)))
            if again or len(batches) == 1:
                _check_chain(blocks, batches[-1], last)
                shared = again
    return batches


def _check_chain(blocks: Sequence[Block], batch: Batch, expected: Tensor) -> None:
    alone = Batch(batch.hidden, batch.calls)
    for number, block in enumerate(blocks):
        alone.hidden = block.run(alone, number)
    if not torch.isfinite(expected).all():
        raise WeightsError("repair: the activations of the merged model are not finite")
    differing, added = (float((expected - each).float().norm()) for each in (alone.hidden, batch.hidden))
    if not differing <= DIFFERING * added:
        raise InputError(
            "Repair: this architecture's blocks, run one after another, do not compute what the model does"
        )


def _first(model: Any, block: nn.Module, tokens: Tensor) -> Tensor:
    """Return what the first block reads."""
    found: list[Tensor] = []

    def stop(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        found.append(_read(args, named))
        raise Reached

    handle = block.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model.base_model(input_ids=tokens, use_cache=False)
    except Reached:
        pass
    finally:
        handle.remove()
    return found[0]


def _calls(
    model: Any, blocks: Sequence[Block], tokens: Tensor
) -> tuple[Tensor, list[tuple[tuple[Any, ...], dict[str, Any]]], Tensor]:
    """Return what the first block reads, what each is given beside, and what the last one makes.

    Raises:
        InputError: if a block is given beside hidden states something that the one before it has made.
    """
    first: list[Tensor] = []
    last: list[Tensor] = []
    handed: list[Any] = []  # what the block before has made
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def note(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        if not first:
            first.append(_read(args, named))
        beside = (args, {**named, HIDDEN: None}) if HIDDEN in named else (args[1:], named)
        given = [value for value in (*beside[0], *beside[1].values()) if isinstance(value, Tensor)]
        if any(value is each for value in given for each in handed):
            raise InputError(
                "Repair: this architecture's blocks hand on more than hidden states, so that they cannot be run one "
                "after another"
            )
        calls.append(beside)

    def keep(_: nn.Module, __: tuple[Any, ...], made: Any) -> None:
        handed[:] = made.values() if isinstance(made, dict) else made if isinstance(made, (tuple, list)) else ()

    def end(_: nn.Module, __: tuple[Any, ...], made: Any) -> None:
        last.append(output_of(made))

    handles = [block.module.register_forward_pre_hook(note, with_kwargs=True) for block in blocks]
    handles += [block.module.register_forward_hook(keep) for block in blocks[:-1]]
    handles.append(blocks[-1].module.register_forward_hook(end))
    try:
        model.base_model(input_ids=tokens, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return first[0], calls, last[0]
