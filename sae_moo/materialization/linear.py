"""Which linear layers of a live model hold the prunable weights of a pool."""

from __future__ import annotations

from torch import Tensor, nn

from sae_moo.experts.anatomy import transposed
from sae_moo.experts.pool import ExpertPool


def linear_layers(pool: ExpertPool, model: nn.Module) -> dict[str, nn.Module]:
    """Return the linear layers whose weights are prunable tensors, in the model's order of modules.

    Args:
        pool: the experts.
        model: a live model of theirs.

    Returns:
        Tensor name -> layer; a tensor that is not the weight of a layer of its own, such as a part of a mixture's
        stack, is left out.
    """
    prunable = {info.name for info in pool.tensors if info.prunable}
    places = {(p.data_ptr(), p.shape): name for name, p in pool.parameters(model).items() if name in prunable}
    side = 0 if transposed(pool) else 1
    layers: dict[str, nn.Module] = {}
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor):
            continue
        name = places.get((weight.data_ptr(), weight.shape))
        if name is not None and weight.shape[side] == _features(module):
            layers[name] = module
    return layers


def _features(module: nn.Module) -> int | None:
    """Return how many features a linear layer reads: torch's Linear, or transformers' Conv1D; None for others."""
    if isinstance(module, nn.Linear):
        return module.in_features
    return int(module.nx) if type(module).__name__ == "Conv1D" else None  # type: ignore[arg-type]
