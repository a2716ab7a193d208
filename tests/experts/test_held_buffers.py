"""Buffers that checkpoints hold: correction biases of routers and the like, counters, tables."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from stand_ins import weights_of

from sae_moo.deploy.card import Card
from sae_moo.deploy.estimate import estimates
from sae_moo.deploy.formats import FORMATS
from sae_moo.deploy.order import Order
from sae_moo.deploy.packing import unpack
from sae_moo.deploy.stream import Stream
from sae_moo.deploy.tensor_files import WEIGHTS
from sae_moo.errors import InputError
from sae_moo.experts.layout import content_digest
from sae_moo.experts.live import load_model
from sae_moo.experts.pool import ExpertPool
from sae_moo.jobs.merge import merge
from sae_moo.jobs.verify import check_tensors
from sae_moo.materialization.into_model import materialize
from sae_moo.recipe import Cast, Expert, Merge, Prune
from sae_moo.recipe.methods import METHODS

SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ROUTED = {
    "moe_intermediate_size": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
CORRECTION = "e_score_correction_bias"
# model type -> its settings, what its buffers are called
KINDS = {
    "deepseek_v3": ({**SMALL, **ROUTED, **LATENT, "head_dim": 8}, CORRECTION),
    "glm4_moe": ({**SMALL, **ROUTED, "head_dim": 8}, CORRECTION),
    "minimax_m2": ({**SMALL, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}, CORRECTION),
    "dots1": ({**SMALL, **ROUTED, "head_dim": 8}, CORRECTION),
    "lfm2_moe": (
        {
            **SMALL,
            "moe_intermediate_size": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "num_dense_layers": 1,
            "layer_types": ["full_attention", "full_attention"],
        },
        "expert_bias",
    ),
    "apertus": ({**SMALL, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "act_fn"),
}
MEAN = Merge("linear", (Expert("a"), Expert("b")), (0.25, 0.75))


def moved(model, seed: int):
    """Move every parameter and held buffer of a model a little."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator).to(tensor.dtype) * 0.05)
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return a function that saves a base and two experts of a kind once."""
    root = tmp_path_factory.mktemp("buffers")

    def folders(kind: str):
        if not (root / kind).is_dir():
            from transformers import CONFIG_MAPPING, AutoModelForCausalLM

            for seed, name in enumerate(("base", "a", "b")):
                torch.manual_seed(0)
                model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**KINDS[kind][0]))
                moved(model, seed).save_pretrained(root / kind / name)
        return {name: root / kind / name for name in ("base", "a", "b")}

    return folders


def opened(folders) -> ExpertPool:
    return ExpertPool.open(str(folders["base"]), {name: str(folders[name]) for name in ("a", "b")})


@pytest.mark.parametrize("kind", KINDS)
def test_buffers_are_merged_like_parameters(saved, kind):
    pool = opened(saved(kind))
    model = pool.live_model()
    report = materialize(Prune(MEAN, 0.5), pool, model)
    assert report.sparsity == pytest.approx(0.5, abs=0.02)
    materialize(MEAN, pool, model)
    states = [load_model(saved(kind)[name], torch.float32, "cpu").state_dict() for name in ("a", "b")]
    buffers = [name for name, _ in model.named_buffers() if name in model.state_dict() and KINDS[kind][1] in name]
    assert buffers
    assert any(not torch.equal(states[0][name], states[1][name]) for name in buffers)
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, 0.25 * states[0][name] + 0.75 * states[1][name], rtol=0, atol=1e-6)
    assert {info.name for info in pool.tensors} == set(weights_of(pool, model))


def ordered(pool: ExpertPool, form: str, output, recipe) -> Order:
    row = FORMATS.find(form)
    report = materialize(recipe, pool, pool.live_model())
    return Order(
        format=row,
        output=output,
        stream=Stream(recipe, pool, torch.float32),
        sparsity=report.sparsity,
        whose="the model",
        card=Card("model", "Tested", {}, {}, loads=row.transformers),
        tokenizer=Tokenizer(),
        merge=merge,
    )


class Tokenizer:
    """Stands in for one: what is written of it matters elsewhere."""

    def save_pretrained(self, folder) -> None:
        (folder / "tokenizer_config.json").write_text("{}")


def unpacked(folder, form: str, base):
    if form == "hf":
        return folder / "out"
    unpack(folder / "out", folder / "unpacked", str(base) if form == "delta" else None)
    return folder / "unpacked"


@pytest.mark.parametrize("form", ["hf", "packed", "delta"])
@pytest.mark.parametrize("kind", ["deepseek_v3", "apertus"])
def test_buffers_are_written_and_loaded_like_parameters(saved, tmp_path, kind, form):
    pool = opened(saved(kind))
    order = ordered(pool, form, tmp_path / "out", Cast(MEAN, "float32"))
    order.write()
    folder = unpacked(tmp_path, form, saved(kind)["base"])
    check_tensors(folder, order.stream.digests)
    expected = pool.live_model()
    materialize(MEAN, pool, expected)
    loaded = load_model(folder, torch.float32, "cpu").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.state_dict().items())


WHOLE = {
    "model.layers.0.batches": torch.tensor(7),
    "model.layers.0.table": torch.arange(12, dtype=torch.int32).reshape(3, 4),
    "model.layers.1.mask": torch.tensor([True, False, True]),
    "model.short": torch.tensor([3, -3], dtype=torch.int16),
    "model.bytes": torch.tensor([200, 1], dtype=torch.uint8),
    "model.empty": torch.zeros(0, dtype=torch.int64),
}


@pytest.fixture
def counted(tiny_folders, tmp_path):
    """Return a function that copies a tiny model with further tensors."""
    import shutil

    def written(name: str, tensors):
        folder = shutil.copytree(tiny_folders[name], tmp_path / f"counted-{name}")
        stored = load_file(folder / WEIGHTS) | tensors
        save_file({key: t.clone() for key, t in stored.items()}, folder / WEIGHTS, metadata={"format": "pt"})
        return folder

    return written


def pool_of(base, **experts) -> ExpertPool:
    return ExpertPool.open(str(base), {name: str(folder) for name, folder in experts.items()})


@pytest.mark.parametrize("form", ["hf", "packed", "delta"])
def test_whole_numbers_and_truth_values_are_the_bases_bit_for_bit(counted, tmp_path, form):
    pool = pool_of(counted("base", WHOLE), a=counted("math", WHOLE), b=counted("code", WHOLE))
    assert set(pool.kept) == set(WHOLE)
    order = ordered(pool, form, tmp_path / "out", Cast(Prune(MEAN, 0.5), "float32"))
    sizes = {
        found.format: found.nbytes for found in estimates(order.stream, [FORMATS.find("hf"), FORMATS.find("packed")])
    }
    assert all(size is not None for size in sizes.values())
    order.write()
    folder = unpacked(tmp_path, form, pool.checkpoints["base"].folder)
    check_tensors(folder, order.stream.digests)
    written = load_file(folder / WEIGHTS)
    for name, tensor in WHOLE.items():
        assert written[name].dtype == tensor.dtype
        assert torch.equal(written[name], tensor)
        assert order.stream.digests[name] == content_digest(tensor)


def test_whole_numbers_of_experts_that_differ_or_lack_are_told_of(counted, tiny_folders, caplog):
    other = {**WHOLE, "model.layers.0.batches": torch.tensor(9), "model.more": torch.tensor(1)}
    with caplog.at_level(logging.WARNING):
        pool = pool_of(
            counted("base", WHOLE), a=counted("math", other), b=counted("code", WHOLE), c=tiny_folders["law"]
        )
    told = [message for message in caplog.messages if "whole numbers" in message]
    assert told == [
        "a: 2 tensors of whole numbers or truth values (model.layers.0.batches, model.more) are not the base's: nothing "
        "is merged of them, the base's are taken"
    ]
    stream = Stream(MEAN, pool, torch.float32)
    assert int(stream.tensor("model.layers.0.batches")) == 7
    assert "model.more" not in {entry.name for entry in stream.entries}


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool])
def test_weights_of_whole_numbers_are_refused(counted, tiny_folders, dtype):
    odd = counted("math", {"model.norm.weight": torch.ones(16).to(dtype)})
    with pytest.raises(InputError, match=r"a: 1 tensors of dtype \w+; expected F32, BF16, F16"):
        pool_of(tiny_folders["base"], a=odd)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_tensors_of_no_elements(counted, method):
    empty = {"model.layers.0.mlp._extra_state": torch.zeros(0), "model.layers.1.x.weight": torch.zeros(0, 16)}
    pool = pool_of(counted("base", empty), a=counted("math", empty), b=counted("code", empty))
    count = 1 if METHODS.find(method).inputs[1] == 1 else 2
    recipe = Merge(method, (Expert("a"), Expert("b"))[:count], (0.5,) * count)
    model = pool.live_model()
    materialize(recipe, pool, model)
    stream = Stream(recipe, pool, torch.float32)
    assert [stream.tensor(name).numel() for name in empty] == [0, 0]


@pytest.mark.parametrize("shape", [(0,), (0, 16), (16, 0), (0, 0)])
@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_tensors_of_no_elements_are_merged_written_and_counted(counted, tmp_path, shape, method):
    empty = {"model.layers.0.mlp._extra_state": torch.zeros(shape)}
    pool = pool_of(counted("base", empty), a=counted("math", empty), b=counted("code", empty))
    recipe = Cast(Prune(replace(MEAN, method=method, weights=(0.5, 0.5)), 0.5), "float32")
    report = materialize(recipe, pool, pool.live_model())
    assert report.sparsity == pytest.approx(0.5, abs=0.02)
    assert report.tensor_sparsity["model.layers.0.mlp._extra_state"] == 0
    for scope in ("group", "global"):
        materialize(Prune(MEAN, 0.5, scope=scope), pool, pool.live_model())
    for form in ("hf", "packed", "delta"):
        order = ordered(pool, form, tmp_path / form / "out", recipe)
        order.write()
        folder = unpacked(tmp_path / form, form, pool.checkpoints["base"].folder)
        assert load_file(folder / WEIGHTS)["model.layers.0.mlp._extra_state"].shape == shape
        assert json.loads((folder / "recipe.json").read_text())["tensors"].keys() == order.stream.digests.keys()
