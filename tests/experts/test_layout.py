"""What names of tensors say, in every family of architectures."""

from __future__ import annotations

import hashlib

import pytest
import torch

from sae_moo.experts.layout import (
    STORED_DTYPES,
    content_digest,
    dtype_of,
    group_name,
    has_a_row_per_token,
    longest_input,
    stored_name,
    stored_turned,
)
from sae_moo.recipe import DTYPES


@pytest.mark.parametrize(
    ("tensor", "group"),
    [
        ("model.layers.3.mlp.up_proj.weight", "block.3"),
        ("transformer.h.11.attn.c_attn.weight", "block.11"),
        ("h.0.ln_1.bias", "block.0"),
        ("gpt_neox.layers.7.mlp.dense_h_to_4h.weight", "block.7"),
        ("model.embed_tokens.weight", "embeddings"),
        ("transformer.wpe.weight", "embeddings"),
        ("model.norm.weight", "head"),
        ("lm_head.weight", "head"),
    ],
)
def test_a_tensor_belongs_to_the_group_that_its_name_tells(tensor, group):
    assert group_name(tensor) == group


def test_recipes_and_files_know_the_same_dtypes():
    assert [dtype_of(name) for name in DTYPES] == list(STORED_DTYPES.values())
    assert [stored_name(dtype) for dtype in STORED_DTYPES.values()] == list(STORED_DTYPES)
    assert stored_name(torch.float64) == "torch.float64"


def test_a_row_per_token_have_embeddings_and_the_head_with_its_bias():
    assert all(map(has_a_row_per_token, ("model.embed_tokens.weight", "wte.weight", "lm_head.weight", "lm_head.bias")))
    assert has_a_row_per_token("language_model.lm_head.weight")
    assert not any(map(has_a_row_per_token, ("transformer.wpe.weight", "model.norm.weight")))


def test_settings_of_gpt2_are_read_by_its_own_names():
    assert longest_input({"n_positions": 1024}) == longest_input({"max_position_embeddings": 1024}) == 1024
    assert longest_input({"text_config": {"max_position_embeddings": 64}, "max_position_embeddings": 8}) == 64
    assert longest_input({}) is longest_input({"max_position_embeddings": "many"}) is None
    assert (stored_turned({"model_type": "gpt2"}), stored_turned({"model_type": "llama"})) == (True, False)


@pytest.mark.parametrize("dtype", STORED_DTYPES.values())
@pytest.mark.parametrize("shape", [(3, 2), (0,), ()])
def test_a_content_digest_is_of_the_bytes_alone(dtype, shape):
    tensor = torch.ones(shape, dtype=dtype)
    raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    assert content_digest(tensor) == hashlib.sha256(raw).hexdigest()
    assert content_digest(tensor.reshape(-1)) == content_digest(tensor)
