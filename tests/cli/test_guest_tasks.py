"""A task kind of an installed package: searched with, resumed, compared, exported and verified in a fresh process."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import acme_tasks
import pytest
import yaml
from commands import call, config_for, refused, written
from guests import installed

from sae_moo.evaluate.kinds import KINDS

MINE = {"name": "mine", "data": "mine.jsonl", "kind": "acme/regex_match", "search": 8, "test": 5}


@pytest.fixture
def site(tmp_path_factory, monkeypatch):
    """A folder that packages are installed into, here and in processes that are started."""
    folder = tmp_path_factory.mktemp("site")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setattr(KINDS, "_guests", {})
    installed(folder, "acme", "1.2", Path(acme_tasks.__file__).read_text(), acme_tasks.POINTS)
    yield folder
    sys.modules.pop("acme", None)


@pytest.fixture
def mine(here, site, tiny_folders):
    """A current folder with a configuration that has a guest's task, the only objective beside sparsity."""
    entries = [{"prompt": f"fact {i} is", "pattern": "[aeiou]" if i % 2 else "."} for i in range(30)]
    (here / "mine.jsonl").write_text("\n".join(map(json.dumps, entries)))
    config = config_for(tiny_folders, tasks=[MINE], objectives=["mine", "sparsity"])
    config["search"] = {"population": 5, "evaluations": 6}
    (here / "c.yaml").write_text(written(config))
    return here


def test_it_is_searched_with_evaluated_resumed_and_verified(mine, fresh_process):
    call("search", "c.yaml")
    (front, *_) = json.loads(call("front", "tiny", "--json").stdout)["trials"]
    assert front["values"]["mine"] > 0
    call("search", "c.yaml", "--evaluations", "8")
    assert len(json.loads(call("trials", "tiny", "--json").stdout)["trials"]) == 8
    exported = json.loads(
        call("export", "tiny", "--trial", str(front["number"]), "-o", "m", "--verify", "--json").stdout
    )
    assert exported["scores"]["search"]["mine"]["score"] == front["values"]["mine"]
    call("evaluate", "m", "--config", "c.yaml", "--split", "search", "--samples", "s.jsonl")
    samples = [json.loads(line) for line in (mine / "s.jsonl").read_text().splitlines()]
    assert len(samples) == 8
    for sample in samples:
        assert sample["score"] == float(re.search(sample["pattern"], sample["answers"][0]) is not None)


def test_a_comparison_scores_it_in_processes_of_its_own(mine):
    methods = ["nsga2", "weighted-average"]
    call("compare", "c.yaml", "--set", f"compare={{methods: [{', '.join(methods)}], seeds: 1}}", "--workers", "2")
    assert len(list(mine.glob("runs/tiny/**/study.journal"))) == 2


LONG = {"name": "long", "data": "mine.jsonl", "kind": "acme/long", "settings": {"tokens": 3}, "search": 8, "test": 5}
COUNTING = {"name": "counting", "kind": "acme/counting", "settings": {"tokens": 2}, "search": 4, "test": 2}


def changed(mine, tasks):
    raw = yaml.safe_load((mine / "c.yaml").read_text()) | {"tasks": tasks, "objectives": ["long", "sparsity"]}
    (mine / "c.yaml").write_text(written(raw))


def test_kinds_have_settings_and_need_no_items(mine):
    changed(mine, [LONG, COUNTING])
    call("search", "c.yaml")
    call("search", "c.yaml", "--evaluations", "8")
    shown = json.loads(
        call(
            "evaluate",
            str(yaml.safe_load((mine / "c.yaml").read_text())["models"]["base"]),
            "--config",
            "c.yaml",
            "--json",
        ).stdout
    )
    assert shown["tasks"]["counting"]["instances"] == 4, "two tokens for each of two"
    changed(mine, [LONG | {"settings": {"tokens": 4}}, COUNTING])
    message = refused("search", "c.yaml")
    assert "tasks.long.settings.tokens: the study has 3, now it is 4" in message


@pytest.mark.parametrize(
    ("task", "told"),
    [
        (LONG | {"settings": {"token": 3}}, "tasks[0].settings.token: no such key (did you mean 'tokens'?); expected one of tokens"),
        (LONG | {"settings": {"tokens": "x"}}, "tasks[0].settings.tokens: expected integer, got 'x'"),
        (LONG | {"kind": "acme/loud"}, "tasks[0].settings: kind: acme/loud has no settings"),
        (LONG | {"data": None}, "tasks[0].kind: kind: acme/long is for items of your own; give data: FILE"),
        (COUNTING | {"data": "mine.jsonl"}, "tasks[0].data: kind: acme/counting reads no items; leave it out"),
    ],
)  # fmt: skip
def test_settings_of_a_kind_are_checked_with_their_place(mine, task, told):
    changed(mine, [task | {"name": "long"}])
    assert told in refused("validate", "c.yaml")


def test_another_version_is_another_study(mine, site):
    call("search", "c.yaml")
    shutil.rmtree(site / "acme-1.2.dist-info")
    installed(site, "acme", "1.3", Path(acme_tasks.__file__).read_text(), acme_tasks.POINTS)
    KINDS._guests.clear()
    message = refused("search", "c.yaml", "--evaluations", "8")
    assert "kind of mine: the study has 'acme 1.2', now it is 'acme 1.3'" in message
    assert "items of mine: the study has" in message


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("acme/regex_mach", "task kind 'acme/regex_mach': acme 1.2 has no 'regex_mach' (did you mean 'regex_match'?)"),
        ("acme-two/regex", "task kind 'acme-two/regex' needs the package 'acme-two', which is not installed here"),
        ("likelyhood", "expected a task kind, one of multiple_choice, exact_match, likelihood; got 'likelyhood' (did you mean 'likelihood'?)"),
        ("os:system", "expected a task kind"),
    ],
)  # fmt: skip
def test_a_kind_that_is_not_there_is_refused_by_name_and_line(mine, kind, told):
    text = (mine / "c.yaml").read_text().replace("acme/regex_match", kind)
    (mine / "c.yaml").write_text(text)
    line = next(i for i, each in enumerate(text.splitlines(), start=1) if "kind:" in each)
    assert f"c.yaml:{line}: tasks[0].kind: {told}" in refused("validate", "c.yaml")


def test_a_package_that_is_gone_is_named(mine, site):
    call("search", "c.yaml")
    shutil.rmtree(site / "acme-1.2.dist-info")
    KINDS._guests.clear()
    for command in (("search", "c.yaml"), ("export", "tiny", "--trial", "0", "-o", "m")):
        assert "task kind 'acme/regex_match' needs the package 'acme', which is not installed here" in refused(*command)
