"""The scores that SAE and M2N2 breed by: competition for instances, competition for sparsity, attraction.

Sources: Abrantes et al. 2025 (M2N2, arXiv 2508.16204); Zhang, Zhang et al. 2026 (SAE, arXiv 2602.08218).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sae_moo.objectives import Evaluation

Array = NDArray[np.float64]


def instances(evaluation: Evaluation) -> Array:
    """Return the scores of all tasks' instances, one task after another; shape (instances,)."""
    return np.concatenate([np.asarray(row) for row in evaluation.scores.values()])


def instance_weights(evaluation: Evaluation) -> Array:
    """Return a weight per instance, 1 on average, that lets every task count the same in sum; shape (instances,)."""
    return _instance_weights(tuple(map(len, evaluation.scores.values())))


@lru_cache(maxsize=16)
def _instance_weights(instances: tuple[int, ...]) -> Array:
    """Return `instance_weights` by the number of instances of each task; nobody may write into it."""
    lengths = np.array(instances)
    weights = np.repeat(lengths.sum() / len(lengths) / lengths, lengths)
    weights.flags.writeable = False
    return weights


def credit(scores: Array, alpha: float = 1.0, weight: Array | None = None) -> Array:
    """Return what solving each instance is worth: ``w_j / z_j``, ``z_j = (sum_i s_ij)^alpha``; shape (instances,).

    Args:
        scores: shape (candidates, instances), in [0, 1].
        alpha: strength of the competition; 0 is none.
        weight: how much each instance counts, 1 on average, shape (instances,); None is 1 for all. The credit is
            weighted, since weighting scores would cancel in ``s_ij / z_j``.

    Returns:
        Finite: an instance that nobody solves has z = 1, and gives nobody anything.
    """
    total = scores.sum(axis=0)
    z = np.where(total == 0, 1.0, total) ** alpha
    result: Array = (1.0 if weight is None else weight) / z
    return result


def competition(scores: Array, alpha: float = 1.0, weight: Array | None = None) -> Array:
    """Return ``F_i = sum_j s_ij w_j / z_j / M^alpha`` for M instances; shape (candidates,). See `credit`."""
    # einsum, not @: what a study replays must not hang on how many threads a matrix product takes
    result: Array = np.einsum("ij,j->i", scores, credit(scores, alpha, weight)) / scores.shape[1] ** alpha
    return result


def sparsity_score(sparsity: Array, tau: float = 1.0) -> Array:
    """Return ``P_i = softmax_i(rho_i / tau)`` over the candidates, per column if there are several groups.

    Args:
        sparsity: shape (candidates,) or (candidates, groups), in [0, 1]; 1 for a block that is removed.
        tau: temperature, above 0.
    """
    exponent = sparsity / tau
    weight = np.exp(exponent - exponent.max(axis=0, keepdims=True))
    result: Array = weight / weight.sum(axis=0, keepdims=True)
    return result


def total(
    scores: Array,
    sparsity: Array,
    weight: Array | None = None,
    omega: float = 0.5,
    beta: float = 0.5,
    tau: float = 1.0,
    alpha: float = 1.0,
) -> Array:
    """Return ``T_i = omega F_i + beta P_i``; local (one column per group) if `sparsity` has groups.

    Args:
        scores: shape (candidates, instances).
        sparsity: shape (candidates,) for the global form or (candidates, groups) for the local one.
        weight: how much each instance counts; see `credit`.
        omega: weight of accuracy.
        beta: weight of sparsity.
        tau: temperature of the sparsity score.
        alpha: strength of the competition.

    Returns:
        Shape of `sparsity`.
    """
    fitness = competition(scores, alpha, weight)
    if sparsity.ndim == 2:
        fitness = fitness[:, None]
    result: Array = omega * fitness + beta * sparsity_score(sparsity, tau)
    return result


def attraction(scores: Array, first: int, weight: Array | None = None, alpha: float = 1.0) -> Array:
    """Return how much each candidate complements one: ``sum_j max(0, s_bj - s_aj) w_j / z_j``; shape (candidates,).

    Args:
        scores: shape (candidates, instances).
        first: row of the candidate a partner is sought for.
        weight: how much each instance counts; see `credit`.
        alpha: strength of the competition.
    """
    gain = np.maximum(0.0, scores - scores[first])
    result: Array = np.einsum("ij,j->i", gain, credit(scores, alpha, weight))
    return result
