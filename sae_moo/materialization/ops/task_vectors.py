"""Merge methods on task vectors: each input's difference from the base is thinned out, perhaps rescaled, then summed.

The four ways to thin out (by magnitude, at random, by magnitude without outliers, at random by row rank) and the two
ways to sum (plain, or only what agrees with the elected sign) give the family of TIES, DARE, DELLA and breadcrumbs: one
step, `Vote`, and rows of settings.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import Any

from sae_moo.materialization.ops.deferred import CutRef
from sae_moo.materialization.ops.operands import Operands, Place
from sae_moo.materialization.ops.questions import Asking, Fences, Growth, Overlaps, Question, Selection, Trim
from sae_moo.materialization.ops.random import Draws, threshold
from sae_moo.materialization.ops.select import NOTHING, Cut
from sae_moo.materialization.ops.steps import Fusion, Reinforced, Selected, Thinning, Vote


def ties(x: Operands, weights: Sequence[float], place: Place) -> Asking:  # a method
    """TIES (Yadav et al. 2023): trim each task vector by magnitude, elect a sign, mean of what agrees.

    As in mergekit: trimming is per tensor (the paper: over the whole task vector) and keeps ``max(1, int(density n))``;
    the vote is weighted; divided by the weights that agree unless ``normalize`` is off. Difference: of equal magnitudes
    the later ones stay, where mergekit's choice is undefined (1.4 % of differences in bfloat16 tie with the threshold).
    """
    thinnings = []
    for i, density in enumerate(place.each("density", len(weights))):
        if density >= 1:
            thinnings.append(Thinning())
        else:
            kept = max(1, int(density * x.numel)) if density > 0 else 0
            thinnings.append(Thinning(above=(yield Trim(i, x.numel - kept))))
    return (yield from _vote(weights, place, thinnings, x.row))


def dare(x: Operands, weights: Sequence[float], place: Place) -> Asking:  # a method
    """DARE (Yu et al. 2024): drop elements of each task vector at random, rescale the rest, sum.

    ``dare_linear`` sums plainly, ``dare_ties`` elects signs. As in mergekit: not normalised by default, and ``rescale``
    restores the tensor's L1 norm; the paper's factor 1 / density is ``rescale: density``. The mask is a function of
    ``seed``, tensor name and input alone: the same on every device, in any order of work; mergekit draws a new one
    every time.
    """
    thinnings = []
    for i, density in enumerate(place.each("density", len(weights))):
        stream = Draws.of(int(place.number("seed")), place.tensor, x.keys[i])
        thinnings.append(Thinning(stream=stream, drop=threshold(density)) if density < 1 else Thinning())
    return (yield from _vote(weights, place, thinnings, x.row))


def della(x: Operands, weights: Sequence[float], place: Place) -> Asking:  # a method
    """DELLA (Deep et al. 2024): drop at random, the larger of a row the less likely, rescale, sum.

    The chance to stay runs from ``density - epsilon`` for the smallest magnitude of a row to ``density + epsilon`` for
    the largest. ``della`` elects signs and normalises, ``della_linear`` does neither; rescaling, seed and masks as in
    `dare`. As in mergekit. Difference: in rows of one element the chance is ``density``, where mergekit divides by 0.
    Both chances are in (0, 1) for a density between 0 and 1: a recipe that asks otherwise is refused.
    """
    count = len(weights)
    thinnings = []
    for i, (density, epsilon) in enumerate(
        zip(place.each("density", count), place.each("epsilon", count), strict=True)
    ):
        stream = Draws.of(int(place.number("seed")), place.tensor, x.keys[i])
        if density >= 1:
            thinnings.append(Thinning())
        elif density <= 0:
            thinnings.append(Thinning(stream=stream, drop=threshold(0.0)))
        else:
            thinnings.append(Thinning(stream=stream, epsilon=epsilon, density=density))
    return (yield from _vote(weights, place, thinnings, x.row))


def breadcrumbs(x: Operands, weights: Sequence[float], place: Place) -> Asking:  # a method
    """Model breadcrumbs (Davari & Belilovsky 2024): drop the largest ``gamma`` and the smallest, keep ``density``, sum.

    ``breadcrumbs_ties`` elects signs. As in mergekit: per tensor, counts truncated, not normalised; where
    ``density + gamma`` is above 1, fewer of the largest are dropped. Equal magnitudes as in `ties`.
    """
    thinnings = []
    count = len(weights)
    for i, (density, gamma) in enumerate(zip(place.each("density", count), place.each("gamma", count), strict=True)):
        if density >= 1:
            thinnings.append(Thinning())
            continue
        kept = int(density * x.numel)
        smallest = max(0, x.numel - kept - int(gamma * x.numel))
        thinnings.append(Thinning(above=(yield Trim(i, smallest)), under=(yield Trim(i, smallest + kept))))
    return (yield from _vote(weights, place, thinnings, x.row))


def sce(x: Operands, weights: Sequence[float], place: Place) -> Asking:  # noqa: ARG001  # a method
    """SCE (Wan et al. 2024): select elements by variance over the inputs, calculate weights, elect signs.

    Of the elements whose variance is not 0, the ``select_topk`` share of largest variance stays; an input's weight is
    its mean square over the tensor; the sign is that of the plain sum. As in mergekit, which has no weights of one's
    own (equal ones give its result). Difference: there the weights become equal without a word once the mean squares
    sum to under 1e-6, and a divisor counts as at least 1e-6; here both are free of scale.
    """
    cut: Cut | CutRef
    cut, squares = yield Selection(place.number("select_topk"))
    parts = [weight * square for weight, square in zip(weights, squares, strict=True)]
    total = math.fsum(parts)
    parts = [part / total for part in parts] if total else [1.0 / len(parts)] * len(parts)
    return Selected(None if cut == NOTHING else cut, tuple(parts), place.number("scale"))


def ram(x: Operands, weights: Sequence[float], place: Place) -> Asking:  # noqa: ARG001  # a method
    """Reinforced agent merging (arXiv 2601.13572): the mean of those differences that are any, element by element.

    Differences from the base of at most ``epsilon`` are none. What one input alone changes is taken whole, with ``r``
    times ``1 + r min(shared / alone, alpha)``, by how many of its changed elements others change too and how many none
    does. As in mergekit, whose ram has no r and whose ramplus_tl has; neither has weights.
    """
    epsilon, r, alpha = (place.number(name) for name in ("epsilon", "r", "alpha"))
    growth = [1.0] * len(weights)
    if r:
        overlaps = yield Overlaps(epsilon)
        ratios = (both / max(own, epsilon) for both, own in overlaps)
        growth = [1 + r * min(ratio, alpha) for ratio in ratios]
    return Reinforced(tuple(growth), epsilon)


def arcee_fusion(x: Operands, weights: Sequence[float], place: Place) -> Asking:  # noqa: ARG001  # a method
    """Arcee fusion: take over from one model only what changed much where its rows' distributions changed much.

    Importance ``|x - base| * KL(softmax(row of x) || softmax(row of base))``; elements of at least
    ``median + 1.5 (q3 - q1)`` are taken from x. As in mergekit; difference: quantiles are exact, where it samples a
    million elements of larger tensors, and the weight of the one input is not used by either.
    """
    return Fusion((yield Fences()), x.row)


def _vote(
    weights: Sequence[float], place: Place, thinnings: Sequence[Thinning], row: int
) -> Generator[Question, Any, Vote]:
    rescale = place.params["rescale"]
    growths = []
    for i, thinning in enumerate(thinnings):
        growth = 1.0
        if rescale == "l1" and thinning != Thinning():
            growth = yield Growth(i, thinning)
        elif rescale == "density" and thinning != Thinning():
            density = place.each("density", len(weights))[i]
            growth = 1.0 / density if density > 0 else 1.0
        growths.append(growth)
    return Vote(
        tuple(thinnings),
        tuple(growths),
        tuple(weights),
        place.number("scale"),
        bool(place.params["elect"]),
        bool(place.params["normalize"]),
        row,
    )
