"""The experts' own scores, and the base's: every search begins with them, so a machine computes them once."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version

import torch

from sae_moo.evaluate.task import Task
from sae_moo.experts import ExpertPool
from sae_moo.objectives import Evaluation
from sae_moo.recipe import BASE, Cast, Expert, Recipe
from sae_moo.user_cache import keep, kept

KIND = "scores"


class ExpertScores:
    """Evaluations of unmerged experts on the search split, kept in the user's cache folder.

    They are found again by everything that they depend on: the fingerprints of the expert, of the base and of the
    tasks, how these are asked, the base's configuration, dtype and device, the machine with its number of threads, and
    the versions of the libraries that compute.

    Args:
        pool: the experts.
        tasks: the tasks.
        device: where models live.
        blocks: in how many parts the search split is asked.
        writer: what continues prompts.
    """

    def __init__(
        self, pool: ExpertPool, tasks: Sequence[Task], device: str, blocks: int = 1, writer: str = "transformers"
    ) -> None:
        self._pool = pool
        self._instances = {task.name: task.instances("search") for task in tasks}
        self._facts = [
            pool.fingerprints[BASE],
            pool.vocabulary,
            pool.checkpoints[BASE].config,
            [[task.name, task.fingerprint] for task in tasks],
            blocks,
            writer,
            device,
            platform.node(),
            torch.get_num_threads(),
            [version(name) for name in ("sae-moo", "torch", "transformers")],
        ]

    def find(self, recipe: Recipe) -> Evaluation | None:
        """Return the evaluation of a recipe that is an expert as it stands; None if it is none, or not known yet."""
        name = self._name(recipe)
        text = None if name is None else kept(KIND, name)
        if text is None:
            return None
        try:
            found = json.loads(text)
            evaluation = Evaluation(
                recipe,
                {task: tuple(row) for task, row in found["scores"].items()},
                found["sparsity"],
                tuple(found["group_sparsity"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return None  # written by another version, or damaged
        asked = {task: len(row) for task, row in evaluation.scores.items()}
        return evaluation if asked == self._instances else None

    def keep(self, evaluation: Evaluation) -> None:
        """Keep an evaluation if it is an expert's, and whole."""
        name = self._name(evaluation.recipe)
        if name is not None and evaluation.ok:
            found = asdict(evaluation)
            keep(KIND, name, json.dumps({key: found[key] for key in ("scores", "sparsity", "group_sparsity")}))

    def _name(self, recipe: Recipe) -> str | None:
        if not isinstance(recipe, Cast) or not isinstance(recipe.input, Expert):
            return None
        facts = [self._pool.fingerprints[recipe.input.name], recipe.dtype, *self._facts]
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
