"""Methods and criteria of installed packages from the command line: searched, resumed, exported, verified, merged."""

from __future__ import annotations

import json
from pathlib import Path

import acme_package
import pytest
import yaml
from commands import call, refused, written

import sae_moo


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """The package is installed; call it to have another version, or none."""
    folder = tmp_path / "site-packages"
    acme_package.install(folder, monkeypatch)
    return lambda version: acme_package.install(folder, monkeypatch, version)


MEDIANS = {"algorithm": "one-shot", "merge": {"method": "acme/median", "settings": {"pull": [0, 0.2, 0.5]}}}


def test_a_criterion_is_searched_with_resumed_exported_verified_and_merged(packages, here, fresh_process):
    (here / "c.yaml").write_text(Path("c.yaml").read_text() + "pruning: {criterion: acme/relative, scope: row}\n")
    call("search", "c.yaml", "--evaluations", "10")
    call("search", "c.yaml", "--evaluations", "12")
    shown = json.loads(call("pick", "runs/tiny", "--json", "--weights", "sparsity=1").stdout)
    number = str(shown["trial"]["number"])
    exported = call("export", "runs/tiny", "--trial", number, "--output", "out", "--verify")
    assert "verified in a fresh process" in exported.stderr + exported.stdout
    document = json.loads(Path("out/recipe.json").read_text())
    assert document["guests"] == {"acme/relative": "acme 1.2"}
    call("merge", "out/recipe.json", "--output", "again")
    assert Path("again/model.safetensors").read_bytes() == Path("out/model.safetensors").read_bytes()

    packages("1.3")
    for command in (
        ("search", "c.yaml", "--evaluations", "14"),
        ("pick", "runs/tiny"),
        ("merge", "out/recipe.json", "-o", "a"),
    ):
        assert "'acme/relative' was used as of acme 1.2, here is acme 1.3" in refused(*command)
    packages(None)
    for command in (("pick", "runs/tiny"), ("merge", "out/recipe.json", "-o", "a")):
        assert "'acme/relative' needs the package" in refused(*command)
    message = "pruning.criterion: pruning criterion 'acme/relative' needs the package 'acme', which is not installed"
    assert message in refused("search", "c.yaml", "--evaluations", "14")
    assert not Path("a").exists()


def test_a_method_is_searched_with_resumed_exported_verified_and_merged(packages, here):
    raw = yaml.safe_load(Path("c.yaml").read_text()) | {"search": {**MEDIANS, "evaluations": 6}}
    Path("c.yaml").write_text(written(raw))
    for budget in ("2", "6"):
        call("search", "c.yaml", "--evaluations", budget)
    run = sae_moo.Run.open("runs/tiny")
    assert [record.operator for record in run.view().done] == ["one-shot"] * 3 + ["pruned"] * 3
    call("export", "runs/tiny", "--trial", "1", "--output", "out", "--format", "recipe", "--verify")
    assert json.loads(Path("out/recipe.json").read_text())["guests"] == {"acme/median": "acme 1.2"}
    call("merge", "out/recipe.json", "--output", "again")
    assert Path("again/model.safetensors").is_file()
    call("evaluate", "out/recipe.json", "--config", "c.yaml")
    assert "mergekit has no merge method 'acme/median'" in refused(
        "merge", "out/recipe.json", "--to-mergekit", "m.yaml"
    )
    packages("2.0")
    for command in (("report", "runs/tiny", "-o", "r.html"), ("search", "c.yaml", "--evaluations", "8")):
        assert "'acme/median' was used as of acme 1.2, here is acme 2.0" in refused(*command)


@pytest.mark.parametrize(
    ("merge", "message"),
    [
        ("{method: acme/medium}", "acme 1.2 has no 'medium' (did you mean 'median'?)"),
        ("{method: acme/median, settings: {pul: [1]}}", "expected a setting of the method (did you mean 'pull'?); acme/median has pull"),
        ("{method: acme/median, settings: {pull: [0.5, 2]}}", "search.merge.settings.pull[1]: expected a share in [0, 1], got 2"),
        ("{method: della, settings: {density: [0.9], epsilon: [0.2]}}", "expected density - epsilon and density + epsilon in (0, 1)"),
        ("{method: della, settings: {density: []}}", "search.merge.settings.density: expected at least one entry"),
    ],
)  # fmt: skip
def test_what_a_method_cannot_be_tried_with_is_refused(packages, here, merge, message):
    raw = yaml.safe_load(Path("c.yaml").read_text())
    raw["search"] = {"algorithm": "one-shot", "merge": yaml.safe_load(merge)}
    Path("c.yaml").write_text(written(raw))
    assert message in refused("validate", "c.yaml")


def test_a_criterion_that_needs_activations_is_calibrated(packages, here):
    with Path("c.yaml").open("a") as file:
        file.write("pruning: {criterion: acme/active, calibration: {tokens: 64}}\n")
    call("search", "c.yaml", "--evaluations", "8")
    call("export", "runs/tiny", "--weights", "sparsity=1", "--output", "out")
    nodes = json.loads(Path("out/recipe.json").read_text())["nodes"]
    assert {node["criterion"] for node in nodes if node["node"] == "prune"} == {"acme/active"}
    assert all(node["calibration"] for node in nodes if node["node"] == "prune")
    call("merge", "out/recipe.json", "--output", "again")


def test_processes_that_compare_know_the_guests_too(packages, here):
    methods = [{"name": "relative", "pruning": {"criterion": "acme/relative"}}, {"name": "median", "search": MEDIANS}]
    raw = yaml.safe_load(Path("c.yaml").read_text()) | {"compare": {"methods": methods, "seeds": 1, "resamples": 100}}
    raw["search"] = {"population": 6, "evaluations": 6}
    Path("compare.yaml").write_text(written(raw))
    document = json.loads(call("compare", "compare.yaml", "--workers", "2", "--json").stdout)
    assert [method["evaluations"] for method in document["methods"]] == [[6], [6]]


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        ("acme/relativ", "acme 1.2 has no 'relativ' (did you mean 'relative'?)"),
        ("acme/fisher", "criterion 'acme/fisher' needs gradients, which nothing here computes yet"),
        ("os:system", "expected a pruning criterion, one of magnitude, wanda; got 'os:system'"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_line(packages, here, criterion, message):
    with Path("c.yaml").open("a") as file:
        file.write(f"pruning:\n  criterion: {criterion}\n")
    lines = len(Path("c.yaml").read_text().splitlines())
    said = refused("search", "c.yaml")
    assert message in said
    assert f"c.yaml:{lines}" in said


def test_help_reads_no_entry_points(monkeypatch):
    monkeypatch.setattr("sae_moo.recipe.catalogue.entry_points", lambda **_: pytest.fail("entry points were read"))
    for command in ("search", "export", "merge", "evaluate"):
        call(command, "--help")
