"""What a command says where there is little to show, and before something poor is handed on."""

from __future__ import annotations

import json

import pytest
from commands import call, refused

from sae_moo.explore.run import Run

LIMITS = {
    "constraints={facts: {min: 0.9}}": "facts at least 0.9, the best so far is 0",
    "constraints={sparsity: {min: 0.94}}": "sparsity at least 0.94, the best so far is 0",
    "constraints={facts: {min: 0.9, max: 0.95}}": "; facts at most 0.95, 6 of 6 keep it",
}


@pytest.mark.parametrize("limits", LIMITS)
def test_a_search_without_a_front_says_which_limit_is_in_the_way(here, limits):
    shown = call("search", "c.yaml", "--evaluations", "6", "--set", limits).stdout
    assert "the front of tiny is empty: no evaluation so far keeps the limits: " in shown
    assert LIMITS[limits] in shown
    assert LIMITS[limits] in call("front", "tiny").stderr
    assert "hypervolume 0.0000\n" not in shown
    assert "6 evaluations in" in shown
    assert "next:\n  sae-moo trials tiny" in shown
    name, limit = limits.partition("{")[2].partition(":")[0], limits.partition("min: ")[2][:3]
    notes = [line for line in call("trials", "tiny").stdout.splitlines() if "complete" in line]
    assert len(notes) == 6
    value = Run.open("tiny").trial(0).evaluation.mean("facts") if name == "facts" else 0
    assert f"breaks a limit: {name} {value:.3g} where the limit is at least {limit}" in notes[0]


def test_what_is_poor_is_handed_on_with_a_word(here):
    call("search", "c.yaml", "--evaluations", "6", "--set", "constraints={facts: {min: 0.9}}")
    shown = call("export", "tiny", "--trial", "0", "--output", "m").stdout
    assert shown.splitlines()[1].startswith("Trial 0 breaks a limit: facts ")
    assert "\n\nnext:" in shown
    assert "- Trial 0 breaks a limit: facts " in (here / "m/README.md").read_text()
    found = json.loads(call("export", "tiny", "--trial", "0", "--output", "n", "--json").stdout)
    assert found["cautions"][0].startswith("Trial 0 breaks a limit: facts ")


def test_a_budget_that_is_spent_is_said_first(there):
    shown = call("search", "c.yaml", "--evaluations", "10").stdout
    assert shown.startswith("the budget is spent already, 14 of 10 evaluations")
    assert "\n0 evaluations in" in shown


def test_one_evaluation_is_one(here):
    assert "\n1 evaluation in" in call("search", "c.yaml", "--evaluations", "1").stdout
    assert ": 1 evaluation by nsga2" in call("validate", "c.yaml", "--set", "search.evaluations=1").stdout


def test_a_run_is_called_by_its_name_where_that_finds_it(there, monkeypatch, tmp_path):
    for run in ("tiny", "runs/tiny"):
        assert "sae-moo export tiny --trial" in call("pick", run).stdout
    (tmp_path / "tiny").mkdir()
    folder = str(there / "runs/tiny")
    monkeypatch.chdir(tmp_path)
    assert f"sae-moo export {folder} --trial" in call("pick", folder).stdout, "there is another of that name"
    assert "no study" in refused("pick", "tiny")
