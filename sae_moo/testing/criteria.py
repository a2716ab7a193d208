"""What every pruning criterion promises, on one matrix."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor

from sae_moo.materialization.ops.prune import Grid, Scoring
from sae_moo.materialization.ops.select import lowest
from sae_moo.materialization.ops.write import write_pruned
from sae_moo.recipe.criteria import CRITERIA, NOT_YET, Criterion
from sae_moo.testing.randomness import untouched

SHAPES = [(1, 4), (3, 8), (40, 32)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


class CriterionContract:
    """What every pruning criterion promises; subclass it in a test and name the criterion.

    Attributes:
        criterion: the name that recipes call it by.
    """

    criterion: ClassVar[str]

    @property
    def row(self) -> Criterion:
        """The criterion's row."""
        return CRITERIA.find(self.criterion)

    def matrix(self, shape: tuple[int, ...] = (40, 32), dtype: torch.dtype = torch.float32) -> Tensor:
        """Return weights, outputs x inputs, some of them zero."""
        weights = torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float32)
        weights[weights.abs() < 0.1] = 0
        return weights.to(dtype)

    def factors(self, inputs: int) -> Tensor | None:
        """Return a factor for each input, where the criterion needs them."""
        generator = torch.Generator().manual_seed(7)
        return torch.rand(inputs, generator=generator, dtype=torch.float32) * 3 if self.row.needs is not None else None

    def scoring(self, weights: Tensor, transposed: bool = False) -> Scoring:
        """Return the scores of a matrix, stored as it is or transposed."""
        if self.row.needs == NOT_YET:
            pytest.skip(str(self.row.unavailable))
        made = Scoring.whole if self.row.whole else Scoring
        stored = weights.t().contiguous() if transposed else weights
        grid = Grid(tuple(stored.shape), transposed)
        return made(stored.flatten(), grid, self.row.function, self.factors(weights.shape[1]))

    def test_its_row_is_whole(self) -> None:
        """The row names an implementation and says what it is."""
        assert callable(self.row.function)
        assert self.row.summary
        assert self.row.needs in (None, "activations", NOT_YET)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_scores_are_finite_float32_one_for_each_weight(self, shape: tuple[int, int]) -> None:
        """And at least 0."""
        weights = self.matrix(shape)
        scores = self.row.function(weights, self.factors(shape[1]))
        assert (scores.shape, scores.dtype) == (weights.shape, torch.float32)
        assert torch.isfinite(scores).all()
        assert (scores >= 0).all()

    def test_the_same_again_is_the_same_and_nothing_is_changed(self) -> None:
        """Neither weights nor factors nor global random numbers."""
        weights, factors = self.matrix(), self.factors(32)
        copy, other = weights.clone(), None if factors is None else factors.clone()
        with untouched():
            first = self.row.function(weights, factors)
        assert torch.equal(first, self.row.function(weights, factors))
        assert torch.equal(weights, copy)
        assert factors is None or (other is not None and torch.equal(factors, other))

    def test_parts_are_scored_as_the_whole_is_unless_the_row_asks_for_it_whole(self) -> None:
        """A criterion that looks at rows or columns says ``whole``; it gets them a part at a time otherwise."""
        if self.row.whole:
            pytest.skip(f"{self.criterion} sees whole matrices")
        weights, factors = self.matrix(), self.factors(32)
        whole = self.row.function(weights, factors)
        assert torch.equal(self.row.function(weights[3:9], factors), whole[3:9])
        each = None if factors is None else factors.expand_as(weights).flatten()[50:70]
        assert torch.equal(self.row.function(weights.flatten()[50:70], each), whole.flatten()[50:70])

    def test_how_a_matrix_is_stored_changes_no_score(self) -> None:
        """GPT-2 stores inputs x outputs; the function sees outputs x inputs all the same."""
        weights = self.matrix()
        plain, turned = self.scoring(weights), self.scoring(weights, transposed=True)
        scores = [each.part(0, weights.numel()) for each in (plain, turned)]
        torch.testing.assert_close(scores[0].view(40, 32), scores[1].view(32, 40).t())

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9])
    def test_exactly_the_lowest_go_and_zeros_before_all(self, dtype: torch.dtype, sparsity: float) -> None:
        """As many as were asked for, those that are zero already among them."""
        weights = self.matrix(dtype=dtype)
        zeros, count = int((weights == 0).sum()), round(sparsity * weights.numel())
        scoring = self.scoring(weights)
        out = torch.empty_like(scoring.source)
        gone = write_pruned(scoring.source, lowest(scoring.scores(), count), out, scoring.part)
        assert gone == int((out == 0).sum()) == max(count, zeros)

    def test_of_every_four_two_go(self) -> None:
        """And of every row as many as of the others."""
        weights = self.matrix() + 5.0
        scoring, out = self.scoring(weights), torch.empty(weights.numel())
        assert scoring.write_lines(2, 2, out) == weights.numel() // 2
        assert ((out.view(-1, 4) == 0).sum(dim=1) == 2).all()
