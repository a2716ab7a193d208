"""Draw every annealing schedule over three cycles, and what an adaptive one learns from two made-up searches.

python studies/annealing/study.py --output studies/annealing/schedules.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from sae_moo.searchers.schedule import SHAPES, Adaptive, Bandit, Schedule

STEPS = 8 * (1 + 2 + 4)


def fixed(axes, shape: str) -> None:
    """Draw one schedule with its ends."""
    schedule = Schedule(schedule=shape, low=0.0, high=0.6, period=8, growth=2)
    values = [schedule(step) for step in range(STEPS)]
    axes.step(range(STEPS), values, where="post", color="#1f5fa8", linewidth=1.3)
    axes.set_title(f"{shape}: {min(values):.3f} to {max(values):.3f}", fontsize="small", loc="left")


def learned(axes, paying: float, seed: int = 0) -> None:
    """Draw the probabilities of an adaptive schedule's arms where children pruned near one ratio gain the most."""
    rng, bandit = np.random.default_rng(seed), Bandit(Adaptive(low=0.0, high=0.6))
    rows = []
    for _ in range(240):
        ratio = bandit.draw(rng)
        bandit.credit(ratio, max(0.0, rng.normal(0.01 * np.exp(-(((ratio - paying) / 0.12) ** 2)), 0.004)))
        rows.append(bandit.probabilities)
    axes.stackplot(range(240), np.array(rows).T, labels=[f"{ratio:.1f}" for ratio in bandit.settings.ratios])
    axes.set_title(f"adaptive, {paying} pays (made up)", fontsize="small", loc="left")
    axes.set(xlabel="child", ylabel="probability")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("schedules.png"))
    arguments = parser.parse_args()
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    panels = figure.subplots(2, 4).ravel()
    for axes, shape in zip(panels, SHAPES, strict=False):
        fixed(axes, shape)
        axes.set(ylim=(-0.02, 0.62), xlabel="generation", ylabel="pruning ratio")
    learned(panels[5], 0.2)
    learned(panels[6], 0.5)
    panels[6].legend(fontsize="x-small", title="ratio", loc="upper left", bbox_to_anchor=(1.02, 1.0))
    panels[7].set_visible(False)
    figure.savefig(arguments.output, dpi=130)


if __name__ == "__main__":
    main()
