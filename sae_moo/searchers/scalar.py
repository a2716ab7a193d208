"""Searches for a single objective over coefficients: particle swarms, CMA-ES, random draws.

Each sees one number per candidate (`objectives.loss`) and works through a population at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from sae_moo.objectives import Constraint, Evaluation, Objective, loss
from sae_moo.recipe.section import Amount, Field, Section, ValidationInfo, field_validator, section_of
from sae_moo.searchers.ranking import weights_of
from sae_moo.searchers.searcher import Assignment, Proposal, check_first
from sae_moo.searchers.space import CoefficientSpace

Array = NDArray[np.float64]
Rng = np.random.Generator
FIRST = "first vectors"  # what made the proposals of a first population


class Optimizer(Protocol):
    """Minimizes over vectors, a population at a time. All state is in the object; randomness comes in by argument."""

    def start(self, rng: Rng) -> Array:
        """Return the first vectors, shape (any, n_var), within the bounds."""

    def advance(self, x: Array, losses: Array, rng: Rng) -> Array:
        """Return the next vectors.

        Args:
            x: the vectors returned last, shape (any, n_var).
            losses: their losses, shape (any,), finite; smaller is better.
            rng: the generator drawn from.
        """


class ScalarSearcher:
    """Runs an `Optimizer` over a coefficient space; see `Searcher` for the contract.

    Args:
        space: the space.
        objectives: what is maximized.
        constraints: limits.
        optimizer: over the same space; fresh, and of this searcher alone.
        name: what proposals are called after.
        weights: objective name -> how much it counts; None: the mean of those that are scored on tasks, if any.
        seed: seed of everything drawn.
    """

    def __init__(
        self,
        space: CoefficientSpace,
        objectives: Sequence[Objective],
        constraints: Sequence[Constraint],
        *,
        optimizer: Optimizer,
        name: str,
        weights: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        self._space = space
        self._objectives = tuple(objectives)
        self._constraints = tuple(constraints)
        self._weights = weights_of(objectives, weights)
        self._name = name
        self._rng = np.random.default_rng(seed)
        self._optimizer = optimizer
        self._generation = 0
        self._brood = self._optimizer.start(self._rng)
        self._waiting = deque(range(len(self._brood)))
        self._out: dict[tuple[float, ...], list[int]] = {}  # vector -> its places in the brood
        self._told: dict[int, Evaluation] = {}

    def ask(self, n: int) -> Sequence[Proposal]:
        """Return up to `n` proposals; none while the population still has evaluations out."""
        proposals: list[Proposal] = []
        while len(proposals) < n and self._waiting:
            place = self._waiting.popleft()
            vector = tuple(float(value) for value in self._brood[place])
            self._out.setdefault(vector, []).append(place)
            operator = self._name if self._generation else FIRST
            recipe = self._space.decode(self._brood[place])
            proposals.append(Proposal(recipe, (), operator, self._generation, vector=vector))
        return proposals

    def tell(self, proposal: Proposal, evaluation: Evaluation) -> None:
        """Take in one evaluation; the last of a population brings forth the next.

        Raises:
            KeyError: if the proposal is not one that is out.
        """
        places = self._out[proposal.vector]
        self._told[places.pop(0)] = evaluation
        if not places:
            del self._out[proposal.vector]
        if len(self._told) < len(self._brood):
            return
        evaluations = [self._told[place] for place in range(len(self._brood))]
        if self._generation == 0:
            check_first(evaluations)
        losses = [loss(self._objectives, self._weights, self._constraints, each) for each in evaluations]
        self._brood = self._optimizer.advance(self._brood, np.array(losses), self._rng)
        self._waiting = deque(range(len(self._brood)))
        self._told = {}
        self._generation += 1


class Best:
    """The best vector of all populations, and where a population begins: at `CoefficientSpace.first`.

    Args:
        space: the space.
        population: vectors at a time, at least 2.
        sparsest: largest pruning ratio drawn for the first ones.
    """

    def __init__(self, space: CoefficientSpace, population: int, sparsest: float) -> None:
        if population < 2:
            raise ValueError(f"population: expected at least 2, got {population}")
        self.space = space
        self.population = population
        self.sparsest = sparsest
        self.best: Array = np.empty(0)
        self.least = np.inf

    def start(self, rng: Rng) -> Array:
        """Return the first vectors."""
        return self.space.first(self.population, rng, self.sparsest)

    def note(self, x: Array, losses: Array) -> None:
        """Remember the best of a population."""
        if losses.min() < self.least:
            self.best, self.least = x[losses.argmin()].copy(), float(losses.min())


class RandomDraws(Best):
    """Draws every population as a search's first one is drawn: what a search must beat."""

    def advance(self, x: Array, losses: Array, rng: Rng) -> Array:
        """Return new draws; see `Optimizer`."""
        return np.array([self.space.random(rng, self.sparsest) for _ in range(self.population)])


class CovarianceAdaptation(Best):
    """CMA-ES (Hansen 2016, arXiv 1604.00772) as the package `cma` has it, begun at the best of the first population.

    Steps begin at a fifth of each coordinate's range. Where it has converged it begins anew at the best vector so far.
    """

    STEP = 0.2

    def __init__(self, space: CoefficientSpace, population: int, sparsest: float) -> None:
        super().__init__(space, population, sparsest)
        self._strategy: Any = None

    def advance(self, x: Array, losses: Array, rng: Rng) -> Array:
        """Return the next population; see `Optimizer`."""
        self.note(x, losses)
        if self._strategy is not None:
            self._strategy.tell(list(x), losses.tolist())
        if self._strategy is None or self._strategy.stop():
            self._strategy = self._begun(np.random.default_rng(rng.integers(2**63)))
        return np.array(self._strategy.ask())

    def _begun(self, rng: Rng) -> Any:
        from cma import CMAEvolutionStrategy

        low, high = self.space.bounds
        options = {
            "popsize": self.population,
            "bounds": [low.tolist(), high.tolist()],
            "CMA_stds": high - low,
            "randn": lambda *shape: rng.standard_normal(shape),
            "seed": np.nan,  # of the global generator: left alone
            "verbose": -9,
            "verb_log": 0,
        }
        return CMAEvolutionStrategy(self.best, self.STEP, options)


class Swarm(Section):
    """``search.pso``: which particle swarm, and its numbers.

    ``model-swarms`` (Feng et al. 2024, arXiv 2410.11163) is pulled to the particle's and the swarm's best and pushed
    from the worst; ``pso-merging`` is the plain form, begun at base, experts and sparsified experts.
    """

    flavour: Literal["model-swarms", "pso-merging"] = Field(
        default="model-swarms", description="which particle swarm; the first numbers are of `model-swarms`"
    )
    inertia: Amount = Field(default=0.4, description="weight of a particle's velocity")
    own: Amount = Field(default=0.3, description="weight of the way to the particle's best")
    swarm: Amount = Field(default=0.3, description="weight of the way to the swarm's best")
    worst: Amount = Field(default=0.3, description="weight of the way from the swarm's worst")
    step: Annotated[float, Field(gt=0.0, le=1e6)] = Field(
        default=1.0, description="first step length; each generation shortens it to 0.95 of itself, not below 0.1"
    )
    patience: Annotated[int, Field(ge=2, le=10**6)] = Field(
        default=10,
        description="a particle without a new best for half as many generations begins anew at its best",
    )
    plain_inertia: Amount = Field(default=0.2, description="w of `pso-merging`: weight of a particle's velocity")
    plain_pull: Amount = Field(default=2.0, description="c1 = c2 of `pso-merging`: weight of the ways to both bests")

    @field_validator("swarm")
    @classmethod
    def _drawn(cls, swarm: float, info: ValidationInfo) -> float:
        if swarm == 0 and info.data.get("own") == 0:
            raise ValueError("expected own or swarm above 0, got 0 for both")
        return swarm


SWARM = Swarm()  # as published


class ParticleSwarm(Best):
    """A particle swarm in either flavour; see `Swarm`.

    Velocities begin as the way to another particle (``model-swarms``) or as zero. All particles move at once, after the
    whole population was evaluated, and stay within the bounds.

    Args:
        space: the space.
        population: particles.
        sparsest: largest pruning ratio drawn for the first ones.
        settings: the flavour's numbers.
    """

    def __init__(self, space: CoefficientSpace, population: int, sparsest: float, settings: Swarm = SWARM) -> None:
        super().__init__(space, population, sparsest)
        self._settings = settings
        self._step = self._settings.step
        self._velocity: Array = np.empty((0, 0))
        self._own: Array = np.empty((0, 0))  # best of each particle
        self._own_loss: Array = np.empty(0)
        self._idle: NDArray[np.int64] = np.empty(0, dtype=np.int64)  # populations since
        self._worst: Array = np.empty(0)
        self._most = -np.inf

    def start(self, rng: Rng) -> Array:
        """Return where the particles begin."""
        x = super().start(rng)
        if self._settings.flavour == "pso-merging":
            experts = len(self.space.ground.experts)
            begun = [self.space.encode(np.zeros(experts)), *(self.space.encode(row) for row in np.eye(experts))]
            if self.space.ratios:
                begun += [self.space.encode(row, self.sparsest) for row in np.eye(experts)]
            random = [self.space.random(rng, self.sparsest) for _ in range(self.population - len(begun))]
            x = np.array([*begun, *random][: self.population])
            self._velocity = np.zeros_like(x)
        else:
            self._velocity = x[rng.permutation(len(x))] - x
        return x

    def advance(self, x: Array, losses: Array, rng: Rng) -> Array:
        """Return where the particles are next; see `Optimizer`."""
        self.note(x, losses)
        if losses.max() > self._most:
            self._worst, self._most = x[losses.argmax()].copy(), float(losses.max())
        if not len(self._own):
            self._own, self._own_loss = x.copy(), np.full(len(x), np.inf)
            self._idle = np.zeros(len(x), dtype=np.int64)
        better = losses < self._own_loss
        self._own[better], self._own_loss[better] = x[better], losses[better]
        self._idle = np.where(better, 0, self._idle + 1)
        low, high = self.space.bounds
        if self._settings.flavour == "pso-merging":
            pull = self._settings.plain_pull * rng.random((2, *x.shape))
            to_own, to_best = pull[0] * (self._own - x), pull[1] * (self.best - x)
            self._velocity = self._settings.plain_inertia * self._velocity + to_own + to_best
            return np.clip(x + self._velocity, low, high)
        s = self._settings
        tired = self._idle >= s.patience / 2
        x = np.where(tired[:, None], self._own, x)
        self._velocity = np.where(tired[:, None], 0.0, self._velocity)
        self._idle[tired] = 0
        r = rng.random((len(x), 4)) * np.array([s.inertia, s.own, s.swarm, s.worst])
        r /= r.sum(axis=1, keepdims=True)  # C in Feng et al. 2024, eq. of the velocity
        moves = np.stack([self._velocity, self._own - x, self.best - x, x - self._worst], axis=1)
        self._velocity = np.einsum("pk,pkd->pd", r, moves)
        x = np.clip(x + self._step * self._velocity, low, high)
        self._step = max(0.95 * self._step, 0.1)
        return x


def particle_swarm(assignment: Assignment) -> ScalarSearcher:
    """Return a particle swarm."""
    settings = section_of(assignment.settings, Swarm)
    space = assignment.coefficients()
    return _searcher(assignment, ParticleSwarm(space, assignment.population, assignment.schedule.top, settings))


def covariance_adaptation(assignment: Assignment) -> ScalarSearcher:
    """Return CMA-ES."""
    space = assignment.coefficients()
    return _searcher(assignment, CovarianceAdaptation(space, assignment.population, assignment.schedule.top))


def random_draws(assignment: Assignment) -> ScalarSearcher:
    """Return random draws."""
    space = assignment.coefficients()
    return _searcher(assignment, RandomDraws(space, assignment.population, assignment.schedule.top))


def _searcher(assignment: Assignment, optimizer: ParticleSwarm | CovarianceAdaptation | RandomDraws) -> ScalarSearcher:
    return ScalarSearcher(
        optimizer.space,
        assignment.objectives,
        assignment.constraints,
        optimizer=optimizer,
        name=assignment.algorithm,
        weights=assignment.weights,
        seed=assignment.seed,
    )
