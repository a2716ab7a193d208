"""Traces: what one forward pass of a model over probes leaves, kept on disk and mapped from there.

After every token: which token is the likeliest next, how sure the model is (entropy), and how likely it finds the token
that follows. After as many of them as `TRACE_BYTES` allows, drawn and the same for every model: the distribution of the
next token over the whole vocabulary, and the hidden state after each block. Of a few short beginnings of texts
(`ATTENDED` tokens), the attention patterns.

Attention patterns are nothing that fast kernels hold: under SDPA, transformers' models return none for
``output_attentions``. They are taken in a short pass of its own with eager attention; everything else comes of the one
pass with the attention that a search scores with. Models without attention (Mamba), and those that do not give theirs,
have none in their traces; of hybrids, the layers that have it.

In memory there are the model, the logits of a pass (at most `screening.PASS_BYTES` in float32, or those of
`probes.SHORTEST` tokens), a part of them in float32 (`PART_BYTES`, a few times), and the trace.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae_moo.errors import InputError, TaskError
from sae_moo.evaluate.expert_scores import computed_by
from sae_moo.evaluate.probes import WHERE, Probes
from sae_moo.evaluate.screening import Texts
from sae_moo.experts.layout import content_digest
from sae_moo.experts.pool import ExpertPool
from sae_moo.files import user_cache
from sae_moo.materialization.into_model import materialize
from sae_moo.recipe import BASE, Cast, Expert

log = logging.getLogger(__name__)

KIND = "traces"
TRACE_BYTES = 1 << 27
"""What the traces of a model over all tasks take, at most, beside three numbers after each token."""
PART_BYTES = 1 << 26
"""Log probabilities that are computed at a time, in float32."""
ATTENDED = 768
"""Tokens whose attention patterns are taken, of each task; fewer where they would take a quarter of the trace."""
BEGINNING = 64
"""Longest beginning of a text whose attention patterns are taken."""
_METHOD = 1  # raised when the same model and texts would leave another trace

Trace = Mapping[str, Tensor]
"""What is left, by name:

* ``argmax``: int32, shape (tokens,), the texts one after another as `Texts` lays them out.
* ``entropy``: float32, nats, shape (tokens,).
* ``log_likelihood``: float32, natural log probabilities of the tokens that follow, shape (tokens - texts,).
* ``log_probabilities``: float32, or float16 where that does not fit, shape (places, vocabulary).
* ``hidden``: float32, or bfloat16 likewise, shape (layers, places, width); nothing of the embeddings.
* ``attention.N``: float16, of the N-th batch of beginnings; shape (layers, texts, heads, length, length).
"""


@dataclass(frozen=True, slots=True)
class Extent:
    """How large what a model computes is.

    Args:
        vocabulary: numbers in a distribution.
        layers: of which there are hidden states; 0 where the model gives none.
        width: of a hidden state.
        heads: of all attention layers together; 0 where the model gives no patterns.
    """

    vocabulary: int
    layers: int
    width: int
    heads: int

    @classmethod
    def of(cls, model: Any) -> Extent:
        """Ask a model, with a text of two tokens."""
        device = model.get_input_embeddings().weight.device
        with torch.inference_mode():
            given = _read(model, torch.zeros(1, 2, dtype=torch.int64, device=device))
            layers = _layers(given)
            (patterns,) = _patterns(model, [torch.zeros(1, 2, dtype=torch.int64, device=device)])
        width = layers[0].shape[-1] if layers else 0
        return cls(given.logits.shape[-1], len(layers), width, sum(each.shape[1] for each in patterns))


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of a pass is left.

    Args:
        places: after how many tokens the distribution and hidden states are kept.
        whole: whether these are float32.
        attended: tokens whose attention patterns are kept; 0: none.
        nbytes: what the trace takes.
    """

    places: int
    whole: bool
    attended: int
    nbytes: int

    @classmethod
    def of(cls, extent: Extent, probes: Probes, most: int) -> Plan:
        """Plan a trace of at most so many bytes, or of a single place."""
        row = 2 * BEGINNING * extent.heads
        attended = min(ATTENDED, probes.tokens, most // (4 * row)) if row else 0
        attended = attended if attended >= BEGINNING or attended == probes.tokens else 0
        left = most - attended * row
        place = 2 * (extent.vocabulary + extent.layers * extent.width)
        whole = 2 * place * probes.tokens <= left
        places = min(probes.tokens, max(1, left // place))
        return cls(places, whole, attended, places * place * (2 if whole else 1) + attended * row + 12 * probes.tokens)

    def chosen(self, tokens: int) -> Tensor:
        """Return which of so many places are kept, ascending, int64: drawn, always the same.

        Every n-th one would be the same word of every text where texts are made by a template.
        """
        drawn = torch.randperm(tokens, generator=torch.Generator().manual_seed(tokens))[: self.places]
        return drawn.sort().values


class Traces:
    """The traces of a pool's models over probes: read from the user's cache folder, else made, each model once.

    Args:
        pool: the experts.
        probes: what is read, of each task.
        dtype: of the live model.
        device: where it lives.

    Attributes:
        tokens: how many tokens models have read in all so far.
    """

    def __init__(self, pool: ExpertPool, probes: Sequence[Probes], dtype: str, device: str) -> None:
        self._pool = pool
        self._probes = {each.task: each for each in probes}
        self._dtype = dtype
        self._device = device
        self._most = TRACE_BYTES // max(1, len(probes))
        self._facts = [
            _METHOD,
            pool.fingerprints[BASE],
            pool.vocabulary,
            pool.checkpoints[BASE].config,
            pool.rounding(dtype),
            self._most,
            *computed_by(device),
        ]
        self._digests = {each.task: each.digest for each in probes}
        self._held: dict[str, Trace] = {}
        self.tokens = 0

    def name(self, model: str, task: str) -> str:
        """Return what a trace is found by: everything it depends on, all of it content and no place or time."""
        facts = [self._pool.fingerprints[model], self._digests[task], *self._facts]
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()

    def of(self, models: Sequence[str], task: str) -> dict[str, Trace]:
        """Return the traces of models over a task's probes, by name.

        Raises:
            InputError: if those were not made, or of another vocabulary; or naming a model whose logits are not finite.
        """
        return {model: self._held[self.name(model, task)] for model in models}

    def make(self, wanted: Mapping[str, Sequence[str]]) -> None:
        """Have the traces of models at hand.

        One live model is built if any has to be made, written into and read by each of them.

        Args:
            wanted: task -> models.

        Raises:
            InputError: if the probes hold tokens that the models do not know, or naming a model whose logits are not
                finite.
        """
        missing: dict[str, list[str]] = {}
        for task, models in wanted.items():
            for model in models:
                name = self.name(model, task)
                if name not in self._held:
                    found = kept_trace(name)
                    if found is None:
                        missing.setdefault(model, []).append(task)
                    else:
                        self._held[name] = found
        if missing:
            self._make(missing)

    def _make(self, missing: Mapping[str, Sequence[str]]) -> None:
        live = self._pool.live_model(self._dtype, self._device)
        known = int(live.get_input_embeddings().weight.shape[0])
        for probes in self._probes.values():
            highest = max(map(max, probes.sequences))
            if highest >= known:
                raise InputError(f"{WHERE}: expected token ids below {known}, got {highest}")
        extent = Extent.of(live)
        plans = {task: Plan.of(extent, probes, self._most) for task, probes in self._probes.items()}
        size = sum(plans[task].nbytes for tasks in missing.values() for task in tasks)
        log.info("probes: traces of %d models take %.1f MiB in %s", len(missing), size / 2**20, user_cache.folder(KIND))
        for model, tasks in missing.items():
            materialize(Cast(Expert(model), self._pool.rounding(self._dtype)), self._pool, live, hold=False)
            for task in tasks:
                probes, name = self._probes[task], self.name(model, task)
                try:
                    trace = traced(live, probes, plans[task])
                except TaskError as error:
                    raise InputError(f"{WHERE}: {model}: {error} on the probes of {task}") from error
                self.tokens += probes.tokens + plans[task].attended
                keep_trace(name, trace)
                mapped = kept_trace(name)
                self._held[name] = trace if mapped is None else mapped


@torch.inference_mode()
def traced(model: Any, probes: Probes, plan: Plan) -> dict[str, Tensor]:
    """Return the trace of a model; see `Trace`.

    Args:
        model: a transformers causal LM.
        probes: what it reads.
        plan: how much is left.

    Raises:
        TaskError: if logits are not finite; minus infinity is how a model rules tokens out.
    """
    embeddings = model.get_input_embeddings().weight
    texts = Texts.of(probes.sequences, int(embeddings.shape[0]), embeddings.device)
    kept = {"log_probabilities": torch.float32 if plan.whole else torch.float16}
    kept["hidden"] = torch.float32 if plan.whole else torch.bfloat16
    parts: dict[str, list[Tensor]] = {}
    chosen, start = plan.chosen(texts.tokens).to(embeddings.device), 0
    for batch in texts.batches:
        given = _read(model, batch)
        places = chosen[(chosen >= start) & (chosen < start + batch.numel())] - start  # may be none
        for name, numbers in _of_logits(given.logits, batch, places):
            parts.setdefault(name, []).append(numbers.to(kept.get(name, numbers.dtype)).cpu())
        layers = [each.flatten(0, 1)[places] for each in _layers(given)]
        if layers:
            parts.setdefault("hidden", []).append(torch.stack(layers).to(kept["hidden"]).cpu())
        start += batch.numel()
    trace = {name: torch.cat(rows, dim=1 if name == "hidden" else 0).contiguous() for name, rows in parts.items()}
    beginnings = Texts.of(_beginnings(probes.sequences, plan.attended), texts.vocabulary, embeddings.device)
    for i, patterns in enumerate(_patterns(model, beginnings.batches)):
        if patterns:
            trace[f"attention.{i}"] = torch.stack(patterns).half().cpu()
    return trace


def _read(model: Any, batch: Tensor) -> Any:
    return model(input_ids=batch, use_cache=False, output_hidden_states=True)


def _layers(given: Any) -> list[Tensor]:
    """Return the hidden states after each block, of shape (texts, length, width).

    Nothing if the model gives none, or such as cannot be put together.
    """
    states = [each for each in (getattr(given, "hidden_states", None) or ())[1:] if isinstance(each, Tensor)]
    return states if len({each.shape for each in states}) == 1 and states[0].dim() == 3 else []


def _of_logits(logits: Tensor, batch: Tensor, places: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield what logits tell after each token of a batch, part by part: likeliest token, entropy and so on."""
    flat = logits.flatten(0, 1)
    following = torch.full_like(batch, -1)
    following[:, :-1] = batch[:, 1:]
    rows = max(1, PART_BYTES // (4 * flat.shape[1]))
    for start in range(0, len(flat), rows):
        part = flat[start : start + rows].float().log_softmax(dim=-1)
        if bool(torch.isnan(part).any()):  # of a logit that is NaN or infinite
            raise TaskError("logits are not finite")
        yield "argmax", part.argmax(dim=-1).int()
        yield "entropy", torch.special.entr(part.exp()).sum(dim=-1)
        ids = following.flatten()[start : start + rows]
        yield "log_likelihood", part[ids >= 0].gather(1, ids[ids >= 0, None])[:, 0]
        yield "log_probabilities", part[places[(places >= start) & (places < start + rows)] - start]


def _beginnings(sequences: Sequence[Sequence[int]], tokens: int) -> list[Sequence[int]]:
    """Return the beginnings of the first sequences, with so many tokens in all at most."""
    found: list[Sequence[int]] = []
    for sequence in sequences:
        found.append(sequence[: min(BEGINNING, tokens)])
        tokens -= len(found[-1])
        if tokens < 2:
            break
    return [each for each in found if len(each) > 1]


def _patterns(model: Any, batches: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the attention patterns of the layers that have them, for each batch; (texts, heads, length, length) each.

    Nothing where the model gives none, or such as cannot be put together.
    """
    with _eager(model):
        for batch in batches:
            given = model(input_ids=batch, use_cache=False, output_attentions=True)
            found = [each for each in getattr(given, "attentions", None) or () if isinstance(each, Tensor)]
            shapes = {each.shape for each in found}
            texts, length = batch.shape
            fits = len(shapes) == 1 and all((*shape[:1], *shape[2:]) == (texts, length, length) for shape in shapes)
            yield found if fits else []


@contextmanager
def _eager(model: Any) -> Iterator[None]:
    """While entered, have a model compute its attention so that the patterns can be had, where it can."""
    before = model.config._attn_implementation
    change = before != "eager" and model._can_set_attn_implementation()
    if change:
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        if change:
            model.set_attn_implementation(before)


def kept_trace(name: str) -> Trace | None:
    """Return a trace that is kept, mapped; None if there is none, or its content is not what was written."""
    try:
        with safe_open(user_cache.folder(KIND) / name, framework="pt") as file:
            trace = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no mapping
            digest = (file.metadata() or {}).get("digest")
    except (OSError, SafetensorError):
        return None
    return trace if digest == _digest(trace) else None


def keep_trace(name: str, trace: Trace) -> None:
    """Keep a trace, with a digest of its content."""

    def write(path: Path) -> None:
        save_file(dict(trace), path, metadata={"digest": _digest(trace)})

    user_cache.keep(KIND, name, write)


def _digest(trace: Trace) -> str:
    facts = [[name, str(each.dtype), list(each.shape), content_digest(each)] for name, each in sorted(trace.items())]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
