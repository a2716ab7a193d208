"""How checkpoints name and lay out what they hold: dtypes, tensors, blocks, settings; the bytes of a tensor."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sae_moo.recipe import groups

STORED_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""The name that safetensors has for a dtype -> the dtype: those that weights may have."""
KEPT_DTYPES = {
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The same for whole numbers and truth values: counters, tables, masks. Nothing is merged of them."""
HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")
"""What the head is called, unless it is tied to the embeddings."""
TOKEN_EMBEDDINGS = re.compile(r"(^|\.)(embed_tokens|wte|embed_in|tok_embeddings|word_embeddings)\.weight$")
BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
"""What the names of a block's tensors hold: `layers.3.` (Llama, Mistral, Qwen, Gemma, Phi, NeoX), `h.3.` (GPT-2)."""
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|embed_in|embed_positions|wte|wpe|tok_embeddings|word_embeddings)\.")
_CONV1D = ("gpt2", "openai-gpt")


def dtype_of(name: str) -> torch.dtype:
    """Return a dtype by the name that recipes and configurations have for it, ``float32`` and so on."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def stored_name(dtype: torch.dtype) -> str:
    """Return the name that safetensors has for a dtype, torch's own where tensors of a model cannot have it."""
    return next((short for short, each in (STORED_DTYPES | KEPT_DTYPES).items() if each == dtype), str(dtype))


def is_head(name: str) -> bool:
    """Say whether a tensor is a head by its name; in a multimodal model that may begin with the text model's."""
    return name in HEADS or (name.endswith(f".{HEADS[0]}") and not BLOCK.search(name))


def group_name(tensor: str) -> str:
    """Return the group of a tensor by its name: ``embeddings``, ``block.N`` or ``head`` (final norm and head)."""
    block = BLOCK.search(tensor)
    if block:
        return groups.block(int(block.group(1)))
    return groups.EMBEDDINGS if _EMBEDDING.search(tensor) else groups.HEAD


def has_a_row_per_token(name: str) -> bool:
    """Say whether a tensor has a row (or a number) for every token: embeddings, head, the head's bias."""
    return bool(TOKEN_EMBEDDINGS.search(name)) or is_head(name) or is_head(name.replace(".bias", ".weight"))


def stored_turned(config: Mapping[str, Any]) -> bool:
    """Say whether an architecture stores the matrices of its blocks inputs x outputs (transformers' Conv1D)."""
    return config.get("model_type") in _CONV1D


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of a model's text part: those inside ``text_config`` or the like, else all of them."""
    for key in ("thinker_config", "text_config", "llm_config", "language_config"):
        inner = config.get(key)
        if isinstance(inner, Mapping) and inner:
            return text_config(inner)
    return config


def longest_input(config: Mapping[str, Any]) -> int | None:
    """Return how many tokens a model takes, by its ``config.json``; None if that does not say."""
    config = text_config(config)
    longest = config.get("max_position_embeddings", config.get("n_positions"))  # GPT-2's name for it
    return longest if isinstance(longest, int) else None


def raw(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor on the CPU, without a copy."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def content_digest(tensor: Tensor) -> str:
    """Return the hexadecimal SHA-256 of the bytes of a contiguous tensor on the CPU."""
    return hashlib.sha256(raw(tensor)).hexdigest()
