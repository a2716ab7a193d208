"""What mergekit 0.1.5 calls its methods' parameters, and what they are here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

Value = float | bool


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a mergekit method.

    Args:
        setting: our setting of the same meaning; ``weights`` stands for a merge's weights; None: it changes no result.
        kind: a number, a whole number or a truth value.
        each: whether every input has its own, or one serves all.
        required: whether mergekit has no default for it.
        default: mergekit's default.
        only: the one value that can be expressed here; None: any.
        share: whether it must lie in [0, 1].
    """

    setting: str | None
    kind: Literal["number", "whole", "flag"] = "number"
    each: bool = False
    required: bool = False
    default: Value | None = None
    only: Value | None = None
    share: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One method of mergekit.

    Args:
        ours: name of our method.
        base: whether ``base_model`` is ``required``, ``optional`` (given: the method works on task vectors), the
            ``first`` of two inputs, between which one parameter says how far to go, or just one more ``input``.
        least: smallest number of inputs; the base does not count unless it is an ``input``.
        most: largest number of inputs; None: any.
        parameters: by mergekit's names.
        absent: whether an input of weight 0 might as well not be there.
    """

    ours: str
    base: Literal["required", "optional", "first", "input"]
    least: int = 0
    most: int | None = None
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    absent: bool = False


WEIGHTS = "weights"
_WEIGHT = Parameter(WEIGHTS, each=True, required=True)
_MEMORY = Parameter(None, "flag", default=False)


def _task_vectors(ours: str, normalize: bool, rescale: bool | None = None, **own: Parameter) -> Row:
    """A row of the methods that add task vectors; `rescale` is None where they are not thinned out."""
    parameters = {
        "weight": _WEIGHT,
        "lambda": Parameter("scale", default=1.0),
        "normalize": Parameter("normalize", "flag", default=normalize),
        "int8_mask": _MEMORY,
    }
    if rescale is not None:
        parameters["density"] = Parameter("density", each=True, default=1.0, share=True)
        parameters["rescale"] = Parameter("rescale", "flag", default=rescale)
    return Row(ours, "required", parameters=parameters | own, absent=True)


_CHANGED = Parameter("epsilon", default=1e-5)
_EPSILON = Parameter("epsilon", each=True, default=0.15, share=True)
_GAMMA = Parameter("gamma", each=True, default=0.01, share=True)

TABLE: Mapping[str, Row] = MappingProxyType(
    {
        "linear": Row(
            "linear",
            "input",
            1,
            parameters={"weight": _WEIGHT, "normalize": Parameter("normalize", "flag", default=True)},
            absent=True,
        ),
        "slerp": Row("slerp", "first", 1, 1, {"t": Parameter(WEIGHTS, required=True)}),
        "nuslerp": Row(
            "nuslerp",
            "optional",
            2,
            2,
            {"weight": _WEIGHT, "nuslerp_flatten": Parameter(None, "flag", default=True, only=True)},
        ),
        "multislerp": Row(
            "multislerp",
            "optional",
            1,
            parameters={
                "weight": _WEIGHT,
                "normalize_weights": Parameter("normalize", "flag", default=True),
                "eps": Parameter(None, default=1e-8, only=1e-8),
            },
        ),
        "karcher": Row(
            "karcher",
            "input",
            1,
            parameters={
                "max_iter": Parameter("max_iter", "whole", default=10),
                "tol": Parameter("tol", default=1e-5),
            },
        ),
        "model_stock": Row(
            "model_stock",
            "required",
            2,
            parameters={"filter_wise": Parameter(None, "flag", default=False, only=False)},
        ),
        "task_arithmetic": _task_vectors("task_arithmetic", normalize=False),
        "ties": _task_vectors("ties", normalize=True, rescale=False),
        "dare_linear": _task_vectors("dare_linear", normalize=False, rescale=True),
        "dare_ties": _task_vectors("dare_ties", normalize=False, rescale=True),
        "della": _task_vectors("della", normalize=True, rescale=True, epsilon=_EPSILON),
        "della_linear": _task_vectors("della_linear", normalize=False, rescale=True, epsilon=_EPSILON),
        "breadcrumbs": _task_vectors("breadcrumbs", normalize=False, rescale=False, gamma=_GAMMA),
        "breadcrumbs_ties": _task_vectors("breadcrumbs_ties", normalize=False, rescale=False, gamma=_GAMMA),
        "sce": Row(
            "sce",
            "required",
            parameters={
                "select_topk": Parameter("select_topk", default=1.0, share=True),
                "int8_mask": _MEMORY,
            },
        ),
        "arcee_fusion": Row("arcee_fusion", "required", 1, 1),
        "nearswap": Row("nearswap", "required", 1, 1, {"t": Parameter("t", required=True)}),
        "ram": Row("ram", "required", 1, parameters={"epsilon": _CHANGED}),
        "ramplus_tl": Row(
            "ramplus_tl",
            "required",
            1,
            parameters={
                "r": Parameter("r", default=0.1),
                "alpha": Parameter("alpha", default=0.2),
                "epsilon": _CHANGED,
            },
        ),
        # One model as it is, or times a number: our linear, not normalised. Slices may take turns.
        "passthrough": Row("linear", "input", 1, 1, {"scale": Parameter(WEIGHTS, each=True, default=1.0)}, absent=True),
    }
)
"""Name in mergekit -> method."""

# Read by some method, or by its tools: harmless where they are not read.
KNOWN = frozenset(
    {name for row in TABLE.values() for name in row.parameters} | {"nuslerp_row_wise", "density", "rescale"}
)
