"""Letters between a driver and a worker: jobs and answers, in which a recipe that both know is a word.

A lineage grows with every generation; what is sent of a child is what its parents lack. Both ends keep what went over
their line, in the same order, and call it by the same names. A line that broke is never taken up again.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from sae_moo.objectives import Constraint, Evaluation, Objective
from sae_moo.objectives.front import Front
from sae_moo.recipe import BASE, Cast, Expert, Recipe, decode, encode, walk
from sae_moo.study.executor import Answer, Job

_LEFT_OUT = Expert(BASE)
"""Stands in an evaluation for its recipe, which travels beside it."""

Written: TypeAlias = str | dict[str, Any]
"""A recipe on the line: what both ends call it, or else the document of what neither knows of it."""


@dataclass(frozen=True, slots=True)
class _JobLetter:
    number: int
    recipes: tuple[Written, ...]
    rivals: _RivalsLetter | None


@dataclass(frozen=True, slots=True)
class _RivalsLetter:
    """A front: its members' recipes, and the evaluations of those that went over the line for the first time."""

    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    members: tuple[tuple[Written, Evaluation | None], ...]


@dataclass(frozen=True, slots=True)
class _AnswerLetter:
    number: int
    recipe: Written
    evaluation: Evaluation
    began: float
    batches: Mapping[str, int]


@dataclass(slots=True)
class _Known:
    """What went over a line so far: candidates, those that others were bred from among them, and evaluations."""

    names: dict[Recipe, str] = field(default_factory=dict)
    recipes: dict[str, Recipe] = field(default_factory=dict)
    evaluations: dict[Recipe, Evaluation] = field(default_factory=dict)

    def written(self, recipe: Recipe) -> Written:
        """Return a recipe as it goes over the line now."""
        if recipe in self.names:
            return self.names[recipe]
        document = encode(recipe, self.names)
        self._note(recipe)
        return document

    def read(self, written: Written) -> Recipe:
        """Return the recipe that came over the line now."""
        if isinstance(written, str):
            return self.recipes[written]
        recipe = decode(written, self.recipes)
        self._note(recipe)
        return recipe

    def _note(self, recipe: Recipe) -> None:
        """Name a recipe and the candidates that it was bred from; both ends meet them in the same order."""
        for node in tuple(walk(recipe, stop=self.names)):
            if node not in self.names and (isinstance(node, Cast) or node is recipe):
                name = str(len(self.names))
                self.names[node], self.recipes[name] = name, node


class DriverLine:
    """The driver's end of a line to one worker."""

    def __init__(self) -> None:
        self._known = _Known()

    def written(self, job: Job) -> bytes:
        """Return a job as a letter."""
        rivals, known = None, self._known
        if job.rivals is not None:
            members = []
            for member in job.rivals.members:
                new = known.evaluations.get(member.recipe) != member
                known.evaluations[member.recipe] = member
                members.append((known.written(member.recipe), member.with_recipe(_LEFT_OUT) if new else None))
            rivals = _RivalsLetter(job.rivals.objectives, job.rivals.constraints, tuple(members))
        letter = _JobLetter(job.number, tuple(known.written(recipe) for recipe in job.recipes), rivals)
        return pickle.dumps(letter, pickle.HIGHEST_PROTOCOL)

    def read(self, letter: bytes) -> tuple[Answer, Mapping[str, int]]:
        """Return what a worker answered, and how many tokens it computes at once, by what is computed."""
        answer: _AnswerLetter = pickle.loads(letter)
        evaluation = answer.evaluation.with_recipe(self._known.read(answer.recipe))
        self._known.evaluations[evaluation.recipe] = evaluation
        return Answer(answer.number, evaluation, answer.began), answer.batches


class WorkerLine:
    """A worker's end of the line to its driver."""

    def __init__(self) -> None:
        self._known = _Known()

    def read(self, letter: bytes) -> Job:
        """Return the job of a letter."""
        asked: _JobLetter = pickle.loads(letter)
        rivals, known = None, self._known
        if asked.rivals is not None:
            members = []
            for written, evaluation in asked.rivals.members:
                recipe = known.read(written)
                if evaluation is not None:
                    known.evaluations[recipe] = evaluation.with_recipe(recipe)
                members.append(known.evaluations[recipe])
            rivals = Front(asked.rivals.objectives, asked.rivals.constraints, members)
        return Job(asked.number, tuple(known.read(written) for written in asked.recipes), rivals)

    def written(self, number: int, evaluation: Evaluation, began: float, batches: Mapping[str, int]) -> bytes:
        """Return what came of a job as a letter."""
        recipe = self._known.written(evaluation.recipe)
        self._known.evaluations[evaluation.recipe] = evaluation
        letter = _AnswerLetter(number, recipe, evaluation.with_recipe(_LEFT_OUT), began, dict(batches))
        return pickle.dumps(letter, pickle.HIGHEST_PROTOCOL)
