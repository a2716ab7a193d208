"""Exact selection for many tensors at once: the cuts below which so many of their scores lie.

Of each unit of tensors a sample says about where the cut is; everything is counted into a range around it, then into
the bin of that range where it is, until the bin is one value; equal ones go by position. How many rounds that takes is
fixed, so that nobody has to wait for the device to know whether they were enough: units that are done pass the later
ones in no time. See `kernels.counting`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sae_moo.errors import out_of_memory
from sae_moo.materialization.ops.deferred import CutRef, Numbers
from sae_moo.materialization.ops.device.kernels import counting
from sae_moo.materialization.ops.device.scores import GIVEN, NORMS, put_norms, scores_of
from sae_moo.materialization.ops.device.tables import CODES, SPAN, Card, Table, Tiles, grouped
from sae_moo.materialization.ops.prune import Scoring

SAMPLE = 1 << 12
"""Elements of a unit that are looked at first: as many as one block of a device sorts."""
SLACK = 3.5
"""How far to look around a sample's rank, in standard deviations of it."""
ROUNDS = 4
"""One after the sample; the sample wrong and 31 bits of a key by 11 at a time; three are left of it mostly idle."""
BINS, STATE = 2048, 8
ALL = 1 << 15
"""Bins of a histogram of all magnitudes of bfloat16."""
RANKS = 1 << 15
"""Scores of an expert's tensor that are kept, at even distances in their order."""
LARGEST = 1 << 27
"""Most elements that are ordered at once to find them: it takes some 20 bytes for each."""
WIDTH = 8
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


@dataclass(frozen=True, slots=True)
class Shown:
    """Tensors of one kind, as the steps of a search take them.

    Args:
        kind: of their scores.
        at: their places among the tensors shown with them.
        tensors: themselves.
        tiles: of them.
        table: a row for each, on the device.
        aligned: whether many elements can be read at once.
        held: what has to live as long.
    """

    kind: tuple[int, int, int]
    at: Sequence[int]
    tensors: Sequence[Scored]
    tiles: Tiles
    table: Tensor
    aligned: bool
    held: Sequence[Tensor]

    @property
    def constants(self) -> dict[str, int]:
        """How kernels compute the scores."""
        return {"SCORES": self.kind[0], "CODE": self.kind[1], "GROUND": self.kind[2]}


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
        # a global scope of billions of weights may hold more zeros than int32 counts, and all of them are one bin
        self._counts = card.zeros(units, BINS, dtype=torch.int32 if max(sizes) < 1 << 31 else torch.int64)
        self._below = card.zeros(units)
        self._samples = [min(size, SAMPLE) for size in sizes]
        self._length = _power(max(self._samples) + tensors)
        self._taken = [0] * units
        self._keys: Tensor | None = None

    def shown(self, tensors: Sequence[Scored], units: Sequence[int]) -> list[Shown]:
        """Return tensors as the steps take them; `units`: whose each is."""
        made = []
        for kind, at in grouped(tensors, lambda each: each.kind):
            chosen = [tensors[i] for i in at]
            tiles = self._card.tiles([each.source.numel() for each in chosen])
            table, held = self._table(chosen, [units[i] for i in at], tiles)
            made.append(Shown(kind, at, chosen, tiles, table.sent(), table.aligned, held))
        return made

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
                counting.sample, tiles.number, table.sent(), self._card.sent(rows), tiles.jobs, self._drawn(),
                self.states, LENGTH=self._length, WIDTH=WIDTH, SCORES=kind[0], CODE=kind[1], GROUND=kind[2],
                BLOCK=self._card.tile,
            )  # fmt: skip
            del held

    def begin(self) -> None:
        """Take the first ranges from the samples."""
        ordered = self._drawn().sort(dim=1).values
        slack = [
            0 if taken == size else math.ceil(SLACK * math.sqrt(taken) / 2) + 2
            for taken, size in zip(self._taken, self._sizes, strict=True)
        ]
        samples = self._card.sent(np.array([self._taken, self._sizes, slack], np.int64).T.copy())
        self._card.launch(counting.begin, len(self._sizes), ordered, self.states, samples, LENGTH=self._length)

    def begin_between(self, quantiles: Sequence[Tensor]) -> None:
        """Take the first ranges from what is known of the units: scores at `RANKS` ranks of each."""
        places = np.array(
            [(each.data_ptr(), size) for each, size in zip(quantiles, self._sizes, strict=True)], np.int64
        )
        self._card.launch(counting.between, len(self._sizes), self._card.sent(places), self.states, LENGTH=RANKS)

    def tally(self, shown: Sequence[Shown]) -> None:
        """Count the scores of tensors into the ranges of their units."""
        for each in shown:
            self._card.launch(
                counting.tally, each.tiles.number, each.table, each.tiles.jobs, self.states, self._counts, self._below,
                WIDTH=WIDTH, ALIGNED=each.aligned, BLOCK=self._card.tile, **each.constants,
            )  # fmt: skip

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

    def counted(self, shown: Sequence[Shown]) -> Tensor:
        """Return how many scores of each tensor are below its unit's key, and equal to it; shape (tensors, 2)."""
        found = self._card.zeros(sum(len(each.at) for each in shown), 2)
        for each in shown:
            equals = self._card.empty(each.tiles.number, dtype=torch.int32)
            under = self._card.zeros(len(each.at))
            self._ties(each, equals, under, every=True)
            whose = self._card.sent(np.array(each.at, np.int64))
            found[whose, 0] = under
            found[:, 1].index_add_(0, whose[each.tiles.jobs.long()], equals.long())
        return found

    def cuts(self, shown: Sequence[Shown]) -> Numbers:
        """Return the cuts, where every tensor is a unit."""
        cuts = self._card.empty(len(self._sizes), 2, dtype=torch.int64)
        for each in shown:
            equals = self._card.empty(each.tiles.number, dtype=torch.int32)
            self._ties(each, equals, equals, every=False)
            found = self._card.empty(len(each.at), 2, dtype=torch.int64)
            self._card.launch(
                counting.positions, len(each.at), each.table, self.states, equals, each.tiles.lasts, found,
                WIDTH=WIDTH, BLOCK=self._card.tile, SPAN=SPAN, **each.constants,
            )  # fmt: skip
            cuts[self._card.sent(np.array(each.at, np.int64))] = found
        return Numbers(cuts)

    def _drawn(self) -> Tensor:
        if self._keys is None:
            size = len(self._sizes), self._length
            self._keys = torch.full(size, 2**31 - 1, dtype=torch.int32, device=self._card.device)
        return self._keys

    def _ties(self, shown: Shown, equals: Tensor, under: Tensor, *, every: bool) -> None:
        self._card.launch(
            counting.ties, shown.tiles.number, shown.table, shown.tiles.jobs, self.states, equals, under, WIDTH=WIDTH,
            ALL=every, ALIGNED=shown.aligned, BLOCK=self._card.tile, **shown.constants,
        )  # fmt: skip

    def _table(self, tensors: Sequence[Scored], units: Sequence[int], tiles: Tiles) -> tuple[Table, list[Tensor]]:
        table = Table(self._card, tiles, [each.source.numel() for each in tensors], WIDTH)
        table.put(2, units)
        table.addresses(3, [each.source for each in tensors])
        if tensors[0].base is not None:
            table.addresses(4, [each.base for each in tensors if each.base is not None])
        held = put_norms(table, 5, [each.scoring for each in tensors]) if tensors[0].scoring is not None else []
        return table, held


def cuts(
    card: Card, tensors: Sequence[Scored], counts: Sequence[int] | Tensor, quantiles: Sequence[Tensor | None] = ()
) -> list[CutRef]:
    """Return the cuts below which so many scores of each tensor lie, one for each.

    Args:
        card: where.
        tensors: their scores.
        counts: how many; on the device if they are known only there.
        quantiles: what `quantiles_of` knows of the tensors, None where nothing; empty: of none.
    """
    found: list[CutRef | None] = [None] * len(tensors)
    known = quantiles or [None] * len(tensors)
    for (grain, sampled), at in grouped(range(len(tensors)), lambda i: (tensors[i].grain, known[i] is None)):
        chosen = [tensors[i] for i in at]
        own = counts[card.sent(np.array(at, np.int64))] if isinstance(counts, Tensor) else [counts[i] for i in at]
        search = Search(card, [each.source.numel() for each in chosen], own, grain)
        if sampled:
            search.sample(chosen, range(len(chosen)))
            search.begin()
        else:
            search.begin_between([each for i in at if (each := known[i]) is not None])
        shown = search.shown(chosen, range(len(chosen)))
        for _ in range(ROUNDS):
            search.tally(shown)
            search.advance()
        table = search.cuts(shown)
        for place, i in enumerate(at):
            found[i] = CutRef(table, place)
    return [ref for ref in found if ref is not None]


def quantiles_of(scored: Scored) -> Tensor | None:
    """Return the keys of scores at `RANKS` ranks, evenly apart, int32; None of tensors too large to be ordered.

    Of an expert they are found once: then a cut of any count lies between two of them, and one round finds it.
    """
    numel = scored.source.numel()
    if numel > LARGEST:
        return None
    try:
        ordered = _scores(scored).view(torch.int32).sort().values
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return None
    ranks = torch.arange(RANKS, device=ordered.device) * (numel - 1) // (RANKS - 1)
    return (ordered[ranks] >> scored.grain).contiguous()


def _scores(scored: Scored) -> Tensor:
    if scored.scoring is not None:
        return scored.scoring.part(0, scored.source.numel()).contiguous()
    scores = scored.source.float() if scored.base is None else scored.source.float() - scored.base.float()
    return scores.abs()


def histograms_of(card: Card, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return histograms of the magnitudes of tensors in bfloat16: how many there are of each."""
    histograms = card.zeros(len(tensors), ALL, dtype=torch.int32)
    tiles = card.tiles([tensor.numel() for tensor in tensors])
    table = Table(card, tiles, [tensor.numel() for tensor in tensors], WIDTH)
    table.put(2, range(len(tensors)))
    table.addresses(3, tensors)
    card.launch(
        counting.histogram, tiles.number, table.sent(), tiles.jobs, histograms, WIDTH=WIDTH, CODE=1, ALL=ALL,
        ALIGNED=table.aligned, BLOCK=card.tile,
    )  # fmt: skip
    return list(histograms)


def cuts_in(card: Card, tensors: Sequence[Tensor], counts: Sequence[int], histograms: Sequence[Tensor]) -> list[CutRef]:
    """Return the cuts of magnitudes of tensors in bfloat16, given their histograms."""
    search = Search(card, [tensor.numel() for tensor in tensors], counts, 16)
    card.launch(
        counting.found_in, len(tensors), card.sent(np.array([row.data_ptr() for row in histograms], np.int64)),
        search.states, ALL=ALL,
    )  # fmt: skip
    table = search.cuts(search.shown([Scored(tensor) for tensor in tensors], range(len(tensors))))
    return [CutRef(table, i) for i in range(len(tensors))]


def _power(number: int) -> int:
    return 1 << (number - 1).bit_length()
