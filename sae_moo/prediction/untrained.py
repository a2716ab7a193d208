"""What may be said of pairs where no merge was evaluated: a signal of how alike and how sure the two are on the probes.

A signal is no score: it orders pairs and chains on one task, as far as it does, and says nothing of operators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from scipy.stats import rankdata

from sae_moo.errors import InputError
from sae_moo.prediction.table import FeatureTable, Key, Numbers

SIGNALS: Mapping[str, int] = {
    "argmax_agreement": 1,
    "kl_forward_mean": -1,
    "kl_backward_mean": -1,
    "entropy_first": -1,
    "entropy_second": -1,
}
"""Feature -> whether more of it speaks for a merge (1) or against it (-1).

What models answer alike is kept by a merge, and who is unsure of everything is ruined. Likeness of weights is left out:
in what is published (arXiv 2601.22285) and on our catalogue it hardly goes with what merges score.
"""


def untrained(table: FeatureTable) -> dict[Key, float]:
    """Return the signal of every pair and task, in [0, 1]: the mean of its ranks among the pairs of that task.

    A feature that is missing for a pair is left out of its mean.

    Raises:
        InputError: if the table has none of `SIGNALS`, or a pair none that is known.
    """
    names = [name for name in SIGNALS if name in table.names]
    if not names:
        raise InputError(f"features: expected one of {', '.join(SIGNALS)} at least, to rank by without training data")
    signals = {}
    for task in table.tasks:
        keys = [key for key in table.rows if key[2] == task]
        ranks = np.stack([_ranks(SIGNALS[name] * table.only((name,)).matrix(keys)[:, 0]) for name in names])
        known = ~np.isnan(ranks)
        for key, column, there in zip(keys, ranks.T, known.T, strict=True):
            if not there.any():
                raise InputError(f"features of {' + '.join(key)}: {', '.join(names)} are all missing")
            signals[key] = float(column[there].mean())
    return signals


def chain_signal(signals: Mapping[Key, float], experts: Sequence[str], task: str) -> float:
    """Return the signal of experts merged in an order: the mean over all pairs among them, in that order.

    Args:
        signals: of pairs, see `untrained`.
        experts: two or more.
        task: the task.
    """
    return float(np.mean([signals[first, second, task] for first, second in combinations(experts, 2)]))


def _ranks(numbers: Numbers) -> Numbers:
    """Return where numbers stand among those that are known, from 0 to 1, ties at their mean; NaN for the others."""
    known = ~np.isnan(numbers)
    ranks = np.full(numbers.shape, np.nan)
    ranks[known] = (rankdata(numbers[known]) - 1) / (known.sum() - 1) if known.sum() > 1 else 0.5
    return ranks
