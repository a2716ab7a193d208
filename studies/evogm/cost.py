"""What training costs: of 200 steps, by coordinates and by rows, and of whole searches as published: python cost.py"""

from __future__ import annotations

import time

import numpy as np

from sae_moo.objectives import Evaluation
from sae_moo.searchers.evogm import EvogmSearcher
from sae_moo.searchers.generators import Generators
from sae_moo.searchers.ground import Ground
from sae_moo.searchers.learning import Evogm, Training
from sae_moo.searchers.space import CoefficientSpace
from sae_moo.testing.searchers import OBJECTIVES

REPEATS = 3
EXPERTS = tuple(f"e{i}" for i in range(10))
BLOCKS = 30
EVALUATIONS = 160  # two rounds, as published


def search(granularity: str, seed: int) -> float:
    """Return the processor seconds that EvoGM itself takes for a search as published, with ten experts."""
    ground = Ground(EXPERTS, (True,) * BLOCKS, granularity=granularity, most=0.0)
    space, random = CoefficientSpace(ground, -1.0, 1.0), np.random.default_rng(seed)
    begun = time.process_time()
    searcher = EvogmSearcher(space, OBJECTIVES, (), settings=Evogm(), name="evogm", population=20, seed=seed)
    for _ in range(EVALUATIONS):
        (proposal,) = searcher.ask(1)
        good = (float(random.random()),)
        searcher.tell(proposal, Evaluation(proposal.recipe, {"a": good, "b": good}, 0.0, (0.0,) * BLOCKS))
    return time.process_time() - begun


def main() -> None:
    for granularity in ("model", "block"):
        seconds = [search(granularity, seed) for seed in range(REPEATS)]
        share = np.median(seconds) / EVALUATIONS
        print(
            f"{EVALUATIONS} evaluations, ten experts, coefficients per {granularity}: {np.median(seconds):.1f} s "
            f"({min(seconds):.1f}, {max(seconds):.1f}), {share:.1%} of a search whose evaluations take a second"
        )
    print(
        "| coordinates | rows of the history | mode | processor seconds, median (least, most) |\n| --- | --- | --- | --- |"
    )
    for dim in (10, 300):
        for rows in (20, 80, 400):
            for mode, most in (("dual", None), ("single", None), ("dual", 32)):
                if most is not None and rows < 400:  # it makes no difference
                    continue
                x = np.random.default_rng(0).uniform(-1, 1, (rows, dim))
                count = int(0.3 * rows)
                seconds = []
                for seed in range(REPEATS):
                    networks = Generators(dim, Training(mode=mode, rows=most), (seed,))
                    begun = time.process_time()
                    networks.train(x[:count], x[count:], (seed, 1))
                    seconds.append(time.process_time() - begun)
                how = mode if most is None else f"{mode}, {most} rows a step"
                print(f"| {dim} | {rows} | {how} | {np.median(seconds):.2f} ({min(seconds):.2f}, {max(seconds):.2f}) |")


if __name__ == "__main__":
    main()
