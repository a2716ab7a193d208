"""Architectures that the zoo's trainer knows, each by its configuration; the embedded checkpoints are the first.

All have four blocks of width 160 and about 1.1M parameters. They differ where merging and pruning could tell them
apart: gated and plain MLPs, biases, fused query-key-value matrices, matrices stored inputs x outputs (GPT-2), learned
and rotary positions, shared key/value heads (Qwen2), an untied head (GPT-NeoX), windows of attention (Gemma 2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sae_moo.zoo.tokenizer import END_ID, PAD_ID, VOCABULARY

EMBEDDED = "llama"
"""The architecture of the checkpoints that are shipped."""

# Of the order 1 / sqrt(width): at the usual 0.02 so short a training does not get off the ground.
_INITIALIZER_RANGE = 0.06
_TOKENS: Mapping[str, Any] = {"bos_token_id": None, "eos_token_id": END_ID, "pad_token_id": PAD_ID}
# Older and newer transformers read the angle base and the dtype under different names.
_ROPE_THETA = 1000.0
_DTYPE: Mapping[str, Any] = {"dtype": "bfloat16", "torch_dtype": "bfloat16"}

_LLAMA: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 160,
    "intermediate_size": 320,
    "num_hidden_layers": 4,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "initializer_range": _INITIALIZER_RANGE,
    "tie_word_embeddings": True,
    **_TOKENS,
    "rope_theta": _ROPE_THETA,
    "rope_parameters": {"rope_type": "default", "rope_theta": _ROPE_THETA},
    **_DTYPE,
}
_QWEN2: Mapping[str, Any] = {
    **_LLAMA,
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 40,
}
_GEMMA2: Mapping[str, Any] = {
    **_LLAMA,
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "query_pre_attn_scalar": 32,
    "sliding_window": 8,  # shorter than most items, so that every other block does not see all of them
    "attn_logit_softcapping": None,  # only eager attention would apply it
    "final_logit_softcapping": None,  # the trainer asks the head for logits, not the whole model
}
_GPT2: Mapping[str, Any] = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "vocab_size": VOCABULARY,
    "n_positions": 256,
    "n_embd": 160,
    "n_layer": 4,
    "n_head": 5,
    "n_inner": 480,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "initializer_range": _INITIALIZER_RANGE,
    "tie_word_embeddings": True,
    **_TOKENS,
    **_DTYPE,
}
_GPT_NEOX: Mapping[str, Any] = {
    "architectures": ["GPTNeoXForCausalLM"],
    "model_type": "gpt_neox",
    "vocab_size": VOCABULARY,
    "hidden_size": 160,
    "intermediate_size": 480,
    "num_hidden_layers": 4,
    "num_attention_heads": 5,
    "max_position_embeddings": 256,
    "initializer_range": _INITIALIZER_RANGE,
    "tie_word_embeddings": False,
    **_TOKENS,
    "rope_parameters": {"rope_type": "default", "rope_theta": _ROPE_THETA, "partial_rotary_factor": 0.5},
    **_DTYPE,
}

ARCHITECTURES: Mapping[str, Mapping[str, Any]] = {
    EMBEDDED: _LLAMA,
    "qwen2": _QWEN2,
    "gpt2": _GPT2,
    "gpt_neox": _GPT_NEOX,
    "gemma2": _GEMMA2,
}
"""Name, as in ``model_type`` -> ``config.json``, its keys in the order written."""
