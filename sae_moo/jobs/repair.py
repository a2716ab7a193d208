"""Repairing one trial of a run: its recipe with a repair under its cast, materialized once and scored as trials are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from sae_moo.deploy.stream import Stream
from sae_moo.errors import InputError, TaskError, WeightsError
from sae_moo.experts.layout import dtype_of
from sae_moo.explore.run import Run
from sae_moo.jobs.bench import Bench
from sae_moo.jobs.judge import check_has_test, keep_judged
from sae_moo.objectives import Evaluation, feasible
from sae_moo.recipe.structure import repair_of
from sae_moo.searchers.finishing import repaired
from sae_moo.study.record import Ended


@dataclass(frozen=True, slots=True)
class RepairedTrial:
    """A trial as it is once it is repaired.

    Args:
        record: the trial, with the recipe, scores and sparsity of what it became; the study does not hold it.
        stream: its weights.
    """

    record: Ended
    stream: Stream


def repair_trial(
    run: Run, record: Ended, bench: Bench, test: bool = False, stage: Callable[[str], None] = lambda what: None
) -> RepairedTrial:
    """Repair a trial on the calibration texts that are configured, or on the search split's prompts, and score it.

    Args:
        run: the run.
        record: one of its complete trials.
        bench: its experts and tasks.
        test: whether to score the test split, too, and keep the scores in the run folder.
        stage: is told what is being done, a few words each.

    Raises:
        InputError: if the trial is not pruned, is repaired already, or cannot be repaired.
        RunError: if what comes of it cannot be scored.
    """
    if repair_of(record.recipe) is not None:
        raise InputError(f"trial {record.number} is repaired already")
    recipe = repaired(record.recipe, bench.repairing())
    if recipe is None or not record.evaluation.sparsity:
        raise InputError(f"trial {record.number} is not pruned, there is nothing to repair")
    if test:
        check_has_test(run.config)
    stage("repairing block by block")
    try:
        stream = Stream(recipe, bench.pool, dtype_of(run.config.models.dtype), bench.device)
        scorer = bench.scorer()
        stage("scoring what was repaired")
        scores = {task: tuple(row.tolist()) for task, row in scorer.score(stream.model, "search").items()}
        fast = record.evaluation.speed  # what is repaired has the same structure
        evaluation = Evaluation(stream.recipe, scores, stream.sparsity(), speed=fast)
        digest = stream.recipe.digest(bench.pool)
        if test:
            keep_judged(run, bench, digest, scorer.score(stream.model, "test"))
    except (TaskError, WeightsError) as error:
        raise type(error)(f"trial {record.number}, repaired: {error}") from error
    errors = {task: evaluation.stderr(task) for task in scores}
    known = replace(
        record,
        recipe=stream.recipe,
        digest=digest,
        evaluation=evaluation,
        values={objective.name: objective.value(evaluation) for objective in run.objectives},
        stderr=errors | {objective.name: objective.stderr(evaluation) for objective in run.objectives},
        feasible=feasible(run.config.constraint_list(), evaluation),
        repeats=None,
    )
    return RepairedTrial(known, stream)
