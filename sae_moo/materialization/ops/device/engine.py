"""The engine of a CUDA device: lists of jobs, cuts and questions become a few launches."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_moo.errors import WeightsError
from sae_moo.experts.memory import Remembered
from sae_moo.materialization.ops.deferred import CutRef, NumberRef, Numbers, value_of
from sae_moo.materialization.ops.device import sums
from sae_moo.materialization.ops.device.chances import masks_of
from sae_moo.materialization.ops.device.cuts import Scored, Search, cuts, cuts_of_experts
from sae_moo.materialization.ops.device.scores import GIVEN, NORMS, scores_of
from sae_moo.materialization.ops.device.selections import selections
from sae_moo.materialization.ops.device.tables import Card, card_of, grouped
from sae_moo.materialization.ops.device.writing import Work, kind_of, launch, parts
from sae_moo.materialization.ops.engine import PENDING, Asked, Sought, Zeros
from sae_moo.materialization.ops.jobs import Job, Lines, Pruned
from sae_moo.materialization.ops.operands import Operands
from sae_moo.materialization.ops.prune import Scoring
from sae_moo.materialization.ops.questions import DIGITS, Fences, Gram, Growth, Overlaps, Selection, Trim
from sae_moo.materialization.ops.select import NOTHING, Cut
from sae_moo.materialization.ops.steps import Thinning, importance

INFINITE = 0x7F800000


class Banded:
    """Works on a band of tensors at once; what it finds stays on the device until it settles.

    Args:
        card: the device; an attribute, too.
        remembered: what is known of experts' tensors; cuts are added once they were fetched.
    """

    batched = True

    def __init__(self, card: Card, remembered: Remembered) -> None:
        self.card = card
        self._remembered = remembered
        self._found: list[tuple[Tensor, Callable[[NDArray[Any]], None]]] = []
        self._answered: dict[Hashable, Any] = {}
        self._grown: dict[Hashable, NumberRef] = {}

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

        def fetched(found: NDArray[Any]) -> None:
            zeros.counts = found.tolist()

        if counted:
            self._later(counts, fetched)
        return zeros

    def cuts(self, sought: Sequence[Sought]) -> list[Cut | CutRef]:
        """See `Engine`."""
        found: list[Cut | CutRef | None] = [self._known(each) for each in sought]
        rest = [i for i, cut in enumerate(found) if cut is None]
        kept = [i for i in rest if _has_histogram(sought[i])]
        for at, found_now in (
            (kept, self._cuts_of_experts([sought[i] for i in kept])),
            (others := [i for i in rest if i not in set(kept)], self._cuts_of([sought[i] for i in others])),
        ):
            for i, cut in zip(at, found_now, strict=True):
                found[i] = cut
                if (key := sought[i].key) is not None:
                    self._remembered.put(("cut", key, sought[i].count), cut)
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
        new = [i for i, reply in enumerate(replies) if reply is None]
        for kind, at in grouped([questions[i] for i in new], lambda each: type(each.question)):
            mine = [new[i] for i in at]
            for i, reply in zip(mine, _ANSWERS[kind](self, [questions[i] for i in mine]), strict=True):
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

    def _cuts_of_experts(self, sought: Sequence[Sought]) -> Sequence[CutRef]:
        if not sought:
            return []
        keys = [each.key for each in sought if each.key is not None]
        sources = [each.scoring.source for each in sought]
        refs = cuts_of_experts(self.card, sources, [each.count for each in sought], keys, self._remembered)
        self._watch(refs, [len(source) for source in sources], [each.count for each in sought])
        return refs

    def _cuts_of(self, sought: Sequence[Sought]) -> Sequence[CutRef]:
        if not sought:
            return []
        scored = [Scored.of(each.scoring) for each in sought]
        return self._searched(scored, [each.count for each in sought])

    def _searched(self, scored: Sequence[Scored], counts: Sequence[int]) -> Sequence[CutRef]:
        refs = cuts(self.card, scored, counts)
        self._watch(refs, [each.source.numel() for each in scored], counts)
        return refs

    def _watch(self, refs: Sequence[CutRef], sizes: Sequence[int], counts: Sequence[int]) -> None:
        """Fetch cuts with the rest, and say then if one is NaN."""
        for table in {id(ref.table): ref.table for ref in refs}.values():
            about = {
                ref.index: (size, count)
                for ref, size, count in zip(refs, sizes, counts, strict=True)
                if ref.table is table
            }

            def fetched(found: NDArray[Any], table: Numbers = table, about: dict[int, tuple[int, int]] = about) -> None:
                table.host = found
                for index, (size, count) in about.items():
                    if found[index, 0] > INFINITE:
                        raise WeightsError(
                            f"weights are NaN: no order among {size} scores to take the {count} smallest of"
                        )

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

    def _trims(self, asked: Sequence[Asked]) -> Sequence[Cut | CutRef]:
        scored, counts = [], []
        for each in asked:
            assert isinstance(each.question, Trim)
            scored.append(Scored(each.operands.inputs[each.question.i], each.operands.base))
            counts.append(each.question.count)
        at = [i for i, count in enumerate(counts) if count]
        refs = self._searched([scored[i] for i in at], [counts[i] for i in at]) if at else []
        found: list[Cut | CutRef] = [NOTHING] * len(asked)
        for i, ref in zip(at, refs, strict=True):
            found[i] = ref
            key = asked[i].question.key(asked[i].operands, asked[i].place)
            if key is not None:
                self._remembered.put(key, ref)
        return found

    def _growths(self, asked: Sequence[Asked]) -> Sequence[NumberRef]:
        jobs = [
            (each.operands, each.question.i, each.question.thinning)
            for each in asked
            if isinstance(each.question, Growth)
        ]
        masks = [self._masks(x, [thinning], i)[0] for x, i, thinning in jobs]
        norms = sums.distances(self.card, jobs, masks)
        before, after = norms[:, 0], norms[:, 1]
        growth = torch.where(
            (before > 0) & (after > 0), _digits(before / after, self.card.kept("powers of ten", POWERS)), 1.0
        )
        table = Numbers(growth)
        return [NumberRef(table, i) for i in range(len(asked))]

    def _masks(self, x: Operands, thinnings: Sequence[Thinning], first: int = 0) -> Sequence[Tensor | None]:
        if all(each.epsilon is None for each in thinnings):
            return [None] * len(thinnings)
        return masks_of(self.card, x, thinnings, first)

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
        for each, question, ref, row in zip(asked, questions, refs, squares, strict=True):

            def fetched(
                found: NDArray[Any], each: Asked = each, question: Selection = question, ref: CutRef | None = ref
            ) -> None:
                cut = NOTHING if ref is None else ref.settled
                assert cut is not None
                self._tell(each, question.read(cut, found))

            if ref is not None:
                self._watch([ref], [each.operands.numel], [each.operands.numel])
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
            refs = self._searched([Scored(scores)] * 3, question.counts(x.numel))

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


def engine_of(device: torch.device, remembered: Remembered) -> Banded:
    """Return an engine for one plan on a device."""
    return Banded(card_of(device), remembered)


def _digits(values: Tensor, powers: Tensor) -> Tensor:
    """Round numbers of at least 1 to the digits of `questions.rounded`; `powers` of ten on the device."""
    exponent = torch.searchsorted(powers, values.contiguous(), right=True) - 1
    shift = DIGITS - exponent
    up = powers[shift.clamp(0, 22)]
    down = powers[(-shift).clamp(0, 22)]
    return (values * up / down).round() / up * down


def _has_histogram(sought: Sought) -> bool:
    return sought.key is not None and sought.scoring.plain and sought.scoring.source.dtype == torch.bfloat16
