from __future__ import annotations

from pathlib import Path

import pytest

from sae_moo.config.document import Config
from sae_moo.errors import InputError
from sae_moo.files.places import located
from sae_moo.jobs.bench import Bench


def test_a_path_starts_where_it_is_said_to(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert located("a/b", Path("/x")) == Path("/x/a/b")
    assert located("/a", Path("/x")) == Path("/a")
    assert located("~/a", Path("/x")) == tmp_path / "a"
    assert located("a") == Path("a")


ODD = {
    "~nosuchuser/a": "~nosuchuser is not known",
    "a\0b": "no path holds the character NUL",
    "\ud800": "no path can be",
}


@pytest.mark.parametrize("given", ODD)
def test_a_path_that_cannot_be_is_one_line(given):
    with pytest.raises(InputError, match=ODD[given]) as caught:
        located(given)
    assert len(str(caught.value).removeprefix("cannot open:\n").splitlines()) == 1


@pytest.mark.parametrize("given", ["~nosuchuser/a", "a\0b"])
@pytest.mark.parametrize("where", ["base", "expert", "data", "include", "calibration"])
def test_wherever_it_stands_in_a_configuration(where, given, tmp_path):
    raw = {
        "models": {"base": "zoo:base", "experts": {"m": "zoo:math"}},
        "tasks": [{"name": "zoo_math", "search": 4, "test": 4}],
        "objectives": ["zoo_math", "sparsity"],
    }
    task = {"name": "t", "search": 4, "test": 4}
    match where:
        case "base":
            raw["models"]["base"] = given
        case "expert":
            raw["models"]["experts"]["m"] = given
        case "data":
            raw |= {"tasks": [{**task, "data": given, "kind": "likelihood"}], "objectives": ["t", "sparsity"]}
        case "include":
            raw |= {"tasks": [{**task, "include": given}], "objectives": ["t", "sparsity"]}
        case "calibration":
            raw["pruning"] = {"criterion": "wanda", "calibration": {"data": given}}
    with pytest.raises(InputError, match=r"is not known|the character NUL") as caught:
        Bench.open(Config.from_dict(raw, tmp_path))
    assert len(str(caught.value).removeprefix("cannot open:\n").splitlines()) == 1
