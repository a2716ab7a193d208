"""The live model: loading it, and where in it each tensor of a checkpoint lies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sae_moo.errors import InputError, itemized
from sae_moo.experts.layout import HEADS


def load_model(folder: Path, dtype: torch.dtype, device: torch.device | str) -> Any:
    """Load a causal LM from a local folder, ready for scoring.

    Raises:
        InputError: if transformers cannot build it.
    """
    from transformers import AutoModelForCausalLM

    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True
        )
    except Exception as error:  # whatever transformers' many config classes raise at what they find
        raise InputError(f"{folder}: transformers cannot load this as a causal LM: {error}") from error
    return model.to(device).eval().requires_grad_(False)


def parsed_config(folder: Path) -> dict[str, Any] | None:
    """Return a model's settings as transformers reads them, defaults filled in; None if it cannot."""
    from transformers import AutoConfig

    try:
        return dict(AutoConfig.from_pretrained(folder, local_files_only=True).to_dict())
    except Exception:  # whatever transformers' many config classes raise: loading the model will say it
        return None


def places(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Return where each tensor of a checkpoint lies in a live model: a parameter, or a view into one to write into.

    transformers keeps some tensors otherwise than checkpoints do: it stacks the matrices of a mixture's experts into
    one 3-D parameter, gate and up projections side by side. There the views are those that saving would write.

    Args:
        model: a transformers model.
        names: names of the checkpoint's tensors.

    Returns:
        Name -> tensor, in the order given; together they cover every parameter once.

    Raises:
        InputError: naming tensors without a parameter and parameters that nothing covers.
    """
    own = dict(model.named_parameters())  # a tied head is listed once, under the embeddings' name
    prefix = getattr(model, "base_model_prefix", "")
    found: dict[str, Tensor | None] = {name: own.get(name, own.get(f"{prefix}.{name}")) for name in names}
    for name in HEADS:  # transformers renames some heads as it loads them
        if name in found and found[name] is None:
            found[name] = model.get_output_embeddings().weight  # type: ignore[operator]
    if _lost(found) or _uncovered(found, own):
        views = _as_saved(model, own)
        for name in _lost(found):
            found[name] = views.get(name, views.get(f"{prefix}.{name}"))
    lost, unset = _lost(found), _uncovered(found, own)
    if lost or unset:
        faults = [f"tensor without parameter: {name}" for name in lost[:10]]
        faults += [f"parameter without tensor: {name}" for name in unset[:10]]
        title = "the model that transformers builds does not match the checkpoint"
        raise InputError(itemized(title, faults))
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _lost(found: Mapping[str, Tensor | None]) -> list[str]:
    return [name for name, tensor in found.items() if tensor is None]


def _uncovered(found: Mapping[str, Tensor | None], own: Mapping[str, Tensor]) -> list[str]:
    """Return the parameters whose memory is not covered by as many elements as they have."""
    covered = Counter[int]()
    for tensor in found.values():
        if tensor is not None:
            covered[_memory(tensor)] += tensor.numel()
    needed = Counter[int]()
    for tensor in own.values():
        needed[_memory(tensor)] += tensor.numel()
    return [name for name, tensor in own.items() if covered[_memory(tensor)] != needed[_memory(tensor)]]


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


class _NoCopies(TorchFunctionMode):
    """While entered, ``contiguous`` returns its tensor as it is: what transformers splits to save stays a view."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return args[0] if func is Tensor.contiguous else func(*args, **(kwargs or {}))


def _as_saved(model: nn.Module, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the views into parameters that transformers would save, by the names it saves them under."""
    from transformers.core_model_loading import revert_weight_conversion

    parts = {name: parameter.detach() for name, parameter in own.items()}
    with _NoCopies():
        saved: dict[str, Tensor] = revert_weight_conversion(model, parts)  # type: ignore[arg-type]
    memory = {_memory(part) for part in parts.values()}
    return {name: tensor for name, tensor in saved.items() if _memory(tensor) in memory}
