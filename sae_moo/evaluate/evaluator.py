"""From recipe to evaluation: materialize into the live model, score every task, count sparsity."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sae_moo.errors import TaskError, WeightsError, out_of_memory
from sae_moo.evaluate.asking import Racing
from sae_moo.evaluate.batches import Batches
from sae_moo.evaluate.expert_scores import ExpertScores
from sae_moo.evaluate.generation import Generations, Writer
from sae_moo.evaluate.racing import Race
from sae_moo.evaluate.task import Answered, Asked, Generation, Request, Task
from sae_moo.experts.pool import ExpertPool
from sae_moo.materialization.into_model import l1_norms, materialize, sparseness
from sae_moo.materialization.parents import WeightCache
from sae_moo.objectives import SCORE_DIGITS, Evaluation, Stopped
from sae_moo.objectives.front import Front
from sae_moo.objectives.scores import Split
from sae_moo.recipe import BASE, Recipe


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
    writer: Writer


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
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        device: torch.device | str = "cpu",
        tokenizer: Any = None,
        blocks: int = 1,
        writer: Callable[[Sequence[Generation]], Writer] | None = None,
    ) -> None:
        self.tasks = tuple(tasks)
        self._device = device
        self._blocks = blocks
        self._writer = writer if writer is not None else lambda prompts: Generations(prompts, tokenizer, device)
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
        found: list[Answered | None] = [None] * len(layout.asked)
        layout.writer.load(model)
        starts = np.cumsum([0, *(len(task.requests(split)) for task in self.tasks)])
        for i, part in enumerate(layout.parts):
            self._ask(model, layout, i, found)
            yield {
                task.name: _judged(task, split, found[start:end], part.instances[task.name])
                for task, start, end in zip(self.tasks, starts[:-1], starts[1:], strict=True)
            }

    def _ask(self, model: Any, layout: _Layout, index: int, found: list[Answered | None]) -> None:
        """Put the answers to a part's requests in their places; `found` is changed."""
        part = layout.parts[index]
        scored = iter(layout.batches.score(model, index))
        written = iter(layout.writer.write(model, part.written))
        for place in part.asked:
            found[place] = next(scored) if isinstance(layout.asked[place], Request) else next(written)

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
        prompts = [request for request in asked if isinstance(request, Generation)]
        return _Layout(
            asked,
            parts,
            Batches(requests, self._device, parts=likelihoods),
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


class Evaluator:
    """Evaluates recipes on the search split.

    Args:
        pool: the experts.
        model: the live model that candidates are written into.
        scorer: the tasks.
        cache: weights of candidates seen before, or None.
        racing: how candidates race against the front they are given, or None if they are always asked everything.
        known: what is known of unmerged experts, or None.
        measure: ``l1`` or ``hoyer``: what else of a candidate's sparsity is told (`into_model.sparseness`); None:
            nothing.
    """

    def __init__(
        self,
        pool: ExpertPool,
        model: Any,
        scorer: Scorer,
        cache: WeightCache | None = None,
        racing: Racing | None = None,
        known: ExpertScores | None = None,
        measure: str | None = None,
    ) -> None:
        self.pool = pool
        self.model = model
        self.scorer = scorer
        self.cache = cache
        self.racing = racing
        self.known = known if measure is None else None  # what is kept of experts has no other measure
        self.measure = measure
        self._base_norms = l1_norms(pool, BASE) if measure == "l1" else {}

    def evaluate(self, recipe: Recipe, rivals: Front[Evaluation] | None = None) -> Evaluation:
        """Materialize and score one recipe; a failure of the candidate is an evaluation too, with its reason.

        Args:
            recipe: the candidate.
            rivals: the front it races against; None: it is asked everything.

        Raises:
            InputError: if the recipe does not fit the pool, which is an error of the caller.
        """
        found = None if self.known is None else self.known.find(recipe)
        if found is not None:
            return found
        merged, reason = recipe, None
        merging: float | None = None
        start = time.perf_counter()
        try:
            report = materialize(recipe, self.pool, self.model, self.cache)
            merged, merging, start = report.recipe, report.seconds, time.perf_counter()
            scores, stopped = self._scores(report.sparsity, rivals)
        except (TaskError, WeightsError) as error:
            reason = str(error)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            reason = f"out of memory: {str(error).splitlines()[0] if str(error) else 'no more could be had'}"
        seconds = time.perf_counter() - start  # of scoring; of merging where that failed
        if reason is not None:
            merging, scoring = (seconds, 0.0) if merging is None else (merging, seconds)
            return Evaluation(merged, reason=reason, seconds_merge=merging, seconds_score=scoring)
        evaluation = Evaluation(
            merged,
            {task: tuple(row.tolist()) for task, row in scores.items()},
            report.sparsity,
            tuple(report.group_sparsity.values()),
            None if stopped is None else self._reason(stopped),
            stopped,
            seconds_merge=report.seconds,
            seconds_score=seconds,
            sparseness=()
            if self.measure is None
            else sparseness(self.pool, self.model, self.measure, self._base_norms),
        )
        if self.known is not None:
            self.known.keep(evaluation)
        return evaluation

    def _scores(
        self, sparsity: float, rivals: Front[Evaluation] | None
    ) -> tuple[dict[str, NDArray[np.float64]], Stopped | None]:
        """Return the scores per instance of each task; none, and why, if the candidate was stopped."""
        dealt = self.scorer.order("search")
        order = {task.name: np.concatenate([part[task.name] for part in dealt]) for task in self.scorer.tasks}
        race = None
        if self.racing is not None and rivals is not None and rivals.members:
            looks = {name: np.cumsum([len(part[name]) for part in dealt]).tolist() for name in order}
            race = Race(self.racing, rivals, order, looks, sparsity)
        seen = {name: np.empty(0) for name in order}
        for scores in self.scorer.score_parts(self.model, "search"):
            seen = {name: np.concatenate([row, scores[name]]) for name, row in seen.items()}
            beaten = None if race is None else race.beaten(seen)
            if beaten is not None:
                rival, expected, bound = beaten
                asked = {name: len(row) for name, row in seen.items()}
                return {}, Stopped(rival.recipe.digest(self.pool), asked, expected, bound)
        whole = {name: np.empty(len(row)) for name, row in seen.items()}
        for name, row in seen.items():
            whole[name][order[name]] = row
        return whole, None

    def _reason(self, stopped: Stopped) -> str:
        asked, all_of_them = (
            sum(stopped.instances.values()),
            sum(task.instances("search") for task in self.scorer.tasks),
        )
        margin = 0.0 if self.racing is None else self.racing.margin
        given = f", given the margin of {margin:g}" if margin else ""
        return f"stopped after {asked} of {all_of_them} instances: {stopped.rival[:8]} dominates it{given}"
