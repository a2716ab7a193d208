"""What an adapter does to one tensor of its base: products of thin matrices, rows, vectors; in which order it adds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

BAND = 1 << 20
"""Elements composed at a time."""
Read = Callable[[str], Tensor]
"""Returns a tensor of the adapter's file by its name there."""
Span = tuple[int, int, int]
"""First, last (exclusive) and step of a range of rows or columns."""


class Update(Protocol):
    """How an adapter changes one tensor: a frozen value that names what it reads, and reads it when it is asked."""

    @property
    def parts(self) -> Mapping[str, str]:
        """What a tensor of the adapter's file is for -> its name there, all that `applied` reads."""

    @property
    def facts(self) -> list[Any]:
        """Everything beside the parts that the result depends on, for fingerprints: JSON values."""

    def applied(self, weight: Tensor, read: Read) -> Tensor:
        """Return the changed tensor, contiguous, in the shape and dtype of the base's, which is left as it is."""


@dataclass(frozen=True, slots=True)
class Block:
    """The part of one expert's product that a matrix of the checkpoint holds.

    Args:
        expert: which expert; 0 where there are none.
        outputs: rows of the product.
        inputs: columns of the product.
        turned: whether the checkpoint stores it inputs x outputs.
    """

    expert: int
    outputs: Span
    inputs: Span
    turned: bool


@dataclass(frozen=True, slots=True)
class Product:
    """LoRA: ``weight + scale * (b @ a)`` in float32, rounded once (Hu et al. 2021, arXiv 2106.09685, section 4.1).

    With magnitudes the rows (of outputs x inputs) are then rescaled to them: DoRA (Liu et al. 2024, arXiv 2402.09353,
    eq. 5). A convolution's kernel counts into the inputs.

    Args:
        a: name of the matrix rank x inputs; of a mixture's stacked experts ``experts * rank`` x inputs, expert by
            expert.
        b: name of the matrix outputs x rank; of stacked experts outputs x ``rank * experts``, rank by rank.
        magnitude: name of the outputs' magnitudes; None without DoRA.
        scale: see `AdapterSettings.scale`.
        blocks: what of the product the tensor holds, one for each of its matrices.
        experts: how many experts are stacked.
        rounded: whether the product is rounded to the tensor's dtype before it is added, as PEFT does for embeddings
            and for parameters that are targets themselves.
        inner: name of numbers that the rows of ``a`` are multiplied by, one for each rank; None: by none.
        outer: the same of the rows of ``b``, one for each output.
    """

    a: str
    b: str
    magnitude: str | None
    scale: float
    blocks: tuple[Block, ...]
    experts: int = 1
    rounded: bool = False
    inner: str | None = None
    outer: str | None = None

    @property
    def parts(self) -> dict[str, str]:
        """The factors, the magnitudes, and what stands between them."""
        parts = {"A": self.a, "B": self.b, "magnitude": self.magnitude, "inner": self.inner, "outer": self.outer}
        return {role: name for role, name in parts.items() if name is not None}

    @property
    def facts(self) -> list[Any]:
        """Scale, layout, magnitudes; which blocks, where they are not one whole matrix."""
        turned = self.blocks[0].turned
        if self.experts == 1 and len(self.blocks) == 1 and not self.rounded:
            block = self.blocks[0]
            if block.outputs[0] == block.inputs[0] == 0:
                return [self.scale, turned, self.magnitude is not None]
        blocks = [[block.expert, block.outputs, block.inputs, block.turned] for block in self.blocks]
        return [self.scale, turned, self.magnitude is not None, self.experts, self.rounded, blocks]

    def applied(self, weight: Tensor, read: Read) -> Tensor:
        """Return the changed tensor."""
        a, b = self._factors(read)
        rank = len(a) // self.experts  # which AdaLoRA may have cut to 0
        a, b = a.reshape(self.experts, rank, a.shape[1]), b.reshape(len(b), rank, self.experts)
        magnitudes = None if self.magnitude is None else read(self.magnitude).float().reshape(-1)
        result = torch.empty_like(weight, memory_format=torch.contiguous_format)
        matrices = (_matrices(tensor, len(self.blocks)) for tensor in (weight, result))
        for block, stored, composed in zip(self.blocks, *matrices, strict=True):
            self._compose(
                a[block.expert][:, slice(*block.inputs)].float(),
                b[slice(*block.outputs), :, block.expert].float(),
                magnitudes,
                *(each.T if block.turned else each for each in (stored, composed)),
            )
        return result

    def _factors(self, read: Read) -> tuple[Tensor, Tensor]:
        """Return both factors as matrices, rescaled; still as they are stored where they are not."""
        a, b = read(self.a).flatten(1), read(self.b).flatten(1)
        if self.inner is not None:
            a = read(self.inner).float().reshape(-1, 1) * a.float()
        if self.outer is not None:
            of_outputs = read(self.outer).float().reshape(-1, 1)
            b = of_outputs * b[: len(of_outputs)].float()
        return a, b

    def _compose(self, a: Tensor, b: Tensor, magnitudes: Tensor | None, stored: Tensor, composed: Tensor) -> None:
        # outputs x inputs, a band of outputs at a time: the whole product in float32 would be larger than the tensor
        bands = max(1, round(stored.numel() / BAND))
        for first, last in pairwise(len(b) * i // bands for i in range(bands + 1)):
            band = (b[first:last] @ a).mul_(self.scale)
            band = (band.to(stored.dtype) if self.rounded else band).add_(stored[first:last])
            if magnitudes is not None:
                band = (magnitudes[first:last] / torch.linalg.norm(band, dim=1)).unsqueeze(1) * band
            composed[first:last] = band


def _matrices(tensor: Tensor, number: int) -> Tensor:
    """Return a tensor as a view of so many matrices: its first dimension's, or itself, kernels with the inputs."""
    if tensor.ndim == 1:
        return tensor.reshape(1, 1, -1)
    return tensor if tensor.ndim == 3 and len(tensor) == number else tensor.flatten(1).unsqueeze(0)


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows replaced: trained tokens.

    Args:
        values: name of the rows' values, in the order of `rows`.
        rows: which rows.
    """

    values: str
    rows: tuple[int, ...]

    @property
    def parts(self) -> dict[str, str]:
        """The rows."""
        return {"rows": self.values}

    @property
    def facts(self) -> list[Any]:
        """Which rows."""
        return ["rows", *self.rows]

    def applied(self, weight: Tensor, read: Read) -> Tensor:
        """Return the changed tensor."""
        result = weight.clone(memory_format=torch.contiguous_format)
        result[torch.tensor(self.rows)] = read(self.values).to(result.dtype)
        return result


@dataclass(frozen=True, slots=True)
class Shift:
    """A multiple of a vector added: the bias of a LoRA's second factor.

    Args:
        values: name of the vector.
        scale: what it is multiplied by.
    """

    values: str
    scale: float

    @property
    def parts(self) -> dict[str, str]:
        """The vector."""
        return {"shift": self.values}

    @property
    def facts(self) -> list[Any]:
        """The scale."""
        return ["shift", self.scale]

    def applied(self, weight: Tensor, read: Read) -> Tensor:
        """Return the changed tensor."""
        return (weight.float() + read(self.values).float() * self.scale).to(weight.dtype)


@dataclass(frozen=True, slots=True)
class Rescaling:
    """Outputs or inputs multiplied by a vector: (IA)^3 (Liu et al. 2022, arXiv 2205.05638, section 3.3).

    Args:
        values: name of the vector, shaped outputs x 1 or 1 x inputs.
        turned: whether the tensor is stored inputs x outputs.
    """

    values: str
    turned: bool

    @property
    def parts(self) -> dict[str, str]:
        """The vector."""
        return {"rescaling": self.values}

    @property
    def facts(self) -> list[Any]:
        """The layout."""
        return ["rescaling", self.turned]

    def applied(self, weight: Tensor, read: Read) -> Tensor:
        """Return the changed tensor."""
        factors = read(self.values).float()
        factors = factors.reshape(-1) if weight.ndim == 1 else factors.T if self.turned else factors
        return (weight.float() * factors).to(weight.dtype)


@dataclass(frozen=True, slots=True)
class Hadamard:
    """LoHa: two low-rank products multiplied element by element (Hyeon-Woo et al. 2021, arXiv 2108.06098, eq. 1).

    Args:
        factors: names of ``w1_a, w1_b, w2_a, w2_b``, each pair outputs x rank and rank x inputs.
        scale: see `AdapterSettings.scale`.
    """

    factors: tuple[str, str, str, str]
    scale: float

    @property
    def parts(self) -> dict[str, str]:
        """The four factors."""
        return dict(zip(("w1_a", "w1_b", "w2_a", "w2_b"), self.factors, strict=True))

    @property
    def facts(self) -> list[Any]:
        """The scale."""
        return ["hadamard", self.scale]

    def applied(self, weight: Tensor, read: Read) -> Tensor:
        """Return the changed tensor."""
        first_a, first_b, second_a, second_b = (read(name).float() for name in self.factors)
        product = (first_a @ first_b).mul_(second_a @ second_b).mul_(self.scale)
        return product.reshape(weight.shape).add_(weight).to(weight.dtype)


@dataclass(frozen=True, slots=True)
class Kronecker:
    """LoKr: a Kronecker product of two matrices, each whole or a low-rank product (arXiv 2309.14859, section 3.2).

    Args:
        first: name of the left matrix, or names of its two factors.
        second: the same of the right one.
        scale: see `AdapterSettings.scale`.
    """

    first: tuple[str, ...]
    second: tuple[str, ...]
    scale: float

    @property
    def parts(self) -> dict[str, str]:
        """The matrices or their factors."""
        return dict(_numbered("w1", self.first)) | dict(_numbered("w2", self.second))

    @property
    def facts(self) -> list[Any]:
        """The scale."""
        return ["kronecker", self.scale]

    def applied(self, weight: Tensor, read: Read) -> Tensor:
        """Return the changed tensor."""
        left, right = (
            torch.linalg.multi_dot([read(name).float() for name in names]) if len(names) > 1 else read(names[0]).float()
            for names in (self.first, self.second)
        )
        return torch.kron(left, right).mul_(self.scale).reshape(weight.shape).add_(weight).to(weight.dtype)


def _numbered(role: str, names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for number, name in enumerate(names):
        yield f"{role} {number}", name
