"""LinUCB: linear models of what arms of several kinds pay in a context, and how far they may be off.

Source: Li et al. 2010, arXiv 1003.0146. Their hybrid form has coefficients that all arms share beside each arm's own;
here both come from one ridge prior, and `shared` says how much of it they have in common: at 0 this is their disjoint
algorithm 1. Computed over observations instead of coefficients, which gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class LinUcb:
    """Ridge regressions of rewards on contexts, one for each kind of arm, that lean on each other.

    Args:
        ridge: weight of the prior that all coefficients are 0, above 0.
        shared: share of the prior's variance that kinds have in common, in [0, 1): how much one kind learns of
            another.
    """

    def __init__(self, ridge: float = 1.0, shared: float = 0.5) -> None:
        if not ridge > 0.0:
            raise ValueError(f"ridge: expected a number above 0, got {ridge}")
        if not 0.0 <= shared < 1.0:
            raise ValueError(f"shared: expected a share in [0, 1), got {shared}")
        self._ridge, self._shared = ridge, shared
        self._kinds: list[int] = []
        self._contexts: list[Array] = []
        self._rewards: list[float] = []

    def learn(self, kind: int, context: Array, reward: float) -> None:
        """Take in what an arm has paid.

        Args:
            kind: of the arm.
            context: shape (numbers,), the same for all.
            reward: finite.
        """
        self._kinds.append(kind)
        self._contexts.append(np.asarray(context, dtype=np.float64))
        self._rewards.append(float(reward))

    def bounds(self, kinds: Sequence[int], contexts: Array) -> tuple[Array, Array]:
        """Return what arms are expected to pay, and the widths of Li et al. 2010, eq. 4, without their alpha.

        The width is ``sqrt(x' A^-1 x)``, ``A = ridge I + X'X``; without an observation it is ``|x| / sqrt(ridge)``.

        Args:
            kinds: of each arm.
            contexts: shape (arms, numbers).

        Returns:
            Two arrays of shape (arms,).
        """
        asked = np.asarray(kinds)
        own = np.einsum("ij,ij->i", contexts, contexts)
        if not self._rewards:
            return np.zeros(len(own)), np.sqrt(own / self._ridge)
        known, table = np.array(self._kinds), np.stack(self._contexts)
        among = self._alike(known, known) * (table @ table.T) + self._ridge * np.eye(len(known))
        across = self._alike(asked, known) * (contexts @ table.T)
        solved = np.linalg.solve(among, np.column_stack([self._rewards, across.T]))
        means: Array = across @ solved[:, 0]
        explained = np.einsum("ij,ji->i", across, solved[:, 1:])
        return means, np.sqrt(np.maximum(own - explained, 0.0) / self._ridge)

    def _alike(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> Array:
        same: Array = self._shared + (1.0 - self._shared) * (first[:, None] == second[None, :])
        return same
