"""The engine of a CUDA device: lists of jobs, cuts and questions become a few launches."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_moo.experts.memory import Remembered
from sae_moo.materialization.ops.deferred import INFINITE, CutRef, NumberRef, Numbers, value_of
from sae_moo.materialization.ops.device import sums
from sae_moo.materialization.ops.device.chances import Chance, masks_of
from sae_moo.materialization.ops.device.cuts import (
    ALL,
    RANKS,
    Scored,
    Search,
    cuts,
    cuts_in,
    histograms_of,
    quantiles_of,
)
from sae_moo.materialization.ops.device.scores import GIVEN, NORMS, scores_of
from sae_moo.materialization.ops.device.selections import selections
from sae_moo.materialization.ops.device.tables import Card, card_of, grouped
from sae_moo.materialization.ops.device.writing import Work, kind_of, launch, parts
from sae_moo.materialization.ops.engine import PENDING, Asked, Sought, Zeros
from sae_moo.materialization.ops.jobs import Job, Lines, Pruned
from sae_moo.materialization.ops.prune import Scoring
from sae_moo.materialization.ops.questions import DIGITS, Fences, Gram, Growth, Overlaps, Selection, Trim
from sae_moo.materialization.ops.questions import asked as answered
from sae_moo.materialization.ops.select import NOTHING, Cut, among_nan
from sae_moo.materialization.ops.steps import importance


class Banded:
    """Works on a band of tensors at once; what it finds stays on the device until it settles.

    Args:
        card: the device; an attribute, too.
        remembered: what is known of experts' tensors; what is found of them is added.
        room: whether there is room on the device to keep so many bytes beside the experts; it is taken then.
    """

    batched = True

    def __init__(self, card: Card, remembered: Remembered, room: Callable[[int], bool]) -> None:
        self.card = card
        self._remembered = remembered
        self._room = room
        self._found: list[tuple[Tensor, Callable[[NDArray[Any]], None]]] = []
        self._answered: dict[Hashable, Any] = {}
        self._chances: dict[Hashable, Tensor] = {}

    def write(self, work: Sequence[tuple[Job, Tensor]], *, counted: bool = True) -> Zeros:
        """See `Engine`."""
        counts = self.card.zeros(len(work))
        plain: list[Work] = []
        todo = parts(self._unrestored(work))
        for kind, at in grouped(todo, kind_of):
            mine = [todo[i] for i in at]
            if kind is None:
                plain += mine
            else:
                launch(self.card, kind, mine, counts, self._masks)
        for each in plain:
            counts[each.owner] += each.job.write(each.out)
        zeros = Zeros()

        # lines have no cut that is watched: what they drop of NaN makes their count negative
        lines = [(i, job) for i, (job, _) in enumerate(work) if isinstance(job, Lines)]

        def fetched(found: NDArray[Any]) -> None:
            for i, job in lines:
                if found[i] < 0:
                    raise among_nan(job.keep + job.gone, job.gone)
            zeros.counts = found.tolist()

        if counted or lines:
            self._later(counts, fetched)
        return zeros

    def cuts(self, sought: Sequence[Sought]) -> list[Cut | CutRef]:
        """See `Engine`."""
        found: list[Cut | CutRef | None] = [self._known(each) for each in sought]
        known = [(ref, each) for ref, each in zip(found, sought, strict=True) if isinstance(ref, CutRef)]
        self._watch(
            [ref for ref, _ in known],
            [each.scoring.source.numel() for _, each in known],
            [each.count for _, each in known],
        )
        rest = [i for i, cut in enumerate(found) if cut is None]
        asked = [sought[i] for i in rest]
        scored = [Scored.of(each.scoring) for each in asked]
        keys = [each.key and ("cut", each.key) for each in asked]
        refs = self._searched(scored, [each.count for each in asked], keys) if rest else []
        for i, ref in zip(rest, refs, strict=True):
            found[i] = ref
            if sought[i].key is not None:
                self._remembered.put(("cut", sought[i].key, sought[i].count), ref)
        return [cut for cut in found if cut is not None]

    def factors(self, pruned: Sequence[Pruned]) -> list[float | NumberRef]:
        """See `Engine`."""
        squares = sums.kept_squares(self.card, pruned)
        before, after = squares[:, 0], squares[:, 1]
        # rounded to float32, as everywhere: factors are few digits longer than their sums are exact
        ratio = (before / after).sqrt().float().double()
        table = Numbers(torch.where(after > 0, ratio, 1.0))
        return [NumberRef(table, i) for i in range(len(pruned))]

    def answers(self, questions: Sequence[Asked]) -> list[Any]:
        """See `Engine`."""
        replies: list[Any] = [self._earlier(each) for each in questions]
        trims = [
            (reply, each.operands.numel, each.question.count)
            for reply, each in zip(replies, questions, strict=True)
            if isinstance(reply, CutRef) and isinstance(each.question, Trim)
        ]
        self._watch([ref for ref, _, _ in trims], [size for _, size, _ in trims], [count for _, _, count in trims])
        new = [i for i, reply in enumerate(replies) if reply is None]
        for kind, at in grouped([questions[i] for i in new], lambda each: type(each.question)):
            mine = [new[i] for i in at]
            for i, reply in zip(
                mine, _ANSWERS.get(kind, Banded._one_by_one)(self, [questions[i] for i in mine]), strict=True
            ):
                replies[i] = reply
        return replies

    def unit_squares(self, scorings: Sequence[tuple[Scoring, int]]) -> list[Tensor]:
        """See `Engine`."""
        given = []
        for scoring, axis in scorings:
            whole = scoring.source if scores_of(scoring) != GIVEN else scoring.part(0, len(scoring.source))
            given.append((whole.view(scoring.grid.shape), axis))
        found = sums.unit_squares(self.card, given)
        return [
            squares * scoring.norms.double().square()
            if scores_of(scoring) == NORMS and scoring.norms is not None
            else squares
            for squares, (scoring, _) in zip(found, scorings, strict=True)
        ]

    def search(self, sizes: Sequence[int], counts: Sequence[int], tensors: int) -> Search:
        """Return a search for the cuts of units of several tensors, which are shown to it band by band."""
        return Search(self.card, sizes, counts, 0, tensors)

    def settle(self) -> None:
        """See `Engine`."""
        if not self._found:
            return
        found, self._found = self._found, []
        words = torch.cat([tensor.reshape(-1).view(torch.int64) for tensor, _ in found])
        here = self.card.fetched(words)
        start = 0
        for tensor, use in found:
            stop = start + tensor.numel()
            part = here[start:stop].view(np.float64 if tensor.dtype == torch.float64 else np.int64)
            use(part.reshape(tuple(tensor.shape)))
            start = stop

    def _later(self, tensor: Tensor, use: Callable[[NDArray[Any]], None]) -> None:
        self._found.append((tensor.contiguous(), use))

    def _known(self, sought: Sought) -> Cut | CutRef | None:
        if sought.known is not None:
            return sought.known
        if not sought.count:
            return NOTHING
        key = ("cut", sought.key, sought.count)
        if sought.key is None or key not in self._remembered:
            return None
        cut: Cut | CutRef = self._remembered.get(key, lambda: NOTHING)
        return cut

    def _searched(
        self, scored: Sequence[Scored], counts: Sequence[int], keys: Sequence[Hashable | None]
    ) -> Sequence[CutRef]:
        """Return cuts; `keys`: what the scores of experts are remembered by."""
        halves = [
            i
            for i, each in enumerate(scored)
            if keys[i] is not None and each.grain == 16 and each.source.numel() < 1 << 31  # it counts in int32
        ]
        histograms = self._histograms([scored[i].source for i in halves], [keys[i] for i in halves])
        kept = [i for i, row in zip(halves, histograms, strict=True) if row is not None]
        rows = [row for row in histograms if row is not None]
        others = [i for i in range(len(scored)) if i not in set(kept)]
        found: dict[int, CutRef] = {}
        if kept:
            refs = cuts_in(self.card, [scored[i].source for i in kept], [counts[i] for i in kept], rows)
            found |= dict(zip(kept, refs, strict=True))
        if others:
            quantiles = [self._quantiles(scored[i], keys[i]) for i in others]
            refs = cuts(self.card, [scored[i] for i in others], [counts[i] for i in others], quantiles)
            found |= dict(zip(others, refs, strict=True))
        ordered = [found[i] for i in range(len(scored))]
        self._watch(ordered, [each.source.numel() for each in scored], counts)
        return ordered

    def _histograms(self, tensors: Sequence[Tensor], keys: Sequence[Hashable | None]) -> list[Tensor | None]:
        """Return histograms of experts' tensors, made now where there is room for them; None where there is not."""
        places = [("histogram", key, self.card.device) for key in keys]
        new = [i for i, place in enumerate(places) if place not in self._remembered and self._room(4 * ALL)]
        if new:
            for i, row in zip(new, histograms_of(self.card, [tensors[i] for i in new]), strict=True):
                self._remembered.put(places[i], row)
        return [self._remembered.find(place) for place in places]

    def _quantiles(self, scored: Scored, key: Hashable | None) -> Tensor | None:
        """Return what is known of an expert's scores, found now where there is room for it."""
        if key is None:
            return None
        place = ("quantiles", key, self.card.device)
        if place not in self._remembered and self._room(4 * RANKS):
            self._remembered.put(place, quantiles_of(scored))
        found: Tensor | None = self._remembered.find(place)
        return found

    def _watch(self, refs: Sequence[CutRef], sizes: Sequence[int], counts: Sequence[int]) -> None:
        """Fetch cuts with the rest, and say then if one is NaN; at once where they were fetched already.

        Those that are remembered are watched again: who found them may have come to an end before it was told of them.
        """
        tables: dict[int, tuple[Numbers, dict[int, tuple[int, int]]]] = {}
        for ref, size, count in zip(refs, sizes, counts, strict=True):
            tables.setdefault(id(ref.table), (ref.table, {}))[1][ref.index] = size, count
        for table, about in tables.values():
            if table.host is not None:
                _refuse_nan(table.host, about)
                continue

            def fetched(found: NDArray[Any], table: Numbers = table, about: dict[int, tuple[int, int]] = about) -> None:
                table.host = found
                # of no use there any more, and references to it may live long: a slice of it would keep its memory
                table.values = torch.empty_like(table.values[:0])
                _refuse_nan(found, about)

            self._later(table.values, fetched)

    def _earlier(self, asked: Asked) -> Any:
        key = asked.question.key(asked.operands, asked.place)
        if key is not None and key in self._remembered:
            return self._remembered.get(key, lambda: None)
        if isinstance(asked.question, (Trim, Growth)):
            return None
        return self._answered.get((asked.by, asked.question))

    def _tell(self, asked: Asked, answer: Any) -> None:
        """Keep an answer for when it is asked for again."""
        key = asked.question.key(asked.operands, asked.place)
        if key is None:
            self._answered[(asked.by, asked.question)] = answer
        else:
            self._remembered.put(key, answer)

    def _one_by_one(self, asked: Sequence[Asked]) -> Sequence[Any]:
        """Answer questions that no kernel is for: a guest's."""
        return [answered(each.question, each.operands, each.place) for each in asked]

    def _trims(self, asked: Sequence[Asked]) -> Sequence[Cut | CutRef]:
        scored, counts = [], []
        for each in asked:
            assert isinstance(each.question, Trim)
            scored.append(Scored(each.operands.inputs[each.question.i], each.operands.base))
            counts.append(each.question.count)
        at = [i for i, count in enumerate(counts) if count]
        keys = [each.question.key(each.operands, each.place) for each in asked]
        # the scores are the same whatever the count
        scores = [
            key and ("differences", each.place.tensor, each.operands.names[each.question.i])
            for each, key in zip(asked, keys, strict=True)
            if isinstance(each.question, Trim)
        ]
        refs = self._searched([scored[i] for i in at], [counts[i] for i in at], [scores[i] for i in at]) if at else []
        found: list[Cut | CutRef] = [NOTHING] * len(asked)
        for i, ref in zip(at, refs, strict=True):
            found[i] = ref
            if keys[i] is not None:
                self._remembered.put(keys[i], ref)
        return found

    def _growths(self, asked: Sequence[Asked]) -> Sequence[NumberRef]:
        jobs = [
            (each.operands, each.question.i, each.question.thinning)
            for each in asked
            if isinstance(each.question, Growth)
        ]
        by_rank = [i for i, (_, _, thinning) in enumerate(jobs) if thinning.epsilon is not None]
        masks: list[Tensor | None] = [None] * len(jobs)
        for i, mask in zip(by_rank, masks_of(self.card, [jobs[i] for i in by_rank]), strict=True):
            x, k, thinning = jobs[i]
            masks[i] = self._chances[x.inputs[k].data_ptr(), x.keys[k], thinning] = mask
        norms = sums.distances(self.card, jobs, masks)
        before, after = norms[:, 0], norms[:, 1]
        growth = torch.where(
            (before > 0) & (after > 0), _digits(before / after, self.card.kept("powers of ten", lambda: POWERS)), 1.0
        )
        table = Numbers(growth)
        return [NumberRef(table, i) for i in range(len(asked))]

    def _masks(self, asked: Sequence[Chance]) -> Sequence[Tensor | None]:
        """Return which elements stay where chances go by rank; found once for a growth and the vote after it."""
        found: list[Tensor | None] = [None] * len(asked)
        new = []
        for i, (x, k, thinning) in enumerate(asked):
            key = (x.inputs[k].data_ptr(), x.keys[k], thinning)
            if key in self._chances:
                found[i] = self._chances.pop(key)
            else:
                new.append(i)
        for i, mask in zip(new, masks_of(self.card, [asked[i] for i in new]), strict=True):
            found[i] = mask
        return found

    def _grams(self, asked: Sequence[Asked]) -> list[Any]:
        jobs = [(each.operands, each.question.relative) for each in asked if isinstance(each.question, Gram)]
        for each, row in zip(asked, sums.products(self.card, jobs), strict=True):
            question, count = each.question, len(each.operands.inputs)
            assert isinstance(question, Gram)

            def fetched(found: NDArray[Any], each: Asked = each, question: Gram = question, count: int = count) -> None:
                exact = np.zeros((count, count))
                exact[np.tril_indices(count)] = found
                self._tell(each, question.read(exact + np.tril(exact, -1).T))

            self._later(row, fetched)
        return [PENDING] * len(asked)

    def _selections(self, asked: Sequence[Asked]) -> list[Any]:
        questions = [each.question for each in asked if isinstance(each.question, Selection)]
        refs = selections(self.card, [each.operands for each in asked], [question.share for question in questions])
        squares = sums.selected_squares(
            self.card, [(each.operands, ref) for each, ref in zip(asked, refs, strict=True)]
        )
        there = [(ref, each.operands.numel) for each, ref in zip(asked, refs, strict=True) if ref is not None]
        self._watch([ref for ref, _ in there], [size for _, size in there], [size for _, size in there])
        for each, question, ref, row in zip(asked, questions, refs, squares, strict=True):

            def fetched(
                found: NDArray[Any], each: Asked = each, question: Selection = question, ref: CutRef | None = ref
            ) -> None:
                cut = NOTHING if ref is None else ref.settled
                assert cut is not None
                self._tell(each, question.read(cut, found))

            self._later(row, fetched)
        return [PENDING] * len(asked)

    def _overlaps(self, asked: Sequence[Asked]) -> list[Any]:
        for each in asked:
            question = each.question
            assert isinstance(question, Overlaps)

            def fetched(found: NDArray[Any], each: Asked = each) -> None:
                self._tell(each, tuple((int(both), int(own)) for both, own in found))

            self._later(question.measured(each.operands), fetched)
        return [PENDING] * len(asked)

    def _fences(self, asked: Sequence[Asked]) -> list[Any]:
        for each in asked:
            question, x = each.question, each.operands
            assert isinstance(question, Fences)
            assert x.base is not None
            scores = torch.cat(
                [importance(inputs[0], base, x.row) for _, inputs, base in x.chunks(x.row) if base is not None]
            )
            refs = self._searched([Scored(scores)] * 3, question.counts(x.numel), [None] * 3)

            def fetched(found: NDArray[Any], each: Asked = each, question: Fences = question) -> None:
                self._tell(each, question.read([value_of(int(bits)) for bits, _ in found]))

            self._later(torch.stack([ref.table.values[ref.index] for ref in refs]), fetched)
        return [PENDING] * len(asked)

    def _unrestored(self, work: Sequence[tuple[Job, Tensor]]) -> list[tuple[Job, Tensor]]:
        """Return the work with lines that are to keep their norm written once: what is left of it is a copy, scaled."""
        at = [i for i, (job, _) in enumerate(work) if isinstance(job, Lines) and job.rescale]
        if not at:
            return list(work)
        found = list(work)
        jobs = [job for i in at if isinstance(job := work[i][0], Lines)]
        held = [self.card.empty(len(job.scoring.source), dtype=torch.float32) for job in jobs]
        plainly = [Lines(job.scoring, job.keep, job.gone) for job in jobs]
        self.write(list(zip(plainly, held, strict=True)), counted=False)
        before = sums.kept_squares(self.card, [Pruned(job.scoring.source) for job in jobs])[:, 0]
        after = sums.kept_squares(self.card, [Pruned(out) for out in held])[:, 0]
        table = Numbers(torch.where(after > 0, (before / after).sqrt().float().double(), 1.0))
        for place, (i, out) in enumerate(zip(at, held, strict=True)):
            found[i] = (Pruned(out, factor=NumberRef(table, place)), work[i][1])
        return found


_ANSWERS: dict[type, Callable[[Banded, Sequence[Asked]], Sequence[Any]]] = {
    Trim: Banded._trims,
    Growth: Banded._growths,
    Gram: Banded._grams,
    Selection: Banded._selections,
    Overlaps: Banded._overlaps,
    Fences: Banded._fences,
}
POWERS = np.array([10.0**k for k in range(23)])
"""Powers of ten that float64 holds exactly."""


def engine_of(device: torch.device, remembered: Remembered, room: Callable[[int], bool]) -> Banded:
    """Return an engine for one plan on a device."""
    return Banded(card_of(device), remembered, room)


def _refuse_nan(cuts: NDArray[Any], about: Mapping[int, tuple[int, int]]) -> None:
    """Raise if a cut is NaN; `about`: the number of scores and how many go, by the cut's row."""
    for index, (size, count) in about.items():
        if cuts[index, 0] > INFINITE:
            raise among_nan(size, count)


def _digits(values: Tensor, powers: Tensor) -> Tensor:
    """Round numbers of at least 1 to the digits of `questions.rounded`; `powers` of ten on the device."""
    exponent = torch.searchsorted(powers, values.contiguous(), right=True) - 1
    shift = DIGITS - exponent
    up = powers[shift.clamp(0, 22)]
    down = powers[(-shift).clamp(0, 22)]
    return (values * up / down).round() / up * down
