"""The live model without its weights: what it calls its parameters, and which tensors of the checkpoint they hold."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from sae_moo.errors import InputError
from sae_moo.experts.checkpoint import Checkpoint
from sae_moo.experts.layout import HEADS, TOKEN_EMBEDDINGS
from sae_moo.experts.live import places, without_memory
from sae_moo.experts.updates import Block, Span

_TEXT = ("language_model.model.", "language_model.", "text_model.")
"""What wrappers put before the names of a text model's tensors."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor of the checkpoint as a part of a live parameter.

    Args:
        name: its name in the checkpoint.
        view: shape, strides and offset within the parameter, in elements; None where it is the whole parameter as it
            is.
    """

    name: str
    view: tuple[tuple[int, ...], tuple[int, ...], int] | None = None

    def of(self, parameter: Tensor) -> Tensor:
        """Return this piece of a tensor that is shaped like the live parameter, contiguous."""
        return parameter if self.view is None else parameter.contiguous().as_strided(*self.view).contiguous()

    def blocks(self, shape: tuple[int, ...], turned: bool) -> tuple[Block, ...]:
        """Return what the piece holds of products that are shaped like the live parameter; () if that is no block.

        Args:
            shape: the live parameter's: (experts, rows, columns) or (rows, columns).
            turned: whether the live parameter is stored inputs x outputs.
        """
        experts, height, width = shape if len(shape) == 3 else (1, *shape)
        if self.view is None:
            sides: tuple[Span, Span] = ((0, height, 1), (0, width, 1))
            outputs, inputs = reversed(sides) if turned else sides
            return tuple(Block(expert, outputs, inputs, turned) for expert in range(experts))
        size, stride, offset = self.view
        if len(size) == 1:
            size, stride = (1, *size), (width, *stride)
        matrices = size[0] if len(size) == 3 else 1
        if len(size) not in (2, 3) or (matrices > 1 and stride[0] != height * width):
            return ()
        (tall, wide), (down, across) = size[-2:], stride[-2:]
        expert, rest = divmod(offset, height * width)
        row, column = divmod(rest, width)
        flipped = across != 1
        if flipped:
            tall, wide, down, across = wide, tall, across, down
        step = down // width
        if across != 1 or down % width or column + wide > width or row + (tall - 1) * step >= height:
            return ()
        rows, columns = (row, row + (tall - 1) * step + 1, max(step, 1)), (column, column + wide, 1)
        outputs, inputs = (columns, rows) if turned else (rows, columns)
        return tuple(Block(expert + i, outputs, inputs, turned != flipped) for i in range(matrices))


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter as the live model has it: shape, and the tensors of the checkpoint that it holds, in their order."""

    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


class Skeleton:
    """A base's live model on the meta device: names, shapes and layout, no memory.

    Args:
        base: the checkpoint.

    Attributes:
        text: name of the module that holds the token embeddings, the text model's, with a dot after it; empty at the
            top.

    Raises:
        InputError: if transformers cannot build the model, or builds one that the checkpoint does not fill.
    """

    def __init__(self, base: Checkpoint) -> None:
        model = _weightless(base.folder)
        self._modules = dict(model.named_modules())
        own = dict(model.named_parameters())
        memory = {int(tensor.untyped_storage()._cdata): name for name, tensor in own.items()}
        pieces: dict[str, list[Piece]] = {}
        for name, part in places(model, base.tensors).items():
            live = memory.get(int(part.untyped_storage()._cdata))
            if live is None:
                continue  # a buffer, which no adapter touches
            view = (tuple(part.shape), tuple(part.stride()), int(part.storage_offset()))
            whole = part.shape == own[live].shape and part.stride() == own[live].stride()
            pieces.setdefault(live, []).append(Piece(name, None if whole else view))
        self._parameters = {
            name: Parameter(tuple(own[name].shape), tuple(parts)) for name, parts in pieces.items() if name in own
        }
        embeddings = model.get_input_embeddings()
        name = next((name for name, module in self._modules.items() if module is embeddings), "")
        self.text = name.rpartition(".")[0] + "." if "." in name else ""

    def parameter(self, name: str) -> Parameter | None:
        """Return a parameter by its live name; None if there is none."""
        return self._parameters.get(name)

    def own_parameters(self, module: str) -> tuple[str, ...]:
        """Return the names of a module's own parameters in the order they were declared; () if there is no such."""
        found = self._modules.get(module)
        return () if found is None else tuple(name for name, _ in found.named_parameters(recurse=False))

    def is_transposed(self, module: str) -> bool:
        """Say whether a module keeps its experts' matrices inputs x outputs (GPT-OSS, Llama 4)."""
        return bool(getattr(self._modules.get(module), "is_transposed", False))


def _weightless(folder: Path) -> Any:
    model = without_memory(folder)
    model.tie_weights()
    return model


class Places:
    """Where an adapter's names lie in its base: names of the checkpoint, of the live model, of a wrapper or its inside.

    PEFT names tensors as the live model did under which the adapter was trained. That may be another release's, the
    text model alone, or the multimodal model around it.

    Args:
        base: the checkpoint.

    Attributes:
        tied: whether the base's head is its embeddings.
        trouble: why the live model could not be built, once it was asked for; None if it could.
    """

    def __init__(self, base: Checkpoint) -> None:
        self._base = base
        self._text = TOKEN_EMBEDDINGS.split(base.embeddings or "")[0]
        self._text += "." if self._text else ""
        # some wrappers keep the head within their text model, where a checkpoint does not look for one
        inner = next((name for name in base.tensors if name.endswith(".lm_head.weight")), None)
        self._head = base.head or inner
        self.tied = base.tied and inner is None
        self.trouble: str | None = None

    @cached_property
    def skeleton(self) -> Skeleton | None:
        """The live model's, built when it is first asked for; None if it cannot be, and then `trouble` says why."""
        try:
            return Skeleton(self._base)
        except InputError as error:
            self.trouble = str(error)
            return None

    @cached_property
    def _longer(self) -> dict[str, list[str]]:
        """The checkpoint's names without their first part -> these names."""
        longer: dict[str, list[str]] = {}
        for name in self._base.tensors:
            longer.setdefault(name.partition(".")[2], []).append(name)
        return longer

    def live_name(self, module: str) -> str | None:
        """Return what the live model calls a module, with or without a wrapper's words; None if it has no such."""
        if self.skeleton is None:
            return None
        return next((name for name in self._candidates(module) if self.skeleton.own_parameters(name)), None)

    def find(self, name: str) -> Parameter | None:
        """Return the parameter that a name of the adapter's means; None if there is none in the base."""
        if self.is_head(name) and self._head is not None:
            return self._exactly(self._head)
        for candidate in (name, *_others(name, self._text)):
            if candidate in self._base.tensors:
                return self._exactly(candidate)
        shorter = name.partition(".")[2]
        if shorter in self._base.tensors and shorter.count("."):
            return self._exactly(shorter)
        if self.skeleton is not None:
            found = map(self.skeleton.parameter, self._candidates(name))
            place = next((each for each in found if each is not None), None)
            if place is not None:
                return place
        longer = self._longer.get(name, ()) if name.count(".") > 1 else ()
        return self._exactly(longer[0]) if len(longer) == 1 else None

    def is_head(self, name: str) -> bool:
        """Say whether a name means the head's weight, which a base may have tied to its embeddings."""
        return any(name == head or (name.endswith(f".{head}") and _unwrapped(name) == head) for head in HEADS)

    def _exactly(self, name: str) -> Parameter:
        return Parameter(self._base.tensors[name].shape, (Piece(name),))

    def _candidates(self, name: str) -> tuple[str, ...]:
        """Return a name as it is, and what else the live model may call the same."""
        return (name, *_others(name, self.skeleton.text if self.skeleton is not None else ""))


def _others(name: str, text: str) -> tuple[str, ...]:
    """Return a name without a wrapper's words, and with those before the text model of another wrapper."""
    bare = _unwrapped(name)
    return (bare, text + bare.removeprefix("model."))


def _unwrapped(name: str) -> str:
    """Return a name as a text model alone has it: ``model.layers...``, ``lm_head...``."""
    for words in _TEXT:
        before, found, inside = name.partition(words)
        if found and before in ("", "model."):
            return inside if inside.startswith("lm_head.") else f"model.{inside.removeprefix('model.')}"
    return name
