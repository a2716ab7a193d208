"""The table of features: all ordered pairs and tasks, the same columns for every architecture, looked at once."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from configurations import load

from sae_moo import zoo
from sae_moo.errors import InputError
from sae_moo.evaluate.asking import ProbesSection
from sae_moo.jobs import features
from sae_moo.jobs.bench import Bench
from sae_moo.jobs.features import FEATURES
from sae_moo.materialization.likeness import turned

FEW = ProbesSection(items=4, tokens=64)


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "sae_moo"


def bench(tmp_path, base, experts, tasks=("zoo_math", "zoo_logic")) -> Bench:
    named = ", ".join(f"{name}: {folder}" for name, folder in experts.items())
    asked = ", ".join(f"{{name: {task}, search: 8, test: 0}}" for task in tasks)
    text = f"models: {{base: {base}, experts: {{{named}}}}}\ntasks: [{asked}]\nobjectives: [{', '.join(tasks)}]\n"
    return Bench.open(load(tmp_path, text))


@pytest.fixture
def opened(tmp_path, tiny_folders) -> Bench:
    folders = dict(tiny_folders)
    return bench(tmp_path, folders.pop("base"), folders)


def counted(monkeypatch):
    """Count how often models are traced and weights are looked at."""
    made = {"traces": [], "weights": []}
    make, look = features.Traces._make, features.likenesses
    monkeypatch.setattr(
        features.Traces, "_make", lambda self, missing: made["traces"].append(dict(missing)) or make(self, missing)
    )
    monkeypatch.setattr(
        features, "likenesses", lambda pool, pairs: made["weights"].append(list(pairs)) or look(pool, pairs)
    )
    return made


def test_there_is_a_row_for_each_ordered_pair_and_task_and_the_other_order_is_it_turned(opened, empty):
    table = opened.features(FEW)
    assert (table.names, table.experts, table.tasks) == (FEATURES, ("math", "code", "law"), ("zoo_math", "zoo_logic"))
    assert len(table) == 6 * 2
    for first, second, task in table.rows:
        row = dict(zip(FEATURES, table.of(first, second, task).tolist(), strict=True))
        assert list(turned(row).values()) == table.of(second, first, task).tolist()
    assert np.isfinite(np.stack(list(table.rows.values()))).all()
    structural = [name.startswith(("task_vector", "norm", "sign", "top", "relative", "effective")) for name in FEATURES]
    one, other = (table.of("math", "code", task) for task in table.tasks)
    assert (one == other).tolist() == structural, "weights know no task, and all else does"


def test_a_pair_is_looked_at_once_on_a_machine_whatever_the_order_and_beside_others(opened, empty, monkeypatch):
    made = counted(monkeypatch)
    first = opened.features(FEW, ["code", "math"])
    assert [len(each) for each in made["traces"]] == [3], "two experts and the base"
    assert (
        opened.features(FEW, ["math", "code"]).of("math", "code", "zoo_math").tolist()
        == first.of("math", "code", "zoo_math").tolist()
    )
    assert (len(made["traces"]), len(made["weights"])) == (1, 1)
    whole = opened.features(FEW)
    assert [list(each) for each in made["traces"][1:]] == [["law"]], "one pass of the new one"
    assert [len(each) for each in made["weights"]] == [1, 2]
    for key, row in first.rows.items():
        assert whole.of(*key).tolist() == row.tolist()
    assert opened.features(FEW) == whole
    opened.features(ProbesSection(items=5, tokens=64))
    assert [sorted(each) for each in made["traces"][2:]] == [["base", "code", "law", "math"]]
    assert len(made["weights"]) == 2, "weights read no probes"


def test_tasks_that_read_the_same_texts_are_looked_at_once(opened, empty, monkeypatch, tmp_path):
    (tmp_path / "texts.txt").write_text("one and two are three\n\nall cats are animals, some animals are not cats\n")
    made = counted(monkeypatch)
    table = opened.features(ProbesSection(data=str(tmp_path / "texts.txt")))
    assert made["traces"] == [{name: ["zoo_math"] for name in ("base", "math", "code", "law")}]
    assert len(list((empty / "likenesses").iterdir())) == 2 * 3, "of three pairs, by texts and by weights"
    for first, second in table.pairs:
        assert table.of(first, second, "zoo_math").tolist() == table.of(first, second, "zoo_logic").tolist()


def test_ranks_are_of_what_can_be_pruned(opened, empty, monkeypatch):
    opened.features(FEW)
    made = counted(monkeypatch)
    opened.pool.pruned = ("vision_tower",)
    opened.features(FEW)
    assert [len(each) for each in made["weights"]] == [3]


def test_damaged_files_are_computed_anew(opened, empty):
    table = opened.features(FEW, ["math", "code"])
    files = sorted((empty / "likenesses").iterdir())
    whole = {path: path.read_text() for path in files}
    for damage in ("cut", "digit", "names", "null", "number"):
        for path, content in whole.items():
            digest, inner = json.loads(content)
            path.write_text(
                {
                    "cut": content[: len(content) // 2],
                    "digit": json.dumps([digest, inner.replace("1", "2")]),
                    "names": json.dumps([digest, "{}"]),
                    "null": "null",
                    "number": "7",
                }[damage]
            )
        assert opened.features(FEW, ["math", "code"]) == table, damage
        assert {path: path.read_text() for path in files} == whole, damage


def test_another_architecture_has_the_same_columns_and_none_where_it_has_no_attention(tmp_path, empty):
    from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, MambaConfig

    tokenizer = AutoTokenizer.from_pretrained(zoo.checkpoint("base"))
    kinds = {
        "gpt2": GPT2Config(
            vocab_size=len(tokenizer), n_embd=16, n_layer=5, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2
        ),
        "mamba": MambaConfig(
            vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=3, bos_token_id=1, eos_token_id=2
        ),
    }
    for kind, config in kinds.items():
        for seed, name in enumerate(("base", "a", "b")):
            torch.manual_seed(seed)
            AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / kind / name)
            tokenizer.save_pretrained(tmp_path / kind / name)
        experts = {name: tmp_path / kind / name for name in "ab"}
        table = bench(tmp_path, tmp_path / kind / "base", experts, ("zoo_math",)).features(FEW)
        assert table.names == FEATURES
        missing = [name for name in FEATURES if np.isnan(table.column(name)).any()]
        wanted = [name for name in FEATURES if name.startswith("attention")] if kind == "mamba" else []
        assert missing == wanted


def test_experts_are_named_and_at_least_two(opened, empty):
    for experts, message in (
        (["math"], "expected two experts or more, each once, got math"),
        (["math", "math"], "each once, got math, math"),
        (["math", "cod"], r"no expert named 'cod' \(did you mean 'code'\?\); there are math, code, law"),
        (["math", "base"], "no expert named 'base'"),
    ):
        with pytest.raises(InputError, match=message):
            opened.features(FEW, experts)
