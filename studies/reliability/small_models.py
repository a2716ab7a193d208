"""Tiny random models of every architecture that transformers knows as a causal LM, made from its own default settings.

A setting is made small by its name: what counts features, heads, layers or experts means the same in most of them.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

VOCABULARY = 512  # of the zoo's tokenizer
LAYERS = 4
POSITIONS = 256
MOST_PARAMETERS = 6_000_000

# Names of settings, whole, and how large they are in a tiny model; the first that fits counts.
SIZES: tuple[tuple[str, int], ...] = (
    (r"(decoder_)?vocab_size(_per_layer_input)?|unpadded_vocab_size", VOCABULARY),
    (r"max_position_embeddings|n_positions|n_ctx|max_seq_len|model_max_length|context_length", POSITIONS),
    (r"max_(source|target)_positions|max_sequence_length", POSITIONS),
    (r"num_hidden_layers|n_layers?|num_layers|num_blocks|(num_)?(encoder|decoder)_layers", LAYERS),
    (r"depth|num_layers_per_stack|n_(input|output|recurrent)_layers", 2),
    (r"hidden_size_per_layer_input", 16),
    (r"hidden_size|d_model|n_embd|emb_dim|embedding_dim|embedding_size|word_embed_proj_dim|lru_width", 64),
    (r"(backbone|attention|router|decoder|input_embedding|output_embedding)_(hidden_)?size", 64),
    (r"output_hidden_size|out_hidden_size|projection_dim|vision_output_dim|hidden_dim", 64),
    (r"attention_hidden_size", 128),
    (r"(num|swa_num|global_num|cross)_?(attention)?_?(key_value|kv|query)_(heads|groups)|num_kv_heads", 2),
    (r".*attention_heads(_per_layer)?|n_heads?|num_heads|attention_heads", 4),
    (r"(linear_num|linear)_key_heads|linear_num_key_heads", 2),
    (r"linear_num_(value_)?heads", 4),
    (r"head_dim|swa_head_dim|global_head_dim|d_head|dim_head|attention_head_size|kv_channels|v_head_dim", 16),
    (r"linear_(key_|value_)?head_dim|index_head_dim|qk_nope_head_dim|attention_head_dim", 16),
    (r"qk_rope_head_dim|rotary_dim", 8),
    (r"qk_head_dim", 24),
    (r"kv_lora_rank|q_lora_rank|o_lora_rank|.*_rank|mamba_dt_rank|time_step_rank", 16),
    (r"index_n_heads", 2),
    (r"index_topk|keep_window_size", POSITIONS),
    (r"(.*_)?intermediate_size(_mlp)?|.*ffn_dim|.*ffn_hidden_size|dim_ff|dff|d_inner|feed_forward_size|n_inner", 64),
    (r"num_experts|n_routed_experts|num_local_experts|moe_num_experts|n_experts", 4),
    (r"num_experts_per_(tok|token)|moe_k|moe_topk|moe_top_k|top_k_experts", 2),
    (r"zero_expert_num", 2),
    (r"n_group|num_expert_group|topk_group", 1),
    (r"mamba_n_heads|mamba_num_heads", 8),
    (r"mamba_d_head|mamba_head_dim|mamba_headdim", 16),
    (r"mamba_d_ssm", 128),
    (r"(mamba_d_|ssm_|mamba_)?state(_size)?", 8),
    (r"n_groups|mamba_n_groups|mamba_ngroups", 1),
    (r"(mamba_)?chunk_size|lsh_attn_chunk_length|local_attn_chunk_length|block_size", 16),
    (r"sliding_window(_size)?|attention_window_size|window_size|local_attention|local_attention_window_len", 24),
    (r"attention_chunk_size", 32),
    (r"floor_scale|log_scaling_n_floor", 16),
    (r"query_pre_attn_scalar", 16),
    (r"num_kv_shared_layers", 1),
    (r"block_multiple_of|num_buckets|position_bias_num_buckets|rel_extent", 16),
    (r"relative_max_distance|position_bias_max_distance", 64),
    (r"pronunciation_vocab_size|shape_vocab_size|type_vocab_size", 8),
    (r"pronunciation_embed_dim|shape_embed_dim|ple_embed_dim", 16),
    (r"encoder_hash_byte_group_vocab|ngram_vocab_size_base", 64),
    (r"split_ngram_parts|make_ngram_vocab_size_divisible_by", 8),
    (r"image_size", 32),
    (r"patch_size", 16),
    (r"num_codebooks", 2),
    (r"dim_model_base", 16),
    (r"rescale_every", 2),
    (r"prompt_length", 4),
)
TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0, "sep_token_id": 1, "cls_token_id": 0}

MIXED = ["conv", "full_attention", "conv", "full_attention"]
RECURRENT = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
WIDE = {"attention_hidden_size": 128, "attention_head_dim": 32}
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
INDEXER = {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 16}
# What a name cannot tell: settings of one architecture that must fit each other, or that mix its kinds of layers.
APART: Mapping[str, Mapping[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {"sliding_attention": ROPE, "full_attention": ROPE},
    },
    "dbrx": {"attn_config": {"rope_theta": 10_000.0, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "dory": {"num_hidden_layers": 6, "layer_types": ["full_attention"] * 6},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "num_experts_per_tok": 2},
    "dots3_note_text": {"num_key_value_heads": 4, "swa_head_dim": 24},
    "falcon_h1": {"mamba_d_head": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": RECURRENT, "num_local_experts": 4, "num_experts_per_tok": 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 0},
    "lfm2": {"layer_types": MIXED},
    "lfm2_moe": {"layer_types": MIXED},
    "mamba2": {"num_heads": 8},
    "minimax": {"layer_types": RECURRENT},
    "qwen4_exp_text": {"indexer_compress_ratio": 4, **INDEXER},
    "reformer": {
        "vocab_size": VOCABULARY,
        "axial_pos_shape": [16, 16],
        "axial_pos_embds_dim": [32, 32],
        "attn_layers": ["local", "lsh"] * 2,
    },
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "num_key_value_heads": 4, **WIDE},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "num_key_value_heads": 4, **WIDE},
    "xmod": {"default_language": "en_XX"},
}


def small_settings(kind: str, described: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a configuration that a tiny model has otherwise, of those that it describes."""
    depth = next((described[name] for name in ("num_hidden_layers", "n_layer") if described.get(name)), None)
    small: dict[str, Any] = {}
    for name, value in described.items():
        if name in TOKENS:
            small[name] = TOKENS[name]
        elif type(value) is int and name.endswith(("_token_id", "_token_index")):
            small[name] = VOCABULARY - 1
        elif type(value) is int and value > 1:
            size = _size(name)
            if size is not None:
                small[name] = min(value, size)
        elif value is None and name in ("head_dim", "num_key_value_heads"):
            small[name] = _size(name)
        elif name == "per_layer_config":
            small[name] = None
        elif isinstance(value, (list, tuple)) and depth and len(value) == depth:
            small[name] = _spread(value)
        elif isinstance(value, dict) and "model_type" in value and name.endswith(("config", "encoder", "decoder")):
            small[name] = {**value, **small_settings(value["model_type"], value)}
    if "qk_rope_head_dim" in described:  # keys and values are compressed together, for every head
        small |= {"head_dim": _size("qk_rope_head_dim"), "num_key_value_heads": _size("num_attention_heads")}
        small = {name: value for name, value in small.items() if name in described}
    return small | dict(APART.get(kind, {}))


def _size(name: str) -> int | None:
    return next((size for names, size in SIZES if re.fullmatch(names, name)), None)


def _spread(values: list[Any]) -> list[Any]:
    """Return as many values as there are layers: one of each kind first, in their order."""
    kinds = [value for i, value in enumerate(values) if value not in values[:i]]
    chosen = [*kinds, *[value for value in values if value in kinds]][:LAYERS]
    return [_size("num_attention_heads") if type(v) is int and v > 8 else v for v in chosen]


def small_config(kind: str) -> Any:
    """Return a tiny configuration of an architecture.

    Raises:
        Exception: whatever transformers raises where settings do not fit each other.
    """
    from transformers import CONFIG_MAPPING

    described = CONFIG_MAPPING[kind]().to_dict()
    settings = small_settings(kind, described)
    if "is_decoder" in described and not described.get("is_encoder_decoder"):
        settings["is_decoder"] = True
    return CONFIG_MAPPING[kind](**settings)


def small_model(kind: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """Return a tiny model whose weights are random, with logits as far apart as a trained model's.

    Raises:
        ValueError: if it would be too large.
    """
    from transformers import AutoModelForCausalLM

    config = small_config(kind)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"{size:,} parameters")
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.04)
    head = model.get_output_embeddings()
    if head is not None:
        with contextlib.suppress(AttributeError):
            head.weight.mul_(3)
    for name in ("forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens"):
        setattr(model.generation_config, name, None)  # greedy decoding as it is without orders
    return model.to(dtype)


def kinds() -> Iterator[str]:
    """Yield the names of all architectures that transformers builds as a causal LM."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    yield from sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
