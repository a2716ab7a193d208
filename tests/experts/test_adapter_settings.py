"""What an adapter's settings say: understood, or refused by name."""

from __future__ import annotations

import pytest
import torch
from adapted_models import Q, factors, pool_of, refused


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"trainable_token_indices": [1, 2, 3]}, "has shape (2, 16), expected (3, 16) for 3 tokens"),
        ({"trainable_token_indices": [1, 50]}, "expected distinct tokens, each one of the 50 rows"),
        ({"trainable_token_indices": [1, 1]}, "expected distinct tokens"),
        ({"trainable_token_indices": [1, -1]}, "expected distinct tokens"),
        ({"trainable_token_indices": {"wte": [1, 2]}}, "the settings do not say which tokens"),
        ({"trainable_token_indices": "1 2"}, "the settings do not say which tokens"),
        ({}, "the settings do not say which tokens"),
    ],
)
def test_trained_tokens_that_are_not_rows_are_refused(rows, message, bases, adapter):
    name = "model.embed_tokens.token_adapter.trainable_tokens_delta"
    assert message in refused(bases("untied"), adapter({name: torch.ones(2, 16)}, **rows))


@pytest.mark.parametrize(
    ("tensors", "settings", "message"),
    [
        ({f"{Q}.lora_B.bias": torch.ones(16)}, {}, "has no bias in the base to add it to"),
        ({f"{Q}.lora_diag": torch.ones(2)}, {}, "lora_diag has no place in the base"),
        (
            {"model.norm.ln_tuning_layers.weight": torch.ones(16)},
            {},
            "ln_tuning_layers.weight has no place in the base",
        ),
        ({}, {"lora_bias": True}, "lora_bias is set, expected lora_B.bias beside it"),
        ({}, {"modules_to_save": ["lm_head"]}, "modules_to_save names lm_head, of which the file holds no tensor"),
        ({}, {"modules_to_save": "lm_head"}, "modules_to_save: expected a list of names, got 'lm_head'"),
        ({}, {"trainable_token_indices": [1]}, "name trained tokens of the embeddings, of which the file holds none"),
        (
            {},
            {"trainable_token_indices": {"lm_head": [1]}},
            "name trained tokens of lm_head, of which the file holds none",
        ),
        ({}, {"use_dora": True}, "use_dora is set, expected magnitudes"),
        ({f"{Q}.lora_magnitude_vector": torch.ones(3)}, {}, "expected one magnitude of the 16 outputs"),
    ],
)
def test_what_stands_beside_the_factors_is_understood_or_refused(tensors, settings, message, bases, adapter):
    assert message in refused(bases("untied"), adapter(factors() | tensors, **settings))


def test_modules_to_save_that_the_base_does_not_have_are_no_matter(bases, adapter):
    pool_of(bases("untied"), adapter(factors(), modules_to_save=["classifier", "score"]))  # peft adds them unasked


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"peft_type": "OFT"},
            "peft_type: expected LORA, ADALORA, IA3, LN_TUNING, LOHA, LOKR, TRAINABLE_TOKENS, VERA, got 'OFT'",
        ),
        ({"peft_type": None}, "peft_type: expected LORA,"),
        ({"peft_type": "IA3"}, "r: expected it unset, got 2; what it does to the weights is not known"),
        ({"use_qalora": True}, "use_qalora: expected it unset, got True; QA-LoRA is over quantized weights"),
        ({"use_something_new": True}, "use_something_new: expected it unset, got True; what it does"),
        ({"kasa_config": {}}, "kasa_config: expected it unset, got {}; KaSA starts from a truncated base"),
        ({"something_new": 0}, "something_new: expected it unset, got 0; what it does"),
        ({"use_rslora": 1}, "use_rslora: expected true or false, got 1"),
        ({"target_parameters": "experts.down_proj"}, "target_parameters: expected a list of names, got"),
        (
            {"layer_replication": [[0, 2]]},
            "layer_replication: expected it unset, got [[0, 2]]; it gives the model other",
        ),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights: 'pissa_niter_4' starts from a changed base"),
        ({"bias": "some"}, "bias: expected 'none', 'all' or 'lora_only', got 'some'"),
        ({"r": 0}, "r: expected a whole number of at least 1, got 0"),
        ({"lora_alpha": "six"}, "lora_alpha: expected a number, got 'six'"),
        ({"rank_pattern": {"q_proj": "x"}}, "rank_pattern: expected a mapping of patterns and numbers"),
        ({"alpha_pattern": {"q_(": 1}}, "alpha_pattern: 'q_(' is not a regular expression"),
    ],
)
def test_settings_that_are_not_understood_are_refused_by_name(settings, message, bases, adapter):
    assert message in refused(bases("untied"), adapter(factors(), **settings))


def test_all_settings_are_judged_at_once(bases, adapter):
    text = refused(bases("untied"), adapter(factors(), r=0, bias="some", use_qalora=True))
    assert len(text.splitlines()) == 2 + 3
