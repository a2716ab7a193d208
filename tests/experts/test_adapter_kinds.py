"""Adapters of other kinds than LoRA: what peft merges, and what does not fit refused by name."""

from __future__ import annotations

import json

import pytest
import torch
from adapted_models import Q, by_peft, pool_of, refused

from sae_moo.materialization.into_model import materialize
from sae_moo.recipe import Expert

KIN = {
    "ia3": ("biased", "IA3Config", {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    "ia3 on gpt2": (
        "gpt2",
        "IA3Config",
        {"target_modules": ["c_attn", "mlp.c_proj"], "feedforward_modules": ["mlp.c_proj"], "fan_in_fan_out": True},
    ),
    "loha": ("untied", "LoHaConfig", {"r": 3, "alpha": 5, "target_modules": ["q_proj"], "rank_pattern": {"q_proj": 2}}),
    "lokr": ("untied", "LoKrConfig", {"r": 2, "alpha": 5, "target_modules": ["q_proj", "up_proj"]}),
    "lokr, both": ("untied", "LoKrConfig", {"r": 1, "target_modules": ["up_proj"], "decompose_both": True}),
    "adalora": (
        "biased",
        "AdaLoraConfig",
        {"init_r": 3, "lora_alpha": 5, "total_step": 9, "target_modules": ["q_proj"], "bias": "all"},
    ),
    "vera": ("untied", "VeraConfig", {"r": 3, "target_modules": ["k_proj", "up_proj"]}),
    "vera on gpt2": ("gpt2", "VeraConfig", {"r": 3, "target_modules": ["c_attn"], "fan_in_fan_out": True}),
    "norms": ("untied", "LNTuningConfig", {"target_modules": ["input_layernorm", "norm"]}),
    "tokens": ("untied", "TrainableTokensConfig", {"token_indices": [7, 4], "target_modules": ["lm_head"]}),
}


@pytest.mark.parametrize("case", KIN)
def test_kinds_beside_lora_are_what_peft_merges(case, bases, tmp_path):
    kind, config, settings = KIN[case]
    merged = by_peft(bases(kind), tmp_path, torch.float32, settings, config).state_dict()
    pool = pool_of(bases(kind), tmp_path)
    model = pool.live_model()
    materialize(Expert("lora"), pool, model)
    assert not all(pool.shares_base("lora", info.name) for info in pool.tensors)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, merged[name], rtol=1e-6, atol=1e-7)


def test_a_module_that_adalora_allocated_no_rank_stays_as_the_base_has_it(bases, adapter):
    parts = {"lora_A": (0, 16), "lora_B": (16, 0), "lora_E": (0, 1)}
    folder = adapter({f"{Q}.{part}": torch.ones(shape) for part, shape in parts.items()})
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "ADALORA", "rank_pattern": {Q: [False] * 3}}))
    pool = pool_of(bases("untied"), folder)
    assert torch.equal(pool.load("lora", f"{Q}.weight"), pool.load("base", f"{Q}.weight"))


def test_vera_without_the_matrices_that_it_shares_is_refused(bases, tmp_path):
    settings = {"r": 3, "target_modules": ["k_proj"], "save_projection": False}
    by_peft(bases("untied"), tmp_path, torch.float32, settings, "VeraConfig")
    text = refused(bases("untied"), tmp_path)
    assert (
        "expected base_model.vera_A and vera_B in the same file (save_projection), over all inputs and outputs" in text
    )


@pytest.mark.parametrize(
    ("kind", "tensors", "message"),
    [
        ("IA3", {"ia3_l": (17, 1)}, "expected a vector of shape (16, 1) or (1, 16); there are ia3_l (17, 1)"),
        ("LOHA", {"hada_w1_a": (16, 2), "hada_w1_b": (2, 16)}, "hada_w1_a, w1_b, w2_a and w2_b with products of shape"),
        (
            "LOKR",
            {"lokr_w1": (4, 4), "lokr_w2_a": (4, 2), "lokr_w2_b": (2, 5)},
            "a Kronecker product of shape (16, 16)",
        ),
        ("LOKR", {"lokr_w1": (4, 4), "lokr_w2": (4, 4), "lokr_w2_a": (4, 2)}, "a Kronecker product of shape (16, 16)"),
        (
            "ADALORA",
            {"lora_A": (3, 16), "lora_B": (16, 3), "lora_E": (2, 1)},
            "lora_A, lora_B and lora_E with a product",
        ),
        (
            "ADALORA",
            {"lora_A": (3, 16), "lora_B": (16, 3)},
            "lora_A, lora_B and lora_E with a product of shape (16, 16)",
        ),
    ],
)
def test_tensors_of_other_kinds_that_do_not_fit_are_refused_by_name(kind, tensors, message, bases, adapter):
    folder = adapter({f"{Q}.{part}": torch.ones(shape) for part, shape in tensors.items()})
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": kind}))
    assert message in refused(bases("untied"), folder)
