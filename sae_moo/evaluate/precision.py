"""A model of a narrow dtype, read in float32 without a second copy of its weights."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

NARROW = (torch.bfloat16, torch.float16)
# What only looks at a tensor: widened is what comes of it, when it is calculated with.
_VIEWS: frozenset[Callable[..., Any]] = frozenset(
    [
        *(getattr(Tensor, name) for name in ("__getitem__", "view", "reshape", "transpose", "permute", "t", "detach")),
        *(getattr(Tensor, name) for name in ("unbind", "chunk", "split", "unsqueeze", "squeeze", "numel", "size")),
        *(getattr(torch, name) for name in ("transpose", "unbind", "chunk", "split", "is_tensor", "numel")),
    ]
)


def in_single(model: Any) -> AbstractContextManager[Any]:
    """Return a context in which a model calculates in float32, weights taken as they are.

    A weight is widened where it is calculated with, and forgotten: the peak is one weight above that of the model.
    """
    narrow = (
        any(parameter.dtype in NARROW for parameter in model.parameters()) if isinstance(model, nn.Module) else False
    )
    return _Single() if narrow else nullcontext()


class _Single(TorchFunctionMode):
    """While entered, every function of torch that is given a narrow tensor or dtype is given float32."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _VIEWS:
            return func(*args, **kwargs)
        if func is nn.functional.embedding:  # rows are picked, not calculated with
            return _wide(func(*args, **kwargs))
        if func in (Tensor.half, Tensor.bfloat16):
            return args[0].float()
        name = getattr(func, "__name__", "")
        changed = args[:1] if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")) else ()
        rest, named = tree_map(_wide, (args[len(changed) :], kwargs))
        result = func(*changed, *rest, **named)
        return torch.float32 if isinstance(result, torch.dtype) and result in NARROW else result


def _wide(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return torch.float32 if value in NARROW else value
    return value.float() if isinstance(value, Tensor) and value.dtype in NARROW else value
