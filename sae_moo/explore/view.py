"""A study as it is shown: what was asked for and what was found, read once; and the trials worth a name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sae_moo.errors import InputError
from sae_moo.explore.decide.neighbours import Neighbour, neighbours
from sae_moo.explore.decide.pick import pick
from sae_moo.explore.decide.rules import KNEE, Condition, Rule
from sae_moo.explore.history import hypervolumes
from sae_moo.explore.timeline import Timeline, timeline
from sae_moo.objectives import Constraint, Objective, Speed
from sae_moo.objectives.front import Accuracy, front_of
from sae_moo.recipe import BASE, Merge, Prune, Recipe, walk
from sae_moo.recipe.methods import METHODS
from sae_moo.recipe.mixing import mixing_weights
from sae_moo.recipe.rows import Rows
from sae_moo.study.record import Ended, Running, TrialRecord, ended, evaluations

DIGITS = 3
"""Mixing weights that agree to so many are the same: coefficients are rounded to four."""


LOOKED_AT = 200
"""Trials whose scores say of what kind a task's are."""


@dataclass(frozen=True, slots=True)
class Marked:
    """A trial with a name.

    Args:
        name: what it is called, e.g. ``knee``.
        record: the trial.
        why: what earned it the name, a clause.
    """

    name: str
    record: Ended
    why: str


@dataclass(frozen=True, eq=False, kw_only=True)
class View:
    """A study as it was at one moment, its trials read once; see `run.Run.view`. Whoever shows it asks this.

    Args:
        name: the study's name.
        algorithm: `search.algorithm`.
        space: ``lineage``, ``coefficients``, or None for one-shot merges.
        budget: number of trials asked for.
        objectives: what is maximized, in order.
        constraints: limits.
        quantities: every quantity that has a name.
        tasks: task names, in the configuration's order.
        experts: expert names, ``base`` among them, in the pool's order.
        groups: parameter group names in the pool's order.
        dtype: of the models.
        records: all trials, in order of their numbers.
        front: the non-dominated feasible ones, best in the first objective first.
        exhausted: whether the search ended with nothing left to try, or no forward tokens left.
        left_alone: sub-models that are neither pruned nor counted in the sparsity.
    """

    name: str
    algorithm: str
    space: str | None
    budget: int
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    quantities: Mapping[str, Objective]
    tasks: tuple[str, ...]
    experts: tuple[str, ...]
    groups: tuple[str, ...]
    dtype: str
    records: tuple[TrialRecord, ...]
    front: tuple[Ended, ...]
    exhausted: bool = False
    left_alone: tuple[str, ...] = ()

    @cached_property
    def done(self) -> tuple[Ended, ...]:
        """Trials with values."""
        return tuple(record for record in ended(self.records) if record.values)

    @cached_property
    def known(self) -> dict[Recipe, int]:
        """Recipe of every trial with a result -> number of the first such trial."""
        found: dict[Recipe, int] = {}
        for record in self.done:
            found.setdefault(record.recipe, record.number)
        return found

    @cached_property
    def plain(self) -> dict[tuple[float, ...], Ended]:
        """Mixing weights of those trials that are weighted sums of the experts and no more -> the first such trial.

        A weight for each of `experts`, the same in every group. Searches over lineages begin with such trials, those
        over coefficients have them among their first vectors.
        """
        found: dict[tuple[float, ...], Ended] = {}
        for record in self.done:
            if not record.parents and all(map(_plain, walk(record.recipe))):
                rows = mixing_weights(record.recipe, self.experts, len(self.groups), self.mixing).round(DIGITS)
                if (rows == rows[0]).all():
                    found.setdefault(tuple(rows[0].tolist()), record)
        return found

    @cached_property
    def mixing(self) -> dict[Recipe, NDArray[np.float64]]:
        """The memo of `mixing.mixing_weights`: lineages share most of their trials."""
        return {}

    @cached_property
    def timeline(self) -> Timeline:
        """Who was busy when; see `timeline.timeline`."""
        return timeline(self.records)

    @cached_property
    def hypervolumes(self) -> NDArray[np.float64]:
        """Hypervolume of the front after each evaluation; see `history.hypervolumes`."""
        return hypervolumes(self.records, self.objectives)

    @cached_property
    def hypervolume(self) -> float:
        """The share of the unit cube of objectives that the front dominates (search split)."""
        return front_of(self.front, self.objectives).volume

    @property
    def nothing(self) -> str:
        """Why the front is empty, where it is; of limits how near the evaluations came to each."""
        if self.done:
            why = f"no evaluation so far keeps the limits: {'; '.join(self._reach())}"
        elif evaluations(self.records):
            why = "every evaluation so far failed or was stopped"
        else:
            why = "no evaluation has ended yet"
        return f"the front of {self.name} is empty: {why}"

    def _reach(self) -> Iterator[str]:
        """Yield each limit with the value that comes nearest to it, and how many trials keep it if some do."""
        for constraint in self.constraints:
            values = [constraint.objective.value(record.evaluation) for record in self.done]
            rows = np.array([constraint.violations(record.evaluation) for record in self.done])
            for limit, broken in zip(constraint.words, rows.T, strict=True):
                kept, nearest = int((broken <= 0).sum()), values[int(np.argmin(broken))]
                reach = f"{kept:,} of {len(values):,} keep it" if kept else f"the best so far is {nearest:.3g}"
                yield f"{constraint.objective.name} {limit}, {reach}"

    @property
    def unfinished(self) -> str:
        """How far the search is, a clause, while there is something left to try of its budget; else nothing."""
        count = evaluations(self.records)
        return f"after {count:,} of {self.budget:,} evaluations" if count < self.budget and not self.exhausted else ""

    @cached_property
    def base(self) -> Ended | None:
        """The trial of the unmerged base, if it was evaluated."""
        return self.unmerged(BASE)

    @cached_property
    def average(self) -> Ended | None:
        """The trial of the unpruned uniform average of the experts, if it was evaluated."""
        experts = len(self.experts) - 1
        return self.plain.get(tuple(0.0 if name == BASE else round(1 / experts, DIGITS) for name in self.experts))

    @cached_property
    def references(self) -> tuple[Marked, ...]:
        """The base, the experts and their uniform average, as far as they were evaluated."""
        found = [Marked(BASE, self.base, "the base model")] if self.base is not None else []
        for name in self.experts:
            record = None if name == BASE else self.unmerged(name)
            if record is not None:
                found.append(Marked(name, record, "an expert"))
        if self.average is not None:
            found.append(Marked("uniform average", self.average, "the uniform average of the experts"))
        return tuple(found)

    @cached_property
    def picks(self) -> tuple[Marked, ...]:
        """The knee, the most accurate trial, the sparsest at least as accurate as the base and as the uniform average.

        Where speed is an objective, so are the fastest. All are of the front; one trial may have several names. Where
        the base or the average was not evaluated, or nothing on the front is as accurate, that pick is left out.
        """
        if not self.front:
            return ()
        knee, why = pick(self.front, self.objectives, self.quantities, base=self.base)
        found = [Marked("knee", knee, why)]
        if self._accuracy:
            best = max(self.front, key=lambda r: (self.accuracy(r), sparsity(r), -r.number))
            found.append(Marked("most accurate", best, "the most accurate trial of the front"))
            for name, record in (("base", self.base), ("uniform average", self.average)):
                if record is None:
                    continue
                able = [r for r in self.front if self.accuracy(r) >= self.accuracy(record)]
                for word, amount in self._most if able else ():
                    most = max(able, key=lambda r: (amount(r), self.accuracy(r), -r.number))
                    called = f"{word} at least as accurate as the {name}"
                    found.append(Marked(called, most, f"the {called}, of {len(able)} such trials on the front"))
        return tuple(found)

    @property
    def _most(self) -> list[tuple[str, Callable[[Ended], float]]]:
        """What trials are picked for that are accurate enough: who has the most of it, and how much a trial has."""
        found: list[tuple[str, Callable[[Ended], float]]] = [("sparsest", sparsity)]
        for objective in self.objectives:
            if isinstance(objective, Speed):
                found.append(("fastest", lambda record, name=objective.name: record.values[name]))  # type: ignore[misc]
        return found

    @cached_property
    def _accuracy(self) -> Accuracy:
        return Accuracy(self.objectives)

    @property
    def shares(self) -> Mapping[str, float]:
        """What each task counts in `accuracy`; see `front.Accuracy`."""
        return self._accuracy.shares

    def trial(self, number: int) -> Ended:
        """Return a trial with a result by its number.

        Raises:
            InputError: if there is none, or it has no result.
        """
        if not 0 <= number < len(self.records):
            there = f"there are 0 to {len(self.records) - 1}" if self.records else "there are none"
            raise InputError(f"no trial {number}; {there}")
        record = self.records[number]
        if isinstance(record, Running) or not record.evaluation.ok:
            why = f": {record.evaluation.reason}" if isinstance(record, Ended) else ""
            raise InputError(f"trial {number} has no result, it is {record.state}{why}")
        return record

    def recipe(self, number: int) -> Recipe:
        """Return the whole recipe of a trial with a result; see `trial`."""
        return self.trial(number).recipe

    def pick(self, where: Sequence[Condition] = (), rule: Rule = KNEE) -> tuple[Ended, str]:
        """Return one trial of the front and the reason.

        Args:
            where: what it must keep.
            rule: which of those that keep it.

        Raises:
            InputError: for an unknown quantity, or if nothing on the front keeps the conditions.
        """
        if not self.front:
            raise InputError(self.nothing)
        return pick(self.front, self.objectives, self.quantities, where, rule, self.base)

    def cautions(self, record: Ended) -> list[str]:
        """Return what to know before a trial is handed on, a sentence each without its full stop: seldom anything."""
        broken = [clause for constraint in self.constraints for clause in constraint.broken(record.evaluation)]
        found = [f"Trial {record.number} breaks a limit: {'; '.join(broken)}"] if broken else []
        base = self.base
        if base is not None and self._accuracy and base.number != record.number:
            own, least, error = self.accuracy(record), self.accuracy(base), self.accuracy_error(base)
            if own < least - (0.0 if math.isnan(error) else error):
                name = "accuracy" if len(self._accuracy.objectives) > 1 else self._accuracy.objectives[0].name
                spread = f" ± {error:.3f}" if error > 0 else ""
                found.append(
                    f"Trial {record.number} is worse than the unmerged base by more than a standard error: "
                    f"{name} {own:.3f}, the base's is {least:.3f}{spread} (search split)"
                )
        return found

    @property
    def meaning(self) -> str:
        """What accuracy is, a clause, where it is none of the objectives but the mean of several; else nothing."""
        names = [objective.name for objective in self._accuracy.objectives]
        return f"accuracy: the mean of {', '.join(names)}" if len(names) > 1 else ""

    @cached_property
    def graded(self) -> frozenset[str]:
        """Tasks whose instances are not right or wrong, such as probabilities of an answer: most scores lie between."""
        found = set()
        for task in self.tasks:
            rows = [record.evaluation.scores.get(task, ()) for record in self.done[:LOOKED_AT]]
            scores = np.concatenate([np.zeros(0), *map(np.asarray, rows)])
            if 2 * int(((scores > 0) & (scores < 1)).sum()) > len(scores):
                found.add(task)
        return frozenset(found)

    def neighbours(self, record: Ended) -> tuple[Neighbour, ...]:
        """Return the trials of the front that have the next larger and the next smaller value of each objective."""
        return neighbours(record, self.front, self.objectives)

    def called(self, record: Ended) -> str:
        """Return what a trial is called where few words fit: ``base``, an expert's name, or by its number."""
        names = [each.name for each in self.references if each.record.number == record.number]
        return names[0] if names else f"trial {record.number}"

    def held_against(self, record: Ended) -> Ended | None:
        """Return what a trial's answers are held against: the average, else the base, unless it is that itself."""
        others = (other for other in (self.average, self.base) if other is not None)
        return next((other for other in others if other.number != record.number), None)

    def accuracy(self, record: Ended) -> float:
        """Return the mean of a trial's objectives that are scored on tasks, in [0, 1]; see `front.Accuracy`."""
        return self._accuracy.value(record)

    def accuracy_error(self, record: Ended) -> float:
        """Return the standard error of `accuracy` over instances; NaN if it is unknown."""
        return self._accuracy.stderr(record)

    def unmerged(self, expert: str) -> Ended | None:
        """Return the trial of an expert, or of the base, as it stands, if it was evaluated; however it was made."""
        return self.plain.get(tuple(float(name == expert) for name in self.experts))


def _plain(node: Recipe) -> bool:
    """Say whether a node keeps a weighted sum of experts one."""
    match node:
        case Merge():
            return METHODS.find(node.method).weighted_sum
        case Prune():
            return not (any(Rows.of_places(node.sparsity).numbers) or any(node.counts or ()) or any(node.units or ()))
        case _:
            return True


def sparsity(record: Ended) -> float:
    """Return the realised sparsity of a trial with a result, in [0, 1)."""
    return record.evaluation.sparsity


def by_trial(marked: Sequence[Marked]) -> Iterator[tuple[Ended, tuple[Marked, ...]]]:
    """Yield every trial once with all its names, in the order of the first of them."""
    for record in dict.fromkeys(each.record.number for each in marked):
        names = tuple(each for each in marked if each.record.number == record)
        yield names[0].record, names
