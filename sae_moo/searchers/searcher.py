"""The contract of a search algorithm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from sae_moo.errors import Hint, RunError
from sae_moo.objectives import Constraint, Evaluation, Objective
from sae_moo.prediction.table import FeatureTable
from sae_moo.recipe import Recipe
from sae_moo.recipe.section import Section
from sae_moo.searchers.ground import Ground
from sae_moo.searchers.schedule import Adaptive, Schedule
from sae_moo.searchers.space import CoefficientSpace

Pace = Literal["generational", "steady-state"]
SpaceKind = Literal["lineage", "coefficients"]


@dataclass(frozen=True, slots=True)
class Proposal:
    """A recipe to evaluate, and where it comes from.

    Args:
        recipe: the candidate, ending in a `Cast`.
        parents: the candidates it was bred from, as the searcher was told them; empty for a first one.
        operator: what made it, e.g. ``expert`` or ``zero-aware crossover``.
        generation: 0 for the first population.
        numbers: settings worth plotting, e.g. ``{"annealed ratio": 0.3}``.
        vector: the coordinates that its searcher knows the recipe by, where the search is over vectors; else empty.
        alternatives: other allocations of the recipe's budget over the same merge: the best of all, by what can be told
            without labels, is evaluated in its place. Empty unless several allocations were asked for.
    """

    recipe: Recipe
    parents: tuple[Recipe, ...] = ()
    operator: str = ""
    generation: int = 0
    numbers: Mapping[str, float] = field(default_factory=dict)
    vector: tuple[float, ...] = ()
    alternatives: tuple[Recipe, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What a search algorithm is made for: everything that a configuration says of it. A value.

    Args:
        algorithm: name of the algorithm; several may be made by one function.
        ground: experts, groups, pruning.
        space: kind of space that is searched; None where the algorithm has none.
        sparsity: over coefficients, what every candidate is pruned to; None: sparsities are coordinates.
        objectives: what is maximized.
        constraints: limits.
        weights: objective name -> how much it counts, for what works on one number; None: as the algorithm has it.
        schedule: pruning ratios; `top` of it bounds a first population.
        pace: when children enter the population.
        allocations: how many allocations of its budget each pruned child is proposed with; 1: its own alone.
        population: size of the population, archive or swarm.
        seed: seed of everything drawn.
        settings: key of ``search`` -> the algorithm's own settings, defaults filled in; see `section_of`.
        features: of every ordered pair of experts on every task, where the algorithm's row asks for them; else None.
    """

    algorithm: str
    ground: Ground
    space: SpaceKind | None = None
    sparsity: float | None = None
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...] = ()
    weights: Mapping[str, float] | None = None
    schedule: Schedule | Adaptive = field(default_factory=Schedule)
    pace: Pace = "generational"
    allocations: int = 1
    population: int = 24
    seed: int = 0
    settings: Mapping[str, Section] = field(default_factory=dict)
    features: FeatureTable | None = None

    def coefficients(self) -> CoefficientSpace:
        """Return the space of vectors over the ground."""
        return CoefficientSpace(self.ground, sparsity=self.sparsity)


class Searcher(Protocol):
    """Proposes recipes and learns from their evaluations.

    Promises: the proposals depend on the settings, the seed and the sequence of calls, and on nothing else (no clock,
    no global randomness), so that the recorded calls replayed into a fresh searcher bring it to the same state. `ask`
    returns at most `n` proposals and may return fewer, none if it must first be told more; every proposal is told
    exactly once, in any order. A failed evaluation is told like any other and never becomes a parent. Where nothing is
    out and `ask` still returns none, there is nothing left to try.
    """

    def ask(self, n: int) -> Sequence[Proposal]:
        """Return up to `n` recipes to evaluate."""

    def tell(self, proposal: Proposal, evaluation: Evaluation) -> None:
        """Take in the evaluation of a proposal that `ask` returned."""


@runtime_checkable
class Recalling(Protocol):
    """A Searcher whose `ask` is slow: it can be told what it asked for instead of finding it again.

    Promises: `recall` leaves it in the state that the `ask` which returned the proposal left it in. What it returns is
    that proposal, but for `Proposal.numbers` that are found by what is slow.
    """

    def recall(self, vector: tuple[float, ...]) -> Proposal | None:
        """Return the proposal of a vector that this searcher asked for in an earlier run, as its next one.

        Or None, where it cannot have been: the vector is none of its own, or it would have to be told more first.
        """


@runtime_checkable
class Inheriting(Protocol):
    """A Searcher that can take over what an earlier study has evaluated.

    Promises: `inherit` is called before anything is asked for, if at all, and the same history brings a fresh searcher
    to the same state. What was evaluated on every task is not proposed again.
    """

    def inherit(self, history: Sequence[Evaluation]) -> None:
        """Take in evaluations of an earlier study, in the order in which it was told of them.

        Args:
            history: with the same experts under the same names, pruned ones among them. One that was not scored on
                every task of this study is not `ok`, and has the scores that it has.
        """


@runtime_checkable
class Hosting(Protocol):
    """A Searcher that takes in, while it runs, what another search over the same experts has evaluated.

    Promises: `host` may be called at any time between other calls; the same calls bring a fresh searcher to the same
    state. What it hosts may become a parent as if it were its own, and is not proposed again.
    """

    def host(self, evaluation: Evaluation) -> None:
        """Take in an evaluation of another search.

        Args:
            evaluation: of a candidate with a result on every task.
        """


def check_first(evaluations: Sequence[Evaluation]) -> None:
    """Raise RunError, with the reasons, if every candidate of a first population failed."""
    if not any(evaluation.ok for evaluation in evaluations):
        reasons = sorted({str(evaluation.reason) for evaluation in evaluations})
        raise RunError(
            f"all {len(evaluations)} first candidates failed: {'; '.join(reasons[:3])}; mend the cause", Hint.ANEW
        )
