from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import sae_moo as sm
from sae_moo.recipe import Recipe


def test_importing_costs_nothing():
    code = (
        "import sys, sae_moo; print(sorted({'torch', 'transformers', 'pymoo', 'optuna', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_recipes_need_no_torch():
    code = "import sys, sae_moo; sae_moo.Expert, sae_moo.Objective, sae_moo.Schedule; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_every_public_name_is_there():
    for name in sm.__all__:
        assert getattr(sm, name) is not None
    assert set(sm.__all__) <= set(dir(sm))
    with pytest.raises(AttributeError, match="no attribute 'Experts'"):
        sm.Experts  # noqa: B018


def test_the_api_as_documented(tiny_folders):
    pool = sm.ExpertPool.open(base=tiny_folders["base"], experts={n: tiny_folders[n] for n in ("math", "code")})
    recipe = sm.Prune(sm.Merge("linear", (sm.Expert("math"), sm.Expert("code")), weights=(0.6, 0.4)), sparsity=0.3)
    model = pool.live_model(dtype=torch.bfloat16, device="cpu")
    report = sm.materialize(recipe, pool, into=model)
    assert report.sparsity == pytest.approx(0.3, abs=0.001)
    assert set(report.group_sparsity) == {"embeddings", "block.0", "block.1", "head"}
    assert sm.Recipe.from_json(recipe.to_json()) == recipe
    assert len(recipe.digest(pool)) == 64
    assert isinstance(recipe, Recipe)


def test_search_from_python(tiny_folders, tmp_path):
    config = sm.Config.from_dict(
        {
            "study": {"name": "api"},
            "models": {"base": str(tiny_folders["base"]), "experts": {"math": str(tiny_folders["math"])}},
            "tasks": [{"name": "zoo_math", "search": 5, "test": 5}],
            "objectives": ["zoo_math", "sparsity"],
            "search": {"population": 4, "evaluations": 6},
        }
    )
    run = sm.search(config, root=tmp_path)
    assert len(run.trials()) == 6
    record, why = run.pick(where=["sparsity>=0.05"])
    assert record in run.front()
    assert "sparsity >= 0.05" in why
    assert run.recipe(record.number).digest(sm.Bench.open(config).pool) == record.digest


@pytest.mark.parametrize("given", ["file.yaml", None, {"study": {"name": "a"}}])
def test_a_search_of_anything_but_a_configuration_is_one_message(given):
    message = f"config: expected a Config, as Config.load\\(path\\) reads it, got {type(given).__name__}"
    for call in (sm.search, sm.Bench.open):
        with pytest.raises(sm.InputError, match=message):
            call(given)


def test_what_is_no_recipe_is_not_materialized(tiny, tiny_model):
    with pytest.raises(sm.InputError, match=r"expected a recipe, such as Expert\('math'\), got 'math'"):
        sm.materialize("math", tiny, tiny_model)
