"""Small bases, and adapters of them: written by hand, or by peft."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from sae_moo.errors import InputError
from sae_moo.experts.live import load_model
from sae_moo.experts.pool import ExpertPool

Q = "model.layers.0.self_attn.q_proj"


SETTINGS = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["q_proj"], "bias": "none"}


def model_of(kind: str):
    from transformers import (
        AutoModelForCausalLM,
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        GPT2Config,
        GPTNeoXConfig,
        GptOssConfig,
        LlamaConfig,
        MixtralConfig,
    )

    small = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    small |= {"bos_token_id": 1, "eos_token_id": 2, "intermediate_size": 24}
    stacked = {"num_local_experts": 3, "num_experts_per_tok": 2, "num_key_value_heads": 1}
    if kind == "gemma3":
        text = small | {"num_key_value_heads": 1, "head_dim": 8}
        vision = small | {"image_size": 8, "patch_size": 4}
        places = {"mm_tokens_per_image": 4, "image_token_index": 47, "boi_token_index": 48, "eoi_token_index": 49}
        torch.manual_seed(3)
        return Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, **places))
    config = {
        "mixtral": lambda: MixtralConfig(**small, **stacked),
        "gpt-oss": lambda: GptOssConfig(**(small | {"intermediate_size": 16}), **stacked, head_dim=8),
        "biased": lambda: LlamaConfig(
            **small, num_key_value_heads=1, attention_bias=True, mlp_bias=True, tie_word_embeddings=False
        ),
        "untied": lambda: LlamaConfig(**small, num_key_value_heads=1, tie_word_embeddings=False),
        "tied": lambda: LlamaConfig(**small, num_key_value_heads=1, tie_word_embeddings=True),
        "gpt-neox": lambda: GPTNeoXConfig(**small),
        "gpt2": lambda: GPT2Config(
            vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=2
        ),
    }[kind]()
    torch.manual_seed(3)
    return AutoModelForCausalLM.from_config(config)


def factors(module: str = Q, outputs: int = 16, inputs: int = 16, rank: int = 2, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{module}.lora_A.weight": torch.randn(rank, inputs, generator=generator),
        f"{module}.lora_B.weight": torch.randn(outputs, rank, generator=generator),
    }


def pool_of(base: Path, folder: Path) -> ExpertPool:
    return ExpertPool.open(str(base), {"lora": str(folder)})


def refused(base: Path, folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        pool_of(base, folder)
    return str(caught.value)


def by_peft(base: Path, folder: Path, dtype: torch.dtype, settings, config="LoraConfig", vocabulary=None):
    """Write a random adapter with peft, and return what peft merges."""
    peft = pytest.importorskip("peft", reason="peft is not installed: its merges are not compared with ours")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(5)
        loaded = [load_model(base, dtype, "cpu") for _ in range(2)]
        for each in loaded:
            if vocabulary is not None:
                each.resize_token_embeddings(vocabulary)
        model = peft.get_peft_model(loaded[0], getattr(peft, config)(**settings, task_type="CAUSAL_LM"))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and "magnitude" not in name:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
                elif parameter.requires_grad:
                    parameter.mul_(1 + torch.rand_like(parameter) * 0.2)
        model.save_pretrained(folder)
        return peft.PeftModel.from_pretrained(loaded[1], folder).merge_and_unload()
