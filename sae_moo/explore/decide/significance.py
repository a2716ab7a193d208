"""Whether one model is better than another on the same instances."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
LEVEL = 0.05
"""Differences with a smaller p are called significant."""
TEST = "sign-flip test of the studentized paired difference over instances (one task of 0/1 scores: McNemar, exact)"
HOW_TESTED = f"[95 % interval], p: {TEST}; significant where p < {LEVEL:g}"
EXACT = 2**18  # most outcomes that are enumerated
DRAWS = 10_000  # where there are more


@dataclass(frozen=True, slots=True)
class Paired:
    """One model minus another on the same instances.

    Args:
        mean: difference of the means.
        stderr: its standard error over instances; NaN where a task has a single one.
        low, high: ends of its 95 % interval (Student's t, degrees of freedom after Welch and Satterthwaite); likewise.
        p: two-sided, of `TEST`.
        won: on how many instances the model scores higher.
        lost: on how many it scores lower.
        tied: on how many both score the same.
    """

    mean: float
    stderr: float
    low: float
    high: float
    p: float
    won: int
    lost: int
    tied: int = 0

    @property
    def equal(self) -> bool:
        """Whether both score the same on every instance, so that there is nothing to test."""
        return self.tied > 0 and not self.won and not self.lost

    @property
    def significant(self) -> bool:
        """Whether chance alone would hardly give such a difference: p below `LEVEL`."""
        return self.p < LEVEL

    @property
    def verdict(self) -> str:
        """The interval, p and whether that is significant, as tables and pages show it; `HOW_TESTED` explains it.

        Where the two are equal, that alone.
        """
        if self.equal:
            return f"equal on all {self.tied:,} items" if self.tied > 1 else "equal on the one item"
        interval = "" if math.isnan(self.low) else f"[{self.low:+.3f}, {self.high:+.3f}] "
        return f"{interval}{p_text(self.p)}, {'significant' if self.significant else 'not significant'}"


def p_text(p: float) -> str:
    """Return a p value as tables and pages show it."""
    return f"p={p:.3f}" if p >= 0.001 else "p<0.001"


def paired(
    model: Mapping[str, ArrayLike],
    other: Mapping[str, ArrayLike],
    tasks: Sequence[str],
    shares: Sequence[float] | None = None,
    seed: int = 0,
) -> Paired:
    """Return a model minus another.

    Were the two alike, every instance's difference could as well have the other sign. p is the share of all ways to
    choose these signs that give a statistic as large, on either side: exact where they can be enumerated, else over
    `DRAWS` random ones. The statistic is the mean over its standard error, so that tasks on which one model gains and
    others on which it loses do not count as noise (Chung and Romano 2013); few differing instances stay few, where a t
    distribution would call four of four significant.

    Args:
        model: task name -> score per instance.
        other: the same of the other model, on the same instances in the same order.
        tasks: which tasks count, at least one.
        shares: what each counts, positive with the sum 1; None: the same, however many instances it has.
        seed: of the random signs.

    Raises:
        ValueError: if a task's instances are not as many.
    """
    rows = []
    for i, task in enumerate(tasks):
        mine, theirs = np.asarray(model[task], dtype=np.float64), np.asarray(other[task], dtype=np.float64)
        if mine.shape != theirs.shape:
            raise ValueError(f"task {task}: expected scores on the same instances, got {mine.shape} and {theirs.shape}")
        rows.append((mine - theirs) * (1.0 if shares is None else shares[i] * len(tasks)))
    mean = float(sum(row.mean() for row in rows)) / len(rows)
    stderr = reach = math.nan
    if all(len(row) > 1 for row in rows):
        variances = np.array([row.var(ddof=1) / len(row) for row in rows]) / len(rows) ** 2
        total = float(variances.sum())
        stderr, reach = math.sqrt(total), 0.0
        if total > 0:
            from scipy import stats  # here: it takes a second, and most commands test nothing

            freedom = total**2 / float(sum(v**2 / (len(row) - 1) for v, row in zip(variances, rows, strict=True)))
            reach = float(stats.t.ppf(0.975, freedom)) * stderr
    won, lost = (int(sum((sign * row > 0).sum() for row in rows)) for sign in (1, -1))
    tied = sum(map(len, rows)) - won - lost
    return Paired(mean, stderr, mean - reach, mean + reach, _sign_flip(rows, seed), won, lost, tied)


def _sign_flip(rows: Sequence[Array], seed: int) -> float:
    """Return the two-sided p of the mean over tasks of differences whose signs are as good as random."""
    task_of, sizes, counts = [], [], []  # of equal differences of a task only the number of positive ones matters
    for task, row in enumerate(rows):
        found = np.unique(np.round(np.abs(row[row != 0]), 9), return_counts=True)
        task_of += [task] * len(found[0])
        sizes += found[0].tolist()
        counts += found[1].tolist()
    if not sizes:
        return 1.0
    count, n = np.array(counts), np.array([len(row) for row in rows])
    to_task = np.zeros((len(sizes), len(rows)))
    to_task[np.arange(len(sizes)), task_of] = sizes
    squares = np.array([float(row @ row) for row in rows])

    def statistic(sums: Array) -> Array:
        """Return the squared mean over its variance, for sums of differences of shape (ways, tasks)."""
        variance = (np.maximum(0.0, squares - sums**2 / n) / (np.maximum(1, n - 1) * n)).sum(axis=1)
        found: Array = (sums / n).sum(axis=1) ** 2 / np.maximum(variance, 1e-12)
        return found

    least = float(statistic(np.array([[row.sum() for row in rows]]))[0]) * (1 - 1e-9) - 1e-12
    if math.prod(each + 1 for each in counts) <= EXACT:
        positive = np.stack(
            [g.ravel() for g in np.meshgrid(*(np.arange(c + 1) for c in counts), indexing="ij")], axis=1
        )
        from scipy import stats

        chance = np.prod(stats.binom.pmf(positive, count, 0.5), axis=1)
        return min(1.0, float(chance[statistic((2 * positive - count) @ to_task) >= least].sum()))
    rng, beyond, block = np.random.default_rng(seed), 0, 500
    alone = count == 1
    for _ in range(DRAWS // block):
        signed = np.empty((block, len(counts)))
        signed[:, alone] = 2 * rng.integers(0, 2, size=(block, int(alone.sum())), dtype=np.int8) - 1
        signed[:, ~alone] = 2 * rng.binomial(count[~alone], 0.5, size=(block, int((~alone).sum()))) - count[~alone]
        beyond += int((statistic(signed @ to_task) >= least).sum())
    return (beyond + 1) / (DRAWS + 1)
