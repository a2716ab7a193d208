"""From recipe to evaluation: materialize into the live model, score every task, count sparsity."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sae_moo.errors import TaskError, WeightsError, out_of_memory
from sae_moo.evaluate.generation import Generations
from sae_moo.evaluate.scorer import Batches
from sae_moo.evaluate.task import Answered, Generation, Request, Split, Task
from sae_moo.experts import ExpertPool
from sae_moo.materializer import materialize
from sae_moo.objectives import SCORE_DIGITS, Evaluation
from sae_moo.recipe import Recipe
from sae_moo.weight_cache import WeightCache


class Scorer:
    """Scores live models on tasks; the tasks' requests are laid out once per split, on first use.

    Args:
        tasks: the tasks, in the order of the results.
        device: where the models live.
        tokenizer: what the tasks' requests were made with; needed by tasks that let models write.
    """

    def __init__(self, tasks: Sequence[Task], device: torch.device | str = "cpu", tokenizer: Any = None) -> None:
        self.tasks = tuple(tasks)
        self._device = device
        self._tokenizer = tokenizer
        self._laid_out: dict[Split, tuple[Batches, Generations]] = {}

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
        asked = [request for task in self.tasks for request in task.requests(split)]
        if split not in self._laid_out:  # all tasks together: fewer and fuller batches
            likelihoods = [request for request in asked if isinstance(request, Request)]
            prompts = [request for request in asked if isinstance(request, Generation)]
            writer = Generations(prompts, self._tokenizer, self._device)
            self._laid_out[split] = Batches(likelihoods, self._device), writer
        batches, writer = self._laid_out[split]
        scored, written = iter(batches.score(model)), iter(writer.write(model))
        found = iter([next(scored) if isinstance(request, Request) else next(written) for request in asked])
        return {task.name: list(islice(found, len(task.requests(split)))) for task in self.tasks}

    def judge(self, split: Split, answers: Mapping[str, Sequence[Answered]]) -> dict[str, NDArray[np.float64]]:
        """Return task name -> score per instance for given answers, as `score`.

        Raises:
            TaskError: naming the task that raised.
        """
        scores = {}
        for task in self.tasks:
            try:
                scores[task.name] = np.round(task.score(split, answers[task.name]), SCORE_DIGITS)
            except Exception as error:  # a task may be anybody's code; its fault ends one evaluation, not the search
                raise TaskError(f"task {task.name} raised {type(error).__name__}: {error}") from error
        return scores


class Evaluator:
    """Evaluates recipes on the search split.

    Args:
        pool: the experts.
        model: the live model that candidates are written into.
        scorer: the tasks.
        cache: weights of candidates seen before, or None.
    """

    def __init__(self, pool: ExpertPool, model: Any, scorer: Scorer, cache: WeightCache | None = None) -> None:
        self.pool = pool
        self.model = model
        self.scorer = scorer
        self.cache = cache

    def evaluate(self, recipe: Recipe) -> Evaluation:
        """Materialize and score one recipe; a failure of the candidate is an evaluation too, with its reason.

        Raises:
            InputError: if the recipe does not fit the pool, which is an error of the caller.
        """
        merged = recipe
        start = time.perf_counter()
        try:
            report = materialize(recipe, self.pool, self.model, self.cache)
            merged = report.recipe
            start_score = time.perf_counter()
            scores = self.scorer.score(self.model, "search")
        except (TaskError, WeightsError) as error:
            return Evaluation(merged, reason=str(error), seconds_score=time.perf_counter() - start)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            reason = f"out of memory: {str(error).splitlines()[0] if str(error) else 'no more could be had'}"
            return Evaluation(merged, reason=reason, seconds_score=time.perf_counter() - start)
        return Evaluation(
            merged,
            {task: tuple(float(score) for score in row) for task, row in scores.items()},
            report.sparsity,
            tuple(report.group_sparsity.values()),
            seconds_merge=report.seconds,
            seconds_score=time.perf_counter() - start_score,
        )
