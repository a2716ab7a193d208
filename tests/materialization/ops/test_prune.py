"""Lines, patterns and weighed scores against plain float64 loops."""

from __future__ import annotations

import pytest
import torch

from sae_moo.materialization.ops import prune as pruning
from sae_moo.materialization.ops.prune import (
    LEAST,
    Grid,
    Scoring,
    activated,
    magnitude,
    smallest,
    squares,
    target_count,
    write_without,
)
from sae_moo.materialization.ops.select import lowest
from sae_moo.materialization.ops.write import restoring, write_pruned

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 1), (1, 2), (2, 1), (1, 64), (64, 1), (8, 8), (5, 24), (300, 40)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(pruning, "LINES", 256)
    monkeypatch.setattr("sae_moo.materialization.ops.operands.CHUNK", 100)


def weights(shape, dtype=torch.float32) -> torch.Tensor:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)
    return torch.where(tensor == 0, torch.ones_like(tensor), tensor)


def norms(grid: Grid) -> torch.Tensor:
    return torch.rand(grid.inputs, generator=torch.Generator().manual_seed(7)) * 3


def reference(tensor, grid, factors) -> list[list[float]]:
    """Scores as rows of outputs: |w| times the factor of its input, in float64 from what float32 gives."""
    matrix = tensor.float().t() if grid.transposed else tensor.float()
    ones = torch.ones(grid.inputs) if factors is None else factors
    return [[float(torch.tensor(abs(float(w))) * f) for w, f in zip(row, ones, strict=True)] for row in matrix]


def gone_of(line: list[float], count: int) -> set[int]:
    return set(sorted(range(len(line)), key=lambda j: (line[j], j))[:count])


def scored(flat: torch.Tensor, grid: Grid, factors: torch.Tensor | None) -> Scoring:
    return Scoring(flat, grid, magnitude if factors is None else activated, factors)


def pruned_lines(tensor, grid, keep, out, factors=None):
    target = torch.full((tensor.numel(),), 7.0, dtype=tensor.dtype)
    zeros = scored(tensor.flatten(), grid, factors).write_lines(keep, out, target)
    target = target.view(tensor.shape)
    assert zeros == int((target == 0).sum())
    return target


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("weighed", [False, True])
def test_every_row_loses_its_lowest(shape, dtype, transposed, weighed):
    tensor, grid = weights(shape, dtype), Grid(shape, transposed)
    factors = norms(grid) if weighed else None
    rows = reference(tensor, grid, factors)
    for sparsity in (0.0, 0.3, 0.5, 0.999):
        count = target_count(sparsity, grid.inputs)
        target = pruned_lines(tensor, grid, grid.inputs - count, count, factors)
        turned, source = (target.t(), tensor.t()) if transposed else (target, tensor)
        for row, before, scores in zip(turned, source, rows, strict=True):
            gone = {j for j, value in enumerate(row) if value == 0}
            assert len(gone) == count == round(sparsity * len(row))
            assert gone == gone_of(scores, count)
            kept = [j for j in range(len(row)) if j not in gone]
            assert torch.equal(row[kept], before[kept])


@pytest.mark.parametrize(("keep", "of"), [(2, 4), (4, 8), (1, 4), (1, 2), (3, 8)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transposed", [False, True])
def test_patterns_hold_along_the_input(keep, of, dtype, transposed):
    shape = (16, 3) if transposed else (3, 16)
    tensor, grid = weights(shape, dtype), Grid(shape, transposed)
    for factors in (None, norms(grid)):
        target = pruned_lines(tensor, grid, keep, of - keep, factors)
        turned = target.t() if transposed else target
        for row, scores in zip(turned, reference(tensor, grid, factors), strict=True):
            for start in range(0, 16, of):
                gone = {j for j in range(of) if row[start + j] == 0}
                assert gone == gone_of(scores[start : start + of], of - keep)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transposed", [False, True])
def test_weighed_scores_over_a_whole_tensor(shape, dtype, transposed):
    tensor, grid = weights(shape, dtype), Grid(shape, transposed)
    scoring = scored(tensor.flatten(), grid, norms(grid))
    table = torch.tensor(reference(tensor, grid, norms(grid)), dtype=torch.float64)
    flat = (table.t() if transposed else table).flatten()
    assert torch.equal(scoring.part(0, tensor.numel()).double(), flat)
    for start in range(0, tensor.numel(), 37):
        assert torch.equal(scoring.part(start, min(start + 23, tensor.numel())).double(), flat[start : start + 23])
    for sparsity in (0.0, 0.1, 0.5, 1.0):
        count = target_count(sparsity, tensor.numel())
        out = torch.full_like(tensor.flatten(), 7.0)
        assert write_pruned(scoring.source, lowest(scoring.scores(), count), out, scoring.part) == count
        assert {i for i, value in enumerate(out) if value == 0} == gone_of(flat.tolist(), count)


@pytest.mark.parametrize("size", [1, 2, 64])
def test_ties_and_zeros_go_in_order_of_position(size):
    count = target_count(0.5, size)
    for value in (0.0, 0.25):
        below = smallest(torch.full((3, size), value), count)
        assert below[:, :count].all()
        assert not below[:, count:].any()
    tensor = torch.tensor([[3.0, 0.0, -0.0, 1.0]])
    assert pruned_lines(tensor, Grid((1, 4)), 2, 2).tolist() == tensor.tolist(), "zeros count, nothing more goes"


def test_a_weight_that_no_token_reached_still_goes_after_zeros():
    """Counts stay exact: a dead feature's weights score more than nothing."""
    tensor = torch.tensor([[5.0, 0.0, 2.0, 0.0]])
    dead = torch.tensor([0.0, 1.0, 1.0, 1.0])
    assert pruned_lines(tensor, Grid((1, 4)), 2, 2, dead).tolist() == tensor.tolist()
    scores = scored(tensor.flatten(), Grid((1, 4)), dead).part(0, 4)
    assert scores[0] == LEAST
    assert scores[1] == 0
    assert pruned_lines(tensor, Grid((1, 4)), 1, 3, dead).tolist() == [[0.0, 0.0, 2.0, 0.0]]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighed", [False, True])
def test_the_factor_that_restores_a_norm(shape, dtype, weighed):
    """Compiled and plain; against sums in float64 over what is left."""
    tensor = weights(shape, dtype).flatten()
    grid = Grid(shape)
    scoring = scored(tensor, grid, norms(grid) if weighed else None)
    part = scoring.part if weighed else None
    for count in range(0, tensor.numel(), max(1, tensor.numel() // 3)):
        cut = lowest(scoring.scores(), count)
        factor = restoring(tensor, cut, part)
        assert factor == restoring(tensor, cut, scoring.part)  # never compiled
        left = torch.empty(tensor.numel())
        zeros = write_pruned(tensor, cut, left, part)
        assert factor == pytest.approx(float(tensor.double().norm() / left.double().norm()), rel=1e-6)
        assert (factor == 1.0) == (count == 0)
        out, plain = torch.empty_like(tensor), torch.empty_like(tensor)
        assert write_pruned(tensor, cut, out, part, factor) == zeros
        assert write_pruned(tensor, cut, plain, scoring.part, factor) == zeros
        assert torch.equal(out, (left * factor).to(dtype))
        assert torch.equal(out, plain)
    assert restoring(torch.zeros(3), lowest(Scoring(torch.zeros(3), Grid((1, 3))).scores(), 2)) == 1.0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1])
def test_squares_along_an_axis(shape, dtype, axis):
    tensor = weights(shape, dtype)
    expected = [sum(float(w) ** 2 for w in tensor.select(axis, i)) for i in range(shape[axis])]
    torch.testing.assert_close(squares(tensor, axis), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


def test_writing_in_place():
    tensor = weights((4, 6))
    whole = tensor.clone()
    flat = tensor.view(-1)
    assert write_without(flat, (4, 6), 1, torch.tensor([0, 5]), flat) == 8
    assert torch.equal(tensor[:, 1:5], whole[:, 1:5])
    assert not tensor[:, [0, 5]].any()
    assert Scoring(flat, Grid((4, 6))).write_lines(3, 3, flat) == 12
