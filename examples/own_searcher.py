"""A search algorithm of your own, which climbs from the best so far: ``python examples/own_searcher.py``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

import sae_moo as sm
from sae_moo import Proposal

STEP = 0.15
"""Standard deviation of one step, of weights and sparsity alike."""


class Climber:
    """Merges all experts and prunes; each step begins at the best so far, by a preference drawn anew.

    What it proposes depends on the seed and on what it is told, and on nothing else: for this reason a search that was
    stopped goes on as if it had not been.

    Args:
        bench: what the configuration names, opened.
        method: merge method, of the house or of an installed package (`package/name`).
    """

    def __init__(self, bench: sm.Bench, method: str) -> None:
        self.ground, self.method = bench.ground(), method
        self.objectives = bench.config.objective_list()
        self.random = np.random.default_rng(bench.config.study.seed)
        self.found: list[tuple[np.ndarray, np.ndarray]] = []  # vector and objectives of every candidate that went well
        self.out: np.ndarray | None = None

    def ask(self, n: int) -> Sequence[Proposal]:
        """Return the next candidate, none while the last one is being evaluated."""
        if self.out is not None or n < 1:
            return []
        self.out = self.next()
        *weights, sparsity = self.out.tolist()
        merged = sm.Merge(self.method, tuple(map(sm.Expert, self.ground.experts)), weights)
        pruned = self.ground.pruned(merged, np.full(self.ground.groups, sparsity))
        return [Proposal(self.ground.candidate(pruned), operator="climb", vector=tuple(self.out.tolist()))]

    def tell(self, proposal: Proposal, evaluation: sm.Evaluation) -> None:  # noqa: ARG002
        """Remember what came of it; a failure is never stepped from."""
        assert self.out is not None
        if evaluation.ok:
            values = np.array([objective.value(evaluation) for objective in self.objectives])
            self.found.append((self.out, values))
        self.out = None

    def next(self) -> np.ndarray:
        """Return weights of the experts, above 0, and a sparsity."""
        count = len(self.ground.experts)
        if not self.found:
            return np.array([1 / count] * count + [0.0])
        preference = self.random.dirichlet(np.ones(len(self.objectives)))
        best, _ = max(self.found, key=lambda each: float(preference @ each[1]))
        step = best + self.random.normal(0, STEP, count + 1)
        return np.round([*step[:-1].clip(0.01, 2), step[-1].clip(0, self.ground.most)], 4)


def main(arguments: Sequence[str] | None = None) -> None:
    """Search the zoo with it; the same command goes on, with a larger budget as well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", default="task_arithmetic", help="merge method, or package/name")
    parser.add_argument("--evaluations", type=int, default=60)
    parser.add_argument("--items", type=int, default=100, help="instances of each task and split")
    options = parser.parse_args(arguments)
    experts = {name: f"zoo:{name}" for name in ("math", "lingua", "logic")}
    config = sm.Config.from_dict(
        {
            "study": {"name": f"climber-{options.method.replace('/', '-')}"},  # the study is the climber's alone
            "models": {"base": "zoo:base", "experts": experts},
            "tasks": [{"name": f"zoo_{name}", "search": options.items, "test": options.items} for name in experts],
            "objectives": [{"mean": [f"zoo_{name}" for name in experts], "name": "accuracy"}, "sparsity"],
            "search": {"evaluations": options.evaluations},
        }
    )
    run = sm.search(config, searcher=lambda bench: Climber(bench, options.method))
    for record in run.front():
        print(record.number, record.values)
    print(f"next: sae-moo pick {config.study.name}")


if __name__ == "__main__":
    main()
