"""Scoring live models on tasks: requests laid out once, asked whole or in parts, and judged by their tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sae_moo.errors import TaskError
from sae_moo.evaluate.batches import Batches, Readings
from sae_moo.evaluate.shares import BEFORE, ShareAnswers, dealt, digest_of
from sae_moo.evaluate.sizes import BatchSizes
from sae_moo.evaluate.task import Answer, Answered, Asked, Prompt, Request, Task
from sae_moo.evaluate.writing import TransformersWriter, Writer
from sae_moo.objectives import SCORE_DIGITS
from sae_moo.objectives.scores import Split


@dataclass(frozen=True, slots=True)
class _Part:
    """What is asked together.

    Args:
        instances: task name -> numbers of its instances, ascending, int64.
        asked: positions of their requests among those of all tasks.
        written: of these, which are prompts to continue, by their numbers among such.
    """

    instances: Mapping[str, NDArray[np.int64]]
    asked: Sequence[int]
    written: Sequence[int]


@dataclass(frozen=True, slots=True)
class _Layout:
    """The requests of a split, laid out once."""

    asked: Sequence[Asked]
    parts: Sequence[_Part]
    batches: Batches
    prompts: Sequence[Prompt]
    writer: Writer

    def room(self, batch: Sequence[int]) -> int:
        """Return how many tokens there are of prompts and what is written after them, at most."""
        return sum(len(self.prompts[i].context) + self.prompts[i].tokens for i in batch)

    def place(self, part: int, scored: Sequence[Answer], written: Sequence[str], found: list[Answered | None]) -> None:
        """Put the answers to a part's requests in their places; `found` is changed."""
        answers, texts = iter(scored), iter(written)
        for place in self.parts[part].asked:
            found[place] = next(answers) if isinstance(self.asked[place], Request) else next(texts)


class Scorer:
    """Scores live models on tasks; the tasks' requests are laid out once per split, on first use.

    The instances of the search split can be asked in parts, so that a candidate can be given up in between. A part
    holds the same share of each task, drawn once and for all by what the task is; it does not depend on the seed.

    Args:
        tasks: the tasks, in the order of the results.
        device: where the models live.
        tokenizer: what the tasks' requests were made with; needed by tasks that let models write.
        blocks: in how many parts the search split is asked.
        writer: makes what lets models write, of prompts; None: transformers.
        sizes: how many tokens are computed at once; None: what suits the device.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        device: torch.device | str = "cpu",
        tokenizer: Any = None,
        *,
        blocks: int = 1,
        writer: Callable[[Sequence[Prompt]], Writer] | None = None,
        sizes: BatchSizes | None = None,
    ) -> None:
        self.tasks = tuple(tasks)
        self._device = device
        self._blocks = blocks
        self._sizes = own = BatchSizes(device) if sizes is None else sizes
        self._writer = (
            writer if writer is not None else lambda prompts: TransformersWriter(prompts, tokenizer, device, sizes=own)
        )
        self._laid_out: dict[Split, _Layout] = {}

    def score(self, model: Any, split: Split) -> dict[str, NDArray[np.float64]]:
        """Return task name -> score per instance, float64 in [0, 1], shape (instances,), rounded once.

        Raises:
            TaskError: if the model's answers are not finite.
        """
        return self.judge(split, self.answers(model, split))

    def answers(self, model: Any, split: Split) -> dict[str, list[Answered]]:
        """Return task name -> what a model answers to its requests, in their order.

        Raises:
            TaskError: if they are not finite.
        """
        layout = self._layout(split)
        found: list[Answered | None] = [None] * len(layout.asked)
        layout.writer.load(model)
        for i in range(len(layout.parts)):
            self._ask(model, layout, i, found)
        answered = [answer for answer in found if answer is not None]
        assert len(answered) == len(found)  # every request is in a part
        rest = iter(answered)
        return {task.name: list(islice(rest, len(task.requests(split)))) for task in self.tasks}

    @property
    def tokens(self) -> int:
        """How many tokens models have read in all so far, those they wrote among them; see `Batches` and `Writer`."""
        return sum(layout.batches.tokens + layout.writer.tokens for layout in self._laid_out.values())

    def judge(self, split: Split, answers: Mapping[str, Sequence[Answered]]) -> dict[str, NDArray[np.float64]]:
        """Return task name -> score per instance for given answers, as `score`.

        Raises:
            TaskError: naming the task that raised.
        """
        return {task.name: _judged(task, split, answers[task.name]) for task in self.tasks}

    def order(self, split: Split) -> list[Mapping[str, NDArray[np.int64]]]:
        """Return which instances of each task are asked in each part, in this order."""
        return [part.instances for part in self._layout(split).parts]

    def score_parts(self, model: Any, split: Split) -> Iterator[dict[str, NDArray[np.float64]]]:
        """Yield task name -> scores of the instances that were asked in a part, part by part; see `order`.

        What is not waited for is not asked.

        Raises:
            TaskError: if the model's answers are not finite, or naming the task that raised.
        """
        layout = self._layout(split)
        layout.writer.load(model)
        yield from self._judged_parts(split, partial(self._ask, model, layout))

    def score_share(self, model: Any, split: Split, index: int, shares: int) -> ShareAnswers:
        """Ask a model one share of a split's requests; see `shares`.

        A model that cannot be scored is asked as far as is needed to tell so.

        Args:
            model: the model.
            split: which items.
            index: which share, from 0.
            shares: how many there are.

        Raises:
            RuntimeError, MemoryError: if memory runs out.
        """
        layout = self._layout(split)
        try:
            layout.writer.load(model)
        except TaskError as error:
            return ShareAnswers(digest_of(), 0, fault=(BEFORE, str(error)))
        passes, fault = layout.batches.ready(model), None
        try:
            prompts = [layout.writer.batches(model, part.written) for part in layout.parts]
        except TaskError as error:
            prompts = [[] for _ in layout.parts]
            fault = (next(i for i, part in enumerate(layout.parts) if part.written), str(error))
        undecided, sizes = layout.batches.reading is None, dict(self._sizes.chosen)
        read = dealt([[each.inputs.numel() for each in part] for part in passes], index, shares)
        written = dealt([[layout.room(batch) for batch in part] for part in prompts], index, shares)
        readings, texts = list[Readings](), dict[int, str]()
        for i in range(len(layout.parts)):
            if read[i]:
                readings.append(layout.batches.read(model, [passes[i][j] for j in read[i]]))
                if not readings[-1].finite:
                    break
            if (undecided and passes[i]) or (fault is not None and fault[0] == i):
                break
            chosen = [number for j in written[i] for number in prompts[i][j]]
            try:
                texts |= zip(chosen, layout.writer.write(model, chosen), strict=True)
            except TaskError as error:
                fault = (i, str(error))
                break
        composed = [[(each.request.tolist(), tuple(each.inputs.shape)) for each in part] for part in passes]
        return ShareAnswers(
            digest_of(layout.batches.reading, composed, prompts),
            max(sum(map(len, passes)), sum(map(len, prompts))),
            undecided,
            Readings.joined(readings) if readings else None,
            texts,
            fault,
            sizes == self._sizes.chosen,
        )

    def joined_parts(self, split: Split, shares: Sequence[ShareAnswers]) -> Iterator[dict[str, NDArray[np.float64]]]:
        """Yield what `score_parts` yields of a model that was asked in shares, and raise what it raises.

        Args:
            split: which items.
            shares: all shares, in their order, of one layout.
        """
        layout = self._layout(split)
        whole = [share.readings for share in shares if share.readings is not None]
        readings = Readings.joined(whole) if whole else None
        texts = {number: text for share in shares for number, text in share.texts.items()}
        faults = dict(reversed([each.fault for each in shares if each.fault is not None]))  # of a part's, the first
        if BEFORE in faults:
            raise TaskError(faults[BEFORE])

        def answer(index: int, found: list[Answered | None]) -> None:
            part = layout.parts[index]
            scored = layout.batches.answers(index, readings, undecided=shares[0].undecided)
            if index in faults:
                raise TaskError(faults[index])
            layout.place(index, scored, [texts[number] for number in part.written], found)

        yield from self._judged_parts(split, answer)

    def _judged_parts(
        self, split: Split, answer: Callable[[int, list[Answered | None]], None]
    ) -> Iterator[dict[str, NDArray[np.float64]]]:
        """Yield the scores of part after part.

        Args:
            split: which items.
            answer: puts the answers to a part's requests in their places.
        """
        layout = self._layout(split)
        found: list[Answered | None] = [None] * len(layout.asked)
        starts = np.cumsum([0, *(len(task.requests(split)) for task in self.tasks)])
        for i, part in enumerate(layout.parts):
            answer(i, found)
            yield {
                task.name: _judged(task, split, found[start:end], part.instances[task.name])
                for task, start, end in zip(self.tasks, starts[:-1], starts[1:], strict=True)
            }

    def _ask(self, model: Any, layout: _Layout, index: int, found: list[Answered | None]) -> None:
        """Put the answers to a part's requests in their places; `found` is changed."""
        scored = layout.batches.score(model, index)
        layout.place(index, scored, layout.writer.write(model, layout.parts[index].written), found)

    def _layout(self, split: Split) -> _Layout:
        if split not in self._laid_out:
            self._laid_out[split] = self._lay_out(split)
        return self._laid_out[split]

    def _lay_out(self, split: Split) -> _Layout:
        asked = [request for task in self.tasks for request in task.requests(split)]
        kind = [isinstance(request, Request) for request in asked]
        number = np.where(kind, np.cumsum(kind), np.cumsum(np.logical_not(kind))) - 1  # among those of its kind
        dealt = {task.name: dealt_parts(task, split, self._blocks if split == "search" else 1) for task in self.tasks}
        parts, likelihoods = [], []
        for i in range(self._blocks if split == "search" else 1):
            chosen, start = [], 0
            for task in self.tasks:  # all tasks together: fewer and fuller batches
                own = np.flatnonzero(np.isin(task.owners(split), dealt[task.name][i]))
                chosen += (start + own).tolist()
                start += len(task.requests(split))
            likelihoods.append([int(number[place]) for place in chosen if kind[place]])
            written = [int(number[place]) for place in chosen if not kind[place]]
            parts.append(_Part({task.name: dealt[task.name][i] for task in self.tasks}, chosen, written))
        requests = [request for request in asked if isinstance(request, Request)]
        prompts = [request for request in asked if isinstance(request, Prompt)]
        return _Layout(
            asked,
            parts,
            Batches(requests, self._device, parts=likelihoods, sizes=self._sizes),
            prompts,
            self._writer(prompts),
        )


def dealt_parts(task: Task, split: Split, parts: int) -> list[NDArray[np.int64]]:
    """Deal the instances of a split into parts of about the same size, shuffled by what the task is.

    Returns:
        Numbers of instances, ascending within a part, int64; a part may be empty.
    """
    count = task.instances(split)
    order = np.random.default_rng(int(task.fingerprint[:16], 16)).permutation(count) if parts > 1 else np.arange(count)
    ends = [round(count * i / parts) for i in range(parts + 1)]
    return [np.sort(order[start:end]) for start, end in pairwise(ends)]


def _judged(
    task: Task, split: Split, answers: Sequence[Answered | None], instances: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    numbers = range(task.instances(split)) if instances is None else [int(i) for i in instances]
    try:
        scores = np.round(task.score(split, answers, numbers), SCORE_DIGITS)
    except Exception as error:  # a task may be anybody's code; its fault ends one evaluation, not the search
        raise TaskError(f"task {task.name} raised {type(error).__name__}: {error}") from error
    if scores.shape != (len(numbers),) or not ((scores >= 0) & (scores <= 1)).all():
        raise TaskError(f"task {task.name}: expected {len(numbers)} scores in [0, 1], got {scores!r}")
    return scores
