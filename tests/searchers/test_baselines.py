"""One-shot merges: what each tries, and that only the best is pruned."""

from __future__ import annotations

import numpy as np
import pytest
from stand_ins import Landscape

from sae_moo.errors import RunError
from sae_moo.materialization.check import check
from sae_moo.materialization.into_model import materialize
from sae_moo.objectives import Constraint, Evaluation, Sparsity, TaskMean
from sae_moo.recipe import Expert, Merge, Prune
from sae_moo.recipe.methods import METHODS
from sae_moo.searchers.algorithms import ALGORITHMS
from sae_moo.searchers.baselines import AnyMethod, OneShot
from sae_moo.searchers.ground import Ground
from sae_moo.searchers.searcher import Assignment

GROUND = Ground(("math", "code", "law"), (False, True, True, False), most=0.6)
OBJECTIVES = (TaskMean("accuracy", ("a", "b")), Sparsity())
TRIED = OneShot(scales=[0.5, 1.0], densities=[0.2, 0.8], levels=[0.3, 0.5, 0.7])
ONE_SHOTS = [name for name, row in ALGORITHMS.items() if row.make.startswith("sae_moo.searchers.baselines:")]
ANY = AnyMethod(method="sce", settings={"select_topk": [0.5, 1.0], "scale": [0.7, 1]}, levels=[0.3, 0.5, 0.7])


def searcher_of(name, ground=GROUND, limits=(), **asked):
    tried = TRIED.model_copy(update={key: asked[key] for key in asked if key != "merge"})
    return ALGORITHMS[name].searcher(
        Assignment(
            algorithm=name,
            ground=ground,
            objectives=OBJECTIVES,
            constraints=limits,
            seed=7,
            settings={"merge": asked.get("merge", ANY)} if name == "one-shot" else {"one_shot": tried},
        )
    )


def variants(name, **asked):
    return [proposal.recipe.input for proposal in searcher_of(name, **asked).ask(99)]


def run(name, evaluate, **more):
    searcher = searcher_of(name, **more)
    history = []
    while proposals := searcher.ask(3):
        for proposal in proposals:
            history.append((proposal, evaluate(proposal.recipe)))
            searcher.tell(*history[-1])
    return history


@pytest.mark.parametrize(
    ("method", "count"),
    [("weighted-average", 1), ("task-arithmetic", 2), ("rankmean", 1), ("ties", 4), ("dare_ties", 4), ("slerp", 3), ("single-experts", 4), ("one-shot", 4)],
)  # fmt: skip
def test_every_variant_is_tried_and_the_best_is_pruned_to_each_level(method, count, landscape):
    history = run(method, landscape)
    merges, pruned = history[:count], history[count:]
    assert all(p.generation == 0 for p, _ in merges)
    best = max((e for _, e in merges), key=OBJECTIVES[0].value)
    assert [p.numbers["level"] for p, _ in pruned] == [0.3, 0.5], "a level beyond the limit is not asked for"
    for proposal, _ in pruned:
        inner = proposal.recipe.input
        assert isinstance(inner, Prune)
        assert (inner.input, proposal.parents) == (best.recipe, (best.recipe,))
        assert inner.sparsity == (0.0, proposal.numbers["level"], proposal.numbers["level"], 0.0)


@pytest.mark.parametrize("method", ONE_SHOTS)
def test_every_variant_is_a_model(method, tiny, tiny_model):
    for recipe in variants(method):
        check(recipe, tiny)
        materialize(recipe, tiny, tiny_model)


def test_what_each_tries():
    of = {name: variants(name) for name in ONE_SHOTS}
    assert of["weighted-average"][0].method == "linear"
    assert [np.unique(r.weights).tolist() for r in of["task-arithmetic"]] == [[0.5], [1.0]]
    assert [dict(r.params) for r in of["ties"]] == [{"density": d, "scale": s} for d in (0.2, 0.8) for s in (0.5, 1.0)]
    assert all(dict(r.params)["seed"] == 7 for r in of["dare_ties"])
    assert [tuple(i.name for i in r.inputs) for r in of["slerp"]] == [
        ("math", "code"),
        ("math", "law"),
        ("code", "law"),
    ]
    assert of["single-experts"][-1] == Expert("base")
    assert isinstance(of["rankmean"][0], Merge)


def test_what_fails_is_not_pruned():
    def evaluate(recipe):
        bad = recipe.input == Expert("math")
        return Evaluation(recipe, reason="not finite") if bad else Landscape()(recipe)

    history = run("single-experts", evaluate)
    assert all(p.parents[0].input != Expert("math") for p, _ in history[4:])
    with pytest.raises(RunError, match="all 1 first candidates failed: x"):
        run("rankmean", lambda recipe: Evaluation(recipe, reason="x"))


def test_nothing_to_try():
    with pytest.raises(ValueError, match="expected at least one merge to try"):
        searcher_of("slerp", Ground(("math",), (True,)))


def test_any_method_is_tried_with_each_choice_of_its_settings():
    assert [dict(r.params) for r in variants("one-shot")] == [
        {"select_topk": k, "scale": s} for k in (0.5, 1.0) for s in (0.7, 1)
    ]
    drawn = variants("one-shot", merge=AnyMethod(method="della_linear", settings={"density": [0.5]}))
    assert [dict(r.params) for r in drawn] == [{"density": 0.5, "seed": 7}], "the seed is the search's"
    seeds = variants("one-shot", merge=AnyMethod(method="dare_linear", settings={"seed": [1, 2]}))
    assert [dict(r.params)["seed"] for r in seeds] == [1, 2], "unless seeds are named"


@pytest.mark.parametrize("method", METHODS)
def test_every_merge_method_can_be_tried_of_as_many_experts_as_it_takes(method, tiny):
    merges = variants("one-shot", merge=AnyMethod(method=method))
    most = METHODS[method].inputs[1]
    assert {len(merge.inputs) for merge in merges} == {min(3, most or 3)}
    assert {expert for merge in merges for expert in merge.inputs} == set(map(Expert, GROUND.experts))
    for merge in merges:
        check(merge, tiny)


def test_what_is_alike_is_tried_once(landscape):
    searcher = searcher_of(
        "task-arithmetic",
        Ground(("math", "code"), (True, True), scope="2:4"),
        scales=[0.5, 0.5],
        levels=[0.3, 0.5, 0.7],
    )
    (only,) = searcher.ask(9)
    searcher.tell(only, Evaluation(only.recipe, {"a": (0.5,), "b": (0.5,)}))
    assert [p.numbers["level"] for p in searcher.ask(9)] == [0.3]


def test_a_least_sparsity_does_not_choose_what_is_pruned():
    limit = (Constraint(OBJECTIVES[1], low=0.3),)
    searcher = searcher_of("task-arithmetic", limits=limit)
    merges = searcher.ask(2)
    for accuracy, proposal in zip((0.2, 0.8), merges, strict=True):
        searcher.tell(proposal, Evaluation(proposal.recipe, {"a": (accuracy,), "b": (accuracy,)}))
    assert all(p.parents == (merges[1].recipe,) for p in searcher.ask(9))
