"""The pruning ratio of each child: by a schedule over the steps of a search, or learned from what children gain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sae_moo.objectives import Constraint, Evaluation, Objective
from sae_moo.searchers.credit import Gains
from sae_moo.searchers.schedule import Adaptive, Bandit, Schedule
from sae_moo.searchers.searcher import Proposal

RATIO = "annealed ratio"  # the number of a proposal that says what it was pruned at


class AnnealedRatio:
    """Draws ratios and is told what came of them; the state is all in here, and the calls replayed restore it.

    Args:
        schedule: a pure function of the step, or the settings of one that learns.
        objectives: what is maximized; the adaptive schedule is credited with the hypervolume gained.
        constraints: limits; what breaks one gains nothing.
    """

    def __init__(
        self, schedule: Schedule | Adaptive, objectives: Sequence[Objective], constraints: Sequence[Constraint]
    ) -> None:
        self.schedule = schedule
        self.bandit = Bandit(schedule) if isinstance(schedule, Adaptive) else None
        self._gains = Gains(objectives, constraints)

    def draw(self, step: int, rng: np.random.Generator) -> float:
        """Return the ratio for one child of a step (from 0); only the adaptive one draws."""
        return self.schedule(step) if isinstance(self.schedule, Schedule) else self.drawn(rng)

    def drawn(self, rng: np.random.Generator) -> float:
        """Return the ratio of one child under the adaptive schedule."""
        assert self.bandit is not None
        return self.bandit.draw(rng)

    def tell(self, proposal: Proposal, evaluation: Evaluation) -> None:
        """Take in an evaluation."""
        if self.bandit is None:
            return
        gain = self._gains.take(evaluation)
        if RATIO in proposal.numbers:
            self.bandit.credit(proposal.numbers[RATIO], gain)
