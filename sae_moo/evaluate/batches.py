"""Log-likelihoods of many continuations under one live model, with as few and as full forward passes as possible."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_moo.errors import TaskError, out_of_memory
from sae_moo.evaluate.hardware import BATCHES, PASSES
from sae_moo.evaluate.task import Answer, Request
from sae_moo.evaluate.trie import TokenRow, rows

log = logging.getLogger(__name__)

ROW_TOKENS = 1024
"""Tokens of a row that several sequences share: attention grows with its square."""
SAMPLE = 8
"""Requests of a batch that are also read plainly."""


@dataclass(frozen=True, slots=True)
class _Batch:
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
        ends: which set of ends will do, int64, shape (asked,); 0 is the empty set.
        request: which request each asked token belongs to, shape (asked,); on the CPU.
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


class Batches:
    """Requests laid out for scoring, once; any number of candidates are then scored with them.

    Requests that read the same tokens share a row: choices of one question that differ in their last token only, or
    equal questions of two tasks. Where requests only begin alike (the choices of a question, questions behind the same
    few-shot examples), a row holds what they share once (`trie`), read under an attention mask. The other rows are one
    sequence each, padded on the right, where a causal model never sees it: they need no mask. Logits are computed for
    the tokens that are asked for, and no others.

    Not every architecture can be asked so. The first batch of each kind is therefore also read plainly, sequence by
    sequence and with all logits, and what does not agree is not done again with this model.

    A pass that finds no memory is repeated with half the tokens, and so are all that follow.

    Args:
        requests: what to score; answers come in this order.
        device: the model's device.
        batch_tokens: most tokens of a forward pass, padding included; a longer single row is its own batch; None
            takes what suits the device.
        parts: positions of the requests that are asked together, each request in one part; None: all in one.

    Attributes:
        batch_tokens: as it is now.
        shares: whether sequences that begin alike share rows.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        device: torch.device | str = "cpu",
        batch_tokens: int | None = None,
        parts: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.batch_tokens = PASSES.on(device) if batch_tokens is None else batch_tokens
        self.shares = True
        self.requests = tuple(requests)
        self._device = device
        self._lengths = np.array([len(request.continuation) for request in self.requests], dtype=np.int64)
        self._ends = list(dict.fromkeys([(), *(request.ends for request in self.requests)]))
        self._parts = [range(len(self.requests))] if parts is None else [list(part) for part in parts]
        self._apart = False  # whether body and head are asked apart
        self._tried = False
        self._batches = [self._laid_out(part) for part in self._parts]

    @torch.inference_mode()
    def score(self, model: Any, part: int = 0) -> list[Answer]:
        """Run the forward passes of one part.

        Args:
            model: a transformers causal LM on the device given at construction.
            part: which one.

        Returns:
            The answers to the part's requests, in its order.

        Raises:
            TaskError: if a log probability is not finite, naming the first request concerned.
        """
        while True:
            try:
                return self._score(model, part)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or not self._smaller():
                    raise

    def _score(self, model: Any, part: int) -> list[Answer]:
        logprob = np.zeros(len(self.requests))
        agreed = np.zeros(len(self.requests), dtype=np.int64)
        if not self._tried:
            self._try_out(model)
        for batch in self._batches[part]:
            gold, best = self._asked(self._logits(model, batch), batch)
            greedy = (best == batch.target) | self._ended(best, batch.ends)
            np.add.at(logprob, batch.request, gold.cpu().double().numpy())
            np.add.at(agreed, batch.request, greedy.cpu().numpy())
        broken = np.flatnonzero(~np.isfinite(logprob))
        if len(broken):
            raise TaskError(f"log probabilities are not finite for {len(broken)} requests, the first is {broken[0]}")
        return [
            Answer(
                float(logprob[i]),
                int(self._lengths[i]),
                bool(agreed[i] == self._lengths[i] + bool(self.requests[i].ends)),
            )
            for i in self._parts[part]
        ]

    def _logits(self, model: Any, batch: _Batch) -> Tensor:
        """Return the logits of every prediction, float32, shape (predictions, vocabulary)."""
        how: dict[str, Any] = {"use_cache": False}
        if batch.depth is not None and batch.end is not None:
            how |= {"position_ids": batch.depth, "attention_mask": _mask(batch.end, _dtype(model))}
        if self._apart:
            hidden = model.base_model(input_ids=batch.inputs, **how)[0]
            logits: Tensor = model.get_output_embeddings()(hidden[batch.row, batch.column])
            return logits.float()
        if "logits_to_keep" in inspect.signature(model.forward).parameters:
            kept: Tensor = model(input_ids=batch.inputs, logits_to_keep=batch.columns, **how).logits
            return kept[batch.row, batch.kept].float()
        whole: Tensor = model(input_ids=batch.inputs, **how).logits
        return whole[batch.row, batch.column].float()

    def _asked(self, logits: Tensor, batch: _Batch) -> tuple[Tensor, Tensor]:
        """Return the log probability of every asked token, and the most likely one in its place."""
        target = batch.target.clamp(min=0)
        gold = logits[batch.prediction, target] - logits.logsumexp(dim=1)[batch.prediction]
        gold = torch.where(batch.target < 0, gold * 0, gold)  # not part of the continuation; * 0 keeps a NaN a NaN
        return gold, logits.argmax(dim=1)[batch.prediction]

    def _ended(self, best: Tensor, sets: Tensor) -> Tensor:
        ended = torch.zeros_like(best, dtype=torch.bool)
        for i, ends in enumerate(self._ends[1:], start=1):
            ended |= (sets == i) & torch.isin(best, torch.tensor(ends, device=best.device))
        return ended

    def _smaller(self) -> bool:
        """Lay out again with half the tokens a pass; False if there is nothing left to halve."""
        everything = [batch for part in self._batches for batch in part]
        if all(len(batch.inputs) == 1 and batch.depth is None for batch in everything):
            return False
        largest = max(batch.inputs.numel() for batch in everything)
        self.batch_tokens = PASSES.halved(self.batch_tokens, largest)
        self._batches = [self._laid_out(part) for part in self._parts]
        return True

    def _try_out(self, model: Any) -> None:
        """Keep those ways to save work that give, on a part of the batches of each kind, what plain passes give.

        Tried are the first requests and the longest one: what a window of attention or a rule for far positions does is
        seen in long requests only. A model whose answers are not finite tells nothing: the next one is asked again.
        """
        everything = [batch for part in self._batches for batch in part]
        wanted = []
        for kind in (True, False):
            batches = [batch for batch in everything if (batch.depth is None) is kind]
            for batch, chosen in self._samples(batches):
                wanted.append((batch, chosen, self._plainly(model, chosen)))
        if not all(np.isfinite(values).all() for *_, values in wanted):
            return
        body, head = getattr(model, "base_model", model), getattr(model, "get_output_embeddings", lambda: None)()
        for apart in (True, False) if body is not model and head is not None else (False,):
            self._apart = apart
            if all(self._gives(model, *each) for each in wanted):
                self._tried = True
                return
        if self.shares:
            log.info("%s: prompts that begin alike are read one by one", type(model).__name__)
            self.shares = False
            self._batches = [self._laid_out(part) for part in self._parts]
            self._try_out(model)
        else:
            log.warning("%s gives other log probabilities in a batch than alone", type(model).__name__)
            self._tried = True

    def _samples(self, batches: Sequence[_Batch]) -> Iterator[tuple[_Batch, list[int]]]:
        """Yield batches with the requests of theirs to try: the first ones, and the longest of all."""
        if not batches:
            return
        yield batches[0], list(dict.fromkeys(batches[0].request.tolist()))[:SAMPLE]
        longest, index = max(
            ((batch, index) for batch in batches for index in np.unique(batch.request).tolist()),
            key=lambda each: len(self.requests[each[1]].context) + len(self.requests[each[1]].continuation),
        )
        yield longest, [index]

    def _gives(self, model: Any, batch: _Batch, chosen: Sequence[int], wanted: NDArray[np.float32]) -> bool:
        try:
            gold, _ = self._asked(self._logits(model, batch), batch)
        except (AttributeError, IndexError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and out_of_memory(error):
                raise
            log.info("%s cannot be asked so: %s", type(model).__name__, error)  # whatever an architecture may raise
            return False
        apart = np.abs(gold.cpu().numpy()[np.isin(batch.request, chosen)] - wanted).max(initial=0.0)
        return BATCHES.allows(float(apart), _dtype(model))

    def _plainly(self, model: Any, chosen: Sequence[int]) -> NDArray[np.float32]:
        """Return the log probabilities that requests ask for, each in a pass of its own."""
        found: list[float] = []
        keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        for index in chosen:
            request = self.requests[index]
            # like the batches, not the last token where nothing behind it is asked: there may be no position for it
            whole = [*request.context, *request.continuation][: None if request.ends else -1]
            tokens = torch.tensor([whole], device=self._device)
            first = len(request.context) - 1  # the last context token predicts the first continuation token
            how = {"logits_to_keep": len(whole) - first} if keeps else {}  # all of them may not fit into memory
            logits = model(input_ids=tokens, use_cache=False, **how).logits[0, first - len(whole) :]
            logprobs, places = logits.float().log_softmax(-1), range(len(request.continuation))
            found += [float(logprobs[i, token]) for i, token in zip(places, request.continuation, strict=True)]
            found += [0.0] if request.ends else []
        return np.array(found, dtype=np.float32)

    def _laid_out(self, part: Sequence[int]) -> list[_Batch]:
        readers: dict[tuple[int, ...], list[int]] = {}  # what is read -> the requests that read it
        for index in part:
            request = self.requests[index]
            last = len(request.continuation) if request.ends else -1  # a last token that predicts nothing is not read
            readers.setdefault(request.context + request.continuation[:last], []).append(index)
        sequences = list(readers)
        most = min(ROW_TOKENS, self.batch_tokens) if self.shares else 0
        laid = rows(sequences, most)
        alone = [row for row in laid if len(row.paths) == 1]
        shared = [row for row in laid if len(row.paths) > 1]
        batches = []
        for group in (alone, shared):
            group.sort(key=lambda row: (len(row.tokens), row.tokens))
            start = 0
            while start < len(group):
                end = start + 1
                while end < len(group) and len(group[end].tokens) * (end + 1 - start) <= self.batch_tokens:
                    end += 1
                batches.append(self._batch(group[start:end], list(readers.values())))
                start = end
        return batches

    def _batch(self, group: Sequence[TokenRow], readers: Sequence[Sequence[int]]) -> _Batch:
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
                    request = self.requests[index]
                    first = len(request.context) - 1  # the last context token predicts the first continuation token
                    wanted = [*request.continuation, *([-1] if request.ends else [])]
                    for place, token in zip(path[first : first + len(wanted)].tolist(), wanted, strict=True):
                        prediction = predictions.setdefault((i, place), len(predictions))
                        ends = self._ends.index(request.ends) if token < 0 else 0
                        asked.append((prediction, token, ends, index))
        row_of, column = np.array(list(predictions), dtype=np.int64).reshape(-1, 2).T
        columns, kept = np.unique(column, return_inverse=True)
        prediction_of, target, ends_of, request_of = np.array(asked, dtype=np.int64).reshape(-1, 4).T

        def on_device(values: NDArray[np.int64]) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64)).to(self._device)

        is_shared = any(len(row.paths) > 1 for row in group)
        return _Batch(
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
        )


def _mask(end: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is added to attention scores: 0 for a token's ancestors and itself, else the least number.

    Args:
        end: int64, shape (rows, length); see `TokenRow`.
        dtype: of the model.

    Returns:
        Shape (rows, 1, length, length).
    """
    place = torch.arange(end.shape[1], device=end.device)
    reads = (place[None, :] <= place[:, None]) & (place[:, None] < end[:, None, :])
    mask = torch.full(reads.shape, torch.finfo(dtype).min, dtype=dtype, device=end.device)
    return mask.masked_fill_(reads, 0.0)[:, None]


def _dtype(model: Any) -> torch.dtype:
    dtype: torch.dtype = getattr(model, "dtype", torch.float32)
    return dtype
