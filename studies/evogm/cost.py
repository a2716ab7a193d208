"""What training costs: processor seconds of 200 steps, by coordinates and by rows: python cost.py"""

from __future__ import annotations

import time

import numpy as np

from sae_moo.searchers.generators import Generators
from sae_moo.searchers.learning import Training

REPEATS = 3


def main() -> None:
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
