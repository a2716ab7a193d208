"""Making the most promising merges of a forecast and scoring them: a study of its own, which makes nothing twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sae_moo.config.document import Config
from sae_moo.errors import Interrupted, SaeMooError
from sae_moo.explore.run import Run
from sae_moo.jobs.bench import Bench
from sae_moo.jobs.judge import check_has_test, judge
from sae_moo.jobs.predict import Forecast, Measured, accuracy_of, measured
from sae_moo.jobs.search import search
from sae_moo.objectives import Evaluation, scored
from sae_moo.objectives.front import Accuracy
from sae_moo.prediction.ranking import Chain
from sae_moo.recipe import Recipe
from sae_moo.searchers.algorithms import PAIRS
from sae_moo.searchers.baselines import OneShotSearcher
from sae_moo.study.events import Begun, Event
from sae_moo.study.folder import RUNS, RunFolder
from sae_moo.study.record import ended

SUFFIX = "-predict"
OPERATOR = "predicted"
"""What trials are called that were made because they promise much."""


def study_name(config: Config) -> str:
    """Return the name of the study that holds the merges which were tried."""
    return config.study.name[: 100 - len(SUFFIX)] + SUFFIX


def tried(
    forecast: Forecast,
    count: int,
    test: bool = False,
    *,
    root: str | Path = RUNS,
    stage: Callable[[str], None] = lambda what: None,
) -> Forecast:
    """Make the most promising merges and score them on the search split.

    They are trials of a study of their own, `study_name`, a run like any other; those that it holds already, or that
    the runs hold which were learned from, are not made again.

    Args:
        forecast: the ranking.
        count: how many of its first merges.
        test: whether to score these on the test split, too, and keep the scores in their runs' folders.
        root: folder of run folders.
        stage: is told what is being done, a few words each.

    Returns:
        The forecast with what they scored.

    Raises:
        InputError: if the study is one of other models, tasks or settings, or a task has no test instances.
        Interrupted: on Ctrl-C, after saving.
        RunError: if all of them fail.
    """
    if test:
        check_has_test(forecast.config)
    first = [each.chain for each in forecast.ranking.merges[:count]]
    accuracy = Accuracy(forecast.config.objective_list())
    wanted = [chain for chain in first if chain not in forecast.measured]
    known = dict(forecast.measured)
    runs = {lesson.run.name: lesson.run for lesson in forecast.lessons}
    if wanted:
        run = _made(forecast, [forecast.recipe(chain) for chain in wanted], Path(root), stage)
        runs[run.name] = run
        records = {record.asked: record for record in ended(run.trials())}
        known |= {chain: measured(records[forecast.recipe(chain)], run, accuracy) for chain in wanted}
    if test:
        stage("scoring the test split")
        known |= _tested(forecast, {chain: known[chain] for chain in first}, runs, accuracy)
    return replace(forecast, measured=known)


def _made(forecast: Forecast, recipes: Sequence[Recipe], root: Path, stage: Callable[[str], None]) -> Run:
    """Return the study of merges that were tried, these among them."""
    name = study_name(forecast.config)
    folder = RunFolder(root / name)
    before = [each.asked for each in Run.open(folder.path).trials()] if folder.begun else []
    asked = list(dict.fromkeys([*before, *recipes]))
    config = _configured(forecast.config, len(asked))
    bench = forecast.bench
    bench = bench.configured(config) if config.evaluation == bench.config.evaluation else Bench.open(config)
    new = len(asked) - len(before)

    def heard(event: Event) -> None:
        if isinstance(event, Begun):
            stage(f"evaluating merge {max(1, event.number + 1 - len(before))} of {max(1, new)}")

    def searcher(bench: Bench) -> OneShotSearcher:
        return OneShotSearcher(
            bench.ground(), config.objective_list(), (), merges=[(OPERATOR, each) for each in asked], levels=()
        )

    try:
        return search(config, heard, root, searcher=searcher, bench=bench)
    except Interrupted as error:
        raise Interrupted(f"{error}, the same command goes on") from None
    except SaeMooError as error:
        if error.hint is None:
            raise
        advice = f"give {folder.path} another name, or use another study.name"
        raise type(error)(error.message + ("\n  " if "\n" in error.message else "; ") + advice) from error


def _configured(config: Config, evaluations: int) -> Config:
    """Return the configuration of the study of merges that were tried: dense ones, by what is scored on tasks alone."""
    raw = config.model_dump(mode="json", exclude_unset=True)
    objectives = [each.name for each in scored(config.objective_list())]
    kept: dict[str, Any] = {key: raw[key] for key in ("models", "tasks", "executor", "predict") if key in raw}
    return Config.from_dict(
        {
            **kept,
            "study": {"name": study_name(config), "seed": config.study.seed},
            "objectives": [
                each for each in raw["objectives"] if (each if isinstance(each, str) else each["name"]) in objectives
            ],
            "pruning": {"submodels": config.pruning.submodels},
            "evaluation": {"generation": config.evaluation.generation},
            "search": {"algorithm": PAIRS, "evaluations": evaluations},
        },
        config.directory,
    )


def _tested(
    forecast: Forecast, merges: Mapping[Chain, Measured], runs: Mapping[str, Run], accuracy: Accuracy
) -> dict[Chain, Measured]:
    """Return what merges scored, on the test split too; these scores are kept in the folder of each one's run."""
    found = dict(merges)
    for name in dict.fromkeys(each.run for each in merges.values()):
        own = {chain: each for chain, each in merges.items() if each.run == name and each.accuracy is not None}
        recipes = {chain: forecast.recipe(chain) for chain in own}
        digests = {chain: recipe.digest(forecast.bench.pool) for chain, recipe in recipes.items()}
        judged = judge(runs[name], forecast.bench, {digests[chain]: recipe for chain, recipe in recipes.items()})
        for chain, each in own.items():
            scores = {task: tuple(row.tolist()) for task, row in judged[digests[chain]].items()}
            found[chain] = replace(each, test=accuracy_of(Evaluation(recipes[chain], scores), accuracy))
    return found
