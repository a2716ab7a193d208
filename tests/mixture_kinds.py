"""Tiny mixtures of experts, one of every architecture whose experts can be removed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sae_moo.experts.pool import ExpertPool

EXPERTS = 6
SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CHOSEN = {"num_experts_per_tok": 2}
THIN = {**CHOSEN, "moe_intermediate_size": 8}
SHARED = {**THIN, "shared_expert_intermediate_size": 8}
FULL = {"layer_types": ["full_attention"] * 3}
ROUTED = {**THIN, "n_routed_experts": 6, "n_shared_experts": 1, "n_group": 1, "topk_group": 1}
LATENT = {
    "num_key_value_heads": 2,
    "q_lora_rank": None,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}
DENSE_FIRST = {**ROUTED, "first_k_dense_replace": 1}
# model type -> its settings, and the blocks that hold a mixture
KINDS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "mixtral": ({**CHOSEN, "num_local_experts": 6}, (0, 1, 2)),
    "qwen2_moe": ({**SHARED, "num_experts": 6, "mlp_only_layers": [1]}, (0, 2)),
    "qwen3_moe": ({**THIN, "num_experts": 6, "decoder_sparse_step": 2}, (1,)),
    "qwen3_next": ({**SHARED, **FULL, "num_experts": 6}, (0, 1, 2)),
    "olmoe": ({**CHOSEN, "num_experts": 6}, (0, 1, 2)),
    "flex_olmo": ({**CHOSEN, "num_experts": 6}, (0, 1, 2)),
    "gpt_oss": ({**CHOSEN, "num_local_experts": 6}, (0, 1, 2)),
    "granitemoe": ({**CHOSEN, "num_local_experts": 6}, (0, 1, 2)),
    "granitemoeshared": ({**CHOSEN, "num_local_experts": 6, "shared_intermediate_size": 8}, (0, 1, 2)),
    "deepseek_v2": ({**DENSE_FIRST, **LATENT}, (1, 2)),
    "deepseek_v3": ({**DENSE_FIRST, **LATENT}, (1, 2)),
    "glm4_moe": (DENSE_FIRST, (1, 2)),
    "dots1": (DENSE_FIRST, (1, 2)),
    "solar_open": (ROUTED, (0, 1, 2)),
    "ernie4_5_moe": (
        {
            "moe_num_experts": 6,
            "moe_k": 2,
            "moe_intermediate_size": 8,
            "moe_layer_start_index": 1,
            "moe_layer_end_index": 2,
        },
        (1, 2),
    ),
    "minimax_m2": ({**CHOSEN, "num_local_experts": 6, "rotary_dim": 8}, (0, 1, 2)),
    "phimoe": ({**CHOSEN, "num_local_experts": 6}, (0, 1, 2)),
    "hunyuan_v1_moe": ({"num_experts": 6, "moe_topk": 2}, (0, 1, 2)),
    "lfm2_moe": ({**THIN, **FULL, "num_experts": 6, "num_dense_layers": 1}, (1, 2)),
}


def opened(root: Path, kind: str) -> ExpertPool:
    """Return a pool of a base and the expert ``math``, of random weights; correction biases are below any score."""
    import transformers

    settings, _ = KINDS[kind]
    for seed, name in enumerate(("base", "math")):
        torch.manual_seed(seed)
        config = transformers.AutoConfig.for_model(kind, **{**SMALL, **settings})
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for which, weight in model.named_parameters():
                weight.copy_(torch.randn_like(weight) * 0.3 + ("norm" in which))
            for which, buffer in model.named_buffers():
                if "bias" in which:
                    buffer.copy_(torch.randn_like(buffer) * 0.5 - 1.5)
        model.save_pretrained(root / name)
    return ExpertPool.open(str(root / "base"), {"math": str(root / "math")})
