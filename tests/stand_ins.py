"""What stands in for models in tests, and looks into live ones."""

from __future__ import annotations

import numpy as np
import torch

from sae_moo.experts.pool import ExpertPool
from sae_moo.objectives import Evaluation, Objective
from sae_moo.objectives.front import Front
from sae_moo.recipe import Expert, Merge, Prune, Recipe, children, walk
from sae_moo.recipe.mixing import mixing_weights
from sae_moo.study.storage import TrialRecord

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
        self._zeros: dict[Recipe, np.ndarray] = {}

    def zeros(self, recipe: Recipe) -> np.ndarray:
        """Sparsity per group: a pruning asks for it, a zero-aware merge keeps some of what both parents have."""
        for node in walk(recipe, stop=self._zeros):
            if node in self._zeros:
                continue
            inputs = [self._zeros[child] for child in children(node)]
            match node:
                case Prune():
                    self._zeros[node] = np.maximum(inputs[0], np.broadcast_to(np.array(node.sparsity), (4,)))
                case Merge():
                    kept = 0.9 * np.min(inputs, axis=0) if node.method == "zero_aware" else np.zeros(4)
                    self._zeros[node] = kept
                case _:
                    self._zeros[node] = inputs[0] if inputs else np.zeros(4)
        return self._zeros[recipe]

    def __call__(self, recipe: Recipe, rivals: Front[Evaluation] | None = None) -> Evaluation:
        self.evaluated.append(recipe)
        asked = self.zeros(recipe)
        rho = float(asked[1:3].mean())
        weights = mixing_weights(recipe, self.names, 4).mean(axis=0)
        scores = {}
        for i, task in enumerate(("a", "b")):
            good = np.clip(1 - (weights[i + 1] - 0.6) ** 2 - 0.5 * rho**2, 0, 1)
            instances = np.clip(good - np.linspace(0, 0.5, 10 + i), 0, 1)
            scores[task] = tuple(instances if i == 0 else instances[::-1])
        groups = tuple(float(a) * p for a, p in zip(asked, self.prunable, strict=True))
        return Evaluation(recipe, scores, rho, groups, sparseness=(rho / 2, *(each / 2 for each in groups)))


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
