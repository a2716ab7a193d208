"""Screening and budgets of forward tokens from the command line."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest
from commands import call, config_for, refused, written

from sae_moo.config.document import Config
from sae_moo.errors import Interrupted
from sae_moo.evaluate.screening import Screening
from sae_moo.explore.run import Run
from sae_moo.explore.words import summary
from sae_moo.jobs.search import search
from sae_moo.study.record import tokens

SCREENED = {"screening": {"candidates": 3, "tokens": 24, "survivors": 2, "more": 48}}


@pytest.fixture
def config(here, tiny_folders):
    raw = config_for(tiny_folders, search={"population": 6, "evaluations": 14}, evaluation=SCREENED)
    (here / "c.yaml").write_text(written(raw))
    return here / "c.yaml"


def without_times(run: Run) -> list:
    """What trials are but for when they began and how long they took."""
    found = []
    for record in run.trials():
        evaluation = replace(record.evaluation, seconds_merge=0.0, seconds_score=0.0)
        if evaluation.screened is not None:
            evaluation = replace(evaluation, screened=replace(evaluation.screened, seconds=0.0))
        found.append(replace(record, evaluation=evaluation, began=None))
    return found


def test_a_screened_search_is_told_of_counted_and_exactly_resumed(config, here, monkeypatch):
    result = call("search", "c.yaml")
    trials = json.loads(call("trials", "tiny", "--json").stdout)["trials"]
    screened = [trial for trial in trials if trial["screened"] is not None]
    assert len(screened) > 3
    assert all(trial["number"] >= 6 for trial in screened), "the first population has one allocation each"
    for trial in screened:
        told = trial["screened"]
        assert 0 <= told["chosen"] < told["candidates"] <= 3
        assert 0 < told["similarity"] <= 1
        # the teacher and all candidates on 24 tokens at most, the teacher and two survivors on 24 more
        assert 0 < told["tokens"] <= (1 + told["candidates"]) * 24 + 3 * 48
        assert trial["tokens"] > 0
    assert "of them by screening" in result.stdout
    run = Run.open("tiny")
    spent = sum(trial["screened"]["tokens"] for trial in screened)
    cost = summary(run.view())[-1].text
    assert f"Screening chose {len(screened)} candidates among" in cost
    assert f"{spent:,} forward tokens, {spent / tokens(run.trials()):.0%} of all" in cost
    assert "verified in a fresh process" in call("export", "tiny", "--knee", "-o", "m", "--verify").stdout
    assert call("doctor", "tiny").exit_code == 0

    best, calls = Screening.best, []

    def killed(self, recipes):
        calls.append(recipes)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return best(self, recipes)

    whole = without_times(run)
    again = Config.load("c.yaml", ["study.name=again"])
    with monkeypatch.context() as patched:
        patched.setattr(Screening, "best", killed)
        with pytest.raises(Interrupted):
            search(again)
    assert without_times(search(again)) == whole


def test_how_it_is_screened_is_a_part_of_the_study(config, here):
    call("search", "c.yaml", "--evaluations", "7")
    other = refused("search", "c.yaml", "--set", "evaluation.screening.tokens=12")
    assert "evaluation.screening.tokens: the study has 24, now it is 12" in other
    (here / "texts.txt").write_text("one two three\n\nfour five six\n")
    assert "texts screened on: the study has" in refused(
        "search", "c.yaml", "--set", "evaluation.screening.data=texts.txt"
    )


def test_a_search_whose_tokens_are_spent_is_finished_until_it_has_more(config, here):
    call("search", "c.yaml", "--set", "search.evaluations=8")
    most = tokens(Run.open("tiny").trials()) + 1
    call("search", "c.yaml", "--set", f"search.tokens={most}")
    run = Run.open("tiny")
    first = run.trials()
    assert len(first) == 9
    assert run.view().unfinished == ""
    assert "not finished" not in call("pick", "tiny").stdout
    assert f", {tokens(first):,} forward tokens. Screening chose" in summary(run.view())[-1].text
    call("search", "c.yaml", "--set", f"search.tokens={tokens(first) + 1}")
    assert run.trials()[:9] == first
    assert len(run.trials()) == 10


def test_methods_are_compared_at_equal_tokens(config, here):
    raw = config_for({"base": "zoo:base", "math": "zoo:math"}) | {"search": {"population": 4, "evaluations": 100}}
    raw["search"]["tokens"] = 6000
    methods = ["nsga2", {"name": "screened", "evaluation": SCREENED}]
    raw["compare"] = {"methods": methods, "seeds": 1, "resamples": 100}
    (here / "compare.yaml").write_text(written(raw))
    found = json.loads(call("compare", "compare.yaml", "--json").stdout)["methods"]
    assert all(6000 <= spent < 8000 for method in found for spent in method["tokens"])
    plain, screened = (method["evaluations"][0] for method in found)
    assert 4 < screened < plain < 100
    rows = list(csv.DictReader((here / "runs" / "tiny" / "compare.csv").read_text().splitlines()))
    assert [int(row["tokens"]) for row in rows] == [method["tokens"][0] for method in found]
    assert f"| screened | 1 | {screened} | {found[1]['tokens'][0]:,} |" in (here / "runs/tiny/compare.md").read_text()
    assert f"{found[1]['tokens'][0]:,}" in call("compare", "compare.yaml").stdout, "and nothing is searched again"
