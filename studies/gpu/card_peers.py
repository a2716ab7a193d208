"""The same merges by others, on tensors that lie on the device: plain torch, `torch.compile` of it, mergekit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sae_moo.experts.pool import ExpertPool

Formula = Callable[[Sequence[Tensor], Tensor], Tensor]
"""From a tensor of every expert and the base's to the merged one, not rounded yet."""
W3 = (0.2, 0.3, 0.4)
W2 = (0.4, 0.6)


def linear(xs: Sequence[Tensor], base: Tensor) -> Tensor:
    return sum(
        (w * x.float() for w, x in zip(W3, xs, strict=True)), start=torch.zeros_like(base, dtype=torch.float32)
    ) / sum(W3)


def task_arithmetic(xs: Sequence[Tensor], base: Tensor) -> Tensor:
    origin = base.float()
    return origin + sum((w * (x.float() - origin) for w, x in zip(W3, xs, strict=True)), start=torch.zeros_like(origin))


def slerp(xs: Sequence[Tensor], base: Tensor) -> Tensor:  # noqa: ARG001  # as every formula is called
    a, b = (x.float() for x in xs[:2])
    cosine = (a * b).sum() / (a.norm() * b.norm())
    angle = torch.acos(cosine.clamp(-0.9995, 0.9995))
    return (torch.sin(W2[0] * angle) * a + torch.sin(W2[1] * angle) * b) / torch.sin(angle)


def _without_half(x: Tensor) -> Tensor:
    scores = x.abs()
    threshold = scores.flatten().kthvalue(max(1, math.ceil(scores.numel() / 2))).values
    return torch.where(scores > threshold, x, 0.0)


def magnitude(xs: Sequence[Tensor], base: Tensor) -> Tensor:  # noqa: ARG001  # likewise
    return _without_half(xs[0].float()) if xs[0].dim() == 2 else xs[0].float()


def linear_then_magnitude(xs: Sequence[Tensor], base: Tensor) -> Tensor:
    merged = linear(xs, base)
    return _without_half(merged) if merged.dim() == 2 else merged


def ties(xs: Sequence[Tensor], base: Tensor) -> Tensor:
    origin = base.float()
    parts = torch.stack([w * _without_half(x.float() - origin) for w, x in zip(W3, xs, strict=True)])
    sign = torch.where(parts.sum(0) >= 0, 1.0, -1.0)
    agree = parts.sign() == sign
    mass = torch.stack([w * each for w, each in zip(W3, agree, strict=True)]).sum(0)
    return origin + (parts * agree).sum(0) / torch.where(mass == 0, 1.0, mass)


FORMULAS: Mapping[str, Formula] = {
    "linear": linear,
    "task_arithmetic": task_arithmetic,
    "slerp": slerp,
    "magnitude .5": magnitude,
    "linear, then magnitude .5": linear_then_magnitude,
    "ties .5": ties,
}
"""What takes a few lines of torch, by the names of `card_recipes.lines`."""

# name -> mergekit's method, its settings, experts it is given, whether the base is the first of its tensors
MERGEKIT: Mapping[str, tuple[str, dict[str, Any], int, bool]] = {
    "linear": ("linear", {"weight": list(W3)}, 3, False),
    "task_arithmetic": ("task_arithmetic", {"weight": list(W3)}, 3, True),
    "ties .5": ("ties", {"weight": list(W3), "density": 0.5}, 3, True),
    "dare_linear .5": ("dare_linear", {"weight": list(W3), "density": 0.5}, 3, True),
    "dare_ties .5": ("dare_ties", {"weight": list(W3), "density": 0.5}, 3, True),
    "della .5": ("della", {"weight": list(W3), "density": 0.5}, 3, True),
    "breadcrumbs .5": ("breadcrumbs", {"weight": list(W3), "density": 0.5}, 3, True),
    "sce .5": ("sce", {"select_topk": 0.5}, 3, True),
    "model_stock": ("model_stock", {}, 3, True),
}


class Peers:
    """Others on the same tensors.

    Args:
        pool: the experts; all of them are copied to the device once more.
        parameters: tensor name -> its place in a live model, which is written.
        device: where.
    """

    def __init__(self, pool: ExpertPool, parameters: Mapping[str, Tensor], device: torch.device) -> None:
        matrices = {info.name for info in pool.tensors if info.prunable}
        # what is not pruned is a row: the formulas leave rows as they are
        self._places = {name: place if name in matrices else place.view(-1) for name, place in parameters.items()}
        self._device = device
        self._tensors = {
            name: [pool.load(x, name).to(device).view(place.shape) for x in ("base", "x0", "x1", "x2")]
            for name, place in self._places.items()
        }

    def plain(self, name: str) -> Callable[[], None] | None:
        """Return a loop of plain torch over whole tensors; None where there is no formula."""
        formula = FORMULAS.get(name)
        return None if formula is None else lambda: self._write(formula)

    def compiled(self, name: str) -> Callable[[], None] | None:
        """Return the same with the formula compiled; on the CPU by the backend that only runs it."""
        if name not in FORMULAS:
            return None
        backend = "inductor" if self._device.type == "cuda" else "eager"
        formula = torch.compile(FORMULAS[name], backend=backend, dynamic=True)
        return lambda: self._write(formula)

    def mergekit(self, name: str) -> Callable[[], None] | None:
        """Return mergekit's `merge_tensors`, tensor by tensor; None where it has no such method.

        Raises:
            ImportError: if mergekit is not installed, or has no `merge_tensors`.
        """
        from mergekit.merge_methods import merge_tensors

        if name not in MERGEKIT:
            return None
        method, settings, count, with_base = MERGEKIT[name]
        more = {"base_index": 0} if with_base else {}

        def write() -> None:
            for tensor, place in self._places.items():
                base, *xs = self._tensors[tensor]
                inputs = ([base] if with_base else []) + xs[:count]
                place.copy_(merge_tensors(inputs, method, parameters=settings, **more))

        return write

    @torch.no_grad()
    def _write(self, formula: Formula) -> None:
        for tensor, place in self._places.items():
            base, *xs = self._tensors[tensor]
            place.copy_(formula(xs, base))
