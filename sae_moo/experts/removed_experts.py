"""What keeps the routers of a live model from choosing experts that were removed.

An expert all of whose weights are zero, its row of the router among them, counts as removed, however it came to be
zero: a model is a function of its weights. Its logit would be 0, which can be among the highest, so that it has to be
masked where the router computes: the logits are -inf there, and so are the scores that it takes the highest of, which
may be more than a function of the logits (a correction bias is added to them). What is left computes what a mixture
without these experts does.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from sae_moo.errors import WeightsError
from sae_moo.experts.mixtures import Mixture, known_mixture
from sae_moo.experts.pool import ExpertPool


def removed_experts(
    mixtures: Mixture, load: Callable[[str], Tensor], zeros: Mapping[str, int] | None = None
) -> dict[int, Tensor]:
    """Return which experts are removed, of the mixtures that lack some and not all.

    A mixture without any expert writes nothing, whatever its router chooses.

    Args:
        mixtures: the mixtures of a model.
        load: gives a tensor of it by name.
        zeros: tensor name -> how many zeros it holds, as far as that is known: such tensors are not read.

    Returns:
        Block -> whether each expert is removed; shape (experts,), on the CPU.

    Raises:
        WeightsError: if a mixture has fewer experts left than its router chooses.
    """
    zeros = {} if zeros is None else zeros
    rows = _on_cpu({block: load(info.name).ne(0).any(dim=1) for block, info in mixtures.routers.items()})
    silent = {block: ~row for block, row in rows.items() if not row.all()}
    alive: dict[int, Tensor] = {}
    for block, row in silent.items():
        for each in mixtures.held[block]:
            if each.expert is None:
                found = _holding(load(each.info.name), each.axis, row)
                alive[block] = found | alive[block] if block in alive else found
            elif row[each.expert]:
                count = zeros.get(each.info.name)
                if bool(load(each.info.name).any()) if count is None else count < each.info.numel:
                    row[each.expert] = False
    for block, row in _on_cpu(alive).items():
        silent[block] &= ~row
    silent = {block: row for block, row in silent.items() if row.any() and not row.all()}
    for block, row in silent.items():
        left = int((~row).sum())
        if left < mixtures.least:
            raise WeightsError(
                f"the mixture of block {block} has {left} of {mixtures.experts} experts that are not zero; its router "
                f"chooses {mixtures.least}"
            )
    return silent


def mask_removed_experts_(
    model: nn.Module, pool: ExpertPool, places: Mapping[str, Tensor], zeros: Mapping[str, int] | None = None
) -> None:
    """Keep the routers of a live model from choosing the experts that are removed, and no others.

    Costs a look at the routers, and at experts whose rows of it are zero; nothing for models without mixtures.

    Args:
        model: the live model; its routers are hooked.
        pool: the experts whose architecture it has.
        places: tensor name -> its place in the model.
        zeros: tensor name -> how many zeros are there, as far as that is known.

    Raises:
        WeightsError: see `removed_experts`.
    """
    mixtures = known_mixture(pool)
    if mixtures is None:
        return
    for handle in _HOOKS.pop(model, ()):
        handle.remove()
    removed = removed_experts(mixtures, places.__getitem__, zeros)
    if not removed:
        return
    rows = {places[mixtures.routers[block].name].data_ptr(): row for block, row in removed.items()}
    hooks: list[RemovableHandle] = []
    for module in model.modules():
        weight = module._parameters.get("weight")
        row = None if weight is None else rows.pop(weight.data_ptr(), None)
        if weight is not None and row is not None:
            masking = _Masking(row.to(weight.device))
            hooks.append(module.register_forward_pre_hook(masking.begin))
            hooks.append(module.register_forward_hook(masking.end, always_call=True))
    _HOOKS[model] = hooks
    assert not rows, "a router that is no module's weight"


def masks_experts(model: nn.Module) -> bool:
    """Say whether a live model lacks experts that another runtime, given its weights, would choose."""
    return model in _HOOKS


class _Masking(TorchFunctionMode):
    """While entered, which is while a router computes, it does not choose some experts.

    Args:
        gone: for each expert whether it is one of these, on the model's device.
    """

    def __init__(self, gone: Tensor) -> None:
        super().__init__()
        self.gone = gone

    def begin(self, *_: Any) -> None:
        """Enter, as a hook."""
        self.__enter__()  # type: ignore[no-untyped-call]

    def end(self, *_: Any) -> None:
        """Leave, as a hook."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _CHOICES:
            args = (self._masked(args[0]), *args[1:])
        found = func(*args, **(kwargs or {}))
        return self._masked(found) if func is functional.linear else found

    def _masked(self, scores: Tensor) -> Tensor:
        return scores.masked_fill(self.gone, -torch.inf) if scores.shape[-1] == len(self.gone) else scores


_CHOICES = (torch.topk, Tensor.topk)
_HOOKS: weakref.WeakKeyDictionary[nn.Module, list[RemovableHandle]] = weakref.WeakKeyDictionary()


def _on_cpu(rows: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Return rows of one length, fetched at once."""
    if not rows:
        return {}
    return dict(zip(rows, torch.stack(list(rows.values())).cpu(), strict=True))


def _holding(tensor: Tensor, axis: int, asked: Tensor) -> Tensor:
    """Return which indices along an axis hold a number that is not zero, of those asked for; False for the others.

    One after another: a truth value for every weight of a stack of experts would take much room.
    """
    none = torch.zeros((), dtype=torch.bool, device=tensor.device)
    return torch.stack([tensor.select(axis, i).any() if here else none for i, here in enumerate(asked.tolist())])
