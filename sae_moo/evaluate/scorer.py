"""Log-likelihoods of many continuations under one live model, as few and as full forward passes as possible."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_moo.errors import TaskError
from sae_moo.evaluate.task import Answer, Request

# Tokens per forward pass, padding included, by kind of device. On two CPU cores the zoo's search split took 0.13 s with
# 1024, 0.15 with 512, 0.16 with 4096 and 0.26 with 8192 (activations leave the cache); GPUs want more at once.
BATCH_TOKENS = {"cpu": 1024}
BATCH_TOKENS_ELSEWHERE = 8192


@dataclass(frozen=True, slots=True)
class _Batch:
    """One forward pass, on the model's device.

    Args:
        request: which request each asked token belongs to, shape (asked,); on the CPU.
        inputs: token ids, int64, shape (rows, length); right-padded.
        positions: the columns whose next token is asked for, int64, shape (kept,).
        row, column: where each asked token's prediction stands in (rows, kept), int64, shape (asked,).
        target: the asked tokens, int64, shape (asked,); -1 where any of a set of ends will do.
        ends: which set of ends will do, int64, shape (asked,); 0 is the empty set.
    """

    request: NDArray[np.int64]
    inputs: Tensor
    positions: Tensor
    row: Tensor
    column: Tensor
    target: Tensor
    ends: Tensor


class Batches:
    """Requests laid out for scoring, once; any number of candidates are then scored with them.

    Requests that read the same tokens share a row: the choices of one question that differ in their last token only, or
    equal questions of two tasks. Rows are sorted by length and cut into batches of at most `batch_tokens` tokens.
    Padding stands on the right, where a causal model never sees it, so that no attention mask is needed and an item's
    score does not depend on its neighbours.

    Args:
        requests: what to score; answers come in this order.
        device: the model's device.
        batch_tokens: most tokens of a forward pass, padding included; a longer single row is its own batch; None
            takes what suits the device.
    """

    def __init__(
        self, requests: Sequence[Request], device: torch.device | str = "cpu", batch_tokens: int | None = None
    ) -> None:
        if batch_tokens is None:
            batch_tokens = BATCH_TOKENS.get(torch.device(device).type, BATCH_TOKENS_ELSEWHERE)
        self.requests = tuple(requests)
        self._lengths = np.array([len(request.continuation) for request in self.requests], dtype=np.int64)
        self._ends = list(dict.fromkeys([(), *(request.ends for request in self.requests)]))
        readers: dict[tuple[int, ...], list[int]] = {}
        for index, request in enumerate(self.requests):
            last = len(request.continuation) if request.ends else -1  # a last token that predicts nothing is not read
            readers.setdefault(request.context + request.continuation[:last], []).append(index)
        rows = sorted(readers, key=lambda row: (len(row), row))
        self._batches: list[_Batch] = []
        start = 0
        while start < len(rows):
            end = start + 1
            while end < len(rows) and len(rows[end]) * (end + 1 - start) <= batch_tokens:
                end += 1
            self._batches.append(self._laid_out(rows[start:end], readers, device))
            start = end

    @torch.inference_mode()
    def score(self, model: Any) -> list[Answer]:
        """Run the forward passes.

        Args:
            model: a transformers causal LM on the device given at construction.

        Raises:
            TaskError: if a log probability is not finite, naming the first request concerned.
        """
        logprob = np.zeros(len(self.requests))
        agreed = np.zeros(len(self.requests), dtype=np.int64)
        sliced = "logits_to_keep" in inspect.signature(model.forward).parameters
        for batch in self._batches:
            keep = {"logits_to_keep": batch.positions} if sliced else {}
            logits = model(input_ids=batch.inputs, use_cache=False, **keep).logits
            if not sliced:
                logits = logits[:, batch.positions]
            asked = logits[batch.row, batch.column].float()
            target = batch.target.clamp(min=0)
            gold = asked.gather(1, target[:, None]).squeeze(1) - asked.logsumexp(dim=1)
            gold = torch.where(batch.target < 0, gold * 0, gold)  # not part of the continuation; * 0 keeps a NaN a NaN
            best = asked.argmax(dim=1)
            greedy = (best == batch.target) | self._ended(best, batch.ends)
            np.add.at(logprob, batch.request, gold.cpu().double().numpy())
            np.add.at(agreed, batch.request, greedy.cpu().numpy())
        broken = np.flatnonzero(~np.isfinite(logprob))
        if len(broken):
            raise TaskError(f"log probabilities are not finite for {len(broken)} requests, the first is {broken[0]}")
        return [
            Answer(float(total), int(length), bool(same == length + bool(request.ends)))
            for total, length, same, request in zip(logprob, self._lengths, agreed, self.requests, strict=True)
        ]

    def _ended(self, best: Tensor, sets: Tensor) -> Tensor:
        ended = torch.zeros_like(best, dtype=torch.bool)
        for i, ends in enumerate(self._ends[1:], start=1):
            ended |= (sets == i) & torch.isin(best, torch.tensor(ends, device=best.device))
        return ended

    def _laid_out(
        self, rows: Sequence[tuple[int, ...]], readers: dict[tuple[int, ...], list[int]], device: torch.device | str
    ) -> _Batch:
        inputs = np.zeros((len(rows), len(rows[-1])), dtype=np.int64)  # any valid token does as padding
        row: list[int] = []
        place: list[int] = []
        target: list[int] = []
        ends: list[int] = []
        request: list[int] = []
        for i, tokens in enumerate(rows):
            inputs[i, : len(tokens)] = tokens
            for index in readers[tokens]:
                asked = self.requests[index]
                first = len(asked.context) - 1  # the last context token predicts the first continuation token
                wanted = [*asked.continuation, *([-1] if asked.ends else [])]
                row += [i] * len(wanted)
                place += range(first, first + len(wanted))
                target += wanted
                ends += [self._ends.index(asked.ends) if token < 0 else 0 for token in wanted]
                request += [index] * len(wanted)
        positions, column = np.unique(np.array(place), return_inverse=True)

        def on_device(values: Any) -> Tensor:
            return torch.from_numpy(np.asarray(values, dtype=np.int64)).to(device)

        asked_where = (on_device(values) for values in (positions, row, column, target, ends))
        return _Batch(np.array(request), on_device(inputs), *asked_where)
