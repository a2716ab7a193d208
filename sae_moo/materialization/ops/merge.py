"""Merge methods: one function and one row of `METHODS` each.

A method looks at one tensor of every input and returns the elementwise step that merges it (`steps.py`). Conventions
follow mergekit 0.1.5 where it has the method; every difference is named in the function's words. Weights stay exact
here, where mergekit rounds them to the tensors' dtype (0.3 becomes 0.30078 in bfloat16).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from sae_moo.materialization.ops import spherical, task_vectors
from sae_moo.materialization.ops.operands import Operands, Param, Place
from sae_moo.materialization.ops.steps import Step, ZeroAware, divisor, terms

Function = Callable[[Operands, Sequence[float], Place], Step]


def linear(x: Operands, weights: Sequence[float], place: Place) -> Step:  # noqa: ARG001  # a method
    """Weighted mean ``sum w_i x_i / sum w_i`` (``normalize=False``: the bare sum). As in mergekit."""
    return terms(shares(weights) if place.params["normalize"] else weights)


def task_arithmetic(x: Operands, weights: Sequence[float], place: Place) -> Step:  # noqa: ARG001
    """``base + scale * sum w_i (x_i - base)`` (Ilharco et al. 2023, sec. 2); ``normalize``: divided by ``sum w_i``.

    As in mergekit, whose name for the scale is lambda.
    """
    scale = place.number("scale") / (divisor(weights) if place.params["normalize"] else 1.0)
    parts = [scale * weight for weight in weights]
    rest = 1.0 - math.fsum(parts)
    return terms(parts, base=rest if abs(rest) > 1e-12 else 0.0)


def zero_aware(x: Operands, weights: Sequence[float], place: Place) -> Step:  # noqa: ARG001
    """Re-densifying merge: where some inputs are exactly zero, the others take the place undiluted.

    Per element ``sum w_i x_i / sum of the w_i whose x_i is not zero``; all zero stays zero; if only inputs of weight 0
    are non-zero there, their plain mean. Tensors that are not prunable get the plain weighted mean. With ``scale`` s,
    every non-zero element first moves to ``base + s (x - base)``, so that scaling brings no zero back by itself.
    Source: the attraction of Zhang, Zhang et al. 2026 (arXiv 2602.08218); `scale` and more than two inputs are ours.
    Not in mergekit.
    """
    return ZeroAware(shares(weights), place.number("scale"), place.prunable)


def rankmean(x: Operands, weights: Sequence[float], place: Place) -> Step:  # noqa: ARG001
    """RankMean (Perin et al. 2024): weights by how much each model changed a tensor, compared within the model.

    ``d`` = sum of |x - base| per tensor, ``r`` its rank among the model's tensors inside blocks, from 1 for the least
    changed; a tensor's weights are ``w_m r_m / sum w_m r_m``; tensors outside blocks get ``w_m / sum w_m``. The ranks
    need the whole models: `resolve.resolve` writes them into the recipe as the setting ``ranks``, here they are
    at hand. Not in mergekit.
    """
    ranks = place.each("ranks", len(weights))
    return terms(shares([weight * rank for weight, rank in zip(weights, ranks, strict=True)]))


def shares(weights: Sequence[float]) -> tuple[float, ...]:
    """Return weights divided by their sum."""
    total = math.fsum(weights)
    return tuple(weight / total for weight in weights)


@dataclass(frozen=True, slots=True)
class Method:
    """One row of the table of methods.

    Args:
        function: looks at a tensor and returns the step.
        inputs: smallest and largest number of inputs (None: any).
        defaults: settings and their defaults; their types are the types expected.
        fixed: settings that make the row what it is; not the user's.
        weights: what the weights must satisfy: ``any``, ``sum`` (not 0, unless ``normalize`` is off), ``mixing``
            (none negative, sum above 0) or ``unused``.
        reads_base: whether the base's tensor is needed, given the settings.
        choices: settings that are one of some texts.
    """

    function: Function
    inputs: tuple[int, int | None] = (1, None)
    defaults: Mapping[str, Param] = field(default_factory=dict)
    fixed: Mapping[str, Param] = field(default_factory=dict)
    weights: Literal["any", "sum", "mixing", "unused"] = "any"
    reads_base: Callable[[Mapping[str, Param]], bool] = lambda params: False
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def _always(params: Mapping[str, Param]) -> bool:  # noqa: ARG001
    return True


def _thinned(function: Function, elect: bool, normalize: bool, rescale: str, **own: Param) -> Method:
    """A row of the TIES, DARE, DELLA and breadcrumbs family."""
    settings: dict[str, Param] = {"density": 1.0, "scale": 1.0, "normalize": normalize, "rescale": rescale, **own}
    choices = {"rescale": ("none", "l1", "density")}
    return Method(function, (1, None), settings, {"elect": elect}, "any", _always, choices)


_GEOMETRIC: Mapping[str, Param] = {"relative": False}

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "linear": Method(linear, defaults={"normalize": True}, weights="sum"),
        "slerp": Method(spherical.slerp, inputs=(2, 2), weights="sum"),
        "nuslerp": Method(
            spherical.nuslerp, inputs=(2, 2), defaults=_GEOMETRIC, reads_base=lambda params: bool(params["relative"])
        ),
        "multislerp": Method(
            spherical.multislerp,
            defaults={**_GEOMETRIC, "normalize": True},
            weights="sum",
            reads_base=lambda params: bool(params["relative"]),
        ),
        "karcher": Method(spherical.karcher, defaults={"max_iter": 10, "tol": 1e-5}, weights="mixing"),
        "split_slerp": Method(spherical.split_slerp, inputs=(2, 2), defaults={"split": 0.5}, weights="sum"),
        "model_stock": Method(spherical.model_stock, inputs=(2, None), weights="mixing", reads_base=_always),
        "task_arithmetic": Method(task_arithmetic, defaults={"scale": 1.0, "normalize": False}, reads_base=_always),
        "ties": _thinned(task_vectors.ties, elect=True, normalize=True, rescale="none"),
        "dare_linear": _thinned(task_vectors.dare, elect=False, normalize=False, rescale="l1", seed=0),
        "dare_ties": _thinned(task_vectors.dare, elect=True, normalize=False, rescale="l1", seed=0),
        "della": _thinned(task_vectors.della, elect=True, normalize=True, rescale="l1", seed=0, epsilon=0.15),
        "della_linear": _thinned(task_vectors.della, elect=False, normalize=False, rescale="l1", seed=0, epsilon=0.15),
        "breadcrumbs": _thinned(task_vectors.breadcrumbs, elect=False, normalize=False, rescale="none", gamma=0.01),
        "breadcrumbs_ties": _thinned(task_vectors.breadcrumbs, elect=True, normalize=False, rescale="none", gamma=0.01),
        "sce": Method(
            task_vectors.sce, defaults={"select_topk": 1.0, "scale": 1.0}, weights="mixing", reads_base=_always
        ),
        "arcee_fusion": Method(task_vectors.arcee_fusion, inputs=(1, 1), weights="unused", reads_base=_always),
        "rankmean": Method(rankmean, weights="mixing", reads_base=_always),
        "zero_aware": Method(
            zero_aware, defaults={"scale": 1.0}, weights="mixing", reads_base=lambda params: params["scale"] != 1.0
        ),
    }
)
"""Name -> method. Adding one is a function and a row."""
