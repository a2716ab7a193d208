"""The recipes: all that there is, for bits; what a search is made of, with its goals, for speed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from card_models import materialize_study

from sae_moo.recipe import STRUCTURED, Cast, Expert, Merge, Prune, Recipe
from sae_moo.recipe.methods import METHODS

XS = tuple(Expert(f"x{i}") for i in range(3))
WEIGHTS = (0.5, 0.3, 0.9)
HALF = {"density": 0.5}

SETTINGS: Mapping[str, list[dict[str, Any]]] = {
    "linear": [{}, {"normalize": False}],
    "slerp": [{}],
    "split_slerp": [{"split": 0.4}],
    "nuslerp": [{}, {"relative": True}],
    "multislerp": [{}, {"relative": True}],
    "karcher": [{}],
    "model_stock": [{}],
    "task_arithmetic": [{}, {"scale": 0.7, "normalize": True}],
    "ties": [{"density": 0.5}, {"density": 0.2, "scale": 1.5, "normalize": False}, {"rescale": "l1", "density": 0.3}],
    "dare_linear": [{"density": 0.5}, {"density": 0.3, "rescale": "density", "seed": 7}, {"rescale": "none"}],
    "dare_ties": [{"density": 0.5}, {"density": (0.3, 0.6, 1.0), "normalize": True}],
    "della": [{"density": 0.5}, {"density": 0.3, "epsilon": 0.1, "seed": 3}],
    "della_linear": [{"density": 0.5}],
    "breadcrumbs": [{"density": 0.5}, {"density": 0.95, "gamma": 0.2}],
    "breadcrumbs_ties": [{"density": 0.5, "gamma": 0.05}],
    "sce": [{}, {"select_topk": 0.3, "scale": 0.5}],
    "arcee_fusion": [{}],
    "nearswap": [{}, {"t": 0.05}],
    "ram": [{}],
    "ramplus_tl": [{"epsilon": 0.001, "r": 0.5, "alpha": 0.7}],
    "rankmean": [{}],
    "zero_aware": [{}, {"scale": 1.3}],
}
"""Method -> settings worth a look of their own."""
SCOPES = ("tensor", "row", "2:4", "neurons", "heads", "group", "global")


def merged(method: str, settings: Mapping[str, Any]) -> Recipe:
    """Return a merge of as many experts as a method takes, up to three."""
    count = METHODS[method].inputs[1] or 3
    inputs: tuple[Recipe, ...] = XS[:count]
    if method == "zero_aware":
        inputs = tuple(Prune(x, 0.2 + i / 5) for i, x in enumerate(inputs))
    return Merge(method, inputs, WEIGHTS[:count], dict(settings))


def everything(groups: int, calibration: str) -> dict[str, Recipe]:
    """Return name -> recipe: every method, every scope and criterion, and lineages; nothing is rounded at the end.

    Args:
        groups: how many parameter groups the pool has.
        calibration: digest of activation norms that it holds.
    """
    return {
        "the base": Expert("base"),
        "an expert": XS[0],
        **{
            f"{method} {settings or ''}".strip(): merged(method, settings)
            for method, rows in SETTINGS.items()
            for settings in rows
        },
        **dict(_prunings(calibration)),
        **_lineages(groups),
    }


def _prunings(calibration: str) -> Iterator[tuple[str, Recipe]]:
    sources: dict[str, tuple[Recipe, tuple[str, ...]]] = {
        "an expert": (XS[0], ("magnitude", "wanda")),
        "linear": (Merge("linear", XS, WEIGHTS), ("magnitude", "wanda")),
        "ties": (merged("ties", HALF), ("magnitude",)),
    }
    for what, (source, criteria) in sources.items():
        for scope in SCOPES:
            for criterion in criteria:
                for rescale in (False,) if scope in STRUCTURED else (False, True):
                    name = f"{what}, {criterion} .5, {scope}" + (", norms restored" if rescale else "")
                    norms = calibration if criterion == "wanda" else None
                    yield name, Prune(source, 0.5, criterion, scope, calibration=norms, rescale=rescale)


def _lineages(groups: int) -> dict[str, Recipe]:
    linear = Merge("linear", XS, WEIGHTS)
    rows = tuple((0.2 + i / groups, 0.9 - i / groups, 0.1) for i in range(groups))
    child = Cast(Prune(Merge("zero_aware", (Prune(XS[0], 0.3), XS[1]), (0.4, 0.6)), 0.5), "bfloat16")
    return {
        "weights by group": Merge("task_arithmetic", XS, rows),
        "negative weights": Merge("linear", XS, (1.5, -0.9, 0.2)),
        "the same expert twice": Merge("linear", (XS[0], XS[0]), (0.1, 0.7)),
        "sparsities by group": Prune(linear, tuple(i / groups for i in range(groups))),
        "no sparsity": Prune(linear, 0.0),
        "almost all": Prune(linear, 0.9995),
        "pruned twice": Prune(Prune(linear, 0.3), 0.6, rescale=True),
        "rounded within": Merge("ties", (Cast(linear, "float16"), Cast(XS[2], "bfloat16")), (0.5, 0.6), HALF),
        "a lineage of twelve": materialize_study.deep(12),
        "a candidate of two generations": Merge("zero_aware", (child, Cast(Prune(XS[2], 0.4), "bfloat16")), (0.7, 0.3)),
    }


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table of speed.

    Args:
        recipe: the candidate; rounded to bfloat16.
        read: operands read, the base counted where it is needed.
        goal: most times a device copy of the same bytes, at 1.5B on an H100.
    """

    recipe: Recipe
    read: int
    goal: float


def candidates(recipe: Recipe) -> Iterator[Recipe]:
    """Yield a recipe, then others like it without end: sparsities, densities and weights a thousandth off at each step.

    A search never asks for a candidate twice. What is known of the experts alone serves all of them; a cut that is
    remembered by the very number of weights that go serves one.
    """
    for step in itertools.count():
        yield _off(recipe, 1 + step / 1000)


def _off(recipe: Recipe, by: float) -> Recipe:
    match recipe:
        case Cast():
            return Cast(_off(recipe.input, by), recipe.dtype)
        case Prune(sparsity=float(sparsity)) if recipe.scope in VARIED:
            return replace(recipe, input=_off(recipe.input, by), sparsity=sparsity * by)
        case Prune():
            return replace(recipe, input=_off(recipe.input, by))
        case Merge():
            numbers = {name: value * by if name in SHARES else value for name, value in recipe.params}
            inputs = tuple(_off(each, by) for each in recipe.inputs)
            return Merge(recipe.method, inputs, (recipe.weights[0] * by, *recipe.weights[1:]), numbers)
        case _:
            return recipe


VARIED = ("tensor", "group", "global")
"""Scopes of which any sparsity may be asked."""
SHARES = ("density", "select_topk")
"""Settings that say how much of a task vector stays."""
GOALS = {
    "linear": 2, "task_arithmetic": 2, "slerp": 2, "zero_aware": 2, "magnitude .5": 2.5, "linear, then magnitude .5": 6,
    "ties .5": 8, "breadcrumbs .5": 8, "dare_linear .5": 8, "dare_ties .5": 8, "sce .5": 8, "model_stock": 8, "della .5": 60,
}  # fmt: skip
STREAMED = ("linear", "task_arithmetic", "ties .5")
STREAMED_GOAL = 1.3
"""Times the pinned host-to-device copy of the operands."""
TINY_GOAL = 3.0
"""Milliseconds a candidate of 200 tiny tensors."""
MOST_WAITS = 3
"""Host synchronisations a candidate."""
SHARE_GOAL = 0.1
"""Merging over scoring 800 four-choice requests."""


def lines(calibration: str) -> dict[str, Line]:
    """Return name -> line: those of `studies/materialize`, then what else prunes."""
    found = {name: Line(recipe, read, GOALS[name]) for name, (recipe, read) in materialize_study.recipes().items()}
    task, linear = found["task_arithmetic"].recipe.input, found["linear"].recipe.input

    def pruned(source: Recipe, sparsity: float = 0.5, scope: str = "tensor", **more: Any) -> Recipe:
        return Cast(Prune(source, sparsity, scope=scope, **more), "bfloat16")

    wanda = {"criterion": "wanda", "calibration": calibration}
    return found | {
        "task_arithmetic, magnitude .5, norms restored": Line(pruned(task, rescale=True), 4, 6),
        "linear, then row .5": Line(pruned(linear, scope="row"), 3, 8),
        "linear, then 2:4": Line(pruned(linear, scope="2:4"), 3, 8),
        "linear, then neurons .25": Line(pruned(linear, 0.25, "neurons"), 3, 8),
        "linear, then heads .25": Line(pruned(linear, 0.25, "heads"), 3, 8),
        "linear, then group .5": Line(pruned(linear, scope="group"), 3, 10),
        "linear, then global .5": Line(pruned(linear, scope="global"), 3, 10),
        "wanda .5": Line(pruned(XS[0], **wanda), 1, 2.5),
        "linear, then wanda .5": Line(pruned(linear, **wanda), 3, 6),
    }
