"""Models that see, merged, pruned, searched on texts and handed on: the vision tower is left alone unless asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers as hf
import yaml
from safetensors.torch import load_file, save_file

from sae_moo.config.document import Config
from sae_moo.deploy.mergekit.writer import configuration_text
from sae_moo.deploy.surroundings import recipe_document
from sae_moo.errors import InputError
from sae_moo.experts.live import model_class
from sae_moo.experts.pool import ExpertPool
from sae_moo.explore.words import summary
from sae_moo.jobs.bench import Bench
from sae_moo.jobs.export import export
from sae_moo.jobs.merge import merge
from sae_moo.jobs.search import search
from sae_moo.materialization.into_model import materialize
from sae_moo.recipe import Cast, Expert, Merge, Prune, Recipe

LAYERS, SEEING = 3, 5
TEXT = {
    "vocab_size": 512, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS, "head_dim": 8,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": SEEING, "num_attention_heads": 4,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip
ROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}}
MAKES = {
    "gemma3": lambda: hf.Gemma3Config(
        text_config={**TEXT, "sliding_window": 64}, vision_config=VISION, mm_tokens_per_image=4, image_token_index=500
    ),
    "llava": lambda: hf.LlavaConfig(
        text_config={**TEXT, "model_type": "llama"},
        vision_config={**VISION, "model_type": "clip_vision_model"},
        image_token_index=500,
    ),
    "qwen2_vl": lambda: hf.Qwen2VLConfig(
        text_config=TEXT | ROPE,
        vision_config={
            "depth": SEEING, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2, "patch_size": 14
        },
    ),
    "lfm2_vl": lambda: hf.Lfm2VlConfig(
        text_config={**TEXT, "model_type": "lfm2", "layer_types": ["conv", "full_attention", "conv"]},
        vision_config={**VISION, "model_type": "siglip2_vision_model"},
        image_token_id=500,
    ),
}  # fmt: skip
TOWERS = {"gemma3": "vision_tower", "llava": "vision_tower", "qwen2_vl": "visual", "lfm2_vl": "vision_tower"}
HALF = Merge("linear", (Expert("a"), Expert("b")), (0.5, 0.5))


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny):
    """Return a function that saves three models of an architecture once: base, a, b."""
    root = tmp_path_factory.mktemp("seeing")

    def folder(kind: str) -> Path:
        for seed, name in enumerate(("base", "a", "b")):
            if not (root / kind / name).is_dir():
                torch.manual_seed(seed)
                config = MAKES[kind]()
                model = model_class(config).from_config(config)
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter.add_(torch.randn_like(parameter) * 0.05)
                model.save_pretrained(root / kind / name)
                tiny.tokenizer().save_pretrained(root / kind / name)
        return root / kind

    return folder


def opened(root: Path, **more) -> ExpertPool:
    return ExpertPool.open(str(root / "base"), {name: str(root / name) for name in "ab"}, **more)


def shares(root: Path, out: Path) -> dict[str, float]:
    """How far each tensor is on the way from a to b."""
    a, b, o = (load_file(folder / "model.safetensors") for folder in (root / "a", root / "b", out))
    return {
        name: float(((o[name] - a[name]).flatten() @ (b[name] - a[name]).flatten()) / (b[name] - a[name]).norm() ** 2)
        for name in o
    }


def configuration(root: Path, where: Path, **more) -> Path:
    pair = [{"model": str(root / name)} for name in "ab"]
    document = {"merge_method": "slerp", "base_model": pair[0]["model"], "dtype": "float32"}
    document |= {"models": pair} if "slices" not in more else {}
    (where / "m.yaml").write_text(yaml.safe_dump(document | more))
    return where / "m.yaml"


@pytest.mark.parametrize("kind", MAKES)
def test_gradients_run_over_the_layers_of_each_part(kind, saved, tmp_path):
    root = saved(kind)
    models = [{"model": str(root / "a"), "parameters": {"weight": [1, 0]}}]
    models += [{"model": str(root / "b"), "parameters": {"weight": [0, 1]}}]
    text = yaml.safe_dump({"merge_method": "linear", "models": models, "dtype": "float32"})
    (tmp_path / "m.yaml").write_text(text)
    merge(tmp_path / "m.yaml", tmp_path / "out")
    found, pool = shares(root, tmp_path / "out"), opened(root)
    for info in pool.tensors:
        group = pool.groups[info.group]
        place = [int(part) for part in info.name.split(".") if part.isdigit()]
        if group.startswith("block."):
            expected = place[0] / (LAYERS - 1)
        elif group == TOWERS[kind] and place and len(info.shape) == 2 and "merger" not in info.name:
            expected = place[0] / (SEEING - 1)
        elif group == "embeddings":
            expected = 0.0
        else:
            continue
        assert found[info.name] == pytest.approx(expected, abs=1e-5), info.name


@pytest.mark.parametrize("kind", MAKES)
def test_slices_count_the_text_models_layers(kind, saved, tmp_path):
    root = saved(kind)
    sources = [{"model": str(root / name), "layer_range": [0, LAYERS]} for name in "ab"]
    merge(configuration(root, tmp_path, slices=[{"sources": sources}], parameters={"t": 1}), tmp_path / "out")
    assert min(shares(root, tmp_path / "out").values()) == pytest.approx(1, abs=1e-5)
    sources = [{"model": str(root / name), "layer_range": [0, SEEING]} for name in "ab"]
    with pytest.raises(
        InputError, match=f"{SEEING} layers, the models have {LAYERS}|expected layers 0 to {LAYERS - 1}"
    ):
        merge(configuration(root, tmp_path, slices=[{"sources": sources}], parameters={"t": 1}), tmp_path / "other")


@pytest.mark.parametrize("kind", MAKES)
def test_a_tower_is_neither_pruned_nor_counted(kind, saved):
    pool = opened(saved(kind))
    assert pool.groups[: LAYERS + 2] == ("embeddings", *(f"block.{i}" for i in range(LAYERS)), "head")
    assert TOWERS[kind] in pool.left_alone == pool.submodels
    assert not any(info.prunable for info in pool.tensors if pool.groups[info.group] in pool.submodels)
    model = pool.live_model()
    report = materialize(Prune(HALF, 0.5, scope="global"), pool, model)
    assert report.sparsity == pytest.approx(0.5, abs=1e-3)
    assert report.group_sparsity[TOWERS[kind]] == 0
    assert sum(report.tensor_sparsity[i.name] for i in pool.tensors if pool.groups[i.group] in pool.submodels) < 0.1
    assert TOWERS[kind] in pool.counted_words


@pytest.mark.parametrize("kind", MAKES)
def test_a_tower_that_is_asked_for_is_pruned_and_counted(kind, saved, tmp_path):
    root, tower = saved(kind), TOWERS[kind]
    pool = opened(root, pruned=[tower])
    recipe = Cast(Prune(HALF, 0.5, submodels=(tower,)), "float32")
    report = materialize(recipe, pool, pool.live_model())
    assert report.group_sparsity[tower] == pytest.approx(0.5, abs=0.01)
    assert pool.left_alone == tuple(name for name in pool.submodels if name != tower)
    assert Recipe.from_json(recipe.to_json()) == recipe
    plain = Cast(Prune(HALF, 0.5), "float32")
    assert recipe.digest(pool) != plain.digest(pool)
    with pytest.raises(InputError, match=f"prunes the sub-models none; the pool was opened with pruned: {tower}"):
        materialize(plain, pool, pool.live_model())
    (tmp_path / "recipe.json").write_text(json.dumps(recipe_document(recipe, pool)))
    assert merge(tmp_path / "recipe.json", tmp_path / "out").sparsity == report.sparsity


def test_what_cannot_be_pruned_is_refused(saved, tiny_folders):
    root = saved("gemma3")
    with pytest.raises(InputError, match=r"\(multi_modal_projector, vision_tower\), got 'vision_towr' \(did you mean"):
        opened(root, pruned=["vision_towr"])
    with pytest.raises(InputError, match="multi_modal_projector holds no 2-D weights in blocks"):
        opened(root, pruned=["multi_modal_projector"])
    with pytest.raises(InputError, match=r"\(the base has none\), got 'vision_tower'"):
        ExpertPool.open(str(tiny_folders["base"]), {"a": str(tiny_folders["math"])}, pruned=["vision_tower"])
    with pytest.raises(InputError, match="prunes the text model's blocks, no sub-models"):
        Prune(HALF, 0.5, scope="neurons", submodels=("vision_tower",))
    with pytest.raises(InputError, match="expected names of sub-models"):
        Prune(HALF, 0.5, submodels="vision_tower")


def test_recipes_that_prune_no_sub_model_have_the_keys_they_had():
    assert "submodels" not in Prune(HALF, 0.5).to_json()


def test_a_configuration_for_mergekit_says_the_same_of_every_part(saved, tmp_path):
    root = saved("gemma3")
    pool = opened(root)
    rows = tuple((1 - t, t) for t in (0.1, 0.2, 0.5, 0.3, 0.4, 0.9, 0.7))
    assert len(rows) == len(pool.groups)
    text, _ = configuration_text(Cast(Merge("linear", (Expert("a"), Expert("b")), rows), "float32"), pool)
    weights = [model["parameters"]["weight"] for model in yaml.safe_load(text)["models"]]
    assert {"filter": "vision_tower.", "value": 0.7} in [
        {"filter": each["filter"][: len("vision_tower.")], "value": each["value"]}
        for each in weights[1]
        if "filter" in each
    ]
    (tmp_path / "m.yaml").write_text(text)
    merge(tmp_path / "m.yaml", tmp_path / "out")
    found = shares(root, tmp_path / "out")
    for info in pool.tensors:
        assert found[info.name] == pytest.approx(rows[info.group][1], abs=1e-4), info.name


def test_settings_of_the_text_part_are_compared(saved, tmp_path):
    root = saved("llava")
    shutil.copytree(root / "a", tmp_path / "a")
    config = json.loads((tmp_path / "a/config.json").read_text())
    config["text_config"]["rms_norm_eps"] = 0.5
    (tmp_path / "a/config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"rms_norm_eps in config\.json is 0\.5, the base's is"):
        ExpertPool.open(str(root / "base"), {"a": str(tmp_path / "a")})


def settings(root: Path, **pruning) -> Config:
    return Config.from_dict(
        {
            "study": {"name": "seeing"},
            "models": {"base": "base", "experts": {"a": "a", "b": "b"}},
            "tasks": [{"name": "zoo_math", "search": 6, "test": 4}],
            "objectives": ["zoo_math", "sparsity"],
            "pruning": pruning,
            "search": {"population": 4, "evaluations": 6},
        },
        str(root),
    )


@pytest.mark.parametrize("kind", ["gemma3", "llava"])
def test_a_search_on_texts_says_what_it_left_alone(kind, saved, tmp_path, monkeypatch, verified_here):
    monkeypatch.chdir(tmp_path)
    run = search(settings(saved(kind)))
    told = "Sparsity is the text model's: multi_modal_projector and vision_tower are merged, and neither pruned nor counted."
    assert told in summary(run.view())[0].text
    record = run.trials()[-1]
    export(run, record, "why", "out", verify=True)
    assert "vision_tower left alone and not counted, are exact zeros" in (tmp_path / "out/README.md").read_text()


def test_a_search_that_prunes_the_tower(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bench = Bench.open(settings(saved("gemma3"), submodels=["vision_tower"]))
    assert bench.ground().prunable == (False, True, True, True, False, False, True)
    assert bench.ground().sizes.sum() == sum(info.numel for info in bench.pool.tensors if info.prunable)
    with pytest.raises(ValueError, match=r"pruning\.submodels"):
        bench.configured(settings(saved("gemma3")))


def test_heads_for_further_tokens_are_merged_and_not_built(tiny_folders, tmp_path):
    extra = {}
    for seed, (name, source) in enumerate((("base", "base"), ("a", "math"), ("b", "code"))):
        tensors = load_file(tiny_folders[source] / "model.safetensors")
        torch.manual_seed(seed)
        extra[name] = {
            n.replace("layers.1.", "layers.2."): torch.randn_like(t) for n, t in tensors.items() if "layers.1." in n
        } | {"model.layers.2.eh_proj.weight": torch.randn(16, 32)}
        (tmp_path / name).mkdir()
        for file in tiny_folders[source].iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
        save_file(tensors | extra[name], tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    pool = opened(tmp_path)
    assert pool.groups == ("embeddings", "block.0", "block.1", "head", "mtp")
    recipe = Cast(Prune(HALF, 0.5), "float32")
    report = materialize(recipe, pool, pool.live_model())
    assert report.sparsity == pytest.approx(0.5, abs=0.01)
    assert not set(extra["a"]) & set(report.tensor_sparsity)
    (tmp_path / "recipe.json").write_text(json.dumps(recipe_document(recipe, pool)))
    assert merge(tmp_path / "recipe.json", tmp_path / "out").sparsity == report.sparsity
    written = load_file(tmp_path / "out/model.safetensors")
    for name, tensor in extra["a"].items():
        torch.testing.assert_close(written[name], (tensor + extra["b"][name]) / 2)
    asked = opened(tmp_path, pruned=["mtp"])
    pruned = Cast(Prune(HALF, 0.5, submodels=("mtp",)), "float32")
    report = materialize(pruned, asked, asked.live_model())
    assert report.group_sparsity["mtp"] == pytest.approx(0.5, abs=0.01)
    (tmp_path / "pruned.json").write_text(json.dumps(recipe_document(pruned, asked)))
    assert merge(tmp_path / "pruned.json", tmp_path / "thin").sparsity == report.sparsity
