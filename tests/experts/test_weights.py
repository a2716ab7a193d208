"""What every source of weights promises (`ModelWeights`), however they are stored."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_moo.errors import InputError
from sae_moo.experts.adapters import Adapter
from sae_moo.experts.checkpoint import Checkpoint, TensorFacts
from sae_moo.experts.composed import Composed
from sae_moo.experts.layers import Relaid
from sae_moo.experts.layout import STORED_DTYPES
from sae_moo.experts.vocabulary import KEEP_BASE, aligned

Q = "model.layers.0.self_attn.q_proj"


def sharded(folder: Path) -> None:
    """Cut the file of a checkpoint in two, with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    placed = {name: f"model-0000{1 + (i > len(names) // 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(placed.values()):
        save_file({name: tensors[name] for name in names if placed[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))


def adapted(base: Path, folder: Path) -> None:
    """Write a LoRA adapter of one matrix."""
    folder.mkdir()
    outputs, inputs = load_file(base / "model.safetensors")[f"{Q}.weight"].shape
    random = torch.Generator().manual_seed(0)
    parts = {"lora_A": torch.randn(2, inputs, generator=random), "lora_B": torch.randn(outputs, 2, generator=random)}
    named = {f"base_model.model.{Q}.{part}.weight": tensor for part, tensor in parts.items()}
    save_file(named, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def renumbered(folder: Path) -> None:
    """Exchange two tokens of a checkpoint, with their rows."""
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text())
    tokens = document["model"]["vocab"]
    one, other = list(tokens)[-1], list(tokens)[-2]
    tokens[one], tokens[other] = tokens[other], tokens[one]
    path.write_text(json.dumps(document))
    tensors = load_file(folder / "model.safetensors")
    for tensor in tensors.values():
        if len(tensor) == len(tensors["model.embed_tokens.weight"]) and tensor.dim() == 2:
            tensor[[tokens[one], tokens[other]]] = tensor[[tokens[other], tokens[one]]]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


SOURCES = ("checkpoint", "shards", "adapter", "composed", "relaid", "reordered")


@pytest.fixture(params=SOURCES)
def opened(request, tmp_path, tiny_folders):
    """A function that opens the source anew, and the base beside it."""
    base, folder = tmp_path / "base", tmp_path / "expert"
    shutil.copytree(tiny_folders["base"], base)
    if request.param == "adapter":
        adapted(base, folder)
        return lambda: (Adapter(str(folder), Checkpoint(str(base))), Checkpoint(str(base)))
    shutil.copytree(tiny_folders["math"], folder)
    if request.param == "composed":
        adapted(base, tmp_path / "adapter")
        return lambda: (Composed(f"{folder}+{tmp_path / 'adapter'}"), Checkpoint(str(base)))
    if request.param == "relaid":

        def moved():
            theirs = Relaid(Checkpoint(str(base)), [0, 1, 1])
            return Relaid(Checkpoint(str(folder)), [1, 0, None], theirs), theirs

        return moved
    if request.param == "shards":
        sharded(folder)
    if request.param == "reordered":
        renumbered(folder)

        def picked():
            models = aligned({"base": Checkpoint(str(base)), "math": Checkpoint(str(folder))}, KEEP_BASE).models
            assert type(models["math"]).__name__ != "Checkpoint", "rows were exchanged"
            return models["math"], models["base"]

        return picked
    return lambda: (Checkpoint(str(folder)), Checkpoint(str(base)))


def test_every_tensor_comes_as_its_facts_say(opened):
    weights, base = opened()
    assert weights.tensors.keys() == base.tensors.keys()
    for name, facts in weights.tensors.items():
        tensor = weights.load(name)
        assert TensorFacts(tuple(tensor.shape), facts.dtype) == facts
        assert (tensor.dtype, tensor.device.type) == (STORED_DTYPES[facts.dtype], "cpu")


def test_the_same_bits_come_whenever_it_is_asked_and_by_whomever(opened):
    (weights, _), (again, _) = opened(), opened()
    for name in weights.tensors:
        assert torch.equal(weights.load(name), weights.load(name))
        assert torch.equal(weights.load(name), again.load(name))
    assert weights.fingerprint == again.fingerprint


def test_other_weights_have_another_fingerprint(opened, tmp_path):
    before = opened()[0].fingerprint
    file = next(path for path in sorted((tmp_path / "expert").glob("*.safetensors")))
    tensors = load_file(file)
    name = min(tensors)
    tensors[name] = tensors[name] + 1
    save_file(tensors, file)
    assert opened()[0].fingerprint != before


def test_what_is_said_to_be_the_bases_is(opened):
    weights, base = opened()
    for name in weights.tensors:
        if weights.shares_base(name):
            assert torch.equal(weights.load(name), base.load(name))


def test_it_says_where_it_is_and_how_many_tokens_it_has(opened):
    weights, _ = opened()
    assert weights.folder.is_dir()
    assert weights.config["model_type"] == "llama"
    assert weights.vocabulary == weights.tensors["model.embed_tokens.weight"].shape[0]
    assert weights.tied == ("lm_head.weight" not in weights.tensors)


def test_infinite_weights_are_named(opened, tmp_path):
    file = next(path for path in sorted((tmp_path / "expert").glob("*.safetensors")))
    tensors = load_file(file)
    name = min(tensors)
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, file)
    with pytest.raises(InputError, match="NaN or infinite weights"):
        _ = opened()[0].fingerprint
