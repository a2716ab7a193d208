"""Searches in which blocks, units of blocks and scattered weights go together, on real models."""

from __future__ import annotations

import pytest

from sae_moo.config.document import Config
from sae_moo.errors import InputError
from sae_moo.jobs.bench import Bench
from sae_moo.jobs.search import search
from sae_moo.recipe.structure import chain, removed_blocks


def config(folders, pruning, evaluations=20, **search_section) -> Config:
    return Config.from_dict(
        {
            "study": {"name": "whole"},
            "models": {
                "base": str(folders["base"]),
                "experts": {name: str(path) for name, path in folders.items() if name != "base"},
            },
            "tasks": [{"name": "zoo_math", "search": 4, "test": 4}],
            "objectives": ["zoo_math", "sparsity"],
            "pruning": pruning,
            "search": {"population": 14, "evaluations": evaluations, **search_section},
        }
    )


@pytest.mark.parametrize(
    ("pruning", "settings", "scopes"),
    [
        (
            {"scope": ["blocks", "neurons", "heads", "tensor"]},
            {"operators": {"switch": 0.3, "tensors": True, "drop": 0.3}},
            {"blocks", "neurons", "heads", "tensor"},
        ),
        ({"scope": "blocks", "protect": {"first": 1}}, {}, {"blocks"}),
        ({"scope": ["blocks", "neurons", "row"]}, {"algorithm": "random"}, {"blocks", "neurons", "row"}),
    ],
)
def test_a_search_that_was_stopped_goes_on_as_if_it_had_not_been(tiny_folders, tmp_path, pruning, settings, scopes):
    whole = search(config(tiny_folders, pruning, **settings), root=tmp_path / "a").trials()
    search(config(tiny_folders, pruning, evaluations=15, **settings), root=tmp_path / "b")
    parts = search(config(tiny_folders, pruning, **settings), root=tmp_path / "b").trials()
    assert [trial.recipe for trial in parts] == [trial.recipe for trial in whole]
    assert {node.scope for trial in whole for node in chain(trial.recipe)} == scopes
    gone = [removed_blocks(trial.recipe) for trial in whole]
    assert any(gone)
    if "protect" in pruning:
        assert set(gone) == {frozenset(), frozenset({1})}
    for trial, removed in zip(whole, gone, strict=True):
        groups = trial.evaluation.group_sparsity
        assert all(groups[1 + block] == 1.0 for block in removed), "counted as zeros"
        assert len(removed) <= 1, "of two blocks one stays"


def test_blocks_that_are_all_protected_are_a_fault_before_anything_runs(tiny_folders):
    pruning = {"scope": ["blocks", "row"], "protect": {"first": 1, "last": 1}}
    with pytest.raises(InputError, match=r"pruning\.protect: expected fewer than the 2 blocks there are, got 2"):
        Bench.open(config(tiny_folders, pruning))


def test_a_ground_knows_what_goes_whole(tiny_folders):
    ground = Bench.open(config(tiny_folders, {"scope": ["heads", "blocks", "neurons"]})).ground()
    assert ground.structured == ("blocks", "neurons", "heads")
    assert ground.units == (("neurons", 24), ("heads", 2))
    assert ground.blocks == (1, 2)
    assert ground.scope is None
    assert ground.sizes.tolist() == [0.0, 2176.0, 2176.0, 0.0]
