"""How fast a model is beside another, measured with both in memory."""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch

from sae_moo.experts.live import load_model


def speed_up(folder: Path, dense: Path, dtype: torch.dtype, device: str, rounds: int = 25) -> float:
    """Return how many times as fast as a dense model another is: forward passes over 4 rows of 64 tokens.

    Both models are in memory and take turns, and the fastest pass of each counts: what else the machine does then
    disturbs neither.
    """
    models = [load_model(each, dtype, device) for each in (dense, folder)]
    tokens = torch.arange(256, device=device).reshape(4, 64) % int(models[0].config.vocab_size)
    best = [math.inf, math.inf]
    with torch.inference_mode():
        for _ in range(rounds):
            for i, model in enumerate(models):
                start = time.perf_counter()
                float(model(input_ids=tokens, use_cache=False).logits.flatten()[0])  # waits for a GPU too
                best[i] = min(best[i], time.perf_counter() - start)
    return best[0] / best[1]
