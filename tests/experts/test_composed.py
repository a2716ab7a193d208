"""A model with an adapter as a model of its own: as base, and as an expert beside a base that it is not over."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from sae_moo.errors import InputError
from sae_moo.experts.checkpoint import Checkpoint
from sae_moo.experts.composed import is_composed
from sae_moo.experts.pool import ExpertPool
from sae_moo.jobs.merge import merge
from sae_moo.recipe import BASE

NAME, OTHER = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"


@pytest.fixture
def adapted(tiny_folders, tmp_path):
    """Three tiny models, and an adapter of one matrix; returns the folder and what the adapter adds to its matrix."""
    for name in ("base", "math", "code"):
        (tmp_path / name).symlink_to(tiny_folders[name])
    rows, columns = Checkpoint(str(tmp_path / "base")).tensors[NAME].shape
    a = torch.randn(2, columns, generator=torch.Generator().manual_seed(0))
    b = torch.randn(rows, 2, generator=torch.Generator().manual_seed(1))
    (tmp_path / "lora").mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none"}
    (tmp_path / "lora/adapter_config.json").write_text(json.dumps(settings))
    module = f"base_model.model.{NAME.removesuffix('.weight')}"
    tensors = {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    save_file(tensors, tmp_path / "lora/adapter_model.safetensors")
    return tmp_path, 2 * (b @ a)


def test_every_model_can_have_an_adapter(adapted):
    folder, added = adapted
    pool = ExpertPool.open("base+lora", {"math": "math+lora", "code": "code", "plain": "math"}, relative_to=folder)
    bare = {name: Checkpoint(str(folder / name)) for name in ("base", "math")}
    for expert, model in {BASE: "base", "math": "math"}.items():
        whole = bare[model].load(NAME).float() + added
        torch.testing.assert_close(pool.load(expert, NAME).float(), whole.to(pool.load(expert, NAME).dtype).float())
        assert torch.equal(pool.load(expert, OTHER), bare[model].load(OTHER))
    assert not pool.shares_base("math", OTHER), "what its adapter leaves alone is its own model's"
    assert len(set(pool.fingerprints.values())) == 4
    assert pool.checkpoints[BASE].origin == f"{folder.joinpath('base').resolve()}+{folder / 'lora'}"


def test_a_merge_over_an_adapted_base_and_its_recipe(adapted, monkeypatch):
    folder, _ = adapted
    monkeypatch.chdir(folder)
    (folder / "m.yaml").write_text(
        "merge_method: model_stock\nbase_model: base+lora\nmodels: [{model: math+lora}, {model: code}]\n"
    )
    merge("m.yaml", "out")
    merge("out/recipe.json", "again")
    assert (folder / "again/model.safetensors").read_bytes() == (folder / "out/model.safetensors").read_bytes()
    pool = ExpertPool.open("base+lora", {"math": "math+lora"})
    assert pool.live_model().config.vocab_size == pool.checkpoints[BASE].vocabulary


def test_an_adapter_alone_over_an_adapted_base_is_refused(adapted):
    folder, _ = adapted
    with pytest.raises(InputError, match=r"an adapter over a base that has one itself; write model\+adapter"):
        ExpertPool.open("base+lora", {"a": "lora"}, relative_to=folder)
    with pytest.raises(InputError, match="math: no such folder: /nowhere"):
        ExpertPool.open("base", {"math": "/nowhere+lora"}, relative_to=folder)


@pytest.mark.parametrize(
    ("source", "expected"), [("a+b", True), ("a", False), ("a+", False), ("+b", False), ("a+b+c", False)]
)
def test_what_is_written_as_a_model_with_an_adapter(source, expected, tmp_path):
    assert is_composed(source, tmp_path) is expected
    (tmp_path / source).mkdir(exist_ok=True)
    assert not is_composed(source, tmp_path), "a folder of that name is a model"
