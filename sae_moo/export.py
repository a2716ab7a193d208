"""From a trial to a Hugging Face folder: written whole or not at all, verified by loading it again."""

from __future__ import annotations

import glob
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_moo.errors import InputError, RunError
from sae_moo.evaluate.evaluator import Scorer
from sae_moo.evaluate.task import Split
from sae_moo.experts import ExpertPool
from sae_moo.recipe import BASE, Recipe, encode

RECIPE_FILE = "recipe.json"
SAME = 1e-4
"""How far likelihoods of an instance may differ: batches of another size, after memory ran out, round otherwise."""
Scores = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Score:
    """A task's mean score with its standard error (NaN for one instance) over a number of instances."""

    score: float
    stderr: float
    instances: int


def summary(scores: Scores) -> dict[str, Score]:
    """Return the mean, standard error and number of instances of every task."""
    return {
        task: Score(
            float(row.mean()), float(row.std(ddof=1) / math.sqrt(len(row))) if len(row) > 1 else math.nan, len(row)
        )
        for task, row in scores.items()
    }


def mean_score(scores: Mapping[str, Score], tasks: Sequence[str]) -> Score:
    """Return the mean score of several tasks, which weigh the same, with its standard error over instances."""
    own = [scores[task] for task in tasks]
    stderr = math.sqrt(sum(each.stderr**2 for each in own)) / len(own)
    return Score(sum(each.score for each in own) / len(own), stderr, sum(each.instances for each in own))


@dataclass(frozen=True, slots=True)
class Optimism:
    """The score on the search split minus that on the test split, with its standard error (NaN as in `Score`).

    What a search chose by its scores tends to score lower anew: its luck in the search split was part of the choice.
    The splits share no instance, so that the variances add; the difference also holds how much harder one split is.
    """

    mean: float
    stderr: float


def optimism(search: Score, test: Score) -> Optimism:
    """Return by how much the search split flatters a model."""
    return Optimism(search.score - test.score, math.hypot(search.stderr, test.stderr))


def recipe_document(recipe: Recipe, pool: ExpertPool) -> dict[str, Any]:
    """Return what ``recipe.json`` holds: the recipe, and where its experts were and what was in them."""
    experts = {
        name: {"source": checkpoint.origin, "fingerprint": pool.fingerprints[name]}
        for name, checkpoint in pool.checkpoints.items()
    }
    return encode(recipe) | {"digest": recipe.digest(pool), "experts": experts, "vocabulary": pool.vocabulary}


def write_model(
    output: Path, model: Any, tokenizer: Any, document: Mapping[str, Any], card: str, check: Callable[[Path], None]
) -> None:
    """Write a model folder under a temporary name beside `output`, check it, and only then give it its name.

    Args:
        output: the folder to make; it may exist only if it is empty.
        model: the materialized transformers model.
        tokenizer: its tokenizer.
        document: content of ``recipe.json``.
        card: content of ``README.md``.
        check: looks at the written folder and raises if it is not what it should be.

    Raises:
        InputError: if `output` is taken or cannot be written.
    """
    with whole_folder(output) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        (partial / RECIPE_FILE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        (partial / "README.md").write_text(card, encoding="utf-8")
        check(partial)
        umask = os.umask(0)
        os.umask(umask)
        for file in partial.iterdir():  # some writers keep their files to the owner
            file.chmod(0o666 & ~umask)


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """Give a new folder to write into, which becomes `output` at the end, or vanishes if anything fails.

    Raises:
        InputError: if `output` is taken or cannot be written.
    """
    check_free(output)
    partial = output.parent / f".{output.name}.partial-{os.getpid()}"
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        for left in output.parent.glob(f".{glob.escape(output.name)}.partial-*"):
            if not _alive(left.name.rpartition("-")[2]):  # its writer was killed
                shutil.rmtree(left, ignore_errors=True)
        partial.mkdir()
    except OSError as error:
        raise InputError(f"{output}: cannot be written: {error.strerror}") from error
    try:
        yield partial
        if output.is_dir():
            output.rmdir()  # empty, as checked
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_free(output: Path) -> None:
    """Raise InputError if a folder of that name exists and is not empty, or a file does."""
    if output.is_dir() and not output.is_symlink() and not any(output.iterdir()):
        return
    if output.exists() or output.is_symlink():
        raise InputError(f"{output}: exists already; give a new name, or remove it")


def _alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def verified(
    folder: Path, scorer: Scorer, load: Callable[[Path], Any], expected: Mapping[str, tuple[float, ...]]
) -> dict[Split, dict[str, Score]]:
    """Load a written folder as a user would, score it again, and compare every instance with the trial.

    Args:
        folder: the written folder.
        scorer: the study's tasks.
        load: folder -> model, as a user loads it.
        expected: the trial's scores per instance of the search split.

    Returns:
        Scores of the loaded model per split; the test split only where every task has test instances.

    Raises:
        RunError: if any instance scores differently, by more than batches of another size may round.
    """
    model = load(folder)
    again = scorer.score(model, "search")
    for task, row in expected.items():
        wrong = int(np.sum(np.abs(again[task] - np.array(row)) > SAME))
        if wrong:
            raise RunError(
                f"the written model is not the evaluated one: {wrong} of {len(row)} instances of {task} score "
                f"differently (mean {again[task].mean():.6f} instead of {np.mean(row):.6f}); nothing was exported"
            )
    result: dict[Split, dict[str, Score]] = {"search": summary(again)}
    if all(task.instances("test") for task in scorer.tasks):
        result["test"] = summary(scorer.score(model, "test"))
    return result


def model_card(
    title: str, why: str, pool: ExpertPool, facts: Mapping[str, str], scores: Mapping[Split, Mapping[str, Score]]
) -> str:
    """Return the README of an exported model.

    Args:
        title: the model's name.
        why: why this trade-off.
        pool: the experts it was merged from.
        facts: further lines, name -> value.
        scores: split -> task -> score.
    """
    lines = ["---", "library_name: transformers", "tags: [merge, pruned, sae-moo]", "---", "", f"# {title}", ""]
    lines += [why + ".", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())]
    sources = [f"{name} ({checkpoint.source})" for name, checkpoint in pool.checkpoints.items() if name != BASE]
    lines += [f"| base | {pool.checkpoints[BASE].source} |", f"| experts | {', '.join(sources)} |", ""]
    for split, tasks in scores.items():
        note = "the search chose by these" if split == "search" else "never seen by the search"
        lines += [f"Scores on the {split} split ({note}), mean with standard error:", ""]
        lines += ["| task | score | instances |", "|---|---|---|"]
        lines += [f"| {task} | {s.score:.4f} ± {s.stderr:.4f} | {s.instances} |" for task, s in tasks.items()] + [""]
    if "search" in scores and "test" in scores:
        differences = {task: optimism(own, scores["test"][task]) for task, own in scores["search"].items()}
        told = ", ".join(f"{task} {each.mean:+.4f} ± {each.stderr:.4f}" for task, each in differences.items())
        lines += [f"Optimism of the search (search minus test): {told}.", ""]
    lines += [
        f"`{RECIPE_FILE}` holds the recipe; `sae-moo merge {RECIPE_FILE} --output DIR` makes this model again.",
        "",
    ]
    return "\n".join(lines)
