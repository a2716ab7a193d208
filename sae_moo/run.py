"""A run: a study seen from outside, while it is searched or after. Reads only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_moo.config import Config
from sae_moo.errors import InputError, nearest
from sae_moo.explore import pick as picking
from sae_moo.explore.neighbours import Neighbour, neighbours
from sae_moo.explore.view import View, finished
from sae_moo.front import front_of
from sae_moo.objectives import Objective, named_quantities
from sae_moo.recipe import Recipe
from sae_moo.storage import JOURNAL, OptunaStorage, TrialRecord, TrialStorage, only_study, open_storage

RUNS = Path("runs")
POINTER = "run.json"  # in a run folder: where its study is


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
        identity: what the study is bound to; see `build.Bench.identity`.
        exhausted: how many trials there were when the search had nothing left to try; None while it has.
        anchors: task name -> the instances of its search split that are asked, where not all are.
    """

    def __init__(self, storage: OptunaStorage, name: str, folder: Path) -> None:
        self.storage = storage
        self.name = name
        self.folder = folder
        attrs: Mapping[str, Any] = storage.get_study_user_attrs(storage.get_study_id_from_name(name))
        if not {"config", "directory", "fingerprints", "identity"} <= set(attrs):
            raise InputError(f"study {name!r} was not made by sae-moo: it lacks its configuration")
        self.config = Config.from_dict(attrs["config"], attrs["directory"])
        self.objectives = self.config.objective_list()
        self.fingerprints: Mapping[str, str] = attrs["fingerprints"]
        self.groups: Sequence[str] = attrs.get("groups", ())
        self.identity: Mapping[str, Any] = attrs["identity"]
        self.anchors: Mapping[str, Sequence[int]] = attrs.get("anchors", {})
        self.exhausted: int | None = attrs.get("exhausted")
        self._trials = TrialStorage(storage, name, self.objectives, self.config.constraint_list(), self.fingerprints)

    @classmethod
    def open(cls, run: str | Path, root: Path = RUNS) -> Run:
        """Open a run by its folder or its name under `root`.

        Raises:
            InputError: if there is no such run, or its study cannot be read.
        """
        folder = Path(run) if Path(run).is_dir() else root / run
        if not folder.is_dir():
            known = sorted(path.name for path in root.glob("*") if path.is_dir()) if root.is_dir() else []
            there = f"; there are {', '.join(known)}" if known else ""
            place = root.resolve()
            raise InputError(
                f"no run {str(run)!r}{nearest(str(run), known)}: neither a folder nor a name in {place}{there}"
            )
        try:
            pointer = json.loads((folder / POINTER).read_text(encoding="utf-8"))
            where, name = pointer["storage"] or folder / JOURNAL, pointer["study"]
            if not isinstance(where, (str, Path)) or not isinstance(name, str):
                raise TypeError("storage and study are text")
        except FileNotFoundError:
            where, name = folder / JOURNAL, None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folder / POINTER}: expected the place of a study: {error!r}") from error
        storage = open_storage(where, write=False)
        try:
            return cls(storage, name or only_study(storage), folder)
        except KeyError:
            raise InputError(f"{where}: holds no study {name!r}") from None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the configuration's order."""
        return tuple(task.name for task in self.config.tasks)

    @property
    def quantities(self) -> dict[str, Objective]:
        """Every quantity that a pick may name: tasks, objectives, sparsity."""
        return named_quantities(self.tasks, self.objectives)

    def trials(self) -> list[TrialRecord]:
        """Return all trials, in order of their numbers."""
        return self._trials.records()

    def front(self) -> list[TrialRecord]:
        """Return the non-dominated feasible trials, best in the first objective first; repeats left out."""
        return list(front_of(self.trials(), self.objectives).ranked)

    def view(self) -> View:
        """Read all trials once, for what shows the study as a whole."""
        records = self.trials()
        return View(
            self.name,
            self.config.search.algorithm,
            self.config.space_kind,
            self.config.search.evaluations,
            tuple(self.objectives),
            tuple(self.config.constraint_list()),
            self.quantities,
            self.tasks,
            tuple(self.fingerprints),
            tuple(self.groups),
            self.config.models.dtype,
            tuple(records),
            front_of(records, self.objectives).ranked,
            self.exhausted == len(records),
        )

    def hypervolume(self) -> float:
        """Return the share of the unit cube of objectives that the front dominates (search split)."""
        return front_of(self.trials(), self.objectives).volume

    def recipe(self, number: int) -> Recipe:
        """Return the whole recipe of a trial."""
        return self.trial(number).recipe

    def trial(self, number: int) -> TrialRecord:
        """Return a finished trial by its number.

        Raises:
            InputError: if there is none, or it has no result.
        """
        return finished(self.trials(), number)

    def pick(
        self,
        where: Sequence[str] = (),
        weights: str | None = None,
        *,
        pseudo: str | None = None,
        wish: str | None = None,
        order: str | None = None,
        tolerance: float | None = None,
        knee: bool = False,
    ) -> tuple[TrialRecord, str]:
        """Return one trial of the front and the reason: the knee, unless one of the rules is given.

        Args:
            where: conditions such as ``"sparsity>=0.3"``.
            weights: largest weighted sum, such as ``"accuracy=2,sparsity=1"``.
            pseudo: nearest pseudo-weights of the objectives, written alike.
            wish: nearest to such values as ``"accuracy=0.7,sparsity=0.5"``.
            order: one quantity after the other, ``"accuracy,sparsity"``.
            tolerance: what counts as equally good in all quantities of `order` but the last, in [0, 1]; None: one
                standard error of the best.
            knee: whether the knee is asked for by name.

        Raises:
            InputError: for an unknown quantity, for two rules, or if nothing on the front keeps the conditions.
        """
        known = self.quantities
        conditions = [picking.parse_condition(text, known) for text in where]
        rule = picking.parse_rule(
            known,
            self.objectives,
            knee=knee,
            weights=weights,
            pseudo=pseudo,
            wish=wish,
            order=order,
            tolerance=tolerance,
        )
        view = self.view()
        if not view.front:
            raise InputError(view.nothing)
        return picking.pick(view.front, self.objectives, known, conditions, rule, view.base)

    def neighbours(self, record: TrialRecord) -> tuple[Neighbour, ...]:
        """Return the trials of the front that have the next larger and the next smaller value of each objective."""
        return neighbours(record, self.front(), self.objectives)
