"""Adapters: what peft merges of LoRA, the equation itself, and where their tensors have a place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from adapted_models import Q, by_peft, factors, pool_of, refused
from safetensors.torch import load_file, save_file

from sae_moo.errors import InputError
from sae_moo.experts.adapters import Adapter
from sae_moo.experts.checkpoint import Checkpoint
from sae_moo.experts.live import load_model
from sae_moo.experts.pool import ExpertPool
from sae_moo.materialization.buffers import Buffers
from sae_moo.materialization.into_model import materialize
from sae_moo.materialization.plan import Plan
from sae_moo.recipe import Expert, Merge

# what peft is asked for, on which base
PEFT = {
    "list of modules": ("untied", {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]}),
    "regex": ("untied", {"r": 4, "lora_alpha": 5, "target_modules": r".*\.1\..*(up|v)_proj"}),
    "all linear": ("untied", {"r": 3, "target_modules": "all-linear"}),
    "rank-stabilized": ("untied", {"r": 3, "lora_alpha": 8, "use_rslora": True, "target_modules": ["o_proj"]}),
    "patterns": (
        "untied",
        {
            "r": 2,
            "lora_alpha": 6,
            "target_modules": ["q_proj", "k_proj", "v_proj"],
            "rank_pattern": {
                r"layers\.1\.self_attn\.q_proj": 1,
                "proj": 9,
                "q_proj": 3,
            },  # the first that matches counts
            "alpha_pattern": {r"^model\.layers\.0\.self_attn\.v_proj": 11, r"layers.\d+.self_attn.q_proj": 7},
        },
    ),
    "whole modules": ("untied", {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]}),
    "embeddings and head": ("untied", {"r": 2, "target_modules": ["embed_tokens", "lm_head", "k_proj"]}),
    "tied": ("tied", {"r": 2, "target_modules": ["gate_proj"]}),
    "dora": ("untied", {"r": 2, "use_dora": True, "target_modules": ["q_proj", "up_proj"]}),
    "gpt2": ("gpt2", {"r": 2, "target_modules": ["c_attn", "c_proj", "c_fc"]}),
    "gpt2 with biases": ("gpt2", {"r": 2, "target_modules": ["c_attn"], "bias": "all"}),
    "gpt2 dora": ("gpt2", {"r": 2, "target_modules": ["c_attn", "c_proj"], "use_dora": True}),
    "bias of the second factor": ("biased", {"r": 2, "target_modules": ["q_proj", "down_proj"], "lora_bias": True}),
    "biases of what is adapted": ("biased", {"r": 2, "target_modules": ["q_proj"], "bias": "lora_only"}),
    "a whole block": ("untied", {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["mlp"]}),
    "trained tokens": ("untied", {"r": 2, "target_modules": ["q_proj"], "trainable_token_indices": [9, 3, 5]}),
    "trained tokens, twice": (
        "untied",
        {"r": 2, "target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3], "lm_head": [4, 9]}},
    ),
    "trained tokens, tied": ("tied", {"r": 2, "target_modules": ["q_proj"], "trainable_token_indices": [9, 3]}),
    "whole embeddings, tied by peft": (
        "tied",
        {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "dora on embeddings": ("untied", {"r": 2, "target_modules": ["embed_tokens", "q_proj"], "use_dora": True}),
    "velora": ("untied", {"r": 2, "target_modules": ["q_proj"], "velora_config": {"num_groups": 4}}),
    "a mixture, all linear": ("mixtral", {"r": 2, "target_modules": "all-linear"}),
    "a mixture, one parameter": (
        "mixtral",
        {"r": 2, "target_modules": ["q_proj"], "target_parameters": ["experts.down_proj"], "use_rslora": True},
    ),
    "a mixture, square and stored turned": (
        "gpt-oss",
        {
            "r": 2,
            "target_modules": [],
            "target_parameters": ["experts.gate_up_proj", "mlp.experts.down_proj"],
            "rank_pattern": {"experts.down_proj": 3},
            "alpha_pattern": {r".*\.1\..*gate_up_proj": 5},
        },
    ),
    "within a multimodal wrapper": (
        "gemma3",
        {"r": 2, "target_modules": r".*language_model.*\.(q_proj|down_proj)", "bias": "none"},
    ),
    "vision tower and a convolution": ("gemma3", {"r": 2, "target_modules": ["patch_embedding", "fc1", "v_proj"]}),
    "gpt-neox, its head": ("gpt-neox", {"r": 2, "target_modules": ["query_key_value", "lm_head"]}),
}


@pytest.mark.parametrize("case", PEFT)
def test_bit_for_bit_what_peft_merges_in_float32(case, bases, tmp_path):
    kind, settings = PEFT[case]
    merged = by_peft(bases(kind), tmp_path, torch.float32, settings)
    pool = pool_of(bases(kind), tmp_path)
    model = pool.live_model()
    materialize(Expert("lora"), pool, model)
    base = load_model(bases(kind), torch.float32, "cpu").state_dict()
    changed = {name for name, value in merged.state_dict().items() if not torch.equal(value, base[name])}
    assert len(changed) >= 2
    for name, value in merged.state_dict().items():
        if settings.get("use_dora"):  # norms are summed in another order over a transposed matrix
            torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-6, atol=1e-7)
        else:
            assert torch.equal(model.state_dict()[name], value), name
    ids = torch.arange(8)[None]
    if not settings.get("use_dora"):
        assert torch.equal(model(ids).logits, merged(ids).logits)
    kept = {info.name for info in pool.tensors if pool.shares_base("lora", info.name)}
    assert not kept & changed
    assert kept


@pytest.mark.parametrize(
    "case", ["list of modules", "whole modules", "embeddings and head", "dora", "gpt2", "a mixture, all linear"]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_within_one_ulp_of_what_peft_merges_in_half_precision(case, dtype, bases, tmp_path):
    kind, settings = PEFT[case]
    merged = by_peft(bases(kind, dtype), tmp_path, dtype, settings).state_dict()
    pool = pool_of(bases(kind, dtype), tmp_path)
    model = pool.live_model(dtype)
    materialize(Expert("lora"), pool, model)
    for name, value in model.state_dict().items():
        assert value.dtype == dtype
        apart = (value.view(torch.int16).int() - merged[name].view(torch.int16).int()).abs()
        assert apart[value.sign() == merged[name].sign()].max() <= 1, name


def in_each_vocabulary(base: Path, folder: Path) -> Adapter:
    """Open an adapter by itself: a pool would cut its vocabulary to the base's."""
    return Adapter(str(folder), Checkpoint(str(base)))


@pytest.mark.parametrize("kind", ["untied", "tied"])
@pytest.mark.parametrize("trained", [["embed_tokens", "lm_head"], None])
def test_added_tokens_are_the_adapters_and_its_untouched_copies_are_passed_over(kind, trained, bases, tmp_path):
    settings = {"r": 2, "target_modules": ["q_proj"], "modules_to_save": trained}
    settings |= {"ensure_weight_tying": True} if kind == "tied" and trained else {}
    merged = by_peft(bases(kind), tmp_path, torch.float32, settings, vocabulary=58)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert any("original_module" in name for name in stored) == bool(trained)
    ours = in_each_vocabulary(bases(kind), tmp_path)
    assert ours.vocabulary == 58
    assert ours.tied == (kind == "tied")
    for name in ours.tensors:
        if trained or name in ("model.embed_tokens.weight", "lm_head.weight"):
            bare = f"base_model.model.{name}"
            expected = merged.state_dict()[name] if trained else stored[bare]
            assert torch.equal(ours.load(name), expected), name
    text = refused(bases(kind), tmp_path)
    assert "lora: vocabulary size is 58, the base's is 50" in text


def test_copies_of_one_tensor_that_differ_are_refused_by_name(bases, adapter):
    name = "lm_head"
    copies = {f"{name}.weight": torch.ones(50, 16), f"{name}.modules_to_save.weight": torch.zeros(50, 16)}
    text = refused(bases("untied"), adapter(copies, "differ"))
    assert (
        "base_model.model.lm_head.modules_to_save.weight and base_model.model.lm_head.weight are one tensor's" in text
    )
    text = refused(bases("untied"), adapter({f"{name}.original_module.weight": torch.ones(50, 16)}, "untrained"))
    assert "lm_head.original_module.weight: a copy of the base's, without the tensor that was trained" in text


def test_an_adapter_of_the_text_model_fits_its_wrapper_and_the_other_way_round(bases, adapter, tmp_path):
    wrapper, text = bases("gemma3"), tmp_path / "text"
    model = load_model(wrapper, torch.float32, "cpu")
    text.mkdir()
    config = json.loads((wrapper / "config.json").read_text())["text_config"]
    (text / "config.json").write_text(json.dumps(config | {"architectures": ["Gemma3ForCausalLM"]}))
    inside = {f"model.{name}": tensor.contiguous() for name, tensor in model.model.language_model.state_dict().items()}
    save_file(inside, text / "model.safetensors", metadata={"format": "pt"})
    q = "layers.1.self_attn.q_proj"
    a, b = factors(outputs=16).values()
    expected = inside[f"model.{q}.weight"] + (b @ a) * 3.0
    for number, prefix in enumerate(("model.", "model.language_model.", "language_model.model.", "language_model.")):
        folder = adapter(factors(f"{prefix}{q}"), f"a{number}")
        for base, name in ((text, f"model.{q}.weight"), (wrapper, f"language_model.model.{q}.weight")):
            assert torch.equal(pool_of(base, folder).load("lora", name), expected), (prefix, base)
    tower = adapter(factors("model.vision_tower.encoder.layers.1.self_attn.q_proj"), "tower")
    name = "vision_tower.encoder.layers.1.self_attn.q_proj.weight"
    assert torch.equal(pool_of(wrapper, tower).load("lora", name), Checkpoint(str(wrapper)).load(name) + (b @ a) * 3.0)
    assert "vision_tower.encoder.layers.1.self_attn.q_proj.lora_A.weight has no place" in refused(text, tower)


def test_a_mixture_of_another_release_is_adapted_expert_by_expert(bases, adapter):
    module = "model.layers.0.block_sparse_moe.experts.2.w3"
    pool = pool_of(bases("mixtral"), adapter(factors(module, outputs=24)))
    a, b = factors(module, outputs=24).values()
    expected = pool.load("base", f"{module}.weight") + (b @ a) * 3.0
    assert torch.equal(pool.load("lora", f"{module}.weight"), expected)
    assert sum(not pool.shares_base("lora", info.name) for info in pool.tensors) == 1


def test_factors_of_stacked_experts_have_the_rank_of_each(bases, adapter):
    module, targets = "model.layers.0.mlp.experts", {"target_parameters": ["experts.down_proj"]}
    text = refused(bases("mixtral"), adapter(factors(module, inputs=24, rank=5), "odd", **targets))
    assert "lora_B have shapes (5, 24) and (16, 5), expected rank 2 for each of 3 experts" in text
    text = refused(bases("mixtral"), adapter(factors(module, inputs=16, rank=6), "wide", **targets))
    assert "make a product of shape (16, 16), model.layers.0.mlp.experts.down_proj has (16, 24)" in text
    text = refused(bases("mixtral"), adapter(factors(f"{module}.base_layer", inputs=24, rank=6), "deep", **targets))
    assert f"{module}.base_layer.lora_A.weight has no place in the base" in text
    text = refused(bases("mixtral"), adapter(factors(module, inputs=24, rank=6), "unsaid"))
    assert f"{module}.lora_A.weight has no place in the base" in text


def test_two_updates_of_one_tensor_are_refused(bases, adapter):
    tensors = factors("model.layers.0.self_attn.q_proj") | factors("layers.0.self_attn.q_proj")
    tensors |= factors("model.language_model.layers.0.self_attn.q_proj")
    assert "a second update of model.layers.0.self_attn.q_proj.weight, beside" in refused(
        bases("untied"), adapter(tensors)
    )


def test_where_transformers_cannot_build_the_base_the_reason_stands_beside_the_fault(bases, adapter, tmp_path):
    base = tmp_path / "unknown"
    shutil.copytree(bases("untied"), base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"model_type": "of_tomorrow"}))
    with pytest.raises(InputError) as caught:
        Adapter(str(adapter(factors("model.towers.0.q_proj"))), Checkpoint(str(base)))
    assert "model.towers.0.q_proj.lora_A.weight has no place in the base" in str(caught.value)
    assert "names are compared as they stand: " in str(caught.value)
    assert Adapter(str(adapter(factors(), "plain")), Checkpoint(str(base))).shares_base("lm_head.weight")


def test_adapters_that_lie_elsewhere_are_told(bases, adapter, tmp_path):
    folder = adapter(factors())
    (folder / "law").mkdir()
    (folder / "adapter_model.safetensors").rename(folder / "law" / "adapter_model.safetensors")
    assert "there is one in each of law: name one of these folders" in refused(bases("untied"), folder)
    (folder / "adapter_model.bin").write_bytes(b"")
    assert "adapter_model.bin is pickled, which can run code when opened" in refused(bases("untied"), folder)


def test_the_equation(bases, adapter):
    folder = adapter(factors())
    pool = pool_of(bases("untied", torch.bfloat16), folder)
    a, b = factors().values()
    base = pool.load("base", f"{Q}.weight")
    assert base.dtype == torch.bfloat16
    expected = (base.float() + (b @ a) * 3.0).to(torch.bfloat16)  # 6 / 2, rounded once
    assert torch.equal(pool.load("lora", f"{Q}.weight"), expected)
    other = "model.layers.1.self_attn.q_proj.weight"
    assert pool.load("lora", other).data_ptr() == pool.load("base", other).data_ptr()
    assert not pool.shares_base("lora", f"{Q}.weight")
    assert pool.shares_base("lora", other)
    assert [p.name for p in folder.iterdir() if p.suffix == ".safetensors"] == ["adapter_model.safetensors"]


def test_adapters_are_summed_as_products_not_as_factors(bases, adapter):
    first, second = adapter(factors(seed=1), "first"), adapter(factors(seed=2), "second")
    pool = ExpertPool.open(str(bases("untied")), {"first": str(first), "second": str(second)})
    model = pool.live_model()
    materialize(Merge("linear", (Expert("first"), Expert("second")), weights=(0.5, 0.5)), pool, model)
    (a1, b1), (a2, b2) = factors(seed=1).values(), factors(seed=2).values()
    expected = pool.load("base", f"{Q}.weight") + 1.5 * (b1 @ a1 + b2 @ a2)
    torch.testing.assert_close(pool.parameters(model)[f"{Q}.weight"].detach(), expected)


def test_a_square_matrix_of_gpt2_is_turned_whatever_the_settings_say(bases, adapter):
    module = "transformer.h.0.attn.c_proj"
    pool = pool_of(bases("gpt2"), adapter(factors(module), fan_in_fan_out=False))
    a, b = factors(module).values()
    expected = pool.load("base", f"{module}.weight") + (b @ a).T * 3.0
    assert torch.equal(pool.load("lora", f"{module}.weight"), expected)


def test_names_without_the_models_prefix(bases, adapter, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(bases("gpt2") / "config.json", bare)
    tensors = load_file(bases("gpt2") / "model.safetensors")
    bare_tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(bare_tensors, bare / "model.safetensors", metadata={"format": "pt"})
    module = "h.1.attn.c_attn"
    folder = adapter(factors(f"transformer.{module}", outputs=48))
    assert torch.equal(
        pool_of(bare, folder).load("lora", f"{module}.weight"),
        pool_of(bases("gpt2"), folder).load("lora", f"transformer.{module}.weight"),
    )


def test_the_fingerprint_is_of_adapter_scale_and_base(bases, adapter, tmp_path):
    base, other = Checkpoint(str(bases("untied"))), Checkpoint(str(bases("untied", torch.bfloat16)))
    same = adapter(factors(), "a"), adapter(factors(), "b", lora_dropout=0.1, base_model_name_or_path="elsewhere")
    fingerprints = {Adapter(str(folder), base).fingerprint for folder in same}
    assert len(fingerprints) == 1
    fingerprints.add(base.fingerprint)
    fingerprints.add(Adapter(str(same[0]), other).fingerprint)
    fingerprints.add(Adapter(str(adapter(factors(), "c", lora_alpha=7)), base).fingerprint)
    fingerprints.add(Adapter(str(adapter(factors(), "d", use_rslora=True)), base).fingerprint)
    fingerprints.add(Adapter(str(adapter(factors(seed=1), "e")), base).fingerprint)
    fingerprints.add(Adapter(str(adapter(factors("model.layers.1.self_attn.q_proj"), "f")), base).fingerprint)
    assert len(fingerprints) == 7


def test_nan_and_overflow_are_named(bases, adapter):
    spoilt = factors()
    spoilt[f"{Q}.lora_A.weight"][0, 0] = float("inf")
    text = refused(bases("untied"), adapter(spoilt, "spoilt"))
    assert f"NaN or infinite weights in {Q}.weight A" in text
    huge = {name: tensor * 1e3 for name, tensor in factors().items()}
    pool_of(bases("untied"), adapter(huge, "huge"))
    text = refused(bases("untied", torch.float16), adapter(huge, "huge in float16"))
    assert f"base and adapter add up to NaN or infinite weights in {Q}.weight" in text


def test_every_tensor_without_a_place_is_listed_at_once(bases, adapter):
    tensors = {
        **factors("model.layers.9.self_attn.q_proj"),
        **factors("model.layers.0.self_attn.k_proj", outputs=8, inputs=17),
        **factors("model.layers.0.self_attn.v_proj", outputs=8, rank=3),
        "model.layers.0.mlp.up_proj.lora_A.weight": torch.zeros(2, 16),
        "model.layers.0.mlp.down_proj.lora_C.weight": torch.zeros(2, 16),
        "score.weight": torch.zeros(2, 16),
        f"{Q}.lora_A.weight": torch.zeros(2, 16, dtype=torch.int8),
    }
    assert refused(bases("untied"), adapter(tensors)).splitlines()[2:] == [
        "      base_model.model.model.layers.0.mlp.down_proj.lora_C.weight has no place in the base",
        f"      base_model.model.{Q}.lora_A.weight has dtype I8, expected F32, BF16, F16",
        "      base_model.model.score.weight has no place in the base",
        "      base_model.model.model.layers.0.mlp.up_proj.lora_A.weight: "
        "expected both lora_A and lora_B of model.layers.0.mlp.up_proj",
        "      base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight and lora_B make a product of shape (8, 17), "
        "model.layers.0.self_attn.k_proj.weight has (8, 16)",
        "      base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight and lora_B have shapes (3, 16) and (8, 3), "
        "expected rank 2",
        "      base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight has no place in the base",
        "      base_model.model.model.layers.9.self_attn.q_proj.lora_B.weight has no place in the base",
    ]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            factors("lm_head", outputs=50),
            "lm_head.lora_A.weight: LoRA on a head tied to the embeddings, which would untie",
        ),
        (
            {
                "model.embed_tokens.lora_embedding_A": torch.ones(2, 50),
                "model.embed_tokens.lora_embedding_B": torch.ones(16, 2),
            },
            "model.embed_tokens.lora_embedding_A: LoRA on embeddings tied to the head, which was trained as if untied",
        ),
        (
            {"lm_head.token_adapter.trainable_tokens_delta": torch.ones(2, 16)},
            "lm_head.token_adapter.trainable_tokens_delta: tokens of a head tied to the embeddings, trained apart",
        ),
        ({"model.embed_tokens.weight": torch.ones(50, 16)}, "model.embed_tokens.weight unties the head"),
        ({"lm_head.weight": torch.ones(50, 16)}, "lm_head.weight unties the head"),
        (
            {"lm_head.weight": torch.ones(50, 16), "model.embed_tokens.weight": torch.zeros(50, 16)},
            "lm_head.weight unties the head",
        ),
    ],
)
def test_what_would_untie_the_head_is_refused_by_name(tensors, message, bases, adapter):
    assert message in refused(bases("tied"), adapter(tensors))


def test_embeddings_that_peft_ties_and_merges_twice_are_refused_by_name(bases, tmp_path):
    settings = {"r": 2, "target_modules": ["embed_tokens"], "ensure_weight_tying": True}
    merged = by_peft(bases("tied"), tmp_path, torch.float32, settings).get_input_embeddings().weight
    stored = load_file(tmp_path / "adapter_model.safetensors")
    a, b = (stored[f"base_model.model.model.embed_tokens.lora_embedding_{factor}"] for factor in "AB")
    base = Checkpoint(str(bases("tied"))).load("model.embed_tokens.weight")
    torch.testing.assert_close(merged - base, 2 * (b @ a).T * 4.0)  # 8 / 2; once it would be what was trained
    assert "ensure_weight_tying), which PEFT's own merge adds twice" in refused(bases("tied"), tmp_path)


def test_embeddings_and_head_replaced_alike_stay_tied(bases, adapter):
    ones = {"lm_head.weight": torch.ones(50, 16), "model.embed_tokens.weight": torch.ones(50, 16)}
    pool = pool_of(bases("tied"), adapter(ones))
    assert torch.equal(pool.load("lora", "model.embed_tokens.weight"), torch.ones(50, 16))


def test_whole_tensors_take_the_dtype_of_the_bases_as_peft_loads_them(bases, adapter):
    values = torch.randn(50, 16, generator=torch.Generator().manual_seed(4))
    ours = Adapter(str(adapter({"lm_head.weight": values})), Checkpoint(str(bases("untied", torch.bfloat16))))
    assert ours.tensors["lm_head.weight"].dtype == "BF16"
    assert torch.equal(ours.load("lm_head.weight"), values.to(torch.bfloat16))
    assert not ours.stored("lm_head.weight")
    same = Adapter(str(adapter({"lm_head.weight": values}, "same")), Checkpoint(str(bases("untied"))))
    assert same.stored("lm_head.weight")


def test_whole_tensors_of_another_shape_are_named(bases, adapter):
    text = refused(bases("untied"), adapter({**factors(), "model.norm.weight": torch.ones(17)}))
    assert "  - lora: model.norm.weight has shape (17,), expected (16,)" in text.splitlines()


def test_folders_that_are_no_adapter_of_this_base(bases, adapter, tmp_path):
    folder = adapter(factors())
    with pytest.raises(InputError, match=r"base: .*expected a model, got an adapter"):
        ExpertPool.open(str(folder), {"lora": str(bases("untied"))})
    with pytest.raises(InputError) as caught:
        ExpertPool.open(str(tmp_path / "gone"), {"lora": str(folder), "lost": str(tmp_path / "lost")})
    assert [line.split(":")[0] for line in str(caught.value).splitlines()[1:]] == ["  - base", "  - lost"]
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert "an adapter without adapter_model.safetensors" in refused(bases("untied"), folder)
    (folder / "adapter_model.safetensors").write_bytes(b"no")
    assert "truncated, or not a safetensors file" in refused(bases("untied"), folder)
    save_file({}, folder / "adapter_model.safetensors")
    assert "there are none" in refused(bases("untied"), folder)
    (folder / "adapter_config.json").write_text("[]")
    assert "expected a PEFT adapter's settings, got list" in refused(bases("untied"), folder)


def test_an_adapter_on_the_hub_without_the_hub_is_one_clear_error(bases, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        InputError, match=r"lora: 'nobody/lora@v1' is neither a local folder .* nor a model the hub gives"
    ):
        ExpertPool.open(str(bases("untied")), {"lora": "nobody/lora@v1"})


def test_composed_tensors_count_into_bounded_memory_and_stored_ones_take_none(bases, adapter):
    base = bases("untied")
    folders = {f"x{i}": str(adapter(factors(seed=i), name=f"x{i}")) for i in range(10)}
    pool = ExpertPool.open(str(base), folders)
    name = next(info.name for info in pool.tensors if Q in info.name)
    assert not pool.stored("x0", name)
    assert pool.stored("base", name)
    assert all(pool.stored("x0", info.name) for info in pool.tensors if info.name != name)
    lent = []
    taken = Buffers.take
    recipe = Merge("linear", tuple(Expert(each) for each in folders), tuple(range(1, 11)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Buffers, "take", lambda self, *size: lent.append(size) or taken(self, *size))
        plan = Plan(recipe, pool, "cpu", None)
        merged = {info.name: plan.tensor(info) for info in pool.tensors}
    assert len(lent) == 10
    wanted = sum((i + 1) / 55 * pool.load(f"x{i}", name).double() for i in range(10))
    torch.testing.assert_close(merged[name].double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["untied", "gpt2"])
@pytest.mark.parametrize("dora", [False, True])
def test_bands_of_any_height_compose_the_same(kind, dora, bases, tmp_path, monkeypatch):
    modules = ["q_proj", "up_proj"] if kind == "untied" else ["c_attn", "c_fc"]
    settings = {"r": 3, "target_modules": modules, "use_dora": dora}
    by_peft(bases(kind), tmp_path, torch.float32, settings)
    adapter = Adapter(str(tmp_path), Checkpoint(str(bases(kind))))
    adapted = [name for name in adapter.tensors if not adapter.shares_base(name)]
    whole = {name: adapter.load(name) for name in adapted}
    monkeypatch.setattr("sae_moo.experts.updates.BAND", 50)
    assert len(adapted) == 4
    for name in adapted:
        torch.testing.assert_close(adapter.load(name), whole[name], rtol=1e-6, atol=1e-7)
