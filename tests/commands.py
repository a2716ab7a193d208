"""How tests call the command line, on real (tiny) models, in this process."""

from __future__ import annotations

import yaml
from typer.testing import CliRunner

from sae_moo.cli.main import app

BUDGET = 14


def config_for(folders, **changes) -> dict:
    config = {
        "study": {"name": "tiny"},
        "models": {
            "base": str(folders["base"]),
            "experts": {name: str(path) for name, path in folders.items() if name != "base"},
        },
        "tasks": [
            {"name": "facts", "data": "facts.jsonl", "kind": "likelihood", "search": 12, "test": 8},
            {"name": "zoo_math", "search": 6, "test": 4},
        ],
        "objectives": ["facts", "sparsity"],
        "search": {"population": 6, "evaluations": BUDGET},
    }
    return config | changes


def written(config: dict) -> str:
    return yaml.safe_dump(config, sort_keys=False)  # experts keep their order


def call(*arguments: str, code: int = 0):
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, (arguments, result.stdout, result.stderr, result.exception)
    assert "Traceback" not in result.stderr
    return result


def refused(*arguments: str, code: int = 2) -> str:
    result = call(*arguments, code=code)
    assert result.stdout == ""
    return result.stderr
