"""Models whose layers are in another order: what tensors they have, and what `config.json` says of them."""

from __future__ import annotations

import json

import pytest
import torch

from sae_moo.errors import InputError
from sae_moo.experts.checkpoint import Checkpoint
from sae_moo.experts.layers import Relaid, layer_count, with_layers
from sae_moo.experts.live import load_model, parsed_config
from sae_moo.experts.pool import ExpertPool, open_models
from sae_moo.jobs.merge import merge
from sae_moo.materialization.into_model import materialize
from sae_moo.recipe import BASE, Expert

SMALL = {
    "vocab_size": 16,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}


@pytest.fixture
def saved(tmp_path):
    """Return a function that writes a tiny model."""

    def written(name, kind="llama", layers=4, seed=0, **settings):
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.manual_seed(seed)
        config = AutoConfig.for_model(kind, **(SMALL | {"num_hidden_layers": layers} | settings))
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / name)
        return tmp_path / name

    return written


def test_every_layer_is_that_of_the_order(saved):
    weights = Checkpoint(str(saved("a")))
    relaid = Relaid(weights, (2, 0, 0))
    assert (layer_count(weights), layer_count(relaid)) == (4, 3)
    for place, layer in enumerate((2, 0, 0)):
        name = "model.layers.{}.mlp.up_proj.weight"
        assert torch.equal(relaid.load(name.format(place)), weights.load(name.format(layer)))
    assert torch.equal(relaid.load("lm_head.weight"), weights.load("lm_head.weight"))
    orders = [(2, 0, 0), (2, 0), (0, 2, 0), (0, 1, 2, 3)]
    assert len({Relaid(weights, order).fingerprint for order in orders}) == 4
    for wrong in ((0, 4), (-1,)):
        with pytest.raises(InputError, match=r"expected layers 0 to 3, those that .* has, got"):
            Relaid(weights, wrong)


def test_models_in_their_own_order_are_as_they_are(saved):
    models = open_models(str(saved("a")), {"b": str(saved("b", seed=1))})
    pool = ExpertPool(models, layers={BASE: range(4), "b": (0, 1, 2, 3)})
    assert not pool.layers
    assert pool.checkpoints == models
    with pytest.raises(InputError, match="layers: expected as many for each of base, b"):
        ExpertPool(models, layers={BASE: (0, 1), "b": (0,)})
    with pytest.raises(InputError, match="layers: expected as many for each of base, b"):
        ExpertPool(models, layers={BASE: (0, 1)})


def test_what_is_of_no_interest_is_the_bases(saved):
    models = open_models(str(saved("a", layers=3)), {"b": str(saved("b", seed=1, layers=5))})
    pool = ExpertPool(models, layers={BASE: (0, None, 2), "b": (None, 4, None)})
    assert pool.layers[BASE] == (0, 2, 2), "the base has no fourth"
    name = "model.layers.{}.self_attn.k_proj.weight"
    assert torch.equal(pool.load("b", name.format(1)), models["b"].load(name.format(4)))
    assert torch.equal(pool.load("b", name.format(2)), models[BASE].load(name.format(2)))
    assert pool.shares_base("b", name.format(2))
    assert not pool.shares_base("b", name.format(1))


def test_layers_in_several_stacks_are_refused(saved, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = saved("a")
    tensors = load_file(folder / "model.safetensors")
    others = {f"model.others.layers.{i}.weight": torch.ones(2, 2) for i in range(4)}
    save_file(tensors | others, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"one stack.*got 4 in model\.layers\., model\.others\.layers\."):
        Relaid(Checkpoint(str(folder)), (0,))


def test_layers_of_a_tower_stay_where_they_are(saved):
    from safetensors.torch import load_file, save_file

    folder = saved("a")
    tensors = load_file(folder / "model.safetensors")
    vision = {f"model.vision_tower.layers.{i}.weight": torch.full((2, 2), float(i)) for i in range(4)}
    save_file(tensors | vision, folder / "model.safetensors", {"format": "pt"})
    found = Relaid(Checkpoint(str(folder)), (1, 0))
    assert {name for name in found.tensors if "vision" in name} == vision.keys()
    assert all(torch.equal(found.load(name), tensor) for name, tensor in vision.items())
    own = "model.layers.{}.input_layernorm.weight"
    assert torch.equal(found.load(own.format(0)), tensors[own.format(1)])


LISTS = {"layer_types": ["sliding_attention", "full_attention"] * 2}


@pytest.mark.parametrize(
    ("kind", "settings", "order", "expected"),
    [
        ("llama", {}, (0, 1, 1, 3, 3), {"num_hidden_layers": 5}),
        ("qwen2", LISTS | {"use_sliding_window": True, "sliding_window": 4}, (0, 0, 3),
         {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}),
        ("gemma2", {"head_dim": 8, "sliding_window": 4}, (1, 1, 2), {"layer_types": ["full_attention"] * 2 + ["sliding_attention"]}),
        ("smollm3", {"no_rope_layer_interval": 2}, (1, 0, 3), {"no_rope_layers": [0, 1, 0]}),
        ("lfm2", {"full_attn_idxs": [1, 2], "block_auto_adjust_ff_dim": False}, (2, 0, 1, 3),
         {"layer_types": ["full_attention", "conv", "full_attention", "conv"]}),
        ("qwen2_moe", {"mlp_only_layers": [1], "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}, (1, 0, 1),
         {"mlp_only_layers": [0, 2]}),
        ("gpt2", {"n_embd": 16, "n_layer": 4, "n_head": 2}, (3, 3), {"n_layer": 2}),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)  # fmt: skip
def test_settings_of_each_layer_follow_it(saved, kind, settings, order, expected):
    """And the model that is built of them computes what the layers of the whole one would, called in that order."""
    folder = saved("a", kind, **settings)
    pool = ExpertPool(open_models(str(folder), {}), layers={BASE: order})
    config = pool.checkpoints[BASE].config
    assert {key: config[key] for key in expected} == expected
    model = pool.live_model()
    materialize(Expert(BASE), pool, model)
    whole = load_model(folder, torch.float32, "cpu")
    blocks = whole.transformer.h if kind == "gpt2" else whole.model.layers
    ids = torch.tensor([[3, 5, 7, 2, 9, 4, 6]])
    outputs = [blocks[i] for i in order]
    new = torch.nn.ModuleList(outputs)
    if kind == "gpt2":
        whole.transformer.h = new
    else:
        whole.model.layers = new
        whole.config.num_hidden_layers = len(order)
        for key, value in expected.items():
            setattr(whole.config, key, value)
    with torch.no_grad():
        torch.testing.assert_close(model(ids, use_cache=False).logits, whole(ids, use_cache=False).logits)


def test_dense_layers_before_a_mixture():
    config = {"num_hidden_layers": 4, "first_k_dense_replace": 2, "eos_token_id": [1, 2, 3, 4]}
    assert with_layers(config, {}, (0, 1, 0, 2, 3, 3)) == config | {"num_hidden_layers": 6, "first_k_dense_replace": 3}
    assert with_layers(config, {}, (0, 1))["first_k_dense_replace"] == 2


def test_what_the_settings_cannot_say_is_refused(saved):
    """A dense layer behind those of a mixture, where the settings only say how many come first."""
    sizes = {"n_routed_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8, "n_group": 1, "topk_group": 1}
    latent = {"kv_lora_rank": 4, "q_lora_rank": 4, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
    folder = saved("a", "deepseek_v2", first_k_dense_replace=1, n_shared_experts=1, **sizes, **latent)
    models = open_models(str(folder), {})
    ExpertPool(models, layers={BASE: (0, 0, 2)})
    with pytest.raises(InputError, match="does not match the checkpoint"):
        ExpertPool(models, layers={BASE: (1, 0, 2)})


def test_a_merged_folder_says_its_layers(saved, tmp_path, monkeypatch):
    saved("a", "gemma2", head_dim=8, sliding_window=4)
    (tmp_path / "f.yaml").write_text(
        "merge_method: passthrough\nslices:\n  - sources: [{model: a, layer_range: [1, 3]}]\n"
        "  - sources: [{model: a, layer_range: [1, 4]}]\n"
    )
    monkeypatch.chdir(tmp_path)
    merge("f.yaml", "out")
    kinds = ["full_attention", "sliding_attention"] * 2 + ["full_attention"]
    assert json.loads((tmp_path / "out/config.json").read_text())["layer_types"] == kinds
    assert parsed_config(tmp_path / "out")["layer_types"] == kinds
    merge("out/recipe.json", "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "out/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("settings", "order", "expected"),
    [
        ({"max_window_layers": 2}, (0, 2, 3), {"max_window_layers": 1}),
        ({"max_window_layers": 9}, (0, 3), {"max_window_layers": 2}),
        ({"num_dense_layers": 2}, (1, 2), {"num_dense_layers": 1}),
        ({"moe_layer_start_index": 1, "moe_layer_end_index": 2}, (0, 1, 2, 3), {"moe_layer_start_index": 1, "moe_layer_end_index": 2}),
        ({"moe_layer_start_index": 1, "moe_layer_end_index": 2}, (1, 3), {"moe_layer_start_index": 0, "moe_layer_end_index": 0}),
        ({"moe_layer_start_index": 1, "moe_layer_end_index": 2}, (0, 3), {"moe_layer_start_index": 1, "moe_layer_end_index": 0}),
        ({"moe_layer_start_index": 1, "moe_layer_end_index": 2}, (3,), {"moe_layer_start_index": 1, "moe_layer_end_index": 0}),
        ({"moe_layer_start_index": 0, "moe_layer_end_index": -1}, (3,), {"moe_layer_start_index": 0}),
        ({"per_layer_config": {"00": {"a": 1}, "03": {"a": 2}}}, (3, 1), {"per_layer_config": {"0": {"a": 2}}}),
    ],
)  # fmt: skip
def test_where_layers_of_another_kind_begin_and_end_and_what_single_ones_have_follows(settings, order, expected):
    config = {"num_hidden_layers": 4} | settings
    assert with_layers(config, {}, order) == config | {"num_hidden_layers": len(order)} | expected
    assert (
        with_layers({"num_hidden_layers": 4}, config, order).items()
        >= ({} if "per_layer_config" in settings else expected).items()
    ), "what transformers fills in is written out"


@pytest.mark.parametrize(
    ("settings", "stays", "moves"),
    [
        ({"decoder_sparse_step": 2}, [(0, 1, 2), (2, 3), (0, 3, 0)], [(1, 2), (0, 2, 3)]),
        ({"attn_layer_period": 4, "attn_layer_offset": 1}, [(0, 1), (0, 1, 3), (2, 1)], [(1, 2), (0, 2), (0, 0)]),
        ({"scale_attn_by_inverse_layer_idx": True}, [(0, 1), (0, None, 2)], [(1,), (0, 0)]),
        ({"scale_attn_by_inverse_layer_idx": False, "moe_layer_interval": 1}, [(1,), (3, 0, 0)], []),
    ],
)  # fmt: skip
def test_layers_that_are_another_by_their_number_do_not_move(saved, settings, stays, moves):
    folder = saved("a")
    described = json.loads((folder / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps(described))
    weights = Checkpoint(str(folder))
    for order in stays:
        Relaid(weights, order, Relaid(weights, (0, 1, 2, 3)))
    for order in moves:
        with pytest.raises(InputError, match=rf"depends on its number \({next(iter(settings))}\), so none can move"):
            Relaid(weights, order)
