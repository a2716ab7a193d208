"""What stands in for models in tests, and looks into live ones."""

from __future__ import annotations

import torch

from sae_moo.experts.pool import ExpertPool
from sae_moo.objectives import Evaluation, Objective
from sae_moo.recipe import Expert
from sae_moo.study.storage import TrialRecord
from sae_moo.testing.searchers import NAMES, Landscape

__all__ = ["FRONT", "NAMES", "OBJECTIVES", "Landscape", "record", "weights_of"]


def weights_of(pool: ExpertPool, model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in pool.parameters(model).items()}


OBJECTIVES = (Objective("accuracy", ("x", "y")), Objective("sparsity"))


def record(number: int, accuracy: float, sparsity: float) -> TrialRecord:
    evaluation = Evaluation(Expert("a"), {"x": (accuracy,), "y": (accuracy,)}, sparsity)
    values = {"accuracy": accuracy, "sparsity": sparsity}
    return TrialRecord(
        number,
        "complete",
        Expert("a"),
        Expert("a"),
        "d",
        "d",
        evaluation,
        values,
        {},
        True,
        "",
        0,
        (),
        number,
        number,
        None,
    )


FRONT = [record(0, 0.8, 0.0), record(1, 0.78, 0.4), record(2, 0.5, 0.6), record(3, 0.2, 0.7)]
