from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from commands import call, config_for, written


@pytest.fixture(autouse=True)
def quickly(verified_here):
    """Exports are verified in this process, but where a test asks for `fresh_process`."""


@pytest.fixture
def here(tmp_path, monkeypatch, tiny_folders) -> Path:
    """An empty current folder with a configuration and items."""
    items = [{"prompt": f"fact {i} is", "answer": f" {i}"} for i in range(30)]
    (tmp_path / "facts.jsonl").write_text("\n".join(json.dumps(item) for item in items))
    (tmp_path / "c.yaml").write_text(written(config_for(tiny_folders)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def searched(tmp_path_factory, tiny_folders) -> Path:
    """A folder with a finished run, shared; tests only read it."""
    folder = tmp_path_factory.mktemp("searched")
    items = [{"prompt": f"fact {i} is", "answer": f" {i}"} for i in range(30)]
    (folder / "facts.jsonl").write_text("\n".join(json.dumps(item) for item in items))
    (folder / "c.yaml").write_text(written(config_for(tiny_folders)))
    before = Path.cwd()
    os.chdir(folder)
    try:
        result = call("search", "c.yaml", "--json")
    finally:
        os.chdir(before)
    (folder / "search.json").write_text(result.stdout)
    return folder


@pytest.fixture
def there(searched, monkeypatch) -> Path:
    monkeypatch.chdir(searched)
    return searched
