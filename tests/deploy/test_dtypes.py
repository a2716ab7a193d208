"""Every tensor keeps its own dtype, from checkpoints that mix them to whatever is handed on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers as hf
import yaml
from safetensors.torch import load_file, save_file
from stand_ins import weights_of

from sae_moo.config.document import Config
from sae_moo.deploy.card import Card
from sae_moo.deploy.formats import FORMATS
from sae_moo.deploy.order import Order
from sae_moo.deploy.packing import unpack
from sae_moo.deploy.stream import Stream
from sae_moo.experts.live import load_model
from sae_moo.experts.pool import ExpertPool
from sae_moo.jobs.export import export
from sae_moo.jobs.merge import merge
from sae_moo.jobs.search import search
from sae_moo.materialization.into_model import materialize
from sae_moo.materialization.parents import WeightCache
from sae_moo.recipe import STORED, Cast, Expert, Merge, Prune

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
NORM, GATE, UP = "model.norm.weight", "model.layers.1.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"
# main dtype, and what has another one: a norm, a matrix that is pruned, the embeddings
MIXES = {
    "float32 norm in bfloat16": (BF16, {NORM: F32}),
    "float32 matrix in float16": (F16, {GATE: F32}),
    "float16 among bfloat16 and float32": (BF16, {NORM: F32, UP: F16}),
    "bfloat16 embeddings in float32": (F32, {"model.embed_tokens.weight": BF16}),
    "float32 embeddings in float16": (F16, {"model.embed_tokens.weight": F32, GATE: BF16}),
}
HALF = Merge("linear", (Expert("a"), Expert("b")), (0.5, 0.5))


def mixed(root: Path, tiny_folders, mix: str) -> Path:
    """Three folders of weights that no narrower dtype holds: base, a, b."""
    main, others = MIXES[mix]
    for name, source in (("base", "base"), ("a", "math"), ("b", "code")):
        hf.AutoTokenizer.from_pretrained(tiny_folders[source]).save_pretrained(root / name)
        tensors = load_file(tiny_folders[source] / "model.safetensors")
        tensors = {key: (tensor + 1e-3).to(others.get(key, main)) for key, tensor in tensors.items()}
        save_file(tensors, root / name / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((tiny_folders[source] / "config.json").read_text())
        config["dtype"] = str(main).removeprefix("torch.")
        (root / name / "config.json").write_text(json.dumps(config))
    return root


@pytest.fixture(params=MIXES)
def mix(request, tmp_path, tiny_folders) -> tuple[Path, torch.dtype, dict[str, torch.dtype]]:
    return mixed(tmp_path, tiny_folders, request.param), *MIXES[request.param]


@pytest.fixture
def bf16(tmp_path, tiny_folders) -> Path:
    return mixed(tmp_path, tiny_folders, "float32 norm in bfloat16")


def opened(root: Path) -> ExpertPool:
    return ExpertPool.open(str(root / "base"), {name: str(root / name) for name in "ab"})


def expected(root: Path, name: str, tensor: torch.Tensor) -> torch.Tensor:
    a, b = (load_file(root / each / "model.safetensors")[name].float() for each in "ab")
    return ((a + b) / 2).to(tensor.dtype)


def same(root: Path, folder: Path, others, main) -> None:
    """The folder holds the mean of both experts, every tensor in its own dtype."""
    written = load_file(folder / "model.safetensors")
    assert {name: tensor.dtype for name, tensor in written.items()} == {n: others.get(n, main) for n in written}
    for name, tensor in written.items():
        precise = 2 * torch.finfo(tensor.dtype).eps  # float32 sums of another order may round to the neighbour
        torch.testing.assert_close(tensor, expected(root, name, tensor), rtol=precise, atol=1e-8, msg=name)


def configuration(root: Path, more: str = "") -> Path:
    models = [{"model": str(root / name), "parameters": {"weight": 0.5}} for name in "ab"]
    text = yaml.safe_dump({"merge_method": "linear", "models": models})
    (root / "m.yaml").write_text(text + more)
    return root / "m.yaml"


def test_a_merge_without_a_dtype_keeps_every_tensors_own(mix):
    root, main, others = mix
    merge(configuration(root), root / "out")
    same(root, root / "out", others, main)
    short = str(main).removeprefix("torch.")
    assert json.loads((root / "out/config.json").read_text())["dtype"] == short
    assert f"| dtype | {short}, " in (root / "out/README.md").read_text()
    merge(root / "out/recipe.json", root / "again")
    assert (root / "again/model.safetensors").read_bytes() == (root / "out/model.safetensors").read_bytes()


@pytest.mark.parametrize("line", ["dtype: bfloat16\n", "dtype: float32\nout_dtype: bfloat16\n"])
def test_a_dtype_that_is_asked_for_holds_for_all(mix, line):
    root, *_ = mix
    merge(configuration(root, line), root / "out")
    same(root, root / "out", {}, BF16)


def test_every_format_keeps_them(mix):
    root, main, others = mix
    pool = opened(root)
    stream = Stream(Cast(HALF, STORED), pool, main)
    sparsity = materialize(stream.recipe, pool, pool.live_model(main)).sparsity
    for form in ("hf", "packed", "delta", "recipe"):
        order = Order(
            format=FORMATS[form], output=root / form, stream=stream, sparsity=sparsity, whose="it",
            card=Card("m", "why", {}, {}), tokenizer=pool.tokenizer(), merge=merge,
        )  # fmt: skip
        order.write()
    unpack(root / "packed", root / "unpacked")
    unpack(root / "delta", root / "undone", str(root / "base"))
    merge(root / "recipe/recipe.json", root / "merged")
    for folder in ("hf", "unpacked", "undone", "merged"):
        same(root, root / folder, others, main)


def test_a_model_without_dead_neurons_keeps_them(bf16):
    pool = opened(bf16)
    stream = Stream(Cast(Prune(HALF, 0.5, scope="neurons"), STORED), pool, BF16)
    sparsity = materialize(stream.recipe, pool, pool.live_model("bfloat16")).sparsity
    order = Order(
        format=FORMATS["structured"], output=bf16 / "small", stream=stream, sparsity=sparsity, whose="it",
        card=Card("m", "why", {}, {}), tokenizer=pool.tokenizer(), merge=merge,
    )  # fmt: skip
    order.write()
    written = load_file(bf16 / "small/model.safetensors")
    assert written[UP].shape[0] == 12
    assert written[NORM].dtype == F32
    assert torch.equal(written[NORM], expected(bf16, NORM, written[NORM]))
    assert {tensor.dtype for name, tensor in written.items() if name != NORM} == {BF16}


def test_the_written_folder_loads_as_the_live_model_and_children_inherit_what_is_exported(mix):
    root, main, _ = mix
    pool = opened(root)
    model = pool.live_model(main)
    cache = WeightCache(2**30)
    parent = Cast(Prune(HALF, 0.3), STORED)
    child = Cast(Prune(Merge("linear", (parent, Expert("a")), (0.5, 0.5)), 0.5, scope="global"), STORED)
    materialize(parent, pool, model, cache)
    assert parent in cache
    report = materialize(child, pool, model, cache)
    stream = Stream(child, pool, main)
    exported = {entry.name: stream.tensor(entry.name) for entry in stream.entries}
    assert stream.sparsity() == report.sparsity
    held = cache.get(report.recipe)
    for name, place in weights_of(pool, model).items():
        assert torch.equal(place, exported[name].to(place.dtype)), name
        assert torch.equal(held[name].to(exported[name].dtype), exported[name]), name


def test_zeros_are_those_of_what_is_exported_where_the_live_model_rounds_more_away(tmp_path, tiny_folders):
    root = mixed(tmp_path, tiny_folders, "float32 matrix in float16")
    for name in ("base", "a", "b"):
        tensors = load_file(root / name / "model.safetensors")
        tensors[GATE] = torch.full_like(tensors[GATE], 1e-9)  # zero in float16
        save_file(tensors, root / name / "model.safetensors", metadata={"format": "pt"})
    pool = opened(root)
    model = pool.live_model("float16")
    report = materialize(Cast(HALF, STORED), pool, model)
    assert report.tensor_sparsity[GATE] == 0
    assert not weights_of(pool, model)[GATE].any()


def test_what_the_live_model_rounds_is_told_once_in_one_line(bf16, caplog):
    pool = opened(bf16)
    for _ in range(2):
        pool.live_model("bfloat16")
    (told,) = caplog.messages
    assert told.startswith("the live model, as transformers builds it, has in bfloat16 what the base stores with more")
    assert NORM in told
    caplog.clear()
    opened(bf16).live_model("float32")
    opened(bf16).live_model("float16")  # another dtype than the model's was asked for, for all
    assert caplog.messages == []


def test_a_live_model_keeps_what_transformers_keeps_in_float32(tmp_path, caplog):
    config = hf.GptOssConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, num_local_experts=3, num_experts_per_tok=2, pad_token_id=0,
    )  # fmt: skip
    norm = "model.layers.1.input_layernorm.weight"
    for seed, name in enumerate(("base", "a", "b")):
        torch.manual_seed(seed)
        hf.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / name)
        tensors = load_file(tmp_path / name / "model.safetensors")
        tensors = {n: t.half() for n, t in tensors.items()} | {norm: torch.rand(16)}
        save_file(tensors, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    pool = opened(tmp_path)
    model = pool.live_model("float16")
    assert caplog.messages == []
    materialize(Cast(HALF, pool.rounding("float16")), pool, model)
    found = weights_of(pool, model)[norm]
    assert found.dtype == F32
    assert torch.equal(found, expected(tmp_path, norm, found))


def test_a_search_exports_and_verifies_what_it_evaluated(bf16, monkeypatch, verified_here):
    monkeypatch.chdir(bf16)
    config = Config.from_dict(
        {
            "study": {"name": "s"},
            "models": {"base": "base", "experts": {"a": "a", "b": "b"}, "dtype": "bfloat16"},
            "tasks": [{"name": "zoo_math", "search": 6, "test": 4}],
            "objectives": ["zoo_math", "sparsity"],
            "search": {"population": 4, "evaluations": 6},
        },
        str(bf16),
    )
    run = search(config)
    record = run.trials()[-1]
    assert record.recipe.dtype == STORED
    export(run, record, "why", "out", verify=True)
    written = load_file(bf16 / "out/model.safetensors")
    assert written[NORM].dtype == F32
    assert not torch.equal(written[NORM], written[NORM].bfloat16().float())
    assert {tensor.dtype for name, tensor in written.items() if name != NORM} == {BF16}
    assert load_model(bf16 / "out", BF16, "cpu").dtype == BF16


def test_models_of_one_dtype_have_the_recipes_that_they_had(tiny):
    assert (tiny.main_dtype, tiny.rounding("float32"), tiny.rounding("bfloat16")) == ("float32", "float32", "bfloat16")
