"""What stands in for models in tests, and looks into live ones."""

from __future__ import annotations

import numpy as np
import torch

from sae_moo.evaluate.racing import Rivals
from sae_moo.experts import ExpertPool
from sae_moo.mixing import mixing_weights
from sae_moo.objectives import Evaluation, Objective
from sae_moo.recipe import Cast, Expert, Prune, Recipe
from sae_moo.storage import TrialRecord

NAMES = ("base", "math", "code", "law")


def weights_of(pool: ExpertPool, model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in pool.parameters(model).items()}


class Landscape:
    """A stand-in for models: scores of a recipe from its mixing weights and the sparsity it asks for."""

    names = NAMES
    groups = ("embeddings", "block.0", "block.1", "head")
    prunable = (False, True, True, False)
    fingerprints = dict.fromkeys(NAMES, "f")

    def __init__(self) -> None:
        self.evaluated: list[Recipe] = []

    def __call__(self, recipe: Recipe, rivals: Rivals | None = None) -> Evaluation:
        self.evaluated.append(recipe)
        inner = recipe.input if isinstance(recipe, Cast) else recipe
        asked = np.broadcast_to(np.array(inner.sparsity if isinstance(inner, Prune) else 0.0), (4,))
        rho = float(asked[1:3].mean())
        weights = mixing_weights(recipe, self.names)
        scores = {}
        for i, task in enumerate(("a", "b")):
            good = np.clip(1 - (weights[i + 1] - 0.6) ** 2 - 0.5 * rho**2, 0, 1)
            instances = np.clip(good - np.linspace(0, 0.5, 10 + i), 0, 1)
            scores[task] = tuple(instances if i == 0 else instances[::-1])
        return Evaluation(recipe, scores, rho, tuple(float(a) * p for a, p in zip(asked, self.prunable, strict=True)))


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
