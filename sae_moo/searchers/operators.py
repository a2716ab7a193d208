"""Breeding of lineages as pymoo operators: first population, attraction mating, zero-aware crossover, pruning-merging.

Sources: Zhang, Zhang et al. 2026 (SAE, arXiv 2602.08218); Abrantes et al. 2025 (M2N2, arXiv 2508.16204); the group-wise
draws, the scaling of the child's task vector and the targets per group are ours. What was measured of them, over seeds:
`studies/zoo/`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymoo.core.crossover import Crossover
from pymoo.core.duplicate import DuplicateElimination
from pymoo.core.individual import Individual
from pymoo.core.mating import Mating
from pymoo.core.mutation import Mutation
from pymoo.core.population import Population
from pymoo.core.sampling import Sampling
from pymoo.core.selection import Selection

from sae_moo.recipe import BASE, STRUCTURED, Cast, Expert, Merge, Recipe
from sae_moo.recipe.mixing import mixing_weights
from sae_moo.recipe.rows import Scalar
from sae_moo.searchers.allocation import inherited
from sae_moo.searchers.alternatives import alternatives
from sae_moo.searchers.breeding import ABLATION, OPERATORS, Ablation, Operators
from sae_moo.searchers.ground import DIGITS, RANDOM, Ground
from sae_moo.searchers.individuals import ALTERNATIVES, ORIGIN, TOTAL, Origin, Rng, born, required, row_of
from sae_moo.searchers.problem import EVALUATION
from sae_moo.searchers.ratio import RATIO
from sae_moo.searchers.selection import AttractionMating
from sae_moo.searchers.space import CoefficientSpace
from sae_moo.searchers.structure import Structure, Structures, built, structure_of


class LineageSampling(Sampling):  # type: ignore[misc]  # pymoo carries no types
    """First population: every expert, the base, simple merges, then random group-wise merges pruned at random ratios.

    Where whole parts go beside scattered weights, each of the random ones is pruned in one scope alone, or in all.

    Args:
        ground: experts, groups, dtype, pruning.
        sparsest: largest ratio drawn.
        settings: `tilt`, the slope of drawn ratios over the blocks (`Ground.random_merge`).
        ablation: `ladder`, how many of the random ones give way to the uniform average pruned to evenly spaced ratios.
    """

    def __init__(
        self,
        ground: Ground,
        sparsest: float = 0.6,
        settings: Operators = OPERATORS,
        ablation: Ablation = ABLATION,
    ) -> None:
        super().__init__()
        self.ground = ground
        self.sparsest = sparsest
        self.settings = settings
        self.ablation = ablation

    def do(
        self, problem: Any, n_samples: int, *args: Any, random_state: Rng | None = None, **kwargs: Any
    ) -> Population:
        """Return `n_samples` individuals; see the class."""
        rng, ground, settings = required(random_state), self.ground, self.settings
        if ground.structured:
            count = min(n_samples, len(ground.starting_recipes()) + self.ablation.ladder)
            drawn = ground.first(count, rng, self.sparsest, self.ablation.ladder)
            structures = Structures(ground, settings)
            for number in range(n_samples - len(drawn)):
                merged = ground.task_arithmetic(ground.random_weights(rng, settings.tilt))
                structure = structures.first(number, self.sparsest, settings.tilt, rng)
                drawn.append((RANDOM, ground.candidate(built(merged, structure, ground))))
        else:
            drawn = ground.first(n_samples, rng, self.sparsest, self.ablation.ladder, settings.tilt)
        return born([(recipe, Origin(operator)) for operator, recipe in drawn])


class CoefficientSampling(Sampling):  # type: ignore[misc]
    """First population of vectors: the same merges as `LineageSampling`, as far as vectors can say them.

    Args:
        space: the space of vectors.
        sparsest: largest ratio drawn.
    """

    def __init__(self, space: CoefficientSpace, sparsest: float = 0.6) -> None:
        super().__init__()
        self.space = space
        self.sparsest = sparsest

    def _do(self, problem: Any, n_samples: int, *args: Any, random_state: Rng | None = None, **kwargs: Any) -> Any:
        return self.space.first(n_samples, required(random_state), self.sparsest)


class ZeroAwareCrossover(Crossover):  # type: ignore[misc]
    """Merge two parents group by group: their weights, zero-aware, or anew from the experts by how they are mixed.

    The share of the first parent is drawn per group around the local SAE ratio ``T_A / (T_A + T_B)`` (our reading of
    the paper: the same form as its global ratio, from the sparsity of the group): one deviation for the whole child
    plus one per group. With probability `split` the shares are mirrored from a random group on.

    With probability `remerge` the child is task arithmetic on the experts by its parents' mixing weights: what pruning
    took from a parent is not lost to it, and its recipe is as short as the first. With probability `keep` it has the
    first parent's mixing weights and only gets another sparsity. With probability `stretch` the weights are moved by
    N(0, `reach`) per expert and N(0, `wobble`) per group and expert.

    Other children are the zero-aware merge of the parents' weights: where one is zero the other's take the place. With
    probability `stretch` their task vectors are scaled by ``1 + e``, e ~ N(0, `reach`), since convex mixing alone
    cannot leave the hull.

    Args:
        ground: experts, groups, dtype.
        settings: `spread` and `jitter` of the shares, `remerge` and `keep`, `stretch`, `reach` and `wobble`.
        ablation: `split`; and `zero_aware`, without which other children are plain linear merges that are not scaled.

    Attributes:
        method: draws the merge method of each child that is merged anew (`methods.MethodChoice.drawn`); None: all are
            task arithmetic.
    """

    def __init__(self, ground: Ground, settings: Operators = OPERATORS, ablation: Ablation = ABLATION) -> None:
        super().__init__(n_parents=2, n_offsprings=1, prob=1.0)
        self.ground = ground
        self.settings = settings
        self.ablation = ablation
        self.method: Callable[[Rng], tuple[str, tuple[tuple[str, Scalar], ...], dict[str, float]]] | None = None
        self._mixing: dict[Recipe, NDArray[np.float64]] = {}

    def do(
        self, problem: Any, pop: Any, parents: Any = None, *args: Any, random_state: Rng | None = None, **kwargs: Any
    ) -> Population:
        """Return one child per pair.

        Args:
            problem: the pymoo problem; not used.
            pop: pairs of individuals, or a population with `parents` as index pairs into it.
            parents: index pairs, shape (matings, 2), or None.
            *args: pymoo's; not used.
            random_state: the generator drawn from; needed.
            **kwargs: pymoo's; not used.
        """
        rng = required(random_state)
        pairs = [pop[pair] for pair in parents] if parents is not None else pop
        return born([self._child(first, second, rng) for first, second in pairs])

    def _child(self, first: Individual, second: Individual, rng: Rng) -> tuple[Recipe, Origin]:
        rows, settings = self.ground.rows, self.settings
        share = self._ratio(first, second) + rng.normal(0.0, settings.spread)
        share = share + rng.normal(0.0, settings.jitter, rows)
        if rng.random() < self.ablation.split and rows > 1:
            place = int(rng.integers(1, rows))
            share[place:] = 1.0 - share[place:]
        share = np.clip(share, 0.0, 1.0).round(DIGITS)
        inputs, numbers = (first.get("X")[0], second.get("X")[0]), dict[str, float]()
        if rng.random() < settings.remerge:
            (merged, numbers), name = self._anew(inputs, share, rng), "merge anew"
        else:
            merged = self._bred(inputs, share, rng)
            name = "zero-aware crossover" if self.ablation.zero_aware else "crossover"
        parents = tuple(parent.get(EVALUATION) for parent in (first, second))
        return self.ground.candidate(merged), Origin(name, parents, numbers)

    def _weights(self, recipe: Recipe) -> NDArray[np.float64]:
        """Return the mixing weights of a recipe, shape (rows, experts)."""
        ground = self.ground
        found = mixing_weights(recipe, (BASE, *ground.experts), ground.groups, self._mixing)[:, 1:]
        return found if ground.rows > 1 else found.mean(axis=0, keepdims=True)

    def _moved(self, weights: NDArray[np.float64], rng: Rng) -> NDArray[np.float64]:
        if rng.random() < self.settings.stretch:
            weights = weights + rng.normal(0.0, self.settings.reach, len(self.ground.experts))
            weights = weights + rng.normal(0.0, self.settings.wobble, weights.shape)
        return weights

    def _anew(
        self, parents: tuple[Recipe, ...], share: NDArray[np.float64], rng: Rng
    ) -> tuple[Recipe, dict[str, float]]:
        first, second = map(self._weights, parents)
        if rng.random() < self.settings.keep:
            share = np.ones(self.ground.rows)
        weights = self._moved(share[:, None] * first + (1.0 - share[:, None]) * second, rng)
        weights = self._dropped(weights, first, rng) if self.settings.drop else weights
        if self.method is None:
            return self.ground.task_arithmetic(weights), {}
        method, settings, numbers = self.method(rng)
        return self.ground.summed(method, weights, settings), numbers

    def _dropped(self, weights: NDArray[np.float64], first: NDArray[np.float64], rng: Rng) -> NDArray[np.float64]:
        """Return weights without the experts that the first parent lacks in a block, give or take a stretch of blocks.

        A bit per expert and block says whether the expert takes part there, as ENMP has it (ACL 2026).
        """
        absent = (first == 0.0) & (first != 0.0).any(axis=0)  # an expert that is nowhere was not dropped, it is not in
        weights = np.where(absent, 0.0, weights)
        if self.ground.rows == 1 or rng.random() >= self.settings.drop:
            return weights
        expert = int(rng.integers(weights.shape[1]))
        rows = np.flatnonzero(absent[:, expert])
        if len(rows) and rng.random() < 0.5:
            start, stop = sorted(int(each) for each in rng.integers(len(rows), size=2))
            back = rows[start : stop + 1]
            weights[back, expert] = first[first[:, expert] != 0.0, expert].mean()
            return weights
        rows = np.flatnonzero(self.ground.prunable)
        start = int(rng.integers(len(rows)))
        length = 1 if rng.random() < 0.5 else int(rng.integers(1, len(rows) // 2 + 1))
        weights[rows[start : start + length], expert] = 0.0
        return weights

    def _bred(self, parents: tuple[Recipe, ...], share: NDArray[np.float64], rng: Rng) -> Recipe:
        settings = self.settings
        scale = 1.0 + rng.normal(0.0, settings.reach) if rng.random() < settings.stretch else 1.0
        weights = self.ground.weights(np.stack([share, 1.0 - share], axis=1))
        if not self.ablation.zero_aware:
            return Merge("linear", parents, weights)
        scaling = (("scale", round(max(scale, 0.0), DIGITS)),) if scale != 1.0 else ()
        return Merge("zero_aware", parents, weights, scaling)

    def _ratio(self, first: Individual, second: Individual) -> NDArray[np.float64]:
        a, b = first.get(TOTAL), second.get(TOTAL)
        if a is None or b is None:  # parents that AttractionMating did not choose
            return np.full(self.ground.rows, 0.5)
        ratio: NDArray[np.float64] = a / (a + b)
        return ratio if self.ground.rows > 1 else ratio.mean(keepdims=True)


class PruneMergeMutation(Mutation):  # type: ignore[misc]
    """One pruning-merging cycle: prune the parents before they merge, then the child to targets per group.

    Before: both parents of a merge of their weights at ``ratio * u``, u ~ U(0, 1). After: the target of a group is a
    level, the same for all groups, plus a shape over the groups (`allocation.inherited`). The level is ``ratio * u``
    with a new u, or inherited: the first parent's realised sparsity. With probability `switch` the child has what was
    asked of the first parent but for a level switch; with probability `graft` what was asked of the second parent,
    whatever merge that was for. Where whole parts go too they are inherited apart (`structure`).

    Args:
        ground: groups, dtype, pruning.
        ratio: the annealed pruning ratio eta, in [0, 1); `CyclicAnnealing` sets it before every mating. Or what draws
            the level of each child.
        settings: `prune_after` (whether the child is pruned), and all that `allocation` and `structure` read.
        ablation: `prune_before`, whether the parents are.
        allocations: with how many allocations of its budget a child is proposed; above 1 others are set beside it.
    """

    def __init__(
        self,
        ground: Ground,
        ratio: float | Callable[[Rng], float] = 0.0,
        settings: Operators = OPERATORS,
        ablation: Ablation = ABLATION,
        allocations: int = 1,
    ) -> None:
        super().__init__(prob=1.0)
        self.ground = ground
        self.ratio = ratio
        self.settings = settings
        self.ablation = ablation
        self.allocations = allocations
        self._structures = Structures(ground, settings)

    def do(
        self, problem: Any, pop: Any, inplace: bool = True, *args: Any, random_state: Rng | None = None, **kwargs: Any
    ) -> Population:
        """Return the population with pruned recipes; individuals are changed in place, as pymoo's mating expects."""
        rng = required(random_state)
        for individual in pop:
            origin = individual.get(ORIGIN) or Origin("mutation")
            eta = self.ratio(rng) if callable(self.ratio) else self.ratio
            child = self.mutated(individual.get("X")[0], origin, eta, rng)
            individual.X = row_of(child)
            if self.allocations > 1:
                others = alternatives(self.ground, child, self.allocations - 1, self.settings, rng)
                individual.set(ALTERNATIVES, others)
            individual.set(ORIGIN, replace(origin, numbers={**origin.numbers, RATIO: eta}))
        return pop

    def mutated(self, recipe: Recipe, origin: Origin, eta: float, rng: Rng) -> Recipe:
        """Return the candidate pruned at the annealed ratio `eta`."""
        inner = recipe.input if isinstance(recipe, Cast) else recipe
        ground = self.ground
        ratio = round(eta * float(rng.random()), DIGITS)
        if self.ablation.prune_before and ratio > 0 and isinstance(inner, Merge) and not any(map(_whole, inner.inputs)):
            inputs = tuple(ground.pruned(each, np.full(ground.groups, ratio)) for each in inner.inputs)
            inner = Merge(inner.method, inputs, inner.weights, inner.params)
        if self._grafts(origin, rng):
            inner = built(inner, structure_of(origin.parents[1].recipe, ground), ground)
        elif self.settings.prune_after and ground.structured:
            parents = [structure_of(each.recipe, ground) for each in origin.parents]
            inner = built(inner, self._structures.child(parents, eta, self._level(eta, rng), rng), ground)
        elif self.settings.prune_after:
            inner = self._scattered(inner, origin, eta, rng)
        return ground.candidate(inner)

    def _grafts(self, origin: Origin, rng: Rng) -> bool:
        """Draw whether a child has what was asked of its second parent, which may be none."""
        graft = self.settings.graft if self.settings.prune_after and len(origin.parents) > 1 else 0.0
        return graft > 0.0 and rng.random() < graft

    def _scattered(self, recipe: Recipe, origin: Origin, eta: float, rng: Rng) -> Recipe:
        """Return a merge pruned to a sparsity drawn per group, in one scope."""
        ground, settings = self.ground, self.settings
        here = np.array(ground.prunable)
        # structured scopes are asked in units, of which only some blocks' weights are part: no number to inherit
        parents = [] if ground.scope in STRUCTURED else [np.array(each.group_sparsity) for each in origin.parents]
        if parents and settings.switch:
            asked = [structure_of(each.recipe, ground) for each in origin.parents]
            levels, offsets = self._structures.scattered(asked, here, self._level(eta, rng), rng)
            return built(recipe, Structure(levels=levels, offsets=offsets), ground)
        targets = inherited(parents, here, ground.depth, rng, settings, self._level(eta, rng))
        return ground.pruned(recipe, targets)

    def _level(self, eta: float, rng: Rng) -> float:
        """Return the level of a child that does not inherit one."""
        return eta if callable(self.ratio) else eta * float(rng.random())


def lineage_operators(
    ground: Ground, sparsest: float, settings: Operators, ablation: Ablation, allocations: int = 1
) -> dict[str, Any]:
    """Return pymoo's arguments that make an algorithm breed as our own search does; `sparsest` of the first ones."""
    return {
        "sampling": LineageSampling(ground, sparsest, settings, ablation),
        "selection": AttractionMating(ablation),
        "crossover": ZeroAwareCrossover(ground, settings, ablation),
        "mutation": PruneMergeMutation(ground, settings=settings, ablation=ablation, allocations=allocations),
    }


class LineageMating(Mating):  # type: ignore[misc]
    """Breeds until there are as many children as asked, of which nobody has tried the recipe.

    pymoo's own looks at all of the population each time; whoever searches knows what was tried.

    Args:
        selection: chooses the parents.
        crossover: merges them.
        mutation: prunes their child.
        tried: recipes that were asked for or evaluated, those of the population among them; the owner adds to it.
    """

    def __init__(self, selection: Selection, crossover: Crossover, mutation: Mutation, tried: set[Recipe]) -> None:
        super().__init__(selection, crossover, mutation)
        self.tried = tried

    def do(
        self,
        problem: Any,
        pop: Any,
        n_offsprings: int,
        random_state: Rng | None = None,
        n_max_iterations: int | None = None,
        **kwargs: Any,
    ) -> Population:
        """Return as many children as asked, or fewer, where `n_max_iterations` matings gave no more.

        Args:
            problem: the pymoo problem.
            pop: evaluated individuals.
            n_offsprings: how many children.
            random_state: the generator drawn from; needed.
            n_max_iterations: how many matings at most; None: 100.
            **kwargs: pymoo's.
        """
        children: dict[Recipe, Individual] = {}
        for _ in range(n_max_iterations or self.n_max_iterations):
            missing = n_offsprings - len(children)
            for child in self._do(problem, pop, missing, random_state=random_state, **kwargs):
                recipe = child.X[0]
                if recipe not in self.tried:
                    children.setdefault(recipe, child)
            if len(children) >= n_offsprings:
                break
        return Population.create(*list(children.values())[:n_offsprings])


class RecipeDuplicates(DuplicateElimination):  # type: ignore[misc]
    """Drop candidates whose recipe is already in the population, among the offspring, or in `seen`.

    Args:
        seen: recipes evaluated before, whatever became of them; the owner adds to it.
    """

    def __init__(self, seen: set[Recipe] | None = None) -> None:
        super().__init__()
        self.seen = set() if seen is None else seen

    def do(self, pop: Any, *others: Any, return_indices: bool = False, to_itself: bool = True) -> Any:
        """Return who is left of a population, in its order.

        Args:
            pop: individuals.
            *others: populations whose recipes are taken.
            return_indices: whether to return, too, whose places these are, and those of the others.
            to_itself: whether what repeats one of `pop` that comes before it, or is in `seen`, is dropped.
        """
        taken = {individual.X[0] for other in others for individual in other}
        left: list[int] = []
        for i, individual in enumerate(pop):
            recipe = individual.X[0]
            if recipe not in taken and not (to_itself and recipe in self.seen):
                left.append(i)
                if to_itself:
                    taken.add(recipe)
        kept = pop if len(left) == len(pop) else pop[left]
        return (kept, left, sorted(set(range(len(pop))) - set(left))) if return_indices else kept


def _whole(recipe: Recipe) -> bool:
    """Return whether a recipe is an expert as it was given, which nothing of this search has pruned."""
    return isinstance(recipe, Expert)
