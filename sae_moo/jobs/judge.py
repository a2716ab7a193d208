"""Scores on the test split, of trials and of what they are held against; looked at after the search, never by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sae_moo.config.document import Config, differences
from sae_moo.errors import InputError, itemized
from sae_moo.evaluate.evaluator import Evaluator
from sae_moo.explore.run import Run
from sae_moo.explore.view import View
from sae_moo.jobs.bench import Bench
from sae_moo.materialization.into_model import materialize
from sae_moo.objectives import Evaluation, TaskMean
from sae_moo.objectives.front import Accuracy
from sae_moo.objectives.scores import Scores, Split
from sae_moo.recipe import BASE, Recipe
from sae_moo.recipe.structure import repair_of
from sae_moo.searchers.ground import AVERAGE
from sae_moo.study.folder import RunFolder
from sae_moo.study.record import Ended

BEST_EXPERT = "best expert"
"""How the name of the expert begins that is the most accurate of all on the search split."""


def bench_of(run: Run, any_device: bool = False) -> Bench:
    """Open what a run's evaluations were made with.

    Args:
        run: the run.
        any_device: whether another kind of device will do.

    Raises:
        InputError: if experts, items or settings are not those of the study, listing the differences.
    """
    bench = Bench.open(run.config).anchored(run.anchors)
    identity = bench.identity()
    changed = [each for each in differences(run.identity, identity) if each.key != "device" or not any_device]
    if changed:
        raise InputError(itemized("this is not what the study was made with", changed))
    return bench.sized(run.batches) if identity["device"] == run.identity.get("device") else bench


def check_has_test(config: Config) -> None:
    """Raise InputError if a task has no test instances."""
    empty = [section.name for section in config.tasks if not section.test]
    if empty:
        raise InputError(f"tasks without test instances (test: 0): {', '.join(empty)}")


def judge(run: Run, bench: Bench, recipes: Mapping[str, Recipe]) -> dict[str, Scores]:
    """Score models on the test split, as far as that was not done.

    Scores are kept in the run folder, if it can be written; a study's digests, experts and items do not change.

    Args:
        run: the run.
        bench: its experts and tasks.
        recipes: digest -> recipe.

    Returns:
        Digest -> task name -> score per instance.

    Raises:
        InputError: if what was kept cannot be read.
    """
    folder = RunFolder(run.folder)
    kept = folder.judged([task.name for task in bench.tasks])
    judged = dict(kept or {})
    missing = [digest for digest in recipes if digest not in judged]
    if missing:
        model, scorer = bench.live_model(), bench.scorer()
        for digest in missing:
            materialize(recipes[digest], bench.pool, model)
            judged[digest] = scorer.score(model, "test")
    if missing or kept is None:
        folder.keep_judged(judged)
    return {digest: judged[digest] for digest in recipes}


def keep_judged(run: Run, bench: Bench, digest: str, scores: Scores) -> None:
    """Keep a model's scores on the test split in the run folder, so that `judge` finds them."""
    folder = RunFolder(run.folder)
    folder.keep_judged({**(folder.judged([task.name for task in bench.tasks]) or {}), digest: scores})


@dataclass(frozen=True, slots=True, eq=False)
class Tested:
    """One model on both splits.

    Args:
        name: ``trial N``, ``trial N, repaired``, or ``base``, ``best expert (NAME)``, ``uniform average``.
        trial: number of its trial, or None if the study has none.
        sparsity: its realised sparsity.
        scores: split -> task name -> score per instance.
    """

    name: str
    trial: int | None
    sparsity: float
    scores: Mapping[Split, Scores]


def on_both_splits(run: Run, view: View, records: Sequence[Ended], references: bool = True) -> list[Tested]:
    """Return scores of trials on both splits, and of what they are held against: base, best expert, uniform average.

    Scores are kept in the run folder; nothing is scored twice. Which expert is best is said by the search split: mean
    of the objectives scored on tasks.

    Args:
        run: the run.
        view: its trials, as they were read.
        records: complete ones of them.
        references: whether the three are wanted too; one that cannot be evaluated is left out.

    Returns:
        The trials in their order, then the references.

    Raises:
        InputError: if a task has no test instances, or experts or items are not those of the study.
        TaskError: if a model's answers are not finite.
    """
    check_has_test(run.config)
    bench = bench_of(run, any_device=True)
    wanted: list[tuple[str, int | None, Evaluation | None]] = [
        (trial_name(record), record.number, record.evaluation) for record in records
    ]
    if references:
        wanted += _references(run, view, bench)
    evaluated = [(name, trial, evaluation) for name, trial, evaluation in wanted if evaluation is not None]
    digests = [evaluation.recipe.digest(bench.pool) for _, _, evaluation in evaluated]
    recipes = {digest: each[2].recipe for digest, each in zip(digests, evaluated, strict=True)}
    judged = judge(run, bench, recipes)
    return [
        Tested(
            name,
            trial,
            evaluation.sparsity,
            {"search": {task: np.array(row) for task, row in evaluation.scores.items()}, "test": judged[digest]},
        )
        for digest, (name, trial, evaluation) in zip(digests, evaluated, strict=True)
    ]


def trial_name(record: Ended) -> str:
    """Return what tables and messages call a trial: ``trial N``, or ``trial N, repaired``."""
    return f"trial {record.number}" + (", repaired" if repair_of(record.recipe) is not None else "")


def _references(run: Run, view: View, bench: Bench) -> list[tuple[str, int | None, Evaluation | None]]:
    """Return base, best expert and uniform average with their evaluations, those of the study where it has them."""
    evaluator: Evaluator | None = None

    def evaluated(record: Ended | None, recipe: Recipe) -> tuple[int | None, Evaluation | None]:
        nonlocal evaluator
        if record is not None:
            return record.number, record.evaluation
        if evaluator is None:
            evaluator = Evaluator(bench.pool, bench.live_model(), bench.scorer())
        found = evaluator.evaluate(recipe)
        return None, found if found.ok else None

    ground = bench.ground()
    accuracy = Accuracy(run.objectives) or Accuracy([TaskMean("all tasks", run.tasks)])
    experts = {name: evaluated(view.unmerged(name), ground.expert(name)) for name in ground.experts}
    values = {name: accuracy.value(evaluation) for name, (_, evaluation) in experts.items() if evaluation is not None}
    found = [("base", *evaluated(view.base, ground.expert(BASE)))]
    if values:
        best = max(values, key=lambda name: values[name])
        found.append((f"{BEST_EXPERT} ({best})", *experts[best]))
    return [*found, ("uniform average", *evaluated(view.average, dict(ground.starting_recipes())[AVERAGE]))]
