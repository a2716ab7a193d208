"""Merge methods on task vectors: each input's difference from the base is thinned out, perhaps rescaled, then summed.

The four ways to thin out (by magnitude, at random, by magnitude without outliers, at random by row rank) and the two
ways to sum (plain, or only what agrees with the elected sign) give the family of TIES, DARE, DELLA and breadcrumbs: one
step, `Vote`, and rows of settings.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sae_moo.materialization.ops.measure import WHOLE, l1_norm, magnitudes, squares_above, varying
from sae_moo.materialization.ops.operands import Operands, Place
from sae_moo.materialization.ops.random import Draws, threshold
from sae_moo.materialization.ops.select import NOTHING, Chunked, Cut, compact, lowest
from sae_moo.materialization.ops.steps import Fusion, Reinforced, Selected, Step, Thinning, Vote, importance

DIGITS = 9


def ties(x: Operands, weights: Sequence[float], place: Place) -> Step:
    """TIES (Yadav et al. 2023): trim each task vector by magnitude, elect a sign, mean of what agrees.

    As in mergekit: trimming is per tensor (the paper: over the whole task vector) and keeps ``max(1, int(density n))``;
    the vote is weighted; divided by the weights that agree unless ``normalize`` is off. Difference: of equal magnitudes
    the later ones stay, where mergekit's choice is undefined (1.4 % of differences in bfloat16 tie with the threshold).
    """
    return _vote(
        x, weights, place, [_trimmed(x, i, d, place) for i, d in enumerate(place.each("density", len(weights)))]
    )


def dare(x: Operands, weights: Sequence[float], place: Place) -> Step:
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
    return _vote(x, weights, place, thinnings)


def della(x: Operands, weights: Sequence[float], place: Place) -> Step:
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
    return _vote(x, weights, place, thinnings)


def breadcrumbs(x: Operands, weights: Sequence[float], place: Place) -> Step:
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
        above, under = _cut(x, i, smallest, place), _cut(x, i, smallest + kept, place)
        thinnings.append(Thinning(above=above, under=under))
    return _vote(x, weights, place, thinnings)


def sce(x: Operands, weights: Sequence[float], place: Place) -> Step:
    """SCE (Wan et al. 2024): select elements by variance over the inputs, calculate weights, elect signs.

    Of the elements whose variance is not 0, the ``select_topk`` share of largest variance stays; an input's weight is
    its mean square over the tensor; the sign is that of the plain sum. As in mergekit, which has no weights of one's
    own (equal ones give its result). Difference: there the weights become equal without a word once the mean squares
    sum to under 1e-6, and a divisor counts as at least 1e-6; here both are free of scale.
    """
    share = place.number("select_topk")
    base = x.base
    assert base is not None

    def selection() -> tuple[Cut, tuple[float, ...]]:
        cut = NOTHING
        if share < 1:
            scores, number = varying(x.inputs, base)
            cut = lowest(scores, x.numel - int(number * share))
        return cut, tuple(float(square) for square in squares_above(x.inputs, base, cut))

    known = all(name is not None for name in x.names)
    cut, squares = place.remembered.get(("sce", place.tensor, x.names, share), selection) if known else selection()
    parts = [weight * float(f"{square:.{DIGITS}e}") for weight, square in zip(weights, squares, strict=True)]
    total = math.fsum(parts)
    parts = [part / total for part in parts] if total else [1.0 / len(parts)] * len(parts)
    return Selected(None if cut == NOTHING else cut, tuple(parts), place.number("scale"))


def ram(x: Operands, weights: Sequence[float], place: Place) -> Step:
    """Reinforced agent merging (arXiv 2601.13572): the mean of those differences that are any, element by element.

    Differences from the base of at most ``epsilon`` are none. What one input alone changes is taken whole, with ``r``
    times ``1 + r min(shared / alone, alpha)``, by how many of its changed elements others change too and how many none
    does. As in mergekit, whose ram has no r and whose ramplus_tl has; neither has weights.
    """
    epsilon, r, alpha = (place.number(name) for name in ("epsilon", "r", "alpha"))
    growth = [1.0] * len(weights)
    if r:
        shared, alone = [0] * len(weights), [0] * len(weights)
        for _, inputs, base in x.chunks():
            assert base is not None
            changed = [(each - base).abs() > epsilon for each in inputs]
            count = functools.reduce(torch.add, [each.to(torch.int32) for each in changed])
            for i, each in enumerate(changed):
                shared[i] += int((each & (count > 1)).sum())
                alone[i] += int((each & (count == 1)).sum())
        ratios = (both / max(own, epsilon) for both, own in zip(shared, alone, strict=True))
        growth = [1 + r * min(ratio, alpha) for ratio in ratios]
    return Reinforced(tuple(growth), epsilon)


def arcee_fusion(x: Operands, weights: Sequence[float], place: Place) -> Step:  # noqa: ARG001
    """Arcee fusion: take over from one model only what changed much where its rows' distributions changed much.

    Importance ``|x - base| * KL(softmax(row of x) || softmax(row of base))``; elements of at least
    ``median + 1.5 (q3 - q1)`` are taken from x. As in mergekit; difference: quantiles are exact, where it samples a
    million elements of larger tensors, and the weight of the one input is not used by either.
    """

    def importances() -> Iterator[tuple[int, Tensor]]:
        for start, inputs, base in x.chunks(x.row):
            assert base is not None
            yield start, importance(inputs[0], base, x.row)

    scores = Chunked(importances, x.numel)
    high = scores.high()
    q1, median, q3 = (lowest(scores, int(q * (x.numel - 1)) + 1, high).value for q in (0.25, 0.5, 0.75))
    return Fusion(median + 1.5 * (q3 - q1), x.row)


def _vote(x: Operands, weights: Sequence[float], place: Place, thinnings: Sequence[Thinning]) -> Vote:
    rescale = place.params["rescale"]
    factors = []
    for i, (weight, thinning) in enumerate(zip(weights, thinnings, strict=True)):
        growth = 1.0
        if rescale == "l1" and thinning != Thinning():
            growth = _regained(x, i, thinning, place)
        elif rescale == "density" and thinning != Thinning():
            density = place.each("density", len(weights))[i]
            growth = 1.0 / density if density > 0 else 1.0
        factors.append(weight * growth)
    return Vote(
        tuple(thinnings),
        tuple(factors),
        tuple(weights),
        place.number("scale"),
        bool(place.params["elect"]),
        bool(place.params["normalize"]),
        x.row,
    )


def _regained(x: Operands, i: int, thinning: Thinning, place: Place) -> float:
    """Return the L1 norm of a task vector over that of what is left of it; 1 where one of them vanishes."""
    base = x.base
    assert base is not None

    def whole() -> float:
        return l1_norm(x.inputs[i], base, WHOLE, x.row)

    name = x.names[i]
    before = place.remembered.get(("l1", place.tensor, name), whole) if name is not None else whole()
    after = l1_norm(x.inputs[i], base, thinning, x.row)
    return float(f"{before / after:.{DIGITS}e}") if before > 0 and after > 0 else 1.0


def _trimmed(x: Operands, i: int, density: float, place: Place) -> Thinning:
    if density >= 1:
        return Thinning()
    kept = max(1, int(density * x.numel)) if density > 0 else 0
    return Thinning(above=_cut(x, i, x.numel - kept, place))


def _cut(x: Operands, i: int, count: int, place: Place) -> Cut:
    """Return the cut below which `count` magnitudes of a task vector lie; remembered for an expert's."""
    scores = magnitudes(x.inputs[i], x.base)
    name = x.names[i]
    if name is None:
        return lowest(scores, count)

    def found() -> Cut:
        high = place.remembered.get(("high", place.tensor, name), lambda: compact(scores.high()))
        return lowest(scores, count, high.whole())

    return place.remembered.get(("cut", place.tensor, name, count), found)
