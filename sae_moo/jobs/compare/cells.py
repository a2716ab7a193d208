"""One search of a comparison, a method at a seed: run or resumed like any search, then judged on the test split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sae_moo.config.document import Config, differences
from sae_moo.config.sections import MethodSection
from sae_moo.errors import InputError, Interrupted, RunError, StorageError
from sae_moo.evaluate.costs import CostTable
from sae_moo.explore.history import hypervolumes
from sae_moo.explore.run import Run
from sae_moo.explore.view import View
from sae_moo.files.disks import unplaced
from sae_moo.jobs.bench import Bench
from sae_moo.jobs.compare.statistics import Outcome, Point
from sae_moo.jobs.judge import judge
from sae_moo.jobs.search import search
from sae_moo.objectives.scores import Scores
from sae_moo.study.events import Event, Finished, Resumed
from sae_moo.study.folder import ComparisonFolder
from sae_moo.study.record import evaluations, tokens, told


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """One search of a comparison; itself only, however alike another may be.

    Args:
        method: its method.
        seed: its seed.
        config: its configuration, see `Config.cell`.
    """

    method: MethodSection
    seed: int
    config: Config

    @classmethod
    def of(cls, config: Config, method: MethodSection, seed: int) -> Cell:
        """Return a search of the comparison that a configuration describes."""
        return cls(method, seed, config.cell(method, seed))

    @property
    def seeded(self) -> bool:
        """Whether its seed changes anything."""
        return self.config.algorithm.draws(self.config.search.settings)

    def __str__(self) -> str:
        return f"{self.method.name}, seed {self.seed}"


@dataclass(frozen=True, slots=True)
class Made:
    """A search that is running made an evaluation, or found those of earlier sessions.

    Args:
        cell: which.
        evaluations: how many it has now.
        new: how many of them were made in this session.
        budget: how many it will have.
    """

    cell: Cell
    evaluations: int
    new: int
    budget: int


def cells_of(config: Config) -> list[Cell]:
    """Return the searches of a comparison, those of a seed together."""
    assert config.compare is not None
    methods = config.compare.named
    seeds = [config.study.seed + i for i in range(config.compare.seeds)]
    possible = [Cell.of(config, method, seed) for seed in seeds for method in methods]
    return [cell for cell in possible if cell.seeded or cell.seed == config.study.seed]


def run_cell(
    cell: Cell,
    bench: Callable[[], Bench],
    folder: ComparisonFolder,
    listener: Callable[[Made], None] = lambda made: None,
) -> None:
    """Run or resume one search and judge its front on the test split.

    Args:
        cell: the search.
        bench: opens experts and tasks of the comparison, if that has not been done yet.
        folder: of the comparison.
        listener: told of every evaluation.

    Raises:
        InputError: if it cannot be resumed.
        StorageError: if a place that is written to has no room; it names the search too.
    """
    try:
        _run(cell, bench, folder, listener)
    except StorageError as error:
        raise StorageError(f"{cell}: {error.message}") from error
    except OSError as error:
        full = unplaced(error)
        if full is None:
            raise
        raise StorageError(f"{cell}: {full.message}") from error


def _run(cell: Cell, bench: Callable[[], Bench], folder: ComparisonFolder, listener: Callable[[Made], None]) -> None:
    config, counts = cell.config, Counter[str]()

    def heard(event: Event) -> None:
        match event:
            case Resumed():
                counts["all"] = evaluations(event.records)
            case Finished():
                counts.update(("all", "new"))
            case _:
                return
        listener(Made(cell, counts["all"], counts["new"], config.search.trials))

    place = folder.search(config.study.name)
    made, budget = evaluations(Run.open(place.path).trials()) if place.begun else 0, config.search.trials
    if made > budget:  # looked at before the study is told of another budget
        raise InputError(
            f"{cell}: {place.path} holds {made} evaluations, the budget is {budget}; use another study.name"
        )
    configured = bench().configured(config)
    if config.modelled is not None and configured.costs is None:
        configured = configured.costed(known_costs(folder))
    try:
        run = search(config, heard, root=folder.path, bench=configured)
    except InputError as error:
        raise InputError(
            f"{cell}: {error.message}\n  give the comparison another study.name, or remove {place.path}"
        ) from error
    judge(run, configured, {record.digest: record.recipe for record in run.front()})


def known_costs(folder: ComparisonFolder) -> CostTable | None:
    """Return what a token costs as the first of the searches measured it, so that all know one; None before that."""
    searches = folder.searches if folder.path.is_dir() else []
    tables = (Run.open(search.path).costs for search in searches if search.begun)
    return next((CostTable.read(table) for table in tables if table), None)


def failure_of(work: Callable[[], None]) -> str | None:
    """Run a search and return why it failed, if the fault is the search's own; wrong input and Ctrl-C go on up."""
    try:
        work()
    except RunError as error:
        return error.message  # searches of a comparison are not put aside one by one
    except Interrupted:
        raise KeyboardInterrupt from None
    return None


def finished(cell: Cell, folder: ComparisonFolder) -> bool:
    """Say whether a search used its budget up, or had nothing left to try, and its front is judged."""
    config = cell.config
    place = folder.search(config.study.name)
    if not place.begun:
        return False
    run = Run.open(place.path)
    view = run.view()
    made, budget = evaluations(view.records), config.search.trials
    complete = made == budget or (made < budget and view.exhausted)
    if not complete or differences(_settings(run.config), _settings(config)):
        return False
    judged = place.judged(run.tasks)
    return judged is not None and all(record.digest in judged for record in view.front)


def outcome_of(cell: Cell, view: View, judged: Mapping[str, Scores]) -> Outcome:
    """Return what a search came to.

    Args:
        cell: the search.
        view: its trials.
        judged: digest of every trial of its front -> task name -> score per instance of the test split.
    """
    records = told(view.records)
    volume = hypervolumes(records, view.objectives)
    best = np.maximum.accumulate([view.accuracy(r) if r.feasible else 0.0 for r in records])
    front = []
    for record in view.front:
        found = record.evaluation
        front.append(Point(record.number, view.accuracy(record), found.sparsity, judged[record.digest], found.speed))
    own = [record.evaluation for record in records if record.repeats is None]
    seconds = sum(evaluation.seconds for evaluation in own)
    progress = np.stack([volume, best], axis=1)
    return Outcome(cell.method.name, cell.seed, tuple(front), len(records), seconds, progress, tokens(records))


def _settings(config: Config) -> dict[str, Any]:
    """Return what must not have changed since a search was finished, as far as the configuration tells.

    Of the models, and of the texts that features are of, that is where they lie: if they lie elsewhere now, the search
    is resumed, which looks at what they hold.
    """
    probes = {}
    if config.algorithm.features(config.search.settings):
        probes = {"predict.probes": config.predict.probes.model_dump_json()}
    return {**config.identity(), "models": config.models.model_dump_json(), **probes, **_budgets(config)}


def _budgets(config: Config) -> dict[str, int | None]:
    return {"budget": config.search.trials, "budget of tokens": config.search.tokens}
