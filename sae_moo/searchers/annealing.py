"""Cyclic annealing as a pymoo Callback: sets the pruning ratio of the mutation before every mating."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pymoo.core.callback import Callback


class CyclicAnnealing(Callback):  # type: ignore[misc]  # pymoo carries no types
    """Hand the schedule's value to ``algorithm.mating.mutation.ratio`` after every generation.

    pymoo calls it first after the first population, before the first mating: that mating gets ``schedule(0)``, the next
    ``schedule(1)``. The mutation is reached through the algorithm handed in, since `minimize` works on a deep copy.
    Works inside a `CallbackCollection` too.

    Args:
        schedule: step -> ratio in [0, 1), e.g. `sae_moo.searchers.schedule.Schedule`.
        per: pymoo iterations that make one step: 1 for generations, the population size when one child is told at a
            time.
    """

    def __init__(self, schedule: Callable[[int], float], per: int = 1) -> None:
        super().__init__()
        if per < 1:
            raise ValueError(f"per: expected at least 1 iteration a step, got {per}")
        self.schedule = schedule
        self.per = per

    def _update(self, algorithm: Any) -> None:
        mutation: Any = getattr(getattr(algorithm, "mating", None), "mutation", None)
        if not hasattr(mutation, "ratio"):
            raise TypeError(
                f"CyclicAnnealing: expected an algorithm whose mutation has a ratio (PruneMergeMutation), "
                f"got {type(mutation).__name__}"
            )
        mutation.ratio = self.schedule((algorithm.n_iter - 1) // self.per)
