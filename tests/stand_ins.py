"""What stands in for models in tests, and looks into live ones."""

from __future__ import annotations

from dataclasses import fields

import torch

from sae_moo.experts.pool import ExpertPool
from sae_moo.objectives import Evaluation, Sparsity, TaskMean
from sae_moo.recipe import Expert
from sae_moo.study.record import Ended, Running, TrialRecord
from sae_moo.testing.searchers import NAMES, Landscape

__all__ = ["FRONT", "NAMES", "OBJECTIVES", "Landscape", "record", "weights_of"]


def weights_of(pool: ExpertPool, model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in pool.parameters(model).items()}


OBJECTIVES = (TaskMean("accuracy", ("x", "y")), Sparsity())


def record(number: int, accuracy: float, sparsity: float) -> Ended:
    evaluation = Evaluation(Expert("a"), {"x": (accuracy,), "y": (accuracy,)}, sparsity)
    return Ended(
        number=number,
        asked=Expert("a"),
        asked_digest="d",
        operator="",
        generation=0,
        parents=(),
        asked_after=number,
        recipe=Expert("a"),
        digest="d",
        evaluation=evaluation,
        values={"accuracy": accuracy, "sparsity": sparsity},
        stderr={},
        feasible=True,
        told=number,
    )


def running(record: TrialRecord) -> Running:
    """The trial as it was before it ended."""
    return Running(**{each.name: getattr(record, each.name) for each in fields(Running)})


FRONT = [record(0, 0.8, 0.0), record(1, 0.78, 0.4), record(2, 0.5, 0.6), record(3, 0.2, 0.7)]
