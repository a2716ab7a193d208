"""The live model: loading it, and where in it each tensor of a checkpoint lies."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sae_moo.errors import InputError, itemized, out_of_memory
from sae_moo.experts.code import only_code
from sae_moo.experts.layout import is_head


def load_model(folder: Path, dtype: torch.dtype, device: torch.device | str) -> Any:
    """Load a causal LM from a local folder, ready for scoring; a model of images and text where it is one that writes.

    Raises:
        InputError: if transformers cannot build it.
    """
    try:
        model: Any = model_class(known_config(folder)).from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
    except Exception as error:  # whatever transformers' many config classes raise at what they find
        reason = (
            only_code(folder) or f"{folder}: transformers cannot load this as a causal LM: {_reason(folder, error)}"
        )
        raise InputError(reason) from error
    try:
        model = model.to(device)
    except (AssertionError, RuntimeError) as error:  # torch's words for a device that is not there, or none
        if out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"device: expected one that torch has here, got {str(device)!r}: {reason}") from error
    return model.eval().requires_grad_(False)


def _reason(folder: Path, error: Exception) -> str:
    """Return why transformers cannot load a model, without its list of all the classes that it can."""
    reason = str(error)
    if isinstance(error, ValueError) and "for this kind of AutoModel" in reason:
        described = parsed_config(folder) or {}
        return (
            f"of the architecture {', '.join(described.get('architectures') or ['of no name'])} (model_type "
            f"{described.get('model_type')!r}) it has no causal language model"
        )
    return reason


def model_class(config: Any) -> Any:
    """Return what builds a model: transformers' class of causal LMs, or of those that write about images.

    Args:
        config: a `known_config`, or None.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    )

    seeing = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING
    return AutoModelForImageTextToText if seeing else AutoModelForCausalLM


def known_config(folder: Path) -> Any:
    """Return a model's settings as transformers reads them, defaults filled in; None if it cannot, running no code."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception:  # whatever transformers' many config classes raise: loading the model will say it
        return None


def without_memory(folder: Path) -> Any:
    """Return a model of a folder's configuration whose weights are nowhere (on torch's meta device).

    Takes about a second, and no memory.

    Raises:
        InputError: if transformers cannot build it without running code of the folder's own.
    """
    from transformers import AutoConfig

    try:
        with torch.device("meta"):
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            return model_class(config).from_config(config, trust_remote_code=False)
    except Exception as error:  # whatever transformers' many config classes raise at what they find
        raise InputError(
            f"{folder}: transformers cannot build this as a causal LM: {_reason(folder, error)}"
        ) from error


def ties(folder: Path) -> dict[str, str] | None:
    """Return what transformers ties in a model by its class and configuration, defaults among it; see `without_memory`.

    Returns:
        Parameter -> the parameter that it is, as the live model names them; None if transformers cannot build it.
    """
    try:
        return dict(without_memory(folder).all_tied_weights_keys)
    except InputError:  # loading the model will say it
        return None


def parsed_config(folder: Path) -> dict[str, Any] | None:
    """Return `known_config` as a dictionary."""
    known = known_config(folder)
    return None if known is None else dict(known.to_dict())


def places(model: nn.Module, names: Iterable[str], unbuilt: Collection[str] = ()) -> dict[str, Tensor]:
    """Return where each tensor of a checkpoint lies in a live model, found once: see `_places`.

    A candidate is written into the same model again and again; that it is the same, parameter by parameter, is seen in
    a tenth of the time that looking for them takes.
    """
    asked = tuple(names), frozenset(unbuilt)
    seen = _SEEN.get(model)
    if seen is None or seen.asked != asked or not seen.unchanged:
        seen = _Seen.of(model, asked, _places(model, *asked))
        _SEEN[model] = seen
    return dict(seen.found)


@dataclass(frozen=True, slots=True)
class _Seen:
    """Where tensors lie in a live model, and what it was made of then.

    Args:
        asked: names of tensors, and those the model may do without.
        found: name -> tensor.
        parts: every module, parameter and buffer: the dictionary that holds it, its name there, itself.
        sizes: those dictionaries, and how much they held.
        addresses: parameters and buffers, and where their memory begins.
    """

    asked: tuple[tuple[str, ...], frozenset[str]]
    found: dict[str, Tensor]
    parts: tuple[tuple[Mapping[str, Any], str, Any], ...]
    sizes: tuple[tuple[Mapping[str, Any], int], ...]
    addresses: tuple[tuple[Tensor, int], ...]

    @classmethod
    def of(cls, model: nn.Module, asked: tuple[tuple[str, ...], frozenset[str]], found: dict[str, Tensor]) -> _Seen:
        """Remember a model as it is."""
        parts, sizes = [], []
        for module in model.modules():
            for held in (module._modules, module._parameters, module._buffers):
                # weakly: what remembers a model must not keep it alive
                parts += [(held, name, weakref.ref(part)) for name, part in held.items() if part is not None]
                sizes.append((held, len(held)))
        tensors = [part for _, _, ref in parts if isinstance(part := ref(), Tensor)]
        addresses = tuple((tensor, tensor.data_ptr()) for tensor in tensors)
        return cls(asked, found, tuple(parts), tuple(sizes), addresses)

    @property
    def unchanged(self) -> bool:
        """Whether the model is still made of the same parts, in the same memory."""
        return (
            all(len(held) == size for held, size in self.sizes)
            and all(held.get(name) is ref() for held, name, ref in self.parts)
            and all(tensor.data_ptr() == address for tensor, address in self.addresses)
        )


_SEEN: weakref.WeakKeyDictionary[nn.Module, _Seen] = weakref.WeakKeyDictionary()


def _places(model: nn.Module, names: Iterable[str], unbuilt: Collection[str]) -> dict[str, Tensor]:
    """Return where each tensor of a checkpoint lies in a live model: a parameter, a buffer, or a view to write into.

    transformers keeps some tensors otherwise than checkpoints do: it stacks the matrices of a mixture's experts into
    one 3-D parameter, gate and up projections side by side. There the views are those that saving would write.

    Args:
        model: a transformers model.
        names: names of the checkpoint's tensors.
        unbuilt: those of them that the model may do without.

    Returns:
        Name -> tensor, in the order given, those it does without left out; together they cover every parameter once,
        and the buffers that were named: one that the checkpoint lacks keeps what the model gave it.

    Raises:
        InputError: naming tensors without a parameter and parameters that nothing covers.
    """
    own = dict(model.named_parameters())  # a tied head is listed once, under the embeddings' name
    prefix = getattr(model, "base_model_prefix", "")
    found: dict[str, Tensor | None] = {name: own.get(name, own.get(f"{prefix}.{name}")) for name in names}
    for name in found:  # transformers renames some heads as it loads them
        if is_head(name) and found[name] is None:
            found[name] = model.get_output_embeddings().weight  # type: ignore[operator]
    held = own if not _lost(found) else own | _saved_buffers(model)
    for name in _lost(found):
        found[name] = held.get(name, held.get(f"{prefix}.{name}"))
    if _lost(found) or _uncovered(found, own):
        views = _as_saved(model, held)
        for name in _lost(found):
            found[name] = views.get(name, views.get(f"{prefix}.{name}"))
    lost, unset = [name for name in _lost(found) if name not in unbuilt], _uncovered(found, own)
    if lost or unset:
        faults = [f"tensor without parameter: {name}" for name in lost[:10]]
        faults += [f"parameter without tensor: {name}" for name in unset[:10]]
        title = "the model that transformers builds does not match the checkpoint"
        raise InputError(itemized(title, faults))
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _saved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that a checkpoint holds beside the parameters: what a model's own state has of them."""
    saved = model.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in model.named_buffers() if name in saved and buffer.is_floating_point()}


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
    """Return the views into parameters and buffers that transformers would save, by the names it saves them under."""
    from transformers.core_model_loading import revert_weight_conversion

    parts = {name: parameter.detach() for name, parameter in own.items()}
    with _NoCopies():
        saved: dict[str, Tensor] = revert_weight_conversion(model, parts)  # type: ignore[arg-type]
    memory = {_memory(part) for part in parts.values()}
    return {name: tensor for name, tensor in saved.items() if _memory(tensor) in memory}
