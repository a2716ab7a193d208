"""A model without the units that are zero computes what the model with them does, and loads as any other."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from random_pools import random_pool

from sae_moo.deploy.estimate import estimates
from sae_moo.deploy.formats import FORMATS
from sae_moo.deploy.shrink import Shrunk
from sae_moo.deploy.stream import Stream
from sae_moo.deploy.surroundings import deployed_config, write_surroundings
from sae_moo.deploy.tensor_files import in_bytes, write_shards
from sae_moo.errors import InputError
from sae_moo.materialization.into_model import materialize
from sae_moo.recipe import Cast, Expert, Merge, Prune

MATH = Expert("math")
SMALL = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "max_position_embeddings": 32}
WIDE = SMALL | {"intermediate_size": 12, "num_attention_heads": 4}
GROUPED = WIDE | {"num_key_value_heads": 2, "tie_word_embeddings": True}
MAKES = {
    "llama": (hf.LlamaConfig, hf.LlamaForCausalLM, GROUPED | {"mlp_bias": True, "attention_bias": True}),
    "mistral": (hf.MistralConfig, hf.MistralForCausalLM, GROUPED),
    "qwen2": (hf.Qwen2Config, hf.Qwen2ForCausalLM, GROUPED),
    "phi3": (hf.Phi3Config, hf.Phi3ForCausalLM, GROUPED | {"pad_token_id": 0}),
    "gpt_neox": (hf.GPTNeoXConfig, hf.GPTNeoXForCausalLM, WIDE),
    "gpt2": (
        hf.GPT2Config,
        hf.GPT2LMHeadModel,
        {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32},
    ),
}


@pytest.fixture
def pool(request, tmp_path, tiny):
    config, make, settings = MAKES[request.param]
    return random_pool(tmp_path, lambda: make(config(**settings)), 0.3, tiny.tokenizer())


def written(small: Shrunk, folder):
    folder.mkdir()
    write_shards(folder, small.entries, small.content, 10**9)
    pool, dtype = small.stream.pool, small.entries[0].dtype
    write_surroundings(folder, pool, deployed_config(pool, dtype, small.config), pool.tokenizer())
    return hf.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def logits(model):
    model.config._attn_implementation = "eager"
    with torch.no_grad():
        return model(input_ids=torch.arange(24).reshape(2, 12) + 3).logits


BOTH, NEURONS, HEADS = (0.5, 0.5), (0.5, 0.0), (0.0, 0.5)


@pytest.mark.parametrize(
    ("pool", "asked"),
    [
        ("llama", BOTH), ("llama", NEURONS), ("llama", HEADS), ("qwen2", BOTH), ("phi3", BOTH),
        ("gpt_neox", NEURONS), ("gpt2", NEURONS),
    ],
    indirect=["pool"],
)  # fmt: skip
def test_the_smaller_model_has_the_zeroed_ones_logits(pool, asked, tmp_path):
    recipe = Prune(Prune(MATH, asked[0], scope="neurons"), asked[1], scope="heads") if asked[1] else Prune(
        MATH, asked[0], scope="neurons"
    )  # fmt: skip
    model = pool.live_model()
    report = materialize(Cast(recipe, "float32"), pool, model)
    stream = Stream(Cast(recipe, "float32"), pool, torch.float32)
    small = Shrunk(stream)
    loaded = written(small, tmp_path / "small")
    assert stream.sparsity() == report.sparsity
    assert set(small.cuts) == {scope for scope, share in zip(("neurons", "heads"), asked, strict=True) if share}
    assert sum(p.numel() for p in loaded.parameters()) < sum(p.numel() for p in model.parameters())
    units = 64 if pool.checkpoints["base"].config["model_type"] == "gpt2" else 12
    if asked[0]:
        assert small.dropped.startswith(f"{units // 2} of {units} neurons")
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=1e-5)
    assert set(small.digests) == set(stream.digests) == {entry.name for entry in stream.entries}


def uneven():
    """Three and five neurons of two blocks, and a group of heads of the second."""
    few = Prune(MATH, 3 / 12, scope="neurons", units=((0, 5, 7), (1, 2, 3)))
    return Prune(Prune(few, 4 / 12, scope="neurons", units=((1, 2), ())), 0.5, scope="heads", units=((), (1,)))


@pytest.mark.parametrize("pool", ["llama"], indirect=True)
def test_where_one_width_stands_for_all_as_many_go_from_each_block_as_the_one_with_the_fewest_has(pool, tmp_path):
    stream = Stream(uneven(), pool, torch.float32)
    small = Shrunk(stream)
    assert small.config == {"intermediate_size": 9}
    assert (small.cuts["neurons"].zero, small.cuts["neurons"].dropped) == ((5, 3), (3, 3))
    assert (small.cuts["heads"].zero, small.cuts["heads"].dropped) == ((0, 1), (0, 0))
    assert small.dropped == "3 of 12 neurons of every block"
    model = pool.live_model()
    materialize(uneven(), pool, model)
    torch.testing.assert_close(logits(written(small, tmp_path / "small")), logits(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool", ["llama"], indirect=True)
def test_what_one_width_for_all_loses_is_told(pool):
    small = Shrunk(Stream(uneven(), pool, torch.float32))
    neuron, group = 16 * 3 + 2, (8 + 4 + 4) * 16 + 16 * 8 + (8 + 4 + 4)
    weights = 2 * neuron + group
    total = sum(entry.numel for entry in small.entries)
    assert small.left() == (
        f"2 neurons and 1 key/value groups of heads that are zero stay, as zeros: {weights} weights, "
        f"{weights / total:.1%} of all that are written. Transformers reads one width for all blocks of this "
        f"architecture, so every block is as wide as the widest, {in_bytes(4 * total)} in all; if each had its own "
        f"width it would be {in_bytes(4 * (total - weights))}",
    )
    assert (small.nbytes(even=True), small.nbytes(even=False)) == (4 * total, 4 * (total - weights))
    (estimate,) = estimates(Stream(uneven(), pool, torch.float32), [FORMATS["structured"]])
    assert estimate.nbytes == 4 * total
    assert estimate.gains.endswith(f"; 3 of 12 neurons of every block dropped; {small.left()[0]}")


@pytest.mark.parametrize("pool", ["mistral"], indirect=True)
def test_every_block_has_its_own_width_where_transformers_reads_it(pool, tmp_path, monkeypatch):
    """No architecture here does; the layers of this one are given what those of others get (dots3_note)."""
    from transformers.models.mistral import modeling_mistral

    made = modeling_mistral.MistralDecoderLayer.__init__

    def init(self, config, layer_idx):
        made(self, config.per_layer_config[layer_idx], layer_idx)

    monkeypatch.setattr(modeling_mistral.MistralDecoderLayer, "__init__", init)
    stream = Stream(uneven(), pool, torch.float32)
    small = Shrunk(stream)
    assert small.config == {
        "per_layer_config": {
            "0": {"intermediate_size": 7, "num_attention_heads": 4, "num_key_value_heads": 2},
            "1": {"intermediate_size": 9, "num_attention_heads": 2, "num_key_value_heads": 1},
        },
        "head_dim": 4,
    }
    assert small.dropped == "3 to 5 of 12 neurons and 0 to 1 of 2 key/value groups of heads of every block"
    (told,) = small.left()
    assert told.startswith("every block has its own number of neurons and of key/value groups of heads")
    assert small.nbytes(even=False) == sum(entry.nbytes for entry in small.entries) < small.nbytes(even=True)
    loaded = written(small, tmp_path / "small")
    assert [layer.mlp.up_proj.out_features for layer in loaded.model.layers] == [7, 9]
    model = pool.live_model()
    materialize(uneven(), pool, model)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool", ["llama"], indirect=True)
def test_a_block_of_which_all_units_are_zero_keeps_one(pool):
    whole = Prune(MATH, 0.5, scope="neurons", units=(tuple(range(12)), tuple(range(11))))
    assert Shrunk(Stream(whole, pool, torch.float32)).dropped == "11 of 12 neurons of every block"


@pytest.mark.parametrize("pool", ["llama"], indirect=True)
def test_a_model_of_which_nothing_would_be_left_is_refused(pool):
    nothing = Merge("linear", (MATH,), (0.0,), {"normalize": False})
    with pytest.raises(InputError, match="all 2 blocks are zero, and without them no model is left"):
        Shrunk(Stream(nothing, pool, torch.float32))


@pytest.mark.parametrize("pool", ["gpt_neox"], indirect=True)
def test_what_cannot_be_dropped_is_refused_with_its_reasons(pool):
    with pytest.raises(InputError, match="nothing can be dropped, neither a block nor units of every block") as caught:
        Shrunk(Stream(Prune(MATH, 0.5, scope="heads"), pool, torch.float32))
    assert "blocks: none of 2 is zero as a whole" in str(caught.value)
    assert "neurons: of 12 in each block none is zero" in str(caught.value)
    assert "config.json of 'gpt_neox' cannot say that there are fewer heads of the same size" in str(caught.value)
    uneven = Prune(MATH, 3 / 12, scope="neurons", units=((0, 5), ()))
    with pytest.raises(InputError, match="of 12 in each block as many are zero as: 2, 0; transformers reads one width"):
        Shrunk(Stream(uneven, pool, torch.float32))


@pytest.mark.parametrize("pool", ["llama"], indirect=True)
def test_an_architecture_that_is_not_known_is_refused_by_name(pool, monkeypatch):
    monkeypatch.setitem(pool.checkpoints["base"].config, "model_type", "zamba")
    with pytest.raises(
        InputError, match=r"blocks: scope 'blocks' knows the architectures afmoe, .*; the base is 'zamba'"
    ):
        Shrunk(Stream(Cast(MATH, "float32"), pool, torch.float32))


def test_as_many_heads_go_as_a_config_can_say(tmp_path, tiny):
    """Llama's hidden size has to be a multiple of the number of heads, or transformers does not load it."""
    settings = SMALL | {"intermediate_size": 12, "num_attention_heads": 8, "head_dim": 4}
    pool = random_pool(tmp_path, lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**settings)), tokenizer=tiny.tokenizer())
    five = Stream(Prune(MATH, 0.625, scope="heads", units=((0, 1, 2, 3, 4), (3, 4, 5, 6, 7))), pool, torch.float32)
    small = Shrunk(five)
    assert small.dropped == "4 of 8 key/value groups of heads of every block"
    assert written(small, tmp_path / "small").config.num_attention_heads == 4
    assert small.nbytes(even=True) == sum(entry.nbytes for entry in small.entries)
    first, second = small.left()
    assert first.startswith("2 key/value groups of heads that are zero stay, as zeros: 512 weights")
    assert second.startswith("more key/value groups of heads are zero in every block, but transformers refuses")
    with pytest.raises(InputError, match="heads: of 8 in each block as many are zero as: 1, 1; transformers reads"):
        Shrunk(Stream(Prune(MATH, 0.125, scope="heads", units=((0,), (3,))), pool, torch.float32))
