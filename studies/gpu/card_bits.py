"""The bits of every recipe on a device against those of the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import sae_moo as sm
from sae_moo.experts.pool import ExpertPool
from sae_moo.recipe import Cast, Recipe

STORES: Mapping[str, tuple[tuple[torch.dtype, ...], str]] = {
    "float32": ((torch.float32,), "float32"),
    "bfloat16": ((torch.bfloat16,), "bfloat16"),
    "float16": ((torch.float16,), "float16"),
    "mixed": ((torch.bfloat16, torch.float32, torch.float16), "bfloat16"),
}
"""What checkpoints are stored in, the base first -> what candidates are rounded to."""
_WORDS = {4: torch.int32, 2: torch.int16}


class Pair:
    """Two live models, on the CPU and on a device, and a pool for each.

    Pools remember numbers about experts' tensors: of one pool, the device would be given what the CPU has found.

    Args:
        pool: the experts, for the CPU; opened once more for the device.
        dtype: of both models, and what recipes are rounded to.
        device: of the second.
    """

    def __init__(self, pool: ExpertPool, dtype: str, device: torch.device) -> None:
        self.dtype = dtype
        self.pools = pool, ExpertPool(pool.checkpoints)
        self.pools[1].norms.update(pool.norms)
        self.models = [pool.live_model(dtype, place) for place in ("cpu", device)]

    def faults(self, recipe: Recipe) -> list[str]:
        """Return what differs: each tensor with how many weights and by how much, and what the reports say."""
        rounded = Cast(recipe, self.dtype)
        places = [pool.parameters(model) for pool, model in zip(self.pools, self.models, strict=True)]
        for place in (place for each in places for place in each.values()):
            place.fill_(float("nan"))  # what is not written shows
        ours, theirs = (sm.materialize(rounded, *each) for each in zip(self.pools, self.models, strict=True))
        here, there = places
        found = [f"{name}: {fault}" for name in here if (fault := difference(here[name], there[name]))]
        for what in ("recipe", "sparsity", "group_sparsity", "tensor_sparsity"):
            one, other = getattr(ours, what), getattr(theirs, what)
            if one != other:
                found.append(f"{what}: {_shown(one)} on the CPU, {_shown(other)} there")
        return found


def difference(here: Tensor, there: Tensor) -> str:
    """Return how two tensors differ in bits, nothing if they do not."""
    one, other = here.detach().cpu().contiguous(), there.detach().cpu().contiguous()
    words = _WORDS[one.element_size()]
    differing = one.view(words) != other.view(words)
    count = int(differing.sum())
    if not count:
        return ""
    apart = (one[differing].float() - other[differing].float()).abs().nan_to_num(torch.inf).max().item()
    return f"{count:,} of {one.numel():,} weights, by up to {apart:.3g}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else text[:77] + "..."
