"""Continuing prompts by vLLM. Most of it needs vLLM, which has pins of its own: an environment made for it."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from sae_moo.config.document import Config
from sae_moo.errors import InputError, RunError, TaskError
from sae_moo.evaluate.hardware import Rounding
from sae_moo.evaluate.task import Prompt
from sae_moo.evaluate.tasks import zoo_items
from sae_moo.evaluate.vllm import Engine, VllmWriter
from sae_moo.evaluate.writing import TransformersWriter
from sae_moo.experts.pool import ExpertPool
from sae_moo.jobs.bench import Bench
from sae_moo.materialization.into_model import materialize
from sae_moo.recipe import Cast, Expert, Merge, Prune

MOST = 9
there = pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed")
RECIPES = [
    Cast(Expert("math"), "float32"),
    Cast(Prune(Merge("linear", (Expert("math"), Expert("logic")), (0.5, 0.5)), 0.3), "float32"),
    Cast(Expert("logic"), "float32"),
]


@pytest.fixture(scope="module")
def pool() -> ExpertPool:
    return ExpertPool.open("zoo:base", {"math": "zoo:math", "logic": "zoo:logic"})


@pytest.fixture(scope="module")
def prompts(pool) -> list[Prompt]:
    texts = [item.prompt for task in ("zoo_math", "zoo_logic") for item in zoo_items(task)[0][:20]]
    made = [Prompt(tuple(pool.tokenizer()(text).input_ids), MOST, ("\n",)) for text in texts]
    made += [Prompt(each.context, MOST - 4, ()) for each in made[:3]]
    return made + [Prompt(each.context, MOST, (" 1", "2")) for each in made[3:6]]


@pytest.fixture(scope="module")
def engine(pool) -> Engine:
    return Engine(pool.checkpoints["base"].folder, "float32", "cpu", 128)


@pytest.fixture(scope="module")
def model(pool):
    return pool.live_model()


@there
def test_every_candidate_writes_what_it_writes_by_transformers(pool, model, engine, prompts):
    writer, plain = (
        make(prompts, pool.tokenizer()) for make in (lambda p, t: VllmWriter(p, t, engine), TransformersWriter)
    )
    seen = []
    for recipe in (*RECIPES, RECIPES[0]):
        materialize(recipe, pool, model)
        writer.load(model)
        seen.append(writer.write(model))
        assert seen[-1] == plain.write(model)
        assert writer.write(model, [7, 41, 3]) == [seen[-1][i] for i in (7, 41, 3)]
    assert seen[0] == seen[3]
    assert len({tuple(texts) for texts in seen}) == 3, "the weights in effect are the candidate's"


@there
def test_answers_that_are_not_finite_fail_the_candidate(pool, model, engine, prompts):
    materialize(RECIPES[0], pool, model)
    writer = VllmWriter(prompts, pool.tokenizer(), engine)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(TaskError, match="not finite"):
        writer.load(model)


@there
def test_an_engine_that_answers_otherwise_is_not_used(pool, model, engine, prompts, monkeypatch):
    materialize(RECIPES[0], pool, model)
    monkeypatch.setattr("sae_moo.evaluate.vllm.ENGINES", Rounding(-1.0, -1.0))
    with pytest.raises(RunError, match="vllm gives other log probabilities than LlamaForCausalLM"):
        VllmWriter(prompts, pool.tokenizer(), engine).load(model)


def test_settings_that_change_greedy_decoding_are_refused(pool, prompts, monkeypatch):
    monkeypatch.setattr("sae_moo.evaluate.vllm.find_spec", lambda name: name)
    model = pool.live_model()
    model.generation_config.repetition_penalty = 1.2
    engine = Engine(pool.checkpoints["base"].folder, "float32", "cpu", 128)
    with pytest.raises(InputError, match="changes greedy decoding"):
        VllmWriter(prompts, pool.tokenizer(), engine).load(model)


def test_without_prompts_nothing_is_started(pool, monkeypatch):
    monkeypatch.setattr("sae_moo.evaluate.vllm.find_spec", lambda name: name)
    writer = VllmWriter([], pool.tokenizer(), Engine(pool.checkpoints["base"].folder, "float32", "cpu", 1))
    writer.load(None)
    assert writer.write(None) == []


TASK = """task: writing
dataset_path: json
dataset_kwargs: {data_files: {test: DOCS}}
output_type: generate_until
test_split: test
doc_to_text: "{{q}}"
doc_to_target: "{{a}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 6}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


def test_where_it_is_not_installed_it_is_refused_before_anything_runs(tmp_path, monkeypatch):
    import json

    docs = [{"q": item.prompt, "a": item.choices[0]} for item in zoo_items("zoo_math")[0][:8]]
    (tmp_path / "docs.jsonl").write_text("\n".join(json.dumps(doc) for doc in docs))
    (tmp_path / "writing.yaml").write_text(TASK.replace("DOCS", str(tmp_path / "docs.jsonl")))
    raw = {
        "models": {"base": "zoo:base", "experts": {"math": "zoo:math"}},
        "tasks": [{"name": "writing", "include": "writing.yaml", "search": 4, "test": 2}],
        "objectives": ["writing", "sparsity"],
        "evaluation": {"generation": "vllm"},
    }
    monkeypatch.setattr("sae_moo.evaluate.vllm.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"evaluation.generation: vllm is not installed .* pip install vllm"):
        Bench.open(Config.from_dict(raw, tmp_path))


def test_only_tasks_that_write_need_it(monkeypatch):
    monkeypatch.setattr("sae_moo.evaluate.vllm.find_spec", lambda name: None)
    raw = {
        "models": {"base": "zoo:base", "experts": {"math": "zoo:math"}},
        "tasks": [{"name": "zoo_math", "search": 4, "test": 2}],
        "objectives": ["zoo_math", "sparsity"],
        "evaluation": {"generation": "vllm"},
    }
    assert Bench.open(Config.from_dict(raw)).scorer()


def test_a_mixture_that_lacks_experts_is_refused(mixtures):
    """Before the engine is started, so that it is told without vLLM too."""
    mixed = mixtures("mixtral")
    model = mixed.live_model()
    materialize(Prune(Expert("math"), 0.5, scope="moe-experts"), mixed, model)
    with pytest.raises(InputError, match="mixtures lack experts; given zeros in their place, vllm lets the routers"):
        Engine.load(object.__new__(Engine), model, [3, 4, 5])
