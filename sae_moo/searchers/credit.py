"""What candidates have gained: the hypervolume that each adds to the front of those before it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sae_moo.objectives import Constraint, Evaluation, Objective
from sae_moo.objectives.front import Front
from sae_moo.objectives.pareto import hypervolume


class Gains:
    """Counts what evaluations add to the hypervolume, in the order they come in.

    Args:
        objectives: what is maximized.
        constraints: limits; what breaks one gains nothing.
    """

    def __init__(self, objectives: Sequence[Objective], constraints: Sequence[Constraint]) -> None:
        self._front: Front[Evaluation] = Front(objectives, constraints)
        self._volume = 0.0

    def take(self, evaluation: Evaluation) -> float:
        """Take in an evaluation and return the hypervolume that it adds, at least 0.

        A difference of volumes, each counted with the newest point: `Front.gain` rounds otherwise, and the searches
        that are stored were credited by this one.
        """
        point = self._front.point(evaluation)
        if point is None:
            return 0.0
        volume = hypervolume(np.vstack([self._front.points, point]))
        gain = volume - self._volume
        self._front, self._volume = self._front.after(evaluation), volume
        return max(0.0, gain)
