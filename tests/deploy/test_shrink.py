"""A model without the units that are zero computes what the model with them does, and loads as any other."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

from sae_moo.deploy.shrink import Shrunk
from sae_moo.deploy.stream import Stream
from sae_moo.deploy.surroundings import deployed_config, write_surroundings
from sae_moo.deploy.tensor_files import write_shards
from sae_moo.errors import InputError
from sae_moo.experts.pool import ExpertPool
from sae_moo.materialization.into_model import materialize
from sae_moo.recipe import Cast, Expert, Merge, Prune

MATH = Expert("math")
SMALL = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "max_position_embeddings": 32}
WIDE = SMALL | {"intermediate_size": 12, "num_attention_heads": 4}
GROUPED = WIDE | {"num_key_value_heads": 2, "tie_word_embeddings": True}
MAKES = {
    "llama": (hf.LlamaConfig, hf.LlamaForCausalLM, GROUPED | {"mlp_bias": True, "attention_bias": True}),
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
    for seed, name in enumerate(("base", "math")):
        torch.manual_seed(seed)
        model = make(config(**settings))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(tmp_path / name)
        tiny.tokenizer().save_pretrained(tmp_path / name)
    return ExpertPool.open(str(tmp_path / "base"), {"math": str(tmp_path / "math")})


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
    assert set(small.removed) == {scope for scope, share in zip(("neurons", "heads"), asked, strict=True) if share}
    assert sum(p.numel() for p in loaded.parameters()) < sum(p.numel() for p in model.parameters())
    units = 64 if pool.checkpoints["base"].config["model_type"] == "gpt2" else 12
    if asked[0]:
        assert small.removed["neurons"] == (units // 2, units)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=1e-5)
    assert set(small.digests) == set(stream.digests) == {entry.name for entry in stream.entries}


@pytest.mark.parametrize("pool", ["llama"], indirect=True)
def test_as_many_go_from_each_block_as_the_one_with_the_fewest_has(pool, tmp_path):
    few = Prune(MATH, 3 / 12, scope="neurons", units=((0, 5, 7), (1, 2, 3)))
    more = Prune(few, 4 / 12, scope="neurons", units=((1, 2), ()))
    stream = Stream(more, pool, torch.float32)
    small = Shrunk(stream)
    assert (small.removed, small.config) == ({"neurons": (3, 12)}, {"intermediate_size": 9})
    model = pool.live_model()
    materialize(more, pool, model)
    torch.testing.assert_close(logits(written(small, tmp_path / "small")), logits(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool", ["llama"], indirect=True)
def test_a_model_that_would_be_empty_keeps_one_unit(pool):
    nothing = Merge("linear", (MATH,), (0.0,), {"normalize": False})
    assert Shrunk(Stream(nothing, pool, torch.float32)).removed == {"neurons": (11, 12), "heads": (1, 2)}


@pytest.mark.parametrize("pool", ["gpt_neox"], indirect=True)
def test_what_cannot_be_dropped_is_refused_with_its_reasons(pool):
    with pytest.raises(InputError, match="nothing can be dropped from every block") as caught:
        Shrunk(Stream(Prune(MATH, 0.5, scope="heads"), pool, torch.float32))
    assert "neurons: of 12 in each block as many are zero as: 0, 0" in str(caught.value)
    assert "config.json of 'gpt_neox' cannot say that there are fewer heads of the same size" in str(caught.value)
    uneven = Prune(MATH, 3 / 12, scope="neurons", units=((0, 5), ()))
    with pytest.raises(InputError, match="of 12 in each block as many are zero as: 2, 0"):
        Shrunk(Stream(uneven, pool, torch.float32))
