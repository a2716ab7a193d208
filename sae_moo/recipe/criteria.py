"""Pruning criteria: a row each. What a criterion thinks of a weight is a function that the row names as ``score``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from sae_moo.recipe.catalogue import Catalogue, Row, resolved

NOT_YET = "gradients"
"""What a criterion may ask for and nothing here computes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Criterion(Row):
    """One way to say which weights matter least.

    Args:
        score: ``module:function`` that is called with weights, float32, and factors; it returns a score for each
            weight, float32, finite and not negative: the lowest go first. The last dimension of the weights is the
            inputs of an output; `factors` has a number for each input and broadcasts over the rest, or is None.
        summary: what it does, in a line.
        source: who has thought of it.
        needs: what the factors are: ``activations``, the L2 norms of the input features over calibration texts
            (`sae_moo.calibrate`); None: nothing, the factors are None. Criteria that need ``gradients`` can be
            described, and are refused when they are used: nothing here computes gradients yet.
        whole: whether the weights must come as a whole matrix, outputs x inputs, since a score depends on others of the
            row or column; it is held in memory in float32 then. If not, they come a part at a time, flat or as rows.
    """

    score: str
    summary: str
    source: str = ""
    needs: Literal["activations", "gradients"] | None = None
    whole: bool = True

    @property
    def function(self) -> Callable[..., Any]:
        """The implementation; imported on first use."""
        return resolved(self.score)

    @property
    def calibrated(self) -> bool:
        """Whether it weighs by activations over calibration texts."""
        return self.needs == "activations"

    @property
    def unavailable(self) -> str | None:
        """Why it cannot be used, None if it can."""
        if self.needs != NOT_YET:
            return None
        return f"criterion {self.name!r} needs gradients, which nothing here computes yet; activations can be had"


_PRUNE = "sae_moo.materialization.ops.prune"

USUAL = "magnitude"
"""What prunes unless another is named."""

CRITERIA: Catalogue[Criterion] = Catalogue(
    "pruning criterion",
    "sae_moo.criteria",
    Criterion,
    [
        Criterion(
            name=USUAL,
            score=f"{_PRUNE}:magnitude",
            whole=False,
            summary="the magnitude of the weight",
            source="Han et al. 2015",
        ),
        Criterion(
            name="wanda",
            score=f"{_PRUNE}:activated",
            needs="activations",
            whole=False,
            summary="the weight's magnitude times the norm of its input feature over calibration texts",
            source="Sun et al. 2023, arXiv 2306.11695, eq. 1; compared within rows there: scope `row`",
        ),
    ],
)
"""The house's criteria; one of an installed package is found as ``package/name``."""
