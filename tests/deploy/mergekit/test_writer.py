from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from stand_ins import weights_of

from sae_moo.deploy.mergekit.reading import parse
from sae_moo.deploy.mergekit.translate import translate
from sae_moo.deploy.mergekit.writer import configuration_text
from sae_moo.errors import InputError
from sae_moo.experts.pool import ExpertPool
from sae_moo.materialization.into_model import materialize
from sae_moo.recipe import BASE, Cast, Expert, Merge, Prune

BASE_NODE, MATH, CODE, LAW = (Expert(name) for name in (BASE, "math", "code", "law"))
GROUPS, TENSORS = 4, 20  # of the tiny models


def rows(count: int, *columns: float) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(column * (1 + i) / count for column in columns) for i in range(count))


SAME = [
    Merge("task_arithmetic", (MATH, CODE), (0.3, 0.7), {"scale": 0.8, "normalize": True}),
    Merge("task_arithmetic", (MATH, CODE, LAW), rows(GROUPS, 0.3, 0.7, 0.1), {"scale": rows(TENSORS, 1)}),
    Merge("ties", (MATH, CODE), rows(TENSORS, 0.3, 0.7), {"density": rows(GROUPS, 0.5, 0.9), "rescale": "l1"}),
    Merge("ties", (MATH, CODE), (0.3, 0.7), {"density": rows(TENSORS, 1), "normalize": False}),
    Merge("breadcrumbs", (MATH, CODE), (1, 1), {"density": (0.4, 0.8), "gamma": 0.02}),
    Merge("della_linear", (MATH,), (1,), {"epsilon": 0.1, "density": 0.5}),
    Merge("dare_ties", (MATH, CODE), (1, 2), {"density": 0.5, "rescale": "none"}),
    Merge("nuslerp", (MATH, CODE), rows(GROUPS, 1, 2), {"relative": True}),
    Merge("multislerp", (MATH, CODE, LAW), (1, 2, 3), {"relative": True, "normalize": False}),
    Merge("linear", (BASE_NODE, CODE), rows(TENSORS, 1, 2), {"normalize": False}),
    Merge("karcher", (BASE_NODE, CODE), (1, 1), {"tol": rows(GROUPS, 1e-3), "max_iter": 3}),
    Merge("slerp", (BASE_NODE, CODE), tuple((1 - t, t) for t in (0, 0.25, 0.5, 1))),
    Merge("model_stock", (MATH, CODE), (1, 1)),
    Merge("sce", (MATH, CODE), (1, 1), {"select_topk": rows(TENSORS, 1)}),
    Merge("arcee_fusion", (LAW,), (1,)),
]
EQUAL = [  # the base is another, or weights are written otherwise
    BASE_NODE,
    MATH,
    Merge("linear", (MATH, CODE), rows(GROUPS, 1, 2)),
    Merge("slerp", (MATH, CODE), rows(TENSORS, 3, 5)),
    Merge("nuslerp", (CODE, MATH), (1, 3)),
    Merge("karcher", (LAW, MATH), (1, 1)),
    Merge("multislerp", (LAW, MATH), (1, 1)),
    Prune(Merge("sce", (Prune(MATH, 0.0), CODE), (0.5, 0.5)), (0.0,) * GROUPS),
]


def again(text: str):
    """Read what was written, as a user would, and open the models it names."""
    document = parse(text, "w.yaml")
    sources = dict(document.sources)
    pool = ExpertPool.open(sources.pop(BASE), sources or {"same": document.sources[BASE]})
    return pool, translate(document, pool)


@pytest.mark.parametrize("merge", SAME, ids=lambda merge: merge.method)
def test_written_and_read_is_the_same_recipe(merge, tiny):
    assert len(tiny.tensors) == TENSORS
    for dtype in ("float32", "bfloat16"):
        text, _ = configuration_text(Cast(merge, dtype), tiny)
        pool, recipe = again(text)
        assert recipe == Cast(merge, dtype), text
        assert recipe.digest(pool) == Cast(merge, dtype).digest(pool)


@pytest.mark.parametrize("recipe", [*SAME, *EQUAL], ids=lambda recipe: getattr(recipe, "method", recipe.kind))
def test_written_and_read_gives_the_same_weights(recipe, tiny, tiny_model):
    text, _ = configuration_text(recipe, tiny)
    materialize(recipe, tiny, tiny_model)
    before = weights_of(tiny, tiny_model)
    pool, read = again(text)
    assert isinstance(read, Cast)
    assert read.dtype == "float32"
    materialize(read, pool, tiny_model)
    for name, tensor in weights_of(tiny, tiny_model).items():
        torch.testing.assert_close(tensor, before[name], rtol=1e-6, atol=1e-7)


def test_what_it_looks_like(tiny):
    weights = tuple((a, 0.5) for a in (0.1, 0.2, 0.3, 0.4))
    text, notes = configuration_text(
        Cast(Merge("dare_ties", (MATH, CODE), weights, {"density": 0.9}), "bfloat16"), tiny
    )
    document = yaml.safe_load(text)
    assert notes == ["dare_ties drops at random: mergekit draws masks of its own"]
    assert {key: document[key] for key in ("merge_method", "parameters", "dtype", "out_dtype")} == {
        "merge_method": "dare_ties",
        "parameters": {"density": 0.9},
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }
    assert Path(document["base_model"]) == tiny.checkpoints[BASE].folder
    first, second = document["models"]
    assert second["parameters"] == {"weight": 0.5}
    assert first["parameters"]["weight"] == [
        {"filter": "model.embed_tokens.weight", "value": 0.1},
        {"filter": "model.norm.weight", "value": 0.4},
        {"value": [0.2, 0.3]},
    ]
    assert "value: [0.2, 0.3]" in text, "gradients stand on one line"


def test_a_shipped_model_is_named_by_its_folder():
    pool = ExpertPool.open("zoo:base", {"math": "zoo:math"})
    text, _ = configuration_text(Merge("task_arithmetic", (MATH,), (1,)), pool)
    assert yaml.safe_load(text)["models"][0]["model"] == str(pool.checkpoints["math"].folder)


def test_an_adapter_is_written_after_its_base(tiny_folders, tmp_path):
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    factors = {f"{module}.lora_A.weight": torch.randn(2, 16), f"{module}.lora_B.weight": torch.randn(16, 2)}
    save_file(factors, tmp_path / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["q_proj"], "bias": "none"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    base = tiny_folders["base"]
    pool = ExpertPool.open(str(base), {"lora": str(tmp_path), "math": str(tiny_folders["math"])})
    recipe = Cast(Merge("task_arithmetic", (Expert("lora"), MATH), (0.5, 0.25)), "float32")
    text, _ = configuration_text(recipe, pool)
    assert yaml.safe_load(text)["models"][0]["model"] == f"{base}+{tmp_path}"
    other, read = again(text)
    assert read.input.weights == (0.5, 0.25)
    assert sorted(other.fingerprints.values()) == sorted(pool.fingerprints.values())


LINEAR = Merge("linear", (MATH, CODE), (1, 2))


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Prune(LINEAR, 0.1), "it does not prune, this is Prune to 0.1 of Merge"),
        (Prune(LINEAR, (0.0, 0.1, 0.0, 0.0)), "this is Prune to 0 ... 0.1 of Merge"),
        (Merge("linear", (Prune(MATH, 0.1), CODE), (1, 2)), "it does not prune"),
        (Merge("linear", (LINEAR, LAW), (1, 2)), "Merge by linear of math, code as an input of a merge, not an expert"),
        (Merge("linear", (Cast(MATH, "bfloat16"), LAW), (1, 2)), "Cast to bfloat16 of math as an input of a merge"),
        (Cast(Cast(LINEAR, "bfloat16"), "float32"), "Cast to bfloat16 of Merge inside Cast"),
        (Merge("zero_aware", (MATH, CODE), (1, 2)), "no merge method 'zero_aware'"),
        (Merge("rankmean", (MATH, CODE), (1, 2)), "no merge method 'rankmean'"),
        (Merge("split_slerp", (MATH, CODE), (1, 2)), "no merge method 'split_slerp'"),
        (Merge("linear", (MATH, MATH), (1, 2)), "'math' is an input more than once"),
        (Merge("ties", (MATH, BASE_NODE), (1, 2)), "the base as an input of ties"),
        (Merge("nuslerp", (MATH, BASE_NODE), (1, 2), {"relative": True}), "the base as an input of nuslerp"),
        (Merge("ties", (MATH,), (1,), {"rescale": "density"}), "not by 1 / density"),
        (Merge("dare_ties", (MATH,), (1,), {"seed": 3, "density": 0.5}), "dare_ties has no seed: expected 0, got 3"),
        (Merge("sce", (MATH, CODE), (1, 1), {"scale": 0.5}), "mergekit's sce has no scale"),
        (Merge("sce", (MATH, CODE), (1, 2)), "sce has no weights: expected equal ones"),
        (Merge("model_stock", (MATH, CODE), rows(GROUPS, 1, 2)), "model_stock has no weights"),
        (Merge("task_arithmetic", (MATH, CODE), (1, 2), {"scale": (1, 2)}), "expected one number for all inputs"),
        (Merge("karcher", (MATH, CODE), (1, 1), {"max_iter": rows(GROUPS, 4)}), "takes one max_iter for all"),
    ],
)
def test_what_mergekit_has_no_words_for(recipe, message, tiny):
    with pytest.raises(InputError) as caught:
        configuration_text(recipe, tiny)
    assert message in str(caught.value)
