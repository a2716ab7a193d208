"""Merge kernels: one function and one row of `METHODS` each.

A kernel gets one tensor of every input, flat or shaped, in float32 on one device, and returns a new float32 tensor of
the same shape; it never changes its inputs. Conventions follow mergekit 0.1.5 where it has the method, as far as said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

# Same threshold as mergekit: nearly parallel tensors are mixed linearly, where slerp divides by a vanishing sine.
SLERP_PARALLEL = 0.9995

Param = float | int | bool | str


@dataclass(frozen=True, slots=True)
class Place:
    """Where a kernel works.

    Args:
        tensor: name of the tensor.
        prunable: whether its zeros are meant (2-D weights inside blocks) or accidental.
        base: the base model's tensor in float32, or None for methods that need none.
        params: the method's settings, defaults filled in.
    """

    tensor: str
    prunable: bool
    base: Tensor | None
    params: Mapping[str, Param]


Kernel = Callable[[Sequence[Tensor], Sequence[float], Place], Tensor]


def linear(inputs: Sequence[Tensor], weights: Sequence[float], place: Place) -> Tensor:
    """Weighted mean ``sum w_i x_i / sum w_i`` (``normalize=False``: the bare sum). As in mergekit."""
    total = sum(weights) if place.params["normalize"] else 1.0
    return _weighted_sum(inputs, [weight / total for weight in weights])


def slerp(inputs: Sequence[Tensor], weights: Sequence[float], place: Place) -> Tensor:  # noqa: ARG001  # a kernel
    """Spherical interpolation of two whole tensors, ``t = w_2 / (w_1 + w_2)`` (Shoemake 1985).

    The angle is between the flattened tensors; nearly parallel ones (|cos| > 0.9995) and zero tensors are mixed
    linearly. As in mergekit, whose single ``t`` runs from the first input to the second.
    """
    first, second = inputs
    t = weights[1] / (weights[0] + weights[1])
    a, b = first.flatten().double(), second.flatten().double()  # dot products in float64: one rounding per result
    norms = (torch.dot(a, a) * torch.dot(b, b)).sqrt().item()
    cosine = torch.dot(a, b).item() / norms if norms > 0 else 1.0
    if abs(cosine) > SLERP_PARALLEL:
        return _weighted_sum(inputs, [1 - t, t])
    omega = torch.acos(torch.tensor(cosine, dtype=torch.float64))
    shares = [torch.sin((1 - t) * omega) / torch.sin(omega), torch.sin(t * omega) / torch.sin(omega)]
    return _weighted_sum(inputs, [share.item() for share in shares])


def task_arithmetic(inputs: Sequence[Tensor], weights: Sequence[float], place: Place) -> Tensor:
    """``base + scale * sum w_i (x_i - base)``, not normalised (Ilharco et al. 2023, sec. 2). As in mergekit.

    Difference: mergekit rounds the weights to the tensors' dtype (0.3 becomes 0.30078 in bf16); here they stay exact.
    """
    assert place.base is not None
    scale = float(place.params["scale"])
    merged = place.base.clone()
    for tensor, weight in zip(inputs, weights, strict=True):
        if weight:
            merged.add_(tensor - place.base, alpha=scale * weight)
    return merged


def zero_aware(inputs: Sequence[Tensor], weights: Sequence[float], place: Place) -> Tensor:
    """Re-densifying merge: where some inputs are exactly zero, the others take the place undiluted.

    Per element ``sum w_i x_i / sum of the w_i whose x_i is not zero``; all zero stays zero; if only inputs of weight 0
    are non-zero there, their plain mean. Tensors that are not prunable get the plain weighted mean. With ``scale`` s,
    every non-zero element first moves to ``base + s (x - base)``, so that scaling brings no zero back by itself.
    Source: the attraction of Zhang, Zhang et al. 2026 (arXiv 2602.08218); `scale` and more than two inputs are ours.
    """
    scale = float(place.params["scale"])
    total = sum(weights)
    if not place.prunable:
        return _stretched(_weighted_sum(inputs, [weight / total for weight in weights]), place.base, scale)
    moved = [torch.where(x == 0, x, _stretched(x, place.base, scale)) for x in inputs] if scale != 1.0 else inputs
    if len(inputs) == 2:
        (first, second), (a, b) = inputs, moved
        both = a.mul(weights[0] / total).add_(b, alpha=weights[1] / total)
        return torch.where(first == 0, b, torch.where(second == 0, a, both))
    present = [x != 0 for x in inputs]
    merged = _weighted_sum(moved, weights)
    mass = torch.zeros_like(merged)
    for here, weight in zip(present, weights, strict=True):
        mass.add_(here, alpha=weight)
    weighted = merged.div_(torch.where(mass == 0, 1.0, mass))
    number = torch.stack([here.to(torch.float32) for here in present]).sum(dim=0).clamp_(min=1.0)
    return torch.where(mass == 0, _weighted_sum(moved, [1.0] * len(moved)) / number, weighted)


@dataclass(frozen=True, slots=True)
class Method:
    """One row of the table of methods.

    Args:
        kernel: the function.
        inputs: smallest and largest number of inputs (None: any).
        defaults: settings and their defaults; their types are the types expected.
        weights: what the weights must satisfy: ``any``, ``sum`` (not 0) or ``mixing`` (none negative, sum above 0).
        reads_base: whether the kernel reads `Place.base`, given its settings.
    """

    kernel: Kernel
    inputs: tuple[int, int | None] = (1, None)
    defaults: Mapping[str, Param] = field(default_factory=dict)
    weights: str = "any"
    reads_base: Callable[[Mapping[str, Param]], bool] = lambda params: False


METHODS: Mapping[str, Method] = {
    "linear": Method(linear, defaults={"normalize": True}, weights="sum"),
    "slerp": Method(slerp, inputs=(2, 2), weights="sum"),
    "task_arithmetic": Method(task_arithmetic, defaults={"scale": 1.0}, reads_base=lambda params: True),
    "zero_aware": Method(
        zero_aware, defaults={"scale": 1.0}, weights="mixing", reads_base=lambda params: params["scale"] != 1.0
    ),
}


def _weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    result = tensors[0] * weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        result.add_(tensor, alpha=weight)
    return result


def _stretched(tensor: Tensor, base: Tensor | None, scale: float) -> Tensor:
    if scale == 1.0:
        return tensor
    assert base is not None
    return torch.lerp(base, tensor, scale)
