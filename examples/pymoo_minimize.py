"""Our operators in the loop of pymoo, `minimize`, without a study: ``python examples/pymoo_minimize.py``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.optimize import minimize

import sae_moo as sm


def main(arguments: Sequence[str] | None = None) -> None:
    """Minimize what is maximized with the sign turned, over recipes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--population", type=int, default=12)
    parser.add_argument("--generations", type=int, default=5)
    parser.add_argument("--items", type=int, default=100, help="instances of each task")
    options = parser.parse_args(arguments)
    experts = {name: f"zoo:{name}" for name in ("math", "lingua", "logic")}
    config = sm.Config.from_dict(
        {
            "models": {"base": "zoo:base", "experts": experts},
            "tasks": [{"name": f"zoo_{name}", "search": options.items, "test": 0} for name in experts],
            "objectives": [{"mean": [f"zoo_{name}" for name in experts], "name": "accuracy"}, "sparsity"],
        }
    )
    bench = sm.Bench.open(config)
    ground = bench.ground()  # experts, groups, dtype and pruning of the configuration
    problem = sm.MergeProblem(sm.LineageSpace(ground), config.objective_list(), evaluate=bench.evaluator().evaluate)
    algorithm = NSGA2(
        options.population,
        sampling=sm.LineageSampling(ground),
        selection=sm.AttractionMating(),
        crossover=sm.ZeroAwareCrossover(ground),
        mutation=sm.PruneMergeMutation(ground),
        eliminate_duplicates=sm.RecipeDuplicates(),
    )
    annealing = sm.CyclicAnnealing(sm.Schedule(schedule="cosine", low=0.0, high=0.6, period=4))
    result = minimize(problem, algorithm, ("n_gen", options.generations), callback=annealing, seed=1)
    for (recipe,), values in zip(result.X, -result.F, strict=True):  # a recipe is the one variable
        print(values.round(3).tolist(), recipe.digest(bench.pool)[:8])


if __name__ == "__main__":
    main()
