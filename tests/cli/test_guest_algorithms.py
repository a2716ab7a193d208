"""Search algorithms of installed packages, from the command line."""

from __future__ import annotations

import json
from dataclasses import replace

from commands import call, config_for, refused
from guests import ants

from sae_moo.searchers.algorithms import ALGORITHMS


def test_a_guest_searches_resumes_and_is_compared(here, tiny_folders, tmp_path, monkeypatch):
    ants(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    raw = config_for(tiny_folders)
    raw["search"] = {"algorithm": "acme-ants/ants", "ants": {"evaporation": 0.2}, "population": 6, "evaluations": 8}
    (here / "ants.yaml").write_text(json.dumps(raw))
    first = json.loads(call("search", "ants.yaml", "--json").stdout)
    assert first["evaluations"] == 8
    assert "10 with those of earlier sessions" in call("search", "ants.yaml", "--evaluations", "10").stdout
    raw["compare"] = {"methods": [{"name": "acme-ants/ants"}, {"name": "one shot", "search": {"algorithm": "ties"}}]}
    raw["compare"] |= {"seeds": 1, "resamples": 100}
    (here / "compare.yaml").write_text(json.dumps(raw | {"study": {"name": "against"}}))
    compared = json.loads(call("compare", "compare.yaml", "--json").stdout)
    assert [method["name"] for method in compared["methods"]] == ["acme-ants/ants", "one shot"]
    row = ALGORITHMS["acme-ants/ants"]
    newer = replace(row, guest=replace(row.guest, version="2.0"))
    monkeypatch.setattr("sae_moo.config.document.ALGORITHMS", {row.name: newer})
    message = refused("search", "ants.yaml", "--evaluations", "12")
    assert "search.algorithm's package: the study has 'acme-ants 1.2', now it is 'acme-ants 2.0'" in message
