"""Two models held against each other: what they score, instance by instance, and how far apart their weights are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sae_moo.config.document import Config
from sae_moo.deploy.stream import Stream
from sae_moo.errors import InputError
from sae_moo.experts.checkpoint import Checkpoint
from sae_moo.experts.layout import dtype_of
from sae_moo.experts.pool import ExpertPool, TensorInfo
from sae_moo.explore.decide.significance import Paired, paired
from sae_moo.explore.run import Run
from sae_moo.jobs.bench import Bench
from sae_moo.jobs.evaluate import evaluate
from sae_moo.jobs.judge import bench_of, check_has_test, judge
from sae_moo.jobs.merge import read_recipe
from sae_moo.materialization.prepare import prepared
from sae_moo.objectives import Objective, scored
from sae_moo.objectives.scores import Score, Scores, Split, mean_score, task_scores
from sae_moo.recipe import BASE, Recipe
from sae_moo.recipe.structure import repair_of
from sae_moo.study.record import Ended

WHOLE_MODEL = "all"


@dataclass(frozen=True, slots=True)
class ScoreDifference:
    """What two models score on a task or an objective.

    Args:
        first, second: their scores.
        change: the second minus the first, over the same instances.
    """

    first: Score
    second: Score
    change: Paired


@dataclass(frozen=True, slots=True)
class GroupDifference:
    """How far apart two models are within a parameter group.

    Args:
        name: of the group; `WHOLE_MODEL` for all tensors.
        distance: L2 norm of the difference over that of the first model; inf where the first is zero, the second not.
        sparsity: fraction of zeros of the first and of the second over prunable weights; None where there are none.
    """

    name: str
    distance: float
    sparsity: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Diff:
    """What two models differ in.

    Args:
        names: what they are called.
        split: which instances they were scored on.
        scores: task or objective -> scores; tasks first. An objective that is a single task is not told again.
        groups: the whole model, then every group in model order; empty where tensors have other shapes.
        unlike: which have, a sentence; empty where none have.
    """

    names: tuple[str, str]
    split: Split
    scores: Mapping[str, ScoreDifference]
    groups: tuple[GroupDifference, ...]
    unlike: str = ""


def of_trials(run: Run, first: Ended, second: Ended, split: Split = "search") -> Diff:
    """Hold two trials of a run against each other.

    Scores on the search split are those of the study; on the test split the models are scored once and the scores kept
    in the run folder. Weights are merged anew, tensor by tensor.

    Args:
        run: the run.
        first: a complete trial of it.
        second: of another.
        split: which scores.

    Raises:
        InputError: if experts or items are not those of the study.
    """
    records = (first, second)
    if split == "test":
        check_has_test(run.config)
    bench = bench_of(run, any_device=True)
    rows: list[Scores]
    if split == "test":
        judged = judge(run, bench, {record.digest: record.recipe for record in records})
        rows = [judged[record.digest] for record in records]
    else:
        rows = [{task: np.array(row) for task, row in record.evaluation.scores.items()} for record in records]
    weights = [_of_recipe(record.recipe, bench) for record in records]
    names = (f"trial {first.number}", f"trial {second.number}")
    return Diff(names, split, _scores(rows, run.objectives), _groups(bench.pool, *weights))


def of_models(first: str, second: str, config: Config, split: Split = "test") -> Diff:
    """Hold two models against each other, each scored with the configured tasks.

    Models of one architecture may be of other sizes, as one from which neurons were dropped is: their scores are
    compared, not their weights.

    Args:
        first: a model folder, a hub id, ``zoo:NAME``, or a recipe (``.json``) over the configured experts.
        second: another.
        config: the configuration.
        split: which items to score on.

    Raises:
        InputError: if one cannot be used, or they are of different architectures.
        TaskError: if a model's answers are not finite.
    """
    targets = (first, second)
    bench = Bench.open(config) if any(target.endswith(".json") for target in targets) else None
    opened = [_opened(target, config, bench) for target in targets]
    shapes = [{info.name: info.shape for info in pool.tensors} for pool, _ in opened]
    alone = sorted(shapes[0].keys() ^ shapes[1].keys())
    if alone:
        more = f" and {len(alone) - 3} more" if len(alone) > 3 else ""
        raise InputError(f"{first} and {second} are not of one architecture: only one has {', '.join(alone[:3])}{more}")
    other = [name for name in shapes[0] if shapes[0][name] != shapes[1][name]]
    unlike = other and (
        f"{len(other)} tensors have other shapes ({other[0]}: {shapes[0][other[0]]} and {shapes[1][other[0]]}), so the "
        "weights are not compared."
    )
    rows = []
    for target in targets:
        found = evaluate(target, config, split, bench)
        rows.append({task: np.array([s["score"] for s in found.samples if s["name"] == task]) for task in found.scores})
    groups = () if unlike else _groups(opened[0][0], opened[0][1], opened[1][1])
    return Diff(targets, split, _scores(rows, config.objective_list()), groups, unlike or "")


Tensors = Callable[[TensorInfo], Tensor]
"""What gives the tensors of a model."""


def _opened(target: str, config: Config, bench: Bench | None) -> tuple[ExpertPool, Tensors]:
    if target.endswith(".json"):
        assert bench is not None
        recipe = read_recipe(Path(target), bench.pool)
        return bench.pool, _of_recipe(bench.ground().candidate(recipe), bench)
    pool = ExpertPool({BASE: Checkpoint(target)}, pruned=config.pruning.submodels)
    rounding = pool.rounding(config.models.dtype)
    return pool, lambda info: pool.load(BASE, info.name).to(info.cast(rounding))


def _of_recipe(recipe: Recipe, bench: Bench) -> Tensors:
    if repair_of(recipe) is not None:  # runs through a whole model
        stream = Stream(recipe, bench.pool, dtype_of(bench.config.models.dtype), bench.device)
        return lambda info: stream.tensor(info.name)
    return prepared(recipe, bench.pool, bench.device).plan.tensor


def _scores(rows: Sequence[Scores], objectives: Sequence[Objective]) -> dict[str, ScoreDifference]:
    first, second = rows
    means = task_scores(first), task_scores(second)
    wanted: dict[str, tuple[str, ...]] = {task: (task,) for task in first}
    wanted |= {o.name: o.tasks for o in scored(objectives) if len(o.tasks) > 1}
    return {
        name: ScoreDifference(mean_score(means[0], tasks), mean_score(means[1], tasks), paired(second, first, tasks))
        for name, tasks in wanted.items()
    }


@torch.no_grad()
def _groups(pool: ExpertPool, first: Tensors, second: Tensors) -> tuple[GroupDifference, ...]:
    """Return the differences by group; two tensors are in memory at a time."""
    count = len(pool.groups)
    apart, norm = np.zeros(count), np.zeros(count)
    zeros, prunable = np.zeros((2, count)), np.zeros(count)
    for info in pool.tensors:
        a, b = (weights(info).cpu() for weights in (first, second))
        if info.prunable:
            prunable[info.group] += info.numel
            zeros[:, info.group] += [info.numel - int(torch.count_nonzero(each)) for each in (a, b)]
        a, b = a.float(), b.float()
        norm[info.group] += _square(a)
        apart[info.group] += _square(b - a)

    def told(name: str, groups: Sequence[int]) -> GroupDifference:
        far, size, all_ = float(apart[groups].sum()), float(norm[groups].sum()), float(prunable[groups].sum())
        distance = math.sqrt(far / size) if size else (math.inf if far else 0.0)
        share = tuple(float(row[groups].sum()) / all_ for row in zeros) if all_ else None
        return GroupDifference(name, distance, None if share is None else (share[0], share[1]))

    return (told(WHOLE_MODEL, list(range(count))), *(told(name, [i]) for i, name in enumerate(pool.groups)))


def _square(tensor: Tensor) -> float:
    """Return the sum of squares, in double precision."""
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2
