"""Optuna's own samplers over coefficients, as a Searcher: an in-memory study that is told what ours is told."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler
from optuna.trial import Trial, TrialState

from sae_moo.objectives import Constraint, Evaluation, Objective, loss, minimized, violations
from sae_moo.objectives.front import Accuracy
from sae_moo.searchers.scalar import FIRST
from sae_moo.searchers.searcher import Assignment, Proposal, check_first
from sae_moo.searchers.space import CoefficientSpace

FORGETFUL = frozenset({"TPESampler", "GPSampler", "RandomSampler"})
"""Samplers that keep nothing beside the study's trials, so that they can be made anew for every ask."""


class OptunaSearcher:
    """Asks one of Optuna's samplers; see `Searcher` for the contract.

    The first population is that of every search over coefficients. A sampler that knows several objectives gets those
    of the search, and the limits as Optuna's constraints; unless `weights` make one number of them (`objectives.loss`).
    Samplers that keep nothing beside the trials are seeded anew for every ask, by its number: a resumed search then
    need not ask again for what it has (`recall`). TPE takes tens of milliseconds to ask at hundreds of trials, and
    the Gaussian process of `GPSampler` much longer.

    Args:
        space: the space.
        objectives: what is maximized.
        constraints: limits.
        sampler: name of a class of `optuna.samplers`.
        single: whether it knows one number only, the mean of the objectives scored on tasks unless `weights` are given.
        population: size of the first population, and of populations where a sampler has such.
        sparsest: largest pruning ratio drawn for the first population.
        weights: objective name -> how much it counts; None: see above.
        seed: seed of everything drawn.
    """

    def __init__(
        self,
        space: CoefficientSpace,
        objectives: Sequence[Objective],
        constraints: Sequence[Constraint],
        *,
        sampler: str,
        single: bool = False,
        population: int = 24,
        sparsest: float = 0.6,
        weights: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        self._space = space
        self._objectives = tuple(objectives)
        self._constraints = tuple(constraints)
        self._name = sampler
        self._forgetful = sampler in FORGETFUL
        usual = Accuracy(objectives).weights if single else None
        self._weights = usual if weights is None else dict(weights)
        self._seed = seed
        self._population = population
        low, high = space.bounds
        self._distributions: dict[str, BaseDistribution] = {
            f"x{i}": FloatDistribution(float(least), float(most))
            for i, (least, most) in enumerate(zip(low, high, strict=True))
        }
        with _quiet():
            self._study = optuna.create_study(
                directions=["minimize"] * (len(objectives) if self._weights is None else 1),
                sampler=self._made(0),
            )
        first = space.first(population, np.random.default_rng(seed), sparsest)
        self._first = [tuple(float(value) for value in row) for row in first]
        self._first_evaluations: list[Evaluation] = []
        self._asked = 0
        self._out: dict[tuple[float, ...], list[Trial]] = {}

    def ask(self, n: int) -> Sequence[Proposal]:
        """Return up to `n` proposals; none while the first population still has evaluations out."""
        proposals: list[Proposal] = []
        while len(proposals) < n:
            if self._asked < len(self._first):
                proposals.append(self._next(self._first[self._asked]))
            elif len(self._first_evaluations) < len(self._first):
                break
            else:
                proposals.append(self._next(None))
        return proposals

    def recall(self, vector: tuple[float, ...]) -> Proposal:
        """Return the proposal of a vector that was asked for before; only quick where the sampler is forgetful."""
        return self._next(vector if self._forgetful or self._asked < len(self._first) else None)

    def tell(self, proposal: Proposal, evaluation: Evaluation) -> None:
        """Take in one evaluation.

        Raises:
            KeyError: if the proposal is not one that is out.
        """
        trials = self._out[proposal.vector]
        trial = trials.pop(0)
        if not trials:
            del self._out[proposal.vector]
        if len(self._first_evaluations) < len(self._first):
            self._first_evaluations.append(evaluation)
            if len(self._first_evaluations) == len(self._first):
                check_first(self._first_evaluations)
        with _quiet():
            if not evaluation.ok:
                self._study.tell(trial, state=TrialState.FAIL)
            elif self._weights is not None:
                self._study.tell(trial, loss(self._objectives, self._weights, self._constraints, evaluation))
            else:
                names = [label for constraint in self._constraints for label in constraint.labels]
                for name, amount in zip(names, violations(self._constraints, evaluation), strict=False):
                    trial.set_constraint(name, float(amount))
                self._study.tell(trial, minimized(self._objectives, evaluation).tolist())

    def _next(self, vector: tuple[float, ...] | None) -> Proposal:
        """Return the next proposal: of a given vector, or of what the sampler says."""
        with _quiet():
            if vector is not None:
                self._study.enqueue_trial({f"x{i}": value for i, value in enumerate(vector)})
            if self._forgetful:  # where the vector is known, one that does not think
                quick = vector is not None
                self._study.sampler = optuna.samplers.RandomSampler(seed=0) if quick else self._made(self._asked)
            trial = self._study.ask(self._distributions)
        vector = tuple(float(trial.params[name]) for name in self._distributions)
        self._out.setdefault(vector, []).append(trial)
        generation = self._asked // self._population
        self._asked += 1
        operator = FIRST if generation == 0 else self._name
        return Proposal(self._space.decode(np.array(vector)), (), operator, generation, vector=vector)

    def _made(self, number: int) -> BaseSampler:
        """Return the sampler, seeded by the search's seed and the number of the ask."""
        drawn = int(np.random.default_rng((self._seed, number)).integers(2**31))
        settings = {"population_size": self._population} if self._name.startswith("NSGA") else {}
        with _quiet():
            made: BaseSampler = getattr(optuna.samplers, self._name)(seed=drawn, **settings)
        return made


def make(assignment: Assignment, *, sampler: str, single: bool) -> OptunaSearcher:
    """Return the searcher of a sampler."""
    return OptunaSearcher(
        assignment.coefficients(),
        assignment.objectives,
        assignment.constraints,
        sampler=sampler,
        single=single,
        population=assignment.population,
        sparsest=assignment.schedule.top,
        weights=assignment.weights,
        seed=assignment.seed,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what Optuna says of an inner study, and of samplers it calls experimental, off the screen."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)
