"""What a model card says of licences."""

from __future__ import annotations

import shutil

import pytest
import yaml

from sae_moo.deploy.card import Card, licence
from sae_moo.experts.pool import ExpertPool


def pool_with(tmp_path, tiny_folders, said: dict[str, dict[str, str]]) -> ExpertPool:
    folders = {name: shutil.copytree(tiny_folders[name], tmp_path / name) for name in ("base", "math")}
    for name, files in said.items():
        for file, text in files.items():
            (folders[name] / file).write_text(text)
    return ExpertPool.open(str(folders["base"]), {"math": str(folders["math"])})


def front(text: str) -> dict:
    return yaml.safe_load(text.split("---")[1])


@pytest.mark.parametrize(
    ("files", "stated"),
    [
        ({}, None),
        ({"README.md": "---\nlicense: mit\n---\n# x"}, "mit"),
        ({"README.md": "---\nlicense: other\nlicense_name: llama9\n---\n"}, "llama9"),
        ({"README.md": "---\nlicense: [mit, apache-2.0]\n---\n"}, "mit, apache-2.0"),
        ({"README.md": "no front matter", "LICENSE": "\n  MIT License\n\ntext"}, "MIT License (LICENSE)"),
        ({"README.md": "---\n: [\n---\n", "LICENSE.txt": ""}, None),
    ],
)
def test_licences_are_read_where_they_are_said(tmp_path, tiny_folders, files, stated):
    pool = pool_with(tmp_path, tiny_folders, {"math": files})
    assert licence(pool.checkpoints["math"]) == stated


def test_a_card_names_what_is_unknown_and_what_differs(tmp_path, tiny_folders):
    mit = {"README.md": "---\nlicense: mit\n---\n"}
    other = {"README.md": "---\nlicense: cc-by-nc-4.0\n---\n"}
    card = Card("m", "because", {"a|b": "c"}, {})
    unknown = card.text(pool_with(tmp_path / "1", tiny_folders, {"base": mit}))
    assert "The licence of math is unknown" in unknown
    assert "license" not in front(unknown)
    assert "| a\\|b | c |" in unknown
    differ = card.text(pool_with(tmp_path / "2", tiny_folders, {"base": mit, "math": other}))
    assert "The licences differ (cc-by-nc-4.0; mit)" in differ
    assert "non-commercial" in differ
    same = card.text(pool_with(tmp_path / "3", tiny_folders, {"base": mit, "math": mit}))
    assert "## Warnings" not in same
    assert front(same)["license"] == "mit"
