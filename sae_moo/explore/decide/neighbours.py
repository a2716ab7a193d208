"""What the next trials on a front would cost or gain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sae_moo.explore.decide.significance import Paired, paired
from sae_moo.objectives import Objective, scored
from sae_moo.study.record import Ended


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A trial beside another on the front.

    Args:
        record: the trial.
        towards: what it is next in, e.g. ``more accuracy``.
        difference: objective name -> its value minus the other's.
        tests: objective name -> the difference over instances of the search split; only of objectives scored on tasks.
    """

    record: Ended
    towards: tuple[str, ...]
    difference: Mapping[str, float]
    tests: Mapping[str, Paired]


def neighbours(record: Ended, front: Sequence[Ended], objectives: Sequence[Objective]) -> tuple[Neighbour, ...]:
    """Return the trials of a front that have the next larger and the next smaller value of each objective.

    Args:
        record: a complete trial.
        front: the non-dominated trials.
        objectives: in whose order they come, the larger value first. One trial that is next in several comes once.
    """
    found: dict[int, tuple[Ended, list[str]]] = {}
    for objective in objectives:
        name, here = objective.name, record.values[objective.name]
        for word, beyond in (
            ("more", [each for each in front if each.values[name] > here]),
            ("less", [each for each in front if each.values[name] < here]),
        ):
            if beyond:
                nearest = min(beyond, key=lambda each: (abs(each.values[name] - here), each.number))
                found.setdefault(nearest.number, (nearest, []))[1].append(f"{word} {name}")
    return tuple(
        Neighbour(
            each,
            tuple(towards),
            {objective.name: each.values[objective.name] - record.values[objective.name] for objective in objectives},
            {o.name: paired(each.evaluation.scores, record.evaluation.scores, o.tasks) for o in scored(objectives)},
        )
        for each, towards in found.values()
    )
