"""Greedy continuations of many prompts under one live model, in batches that shrink as answers end."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sae_moo.errors import InputError, TaskError, out_of_memory
from sae_moo.evaluate.hardware import PASSES, TEXTS
from sae_moo.evaluate.passes import takes
from sae_moo.evaluate.precision import in_single
from sae_moo.evaluate.reading import FAULTS, plainly, reads_in_single, spread_of, tells_nothing, within
from sae_moo.evaluate.sizes import BatchSizes, fitting
from sae_moo.evaluate.task import Prompt, Request

log = logging.getLogger(__name__)

TRIED = 3
"""Tokens that are written to find out how a model may be asked for more."""
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
    special tokens left out, cut before its first stop text. `tokens` is how many were read in all so far, prompts and
    what was written, all of it again where nothing is kept from token to token; not padding, nor what was read to find
    out how to write. The last token written is not read. What is written after a prompt may depend, in the rounding of
    logits, on the prompts in its batch and on nothing else: `write`, given whole `batches`, makes these.
    """

    @property
    def tokens(self) -> int:
        """How many tokens models have read in all so far."""

    def load(self, model: Any) -> None:
        """Take in a candidate, a transformers causal LM whose weights stay as they are until it is called again."""

    def write(self, model: Any, which: Sequence[int] | None = None) -> list[str]:
        """Return the texts for the prompts of these numbers, in their order; None: all."""

    def batches(self, model: Any, which: Sequence[int]) -> list[list[int]]:
        """Return which of these prompts would be written together, batch by batch, as long as memory has room."""


class Way(Enum):
    """How texts are written, the fastest first; the last one is right by what a model is."""

    PADDED = "prompts of any length together, padded on the left, with a cache"
    EVEN = "prompts of one length together, with the cache that transformers gives the model"
    ANEW = "one prompt by itself, everything read again for each token"


Seen = Callable[[Sequence[int], Tensor], None]
"""Takes the numbers of rows and their logits, shape (rows, vocabulary), before each token is chosen."""


class TransformersWriter:
    """Prompts laid out for greedy decoding, once; any number of candidates then continue them.

    Prompts are sorted by length and padded on the left. Decoding ends with the model's own end tokens, with a stop
    text, or with the most tokens asked for; rows that have ended leave the batch, and the batch ends with its last row.
    Recurrent models, and those whose ``generation_config`` changes greedy decoding (a repetition penalty, say), are
    decoded by transformers' own ``generate``, as the EleutherAI harness decodes every model: prompts of one length
    together, since both may take padding for a part of the prompt.

    Not every architecture keeps a cache, or takes padding for what it is. A few tokens are therefore also written
    after the shortest and the longest prompts, in float32; a way whose logits are not those of plain passes is not
    taken with this model and its like (`Way`).

    Args:
        requests: the prompts; texts come in this order.
        tokenizer: the transformers tokenizer that made them.
        device: the model's device.
        batch_tokens: most tokens of a batch, answers included; None takes what suits the device, and has room where it
            tells of its memory. A batch that finds no memory is repeated with half of it, and so are all that follow.
        sizes: what is chosen for the run so far, and takes what is chosen here; None: nothing.

    Attributes:
        way: how texts are written; None before the first with finite logits.
    """

    def __init__(
        self,
        requests: Sequence[Prompt],
        tokenizer: Any,
        device: torch.device | str = "cpu",
        batch_tokens: int | None = None,
        sizes: BatchSizes | None = None,
    ) -> None:
        if sizes is None or batch_tokens is not None:
            sizes = BatchSizes(device, None if batch_tokens is None else {TEXTS.what: batch_tokens})
        self._sizes = sizes
        self.batch_tokens = sizes.first(TEXTS)
        self.requests = tuple(requests)
        self._tokenizer = tokenizer
        self._device = device
        self._sent: dict[tuple[Prompt, ...], tuple[Tensor, Tensor]] = {}
        self.way: Way | None = None
        self.tokens = 0
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
            InputError: if the model cannot be asked to write.
        """
        which = range(len(self.requests)) if which is None else which
        if which:
            self._ready(model)
        found: dict[int, str] = {}
        while len(found) < len(which):
            chosen = self._next([i for i in which if i not in found], self._way_of(model))
            try:
                written = self._decoded(model, [self.requests[i] for i in chosen])
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or len(chosen) == 1:
                    raise
                self.batch_tokens = self._sizes.halve(TEXTS, self.batch_tokens, sum(self._room(i) for i in chosen))
                self._sent.clear()
                continue
            for i, tokens in zip(chosen, written, strict=True):
                self.tokens += self._read(model, self.requests[i], tokens)
                found[i] = text_of(self._tokenizer, tokens, self.requests[i].stops)
        return [found[i] for i in which]

    @torch.inference_mode()
    def batches(self, model: Any, which: Sequence[int]) -> list[list[int]]:
        """Return which prompts are written together; see `Writer.batches` and, for what is raised, `write`."""
        if which:
            self._ready(model)
        left, batches = list(which), list[list[int]]()
        while left:
            batches.append(self._next(left, self._way_of(model)))
            taken = set(batches[-1])
            left = [i for i in left if i not in taken]
        return batches

    def _ready(self, model: Any) -> None:
        """Find out how a model may be asked to write, and how much at once, where that is not known."""
        if self.way is None:
            self.way = self._tried_out(model)
        self._size(model)

    def _read(self, model: Any, request: Prompt, written: Sequence[int]) -> int:
        """Return how many tokens were read to write; rows that ended before others are filled up with padding."""
        ends, padding = end_tokens(model), self._tokenizer.pad_token_id
        length = next((i + 1 for i, token in enumerate(written) if token in ends), len(written))
        while length > 1 and written[length - 1] == padding and written[length - 1] not in ends:
            length -= 1
        before = len(request.context)
        if self._way_of(model) is Way.ANEW:
            return length * before + length * (length - 1) // 2
        return before + length - 1

    def _size(self, model: Any) -> None:
        """Take as many tokens a batch as was chosen; find out first how many there is room for, if nobody did."""
        if self._sizes.of(TEXTS) is None and self._sizes.meter is not None and self._way_of(model) is not Way.ANEW:
            chosen = self._next(range(len(self.requests)), self._way_of(model))
            few = [Prompt(self.requests[i].context, TRIED) for i in chosen]
            tokens = len(few) * max(len(prompt.context) + TRIED for prompt in few)
            try:
                room = fitting(lambda: self._decoded(model, few), tokens, TEXTS, self._sizes.meter)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                room = 0
            if room:
                self._sizes.choose(TEXTS, room)
            else:
                self._sizes.halve(TEXTS, self.batch_tokens, tokens)
        self.batch_tokens = self._sizes.first(TEXTS)

    def _room(self, index: int) -> int:
        request = self.requests[index]
        return len(request.context) + request.tokens

    def _next(self, left: Sequence[int], way: Way) -> list[int]:
        """Return the prompts of the next batch: the longest that are left and end alike; without padding, as long."""
        first = self.requests[left[0]]
        alike = [i for i in left if (self.requests[i].tokens, self.requests[i].stops) == (first.tokens, first.stops)]
        alike.sort(key=lambda i: (-len(self.requests[i].context), self.requests[i].context, i))
        if way is not Way.PADDED:
            alike = [i for i in alike if len(self.requests[i].context) == len(self.requests[alike[0]].context)]
        return alike[: 1 if way is Way.ANEW else max(1, self.batch_tokens // self._room(alike[0]))]

    def _decoded(self, model: Any, requests: Sequence[Prompt]) -> list[list[int]]:
        way = self._way_of(model)
        if way is Way.ANEW and plain_greedy(model):
            return [self._anew(model, request) for request in requests]
        if tuple(requests) not in self._sent:  # every candidate is given the same
            self._sent[tuple(requests)] = self._laid_out(requests)
        inputs, mask = self._sent[tuple(requests)]
        if way is Way.PADDED:
            return self._stepwise(model, requests, inputs, mask)
        return self._by_transformers(model, requests, inputs, mask, cached=way is Way.EVEN)

    def _way_of(self, model: Any) -> Way:
        """Return the way found out, or the next one where the model's settings are obeyed by transformers only."""
        way = Way.PADDED if self.way is None else self.way
        return Way.EVEN if way is Way.PADDED and not as_usual(model) else way

    def _laid_out(self, requests: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        length = max(len(request.context) for request in requests)
        tokens = np.zeros((len(requests), length), dtype=np.int64)  # any valid token does as padding
        mask = np.zeros_like(tokens)
        for i, request in enumerate(requests):
            tokens[i, length - len(request.context) :] = request.context
            mask[i, length - len(request.context) :] = 1
        return torch.from_numpy(tokens).to(self._device), torch.from_numpy(mask).to(self._device)

    def _tried_out(self, model: Any) -> Way:
        """Return the first way whose logits are those of plain passes, in float32."""
        by_length = sorted(self.requests, key=lambda request: len(request.context))
        short, middle, long = (by_length[i].context for i in (0, len(by_length) // 2, -1))
        probes = {
            Way.PADDED: [Prompt(short, 1), Prompt(middle, TRIED), Prompt(long, TRIED)],  # one row leaves before others
            Way.EVEN: [Prompt(long, TRIED), Prompt(long[::-1], TRIED)],
        }
        asked = Request(long, long[:1])
        if not reads_in_single(model, asked, self._device):
            log.info("%s: %s", type(model).__name__, Way.ANEW.value)
            return Way.ANEW
        with in_single(model):
            plain = plainly(model, asked, self._device)
            if tells_nothing(plain):
                raise TaskError("logits are not finite while an answer is written")
            allowed = spread_of(model, asked, plain, PASSES.on(self._device), self._device)
            for way in (Way.PADDED, Way.EVEN) if as_usual(model) else (Way.EVEN,):
                if self._faithful(model, way, probes[way], allowed):
                    return way
        log.info("%s: %s", type(model).__name__, Way.ANEW.value)
        return Way.ANEW

    def _faithful(self, model: Any, way: Way, prompts: Sequence[Prompt], allowed: float) -> bool:
        seen: list[list[Tensor]] = [[] for _ in prompts]

        def see(rows: Sequence[int], logits: Tensor) -> None:
            for row, own in zip(rows, logits.float(), strict=True):
                seen[row].append(own)

        inputs, mask = self._laid_out(prompts)
        try:
            if way is Way.PADDED:
                written = self._stepwise(model, prompts, inputs, mask, see)
            else:
                written = self._by_transformers(model, prompts, inputs, mask, cached=True, see=see)
        except FAULTS as error:
            if out_of_memory(error):
                raise
            log.info("%s cannot be asked so: %s", type(model).__name__, error)
            return False
        for prompt, tokens, own in zip(prompts, written, seen, strict=True):
            request = Request(prompt.context, tuple(tokens[: len(own)]))
            if not within(torch.stack(own), plainly(model, request, self._device), allowed):
                return False
        return True

    def _anew(self, model: Any, request: Prompt) -> list[int]:
        """Write without any cache: each token from a pass over everything before it."""
        ends = end_tokens(model)
        written: list[int] = []
        while len(written) < request.tokens and not self._stopped(written, request.stops):
            logits = plainly(model, Request(request.context + tuple(written), (0,)), self._device)[-1:]
            written += _tokens(logits, logits.argmax(dim=-1))
            if written[-1] in ends:
                break
        return written

    def _stepwise(
        self, model: Any, requests: Sequence[Prompt], inputs: Tensor, mask: Tensor, see: Seen | None = None
    ) -> list[list[int]]:
        from transformers import DynamicCache

        ends = end_tokens(model)
        cache = DynamicCache(config=model.config)
        how: dict[str, Any] = {"use_cache": True, "cache" if takes(model, "cache") else "past_key_values": cache}
        if takes(model, "logits_to_keep"):
            how["logits_to_keep"] = 1
        written: list[list[int]] = [[] for _ in requests]
        rows = list(range(len(requests)))
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        while True:
            if takes(model, "position_ids"):
                how["position_ids"] = positions
            logits = model(input_ids=inputs, attention_mask=mask, **how).logits[:, -1].float()
            if see is not None:
                see(rows, logits)
            chosen = logits.argmax(dim=-1)
            for row, token in zip(rows, _tokens(logits, chosen), strict=True):
                written[row].append(token)
            going = [
                i
                for i, row in enumerate(rows)
                if written[row][-1] not in ends
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

    def _by_transformers(
        self,
        model: Any,
        requests: Sequence[Prompt],
        inputs: Tensor,
        mask: Tensor,
        *,
        cached: bool,
        see: Seen | None = None,
    ) -> list[list[int]]:
        ends, padding, stops = end_tokens(model), self._tokenizer.pad_token_id, list(requests[0].stops)
        how: dict[str, Any] = {"stop_strings": stops, "tokenizer": self._tokenizer} if stops else {}
        if see is not None:
            how |= {"return_dict_in_generate": True, "output_logits": True, "min_new_tokens": requests[0].tokens}
        try:
            made = model.generate(
                input_ids=inputs,
                attention_mask=mask,
                max_new_tokens=requests[0].tokens,
                do_sample=False,
                pad_token_id=padding if padding is not None else next(iter(ends), 0),
                logits_processor=[_finite],
                use_cache=cached,
                **how,
            )
        except FAULTS as error:
            if cached or isinstance(error, TaskError) or out_of_memory(error):
                raise
            raise InputError(
                f"{type(model).__name__} cannot write as its generation_config.json asks, with no cache that is right: "
                f"{type(error).__name__}: {error}"
            ) from error
        whole = made if see is None else made.sequences
        if see is not None:
            for logits in made.logits:
                see(range(len(requests)), logits)
        written: list[list[int]] = whole[:, inputs.shape[1] :].tolist()
        return written


def _tokens(logits: Tensor, chosen: Tensor) -> list[int]:
    """Return which tokens were chosen, fetched at once with whether they could be.

    Args:
        logits: float32, shape (rows, vocabulary).
        chosen: the most likely ones, int64, shape (rows,).

    Raises:
        TaskError: if any logit is not a number, or infinite; minus infinity rules a token out.
    """
    broken = (torch.isnan(logits) | torch.isposinf(logits)).any(dim=-1)
    tokens: list[int] = torch.where(broken, -1, chosen).tolist()
    if min(tokens) < 0:
        raise TaskError("logits are not finite while an answer is written")
    return tokens


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


def plain_greedy(model: Any) -> bool:
    """Say whether greedy decoding takes the most likely token and nothing else by the model's own settings."""
    settings = model.generation_config
    return all(getattr(settings, name, None) in values for name, values in NEUTRAL.items())


def as_usual(model: Any) -> bool:
    """Say whether greedy decoding is plain, of a model that reads by attention."""
    recurrent = getattr(model, "_is_stateful", False)  # its state takes padding in, and its cache is of another kind
    return not recurrent and plain_greedy(model)


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
