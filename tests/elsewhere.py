"""A device that is not the CPU, pretended: tensors there are held here, and what crosses over is counted.

Torch's device ``meta`` lends its name; every operator runs on the CPU, so that numbers are the CPU's to the last bit.
"""

from __future__ import annotations

import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

DEVICE = "meta"
aten = torch.ops.aten
SIZED_BY_CONTENT = (
    *("nonzero", "_unique", "_unique2", "unique_dim", "unique_consecutive", "masked_select", "bincount"),
    *("repeat_interleave", "equal", "is_nonzero", "_local_scalar_dense"),
)
"""Operators that a host waits for: their result, or its shape, is a matter of content."""

WHOLE = ("scaled_dot_product_attention", "linear", "matmul")
"""Operators of several that the CPU has its own ways for: taken apart, their last digits would be others."""


class There(Tensor):
    """A tensor of the pretended device.

    Args:
        own: what it holds.
    """

    own: Tensor

    @staticmethod
    def __new__(cls, own: Tensor) -> There:
        with torch.inference_mode(mode=False):  # a view of what was made outside of it cannot be made within
            return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined,no-any-return]
                cls,
                own.shape,
                strides=own.stride(),
                storage_offset=own.storage_offset(),
                dtype=own.dtype,
                device=DEVICE,
            )

    def __init__(self, own: Tensor) -> None:
        self.own = own

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of the pretended device")

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("can't convert a tensor of another device to numpy; use Tensor.cpu() first")


class _Made(TorchFunctionMode):
    """Makes tensors of numbers here and sends them: as they are made on ``meta``, nothing is kept of them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            return func(*args, **{**kwargs, "device": "cpu"}).to(kwargs["device"])
        return func(*args, **kwargs)


class Elsewhere(TorchDispatchMode):
    """While entered, the pretended device is there.

    Attributes:
        waits: where the host waited for the device -> how often.
        sends: where something was sent there -> how often.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.sends: Counter[str] = Counter()
        self._made = _Made()

    def __enter__(self) -> Elsewhere:
        self._made.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._made.__exit__(*raised)

    def moved(self, model: nn.Module) -> nn.Module:
        """Return a model whose weights are on the device, `model` changed."""
        for part in model.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    part._parameters[name] = nn.Parameter(There(parameter.data), requires_grad=False)
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = There(buffer)
        return model

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():  # modes have seen the call that this is a part of
            return self._done(func, args, kwargs)

    def _done(self, func: Any, args: Any, kwargs: Any) -> Any:
        kwargs = dict(kwargs or {})
        name = func.overloadpacket.__name__
        if name not in WHOLE and func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
            with self:  # of several operators: without gradients they come here as one
                return func.decompose(*args, **kwargs)
        to = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type
        there = to == DEVICE
        if there:
            kwargs["device"] = "cpu"
        given = any(isinstance(each, There) for each in torch.utils._pytree.tree_leaves((args, kwargs)))
        args, kwargs = tree_map(lambda each: each.own if isinstance(each, There) else each, (args, kwargs))
        if given and (to == "cpu" or name in SIZED_BY_CONTENT or _picks(name, args)):
            self.waits[_where()] += 1
        if there and not given and name == "_to_copy":
            self.sends[_where()] += 1
        found = func(*args, **kwargs)
        if name == "_local_scalar_dense" or to == "cpu" or not (given or there):
            return found
        return tree_map(lambda each: There(each) if isinstance(each, Tensor) else each, found)


def _picks(name: str, args: Any) -> bool:
    """Say whether a mask of truth values picks elements."""
    indices = args[1] if name in ("index", "index_put", "index_put_") else []
    return any(each is not None and each.dtype in (torch.bool, torch.uint8) for each in indices)


def _where() -> str:
    """Return file, line and function that called torch."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if "torch" not in path.parts and path != Path(__file__) and "python_dispatch" not in path.name:
            return f"{path.parent.name}/{path.name}:{frame.lineno} {frame.name}"
    return "?"
