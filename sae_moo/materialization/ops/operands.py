"""What a merge method is given: one tensor of every input, where it is, and what is already known of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from sae_moo.experts.memory import Remembered
from sae_moo.recipe.rows import Scalar

Param = Scalar | tuple[float, ...]

CHUNK = 1 << 16
"""Elements per chunk of the plain path (float32: 256 KiB, so that a step's temporaries stay in a core's cache)."""
DEVICE_CHUNK = 1 << 24
"""The same elsewhere than on the CPU, where starting a kernel costs more than a small chunk (float32: 64 MiB)."""


def chunk_size(tensor: Tensor) -> int:
    """Return how many elements of a tensor to work on at once, on its device; it changes no bit of a result."""
    return CHUNK if tensor.is_cpu else DEVICE_CHUNK


@dataclass(frozen=True, slots=True)
class Operands:
    """One tensor of every input of a merge, flat.

    Args:
        inputs: one-dimensional contiguous tensors of one length on one device, each float32, bfloat16 or float16.
        base: the base model's tensor likewise, or None for methods that need none.
        shape: shape of the tensor.
        names: per input the name of the expert it is, or None if it is computed; what is remembered goes by it.
        keys: per input a text that identifies it; seeds of random masks are drawn from it.
    """

    inputs: tuple[Tensor, ...]
    base: Tensor | None
    shape: tuple[int, ...]
    names: tuple[str | None, ...]
    keys: tuple[str, ...]

    @property
    def numel(self) -> int:
        """Number of elements of the tensor."""
        return self.inputs[0].numel()

    @property
    def row(self) -> int:
        """Length of a row: the last dimension, 1 for a scalar."""
        return max(1, self.shape[-1]) if self.shape else 1

    def part(self, start: int, stop: int) -> Operands:
        """Return the operands of a range of elements, as one long row."""
        base = None if self.base is None else self.base[start:stop]
        inputs = tuple(tensor[start:stop] for tensor in self.inputs)
        return Operands(inputs, base, (stop - start,), (None,) * len(inputs), self.keys)

    def chunks(self, align: int = 1) -> Iterator[tuple[int, list[Tensor], Tensor | None]]:
        """Yield position, inputs and base of every chunk in float32; chunks begin at multiples of `align`."""
        size = max(1, chunk_size(self.inputs[0]) // align) * align
        for start in range(0, self.numel, size):
            stop = min(start + size, self.numel)
            base = None if self.base is None else self.base[start:stop].float()
            yield start, [tensor[start:stop].float() for tensor in self.inputs], base


@dataclass(frozen=True, slots=True)
class Place:
    """Where a method works.

    Args:
        tensor: name of the tensor.
        prunable: whether its zeros are meant (weights inside blocks) or accidental.
        params: the method's settings for this tensor, defaults filled in; a tuple holds one number per input.
        offset: number of elements in the tensors before this one, in the pool's order.
        total: number of elements of the whole model.
        remembered: numbers about experts' tensors.
    """

    tensor: str
    prunable: bool
    params: Mapping[str, Param]
    offset: int = 0
    total: int = 0
    remembered: Remembered = field(default_factory=Remembered)

    def number(self, name: str) -> float:
        """Return a setting that is one number for all inputs."""
        value = self.params[name]
        if isinstance(value, tuple):
            if len(set(value)) != 1:
                raise ValueError(f"{name}: expected one number for all inputs, got {value}")
            value = value[0]
        return float(value)

    def each(self, name: str, inputs: int) -> tuple[float, ...]:
        """Return a setting as one number per input."""
        value = self.params[name]
        row = value if isinstance(value, tuple) else (float(value),)
        return row * inputs if len(row) == 1 else row
