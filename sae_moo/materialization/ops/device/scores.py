"""How kernels get at the scores of a pruning."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sae_moo.materialization.ops.device.tables import Table
from sae_moo.materialization.ops.prune import Scoring, activated

MAGNITUDES, NORMS, GIVEN = 0, 1, 2
"""Computed as magnitudes, weighed by the norms of input features, or written down."""


def scores_of(scoring: Scoring | None) -> int:
    """Return how the scores of a pruning are got at."""
    if scoring is None or scoring.plain:
        return MAGNITUDES
    return NORMS if scoring.score is activated and scoring.held is None and len(scoring.grid.shape) == 2 else GIVEN


def put_norms(table: Table, column: int, scorings: Sequence[Scoring | None]) -> list[Tensor]:
    """Fill three columns: norms, number of features, and the width of a row if features are rows, else 0."""
    there = [scoring for scoring in scorings if scoring is not None]
    norms = [scoring.norms for scoring in there if scoring.norms is not None]
    table.put(column, [each.data_ptr() for each in norms])
    table.put(column + 1, [scoring.grid.inputs for scoring in there])
    table.put(column + 2, [scoring.grid.shape[-1] if scoring.grid.transposed else 0 for scoring in there])
    return norms
