"""Searches that run beside each other and take over what the others find."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time

import pytest
import yaml
from commands import call, config_for, refused, written

from sae_moo.explore.run import Run
from sae_moo.study.record import evaluations, inherited, own, told

NAMES = ["east", "west"]
SEEDS = {"east": "0", "west": "1", "south": "2"}
ISLANDS = {"names": NAMES, "every": 4, "migrants": 2}


@pytest.fixture
def isles(here, tiny_folders):
    """The current folder, with a configuration of two islands; returns what searches one of them."""
    (here / "c.yaml").write_text(written(config_for(tiny_folders, study={"name": "east", "islands": ISLANDS})))

    def command(name, *more):
        return "search", "c.yaml", "--set", f"study.name={name}", "--seed", SEEDS[name], *more

    return command


def sources(run):
    return [(each.inherited.study, each.inherited.number) for each in inherited(run.trials())]


def facts(run):
    return [(each.number, each.digest, each.values, each.told, each.asked_after, each.parents) for each in run.trials()]


def test_an_island_takes_over_what_another_has_found(isles):
    call(*isles("east"))
    east = Run.open("east")
    assert not sources(east), "there was nobody yet"
    assert "taken over: " in call(*isles("west")).stdout
    west, there = Run.open("west"), {each.number: each for each in east.trials()}
    assert evaluations(west.trials()) == 14, "it is in no budget"
    taken = inherited(west.trials())
    for each in taken:
        source = there[each.inherited.number]
        assert (each.inherited.study, each.digest, each.values) == ("east", source.digest, source.values)
    before = [sum(mine.inherited is None for mine in told(west.trials())[: each.told]) for each in taken]
    assert set(before[:2]) == {4}
    known = {each.digest for each in west.trials()}
    assert {each.digest for each in east.front()} <= known, "at its end it has all of the other front"
    assert west.hypervolume() >= east.hypervolume()
    assert next(each for each in told(west.trials()) if each.asked_after == 6).told == 6

    was = facts(west)
    assert "14 of 14 evaluations: only what the other islands found since is taken over" in call(*isles("west")).stdout
    assert facts(Run.open("west")) == was, "nobody found anything more"
    assert "resumed: 14 evaluations replayed" in call(*isles("east", "--evaluations", "18")).stdout
    east = Run.open("east")
    assert evaluations(east.trials()) == 18
    assert {study for study, _ in sources(east)} == {"west"}
    assert not {each.digest for each in west.front()} - {each.digest for each in east.trials()}
    shown = json.loads(call("front", "east", "--json").stdout)["trials"]
    assert [each["inherited"] for each in shown] == [
        None if each.inherited is None else {"study": "west", "number": each.inherited.number} for each in east.front()
    ]
    assert call("doctor", "east").exit_code == 0

    call(*isles("south", "--evaluations", "5", "--set", "study.islands.names=[east, south]"))
    assert set(sources(Run.open("south"))) == {  # each with where it was evaluated, not where it was seen
        ("east", each.number) if each.inherited is None else ("west", each.inherited.number) for each in east.front()
    }


@pytest.mark.slow
def test_two_processes_search_one_database_at_a_time(isles, here):
    stored = ("--set", "study.storage=sqlite:///isles.db", "--evaluations", "24")
    east = subprocess.Popen(
        [sys.executable, "-m", "sae_moo.cli.main", *isles("east", *stored)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (here / "isles.db").exists():
        assert time.monotonic() < deadline
        assert east.poll() is None
        time.sleep(0.001)
    call(*isles("west", *stored))  # the other process, which begins as the first one does
    said = east.communicate(timeout=300)
    assert east.returncode == 0, said
    runs = {name: Run.open(name) for name in NAMES}
    assert [evaluations(run.trials()) for run in runs.values()] == [24, 24]
    assert any(sources(run) for run in runs.values()), "whoever was later took something over"
    for name, run in runs.items():
        assert {study for study, _ in sources(run)} <= set(NAMES) - {name}
    for name in NAMES:  # once both have ended, a command that evaluates nothing fetches what is missing
        call(*isles(name, *stored))
    east, west = (Run.open(name) for name in NAMES)
    assert {each.digest for each in east.front()} == {each.digest for each in west.front()}
    assert [len(own(run.trials())) for run in (east, west)] == [24, 24]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"study.name": "north"}, "islands.names: expected study.name among them, 'north'; got east, west"),
        ({"study.islands.names": "[east]"}, "study.islands.names: expected at least 2 entries"),
        ({"study.islands.names": "[east, east]"}, "study.islands.names: expected every name once, got east, east"),
        ({"study.islands.every": "0"}, "study.islands.every: expected greater than or equal to 1"),
        ({"search.algorithm": "sae-global"}, "study.islands: algorithm: sae-global takes in nothing that others find"),
        ({"space.kind": "coefficients"}, "nsga2 over coefficients takes in nothing that others find; nsga2, nsga3 do"),
        ({"compare.methods": "[nsga2]"}, "study.islands: searches that are compared stand alone; leave it out"),
    ],
)
def test_islands_that_cannot_be_are_refused(isles, changes, message):
    with_changes = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    assert re.search(message, refused("validate", "c.yaml", *with_changes))


def test_an_island_that_searches_something_else_is_named(isles, here):
    call(*isles("east"))
    raw = yaml.safe_load((here / "c.yaml").read_text())
    raw["tasks"][0]["search"] = 11
    (here / "c.yaml").write_text(written(raw))
    said = refused(*isles("west"))
    assert "study.islands: east searches something else" in said
    assert "facts" in said
    assert not (here / "runs/west/study.journal").exists() or not Run.open("west").trials()
