"""A model without the blocks that are zero computes, bit for bit, what the model with them does."""

from __future__ import annotations

import json
import re

import pytest
import torch
import transformers as hf
from random_pools import random_pool

from sae_moo.deploy.shrink import Shrunk
from sae_moo.deploy.stream import Stream
from sae_moo.deploy.surroundings import deployed_config, write_surroundings
from sae_moo.deploy.tensor_files import write_shards
from sae_moo.errors import InputError
from sae_moo.materialization.into_model import materialize
from sae_moo.recipe import Cast, Expert, Prune

WHOLE = Cast(Expert("math"), "float32")
SMALL = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 5, "max_position_embeddings": 32}
WIDE = SMALL | {"intermediate_size": 12, "num_attention_heads": 4}
GROUPED = WIDE | {"num_key_value_heads": 2, "head_dim": 4}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WINDOW = {"sliding_window": 4}
MIXTURE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
MIXED = {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"]
}
MAKES = {
    "llama": GROUPED | {"mlp_bias": True, "attention_bias": True},
    "mistral": GROUPED | WINDOW,
    "qwen2": GROUPED | WINDOW | {"use_sliding_window": True, "max_window_layers": 2},
    "qwen3": GROUPED | WINDOW | {"use_sliding_window": True} | MIXED,
    "gemma": GROUPED,
    "gemma2": GROUPED | WINDOW,
    "gemma3_text": GROUPED | WINDOW | {"sliding_window_pattern": 3},
    "olmo2": WIDE | {"num_key_value_heads": 2},
    "phi3": GROUPED | SPECIAL | WINDOW,
    "gpt2": {"vocab_size": 64, "n_embd": 16, "n_inner": 12, "n_layer": 5, "n_head": 4, "n_positions": 32},
    "gpt_neox": WIDE,
    "smollm3": GROUPED | SPECIAL | {"no_rope_layer_interval": 3},
    "afmoe": GROUPED | SPECIAL | WINDOW | MIXTURE | {"num_dense_layers": 1, "num_hidden_layers": 5},
    "ernie4_5_moe": GROUPED | SPECIAL | {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 8},
    "gpt_neox, one after another": WIDE | {"use_parallel_residual": False},
}  # fmt: skip
JUDGED_BY_WRITERS = set(MAKES) - {"smollm3", "afmoe", "ernie4_5_moe"}
"""Architectures of which a block is known to add nothing whatever is computed within, if what writes is zero."""
WRITERS = re.compile(r"o_proj|down_proj|c_proj|attention\.dense|dense_4h_to_h")


def zero(model, blocks, only=""):
    """Make blocks zero, or what is called so in them."""
    for name, parameter in model.named_parameters():
        block = re.search(r"\.(?:layers|h)\.(\d+)\.", name)
        if block is not None and int(block[1]) in blocks and re.search(only, name):
            parameter.data.zero_()


@pytest.fixture
def opened(tmp_path, tiny):
    """Return a function: kind, tied, what to do to the expert -> the pool."""

    def pool(kind, change, **more):
        config = hf.AutoConfig.for_model(kind.split(",")[0], **(MAKES[kind] | more))
        return random_pool(tmp_path, lambda: hf.AutoModelForCausalLM.from_config(config), 0.3, tiny.tokenizer(), change)

    return pool


def written(small: Shrunk, folder):
    folder.mkdir()
    write_shards(folder, small.entries, small.content, 10**9)
    pool, dtype = small.stream.pool, small.entries[0].dtype
    write_surroundings(folder, pool, deployed_config(pool, dtype, small.config), pool.tokenizer())
    return hf.AutoModelForCausalLM.from_pretrained(folder).eval()


@torch.no_grad()
def logits(model):
    return model(input_ids=torch.arange(24).reshape(2, 12) + 3).logits


@pytest.mark.parametrize(
    ("kind", "tied"),
    [(kind, False) for kind in MAKES] + [(kind, True) for kind in ("llama", "gemma2", "gpt2", "gpt_neox")],
)
def test_the_model_without_them_is_the_same_to_the_bit(opened, kind, tied, tmp_path):
    def change(model):
        zero(model, {0}, WRITERS.pattern if kind in JUDGED_BY_WRITERS else "")
        zero(model, {2})

    pool = opened(kind, change, tie_word_embeddings=tied)
    model = pool.live_model()
    report = materialize(WHOLE, pool, model)
    stream = Stream(WHOLE, pool, torch.float32)
    small = Shrunk(stream)
    loaded = written(small, tmp_path / "small")
    assert (small.gone, small.blocks, small.dropped) == ((0, 2), 5, "2 of 5 blocks")
    assert loaded.config.num_hidden_layers == 3
    assert torch.equal(logits(loaded), logits(model))
    assert stream.sparsity() == report.sparsity
    assert set(stream.digests) == {entry.name for entry in stream.entries}
    assert set(small.digests) == {entry.name for entry in small.entries}
    read = json.loads((tmp_path / "small/config.json").read_text())
    if "layer_types" in pool.live_model().config.to_dict():
        kinds = model.config.layer_types
        assert read["layer_types"] == [kinds[1], kinds[3], kinds[4]] == loaded.config.layer_types


@pytest.mark.parametrize(
    ("gone", "kind", "more", "told"),
    [
        ({2}, "gemma2", {"query_pre_attn_scalar": 4}, ["blocks are of several kinds (full_attention, sliding_attention)"]),
        ({4}, "gemma2", {"query_pre_attn_scalar": 4}, []),
        ({4}, "gemma2", {"query_pre_attn_scalar": 9}, ["llama.cpp takes the scale of this model's attention"]),
        ({2}, "llama", {}, []),
    ],
)  # fmt: skip
def test_what_runtimes_get_wrong_that_go_by_the_numbers_of_blocks_is_told(opened, gone, kind, more, told):
    left = Shrunk(Stream(WHOLE, opened(kind, lambda model: zero(model, gone), **more), torch.float32)).left()
    assert len(left) == len(told)
    assert all(sentence.startswith(start) for sentence, start in zip(left, told, strict=True))


def test_what_is_left_loses_its_own_zeros_and_blocks_that_go_do_not_count_for_the_fewest(opened, tmp_path):
    units = ((), (0, 1, 2), (), (5, 6), (7, 8, 9))
    recipe = Cast(Prune(Expert("math"), 0.2, scope="neurons", units=units), "float32")
    pool = opened("llama", lambda model: zero(model, {0, 2}))
    small = Shrunk(Stream(recipe, pool, torch.float32))
    assert small.cuts["neurons"].zero == (3, 2, 3)
    assert small.dropped == "2 of 5 blocks, 2 of 12 neurons of every other block"
    assert small.config == {"num_hidden_layers": 3, "intermediate_size": 10}
    assert small.narrower
    model = pool.live_model()
    materialize(recipe, pool, model)
    torch.testing.assert_close(logits(written(small, tmp_path / "small")), logits(model), rtol=1e-4, atol=1e-5)


def test_a_block_that_writes_a_bias_alone_is_none_that_goes(opened):
    """Its matrices are zero, and what it adds is not."""

    def change(model):
        zero(model, {1}, "weight")
        zero(model, {2}, "mlp|o_proj.weight")

    with pytest.raises(InputError, match="blocks: none of 5 is zero as a whole"):
        Shrunk(Stream(WHOLE, opened("llama", change), torch.float32))


def test_blocks_that_compute_by_their_number_stay(opened):
    pool = opened("gpt2", lambda model: zero(model, {1}), scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(
        InputError, match=r"depends on its number \(scale_attn_by_inverse_layer_idx\), so none can move"
    ):
        Shrunk(Stream(WHOLE, pool, torch.float32))
    last = opened("gpt2", lambda model: zero(model, {4}), scale_attn_by_inverse_layer_idx=True)
    assert Shrunk(Stream(WHOLE, last, torch.float32)).gone == (4,)


def test_matrices_that_are_zero_altogether_are_none_of_a_pattern(opened):
    stream = Stream(WHOLE, opened("llama", lambda model: zero(model, {0, 2})), torch.float32)
    for entry in stream.entries:
        stream.tensor(entry.name)
    assert not any(stream.two_four.values())
