"""Exact selection for many tensors at once: the cuts below which so many of their scores lie.

Of each unit of tensors a sample says about where the cut is; everything is counted into a range around it, then into
the bin of that range where it is, until the bin is one value; equal ones go by position. How many rounds that takes is
fixed, so that nobody has to wait for the device to know whether they were enough: units that are done pass the later
ones in no time. See `kernels.counting`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sae_moo.experts.memory import Remembered
from sae_moo.materialization.ops.deferred import CutRef, Numbers
from sae_moo.materialization.ops.device.kernels import counting
from sae_moo.materialization.ops.device.scores import GIVEN, NORMS, put_norms, scores_of
from sae_moo.materialization.ops.device.tables import CODES, SPAN, Card, Table, Tiles, grouped
from sae_moo.materialization.ops.prune import Scoring

SAMPLE = 1 << 14
"""Elements of a unit that are looked at first."""
SLACK = 4.0
"""How far to look around a sample's rank, in standard deviations of it."""
ROUNDS = 4
"""One after the sample; the sample wrong and 31 bits of a key by 11 at a time; three are left of it mostly idle."""
BINS, STATE = 2048, 8
ALL = 1 << 15
"""Bins of a histogram of all magnitudes of bfloat16."""
_PLAIN, _WEIGHED, _DIFFERENCES = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Scored:
    """The scores of one tensor.

    Args:
        source: flat, contiguous.
        base: subtracted first, or None; likewise.
        scoring: where they are weighed by norms.
    """

    source: Tensor
    base: Tensor | None = None
    scoring: Scoring | None = None

    @classmethod
    def of(cls, scoring: Scoring) -> Scored:
        """Return the scores of a pruning; a guest's are written down first."""
        scores = scores_of(scoring)
        if scores == GIVEN:
            return cls(scoring.part(0, scoring.source.numel()))
        return cls(scoring.source, None, scoring if scores == NORMS else None)

    @property
    def kind(self) -> tuple[int, int, int]:
        """How kernels compute them: what, and the dtypes of tensor and base."""
        if self.base is not None:
            return _DIFFERENCES, CODES[self.source.dtype], CODES[self.base.dtype]
        return (_PLAIN if self.scoring is None else _WEIGHED), CODES[self.source.dtype], 0

    @property
    def grain(self) -> int:
        """How many of the last bits of the scores' float32 are always zero."""
        if self.base is not None or self.scoring is not None:
            return 0
        return {torch.bfloat16: 16, torch.float16: 13}.get(self.source.dtype, 0)


class Search:
    """The search for one cut in each of some units of tensors, step by step.

    The steps: `sample` all tensors, `begin`; `tally` all, `advance`, `ROUNDS` times; then `counted` or `cuts`.

    Args:
        card: where.
        sizes: number of elements of each unit.
        counts: how many of them lie below its cut; on the device if they are known only there.
        grain: last bits of all scores' float32 that are zero.
        tensors: how many tensors a unit may have.
    """

    def __init__(
        self, card: Card, sizes: Sequence[int], counts: Sequence[int] | Tensor, grain: int, tensors: int = 0
    ) -> None:
        self._card = card
        self._sizes = sizes
        units = len(sizes)
        self.states = card.zeros(units, STATE)
        self.states[:, 2] = counts if isinstance(counts, Tensor) else card.sent(np.array(counts, np.int64))
        self.states[:, 6] = grain
        self._counts = card.zeros(units, BINS, dtype=torch.int32)
        self._below = card.zeros(units)
        self._samples = [min(size, SAMPLE) for size in sizes]
        self._length = _power(max(self._samples) + tensors)
        self._taken = [0] * units
        self._keys = torch.full((units, self._length), 2**31 - 1, dtype=torch.int32, device=card.device)

    def sample(self, tensors: Sequence[Scored], units: Sequence[int]) -> None:
        """Look at scattered elements of tensors; `units`: whose each is."""
        for kind, at in grouped(tensors, lambda each: each.kind):
            chosen, mine = [tensors[i] for i in at], [units[i] for i in at]
            numbers = []
            slots = []
            for each, unit in zip(chosen, mine, strict=True):
                share = each.source.numel() * self._samples[unit] / self._sizes[unit]
                number = min(each.source.numel(), max(1, round(share)), self._length - self._taken[unit])
                slots.append((self._taken[unit], number))
                numbers.append(number)
                self._taken[unit] += number
            tiles = self._card.tiles(numbers)
            table, held = self._table(chosen, mine, tiles)
            rows = np.array(
                [(first, slot, number) for first, (slot, number) in zip(tiles.first, slots, strict=True)], np.int64
            )
            self._card.launch(
                counting.sample, tiles.number, table.sent(), self._card.sent(rows), tiles.jobs, self._keys,
                self.states, LENGTH=self._length, WIDTH=table.width, SCORES=kind[0], CODE=kind[1], GROUND=kind[2],
                BLOCK=self._card.tile,
            )  # fmt: skip
            del held

    def begin(self) -> None:
        """Take the first ranges from the samples."""
        ordered = self._keys.sort(dim=1).values
        slack = [
            0 if taken == size else math.ceil(SLACK * math.sqrt(taken) / 2) + 2
            for taken, size in zip(self._taken, self._sizes, strict=True)
        ]
        samples = self._card.sent(np.array([self._taken, self._sizes, slack], np.int64).T.copy())
        self._card.launch(counting.begin, len(self._sizes), ordered, self.states, samples, LENGTH=self._length)

    def tally(self, tensors: Sequence[Scored], units: Sequence[int]) -> None:
        """Count the scores of tensors into the ranges of their units."""
        for kind, at in grouped(tensors, lambda each: each.kind):
            chosen = [tensors[i] for i in at]
            tiles = self._card.tiles([each.source.numel() for each in chosen])
            table, held = self._table(chosen, [units[i] for i in at], tiles)
            self._card.launch(
                counting.tally, tiles.number, table.sent(), tiles.jobs, self.states, self._counts, self._below,
                WIDTH=table.width, SCORES=kind[0], CODE=kind[1], GROUND=kind[2], ALIGNED=table.aligned,
                BLOCK=self._card.tile,
            )  # fmt: skip
            del held

    def advance(self) -> None:
        """Take the next ranges."""
        self._card.launch(counting.advance, len(self._sizes), self.states, self._counts, self._below)

    @property
    def found(self) -> bool:
        """Whether all keys are found; waits for the device."""
        return bool(self._card.fetched(self.states[:, 3].all()))

    @property
    def bits(self) -> Tensor:
        """The bits of the values found, int64, shape (units,)."""
        return self.states[:, 0]

    def counted(self, tensors: Sequence[Scored], units: Sequence[int]) -> Tensor:
        """Return how many scores of each tensor are below its unit's key, and equal to it; shape (tensors, 2)."""
        found = self._card.zeros(len(tensors), 2)
        for kind, at in grouped(tensors, lambda each: each.kind):
            chosen = [tensors[i] for i in at]
            tiles = self._card.tiles([each.source.numel() for each in chosen])
            table, held = self._table(chosen, [units[i] for i in at], tiles)
            equals = self._card.empty(tiles.number, dtype=torch.int32)
            under = self._card.zeros(len(at))
            self._ties(table.sent(), table, tiles, kind, equals, under, every=True)
            whose = self._card.sent(np.array(at, np.int64))
            found[whose, 0] = under
            found[:, 1].index_add_(0, whose[tiles.jobs.long()], equals.long())
            del held
        return found

    def cuts(self, tensors: Sequence[Scored]) -> Numbers:
        """Return the cuts, where every tensor is a unit."""
        cuts = self._card.empty(len(tensors), 2, dtype=torch.int64)
        for kind, at in grouped(tensors, lambda each: each.kind):
            chosen = [tensors[i] for i in at]
            tiles = self._card.tiles([each.source.numel() for each in chosen])
            table, held = self._table(chosen, at, tiles)
            sent = table.sent()
            equals = self._card.empty(tiles.number, dtype=torch.int32)
            self._ties(sent, table, tiles, kind, equals, equals, every=False)
            found = self._card.empty(len(at), 2, dtype=torch.int64)
            self._card.launch(
                counting.positions, len(at), sent, self.states, equals, tiles.lasts, found, WIDTH=table.width,
                SCORES=kind[0], CODE=kind[1], GROUND=kind[2], BLOCK=self._card.tile, SPAN=SPAN,
            )  # fmt: skip
            cuts[self._card.sent(np.array(at, np.int64))] = found
            del held
        return Numbers(cuts)

    def _ties(
        self, sent: Tensor, table: Table, tiles: Tiles, kind: tuple[int, int, int], equals: Tensor, under: Tensor,
        *, every: bool,
    ) -> None:  # fmt: skip
        self._card.launch(
            counting.ties, tiles.number, sent, tiles.jobs, self.states, equals, under, WIDTH=table.width,
            SCORES=kind[0], CODE=kind[1], GROUND=kind[2], ALL=every, ALIGNED=table.aligned, BLOCK=self._card.tile,
        )  # fmt: skip

    def _table(self, tensors: Sequence[Scored], units: Sequence[int], tiles: Tiles) -> tuple[Table, list[Tensor]]:
        table = Table(self._card, tiles, [each.source.numel() for each in tensors], 8)
        table.put(2, units)
        table.addresses(3, [each.source for each in tensors])
        if tensors[0].base is not None:
            table.addresses(4, [each.base for each in tensors if each.base is not None])
        held = put_norms(table, 5, [each.scoring for each in tensors]) if tensors[0].scoring is not None else []
        return table, held


def cuts(card: Card, tensors: Sequence[Scored], counts: Sequence[int] | Tensor) -> list[CutRef]:
    """Return the cuts below which so many scores of each tensor lie, one for each."""
    found: list[CutRef | None] = [None] * len(tensors)
    for grain, at in grouped(tensors, lambda each: each.grain):
        chosen = [tensors[i] for i in at]
        own = counts[card.sent(np.array(at, np.int64))] if isinstance(counts, Tensor) else [counts[i] for i in at]
        search = Search(card, [each.source.numel() for each in chosen], own, grain)
        units = range(len(chosen))
        search.sample(chosen, units)
        search.begin()
        for _ in range(ROUNDS):
            search.tally(chosen, units)
            search.advance()
        table = search.cuts(chosen)
        for place, i in enumerate(at):
            found[i] = CutRef(table, place)
    return [ref for ref in found if ref is not None]


def cuts_of_experts(
    card: Card, tensors: Sequence[Tensor], counts: Sequence[int], keys: Sequence[Hashable], remembered: Remembered
) -> list[CutRef]:
    """Return the cuts of magnitudes of experts' tensors in bfloat16, whose histograms are kept on the device."""
    scored = [Scored(tensor) for tensor in tensors]
    new = [i for i, key in enumerate(keys) if ("bins", key, card.device) not in remembered]
    if new:
        histograms = card.zeros(len(new), ALL, dtype=torch.int32)
        tiles = card.tiles([tensors[i].numel() for i in new])
        table = Table(card, tiles, [tensors[i].numel() for i in new], 8)
        table.put(2, range(len(new)))
        table.addresses(3, [tensors[i] for i in new])
        card.launch(
            counting.histogram, tiles.number, table.sent(), tiles.jobs, histograms, WIDTH=8, CODE=1, ALL=ALL,
            ALIGNED=table.aligned, BLOCK=card.tile,
        )  # fmt: skip
        for i, row in zip(new, histograms, strict=True):
            remembered.put(("bins", keys[i], card.device), row)
    rows = [remembered.get(("bins", key, card.device), _missing) for key in keys]
    search = Search(card, [tensor.numel() for tensor in tensors], counts, 16)
    card.launch(
        counting.found_in, len(tensors), card.sent(np.array([row.data_ptr() for row in rows], np.int64)),
        search.states, ALL=ALL,
    )  # fmt: skip
    table_of_cuts = search.cuts(scored)
    return [CutRef(table_of_cuts, i) for i in range(len(tensors))]


def _missing() -> Tensor:
    raise AssertionError("a histogram was kept and is gone")


def _power(number: int) -> int:
    return 1 << (number - 1).bit_length()
