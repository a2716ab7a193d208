"""RankMean's ranks: how much each model changed a tensor, compared within the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from sae_moo.experts.pool import ExpertPool, TensorInfo
from sae_moo.materialization.ops.measure import distance, numbers_of
from sae_moo.materialization.ops.questions import rounded
from sae_moo.recipe import BASE
from sae_moo.recipe.groups import in_block


def ranks(
    models: Iterable[Callable[[TensorInfo], Tensor]], pool: ExpertPool, device: torch.device | str
) -> tuple[tuple[float, ...], ...]:
    """Return the rank of every model's tensors among its own, by their L1 distance from the base.

    Args:
        models: from a tensor's description to the tensor, for each model.
        pool: the experts.
        device: where the models' tensors are.

    Returns:
        A row for each tensor, a rank for each model; from 1 for the least changed, 1 outside blocks.
    """
    columns = []
    for model in models:
        found = []
        for info in pool.tensors:
            base = pool.load_on(BASE, info.name, device).flatten()
            found.append(distance(model(info).flatten(), base))
        changes = [rounded(change) for change in numbers_of(found)]  # the order of a sum decides no rank
        inside = [i for i, info in enumerate(pool.tensors) if in_block(pool.groups[info.group])]
        column = [1.0] * len(pool.tensors)
        for place, i in enumerate(sorted(inside, key=lambda i: (changes[i], i)), start=1):
            column[i] = float(place)
        columns.append(column)
    return tuple(zip(*columns, strict=True))
