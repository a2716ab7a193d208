"""EvoGM on functions whose best is known, through the searchers' contract and without a model: python functions.py

A function of d variables is stood in for by a merge of d experts: a candidate's mixing weights, from -1 to 1, are its
variables. Every method has the same range, as many evaluations, and begins as it would with models: at every expert,
their average and a few like it, and uniform draws. Functions are moved by an offset drawn for each seed: their best would
lie at mixing weights of 0 otherwise, near which networks begin.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from pymoo.problems import get_problem

from sae_moo.objectives import Evaluation, TaskMean
from sae_moo.objectives.pareto import hypervolume
from sae_moo.recipe import Recipe
from sae_moo.searchers.evogm import EvogmSearcher
from sae_moo.searchers.generated import GeneratingNsga
from sae_moo.searchers.ground import Ground
from sae_moo.searchers.learning import Evogm, Generator
from sae_moo.searchers.nsga import NsgaSearcher
from sae_moo.searchers.scalar import CovarianceAdaptation, ParticleSwarm, RandomDraws, ScalarSearcher
from sae_moo.searchers.searcher import Searcher
from sae_moo.searchers.space import CoefficientSpace
from sae_moo.testing.searchers import drive

OBJECTIVES = (TaskMean("a", ("a",)), TaskMean("b", ("b",)))


@dataclass(frozen=True)
class Function:
    """A function of pymoo over mixing weights.

    Args:
        name: pymoo's.
        dim: number of variables.
        worst: value of each objective, above the best, that counts as nothing.
    """

    name: str
    dim: int
    worst: float

    def __call__(self, recipe: Recipe, offset: np.ndarray) -> Evaluation:
        """Return the evaluation of a merge: scores from 0 (`worst`, or more) to 1 (the best there is)."""
        problem = get_problem(self.name, n_var=self.dim)
        x = (np.array(recipe.input.weights) - offset) / 2 + 0.5  # [-1, 1] about the offset -> [0, 1]
        f = problem.evaluate(problem.xl + np.clip(x, 0, 1) * (problem.xu - problem.xl))
        scores = np.clip(1 - f / self.worst, 0, 1)
        return Evaluation(recipe, {"a": (scores[0],), "b": (scores[-1],)}, 0.0, (0.0,))


FUNCTIONS = [
    Function("sphere", 10, 2.5),
    Function("sphere", 30, 7.5),
    Function("rastrigin", 10, 400.0),
    Function("rastrigin", 30, 1200.0),
    Function("zdt1", 10, 8.0),
    Function("zdt1", 30, 8.0),
]


def scalar(kind: Callable[..., RandomDraws], space: CoefficientSpace, population: int, seed: int) -> Searcher:
    optimizer = kind(space, population, 0.0)
    return ScalarSearcher(space, OBJECTIVES, (), optimizer=optimizer, name=kind.__name__, seed=seed)


def evogm(settings: Evogm, space: CoefficientSpace, population: int, seed: int) -> Searcher:
    return EvogmSearcher(space, OBJECTIVES, (), settings=settings, name="evogm", population=population, seed=seed)


def nsga(generator: Generator | None, space: CoefficientSpace, population: int, seed: int) -> Searcher:
    kind = NsgaSearcher if generator is None else partial(GeneratingNsga, generator=generator)
    return kind(space, OBJECTIVES, population=population, seed=seed)


BEYOND = Evogm(selection="front", target="nearest", repeats=False, collapse=0.5)
METHODS: dict[str, Callable[[CoefficientSpace, int, int], Searcher]] = {
    "random": partial(scalar, RandomDraws),
    "cmaes": partial(scalar, CovarianceAdaptation),
    "pso": partial(scalar, ParticleSwarm),
    "evogm": partial(evogm, Evogm()),
    "evogm, single": partial(evogm, Evogm(mode="single")),
    "evogm, no shift": partial(evogm, Evogm(shift=False)),
    "evogm, retrained": partial(evogm, Evogm(retrain="iteration")),
    "evogm, beyond": partial(evogm, BEYOND),
    "nsga2": partial(nsga, None),
    "nsga2, generator": partial(nsga, Generator(share=0.5, adaptive=True)),
}


class Uniform(CoefficientSpace):
    """Mixing weights from -1 to 1, drawn uniformly by every method, as EvoGM's are."""

    def random(self, rng: np.random.Generator, sparsest: float) -> np.ndarray:  # noqa: ARG002  # as every space has it
        return rng.uniform(-1.0, 1.0, self.n_var)


def found(function: Function, method: str, evaluations: int, seed: int) -> float:
    """Return how much is missing to the best: in value for one objective, in hypervolume for two."""
    dim = function.dim
    ground = Ground(tuple(f"x{i}" for i in range(dim)), (True,), granularity="model", most=0.0)
    searcher = METHODS[method](Uniform(ground, -1.0, 1.0), max(2 * dim, 20), seed)
    offset = np.random.default_rng((seed, dim)).uniform(-0.5, 0.5, dim)
    if function.name.startswith("zdt"):
        offset = offset + 0.75  # its front is where all variables but one are smallest, which may lie out of reach
    told = [evaluation for _, evaluation in drive(searcher, lambda recipe: function(recipe, offset), evaluations)]
    scores = np.array([[evaluation.scores["a"][0], evaluation.scores["b"][0]] for evaluation in told])
    if function.name.startswith("zdt"):
        return 1 - hypervolume(scores)
    return float(1 - scores.max())


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evaluations", type=int, default=16, help="per variable; 16 are the two published rounds")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    given = parser.parse_args(arguments)
    heads = [f"{function.name} {function.dim}" for function in FUNCTIONS]
    print(f"| {given.evaluations} evaluations a variable | " + " | ".join(heads) + " | seconds |")
    print("| --- " * (len(heads) + 2) + "|")
    random = {}
    for method in dict.fromkeys(["random", *given.methods]):
        cells, begun = [], time.process_time()
        for function in FUNCTIONS:
            missing = np.log(
                [found(function, method, given.evaluations * function.dim, seed) for seed in range(given.seeds)]
            )
            random.setdefault((function.name, function.dim), missing)
            factor = random[function.name, function.dim] - missing
            half = 2.776 * factor.std(ddof=1) / np.sqrt(given.seeds) if given.seeds == 5 else float("nan")
            cells.append(
                f"{np.exp(factor.mean()):.2f} ({np.exp(factor.mean() - half):.2f}-{np.exp(factor.mean() + half):.2f})"
            )
        print(f"| {method} | " + " | ".join(cells) + f" | {time.process_time() - begun:.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
