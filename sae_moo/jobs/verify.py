"""Verifying an export in a process of its own, which has seen nothing but what lies on the disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sae_moo.errors import RunError, SaeMooError
from sae_moo.evaluate.scorer import Scorer
from sae_moo.evaluate.writing import decoding
from sae_moo.experts.checkpoint import Checkpoint
from sae_moo.experts.layout import content_digest, dtype_of
from sae_moo.experts.live import load_model
from sae_moo.explore.run import Run
from sae_moo.jobs.judge import bench_of
from sae_moo.objectives.scores import Score, Split, stderr, task_scores
from sae_moo.recipe import BASE

LIKELIHOOD_TOLERANCE = 1e-4
"""How far likelihoods of an instance may differ: batches of another size, after memory ran out, round otherwise."""

# A Ctrl-C reaches both processes; this one then ends the other. What libraries print there is no part of the answer.
_CHILD = """
import os, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
from sae_moo.jobs.verify import answer_to
import sys
with answer:
    answer.write(answer_to(sys.stdin.buffer.read()))
"""


def verify_apart(
    run: Run,
    trial: int,
    folder: Path,
    digests: Mapping[str, str],
    exact: bool = True,
    tell: Callable[[str], None] = lambda note: None,
    scores: Mapping[str, tuple[float, ...]] | None = None,
) -> dict[Split, dict[str, Score]]:
    """Compare every tensor of a written folder with what was computed, load it and compare every score, elsewhere.

    Args:
        run: the run.
        trial: number of the trial it should be.
        folder: the written folder.
        digests: tensor name -> SHA-256 of the bytes it should hold.
        exact: see `same_scores`.
        tell: is told how many tensors and instances are as they should be.
        scores: task -> score per instance of the search split that it should have; None: those of the trial.

    Returns:
        Scores of the loaded model per split; the test split only where every task has test instances.

    Raises:
        RunError: if anything differs, experts and items from those of the study too, or the process could not tell.
    """
    request = {
        "run": str(run.folder.resolve()),
        "trial": trial,
        "folder": str(folder.resolve()),
        "digests": dict(digests),
        "exact": exact,
        "expected": None if scores is None else {task: list(row) for task, row in scores.items()},
    }
    result: dict[str, Any] = json.loads(_answered_apart(json.dumps(request).encode()))
    if "error" in result:
        raise RunError(result["error"])
    instances, different = result["instances"], result["different"]
    tell(
        f"verified in a fresh process: {len(digests)} tensors read back as computed; "
        + (
            f"{instances - different} of {instances} instances of the search split score as in the trial, and no "
            "task's mean differs by more than its standard error"
            if different
            else f"all {instances} instances of the search split score as in the trial"
        )
    )
    return {
        split: {task: Score(*numbers) for task, numbers in tasks.items()} for split, tasks in result["scores"].items()
    }


def _answered_apart(request: bytes) -> bytes:
    """Have a request answered in a fresh process; see `answer_to`.

    Raises:
        RunError: if there is no answer.
    """
    library = str(Path(__file__).resolve().parents[2])
    paths = [library, *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-c", _CHILD],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        input=request,
        stdout=subprocess.PIPE,
        check=False,
    )
    if not done.stdout:
        raise RunError(f"the process that verifies ended with code {done.returncode}; nothing was exported")
    return done.stdout


def check_tensors(folder: Path, digests: Mapping[str, str]) -> None:
    """Raise RunError if a folder does not hold tensors of exactly these names and SHA-256 digests."""
    written = Checkpoint(str(folder))
    found = {name: content_digest(written.load(name).contiguous()) for name in written.tensors}
    wrong = sorted(name for name in {*found, *digests} if found.get(name) != digests.get(name))
    if wrong:
        raise RunError(
            f"{len(wrong)} of {len(digests)} tensors are not what was to be written, {wrong[0]} among them; "
            "nothing was exported"
        )


def _answer(request: Mapping[str, Any]) -> dict[str, Any]:
    folder = Path(request["folder"])
    check_tensors(folder, request["digests"])
    run = Run.open(request["run"])
    record = run.view().trial(request["trial"])
    bench = bench_of(run)
    model = load_model(folder, dtype_of(run.config.models.dtype), bench.device)
    base = bench.pool.checkpoints[BASE].folder
    if decoding(folder) != decoding(base):
        model.generation_config = generation_settings(base)  # as the trial was decoded
    expected = record.evaluation.scores if request["expected"] is None else request["expected"]
    scores, different = same_scores(model, bench.scorer(), expected, request["exact"])
    return {
        "scores": {
            split: {task: [s.score, s.stderr, s.instances] for task, s in tasks.items()}
            for split, tasks in scores.items()
        },
        "instances": sum(len(row) for row in expected.values()),
        "different": different,
    }


def generation_settings(folder: Path) -> Any:
    """Return the settings of generation that a model loaded from a folder has."""
    from transformers import AutoConfig, GenerationConfig

    if (folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(folder, local_files_only=True)
    return GenerationConfig.from_model_config(
        AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    )


def answer_to(request: bytes) -> str:
    """Return the answer to a request, or the fault that there is instead of one; both JSON."""
    try:
        return json.dumps(_answer(json.loads(request)))
    except SaeMooError as error:
        return json.dumps({"error": str(error)})


def same_scores(
    model: Any, scorer: Scorer, expected: Mapping[str, tuple[float, ...]], exact: bool = True
) -> tuple[dict[Split, dict[str, Score]], int]:
    """Score a model that was loaded as a user would, and compare every instance with the trial.

    Args:
        model: the loaded model.
        scorer: the study's tasks.
        expected: the trial's scores per instance of the search split.
        exact: whether the arithmetic is the same; if not (smaller matrices add up in another order), instances may
            differ, and no task's mean may by more than its standard error.

    Returns:
        Scores of the loaded model per split, the test split only where every task has test instances; and how many
        instances of the search split score otherwise than in the trial, 0 if `exact`.

    Raises:
        RunError: if any instance scores differently, by more than batches of another size may round.
    """
    again = scorer.score(model, "search")
    different = 0
    for task, row in expected.items():
        wrong = int(np.sum(np.abs(again[task] - np.array(row)) > LIKELIHOOD_TOLERANCE))
        moved = abs(float(again[task].mean()) - float(np.mean(row)))
        allowed = 0.0 if exact or len(row) == 1 else stderr(row)
        if wrong and (exact or moved > allowed):
            raise RunError(
                f"the written model is not the evaluated one: {wrong} of {len(row)} instances of {task} score "
                f"differently (mean {again[task].mean():.6f} instead of {np.mean(row):.6f}); nothing was exported"
            )
        different += wrong
    result: dict[Split, dict[str, Score]] = {"search": task_scores(again)}
    if all(task.instances("test") for task in scorer.tasks):
        result["test"] = task_scores(scorer.score(model, "test"))
    return result, different
