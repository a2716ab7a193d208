"""Forward passes: rows of tokens laid out for one, and a model's logits where a token's next one is asked for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_moo.evaluate.task import Request
from sae_moo.evaluate.trie import TokenRow, rows

ROW_TOKENS = 1024
"""Tokens of a row that several sequences share: attention grows with its square."""

PACKED = "find_packed_sequence_indices"
"""What transformers finds sequences with that share a row; it returns None where none do."""


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass, on the model's device.

    Args:
        inputs: token ids, int64, shape (rows, length); right-padded.
        depth: position ids, int64, the same shape; None where every row is one sequence.
        end: index behind the last token that reads each one, int64, the same shape; likewise.
        columns: the columns with a token whose next one is asked for, int64, shape (kept,).
        row, column, kept: where each prediction stands: in the inputs, and which of `columns` it is in; int64, shape
            (predictions,).
        prediction: per asked token its prediction, int64, shape (asked,).
        target: the asked tokens, int64, shape (asked,); -1 where any of a set of ends will do.
        ends: which set of ends will do (`sets_of_ends`), int64, shape (asked,).
        request: which request each asked token belongs to, int64, shape (asked,); on the CPU. A request's tokens stand
            in their order.
        places: row and column of the prediction of each asked token, int64, shape (2, asked); on the CPU.
        tokens: how many the rows hold, padding left out.
    """

    inputs: Tensor
    depth: Tensor | None
    end: Tensor | None
    columns: Tensor
    row: Tensor
    column: Tensor
    kept: Tensor
    prediction: Tensor
    target: Tensor
    ends: Tensor
    request: NDArray[np.int64]
    places: NDArray[np.int64]
    tokens: int


def tokens_read(request: Request) -> tuple[int, ...]:
    """Return the tokens that a model reads for a request; not a last one whose next is not asked for."""
    return request.context + request.continuation[: len(request.continuation) if request.ends else -1]


def sets_of_ends(requests: Sequence[Request]) -> list[tuple[int, ...]]:
    """Return the different sets of ends that requests name, the empty one first."""
    return list(dict.fromkeys([(), *(request.ends for request in requests)]))


def laid_out(
    requests: Sequence[Request],
    part: Sequence[int],
    *,
    shares: bool,
    most: int,
    device: torch.device | str,
) -> list[Pass]:
    """Lay requests out in rows, and rows in passes.

    Args:
        requests: all there are.
        part: positions of those to lay out.
        shares: whether sequences that begin alike share rows (`trie`).
        most: tokens of a pass, padding included; a longer single row is its own pass.
        device: the model's.
    """
    groups, readers = _grouped(requests, part, shares, most)
    sets = sets_of_ends(requests)
    return [_pass(requests, group, readers, sets, device) for group in groups]


def sample(
    requests: Sequence[Request],
    part: Sequence[int],
    *,
    shares: bool,
    most: int,
    device: torch.device | str,
    count: int,
) -> tuple[list[Pass], int]:
    """Lay out some of the passes of `laid_out`: of all lengths, the largest and the one that is asked most among them.

    Args:
        requests: all there are.
        part: positions of those to lay out.
        shares: whether sequences that begin alike share rows.
        most: tokens of a pass.
        device: the model's.
        count: how many, beside those two.

    Returns:
        The passes in their order, and how many there are in all.
    """
    groups, readers = _grouped(requests, part, shares, most)
    sets = sets_of_ends(requests)
    sizes = [len(group) * len(group[-1].tokens) for group in groups]
    asked = [
        sum(len(requests[index].continuation) for row in group for sequence in row.paths for index in readers[sequence])
        for group in groups
    ]
    chosen = {int(np.argmax(sizes)), int(np.argmax(asked)), *np.linspace(0, len(groups) - 1, count).round().tolist()}
    return [_pass(requests, groups[int(i)], readers, sets, device) for i in sorted(chosen)], len(groups)


def _grouped(
    requests: Sequence[Request], part: Sequence[int], shares: bool, most: int
) -> tuple[list[list[TokenRow]], list[list[int]]]:
    """Return the rows of each pass, and for each sequence that they hold which requests read it."""
    readers: dict[tuple[int, ...], list[int]] = {}  # what is read -> the requests that read it
    for index in part:
        readers.setdefault(tokens_read(requests[index]), []).append(index)
    laid = rows(list(readers), min(ROW_TOKENS, most) if shares else 0)
    alone = [row for row in laid if len(row.paths) == 1]
    shared = [row for row in laid if len(row.paths) > 1]
    groups = []
    for group in (alone, shared):
        group.sort(key=lambda row: (len(row.tokens), row.tokens))
        start = 0
        while start < len(group):
            end = start + 1
            while end < len(group) and len(group[end].tokens) * (end + 1 - start) <= most:
                end += 1
            groups.append(group[start:end])
            start = end
    return groups, list(readers.values())


def _pass(
    requests: Sequence[Request],
    group: Sequence[TokenRow],
    readers: Sequence[Sequence[int]],
    sets: Sequence[tuple[int, ...]],
    device: torch.device | str,
) -> Pass:
    shape = (len(group), len(group[-1].tokens))
    inputs = np.zeros(shape, dtype=np.int64)  # any valid token does as padding
    depth = np.zeros(shape, dtype=np.int64)
    behind = np.tile(np.arange(1, shape[1] + 1), (shape[0], 1))  # padding reads itself, and nothing reads it
    predictions: dict[tuple[int, int], int] = {}
    asked: list[tuple[int, int, int, int]] = []
    for i, row in enumerate(group):
        length = len(row.tokens)
        inputs[i, :length], depth[i, :length], behind[i, :length] = row.tokens, row.depth, row.end
        for sequence, path in row.paths.items():
            for index in readers[sequence]:
                request = requests[index]
                first = len(request.context) - 1  # the last context token predicts the first continuation token
                wanted = [*request.continuation, *([-1] if request.ends else [])]
                for place, token in zip(path[first : first + len(wanted)].tolist(), wanted, strict=True):
                    prediction = predictions.setdefault((i, place), len(predictions))
                    asked.append((prediction, token, sets.index(request.ends) if token < 0 else 0, index))
    row_of, column = np.array(list(predictions), dtype=np.int64).reshape(-1, 2).T
    columns, kept = np.unique(column, return_inverse=True)
    prediction_of, target, ends_of, request_of = np.array(asked, dtype=np.int64).reshape(-1, 4).T

    def on_device(values: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64)).to(device)

    is_shared = any(len(row.paths) > 1 for row in group)
    return Pass(
        on_device(inputs),
        on_device(depth) if is_shared else None,
        on_device(behind) if is_shared else None,
        on_device(columns),
        on_device(row_of),
        on_device(column),
        on_device(kept.reshape(-1)),
        on_device(prediction_of),
        on_device(target),
        on_device(ends_of),
        request_of,
        np.stack([row_of, column])[:, prediction_of],
        sum(len(row.tokens) for row in group),
    )


class Head(Enum):
    """What of the hidden states goes through a model's head."""

    PLACES = "the places whose next token is asked for"
    COLUMNS = "the columns with such a place, by `logits_to_keep`"
    ALL = "all of them"


class Unfit(Exception):
    """A model's head is not used as is needed to ask it for less than all."""


def logits_of(model: Any, batch: Pass, head: Head) -> Tensor:
    """Return the logits of every prediction, float32, shape (predictions, vocabulary).

    It is always the model's own ``forward`` that runs: what it does between head and logits is never left out.

    Args:
        model: a transformers causal LM.
        batch: what it reads.
        head: what its head is given; logits of other places are thrown away.

    Raises:
        Unfit: if the model does not use its head so.
    """
    if batch.depth is not None and batch.end is not None:
        return _logits(model, batch, head, position_ids=batch.depth, attention_mask=_mask(batch.end, _dtype(model)))
    with _one_sequence_a_row(batch.inputs.device):
        return _logits(model, batch, head)


def _logits(model: Any, batch: Pass, head: Head, **places: Tensor) -> Tensor:
    how: dict[str, Any] = {"use_cache": False, **places}
    if head is Head.PLACES:
        with _narrowed(model, batch) as given:
            logits: Tensor = model(input_ids=batch.inputs, **how).logits
        if given != [batch.inputs.shape] or logits.shape[:-1] != (1, len(batch.row)):
            raise Unfit(f"{type(model).__name__} does not use its head once for all places")
        return logits[0].float()
    if head is Head.COLUMNS:
        if not takes(model, "logits_to_keep"):
            raise Unfit(f"{type(model).__name__} takes no `logits_to_keep`")
        kept: Tensor = model(input_ids=batch.inputs, logits_to_keep=batch.columns, **how).logits
        return kept[batch.row, batch.kept].float()
    whole: Tensor = model(input_ids=batch.inputs, **how).logits
    return whole[batch.row, batch.column].float()


def takes(model: Any, argument: str) -> bool:
    """Say whether a model's forward has an argument of that name."""
    return argument in inspect.signature(model.forward).parameters


@contextmanager
def _one_sequence_a_row(device: torch.device) -> Iterator[None]:
    """While entered, transformers does not wait for a device to learn whether rows hold several sequences.

    It looks at the position ids of every pass for that, though it made them itself, and a device that is waited for
    runs dry. Plain passes (`reading`), which others are held against, are made without this.
    """
    from transformers import masking_utils

    looks = getattr(masking_utils, PACKED, None)
    if device.type == "cpu" or looks is None:  # nothing is waited for; or this transformers does not look
        yield
        return
    setattr(masking_utils, PACKED, lambda position_ids: None)
    try:
        yield
    finally:
        setattr(masking_utils, PACKED, looks)


@contextmanager
def _narrowed(model: Any, batch: Pass) -> Iterator[list[torch.Size]]:
    """While entered, give a model's head only the hidden states whose logits are asked for, as a single row.

    Yields:
        The shapes of what the head was given instead of; filled as it is called.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is None:
        raise Unfit(f"{type(model).__name__} names no head")
    given: list[torch.Size] = []

    def chosen(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *rest = inputs
        given.append(hidden.shape[:-1])
        return (hidden[batch.row, batch.column][None], *rest) if given == [batch.inputs.shape] else inputs

    register: Callable[..., Any] = head.register_forward_pre_hook
    hook = register(chosen)
    try:
        yield given
    finally:
        hook.remove()


def _mask(end: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is added to attention scores: 0 for a token's ancestors and itself, else the least number.

    Args:
        end: int64, shape (rows, length); see `TokenRow`.
        dtype: of the model.

    Returns:
        Shape (rows, 1, length, length).
    """
    reads = readers_of(end)
    mask = torch.full(reads.shape, torch.finfo(dtype).min, dtype=dtype, device=end.device)
    return mask.masked_fill_(reads, 0.0)[:, None]


def readers_of(end: Tensor) -> Tensor:
    """Return whether the token of a column reads that of another; bool, shape (rows, reader, read)."""
    place = torch.arange(end.shape[1], device=end.device)
    return (place[None, :] <= place[:, None]) & (place[:, None] < end[:, None, :])


def _dtype(model: Any) -> torch.dtype:
    dtype: torch.dtype = getattr(model, "dtype", torch.float32)
    return dtype
