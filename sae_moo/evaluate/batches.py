"""Log-likelihoods of many continuations under one live model, with as few and as full forward passes as possible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_moo.errors import TaskError, out_of_memory
from sae_moo.evaluate.hardware import PASSES
from sae_moo.evaluate.passes import Head, Pass, laid_out, logits_of, sample, sets_of_ends
from sae_moo.evaluate.reading import Layout, Reading, Undecided, reading_of
from sae_moo.evaluate.sizes import BatchSizes, Work, fastest
from sae_moo.evaluate.task import Answer, Request

UNTRIED = Reading(Layout.PADDED, Head.ALL)
"""How a model is read whose logits are not finite, to tell where they are not."""

SAMPLE = 4
"""Passes that sizes are measured on, beside the two that take the most memory."""


@dataclass(frozen=True, slots=True)
class Readings:
    """What forward passes gave, as it came: finite or not.

    Args:
        request: which requests were read whole, ascending, int64, shape (read,).
        logprob: of their continuations, natural, float64, shape (read,).
        agreed: how many of the asked tokens greedy decoding would write, int64, shape (read,).
    """

    request: NDArray[np.int64]
    logprob: NDArray[np.float64]
    agreed: NDArray[np.int64]

    @classmethod
    def joined(cls, readings: Sequence[Readings]) -> Readings:
        """Put together what was read apart; a request is in one of them."""
        request = np.concatenate([each.request for each in readings])
        order = np.argsort(request)
        logprob = np.concatenate([each.logprob for each in readings])
        return cls(request[order], logprob[order], np.concatenate([each.agreed for each in readings])[order])

    @property
    def finite(self) -> bool:
        """Whether all log probabilities are."""
        return bool(np.isfinite(self.logprob).all())


class Batches:
    """Requests laid out for scoring, once; any number of candidates are then scored with them.

    Requests that read the same tokens share a row: choices of one question that differ in their last token only, or
    equal questions of two tasks. Where requests only begin alike (the choices of a question, questions behind the same
    few-shot examples), a row holds what they share once (`trie`), read under an attention mask. The other rows are one
    sequence each, padded on the right, where a causal model never sees it: they need no mask. Logits are computed for
    the tokens that are asked for, and no others.

    Not every architecture can be asked so. What a model's layers say of themselves, and a few requests that are also
    read alone, in float32 and with all logits, tell what is done with it and its like (`reading`).

    A pass that finds no memory is repeated with half the tokens, and so are all that follow.

    Args:
        requests: what to score; answers come in this order.
        device: the model's device.
        batch_tokens: most tokens of a forward pass, padding included; a longer single row is its own batch; None
            takes what suits the device, measured with the first model that gives finite logits.
        parts: positions of the requests that are asked together, each request in one part; None: all in one.
        sizes: what is chosen for the run so far, and takes what is chosen here; None: nothing.

    Attributes:
        batch_tokens: as it is now.
        reading: how the model is read; None before the first with finite logits.
        tokens: how many were read in all so far: what rows share counts once, padding not at all, nor what was read to
            find out how, or again for lack of memory.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        device: torch.device | str = "cpu",
        batch_tokens: int | None = None,
        parts: Sequence[Sequence[int]] | None = None,
        sizes: BatchSizes | None = None,
    ) -> None:
        if sizes is None or batch_tokens is not None:
            sizes = BatchSizes(device, None if batch_tokens is None else {PASSES.what: batch_tokens})
        self._sizes = sizes
        self.batch_tokens = sizes.first(PASSES)
        self.reading: Reading | None = None
        self.tokens = 0
        self.requests = tuple(requests)
        self._device = device
        self._lengths = np.array([len(request.continuation) for request in self.requests], dtype=np.int64)
        self._ends = _table(sets_of_ends(self.requests)).to(device)
        self._parts = [range(len(self.requests))] if parts is None else [list(part) for part in parts]
        self._batches = self._laid_out(Layout.SHARED)

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
        if not len(self._parts[part]):
            return []
        passes = self.ready(model)[part]
        return self.answers(part, self.read(model, passes), undecided=self.reading is None)

    @torch.inference_mode()
    def ready(self, model: Any) -> list[list[Pass]]:
        """Find out how a model is read, and how much at once, where that is not known; return the passes of each part.

        They stay the same until memory runs out, or a model with finite logits tells how its like are read.
        """
        reading = self._read(model)
        if reading is None:
            return self._laid_out(UNTRIED.layout)
        self._size(model, reading)
        return self._batches

    @torch.inference_mode()
    def read(self, model: Any, passes: Sequence[Pass]) -> Readings:
        """Run some forward passes, at least one, of those that are `ready`."""
        head = UNTRIED.head if self.reading is None else self.reading.head
        # nothing of a batch is looked at before all are on their way: a device that is waited for has nothing to do
        asked = [self._asked(self._logits(model, batch, head), batch) for batch in passes]
        gold, greedy = torch.cat(asked, dim=1).cpu().double().numpy()
        self.tokens += sum(batch.tokens for batch in passes)
        request, place = np.unique(np.concatenate([batch.request for batch in passes]), return_inverse=True)
        logprob = np.zeros(len(request))
        agreed = np.zeros(len(request), dtype=np.int64)
        np.add.at(logprob, place, gold)
        np.add.at(agreed, place, greedy.astype(np.int64))
        return Readings(request, logprob, agreed)

    def answers(self, part: int, readings: Readings | None, *, undecided: bool) -> list[Answer]:
        """Return the answers to the requests of a part, in its order.

        Args:
            part: which one.
            readings: of all its requests, and perhaps of others; None: of none.
            undecided: whether they were made before it was known how the model is read.

        Raises:
            TaskError: if a log probability is not finite, naming the first request concerned, or nothing was decided.
        """
        if readings is None or not len(self._parts[part]):
            return []
        broken = readings.request[~np.isfinite(readings.logprob) & np.isin(readings.request, self._parts[part])]
        if len(broken):
            raise TaskError(f"log probabilities are not finite for {len(broken)} requests, the first is {broken[0]}")
        if undecided:
            raise TaskError("logits are not finite where a few requests are read alone")
        place = dict(zip(readings.request.tolist(), range(len(readings.request)), strict=True))
        return [
            Answer(
                float(readings.logprob[place[i]]),
                int(self._lengths[i]),
                bool(readings.agreed[place[i]] == self._lengths[i] + bool(self.requests[i].ends)),
            )
            for i in self._parts[part]
        ]

    def _read(self, model: Any) -> Reading | None:
        """Return how the model is read, found out once; None if it tells nothing: the next one is asked again."""
        everything = [batch for part in self._batches for batch in part]
        if self.reading is None and everything:
            try:
                self.reading = reading_of(model, self.requests, everything, self.batch_tokens, self._device)
            except Undecided:
                return None
            if self.reading.layout is not Layout.SHARED:
                self._batches = self._laid_out(self.reading.layout)
        return self.reading

    def _logits(self, model: Any, batch: Pass, head: Head) -> Tensor:
        return logits_of(model, batch, head)

    def _asked(self, logits: Tensor, batch: Pass) -> Tensor:
        """Return what is asked of a pass, on its device.

        Returns:
            The log probability of every asked token; and 1 where greedy decoding would write it, else 0. float32, shape
            (2, asked).
        """
        target = batch.target.clamp(min=0)
        gold = logits[batch.prediction, target] - logits.logsumexp(dim=1)[batch.prediction]
        gold = torch.where(batch.target < 0, gold * 0, gold)  # not part of the continuation; * 0 keeps a NaN a NaN
        best = logits.argmax(dim=1)[batch.prediction]
        greedy = (best == batch.target) | self._ends[batch.ends, best.clamp(max=self._ends.shape[1] - 1)]
        return torch.stack([gold, greedy.to(gold.dtype)])

    def _size(self, model: Any, reading: Reading) -> None:
        """Lay out with as many tokens a pass as was chosen; measure first how many that are, if nobody did."""
        if reading.layout is Layout.ALONE:
            return
        if self._sizes.of(PASSES) is None and self._sizes.meter is not None:
            largest = max(self._parts, key=len)

            def work(tokens: int) -> Work:
                some, count = sample(
                    self.requests,
                    largest,
                    shares=reading.layout is Layout.SHARED,
                    most=tokens,
                    device=self._device,
                    count=SAMPLE,
                )
                return Work(
                    lambda: [self._asked(self._logits(model, batch, reading.head), batch) for batch in some],
                    sum(batch.tokens for batch in some),
                    max(batch.inputs.numel() for batch in some),
                    count,
                )

            self._sizes.choose(PASSES, fastest(work, PASSES, self._sizes.meter))
        if self._sizes.first(PASSES) != self.batch_tokens:
            self.batch_tokens = self._sizes.first(PASSES)
            self._batches = self._laid_out(reading.layout)

    def _smaller(self) -> bool:
        """Lay out again with half the tokens a pass; False if there is nothing left to halve."""
        everything = [batch for part in self._batches for batch in part]
        if all(len(batch.inputs) == 1 and batch.end is None for batch in everything):
            return False
        largest = max(batch.inputs.numel() for batch in everything)
        self.batch_tokens = self._sizes.halve(PASSES, self.batch_tokens, largest)
        self._batches = self._laid_out(Layout.SHARED if self.reading is None else self.reading.layout)
        return True

    def _laid_out(self, layout: Layout) -> list[list[Pass]]:
        most = 1 if layout is Layout.ALONE else self.batch_tokens
        shares = layout is Layout.SHARED
        return [laid_out(self.requests, part, shares=shares, most=most, device=self._device) for part in self._parts]


def _table(sets: Sequence[tuple[int, ...]]) -> Tensor:
    """Return which tokens each set holds; bool, shape (sets, tokens), the last column stands for all higher ids."""
    table = torch.zeros(len(sets), 2 + max((token for ends in sets for token in ends), default=-1), dtype=torch.bool)
    for row, ends in zip(table, sets, strict=True):
        row[list(ends)] = True
    return table
