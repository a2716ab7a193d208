"""What would have been asked of the candidates of a finished search under other rules of racing, and by anchors?

    sae-moo search configs/quickstart.yaml --set study.name=full0 --set search.prescreening.factor=1   # every instance
    python studies/racing/replay.py runs/full0 runs/full1

The candidates stay those of the search, so that only the rule differs. Orders of the instances are drawn anew.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sae_moo.evaluate.anchors import anchors
from sae_moo.evaluate.asking import Racing
from sae_moo.evaluate.racing import Race
from sae_moo.explore.run import Run
from sae_moo.objectives import Evaluation
from sae_moo.objectives.front import Front

FIRST = 24  # candidates of the first generation, which do not race
BLOCKS = 10


class Predicted(Race):
    """A race predicted by other candidates than the front."""

    def __init__(
        self, others: Sequence[Evaluation], rule: Racing, rivals: Front[Evaluation], order, looks, sparsity
    ) -> None:
        super().__init__(rule, rivals, order, looks, sparsity)
        if others:
            self._known = {t: np.array([np.array(each.scores[t])[order[t]] for each in others]).T for t in self._tasks}
        else:  # nothing is known: a constant, which is taken off its own mean
            self._known = {t: np.zeros((len(order[t]), 1)) for t in self._tasks}


def asked(run: Run, evaluations: Sequence[Evaluation], rule: Racing, by: str) -> tuple[float, int, float]:
    """Return the share of instances asked after the first generation, how many were stopped wrongly, and hypervolume.

    Args:
        run: the run they come from.
        evaluations: all with all instances, in order.
        rule: of the race.
        by: what predicts: nothing, front, or the front and a number of the candidates before.
    """
    rivals = Front(run.objectives, run.config.constraint_list())
    counts = {task: len(row) for task, row in evaluations[0].scores.items()}
    rng = np.random.default_rng(0)
    order = {task: rng.permutation(n) for task, n in counts.items()}
    looks = {task: [round(n * (i + 1) / rule.blocks) for i in range(rule.blocks)] for task, n in counts.items()}
    used, wrong, whole = [], 0, []
    for i, evaluation in enumerate(evaluations):
        stopped = None
        if i >= FIRST:
            known = {"nothing": [], "front": rivals.members}.get(by)
            others = [*rivals.members, *whole[-int(by) :]] if known is None else known
            race = Predicted(others, rule, rivals, order, looks, evaluation.sparsity)
            rows = {task: np.array(row)[order[task]] for task, row in evaluation.scores.items()}
            for block in range(rule.blocks - 1):
                if race.beaten({task: row[: looks[task][block]] for task, row in rows.items()}) is not None:
                    stopped = block
                    break
            everything = sum(counts.values())
            used.append(1.0 if stopped is None else sum(looks[t][stopped] for t in counts) / everything)
        if stopped is None:
            rivals = rivals.after(evaluation)
            whole.append(evaluation)
            continue
        value = np.array([each.value(evaluation) for each in run.objectives])
        ahead = rivals.points + rule.margin - value
        wrong += not bool(((ahead >= 0).all(axis=1) & (ahead > 0).any(axis=1)).any())
    return float(np.mean(used)), wrong, rivals.volume


def spread(evaluations: Sequence[Evaluation], experts: int, count: int, random: bool) -> float:
    """Return how far a candidate's mean over a part of its instances is from that over all, beside what all share."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(10 if random else 1):
        error = 0.0
        for task in evaluations[0].scores:
            scores = np.array([each.scores[task] for each in evaluations])
            chosen = rng.permutation(scores.shape[1])[:count] if random else anchors(scores[:experts], count)
            error = error + scores[:, chosen].mean(axis=1) - scores.mean(axis=1)
        found.append(np.std(error[FIRST:]) / len(evaluations[0].scores))
    return float(np.mean(found))


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs that asked every instance")
    runs = [Run.open(folder) for folder in parser.parse_args().runs]
    recorded = [
        [record.evaluation for record in run.trials() if record.state == "complete" and record.repeats is None]
        for run in runs
    ]
    print("| confidence | margin | predicted by | instances asked | stopped wrongly | hypervolume lost |")
    print("|---|---|---|---|---|---|")
    rules = [(0.95, 0.0, by) for by in ("nothing", "front", "20", "60")]
    rules += [(confidence, margin, "front") for confidence in (0.8, 0.9, 0.95) for margin in (0.0, 0.01, 0.02)]
    for confidence, margin, by in dict.fromkeys(rules):
        rows = [
            (*asked(run, own, Racing(blocks=BLOCKS, confidence=confidence, margin=margin), by), run.hypervolume())
            for run, own in zip(runs, recorded, strict=True)
        ]
        share, wrong, lost = (
            np.mean([r[0] for r in rows]),
            sum(r[1] for r in rows),
            np.mean([r[3] - r[2] for r in rows]),
        )
        told = by if by in ("nothing", "front") else f"front and {by} before"
        print(f"| {confidence} | {margin} | {told} | {share:.2f} | {wrong} | {lost:.4f} |", flush=True)
    print("\n| instances of a task | spread by anchors | by a random part |\n|---|---|---|")
    for count in (20, 40, 80):
        cells = [
            np.mean(
                [
                    spread(own, len(r.config.models.experts) + 1, count, random)
                    for r, own in zip(runs, recorded, strict=True)
                ]
            )
            for random in (False, True)
        ]
        print(f"| {count} | {cells[0]:.4f} | {cells[1]:.4f} |")


if __name__ == "__main__":
    main()
