"""Searches that remove experts of mixtures, and what comes of their picks."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

from sae_moo import zoo
from sae_moo.config.document import Config
from sae_moo.errors import InputError
from sae_moo.experts.live import parsed_config
from sae_moo.explore.run import Run
from sae_moo.jobs.bench import Bench
from sae_moo.jobs.export import export
from sae_moo.jobs.search import search
from sae_moo.recipe.structure import chain, units_gone

SCOPE = "moe-experts"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base and two experts of random weights, mixtures of six experts of which two are chosen; a dense block first."""
    root = tmp_path_factory.mktemp("mixtures")
    tokenizer = hf.AutoTokenizer.from_pretrained(zoo.checkpoint("base"))
    config = hf.Qwen3MoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        moe_intermediate_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        num_experts=6,
        num_experts_per_tok=2,
        mlp_only_layers=[0],
        max_position_embeddings=128,
        tie_word_embeddings=True,
    )
    for seed, name in enumerate(("base", "one", "two")):
        torch.manual_seed(seed)
        model = hf.Qwen3MoeForCausalLM(config)
        for which, weight in model.named_parameters():
            if "norm" not in which:
                torch.nn.init.normal_(weight, std=0.3)
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return {name: root / name for name in ("base", "one", "two")}


def config(folders, scope, evaluations=18, **more) -> Config:
    return Config.from_dict(
        {
            "study": {"name": "mixtures"},
            "models": {
                "base": str(folders["base"]),
                "experts": {name: str(path) for name, path in folders.items() if name != "base"},
            },
            "tasks": [{"name": "zoo_math", "search": 6, "test": 4}],
            "objectives": ["zoo_math", "sparsity"],
            "pruning": {"scope": scope},
            "search": {"population": 12, "evaluations": evaluations},
            **more,
        }
    )


@pytest.mark.parametrize("scope", [SCOPE, [SCOPE, "tensor"], ["blocks", SCOPE]], ids=str)
def test_a_pick_without_experts_is_exported_and_verified(folders, tmp_path, scope, verified_here):
    study = search(config(folders, scope), root=tmp_path)
    lacking = [trial for trial in study.trials() if any(node.scope == SCOPE for node in chain(trial.recipe))]
    counts = {
        trial.number: {len(row) for node in chain(trial.recipe) if node.scope == SCOPE for row in node.units[1:]}
        for trial in lacking
    }
    assert lacking
    assert all(len(each) == 1 and max(each) <= 4 for each in counts.values()), "as many of every mixture"
    run = Run.open(study.folder)
    number = next(number for number, each in counts.items() if each != {0})
    (gone,) = counts[number]
    trial = run.view().trial(number)
    told = []
    verify = "tensor" in scope
    export(run, trial, "", tmp_path / "out", verify=verify, form="structured", tell=told.append)
    assert parsed_config(tmp_path / "out")["num_local_experts"] == 6 - gone
    assert any(f"{gone} of 6 experts of every mixture dropped" in note for note in told)
    assert any("instances of the search split score as in the trial" in note for note in told) == verify
    with pytest.raises(InputError, match="format hf cannot hold this model"):
        export(run, trial, "", tmp_path / "whole")
    assert not (tmp_path / "whole").exists()


def test_a_search_that_was_stopped_goes_on_as_if_it_had_not_been(folders, tmp_path):
    scope = [SCOPE, "tensor"]
    whole = search(config(folders, scope), root=tmp_path / "a").trials()
    search(config(folders, scope, evaluations=14), root=tmp_path / "b")
    parts = search(config(folders, scope), root=tmp_path / "b").trials()
    assert [trial.recipe for trial in parts] == [trial.recipe for trial in whole]
    assert len({units_gone(trial.recipe, SCOPE) for trial in whole}) > 2


def test_as_many_experts_stay_as_the_router_chooses(folders):
    assert Bench.open(config(folders, SCOPE)).ground().most == pytest.approx(4 / 6)
    ground = Bench.open(config(folders, [SCOPE, "row"])).ground()
    assert (ground.units, ground.stay(SCOPE), ground.most) == (((SCOPE, 6),), 2, 0.95)


def test_vllm_cannot_write_without_experts(folders):
    with pytest.raises(InputError, match=r"evaluation\.generation: not vllm with scope: moe-experts"):
        config(folders, SCOPE, evaluation={"generation": "vllm"})


@pytest.mark.parametrize("scope", [SCOPE, "blocks", ["blocks", SCOPE], "tensor"], ids=str)
def test_mixtures_that_would_be_repaired_are_a_fault_before_anything_runs(folders, scope):
    given = config(folders, scope, search={"population": 12, "finish": 1})
    with pytest.raises(InputError, match="mixtures are not repaired yet"):
        Bench.open(given)
