"""A small part of what `studies/reliability` counts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import kills
import pytest

STUDIES = Path(__file__).parents[1] / "studies" / "reliability"


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["journal", "sqlite"])
def test_killed_searches_lose_nothing(storage):
    table = kills.campaign(8, 1, [storage], ["nsga2", "tpe"])
    assert {key: counts.kills for key, counts in table.items()} == {(storage, "nsga2"): 4, (storage, "tpe"): 4}
    for counts in table.values():
        assert (counts.lost, counts.doubled, counts.different, counts.faults) == (0, 0, 0, [])


def test_a_loss_is_counted(tmp_path, monkeypatch):
    where = str(tmp_path / "s.journal")
    monkeypatch.setattr(kills, "killed", lambda *_: (0, ""))
    monkeypatch.setattr(kills, "reference", lambda algorithm: ["another search's trials"])
    counts = kills.Counts()
    kills.broken(where, "nsga2", iter([("time", 0.0)]), counts)
    assert (counts.different, counts.doubled, counts.good) == (1, kills.EVALUATIONS - 1, False)


@pytest.mark.slow
def test_full_disks_are_one_line_and_lose_nothing():
    """Files that may not grow, which needs no rights; as root the command itself fills real disks."""
    names = ("search, run folder", "export", "report")
    command = [sys.executable, str(STUDIES / "disk.py"), "--limit", "--steps", "2", "--verbose", "--only", *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 tracebacks   0 unnamed   0 lost   0 left behind" in done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_damaged_input_is_read_or_refused():
    command = [sys.executable, str(STUDIES / "fuzz.py"), "--inputs", "240", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith("|") and not line.startswith("|-")][
        1:
    ]
    assert sum(int(row[2]) for row in rows) == 240
    assert all(int(row[3]) + int(row[4]) == 20 for row in rows), done.stdout
