"""Racing from the command line: who is stopped, what is told of it, what comes after."""

from __future__ import annotations

import json

import pytest
from commands import call, config_for, refused, written

from sae_moo.explore.run import Run

RACING = {"racing": {"blocks": 4, "confidence": 0.8, "margin": 0.0}}
ZOO = {"base": "zoo:base", "math": "zoo:math", "lingua": "zoo:lingua"}  # random models do not differ enough to race
SEARCH = 80  # instances


@pytest.fixture
def raced(here):
    tasks = [{"name": "zoo_logic", "search": SEARCH, "test": 8}]
    changes = {"objectives": ["zoo_logic", "sparsity"], "search": {"population": 6, "evaluations": 32}}
    (here / "c.yaml").write_text(written(config_for(ZOO, tasks=tasks, evaluation=RACING, **changes)))
    return here


def test_dominated_candidates_are_stopped_told_of_and_left_out_of_the_front(raced):
    result = call("search", "c.yaml")
    trials = json.loads(call("trials", "tiny", "--json").stdout)["trials"]
    stopped = [trial for trial in trials if trial["state"] == "stopped"]
    assert 3 < len(stopped) < 24
    assert f"stopped early: {len(stopped)}" in result.stdout
    assert all(trial["state"] != "stopped" for trial in trials[:6]), "the first generation is asked everything"
    digests = {trial["digest"]: trial for trial in trials}
    for trial in stopped:
        rival, told = digests[trial["stopped"]["rival"]], trial["stopped"]
        assert rival["state"] == "complete"
        assert rival["number"] < trial["number"]
        assert all(rival["values"][name] >= bound for name, bound in told["bound"].items())
        assert told["instances"]["zoo_logic"] in (20, 40, 60)
        assert trial["values"] == {}
        assert trial["sparsity"] == told["bound"]["sparsity"]
        asked = f"{told['instances']['zoo_logic']} of {SEARCH} instances"
        assert trial["reason"] == f"stopped after {asked}: {told['rival'][:8]} dominates it"
    front = json.loads(call("front", "tiny", "--json").stdout)["trials"]
    assert {trial["state"] for trial in front} == {"complete"}
    assert f"of {SEARCH} instances" in call("trials", "tiny").stdout
    assert len(Run.open("tiny").trial(front[0]["number"]).evaluation.scores["zoo_logic"]) == SEARCH
    number = str(stopped[0]["number"])
    assert f"trial {number} has no result, it is stopped: stopped after" in refused(
        "export", "tiny", "--trial", number, "-o", "m"
    )
    assert "verified in a fresh process" in call("export", "tiny", "--knee", "-o", "m", "--verify").stdout


def test_anchors_stand_for_all_and_experts_are_asked_once(raced, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    anchored = ("--set", "evaluation={anchors: 0.5}", "--evaluations", "8", "--set", "study.name=anchored")
    call("search", "c.yaml", *anchored)
    evaluations = [record.evaluation for record in Run.open("anchored").trials()]
    assert {len(each.scores["zoo_logic"]) for each in evaluations} == {SEARCH // 2}
    assert f"{SEARCH} search and 8 test instances" in call("validate", "c.yaml", *anchored[:2], *anchored[4:]).stdout
    chosen = Run.open("anchored").anchors
    assert sorted({*chosen["zoo_logic"]}) == chosen["zoo_logic"] != list(range(SEARCH // 2))
    with monkeypatch.context() as patch:  # chosen once and for all
        patch.setattr("sae_moo.jobs.bench.Bench.anchors", None)
        call("search", "c.yaml", *anchored[:2], "--evaluations", "9", *anchored[4:])
        assert "verified in a fresh process" in call("export", "anchored", "--trial", "0", "-o", "e", "--verify").stdout
    assert len(Run.open("anchored").trials()) == 9
    assert "evaluation.anchors: the study has 0.5, now it is 0.4" in refused(
        "search", "c.yaml", "--set", "evaluation={anchors: 0.4}", *anchored[4:]
    )
    call("search", "c.yaml", *anchored[:4], "--set", "study.name=again")
    again = [record.evaluation for record in Run.open("again").trials()]
    assert [each.scores for each in again] == [each.scores for each in evaluations]
    assert [each.seconds_score > 0 for each in evaluations] == [True] * 8
    assert [each.seconds_score > 0 for each in again[:3]] == [False] * 3, "base and experts were known"
    shown = call("evaluate", "zoo:math", "--config", "c.yaml", "--split", "search", "--json", *anchored[:2]).stdout
    assert json.loads(shown)["tasks"]["zoo_logic"]["instances"] == SEARCH, "evaluate asks everything"
    assert "evaluation.anchors: expected less than 1, got 1" in refused(
        "search", "c.yaml", "--set", "evaluation.anchors=1"
    )


def test_a_race_goes_on_where_it_was_and_under_no_other_rules(raced):
    call("search", "c.yaml", "--evaluations", "26", "--set", "study.name=whole")
    call("search", "c.yaml", "--evaluations", "17")
    call("search", "c.yaml", "--evaluations", "26")
    whole, parted = (json.loads(call("trials", name, "--json").stdout)["trials"] for name in ("whole", "tiny"))
    assert whole == parted
    message = refused("search", "c.yaml", "--set", "evaluation.racing.confidence=0.9")
    assert "evaluation.racing.confidence: the study has 0.8, now it is 0.9" in message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("evaluation.racing.block=4", "evaluation.racing.block: no such key (did you mean 'blocks'?)"),
        ("evaluation.racing.blocks=1", "evaluation.racing.blocks: expected greater than or equal to 2, got 1"),
        ("evaluation.racing.confidence=1", "evaluation.racing.confidence: expected less than 1, got 1"),
        ("evaluation.racing.margin=-0.1", "evaluation.racing.margin: expected greater than or equal to 0, got -0.1"),
        ("evaluation.racing=true", "evaluation.racing: expected a mapping, got true"),
    ],
)
def test_rules_that_cannot_be(raced, change, expected):
    assert expected in refused("search", "c.yaml", "--set", change)
