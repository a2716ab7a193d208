from __future__ import annotations

import pytest
import torch
from stand_ins import weights_of

from sae_moo.errors import InputError
from sae_moo.experts.live import load_model, places, ties, without_memory
from sae_moo.experts.pool import ExpertPool
from sae_moo.materialization.into_model import materialize
from sae_moo.recipe import Expert, Merge, Prune

SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = {**SMALL, "num_key_value_heads": 1}
GPT2 = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "bos_token_id": 1}
# name -> configuration class, its settings, number of prunable tensors in a block, tied
ARCHITECTURES = {
    "llama": ("LlamaConfig", {**SMALL, "tie_word_embeddings": False}, 7, False),
    "mistral": ("MistralConfig", GROUPED, 7, False),
    "qwen2": ("Qwen2Config", {**GROUPED, "tie_word_embeddings": True}, 7, True),
    "qwen3": ("Qwen3Config", {**GROUPED, "head_dim": 8, "tie_word_embeddings": True}, 7, True),
    "gemma2": ("Gemma2Config", {**GROUPED, "head_dim": 8}, 7, True),
    "phi3": ("Phi3Config", SMALL, 4, False),
    "gpt2": ("GPT2Config", {**GPT2, "eos_token_id": 2}, 4, True),
    "gpt-neox": ("GPTNeoXConfig", SMALL, 4, False),
    "olmo2": ("Olmo2Config", SMALL, 7, False),
    "mixtral": ("MixtralConfig", {**GROUPED, "num_local_experts": 3, "num_experts_per_tok": 2}, 4 + 1 + 3 * 3, False),
    "qwen3-moe": (
        "Qwen3MoeConfig",
        {**GROUPED, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8},
        4 + 1 + 3 * 3,
        False,
    ),
    "qwen2-moe": (
        "Qwen2MoeConfig",
        {
            **GROUPED,
            "num_experts": 3,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 8,
            "shared_expert_intermediate_size": 8,
        },
        4 + 2 + 3 + 3 * 3,
        False,
    ),
    "granite-moe": ("GraniteMoeConfig", {**SMALL, "num_local_experts": 3, "num_experts_per_tok": 2}, 4 + 1 + 2, False),
    "gpt-oss": (
        "GptOssConfig",
        {**GROUPED, "head_dim": 8, "num_local_experts": 3, "num_experts_per_tok": 2},
        4 + 1 + 2,
        False,
    ),
}


def built(name: str, seed: int):
    import transformers

    cls, settings, *_ = ARCHITECTURES[name]
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, cls)(**settings))
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms are born constant
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return a function that saves two models of an architecture once."""
    root = tmp_path_factory.mktemp("architectures")

    def folders(name: str):
        if not (root / name).is_dir():
            for i, which in enumerate(("base", "other")):
                built(name, i).save_pretrained(root / name / which)
        return root / name / "base", root / name / "other"

    return folders


def opened(saved, name: str) -> ExpertPool:
    base, other = saved(name)
    return ExpertPool.open(str(base), {"other": str(other)})


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_expert_materialized_is_the_model_transformers_loads(name, saved):
    pool = opened(saved, name)
    model = pool.live_model()
    materialize(Expert("other"), pool, model)
    expected = load_model(saved(name)[1], torch.float32, "cpu")
    assert list(model.state_dict()) == list(expected.state_dict())
    assert [
        key for key, value in expected.state_dict().items() if not torch.equal(value, model.state_dict()[key])
    ] == []
    ids = torch.arange(8)[None]
    assert torch.equal(model(ids).logits, expected(ids).logits)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_groups_and_prunable_weights(name, saved):
    _, _, prunable, tied = ARCHITECTURES[name]
    pool = opened(saved, name)
    assert pool.groups == ("embeddings", "block.0", "block.1", "head")
    assert pool.checkpoints["base"].tied is tied
    for group in (1, 2):
        assert sum(info.prunable for info in pool.tensors if info.group == group) == prunable
    assert not any(info.prunable for info in pool.tensors if info.name.endswith("bias") or info.group in (0, 3))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_linear_merge_is_the_mean_and_a_pruned_one_has_the_zeros_asked_for(name, saved):
    pool = opened(saved, name)
    model = pool.live_model()
    mean = Merge("linear", (Expert("base"), Expert("other")), weights=(0.5, 0.5))
    materialize(mean, pool, model)
    for tensor, weight in weights_of(pool, model).items():
        expected = (pool.load("base", tensor) + pool.load("other", tensor)) / 2
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-7)
    report = materialize(Prune(mean, 0.5), pool, model)
    assert report.sparsity == pytest.approx(0.5, abs=0.01)
    assert report.group_sparsity["embeddings"] == report.group_sparsity["head"] == 0


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_places_cover_every_parameter_once(name, saved):
    pool = opened(saved, name)
    model = pool.live_model()
    found = pool.parameters(model)
    assert list(found) == [info.name for info in pool.tensors]
    for info in pool.tensors:
        assert found[info.name].shape == info.shape
    with torch.no_grad():
        for value in found.values():
            value.fill_(1)
    assert {float(p.min()) for p in model.parameters()} == {float(p.max()) for p in model.parameters()} == {1.0}
    assert sum(value.numel() for value in found.values()) == sum(p.numel() for p in model.parameters())


def test_experts_stored_stacked_are_the_same_as_experts_stored_apart(saved, tmp_path):
    base, other = saved("mixtral")
    for folder in (base, other):
        load_model(folder, torch.float32, "cpu").save_pretrained(tmp_path / folder.name, save_original_format=False)
    apart, stacked = (
        opened(saved, "mixtral"),
        ExpertPool.open(str(tmp_path / "base"), {"other": str(tmp_path / "other")}),
    )
    assert max(len(info.shape) for info in apart.tensors) == 2
    assert max(len(info.shape) for info in stacked.tensors if info.prunable) == 3
    models = [pool.live_model() for pool in (apart, stacked)]
    for pool, model in zip((apart, stacked), models, strict=True):
        materialize(Merge("linear", (Expert("base"), Expert("other")), weights=(0.3, 0.7)), pool, model)
    for (key, one), two in zip(models[0].state_dict().items(), models[1].state_dict().values(), strict=True):
        assert torch.equal(one, two), key
    shares = [sum(i.numel for i in pool.tensors if i.prunable) for pool in (apart, stacked)]
    assert shares[0] == shares[1]


def test_shards_change_nothing(saved, tmp_path):
    base, other = saved("qwen3-moe")
    load_model(other, torch.float32, "cpu").save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    pool = ExpertPool.open(str(base), {"whole": str(other), "sharded": str(tmp_path)})
    assert pool.fingerprints["whole"] == pool.fingerprints["sharded"]
    model = pool.live_model()
    materialize(Expert("sharded"), pool, model)
    assert all(torch.equal(weight, pool.load("whole", name)) for name, weight in weights_of(pool, model).items())


def test_a_gpt2_checkpoint_without_its_prefix(saved, tmp_path):
    from safetensors.torch import load_file, save_file

    other = saved("gpt2")[1]
    tensors = {name.removeprefix("transformer."): t for name, t in load_file(other / "model.safetensors").items()}
    tmp_path.joinpath("config.json").write_text((other / "config.json").read_text())
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    pool = ExpertPool.open(str(tmp_path), {"same": str(tmp_path)})
    model = pool.live_model()
    materialize(Expert("base"), pool, model)
    ids = torch.arange(8)[None]
    assert torch.equal(model(ids).logits, load_model(other, torch.float32, "cpu")(ids).logits)


def test_what_has_no_place_is_named(saved):
    pool = opened(saved, "qwen3-moe")
    model = pool.live_model()
    names = [info.name for info in pool.tensors]
    gone = "model.layers.1.mlp.experts.2.up_proj.weight"
    with pytest.raises(InputError) as caught:
        places(model, [*(name for name in names if name != gone), "model.layers.1.odd.weight"])
    assert str(caught.value).splitlines()[1:] == [
        "  - tensor without parameter: model.layers.1.odd.weight",
        "  - parameter without tensor: model.layers.1.mlp.experts.gate_up_proj",
    ]


def test_a_model_without_memory_has_the_ties_that_loading_makes(saved):
    for name in ("qwen2", "llama", "gpt2", "gpt-neox"):
        folder = saved(name)[0]
        assert all(parameter.is_meta for parameter in without_memory(folder).parameters())
        assert ties(folder) == load_model(folder, torch.float32, "cpu").all_tied_weights_keys
        assert bool(ties(folder)) is ARCHITECTURES[name][3]


def test_what_transformers_has_no_language_model_for_is_told_shortly(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit", "architectures": ["ViTModel"]}')
    with pytest.raises(
        InputError, match=r"of the architecture ViTModel \(model_type 'vit'\) it has no causal"
    ) as caught:
        without_memory(tmp_path)
    assert len(str(caught.value)) < 200 + len(str(tmp_path))
    assert ties(tmp_path) is None


def test_where_tensors_lie_is_looked_up_again_in_a_model_that_was_changed(tiny):
    model = tiny.live_model()
    assert tiny.parameters(model)["model.norm.weight"] is model.model.norm.weight
    model.model.norm.weight = torch.nn.Parameter(torch.zeros(16))
    assert tiny.parameters(model)["model.norm.weight"] is model.model.norm.weight
    model.odd = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(InputError, match="parameter without tensor: odd"):
        tiny.parameters(model)
    del model.odd
    assert len(tiny.parameters(model)) == len(tiny.tensors)
    model.model.layers[1].mlp = torch.nn.Identity()
    with pytest.raises(InputError, match=r"tensor without parameter: model\.layers\.1\.mlp"):
        tiny.parameters(model)
