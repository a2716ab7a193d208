"""Trials in an Optuna study: one per evaluation, begun before it and finished after it.

A trial stores only the nodes its recipe adds; parents are referred to by digest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from sae_moo.errors import InputError, StorageError
from sae_moo.objectives import Constraint, Evaluation, Objective, Screened, Stopped, feasible, violations
from sae_moo.objectives.scores import packed, unpacked
from sae_moo.recipe import Recipe, decode, digest, dumps, encode
from sae_moo.recipe.catalogue import OtherGuest
from sae_moo.searchers.searcher import Proposal
from sae_moo.study.executor import Answer
from sae_moo.study.journal import OptunaStorage, reached
from sae_moo.study.record import Ended, Inherited, Running, TrialRecord
from sae_moo.study.writer import PARAM_RANGE, PLOTTED, Ending, writer_of

# Attributes of a trial that are read again by us alone.
INTERNAL = {"recipe", "resolved", "instances", "vector", "group_sparsity", "sparseness", "asked_after", "told"}
INTERNAL |= {"allocations", "began"}


@dataclass(frozen=True, slots=True)
class _Begun:
    """A running trial that was begun here: what Optuna calls it, what was written, and the recipe that this says."""

    identity: int
    params: Mapping[str, float]
    attributes: Mapping[str, Any]
    recipe: Recipe


class TrialStorage:
    """A study opened for reading or writing.

    Args:
        storage: an open Optuna storage.
        name: the study's name.
        objectives: what is maximized, in order.
        constraints: limits, stored as Optuna's constraints.
        fingerprints: expert name -> content fingerprint, for digests.
    """

    def __init__(
        self,
        storage: OptunaStorage,
        name: str,
        objectives: Sequence[Objective],
        constraints: Sequence[Constraint],
        fingerprints: Mapping[str, str],
    ) -> None:
        with reached(storage):
            self.study = study_of(storage, name)
            self._id = storage.get_study_id_from_name(name)
        self._storage = storage
        self._writer = writer_of(storage, self._id)
        self.objectives = tuple(objectives)
        self.constraints = tuple(constraints)
        self._limits = [_attribute(label) for constraint in self.constraints for label in constraint.labels]
        self._fingerprints = dict(fingerprints)
        self._digests: dict[Recipe, str] = {}  # every evaluated recipe -> what children call it
        self._recipes: dict[str, Recipe] = {}
        self._begun: dict[int, _Begun] = {}  # running trials that were begun here, by number

    def records(self) -> list[TrialRecord]:
        """Return all trials in order of their numbers.

        Raises:
            InputError: if a trial cannot be read as one of ours.
            StorageError: if its database cannot be read.
        """
        with reached(self._storage):
            trials = self.study.get_trials(deepcopy=False)
        return [self._read(trial) for trial in trials]

    def examined(self) -> tuple[list[TrialRecord], list[str]]:
        """Return the trials that can be read, in order of their numbers, and what is wrong with each of the others.

        Raises:
            StorageError: if their database cannot be read.
        """
        records, faults = [], []
        with reached(self._storage):
            trials = self.study.get_trials(deepcopy=False)
        for trial in trials:
            try:
                records.append(self._read(trial))
            except InputError as error:
                faults.append(str(error))
        return records, faults

    def begin(
        self,
        proposal: Proposal,
        name: str,
        *,
        parents: Sequence[int] = (),
        params: Mapping[str, float] | None = None,
        asked_after: int,
        versions: str,
        allocations: str | None = None,
    ) -> int:
        """Write a running trial and return its number.

        Args:
            proposal: what will be evaluated.
            name: the digest of its recipe; whoever asked has it, and finding it walks the whole lineage.
            parents: trial numbers.
            params: at most some fifteen numbers worth plotting.
            asked_after: how many evaluations were told before.
            versions: of the software that evaluates.
            allocations: identity of the proposal with its alternatives; None if it has none.

        Raises:
            StorageError: if it cannot be written; see `journal.reached`.
        """
        shown = {name: _plotted(value) for name, value in (params or {}).items()}
        attributes: dict[str, Any] = {
            "generation": proposal.generation,
            "operator": proposal.operator,
            "parents": list(parents),
            "asked_after": asked_after,
            "digest": name,
            "recipe": dumps(encode(proposal.recipe, self._digests)),
            "versions": versions,
        }
        if proposal.vector:
            attributes["vector"] = list(proposal.vector)
        if allocations is not None:
            attributes["allocations"] = allocations
        with reached(self._storage):
            identity, number = self._writer.begin(shown, attributes)
        self._begun[number] = _Begun(identity, shown, attributes, proposal.recipe)
        return number

    def finish(
        self,
        number: int,
        proposal: Proposal,
        answer: Answer,
        told: int,
        repeats: int | None = None,
        params: Mapping[str, float] | None = None,
    ) -> Ended:
        """Write what came of a running trial and end it.

        Args:
            number: the trial.
            proposal: what it was begun with.
            answer: its evaluation, a failed one ends the trial as failed, with its reason; and who made it, and when.
            told: position of this evaluation among those told.
            repeats: the trial it repeats, or None.
            params: numbers worth plotting that were not known when it was begun.

        Raises:
            StorageError: if it cannot be written; the trial then still runs, and is evaluated again.
        """
        with reached(self._storage):
            return self._finish(number, proposal, answer, told, repeats, params or {})

    def _finish(
        self,
        number: int,
        proposal: Proposal,
        answer: Answer,
        told: int,
        repeats: int | None,
        params: Mapping[str, float],
    ) -> Ended:
        evaluation = answer.evaluation
        attributes = _attributes(evaluation, told) | _whereabouts(answer)
        if repeats is not None:
            attributes["repeats"] = repeats
        if evaluation.recipe != proposal.recipe:
            attributes["resolved"] = dumps(encode(evaluation.recipe, self._digests))
        limits: dict[str, float] = {}
        if evaluation.ok:  # not by `Trial.set_constraint`, which keeps what a run that was killed here has left
            broken = violations(self.constraints, evaluation)
            limits = dict(zip(self._limits, map(float, broken), strict=False))  # the last says that it did not fail
            for key, amount in limits.items():
                if math.isnan(amount):
                    raise ValueError(f"trial {number}: {key} is not a number")
        # what `Study.tell` does beside this is for samplers, and a copy of the trial
        values = [float(objective.value(evaluation)) for objective in self.objectives] if evaluation.ok else None
        failed = TrialState.FAIL if evaluation.stopped is None else TrialState.PRUNED
        state = TrialState.COMPLETE if evaluation.ok else failed
        params = {name: _plotted(value) for name, value in params.items()}
        begun = self._begun.get(number)
        identity = self._identity(number) if begun is None else begun.identity
        certain = self._writer.finish(identity, Ending(state, values, attributes, limits, params))
        if begun is not None and certain and evaluation.ok and evaluation.scores:
            written = {**begun.params, **params}, {**begun.attributes, **attributes}
            record = self._record(number, state, values, *written, evaluation)
        else:  # beside what is there already, if a run was killed here
            trial = self._storage.get_trial(identity)
            if (trial.state, trial.user_attrs.get("told")) != (state, told):
                raise StorageError(f"trial {number}: another process has ended it; a study is written by one at a time")
            record = self._read(trial)
        assert isinstance(record, Ended)
        self._begun.pop(number, None)
        return record

    def adopt(self, record: Ended, source: Inherited, told: int, params: Mapping[str, float]) -> Ended:
        """Write a trial that another study has evaluated, at once and whole.

        Args:
            record: the trial as that study has it; its parents are trials of this one, and its evaluation has scores
                of this study's tasks alone, of all of them if it went well.
            source: where it is from.
            told: position among those told.
            params: numbers worth plotting.

        Raises:
            StorageError: if it cannot be written.
        """
        evaluation = record.evaluation
        attributes = _attributes(evaluation, told) | {
            "generation": record.generation,
            "operator": record.operator,
            "parents": list(record.parents),
            "asked_after": told,
            "digest": record.asked_digest,
            "recipe": dumps(encode(record.asked, self._digests)),
            "inherited": asdict(source),
        }
        if record.recipe != record.asked:
            attributes["resolved"] = dumps(encode(record.recipe, self._digests))
        labels = [label for constraint in self.constraints for label in constraint.labels]
        template = create_trial(
            state=TrialState.COMPLETE if evaluation.ok else TrialState.FAIL,
            values=[objective.value(evaluation) for objective in self.objectives] if evaluation.ok else None,
            params={name: _plotted(value) for name, value in params.items()},
            distributions=dict.fromkeys(params, PLOTTED),
            user_attrs=attributes,
            constraints={
                label: float(amount)
                for label, amount in zip(labels, violations(self.constraints, evaluation), strict=False)
            }
            if evaluation.ok
            else None,
        )
        with reached(self._storage):
            adopted = self._read(self._storage.get_trial(self._storage.create_new_trial(self._id, template)))
        assert isinstance(adopted, Ended)
        return adopted

    def _identity(self, number: int) -> int:
        """Return what Optuna calls a trial that was not begun here."""
        return int(self._storage.get_trial_id_from_study_id_trial_number(self._id, number))

    def _read(self, trial: FrozenTrial) -> TrialRecord:
        """Read a trial as Optuna has it."""
        return self._record(trial.number, trial.state, trial.values, trial.params, trial.user_attrs)

    def _record(
        self,
        number: int,
        state: TrialState,
        values: Sequence[float] | None,
        params: Mapping[str, float],
        attrs: Mapping[str, Any],
        evaluation: Evaluation | None = None,
    ) -> TrialRecord:
        """Return what a trial is by what was written to it.

        Args:
            number: of the trial.
            state: whether it has ended, and how.
            values: of the objectives.
            params: numbers worth plotting.
            attrs: what it keeps.
            evaluation: what was written to it, and nothing else was, by which its means and errors are known; None:
                what was written is read.
        """
        try:
            asked: dict[str, Any] = {
                "number": number,
                "asked": self._asked(number, attrs["recipe"]),
                "asked_digest": attrs["digest"],
                "operator": attrs["operator"],
                "generation": attrs["generation"],
                "parents": tuple(attrs["parents"]),
                "asked_after": attrs["asked_after"],
                "params": dict(params),
                "vector": tuple(attrs.get("vector", ())),
                "allocations": attrs.get("allocations"),
            }
            if not isinstance(asked["asked_digest"], str) or not isinstance(asked["generation"], int):
                raise TypeError("digest is text, generation a whole number")
            if not state.is_finished():
                return Running(**asked)
            record = self._ended(state, values, attrs, asked, evaluation)
        except OtherGuest as error:
            raise InputError(f"trial {number}: {error}") from error
        except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"trial {number} was not written by sae-moo or is damaged: {error!r}") from error
        self._digests[record.recipe] = record.digest
        self._recipes[record.digest] = record.recipe
        return record

    def _asked(self, number: int, written: str) -> Recipe:
        """Return the recipe that a text says; nobody needs to read what was written here just before."""
        begun = self._begun.get(number)
        if begun is not None and begun.attributes["recipe"] == written:
            return begun.recipe
        return decode(json.loads(written), self._recipes)

    def _ended(
        self,
        state: TrialState,
        values: Sequence[float] | None,
        attrs: Mapping[str, Any],
        asked: Mapping[str, Any],
        known: Evaluation | None,
    ) -> Ended:
        recipe, name = asked["asked"], asked["asked_digest"]
        if "resolved" in attrs:
            recipe = decode(json.loads(attrs["resolved"]), self._recipes)
            name = digest(recipe, self._fingerprints)
        evaluation = _evaluation(recipe, attrs, state) if known is None or known.recipe != recipe else known
        named, stderr = {}, {}
        if evaluation.ok:
            named = {o.name: float(value) for o, value in zip(self.objectives, values or (), strict=True)}
            stderr = {task: evaluation.stderr(task) for task in evaluation.scores}
            stderr |= {objective.name: objective.stderr(evaluation) for objective in self.objectives}
        return Ended(
            **asked,
            recipe=recipe,
            digest=name,
            evaluation=evaluation,
            values=named,
            stderr=stderr,
            feasible=feasible(self.constraints, evaluation),
            told=attrs["told"],
            repeats=attrs.get("repeats"),
            worker=attrs.get("worker", ""),
            began=attrs.get("began"),
            losses=attrs.get("workers lost", 0),
            inherited=Inherited(**attrs["inherited"]) if "inherited" in attrs else None,
        )


def study_of(storage: OptunaStorage, name: str) -> optuna.Study:
    """Return a study of a storage as Optuna has it."""
    return optuna.load_study(study_name=name, storage=storage, sampler=optuna.samplers.RandomSampler(seed=0))


def trial_of(study: optuna.Study, identity: int) -> Trial:
    """Return a trial as Optuna has it, by its identity in the storage."""
    return Trial(study, identity)


def readable(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return trials for a reader's eyes; those given are not changed.

    What only we read is left out. Parameters have the range that the trials have used, 0 among it, since plots and
    importances are of the whole range; one that only some trials have and that never differs is left out. Limits are
    also given where Optuna kept them before its release 5.
    """
    values: dict[str, list[float]] = {}
    for trial in trials:
        for name, value in trial.params.items():
            values.setdefault(name, []).append(value)
    ranges = {}
    for name, row in values.items():
        if len(set(row)) > 1 or len(row) == len(trials):
            low, high = min(0.0, *row), max(0.0, *row)
            ranges[name] = FloatDistribution(low, high if high > low else low + 1.0)
    shown = []
    for trial in trials:
        own = copy(trial)
        own.params = {name: value for name, value in trial.params.items() if name in ranges}
        own.distributions = {name: ranges[name] for name in own.params}
        own.user_attrs = {key: value for key, value in trial.user_attrs.items() if key not in INTERNAL}
        if trial.constraints:
            own.system_attrs = {**trial.system_attrs, "constraints": list(trial.constraints.values())}
        shown.append(own)
    return shown


def _attributes(evaluation: Evaluation, told: int) -> dict[str, Any]:
    """Return what a trial keeps of its evaluation; `_evaluation` reads it."""
    attributes: dict[str, Any] = {"told": told}
    if not evaluation.ok:
        attributes["reason"] = evaluation.reason
    if evaluation.scores:
        for task in evaluation.scores:
            attributes[f"{task} score"] = evaluation.mean(task)  # a suffix: a task may be called anything
            attributes[f"{task} stderr"] = evaluation.stderr(task)
        attributes["instances"] = {task: packed(row) for task, row in evaluation.scores.items()}
    if evaluation.scores or evaluation.stopped is not None:
        attributes["sparsity"] = evaluation.sparsity
        attributes["group_sparsity"] = list(evaluation.group_sparsity)
        if evaluation.speed is not None:
            attributes["speed"] = evaluation.speed
    if evaluation.stopped is not None:
        attributes["stopped"] = asdict(evaluation.stopped)
    if evaluation.sparseness:
        attributes["sparseness"] = list(evaluation.sparseness)
    attributes["seconds merging"] = evaluation.seconds_merge
    attributes["seconds scoring"] = evaluation.seconds_score
    if evaluation.tokens is not None:
        attributes["tokens"] = evaluation.tokens
    if evaluation.screened is not None:
        attributes["screened"] = asdict(evaluation.screened)
    return attributes


def _whereabouts(answer: Answer) -> dict[str, Any]:
    """Return what a trial keeps of who evaluated it, and when."""
    found: dict[str, Any] = {} if answer.began is None else {"began": answer.began}
    if answer.worker:
        found["worker"] = answer.worker
    if answer.losses:
        found["workers lost"] = answer.losses
    return found


def _evaluation(recipe: Recipe, attrs: Mapping[str, Any], state: TrialState) -> Evaluation:
    # what a run wrote that was killed before it told the trial's end may be left: the state says what counts
    return Evaluation(
        recipe,
        {task: unpacked(row) for task, row in attrs.get("instances", {}).items()},
        attrs.get("sparsity", 0.0),
        tuple(attrs.get("group_sparsity", ())),
        None if state == TrialState.COMPLETE else attrs.get("reason", "unknown"),
        Stopped(**attrs["stopped"]) if state == TrialState.PRUNED else None,
        attrs.get("seconds merging", 0.0),
        attrs.get("seconds scoring", 0.0),
        tuple(attrs.get("sparseness", ())),
        attrs.get("speed"),
        attrs.get("tokens"),
        Screened(**attrs["screened"]) if "screened" in attrs else None,
    )


def _attribute(limit: str) -> str:
    """Return what Optuna calls a limit among the attributes of a trial, by its label."""
    (name,) = create_trial(value=0.0, constraints={limit: 0.0}).system_attrs
    return name


def _plotted(value: float) -> float:
    if math.isnan(value):
        raise ValueError("expected numbers worth plotting, got NaN")
    return min(max(float(value), PARAM_RANGE[0]), PARAM_RANGE[1])
