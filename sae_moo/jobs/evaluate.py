"""Scoring one model or recipe with the evaluator of a search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_moo.config.document import Config
from sae_moo.evaluate.task import Metric
from sae_moo.experts.checkpoint import Checkpoint
from sae_moo.experts.pool import ExpertPool
from sae_moo.jobs.bench import Bench, resolve_device, scorer_of
from sae_moo.jobs.judge import check_has_test
from sae_moo.jobs.merge import read_recipe
from sae_moo.jobs.tasks import open_tasks
from sae_moo.materialization.into_model import materialize, measured_sparsity
from sae_moo.objectives.scores import Score, Split, task_scores
from sae_moo.recipe import BASE


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What `evaluate` found.

    Args:
        scores: task name -> score.
        sparsity: the fraction of zeros over all prunable weights.
        metrics: task name -> further numbers by name; empty for tasks that have none.
        samples: one per instance, with ``name`` (the task's), ``instance`` (its number), ``score``, and what the task
            tells of it.
    """

    scores: Mapping[str, Score]
    sparsity: float
    metrics: Mapping[str, Mapping[str, Metric]]
    samples: tuple[Mapping[str, Any], ...]


def evaluate(target: str, config: Config, split: Split, bench: Bench | None = None) -> Evaluated:
    """Score a model folder, a hub id, ``zoo:NAME`` or a recipe with the configured tasks.

    Args:
        target: what to score; a path ending in ``.json`` is a recipe over the configured experts.
        config: the configuration.
        split: which items to score on.
        bench: the configuration's, if it is open already; recipes are made with it.

    Raises:
        InputError: if the target or the configuration cannot be used.
        TaskError: if the model's answers are not finite.
    """
    if split == "test":
        check_has_test(config)
    device = resolve_device(config.models.device)
    if target.endswith(".json"):
        bench = Bench.open(config) if bench is None else bench
        recipe = read_recipe(Path(target), bench.pool)
        pool, tasks, model = bench.pool, bench.tasks, bench.live_model()
        sparsity = materialize(recipe, pool, model).sparsity
    else:
        pool = ExpertPool({BASE: Checkpoint(target)}, pruned=config.pruning.submodels)
        tasks = open_tasks(config, pool)
        model = pool.live_model(config.models.dtype, device)
        sparsity = measured_sparsity(pool, model)
    scorer = scorer_of(config, pool, tasks, device)
    answers = scorer.answers(model, split)
    scores = scorer.judge(split, answers)
    metrics = {task.name: task.metrics(split, answers[task.name]) for task in tasks}
    samples = tuple(
        {"name": task.name, "instance": i, "score": float(scores[task.name][i]), **sample}
        for task in tasks
        for i, sample in enumerate(task.samples(split, answers[task.name]))
    )
    return Evaluated(task_scores(scores), sparsity, metrics, samples)
