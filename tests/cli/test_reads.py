"""How often a command reads the trials of a run: once, so that everything it shows is of one moment."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest
from commands import call, config_for, written

from sae_moo.explore import run as running
from sae_moo.explore.pages import dashboard
from sae_moo.explore.run import Run
from sae_moo.jobs import search
from sae_moo.study.trials import TrialStorage

COMMANDS = [
    "pick tiny",
    "pick tiny --json",
    "pick tiny --wish facts=0.5,sparsity=0.5 --where sparsity>=0",
    "pick tiny --test",
    "front tiny",
    "front tiny --figure {new}/front.png",
    "trials tiny",
    "export tiny --knee --output {new}/model",
    "export tiny --trial 3 --output {new}/model",
    "export tiny --knee --output {new}/model --verify",
    "export tiny --knee --estimate",
    "diff tiny 1 3",
    "diff tiny 1 3 --split test",
    "figures tiny --output {new}/figures",
    "report tiny --output {new}/report.html",
]


@pytest.fixture
def reads(monkeypatch) -> Counter:
    """How often the trials were read, and studies opened, in this process."""
    counts = Counter()

    def counted(name, function):
        def call_and_count(*arguments, **named):
            counts[name] += 1
            return function(*arguments, **named)

        return call_and_count

    monkeypatch.setattr(TrialStorage, "records", counted("trials", TrialStorage.records))
    for module in (running, search):
        monkeypatch.setattr(module, "open_storage", counted("studies", module.open_storage))
    return counts


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_reads_a_run_once(there, tmp_path, reads, command, fresh_process):
    call(*command.format(new=tmp_path).split())
    assert reads == {"trials": 1, "studies": 1}


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_a_search_reads_what_was_there_and_what_came_of_it(here, reads, flags):
    call("search", "c.yaml", "--evaluations", "4", *flags)
    assert reads == {"trials": 2, "studies": 2}, "to resume, and to show"


def test_whether_a_search_can_be_resumed_is_said_without_reading_its_trials(there, reads):
    call("validate", "c.yaml")
    assert reads == {"studies": 1}


def test_a_comparison_reads_each_search_once_to_judge_and_once_to_conclude(here, tiny_folders, reads):
    raw = config_for(tiny_folders)
    raw["search"] = {"population": 4, "evaluations": 4}
    raw["compare"] = {"methods": ["nsga2"], "seeds": 1, "resamples": 100}
    (here / "compare.yaml").write_text(written(raw))
    call("compare", "compare.yaml")
    assert reads == {"trials": 3, "studies": 3}, "to resume, to judge its front, to conclude"
    reads.clear()
    call("compare", "compare.yaml")
    assert reads == {"trials": 2, "studies": 2}, "whether it is finished, and to conclude"


def test_the_dashboard_reads_the_trials_once_each_time_it_is_looked_at_after_a_while(there, reads):
    run = Run.open("tiny")
    dashboard.shown_of(run.view(), "tiny")
    assert reads == {"trials": 1, "studies": 1}


OPENING = (
    "torch",
    "transformers",
    "scipy.stats",
    "scipy.optimize",
    "sklearn",
    "pandas",
    "numba",
    "matplotlib",
    "plotly",
)


@pytest.mark.parametrize("command", ["front tiny", "trials tiny", "front tiny --json", "pick tiny"])
def test_what_shows_a_run_is_there_at_once(there, command):
    """Without libraries that take seconds to import; a pick tests differences, and does that by scipy."""
    code = f"import sys; from sae_moo.cli.main import app; app({command.split()}, standalone_mode=False)"
    slow = [name for name in OPENING if not (command.startswith("pick") and name.startswith("scipy"))]
    code += f"; print('slow:', sorted(set({slow}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "slow: []"
