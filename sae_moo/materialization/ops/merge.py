"""Merge methods: one function each; their rows are in `recipe.methods`.

A method looks at one tensor of every input and returns the elementwise step that merges it (`steps.py`). Conventions
follow mergekit 0.1.5 where it has the method; every difference is named in the function's words. Weights stay exact
here, where mergekit rounds them to the tensors' dtype (0.3 becomes 0.30078 in bfloat16).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sae_moo.materialization.ops.operands import Operands, Place
from sae_moo.materialization.ops.steps import Nearing, Step, ZeroAware, divisor, terms


def linear(x: Operands, weights: Sequence[float], place: Place) -> Step:  # noqa: ARG001  # a method
    """Weighted mean ``sum w_i x_i / sum w_i`` (``normalize=False``: the bare sum). As in mergekit."""
    return terms(shares(weights) if place.params["normalize"] else weights)


def task_arithmetic(x: Operands, weights: Sequence[float], place: Place) -> Step:  # noqa: ARG001
    """``base + scale * sum w_i (x_i - base)`` (Ilharco et al. 2023, sec. 2); ``normalize``: divided by ``sum w_i``.

    As in mergekit, whose name for the scale is lambda.
    """
    scale = place.number("scale") / (divisor(weights) if place.params["normalize"] else 1.0)
    parts = [scale * weight for weight in weights]
    rest = 1.0 - math.fsum(parts)
    return terms(parts, base=rest if abs(rest) > 1e-12 else 0.0)


def nearswap(x: Operands, weights: Sequence[float], place: Place) -> Step:  # noqa: ARG001
    """``base + s (x - base)`` with ``s = min(1, t / max(|x - base|, 1e-6))``: a step of at most t towards the model.

    As in mergekit, written as it has it; the weight of the one input is not used by either.
    """
    return Nearing(place.number("t"))


def zero_aware(x: Operands, weights: Sequence[float], place: Place) -> Step:  # noqa: ARG001
    """Re-densifying merge: where some inputs are exactly zero, the others take the place undiluted.

    Per element ``sum w_i x_i / sum of the w_i whose x_i is not zero``; all zero stays zero; if only inputs of weight 0
    are non-zero there, their plain mean. Tensors that are not prunable get the plain weighted mean. With ``scale`` s,
    every non-zero element first moves to ``base + s (x - base)``, so that scaling brings no zero back by itself.
    Source: the attraction of Zhang, Zhang et al. 2026 (arXiv 2602.08218); `scale` and more than two inputs are ours.
    Not in mergekit.
    """
    return ZeroAware(shares(weights), place.number("scale"), place.prunable)


def rankmean(x: Operands, weights: Sequence[float], place: Place) -> Step:  # noqa: ARG001
    """RankMean (Perin et al. 2024): weights by how much each model changed a tensor, compared within the model.

    ``d`` = sum of |x - base| per tensor, ``r`` its rank among the model's tensors inside blocks, from 1 for the least
    changed; a tensor's weights are ``w_m r_m / sum w_m r_m``; tensors outside blocks get ``w_m / sum w_m``. The ranks
    need the whole models: `resolve.resolve` writes them into the recipe as the setting ``ranks``, here they are
    at hand. Not in mergekit.
    """
    ranks = place.each("ranks", len(weights))
    return terms(shares([weight * rank for weight, rank in zip(weights, ranks, strict=True)]))


def shares(weights: Sequence[float]) -> tuple[float, ...]:
    """Return weights divided by their sum."""
    total = math.fsum(weights)
    return tuple(weight / total for weight in weights)
