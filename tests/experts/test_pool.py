from __future__ import annotations

import dataclasses
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_moo.errors import InputError
from sae_moo.experts.checkpoint import Checkpoint, digest_of
from sae_moo.experts.layout import group_name
from sae_moo.experts.pool import ExpertPool
from sae_moo.materialization.into_model import materialize
from sae_moo.recipe import Expert, Merge


@pytest.fixture
def copy(tiny_folders, tmp_path):
    """Return a function that copies an expert's folder, to be spoilt."""

    def copied(name: str = "math", to: str = "copy"):
        return shutil.copytree(tiny_folders[name], tmp_path / to)

    return copied


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("tensor", "group"),
    [
        ("model.embed_tokens.weight", "embeddings"),
        ("model.layers.0.self_attn.q_proj.weight", "block.0"),
        ("model.layers.12.mlp.gate_up_proj.weight", "block.12"),
        ("model.norm.weight", "head"),
        ("lm_head.weight", "head"),
        ("transformer.wte.weight", "embeddings"),
        ("wpe.weight", "embeddings"),
        ("h.3.attn.c_attn.weight", "block.3"),
        ("transformer.ln_f.bias", "head"),
        ("gpt_neox.embed_in.weight", "embeddings"),
        ("gpt_neox.layers.7.attention.dense.bias", "block.7"),
        ("gpt_neox.final_layer_norm.weight", "head"),
        ("embed_out.weight", "head"),
    ],
)
def test_groups_come_from_names(tensor, group):
    assert group_name(tensor) == group


def test_pool_order_and_prunable_weights(tiny):
    assert tiny.names == ("base", "math", "code", "law")
    assert tiny.groups == ("embeddings", "block.0", "block.1", "head")
    assert [info.group for info in tiny.tensors] == sorted(info.group for info in tiny.tensors)
    prunable = {info.name.split(".", 3)[-1] for info in tiny.tensors if info.prunable}
    assert prunable == {f"self_attn.{x}_proj.weight" for x in "qkvo"} | {
        f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")
    }


def test_a_tied_head_is_no_tensor_of_its_own(tiny):
    assert tiny.checkpoints["base"].tied
    assert not any("lm_head" in info.name for info in tiny.tensors)


def test_sharding_changes_nothing(tiny_folders, tmp_path, tiny):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_folders["math"])
    model.save_pretrained(tmp_path / "sharded", max_shard_size="8KB")
    shutil.copy(tiny_folders["math"] / "tokenizer.json", tmp_path / "sharded")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    sharded = Checkpoint(str(tmp_path / "sharded"))
    assert sharded.fingerprint == tiny.fingerprints["math"]
    for name in sharded.tensors:
        assert torch.equal(sharded.load(name), tiny.load("math", name))


def test_fingerprints_are_of_content_not_place(copy, tiny):
    folder = copy()
    assert Checkpoint(str(folder)).fingerprint == tiny.fingerprints["math"]
    rewrite(folder, lambda tensors: tensors["model.norm.weight"].add_(1e-3))
    assert Checkpoint(str(folder)).fingerprint != tiny.fingerprints["math"]
    assert len(set(tiny.fingerprints.values())) == 4


def test_another_file_of_the_same_size_place_and_time_has_its_own_fingerprint(copy, tiny, tiny_folders):
    folder = copy()
    for name in ("math", "code", "law", "math"):
        content = (tiny_folders[name] / "model.safetensors").read_bytes()
        for put in ("replaced", "written over"):
            if put == "replaced":
                (folder / "new").write_bytes(content)
                (folder / "new").replace(folder / "model.safetensors")
            else:
                (folder / "model.safetensors").write_bytes(content)
            os.utime(folder / "model.safetensors", (1, 1))
            assert Checkpoint(str(folder)).fingerprint == tiny.fingerprints[name], put


def test_a_file_replaced_after_it_was_opened_is_not_taken_for_what_was_read(copy, tiny, tiny_folders):
    folder = copy()
    read = Checkpoint(str(folder))
    shutil.copy(tiny_folders["code"] / "model.safetensors", folder / "new")
    (folder / "new").replace(folder / "model.safetensors")
    assert read.fingerprint == tiny.fingerprints["math"], "what it holds open"
    assert Checkpoint(str(folder)).fingerprint == tiny.fingerprints["code"], "nothing was remembered of the other"
    assert read.fingerprint == tiny.fingerprints["math"]


def test_a_fingerprint_is_computed_once(copy, monkeypatch):
    folder = copy()
    first = Checkpoint(str(folder)).fingerprint
    monkeypatch.setattr("sae_moo.experts.checkpoint.digest_of", None)
    assert Checkpoint(str(folder)).fingerprint == first


def test_a_tied_head_stored_again_is_the_same_expert(copy, tiny):
    folder = copy()
    rewrite(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    again = Checkpoint(str(folder))
    assert again.tied
    assert again.fingerprint == tiny.fingerprints["math"]


def test_every_difference_is_listed_at_once(copy, tiny_folders):
    folder = copy()

    def change(tensors):
        del tensors["model.layers.0.input_layernorm.weight"]
        tensors["model.layers.1.extra.weight"] = torch.zeros(2)
        tensors["model.norm.weight"] = torch.zeros(17)
        tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"].to(torch.int8)
        tensors["model.embed_tokens.weight"] = torch.zeros(700, 16)
        tensors["lm_head.weight"] = torch.ones(700, 16)

    rewrite(folder, change)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    with pytest.raises(InputError) as caught:
        ExpertPool.open(str(tiny_folders["base"]), {"math": str(tiny_folders["math"]), "bad": str(folder)})
    vocabulary = load_file(tiny_folders["base"] / "model.safetensors")["model.embed_tokens.weight"].shape[0]
    assert str(caught.value).splitlines() == [
        "the experts do not fit the base:",
        "  - bad: 1 tensors of dtype I8; expected F32, BF16, F16",
        "  - bad: head is of its own, the base's is tied to the embeddings",
        "  - bad: tensor model.layers.0.input_layernorm.weight is missing",
        "  - bad: tensor model.layers.1.extra.weight is not in the base",
        "  - bad: model.norm.weight has shape (17,), expected (16,)",
        f"  - bad: vocabulary size is 700, the base's is {vocabulary}; models.vocabulary: intersection, base "
        "or union (ExpertPool.open(..., vocabulary=...); tokenizer_source in a mergekit configuration) matches rows by token",
    ]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": "mistral", "num_attention_heads": 8}, ["architecture is mistral, the base's is llama"]),
        (
            {"hidden_size": 32, "num_hidden_layers": 6},
            [
                "hidden_size in config.json is 32, the base's is 16",
                "num_hidden_layers in config.json is 6, the base's is 2",
            ],
        ),
    ],
)
def test_what_explains_other_tensors_is_told_instead_of_them(copy, tiny_folders, changes, told):
    folder = copy()
    rewrite(folder, lambda tensors: tensors.update({"model.layers.5.extra.weight": torch.zeros(2)}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(InputError) as caught:
        ExpertPool.open(str(tiny_folders["base"]), {"bad": str(folder)})
    assert str(caught.value).splitlines()[1:] == [f"  - bad: {line}" for line in told]


@pytest.mark.parametrize("dtype", ["float31", "int8", torch.int8, None])
def test_a_live_model_has_a_dtype_of_weights(tiny, dtype):
    with pytest.raises(InputError, match="dtype: expected one of float32, bfloat16, float16, got"):
        tiny.live_model(dtype)


@pytest.mark.parametrize("device", ["cud", "cpu:x"])
def test_a_device_that_is_none_is_one_message(tiny, device):
    with pytest.raises(InputError, match=f"device: expected one that torch has here, got '{device}'"):
        tiny.live_model("float32", device)


@pytest.mark.parametrize(
    ("base", "experts", "message"),
    [
        ("zoo:base", ["zoo:math"], "experts: expected names and sources, .*, got list"),
        ("zoo:base", "zoo:math", "experts: expected names and sources, .*, got str"),
        (None, {"m": "zoo:math"}, "base: expected the name of a model and a folder or hub id, got None"),
        ("zoo:base", {"m": 3}, "m: expected the name of a model and a folder or hub id, got 3"),
        ("zoo:base", {1: "zoo:math"}, "1: expected the name of a model"),
    ],
)
def test_what_is_no_source_is_one_message(base, experts, message):
    with pytest.raises(InputError, match=message):
        ExpertPool.open(base, experts)


def test_a_class_without_a_language_model_is_named_shortly(copy, tiny_folders):
    folder = copy()
    config = json.loads((folder / "config.json").read_text())
    for kind, architecture in (("vit", "ViTForImageClassification"), ("t5", "T5ForConditionalGeneration")):
        changed = config | {"model_type": kind, "architectures": [architecture]}
        (folder / "config.json").write_text(json.dumps(changed))
        with pytest.raises(InputError) as caught:
            ExpertPool({"base": Checkpoint(str(folder))}).live_model()
        assert len(str(caught.value)) < 300 + len(str(folder))
        assert architecture in str(caught.value)
        assert "no causal language model" in str(caught.value)


def test_every_folder_that_cannot_be_opened_is_named(copy, tiny_folders, tmp_path):
    pickled = copy(to="pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    short = copy(to="short")
    content = (short / "model.safetensors").read_bytes()
    (short / "model.safetensors").write_bytes(content[: len(content) // 2])
    empty = tmp_path / "empty"
    empty.mkdir()
    adapter = copy(to="adapter")
    (adapter / "model.safetensors").rename(adapter / "adapter_model.safetensors")
    shard = copy(to="shard")
    (shard / "model.safetensors").unlink()
    (shard / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    experts = {"pickled": pickled, "short": short, "empty": empty, "adapter": adapter, "shard": shard}
    named = {name: str(path) for name, path in experts.items()} | {"gone": str(tmp_path / "gone"), "zoo": "zoo:maths"}
    with pytest.raises(InputError) as caught:
        ExpertPool.open(str(tiny_folders["base"]), named)
    lines = str(caught.value).splitlines()
    assert len(lines) == 8
    for name, message in {
        "pickled": "only pickled weights (pytorch_model.bin), which can run code when opened",
        "short": "truncated, or not a safetensors file",
        "empty": "expected a model's config.json, there is no such file",
        "adapter": "holds a LoRA adapter without its adapter_config.json",
        "shard": "shards named in model.safetensors.index.json are missing: model-1.safetensors",
        "gone": "no such folder",
        "zoo": "unknown zoo model 'maths'; expected one of base, math, lingua, logic",
    }.items():
        assert any(line.startswith(f"  - {name}: ") and message in line for line in lines), (name, lines)


def test_settings_that_change_what_weights_compute_must_agree(copy, tiny_folders):
    folder = copy()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_attention_heads": 4, "eos_token_id": 7}))
    with pytest.raises(InputError) as caught:
        ExpertPool.open(str(tiny_folders["base"]), {"bad": str(folder)})
    assert str(caught.value).splitlines()[1:] == ["  - bad: num_attention_heads in config.json is 4, the base's is 2"]


def test_odd_tensors_and_folders_are_one_message(copy, tiny_folders):
    folder = copy(to="scalar")
    rewrite(folder, lambda tensors: tensors.update({"model.scale": torch.tensor(1.0)}))
    assert len(Checkpoint(str(folder)).fingerprint) == 64
    rewrite(folder, lambda tensors: tensors.clear())
    with pytest.raises(InputError, match="holds no tensors"):
        ExpertPool({"base": Checkpoint(str(folder))})
    index = copy(to="index")
    (index / "model.safetensors").rename(index / "x.safetensors")
    (index / "model.safetensors.index.json").write_text('{"weight_map": {"a": 1}}')
    with pytest.raises(InputError, match="expected an object 'weight_map' of tensor names"):
        Checkpoint(str(index))
    broken = copy(to="broken")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"hidden_size": "big"}))
    with pytest.raises(InputError, match="transformers cannot load this as a causal LM"):
        ExpertPool({"base": Checkpoint(str(broken))}).live_model()


def test_nan_is_found_and_named(copy, tiny_folders):
    folder = copy()
    rewrite(folder, lambda tensors: tensors["model.norm.weight"].__setitem__(3, float("nan")))
    with pytest.raises(InputError, match=r"NaN or infinite weights in model\.norm\.weight"):
        ExpertPool.open(str(tiny_folders["base"]), {"bad": str(folder)})


@pytest.mark.parametrize(("experts", "message"), [({}, "at least one"), ({"base": "x"}, "'base' names the base model")])
def test_names_of_experts(tiny_folders, experts, message):
    with pytest.raises(InputError, match=message):
        ExpertPool.open(str(tiny_folders["base"]), experts)


def test_a_hub_id_without_the_hub_is_one_clear_error(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"'nobody/nothing' is neither a local folder .* nor a model the hub gives us"):
        Checkpoint("nobody/nothing")


def test_dtypes_may_differ(copy, tiny_folders, tiny):
    folder = copy()

    def change(tensors):
        for i, (name, tensor) in enumerate(list(tensors.items())):
            tensors[name] = tensor.to((torch.bfloat16, torch.float16, torch.float32)[i % 3])

    rewrite(folder, change)
    pool = ExpertPool.open(str(tiny_folders["base"]), {"code": str(tiny_folders["code"]), "mixed": str(folder)})
    stored = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16, torch.float16, torch.float32}
    model = pool.live_model()
    materialize(Merge("linear", (Expert("code"), Expert("mixed")), weights=(0.5, 0.5)), pool, model)
    for name, place in pool.parameters(model).items():
        assert torch.equal(pool.load("mixed", name), stored[name])
        torch.testing.assert_close(place, (tiny.load("code", name) + stored[name].float()) / 2, rtol=0, atol=1e-7)


def test_one_setting_written_in_two_ways_is_one_setting(copy, tiny_folders):
    old, new = copy(to="old"), copy(to="new")
    config = json.loads((old / "config.json").read_text())
    theta = config.pop("rope_parameters")["rope_theta"]
    (old / "config.json").write_text(json.dumps(config | {"rope_theta": theta, "rope_scaling": None}))
    ExpertPool.open(str(new), {"old": str(old)})
    (old / "config.json").write_text(json.dumps(config | {"rope_theta": 5 * theta}))
    with pytest.raises(InputError, match=r"old: rope_parameters in config.json is .*50000"):
        ExpertPool.open(str(new), {"old": str(old)})


def test_a_folder_is_a_model_or_an_adapter(copy, tiny_folders):
    folder = copy()
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="holds both a model and an adapter"):
        ExpertPool.open(str(tiny_folders["base"]), {"both": str(folder)})


def test_what_is_known_to_be_the_base(tiny):
    name = tiny.tensors[0].name
    assert tiny.shares_base("base", name)
    assert not tiny.shares_base("math", name)
    assert [tiny.owner(each, name) for each in ("base", "math")] == ["base", "math"]


def test_only_what_has_the_dtype_of_the_base_too_is_taken_for_it(tiny, monkeypatch):
    monkeypatch.setattr(ExpertPool, "shares_base", lambda *_: True)
    name = tiny.tensors[0].name
    assert tiny.owner("math", name) == "base"
    facts = tiny.checkpoints["math"].tensors[name]
    monkeypatch.setitem(tiny.checkpoints["math"].tensors, name, dataclasses.replace(facts, dtype="BF16"))
    assert tiny.owner("math", name) == "math"


def test_experts_stay_on_another_device_while_they_fit(tiny):
    """The meta device stands in for a GPU: tensors there have no content, but a place."""
    info = tiny.tensors[0]
    pool = ExpertPool(tiny.checkpoints)
    assert pool.load_on("math", info.name, "cpu") is pool.load("math", info.name)
    pool.resident_bytes = 2 * pool.load("math", info.name).nbytes
    kept = pool.load_on("math", info.name, "meta")
    assert kept.device.type == "meta"
    assert pool.load_on("math", info.name, "meta") is kept
    assert pool.load_on("code", info.name, "meta") is pool.load_on("code", info.name, "meta")
    assert pool.load_on("law", info.name, "meta") is not pool.load_on("law", info.name, "meta"), "no room any more"


@pytest.mark.parametrize("place", [0, 7, 9])
def test_weights_are_looked_at_in_parts_and_all_of_them(monkeypatch, place):
    monkeypatch.setattr("sae_moo.experts.checkpoint.PART", 4)
    looked = []
    monkeypatch.setattr("torch.isfinite", lambda part, seen=torch.isfinite: looked.append(part.numel()) or seen(part))
    weights = torch.zeros(10)
    digest_of("m", [("w", weights), ("empty", torch.zeros(0, 3))])
    assert max(looked) == 4
    assert sum(looked) == 10
    weights[place] = torch.nan
    with pytest.raises(InputError, match="m: NaN or infinite weights in w"):
        digest_of("m", [("w", weights)])
