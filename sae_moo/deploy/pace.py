"""How many tokens a second a model reads and writes beside others, all of them in memory."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sae_moo.experts.layout import longest_input
from sae_moo.experts.live import load_model

PROMPT = 64
"""Tokens of a prompt that is read, if the model takes as many."""
WRITTEN = 16
"""Tokens that are written, one after another, from the keys and values kept of those before."""
BATCHES = (1, 16)
SECONDS = 5.0
"""For which each measurement goes on, all models together; within `ROUNDS`."""
ROUNDS = (2, 25)
"""The fewest rounds of a measurement, however long they take, and the most."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast one model is.

    Args:
        what: ``prompt``: how fast `PROMPT` tokens are read, until the first token is there; ``decode``: how fast
            `WRITTEN` tokens are written.
        batch: sequences at once.
        rate: tokens a second, of all sequences together; on the CPU a second of CPU time.
        base: those of the model it is held against.
    """

    what: str
    batch: int
    rate: float
    base: float

    @property
    def times(self) -> float:
        """How many times as fast it is."""
        return self.rate / self.base


def paces(folder: Path, base: Path, dtype: torch.dtype, device: str) -> tuple[Pace, ...]:
    """Return how fast the model of a folder is beside another's; takes about half a minute, and more for large ones.

    On the CPU by the CPU time of the process, since other work on the machine would add to any other.

    Args:
        folder: the model.
        base: the one it is held against.
        dtype: of both.
        device: where both are, in memory.
    """
    clock = time.process_time if device == "cpu" else time.perf_counter
    measured = rates([load_model(each, dtype, device) for each in (base, folder)], clock=clock)
    return tuple(Pace(what, batch, own, other) for (what, batch), (other, own) in measured.items())


def pace_words(measured: Sequence[Pace], device: str) -> str:
    """Return for people how fast a model is, a sentence without its full stop."""
    said = [
        f"{named} {' and '.join(f'{each.times:.2f} at batch {each.batch}' for each in own)}"
        for what, named in (("prompt", "reading a prompt"), ("decode", "writing"))
        if (own := [each for each in measured if each.what == what])
    ]
    unit = "tokens per second of CPU time" if device == "cpu" else "tokens per second"
    return f"{unit} over the base's on {device}, the fastest of rounds that take turns: {', '.join(said)} times as fast"


def rates(
    models: Sequence[Any], seconds: float = SECONDS, clock: Callable[[], float] = time.perf_counter
) -> Mapping[tuple[str, int], tuple[float, ...]]:
    """Return how many tokens a second each of several models reads and writes, of all sequences of a batch together.

    They take turns, and the fastest round of each counts: what else the machine does then disturbs none. Settings of
    generation are taken from the models.

    Args:
        models: causal LMs that transformers loaded, on one device.
        seconds: see `SECONDS`.
        clock: gives the time in seconds.

    Returns:
        ``prompt`` or ``decode``, and the batch -> tokens a second, in the models' order.
    """
    from transformers import GenerationConfig

    longest = min(longest_input(model.config.to_dict()) or PROMPT + 1 for model in models)
    read = min(PROMPT, longest - 1)
    written = min(WRITTEN, longest - 1)
    found = {}
    for what, given, new in (("prompt", read, 1), ("decode", 1, written)):
        for model in models:
            model.generation_config = GenerationConfig(max_new_tokens=new, do_sample=False)  # type: ignore[no-untyped-call]
        for batch in BATCHES:
            best = _fastest(models, batch, given, seconds, clock)
            found[what, batch] = tuple(batch * max(given * (what == "prompt"), new) / each for each in best)
    return found


def _fastest(models: Sequence[Any], batch: int, given: int, seconds: float, clock: Callable[[], float]) -> list[float]:
    """Return the seconds of each model's fastest round."""
    rows = min(int(model.get_input_embeddings().weight.shape[0]) for model in models)
    best = [math.inf] * len(models)
    begun, rounds = clock(), 0
    while rounds < ROUNDS[0] or (rounds < ROUNDS[1] and clock() - begun < seconds):
        for i, model in enumerate(models):
            tokens = torch.arange(batch * given, device=model.device).reshape(batch, given) % rows
            start = clock()
            model.generate(tokens, attention_mask=torch.ones_like(tokens)).cpu()  # waits for a GPU too
            best[i] = min(best[i], clock() - start)
        rounds += 1
    return best
