"""Studies made up without any model: lineages, scores and sparsity as a search might leave them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from stand_ins import NAMES

from sae_moo.config.document import Config
from sae_moo.explore.view import View
from sae_moo.objectives import Evaluation, Objective, Sparsity, TaskMean, named_quantities
from sae_moo.objectives.front import front_of
from sae_moo.recipe import Cast, Expert, Merge, Prune, Recipe, digest
from sae_moo.searchers.searcher import Proposal
from sae_moo.study.executor import Answer
from sae_moo.study.folder import RunFolder, StudyHeader
from sae_moo.study.journal import create_or_load, describe, open_storage
from sae_moo.study.record import Ended
from sae_moo.study.trials import TrialStorage

GROUPS = ("embeddings", "block.0", "block.1", "block.2", "head")
INSTANCES = 40
FIRST = 6  # the experts, the base, their average, and a merge that is its own


@dataclass(frozen=True)
class Made:
    recipe: Recipe
    params: dict[str, float]
    parents: tuple[int, ...]
    operator: str
    generation: int
    evaluation: Evaluation


def made(count: int, tasks: tuple[str, ...], names: tuple[str, ...] = NAMES, seed: int = 0) -> Iterator[Made]:
    """Candidates bred from earlier ones, accurate where experts are mixed and dense."""
    rng = np.random.default_rng(seed)
    experts = names[1:]
    easy = rng.random((len(tasks), INSTANCES))
    recipes: list[Recipe] = []
    skill: list[np.ndarray] = []
    zeros: list[np.ndarray] = []
    for i in range(count):
        parents: tuple[int, ...] = ()
        ratio, generation = 0.0, max(0, i - FIRST) // 20 + (i >= FIRST)
        if i < len(names):
            recipe: Recipe = Expert((*experts, names[0])[i])
            own, rho = 0.3 + 0.4 * rng.random(len(tasks)) * (i < len(experts)), np.zeros(len(GROUPS))
            operator = "expert"
        elif i < FIRST:
            average = (1.0 / len(experts),) * len(experts)
            weights = average if i == len(names) else tuple(rng.random(len(experts)))
            recipe = Merge("linear", tuple(map(Expert, experts)), weights)
            own, rho, operator = (
                np.mean(skill[: len(experts)], axis=0) + 0.05,
                np.zeros(len(GROUPS)),
                "weighted average",
            )
        else:
            parents = tuple(int(p) for p in rng.choice(np.arange(max(0, i - 60), i), 2, replace=False))
            ratio = float(rng.random() * 0.8)
            rho = np.array([0.0, *np.clip(ratio + 0.1 * rng.standard_normal(3), 0, 0.95), 0.0])
            merged = Merge("zero_aware", tuple(recipes[p] for p in parents), tuple(rng.random(2)))
            recipe, operator = Prune(merged, tuple(rho)), "zero-aware crossover"
            own = np.max([skill[p] for p in parents], axis=0) + 0.03 * rng.standard_normal(len(tasks))
        recipe = Cast(recipe, "float32")
        own = np.clip(own, 0.1, 0.85)
        recipes.append(recipe)
        skill.append(own)
        zeros.append(rho)
        able = own - 0.4 * float(rho[1:4].mean()) ** 2 + 0.05 * rng.standard_normal(len(tasks))
        scores = {
            task: tuple((row + 0.1 * rng.standard_normal(INSTANCES) < share).astype(float))
            for task, row, share in zip(tasks, easy, able, strict=True)
        }
        evaluation = Evaluation(
            recipe, scores, float(rho[1:4].mean()), tuple(rho), seconds_merge=0.1, seconds_score=1.0
        )
        params = {
            f"weight {name}": round(float(x), 4) for name, x in zip(names, rng.dirichlet(np.ones(4)), strict=True)
        }
        params |= {"annealed ratio": ratio} if parents else {}
        yield Made(recipe, params, parents, operator, generation, evaluation)


def view(
    count: int,
    tasks: tuple[str, ...] = ("a", "b"),
    names: tuple[str, ...] = NAMES,
    name: str = "s",
    speed: tuple[Objective, ...] = (),
) -> View:
    """A study of `count` trials; an objective for each task and sparsity, and `speed` if it is given, 1 to 5."""
    objectives = (*(TaskMean(task, (task,)) for task in tasks), Sparsity(), *speed)
    records = []
    for i, each in enumerate(made(count, tasks, names)):
        if speed:
            fast = replace(each.evaluation, speed=round(1 / (1 - 0.8 * each.evaluation.group_sparsity[1]), 6))
            each = replace(each, evaluation=fast)
        values = {o.name: o.value(each.evaluation) for o in objectives}
        errors = {task: each.evaluation.stderr(task) for task in tasks} | {"sparsity": 0.0, "speed": 0.0}
        record = Ended(
            number=i,
            asked=each.recipe,
            asked_digest=f"{i:064x}",
            operator=each.operator,
            generation=each.generation,
            parents=each.parents,
            asked_after=i,
            params=each.params,
            recipe=each.recipe,
            digest=f"{i:064x}",
            evaluation=each.evaluation,
            values=values,
            stderr=errors,
            feasible=True,
            told=i,
        )
        records.append(record)
    return View(
        name=name,
        algorithm="nsga3",
        space="lineage",
        budget=count,
        objectives=objectives,
        constraints=(),
        quantities=named_quantities(tasks, objectives, speed=bool(speed)),
        tasks=tasks,
        experts=names,
        groups=GROUPS,
        dtype="float32",
        records=tuple(records),
        front=front_of(records, objectives).ranked,
    )


def run_folder(folder: Path, count: int, tasks: tuple[str, ...] = ("a", "b")) -> Path:
    """The same as a run folder on disk, with its journal."""
    config = Config.from_dict(
        {
            "study": {"name": folder.name},
            "models": {"base": "zoo:base", "experts": {name: f"zoo:{name}" for name in NAMES[1:]}},
            "tasks": [{"name": t, "data": "x.jsonl", "kind": "likelihood", "search": INSTANCES} for t in tasks],
            "objectives": [*tasks, "sparsity"],
        },
        str(folder),
    )
    place = RunFolder(folder)
    storage = open_storage(place.journal, write=True)
    study = create_or_load(storage, folder.name, config.objective_list())
    prints = dict.fromkeys(NAMES, "f" * 64)
    header = StudyHeader(
        config=config.model_dump(mode="json"), directory=str(folder), fingerprints=prints, groups=GROUPS, identity={}
    )
    describe(study, header.attributes())
    place.point(folder.name, None)
    trials = TrialStorage(storage, folder.name, config.objective_list(), (), prints)
    for i, each in enumerate(made(count, tasks)):
        proposal = Proposal(each.recipe, operator=each.operator, generation=each.generation)
        name = digest(each.recipe, prints)
        number = trials.begin(proposal, name, parents=each.parents, params=each.params, asked_after=i, versions="v")
        trials.finish(number, proposal, Answer(number, each.evaluation), i)
    return folder
