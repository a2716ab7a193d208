"""What a ``config.json`` says of models whose blocks are narrower: fewer neurons in MLPs, fewer attention heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sae_moo.experts.layout import text_config

NAMES_HEAD_SIZE = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3")
"""Model types whose ``config.json`` can hold fewer heads of the same size (``head_dim``)."""


def narrower(config: Mapping[str, Any], scope: str, units: int, left: int) -> dict[str, Any] | None:
    """Return the settings of a text model whose blocks have fewer units, all as many.

    Args:
        config: the content of the ``config.json``.
        scope: ``neurons`` or ``heads``.
        units: how many units each block has: neurons, or key/value groups of heads.
        left: how many of them are left, at least 1.

    Returns:
        What changes in the text model's settings; None where they cannot say it.
    """
    settings = text_config(config)
    kind = settings.get("model_type")
    if scope == "neurons":
        return {"n_inner" if kind == "gpt2" else "intermediate_size": left}
    if kind not in NAMES_HEAD_SIZE:
        return None
    heads = int(settings["num_attention_heads"])
    size = settings.get("head_dim") or int(settings["hidden_size"]) // heads
    return {"num_attention_heads": left * (heads // units), "num_key_value_heads": left, "head_dim": size}


def padded(config: Mapping[str, Any]) -> bool:  # noqa: ARG001  # no architecture here has a width for each block
    """Say whether the structured export gives all blocks the width of the widest, as one number stands for all."""
    return True
