"""Whole configurations through mergekit itself and through us, every tensor compared, where mergekit can be run.

Kinds of configurations as model cards have them are merged from file to folder; those of the study in
``studies/reliability/mergekit.py``.

Set SAE_MOO_ORACLE to a Python that has mergekit 0.1.5 (a virtual environment of its own: its pins clash with ours).
Methods that draw at random are compared where nothing is dropped.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sae_moo.deploy.mergekit.reading import read_configuration
from sae_moo.deploy.mergekit.translate import translate
from sae_moo.deploy.mergekit.writer import configuration_text
from sae_moo.experts.pool import ExpertPool
from sae_moo.materialization.into_model import materialize
from sae_moo.recipe import BASE

PYTHON = os.environ.get("SAE_MOO_ORACLE")

pytestmark = pytest.mark.skipif(PYTHON is None, reason="no mergekit: set SAE_MOO_ORACLE to a Python that has it")

MODELS = ("base", "math", "code", "law")
ABC = "models:\n  - {model: math, parameters: {weight: 0.5}}\n  - {model: code, parameters: {weight: 0.9}}\n"
SLICES = """\
slices:
  - sources:
      - {model: base, layer_range: [0, 3]}
      - {model: math, layer_range: [0, 3], parameters: {weight: [0.2, 0.8]}}
      - {model: code, layer_range: [0, 3]}
    parameters: {weight: 0.25}
  - sources:
      - {model: base, layer_range: [3, 4]}
      - {model: code, layer_range: [3, 4], parameters: {weight: [0.1, 0.4]}}
      - {model: math, layer_range: [3, 4]}
"""

CASES = {
    "linear": "merge_method: linear\n" + ABC,
    "linear, base is one more": "merge_method: linear\nbase_model: base\nparameters: {weight: [0.1, 1]}\n" + ABC,
    "linear, gradient and filters": """\
merge_method: linear
models:
  - {model: math, parameters: {weight: [{filter: self_attn, value: [0.1, 0.9, 0.3]}, {filter: mlp, value: 0.4}, {value: 1}]}}
  - {model: code, parameters: {weight: [{filter: lm_head, value: 0.25}, {filter: layers.2, value: 3}]}}
parameters: {weight: [0.3, 0.6]}
""",
    "linear, not normalized, three models in slices": """\
merge_method: linear
slices:
  - {sources: [{model: law, layer_range: [0, 1], parameters: {weight: [0.5, 2]}}, {model: math, layer_range: [0, 1]}]}
  - sources: [{model: math, layer_range: [1, 4]}, {model: code, layer_range: [1, 4]}]
    parameters: {weight: [{filter: mlp, value: [0, 1]}]}
parameters: {weight: 0.3, normalize: false}
""",
    "slerp": """\
merge_method: slerp
base_model: base
models: [{model: math}, {model: base}]
parameters: {t: [{filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}, {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}, {value: 0.4}]}
""",
    "slerp in slices": """\
merge_method: slerp
base_model: math
slices:
  - {sources: [{model: math, layer_range: [0, 2]}, {model: base, layer_range: [0, 2]}], parameters: {t: [0.2, 0.8]}}
  - {sources: [{model: math, layer_range: [2, 4]}, {model: base, layer_range: [2, 4]}]}
parameters: {t: 0.6}
""",
    "nuslerp": "merge_method: nuslerp\n" + ABC,
    "nuslerp on task vectors": "merge_method: nuslerp\nbase_model: base\nparameters: {nuslerp_row_wise: false}\n" + ABC,
    "multislerp": "merge_method: multislerp\nparameters: {normalize_weights: false}\n" + ABC,
    "multislerp on task vectors": "merge_method: multislerp\nbase_model: base\n" + ABC,
    "karcher": "merge_method: karcher\nmodels: [{model: math}, {model: code}, {model: law}]\nparameters: {max_iter: 3}\n",
    "karcher, base is one more": "merge_method: karcher\nbase_model: law\nmodels: [{model: math}, {model: code}]\n",
    "task_arithmetic in slices": "merge_method: task_arithmetic\nbase_model: base\n" + SLICES
    + "parameters: {lambda: [0.5, 1.5], normalize: true, weight: [0.7, 0.9]}\n",
    "task_arithmetic in a module": """\
merge_method: task_arithmetic
base_model: base
modules:
  default:
    models: [{model: base, parameters: {weight: 9}}, {model: math}, {model: code, parameters: {weight: 0.2}}]
    parameters: {weight: [0.5, 0.1]}
parameters: {weight: 100}
""",
    "ties": """\
merge_method: ties
base_model: base
models:
  - {model: math, parameters: {weight: [0, 0.3, 0.7, 1], density: [1, 0.7, 0.1]}}
  - {model: law, parameters: {weight: [{filter: mlp, value: 0.5}, {value: 0.1}], density: 0.33}}
parameters: {normalize: true, int8_mask: true, lambda: [{filter: mlp, value: 0.7}]}
""",
    "ties in slices": "merge_method: ties\nbase_model: base\n" + SLICES + "parameters: {weight: 0.4, density: [0.2, 0.6], rescale: true}\n",
    "ties, a model in one slice only": """\
merge_method: ties
base_model: base
slices:
  - sources:
      - {model: base, layer_range: [0, 2]}
      - {model: math, layer_range: [0, 2], parameters: {weight: 0.8, density: 0.4}}
      - {model: code, layer_range: [0, 2], parameters: {weight: 0.5, density: 0.7}}
  - sources:
      - {model: base, layer_range: [2, 4]}
      - {model: law, layer_range: [2, 4], parameters: {weight: 0.8, density: 0.4}}
""",
    "dare_ties, nothing dropped": "merge_method: dare_ties\nbase_model: base\nparameters: {normalize: true}\n" + ABC,
    "della_linear, nothing dropped": "merge_method: della_linear\nbase_model: base\nparameters: {lambda: 1e-1}\n" + ABC,
    "breadcrumbs": "merge_method: breadcrumbs\nbase_model: base\nparameters: {density: [0.4, 0.9], gamma: 0.05}\n" + ABC,
    "breadcrumbs_ties": "merge_method: breadcrumbs_ties\nbase_model: base\nparameters: {density: 0.6}\n" + ABC,
    "model_stock": "merge_method: model_stock\nbase_model: base\nmodels: [{model: math}, {model: law}]\nparameters: {filter_wise: false}\n",
    "sce": "merge_method: sce\nbase_model: base\nmodels: [{model: math}, {model: law}]\nparameters: {select_topk: [0.2, 0.9]}\n",
    "arcee_fusion": "merge_method: arcee_fusion\nbase_model: base\nmodels: [{model: base}, {model: code}]\n",
    "passthrough": "merge_method: passthrough\nmodels: [{model: code, parameters: {scale: [{filter: down_proj, value: 0.5}]}}]\n",
    "passthrough in slices": """\
merge_method: passthrough
slices:
  - {sources: [{model: code, layer_range: [0, 2]}]}
  - {sources: [{model: law, layer_range: [2, 4], parameters: {scale: [{filter: o_proj, value: 0}, {value: 1}]}}]}
""",
}  # fmt: skip

SCRIPT = """
import logging, sys
from pathlib import Path
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
logging.disable(logging.WARNING)
options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
for file in sorted(Path().glob("*.yaml")):
    config = MergeConfiguration.model_validate(yaml.safe_load(file.read_text()))
    run_merge(config, str(Path("out") / file.stem), options)
"""


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> Path:
    """Four random Llama models of four layers, a head of their own."""
    from transformers import LlamaConfig, LlamaForCausalLM

    root = tmp_path_factory.mktemp("oracle")
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        tie_word_embeddings=False,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    start = LlamaForCausalLM(config).state_dict()
    for name in MODELS:
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                parameter.copy_(start[key] + (0.3 * torch.randn_like(parameter) if name != "base" else 0))
        model.save_pretrained(root / name)
    return root


@pytest.fixture(scope="session")
def merged(checkpoints) -> Path:
    """Every case, and what we write for it, merged by mergekit."""
    for number, text in enumerate(CASES.values()):
        (checkpoints / f"{number}.yaml").write_text(text)
        pool, recipe = ours(checkpoints, number)
        (checkpoints / f"{number}-again.yaml").write_text(configuration_text(recipe, pool)[0])
    subprocess.run([PYTHON, "-c", SCRIPT], check=True, cwd=checkpoints, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    return checkpoints / "out"


def ours(checkpoints, number):
    document = read_configuration(checkpoints / f"{number}.yaml")
    sources = dict(document.sources)
    pool = ExpertPool.open(sources.pop(BASE), sources or {"same": document.sources[BASE]}, relative_to=checkpoints)
    return pool, translate(document, pool)


@pytest.mark.parametrize("number", range(len(CASES)), ids=list(CASES))
def test_agrees_with_mergekit(merged, checkpoints, number):
    pool, recipe = ours(checkpoints, number)
    model = pool.live_model()
    materialize(recipe, pool, model)
    found = model.state_dict()
    for folder in (str(number), f"{number}-again"):
        theirs = load_file(merged / folder / "model.safetensors")
        assert set(theirs) == set(found)
        for name, tensor in theirs.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def study():
    """The study's module: it is no package."""
    file = Path(__file__).parents[3] / "studies/reliability/mergekit.py"
    spec = importlib.util.spec_from_file_location("reliability_of_mergekit_files", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


STUDY = study()


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory):
    return STUDY.outcomes(tmp_path_factory.mktemp("kinds"), PYTHON)


@pytest.mark.parametrize("kind", STUDY.KINDS)
def test_what_mergekit_runs_runs_to_its_numbers(outcomes, kind):
    found = outcomes[kind]
    assert found.theirs is None
    assert found.ours is None
    if kind not in STUDY.OWN_MASKS:
        assert found.difference <= (0.02 if kind in STUDY.ROUNDED else 1e-6)
