"""An embedded default: one small base model, three experts fine-tuned from it, and the tasks that tell them apart.

The four checkpoints are real (trained by ``python -m sae_moo.zoo.train``), in Llama layout, bfloat16, each with its
tokenizer, and load offline. Importing this package reads nothing and needs neither torch nor transformers.
"""

from __future__ import annotations

from pathlib import Path

from sae_moo.zoo.items import KINDS, TASKS, held_out

__all__ = ["KINDS", "MODELS", "TASKS", "checkpoint", "held_out"]

MODELS = ("base", "math", "lingua", "logic")
"""The base, then its experts in the order of `TASKS`: each is best at one task."""


def checkpoint(name: str) -> Path:
    """Say where one of the zoo's checkpoints lies.

    Args:
        name: One of `MODELS`.

    Returns:
        A Hugging Face model folder: config, weights and tokenizer.

    Raises:
        ValueError: There is no such model.
    """
    if name not in MODELS:
        raise ValueError(f"unknown zoo model {name!r}; expected one of {', '.join(MODELS)}")
    return Path(__file__).parent / "checkpoints" / name
