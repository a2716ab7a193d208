"""What `search` would refuse before its first evaluation `validate` refuses as well, and writes nothing."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys

import pytest
from commands import call, config_for, refused, written

from sae_moo.jobs import bench, memory
from sae_moo.study import cluster


@pytest.mark.parametrize(
    "storage",
    [
        "foo://x",
        "sqlite:///gone/s.db",
        "sqlite+foo:///s.db",
        "sqlite:////gone/s.db",
        "journal://s",
        "sqlite:///facts.jsonl",
    ],
)
def test_a_storage_that_cannot_be(here, storage):
    before = sorted(here.rglob("*"))
    change = ("--set", f"study.storage={storage}")
    assert refused("validate", "c.yaml", *change).splitlines()[-1].startswith("sae-moo: storage ")
    assert sorted(here.rglob("*")) == before
    assert "storage " in refused("search", "c.yaml", *change)


def test_a_storage_that_can_be_is_left_alone(here):
    change = ("--set", "study.storage=sqlite:///s.db")
    call("validate", "c.yaml", *change)
    assert not (here / "s.db").exists()
    with sqlite3.connect(here / "s.db") as database:
        database.execute("create table mine (x)")
    before = (here / "s.db").read_bytes()
    call("validate", "c.yaml", *change)
    assert (here / "s.db").read_bytes() == before


def test_a_study_in_a_database_is_found_without_its_run_folder(here):
    change = ("--set", "study.storage=sqlite:///s.db")
    call("search", "c.yaml", "--evaluations", "1", *change)
    (here / "runs").rename(here / "elsewhere")
    message = refused("validate", "c.yaml", *change, "--set", "study.seed=5")
    assert "study.seed: the study has 0, now it is 5" in message
    assert not (here / "runs").exists()


def test_features_are_not_made_and_their_texts_are_looked_at(here, monkeypatch):
    monkeypatch.setattr(bench, "features_of", lambda *arguments: pytest.fail("models were run"))
    change = ("--set", "search.prescreening={factor: 4, features: true}")
    call("validate", "c.yaml", *change)
    assert "none.txt" in refused("validate", "c.yaml", *change, "--set", "predict.probes.data=none.txt")


@pytest.mark.parametrize("place", ["runs", "runs/tiny"])
def test_a_run_folder_that_cannot_be_made(here, place):
    (here / place).parent.mkdir(exist_ok=True)
    (here / place).write_text("a file")
    for command in ("search", "validate"):
        assert "runs/tiny: the run folder cannot be written" in refused(command, "c.yaml")


@pytest.mark.parametrize("storage", ["null", "sqlite:///s.db"])
def test_every_difference_of_a_study_of_that_name_is_told_those_of_objectives_too(here, tiny_folders, storage):
    call("search", "c.yaml", "--evaluations", "1", "--set", f"study.storage={storage}")
    (here / "d.yaml").write_text(written(config_for(tiny_folders, objectives=["zoo_math", "facts", "sparsity"])))
    for command in ("search", "validate"):
        change = ("--set", "study.seed=3", "--set", f"study.storage={storage}")
        message = refused(command, "d.yaml", *change)
        assert "study.seed: the study has 0, now it is 3" in message
        assert "objectives: the study has" in message
        assert message.endswith(
            "use another study.name, or --fresh to put the old run aside\n"
            if storage == "null"
            else "use another study.name\n"
        )


RAY = ("--set", "executor.kind=ray")


@pytest.mark.parametrize("command", ["validate", "search"])
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (("executor.kind=ray",), "sae-moo: executor.kind: ray needs Ray, which is not installed"),
        (("executor.kind=ray", "executor.gpus_per_worker=2"), "sae-moo: executor.gpus_per_worker: 2, and models are"),
        (("executor.kind=ray", "executor.address=ray://node"), "executor.address: expected 'auto', or HOST:PORT"),
        (("executor.kind=processes", "executor.gpus_per_worker=2"), "executor.gpus_per_worker: it is for kind: ray"),
        (("executor.kind=processes", "models.device=cuda:7"), "sae-moo: models.device: torch has no device 'cuda:7'"),
    ],
)
def test_workers_that_cannot_be_had_are_told_before_models_are_opened(here, monkeypatch, command, changes, told):
    monkeypatch.setattr(bench.ExpertPool, "open", lambda *given, **more: pytest.fail("models were opened"))
    there = "gpus_per_worker" in told
    monkeypatch.setattr(cluster, "find_spec", lambda name: object() if there else None)
    assert told in refused(command, "c.yaml", *(word for change in changes for word in ("--set", change)))
    assert not (here / "runs").exists()


@pytest.mark.parametrize("command", ["validate", "search"])
def test_that_an_extra_is_missing_is_told_before_torch_is_imported(here, command):
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from sae_moo.study import cluster\n"
        "cluster.find_spec = lambda name: None\n"
        "from sae_moo.cli.main import main; main()\n"
    )
    arguments = [sys.executable, "-c", script, command, "c.yaml", *RAY]
    ended = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "sae-moo: executor.kind: ray needs Ray, which is not installed: pip install 'sae-moo[ray]'\n"


def test_a_comparison_tells_it_before_models_are_opened(here, monkeypatch):
    monkeypatch.setattr(bench.ExpertPool, "open", lambda *given, **more: pytest.fail("models were opened"))
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    told = refused("compare", "c.yaml", "--set", "compare={methods: [nsga2, random], seeds: 1}", *RAY)
    assert told.splitlines()[-1].startswith("sae-moo: executor.kind: ray needs Ray, which is not installed")


def test_what_workers_take_of_memory_is_a_line_of_its_own(here, monkeypatch):
    monkeypatch.setattr(memory, "memory", lambda: 2**15)
    workers = ("--set", "executor.kind=processes", "--set", "executor.workers=3")
    lines = call("validate", "c.yaml", *workers).stdout.splitlines()
    (line,) = [line for line in lines if line.startswith("  memory")]
    assert line.startswith("  memory      3 workers each with a model of 0.0 MiB: 0.")
    assert line.endswith(" of this machine, too little; there is room with a smaller models.dtype")
    assert json.loads(call("validate", "c.yaml", *workers, "--json").stdout)["memory"] == [line[14:]]
    assert not any(line.startswith("  memory") for line in call("validate", "c.yaml").stdout.splitlines())
