"""The command that measures 2:4 on a card, as far as a machine without one can tell."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path

import pytest
import torch

from sae_moo.deploy.stream import is_two_four

SOURCE = Path(__file__).parents[2] / "studies" / "deploy" / "two_four.py"


@pytest.fixture
def study(monkeypatch):
    spec = importlib.util.spec_from_file_location("two_four", SOURCE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "two_four", module)  # its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


def test_without_a_card_it_says_so_and_measures_nothing(study, capsys):
    assert study.main([]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "sees no CUDA card here: nothing was measured" in printed.err


def test_the_matrices_keep_the_two_largest_of_four(study):
    matrix = study.two_four(16, 64, "cpu")
    assert is_two_four(matrix)
    kept = matrix.reshape(-1, 4) != 0
    assert kept.sum(1).tolist() == [2] * 256
    whole = study.drawn(16, 64, device="cpu").reshape(-1, 4).abs()
    assert bool((whole.masked_fill(~kept, 9).amin(1) >= whole.masked_fill(kept, 0).amax(1)).all())


def test_each_way_has_a_table_of_dense_over_sparse_and_what_is_refused_or_wrong_says_so(study, monkeypatch):
    def converted(matrix):
        if matrix.shape[0] == 64:
            raise RuntimeError("no kernel\nfor this")
        return matrix * (0.5 if matrix.shape[0] == 48 else 1)

    times = itertools.cycle((30.0, 60.0))
    monkeypatch.setattr(study, "to_sparse_semi_structured", converted)
    monkeypatch.setattr(study, "microseconds", lambda calls: (calls(), next(times))[1])
    monkeypatch.setattr(study, "WAYS", {"eager": study.eager, "again": study.eager})
    lines = study.tables(["32x64", "64x32", "48x32"], [1, 8], torch.bfloat16, "cpu")
    row = "rows | 0.50 (30 / 60) | refused: RuntimeError: no kernel | wrong by 0.5 |"
    expected = ["| 32 x 64 | 64 x 32 | 48 x 32 |", "|---|---|---|---|", f"| 1 {row}", f"| 8 {row}", ""]
    assert lines == [
        f"| {way} {expected[0]}" if i == 0 else line for way in study.WAYS for i, line in enumerate(expected)
    ]
