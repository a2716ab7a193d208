"""Merge methods that look at angles between whole tensors.

Each needs nothing of the tensors but their Gram matrix (float64 dot products of the inputs, or of the task vectors),
and gives one coefficient per input. The Gram matrix of experts does not depend on the candidate and is remembered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sae_moo.errors import InputError
from sae_moo.materialization.ops.operands import Operands, Place
from sae_moo.materialization.ops.questions import Asking, Gram
from sae_moo.materialization.ops.steps import Combination, Spliced, terms

Matrix = NDArray[np.float64]

# Same threshold as mergekit: nearly parallel tensors are mixed linearly, where slerp divides by a vanishing sine.
SLERP_PARALLEL = 0.9995
# Same threshold as M2N2 (Abrantes et al. 2025).
SPLIT_PARALLEL = 1e-6
COLINEAR = 1e-16


def slerp(x: Operands, weights: Sequence[float], place: Place) -> Asking:  # noqa: ARG001  # a method
    """Spherical interpolation of two whole tensors, ``t = w_2 / (w_1 + w_2)`` (Shoemake 1985).

    ``(sin((1-t) O) x_1 + sin(t O) x_2) / sin O`` with O the angle between the flattened tensors; nearly parallel ones
    (|cos O| > 0.9995) and zero tensors are mixed linearly. As in mergekit, whose single ``t`` runs from the first input
    to the second. Difference: there a zero tensor counts as orthogonal, so that t = 0.3 away from it gives 0.454 x.
    """
    return terms(_arc(_cosine((yield Gram(relative=False))), _second(weights), SLERP_PARALLEL))


def nuslerp(x: Operands, weights: Sequence[float], place: Place) -> Asking:  # noqa: ARG001  # a method
    """Spherical interpolation of two tensors, ``t = w_2 / (w_1 + w_2)``; of their task vectors with ``relative``.

    As in mergekit (flattened form), which works on task vectors whenever a base is given and takes t = 0.5 where the
    weights sum to 0. Only exactly parallel vectors are mixed linearly (1 - cos^2 <= 1e-16).
    """
    relative = bool(place.params["relative"])
    cosine = _cosine((yield Gram(relative)))
    t = 0.5 if abs(weights[0] + weights[1]) < 1e-6 else _second(weights)
    parts = (1 - t, t) if 1 - cosine**2 <= COLINEAR else _arc(cosine, t, math.inf)
    return _combined(parts, relative)


def multislerp(x: Operands, weights: Sequence[float], place: Place) -> Asking:  # noqa: ARG001  # a method
    """Weighted mean on the sphere of any number of tensors, of their task vectors with ``relative``.

    The direction is that of ``sum w_i x_i / |x_i|``, the length ``sum w_i |x_i|``; weights are divided by their sum
    unless ``normalize`` is off. Equals mergekit's multislerp: the correction which that computes in the tangent space
    at the weighted mean is zero, since the weighted mean of the tangent vectors there is. Zero tensors count with
    length 0.

    Raises:
        InputError: if more than two directions cancel out; two are mixed linearly.
    """
    relative = bool(place.params["relative"])
    share = np.asarray(weights, dtype=np.float64)
    share = share / math.fsum(weights) if place.params["normalize"] else share
    length, cosine = _lengths((yield Gram(relative)))
    if len(share) == 1:
        return terms((1.0,))
    mean = math.sqrt(max(float(share @ cosine @ share), 0.0))
    if mean < 1e-8:
        if len(share) == 2 or not length.any():
            return _combined(tuple(share), relative)
        raise InputError(f"multislerp: {place.tensor}: the inputs' directions cancel out under weights {list(weights)}")
    parts = share * float(share @ length) / mean
    return _combined(tuple(np.divide(parts, length, out=np.zeros_like(parts), where=length > 0)), relative)


def karcher(x: Operands, weights: Sequence[float], place: Place) -> Asking:  # noqa: ARG001  # a method
    """Weighted Karcher (Riemannian) mean of the directions, times the weighted mean of the lengths.

    Starts at the normalised weighted mean of the directions and walks along the mean of the logarithms, ``max_iter``
    times or until that is shorter than ``tol`` (arXiv 2603.04972). As in mergekit, which has no weights (equal ones
    give its result) and leaves out tensors shorter than ``tol``; here only zero tensors are left out.
    """
    share = np.asarray(weights, dtype=np.float64) / math.fsum(weights)
    length, cosine = _lengths((yield Gram(relative=False)))
    here = length > 0
    if len(share) == 1 or not share[here].any():
        return terms(tuple(share))
    tol = place.number("tol")
    part = np.where(here, share, 0.0) / share[here].sum()

    def norm(vector: Matrix) -> float:
        return math.sqrt(max(float(vector @ cosine @ vector), 0.0))

    mean = part / norm(part) if norm(part) >= tol else np.eye(len(part))[int(np.argmax(here))]
    for _ in range(int(place.number("max_iter"))):
        dots = np.clip(cosine @ mean, -1.0, 1.0)
        angles = np.arccos(dots)
        far = here & (angles >= tol) & (np.sin(angles) > 0)
        pull = np.where(far, part * angles / np.where(far, np.sin(angles), 1.0), 0.0)
        tangent = pull - float(pull @ dots) * mean
        step = norm(tangent)
        if step < tol:
            break
        mean = math.cos(step) * mean + math.sin(step) / step * tangent
        mean = mean / norm(mean)
    mean = mean * float(share @ length)
    return terms(tuple(np.divide(mean, length, out=np.zeros_like(mean), where=here)))


def model_stock(x: Operands, weights: Sequence[float], place: Place) -> Asking:  # noqa: ARG001  # a method
    """Between base and average, by the mean angle of the task vectors (Jang et al. 2024, eq. 4).

    ``t average + (1 - t) base`` with ``t = K c / (1 + (K - 1) c)``, c the mean cosine between the K task vectors of the
    tensor. As in mergekit (not filter-wise), which has no weights (equal ones give its result). Difference: there the
    product of two lengths counts as at least 1e-6, so that short task vectors look orthogonal; here c is free of scale.
    """
    count = len(weights)
    _, cosine = _lengths((yield Gram(relative=True)))
    c = float(np.clip(cosine[np.triu_indices(count, 1)], -1, 1).mean())
    below = 1 + (count - 1) * c
    t = count * c / below if abs(below) >= 1e-6 else 0.0
    total = math.fsum(weights)
    return _combined(tuple(t * weight / total for weight in weights), relative=True)


def split_slerp(x: Operands, weights: Sequence[float], place: Place) -> Asking:  # a method
    """M2N2's crossover: spherical interpolation with the weights exchanged behind a split point (Abrantes et al. 2025).

    ``t = w_2 / (w_1 + w_2)`` for elements before the point, ``1 - t`` for the others; ``split`` is the point as a share
    of all the model's elements, in the pool's order of tensors. Falls back to linear where sin O <= 1e-6. Difference: O
    is the angle between the two tensors, as in slerp, not that between all parameters at once. Not in mergekit.
    """
    cosine, t = _cosine((yield Gram(relative=False))), _second(weights)
    parallel = math.sqrt(1 - SPLIT_PARALLEL**2)
    first, second = (terms(_arc(cosine, share, parallel)) for share in (t, 1 - t))
    border = round(place.number("split") * place.total) - place.offset
    return Spliced(first, second, min(max(border, 0), x.numel))


def _combined(parts: Sequence[float], relative: bool) -> Combination:
    if not relative:
        return terms(parts)
    rest = 1.0 - math.fsum(parts)
    return terms(parts, base=rest if abs(rest) > 1e-12 else 0.0)


def _second(weights: Sequence[float]) -> float:
    return weights[1] / (weights[0] + weights[1])


def _arc(cosine: float, t: float, parallel: float) -> tuple[float, float]:
    if abs(cosine) > parallel:
        return 1 - t, t
    omega = math.acos(max(-1.0, min(1.0, cosine)))
    return math.sin((1 - t) * omega) / math.sin(omega), math.sin(t * omega) / math.sin(omega)


def _cosine(gram: Matrix) -> float:
    """Return the cosine between two vectors; 1 if one is zero."""
    norms = math.sqrt(gram[0, 0] * gram[1, 1])
    return float(gram[0, 1] / norms) if norms > 0 else 1.0


def _lengths(gram: Matrix) -> tuple[Matrix, Matrix]:
    """Return the vectors' lengths and the matrix of their cosines, 0 with a zero vector."""
    length = np.sqrt(np.diag(gram))
    product = np.outer(length, length)
    return length, np.divide(gram, product, out=np.zeros_like(gram), where=product > 0)
