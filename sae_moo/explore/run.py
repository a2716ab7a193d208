"""A run: a study seen from outside, while it is searched or after. Reads only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_moo.config.document import Config
from sae_moo.errors import InputError
from sae_moo.explore.decide.neighbours import Neighbour
from sae_moo.explore.decide.rules import Condition, rule_of
from sae_moo.explore.view import View
from sae_moo.objectives import Objective
from sae_moo.objectives.front import front_of
from sae_moo.recipe import Recipe
from sae_moo.recipe.groups import is_submodel
from sae_moo.study.folder import RUNS, RunFolder, StudyHeader
from sae_moo.study.journal import OptunaStorage, holds_trials, only_study, open_storage, reached
from sae_moo.study.record import Ended, TrialRecord, ended, own
from sae_moo.study.trials import TrialStorage


class Run:
    """Trials, front and picks of one study.

    Args:
        storage: the open Optuna storage.
        name: the study's name.
        folder: the run folder.

    Attributes:
        config: the configuration the study was made with.
        objectives: what is maximized.
        fingerprints: expert name -> content fingerprint.
        groups: parameter group names, in the pool's order.
        identity: what the study is bound to; see `bench.Bench.identity`.
        exhausted: how many trials there were when the search had nothing left to try, or no forward tokens; None
            while it has.
        anchors: task name -> the instances of its search split that are asked, where not all are.
        merging: how recipes became weights in the session that ran last: by which form of the arithmetic, on which
            device; empty where that was not kept.
        batches: how many tokens its evaluations compute at once, where that was measured; see `StudyHeader`.
        costs: what a token costs, by which speed is modelled; empty where it is not.
    """

    def __init__(self, storage: OptunaStorage, name: str, folder: Path) -> None:
        self.storage = storage
        self.name = name
        self.folder = folder
        with reached(storage):
            storage.get_study_id_from_name(name)  # which says, too, if there is none
            header, others = StudyHeader.of(storage, name), False
            if header is None:
                others = holds_trials(storage, name)
                header = StudyHeader.of(storage, name)  # after that: it may have begun meanwhile
        if header is None and others:
            raise InputError(f"study {name!r} was not made by sae-moo: it lacks its configuration")
        if header is None:
            raise InputError(f"study {name!r} has not begun: it does not say yet what it searches")
        self.config = Config.from_dict(header.config, header.directory)
        self.objectives = self.config.objective_list()
        self.fingerprints = header.fingerprints
        self.groups = header.groups
        self.identity: Mapping[str, Any] = header.identity
        self.anchors = header.anchors
        self.exhausted = header.exhausted
        self.merging = header.merging
        self.batches = header.batches
        self.costs = header.costs
        self._trials = TrialStorage(storage, name, self.objectives, self.config.constraint_list(), self.fingerprints)

    @classmethod
    def open(cls, run: str | Path, root: Path = RUNS) -> Run:
        """Open a run by its folder or its name under `root`.

        Raises:
            InputError: if there is no such run, or its study cannot be read.
        """
        folder = RunFolder.find(run, root)
        where, name = folder.study()
        storage = open_storage(where, write=False)
        try:
            return cls(storage, name or only_study(storage), folder.path)
        except KeyError:
            raise InputError(f"{where}: holds no study {name!r}") from None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the configuration's order."""
        return tuple(task.name for task in self.config.tasks)

    @property
    def quantities(self) -> dict[str, Objective]:
        """Every quantity that a pick may name: tasks, objectives, sparsity, speed where it was modelled."""
        return self.config.quantities()

    def trials(self) -> list[TrialRecord]:
        """Return all trials, in order of their numbers."""
        return self._trials.records()

    def view(self) -> View:
        """Read all trials once. Whoever has several questions asks them of this: the search may be running."""
        records = self.trials()
        return View(
            name=self.name,
            algorithm=self.config.search.algorithm,
            space=self.config.space_kind,
            budget=self.config.search.trials,
            objectives=tuple(self.objectives),
            constraints=tuple(self.config.constraint_list()),
            quantities=self.quantities,
            tasks=self.tasks,
            experts=tuple(self.fingerprints),
            groups=tuple(self.groups),
            dtype=self.config.models.dtype,
            records=tuple(records),
            front=front_of(ended(records), self.objectives).ranked,
            exhausted=self.exhausted == len(own(records)),
            left_alone=tuple(
                group for group in self.groups if is_submodel(group) and group not in self.config.pruning.submodels
            ),
        )

    def front(self) -> list[Ended]:
        """Return the non-dominated feasible trials, best in the first objective first; repeats left out."""
        return list(self.view().front)

    def hypervolume(self) -> float:
        """Return the share of the unit cube of objectives that the front dominates (search split)."""
        return self.view().hypervolume

    def recipe(self, number: int) -> Recipe:
        """Return the whole recipe of a trial."""
        return self.view().recipe(number)

    def trial(self, number: int) -> Ended:
        """Return a trial with a result; see `View.trial`."""
        return self.view().trial(number)

    def pick(
        self,
        where: Sequence[str | Condition] = (),
        weights: Mapping[str, float] | None = None,
        *,
        pseudo: Mapping[str, float] | None = None,
        wish: Mapping[str, float] | None = None,
        order: Sequence[str] | None = None,
        tolerance: float | None = None,
        knee: bool = False,
    ) -> tuple[Ended, str]:
        """Return one trial of the front and the reason: the knee, unless one of the rules is given.

        Args:
            where: conditions such as ``"sparsity>=0.3"``.
            weights: largest weighted sum, such as ``{"accuracy": 2, "sparsity": 1}``.
            pseudo: nearest pseudo-weights of the objectives, given alike.
            wish: nearest to such values as ``{"accuracy": 0.7, "sparsity": 0.5}``.
            order: one quantity after the other, ``["accuracy", "sparsity"]``.
            tolerance: what counts as equally good in all quantities of `order` but the last, in [0, 1]; None: one
                standard error of the best.
            knee: whether the knee is asked for by name.

        Raises:
            InputError: for an unknown quantity, for two rules, or if nothing on the front keeps the conditions.
        """
        conditions = [Condition.parse(each) if isinstance(each, str) else each for each in where]
        rule = rule_of(knee=knee, weights=weights, pseudo=pseudo, wish=wish, order=order, tolerance=tolerance)
        return self.view().pick(conditions, rule)

    def neighbours(self, record: Ended) -> tuple[Neighbour, ...]:
        """Return the trials of the front beside one of it; see `View.neighbours`."""
        return self.view().neighbours(record)
