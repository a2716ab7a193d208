"""Repaired picks and repaired members of the front, from the command line."""

from __future__ import annotations

import json
import weakref

import pytest
from commands import BUDGET, call, config_for, written
from transformers import AutoTokenizer

from sae_moo.deploy import pace
from sae_moo.experts.pool import ExpertPool
from sae_moo.explore.run import Run
from sae_moo.jobs import export
from sae_moo.recipe import Repair
from sae_moo.recipe.structure import repair_of

SPARSE = ("--where", "sparsity>=0.02")


def refused(*arguments: str) -> str:
    return " ".join(call(*arguments, code=2).stderr.split())


@pytest.fixture
def alive(monkeypatch):
    """How many live models were in memory whenever an export is about to load others."""
    live, made, counts = ExpertPool.live_model, [], []

    def watched(*given):
        model = live(*given)
        made.append(weakref.ref(model))
        return model

    def counted(call):
        def counting(*given):
            assert made
            counts.append(sum(model() is not None for model in made))
            return call(*given)

        return counting

    monkeypatch.setattr(ExpertPool, "live_model", watched)
    monkeypatch.setattr(pace, "load_model", counted(pace.load_model))
    monkeypatch.setattr(export, "verify_apart", counted(export.verify_apart))
    return counts


def test_a_repaired_pick_is_exported_verified_and_made_again(there, tmp_path, alive):
    document = json.loads(
        call("export", "tiny", *SPARSE, "--repair", "-o", f"{tmp_path}/m", "--verify", "--json").stdout
    )
    assert alive == [0]
    trial, repaired = document["trial"], document["repaired"]
    assert repaired["sparsity"] == trial["sparsity"]
    assert repaired["digest"] != trial["digest"]
    assert document["scores"]["search"]["facts"]["score"] == repaired["tasks"]["facts"] != trial["tasks"]["facts"]
    recipe = json.loads((tmp_path / "m/recipe.json").read_text())
    assert recipe["digest"] == repaired["digest"]
    assert "SparseGPT" in (tmp_path / "m/README.md").read_text()
    assert len(list((tmp_path / "m").glob("texts-*.json"))) == 1
    said = call("merge", f"{tmp_path}/m/recipe.json", "--output", f"{tmp_path}/again").stdout
    assert "bit for bit those that the recipe was written with" in said
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "m/model.safetensors").read_bytes()
    same = json.loads(call("diff", f"{tmp_path}/m", f"{tmp_path}/m/recipe.json", "--config", "c.yaml", "--json").stdout)
    assert same["weights"]["distance"] == 0
    call("export", "tiny", *SPARSE, "--repair", "-o", f"{tmp_path}/m.saepack", "--format", "packed")
    call("unpack", f"{tmp_path}/m.saepack", "--output", f"{tmp_path}/unpacked")
    assert (tmp_path / "unpacked/model.safetensors").read_bytes() == (tmp_path / "m/model.safetensors").read_bytes()
    plain = json.loads(call("export", "tiny", *SPARSE, "-o", f"{tmp_path}/plain", "--json").stdout)
    assert plain["repaired"] is None


def test_a_pick_tells_what_repairing_it_changes(there):
    document = json.loads(call("pick", "tiny", *SPARSE, "--repair", "--test", "--json").stdout)
    number = document["trial"]["number"]
    assert document["repaired"]["number"] == number
    assert f"trial {number}, repaired" in document["test"]["references"]
    said = call("pick", "tiny", *SPARSE, "--repair").stdout
    assert f"trial {number} repaired (search split" in said
    assert "--verify --repair" in " ".join(said.split())
    assert json.loads(call("pick", "tiny", *SPARSE, "--json").stdout)["repaired"] is None


def test_what_cannot_be_repaired_is_refused(there, tmp_path):
    dense = next(record.number for record in Run.open(there / "runs/tiny").trials() if not record.evaluation.sparsity)
    arguments = ("export", "tiny", "--trial", str(dense), "--repair", "-o", f"{tmp_path}/m")
    assert f"trial {dense} is not pruned, there is nothing to repair" in refused(*arguments)
    assert "leave out --repair" in refused("export", "tiny", "--estimate", "--repair")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def finished(here, tiny_folders):
    (here / "texts.txt").write_text("one two three\n\nfour five six")
    search = {"population": 6, "evaluations": BUDGET, "finish": 2}
    pruning = {"calibration": {"data": "texts.txt"}}
    (here / "f.yaml").write_text(written(config_for(tiny_folders, search=search, pruning=pruning)))
    call("search", "f.yaml")
    return Run.open(here / "runs/tiny")


def test_a_search_finishes_with_repaired_members_of_its_front(finished, here):
    records = finished.trials()
    assert [record.operator for record in records[BUDGET:]] == ["repair"] * 2
    for record in records[BUDGET:]:
        (parent,) = record.parents
        assert isinstance(record.recipe.input, Repair)
        assert record.recipe.input.input == records[parent].recipe.input
        assert record.evaluation.sparsity == records[parent].evaluation.sparsity > 0
    number = str(records[-1].number)
    call("export", "tiny", "--trial", number, "-o", "out", "--verify")
    assert f"trial {number} is repaired already" in refused("export", "tiny", "--trial", number, "--repair", "-o", "o")
    call("search", "f.yaml", "--set", "search.finish=3", "--evaluations", str(BUDGET + 2))
    longer = finished.trials()
    assert longer[: len(records)] == records
    assert sum(repair_of(record.recipe) is None for record in longer) == BUDGET + 2


def test_texts_are_asked_for_only_where_they_are_read(finished, here, tmp_path, monkeypatch):
    """As on another machine, which has no cache: neither a search that is finished nor one that repairs nothing asks."""
    texts, trials = (here / "texts.txt").read_text(), len(finished.trials())
    (parent,) = finished.trials()[-1].parents
    number, sparse = str(trials - 1), str(parent)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (here / "texts.txt").unlink()
    for finish in (2, 0, 2):
        assert "16 evaluations" in call("search", "f.yaml", "--set", f"search.finish={finish}").stdout
        call("validate", "f.yaml", "--set", f"search.finish={finish}")
    call("export", "tiny", "--trial", sparse, "-o", "sparse")
    missing = f"{here / 'texts.txt'}: cannot read calibration texts"
    for arguments in (
        ("search", "f.yaml", "--evaluations", str(BUDGET + 2)),
        ("export", "tiny", "--trial", number, "-o", "out"),
        ("export", "tiny", "--trial", sparse, "--repair", "-o", "out"),
        ("validate", "f.yaml", "--set", "study.name=new"),
        ("search", "f.yaml", "--set", "study.name=new"),
    ):
        assert missing in refused(*arguments), arguments
    assert len(finished.trials()) == trials
    assert not (here / "runs/new").exists()
    (here / "texts.txt").write_text(texts)
    call("search", "f.yaml", "--set", "search.finish=0")
    call("export", "tiny", "--trial", number, "-o", "out")


def test_texts_too_short_to_repair_on_are_told_before_the_search(here, tiny_folders):
    (here / "short.txt").write_text("a")
    pruning = {"calibration": {"data": "short.txt"}}
    search = {"population": 6, "evaluations": BUDGET, "finish": 1}
    (here / "s.yaml").write_text(written(config_for(tiny_folders, search=search, pruning=pruning)))
    assert "expected texts of at least 2 tokens" in refused("validate", "s.yaml")


def test_a_repaired_pick_without_its_neurons_is_a_smaller_model_and_read_the_calibration_texts(here, alive):
    (here / "texts.txt").write_text("one two three\n\nfour five six")
    call("search", "c.yaml", "--set", "pruning={scope: neurons, calibration: {data: texts.txt}}")
    arguments = ("export", "tiny", *SPARSE, "--repair", "--format", "structured", "-o", "small", "--verify", "--json")
    document = json.loads(call(*arguments).stdout)
    assert alive == [0, 0, 0], "the repaired model is given back before two are timed, and one is scored"
    assert document["repaired"]["sparsity"] == document["trial"]["sparsity"]
    assert json.loads((here / "small/config.json").read_text())["intermediate_size"] < 24
    (texts,) = (here / "small").glob("texts-*.json")
    decode = AutoTokenizer.from_pretrained(here / "small").decode
    assert [decode(ids, skip_special_tokens=True).strip() for ids in json.loads(texts.read_text())] == [
        "one two three",
        "four five six",
    ]
