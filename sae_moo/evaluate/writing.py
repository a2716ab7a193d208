"""Greedy continuations of many prompts under one live model, in batches that shrink as answers end."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sae_moo.errors import TaskError, out_of_memory
from sae_moo.evaluate.hardware import TEXTS
from sae_moo.evaluate.task import Prompt

LOOK_BACK = 2
"""Tokens to look at beside those of a stop text, since it may be written in other tokens than its own."""
# Settings of a model's generation_config that change greedy decoding, and their values that do not.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "num_beams": (None, 1),
    "bad_words_ids": (None, []),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "exponential_decay_length_penalty": (None,),
    "sequence_bias": (None,),
    "guidance_scale": (None, 1.0),
    "penalty_alpha": (None, 0.0),
}


class Writer(Protocol):
    """Continues prompts greedily.

    Promises: `load` is called with every candidate before its first prompts; `write` then gives one text per prompt,
    special tokens left out, cut before its first stop text.
    """

    def load(self, model: Any) -> None:
        """Take in a candidate, a transformers causal LM whose weights stay as they are until it is called again."""

    def write(self, model: Any, which: Sequence[int] | None = None) -> list[str]:
        """Return the texts for the prompts of these numbers, in their order; None: all."""


class TransformersWriter:
    """Prompts laid out for greedy decoding, once; any number of candidates then continue them.

    Prompts are sorted by length and padded on the left. Decoding ends with the model's own end tokens, with a stop
    text, or with the most tokens asked for; rows that have ended leave the batch, and the batch ends with its last row.
    Recurrent models, and those whose ``generation_config`` changes greedy decoding (a repetition penalty, say), are
    decoded by transformers' own ``generate``, as the EleutherAI harness decodes every model: prompts of one length
    together, since both may take padding for a part of the prompt.

    Args:
        requests: the prompts; texts come in this order.
        tokenizer: the transformers tokenizer that made them.
        device: the model's device.
        batch_tokens: most tokens of a batch, answers included; None takes what suits the device. A batch that finds no
            memory is repeated with half of it, and so are all that follow.
    """

    def __init__(
        self,
        requests: Sequence[Prompt],
        tokenizer: Any,
        device: torch.device | str = "cpu",
        batch_tokens: int | None = None,
    ) -> None:
        self.batch_tokens = TEXTS.on(device) if batch_tokens is None else batch_tokens
        self.requests = tuple(requests)
        self._tokenizer = tokenizer
        self._device = device
        self._look_back = {
            stop: len(tokenizer.encode(stop, add_special_tokens=False)) + LOOK_BACK
            for request in self.requests
            for stop in request.stops
        }

    def load(self, model: Any) -> None:
        """Do nothing: the model itself is asked."""

    @torch.inference_mode()
    def write(self, model: Any, which: Sequence[int] | None = None) -> list[str]:
        """Return the text that a model writes after each prompt, special tokens left out, cut before its first stop.

        Args:
            model: a transformers causal LM on the device given at construction.
            which: numbers of the prompts to continue, in the order of the result; None: all.

        Raises:
            TaskError: if logits are not finite.
        """
        which = range(len(self.requests)) if which is None else which
        found: dict[int, str] = {}
        while len(found) < len(which):
            chosen = self._next([i for i in which if i not in found], as_usual(model))
            try:
                written = self._decoded(model, [self.requests[i] for i in chosen])
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or len(chosen) == 1:
                    raise
                self.batch_tokens = TEXTS.halved(self.batch_tokens, sum(self._room(i) for i in chosen))
                continue
            for i, tokens in zip(chosen, written, strict=True):
                found[i] = text_of(self._tokenizer, tokens, self.requests[i].stops)
        return [found[i] for i in which]

    def _room(self, index: int) -> int:
        request = self.requests[index]
        return len(request.context) + request.tokens

    def _next(self, left: Sequence[int], padded: bool) -> list[int]:
        """Return the prompts of the next batch: the longest that are left and end alike; without padding, as long."""
        first = self.requests[left[0]]
        alike = [i for i in left if (self.requests[i].tokens, self.requests[i].stops) == (first.tokens, first.stops)]
        alike.sort(key=lambda i: (-len(self.requests[i].context), self.requests[i].context, i))
        if not padded:
            alike = [i for i in alike if len(self.requests[i].context) == len(self.requests[alike[0]].context)]
        return alike[: max(1, self.batch_tokens // self._room(alike[0]))]

    def _decoded(self, model: Any, requests: Sequence[Prompt]) -> list[list[int]]:
        length = max(len(request.context) for request in requests)
        tokens = np.zeros((len(requests), length), dtype=np.int64)  # any valid token does as padding
        mask = np.zeros_like(tokens)
        for i, request in enumerate(requests):
            tokens[i, length - len(request.context) :] = request.context
            mask[i, length - len(request.context) :] = 1
        inputs, attention = (torch.from_numpy(each).to(self._device) for each in (tokens, mask))
        if as_usual(model):
            return self._stepwise(model, requests, inputs, attention)
        return self._by_transformers(model, requests, inputs, attention)

    def _stepwise(self, model: Any, requests: Sequence[Prompt], inputs: Tensor, mask: Tensor) -> list[list[int]]:
        from transformers import DynamicCache

        ends = torch.tensor(end_tokens(model), device=self._device)
        accepted = inspect.signature(model.forward).parameters
        cache = DynamicCache(config=model.config)
        how: dict[str, Any] = {"use_cache": True, "cache" if "cache" in accepted else "past_key_values": cache}
        if "logits_to_keep" in accepted:
            how["logits_to_keep"] = 1
        written: list[list[int]] = [[] for _ in requests]
        rows = list(range(len(requests)))
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        while True:
            if "position_ids" in accepted:
                how["position_ids"] = positions
            logits = model(input_ids=inputs, attention_mask=mask, **how).logits[:, -1].float()
            if not bool(torch.isfinite(logits).all()):
                raise TaskError("logits are not finite while an answer is written")
            chosen = logits.argmax(dim=-1)
            ended = torch.isin(chosen, ends).tolist()
            for row, token in zip(rows, chosen.tolist(), strict=True):
                written[row].append(token)
            going = [
                i
                for i, row in enumerate(rows)
                if not ended[i]
                and len(written[row]) < requests[row].tokens
                and not self._stopped(written[row], requests[row].stops)
            ]
            if not going:
                return written
            inputs, positions = chosen[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            if len(going) < len(rows):  # what has ended costs nothing more
                kept = torch.tensor(going, device=self._device)
                cache.batch_select_indices(kept)
                inputs, positions, mask = inputs[kept], positions[kept], mask[kept]
                rows = [rows[i] for i in going]

    def _stopped(self, written: Sequence[int], stops: Sequence[str]) -> bool:
        return any(stop in self._tokenizer.decode(written[-self._look_back[stop] :]) for stop in stops)

    def _by_transformers(self, model: Any, requests: Sequence[Prompt], inputs: Tensor, mask: Tensor) -> list[list[int]]:
        ends, padding, stops = end_tokens(model), self._tokenizer.pad_token_id, list(requests[0].stops)
        whole = model.generate(
            input_ids=inputs,
            attention_mask=mask,
            max_new_tokens=requests[0].tokens,
            do_sample=False,
            pad_token_id=padding if padding is not None else next(iter(ends), 0),
            logits_processor=[_finite],
            **({"stop_strings": stops, "tokenizer": self._tokenizer} if stops else {}),
        )
        written: list[list[int]] = whole[:, inputs.shape[1] :].tolist()
        return written


def _finite(_: Tensor, scores: Tensor) -> Tensor:
    """Return the scores of the next token as they are; settings may rule tokens out with minus infinity.

    Raises:
        TaskError: if any is not a number, or infinite.
    """
    if bool((torch.isnan(scores) | torch.isposinf(scores)).any()):
        raise TaskError("logits are not finite while an answer is written")
    return scores


def text_of(tokenizer: Any, tokens: Sequence[int], stops: Sequence[str]) -> str:
    """Return what tokens say, special ones left out, cut before the first stop text."""
    text: str = tokenizer.decode(tokens, skip_special_tokens=True)
    ends = [place for place in (text.find(stop) for stop in stops) if place >= 0]
    return text[: min(ends, default=len(text))]


def as_usual(model: Any) -> bool:
    """Say whether greedy decoding takes the most likely token and nothing else, of a model that reads by attention."""
    settings = model.generation_config
    recurrent = getattr(model, "_is_stateful", False)  # its state takes padding in, and its cache is of another kind
    return not recurrent and all(getattr(settings, name, None) in values for name, values in NEUTRAL.items())


def decoding(folder: Path) -> dict[str, Any]:
    """Return what a model's folder says of decoding, for telling whether it changed; empty if it says nothing."""
    try:
        described = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    unused = ("transformers_version", "_from_model_config")
    return {key: value for key, value in described.items() if key not in unused} if isinstance(described, dict) else {}


def end_tokens(model: Any) -> tuple[int, ...]:
    """Return the token ids that end an answer by the model's own settings."""
    ends = model.generation_config.eos_token_id
    return () if ends is None else (ends,) if isinstance(ends, int) else tuple(ends)
