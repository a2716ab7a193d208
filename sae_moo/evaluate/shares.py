"""One candidate asked by several workers: each asks whole batches of it, and the answers are put together exactly.

What a model answers to a request depends, in its last bits, on the batch that the request is in: on how many rows it
has and how far they are padded. Everything is therefore laid out as for one worker, and shares are cut between batches.
What travels is what came of the requests, for those of one instance may be in several shares.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from sae_moo.evaluate.batches import Readings
from sae_moo.objectives import Evaluation

BEFORE = -1
"""Stands for what comes before the first part."""


@dataclass(frozen=True, slots=True)
class ShareAnswers:
    """What a model answered to a share of the requests of a split.

    Args:
        layout: digest of how all of them were laid out.
        batches: into how many batches of a kind they fell: among more shares they are not split.
        undecided: whether it was not known, nor could be found out, how the model is read.
        readings: of its requests, those after a fault left out.
        texts: number of a prompt among all prompts -> what was written after it.
        fault: which part could not be written, or that it was `BEFORE` the first, and why; None: none.
        steady: whether it was laid out to the end as it was at the beginning: memory did not run out.
    """

    layout: str
    batches: int
    undecided: bool = False
    readings: Readings | None = None
    texts: Mapping[int, str] = field(default_factory=dict)
    fault: tuple[int, str] | None = None
    steady: bool = True


@dataclass(frozen=True, slots=True)
class Findings:
    """What a worker found out about a candidate with its share.

    Args:
        kept: what is known of it without asking; then there is nothing else.
        merged: the candidate's canonical JSON with every pruning scope resolved; None: as it was asked for.
        sparsity: realised, as in an `Evaluation`.
        group_sparsity: likewise.
        sparseness: likewise; told by the first share.
        unmerged: why it could not be merged; None: it was.
        short: whether memory ran out.
        answers: what it answered; None: it was not asked.
        seconds_merge: spent here.
        seconds_score: spent here.
        tokens: read here.
    """

    kept: Evaluation | None = None
    merged: str | None = None
    sparsity: float = 0.0
    group_sparsity: tuple[float, ...] = ()
    sparseness: tuple[float, ...] = ()
    unmerged: str | None = None
    short: bool = False
    answers: ShareAnswers | None = None
    seconds_merge: float = 0.0
    seconds_score: float = 0.0
    tokens: int = 0

    @property
    def most(self) -> int | None:
        """Among how many shares what is asked can be split; None: that was not found out."""
        return None if self.answers is None or not self.answers.batches else self.answers.batches


def fit(shares: Sequence[ShareAnswers]) -> bool:
    """Say whether shares are of one whole: all were cut from the same layout."""
    return all(share.steady for share in shares) and len({share.layout for share in shares}) == 1


def digest_of(*facts: object) -> str:
    """Return a digest of how requests are laid out."""
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def cut(costs: Sequence[int], shares: int) -> list[range]:
    """Cut a row of batches into shares, so that the dearest is as cheap as can be.

    Args:
        costs: of each batch, at least 0.
        shares: how many, at least 1.

    Returns:
        The batches of each share, in their order; the last ones may be empty.
    """
    low, high = max(costs, default=0), sum(costs)
    while low < high:
        most = (low + high) // 2
        if len(_filled(costs, most)) <= shares:
            high = most
        else:
            low = most + 1
    ends = _filled(costs, high)
    return [range(*ends) for ends in pairwise([0, *ends, *[len(costs)] * (shares - len(ends))])]


def _filled(costs: Sequence[int], most: int) -> list[int]:
    """Return where shares end that are filled one after another up to a cost which no batch exceeds."""
    ends, spent = list[int](), 0
    for i, cost in enumerate(costs):
        if i and spent + cost > most:
            ends.append(i)
            spent = 0
        spent += cost
    return [*ends, len(costs)]


def dealt(costs: Sequence[Sequence[int]], index: int, shares: int) -> list[range]:
    """Return which batches of each part are in a share, where all parts together are cut.

    Args:
        costs: of the batches of each part.
        index: which share, from 0.
        shares: how many there are.
    """
    own = cut([cost for part in costs for cost in part], shares)[index]
    found, start = [], 0
    for part in costs:
        first, last = max(own.start, start), min(own.stop, start + len(part))
        found.append(range(first - start, max(first, last) - start))
        start += len(part)
    return found
