"""The examples run, on little."""

from __future__ import annotations

import importlib.util
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import yaml
from commands import call

EXAMPLES = Path(__file__).parents[1] / "examples"
LITTLE = ["--evaluations", "8", "--items", "8"]
GUEST = "sae-moo-example"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(script: str, *arguments: str) -> None:
    spec = importlib.util.spec_from_file_location(script, EXAMPLES / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(list(arguments))


def test_every_example_begins_with_what_it_shows_and_how_to_run_it():
    files = [*EXAMPLES.glob("*.py"), *EXAMPLES.rglob("*.yaml"), *EXAMPLES.rglob("*.toml")]
    assert len(files) == 6
    for path in files:
        first = path.read_text(encoding="utf-8").splitlines()[0]
        assert str(path.relative_to(EXAMPLES.parent).parent) in first, path


def test_own_items_are_searched_on(here):
    config = EXAMPLES / "own_task" / "search.yaml"
    items = [json.loads(line) for line in (config.parent / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    task = yaml.safe_load(config.read_text(encoding="utf-8"))["tasks"][0]
    assert len({item["prompt"] for item in items}) == len(items) == task["search"] + task["test"]
    call("search", str(config), "--evaluations", "8", "--set", "search.population=8")
    assert len(json.loads(call("trials", "own-task", "--json").stdout)["trials"]) == 8


def test_an_own_searcher_goes_on_where_it_was_as_if_never_stopped(here, monkeypatch, capsys):
    run("own_searcher", "--evaluations", "5", "--items", "8")
    run("own_searcher", *LITTLE)
    (here / "unbroken").mkdir()
    monkeypatch.chdir(here / "unbroken")
    run("own_searcher", *LITTLE)
    digests = [
        [trial["digest"] for trial in json.loads(call("trials", str(folder), "--json").stdout)["trials"]]
        for folder in (
            here / "runs" / "climber-task_arithmetic",
            here / "unbroken" / "runs" / "climber-task_arithmetic",
        )
    ]
    assert digests[0] == digests[1]
    assert len({*digests[0]}) == 8
    assert "next: sae-moo pick climber-task_arithmetic" in capsys.readouterr().out


def test_pymoos_minimize_takes_our_operators(here, capsys):
    run("pymoo_minimize", "--population", "6", "--generations", "2", "--items", "8")
    assert capsys.readouterr().out.startswith("[")


@pytest.mark.slow
def test_adapters_are_searched_and_the_export_is_verified(here, capsys):
    run("lora_to_export", "--rank", "4", *LITTLE)
    settings = json.loads((here / "adapters" / "math" / "adapter_config.json").read_text())
    assert (settings["peft_type"], settings["r"]) == ("LORA", 4)
    assert (here / "exported-lora" / "model.safetensors").is_file()
    assert "test {'zoo_math': " in capsys.readouterr().out


@pytest.mark.slow
def test_the_example_package_goes_through_search_resume_export_verify_merge_and_compare(here):
    try:
        installed = version(GUEST)
    except PackageNotFoundError:
        pytest.skip(f"{GUEST} is not installed: pip install --no-deps ./examples/own_merge_method")
    raw = yaml.safe_load((EXAMPLES / "own_merge_method" / "search.yaml").read_text(encoding="utf-8"))
    for task in raw["tasks"]:
        task |= {"search": 8, "test": 8}
    Path("search.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    call("search", "search.yaml", "--evaluations", "2")
    call("search", "search.yaml", "--evaluations", "6")
    trials = json.loads(call("trials", "median", "--json").stdout)["trials"]
    assert len({trial["digest"] for trial in trials}) == 6, "three scales, and the best pruned thrice"
    call("export", "median", "--knee", "--output", "out", "--verify")
    assert json.loads(Path("out/recipe.json").read_text())["guests"] == {f"{GUEST}/median": f"{GUEST} {installed}"}
    call("merge", "out/recipe.json", "--output", "again")
    assert Path("again/model.safetensors").read_bytes() == Path("out/model.safetensors").read_bytes()
    compared = json.loads(call("compare", "search.yaml", "--workers", "2", "--json").stdout)
    assert [method["evaluations"] for method in compared["methods"]] == [[10], [10]]
