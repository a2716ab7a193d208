"""The commands that show a run, on runs made up without models."""

from __future__ import annotations

import json

import pytest
from commands import call, refused
from synthetic import run_folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("runs") / "made"
    folder.mkdir()
    return str(run_folder(folder, 40))


def test_figures(run, tmp_path):
    document = json.loads(call("figures", run, "--output", f"{tmp_path}/f", "--type", "svg", "--json").stdout)
    number = json.loads(call("pick", run, "--json").stdout)["trial"]["number"]
    assert set(document) == {"output", "trial", "figures", "without"}
    assert (document["output"], document["trial"], document["without"]) == (f"{tmp_path}/f", number, {})
    assert list(document["figures"]) == ["front", "hypervolume", "generations", "blocks", "lineage", "agreement"]
    assert {str(path) for path in (tmp_path / "f").iterdir()} == set(document["figures"].values())
    assert all(path.endswith(".svg") for path in document["figures"].values())
    said = call("figures", run, "-o", f"{tmp_path}/g", "--trial", "0", "--against", "1").stdout
    assert f"{tmp_path}/g/agreement-0-1.png" in said
    assert "lineage      none: trial 0 has no parents" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trial", "40"], "no trial 40; there are 0 to 39"),
        (["--trial", "3", "--against", "3"], "cannot be held against itself"),
        (["--type", "jpg"], "'jpg' is not one of"),
    ],
)
def test_figures_that_cannot_be_drawn(run, tmp_path, arguments, message):
    assert message in refused("figures", run, "-o", f"{tmp_path}/f", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_stays(run, tmp_path):
    (tmp_path / "mine").write_text("mine")
    assert "exists already" in refused("figures", run, "-o", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
