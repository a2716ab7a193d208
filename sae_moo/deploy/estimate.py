"""What each format would take, and which runtimes gain by it, measured without writing anything."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor

from sae_moo.deploy import zeros
from sae_moo.deploy.formats import Format
from sae_moo.deploy.mergekit import writer
from sae_moo.deploy.mixtures import check_whole
from sae_moo.deploy.packing import encoded
from sae_moo.deploy.shrink import Shrunk
from sae_moo.deploy.stream import Stream
from sae_moo.deploy.tensor_files import Entry
from sae_moo.errors import InputError
from sae_moo.recipe import BASE, dumps, encode
from sae_moo.recipe.catalogue import blamed, resolved


@dataclass(frozen=True, slots=True)
class Estimate:
    """One format.

    Args:
        format: as `export` calls it.
        nbytes: of the weights in it; None where it does not apply.
        share: of the dense weights' size; None likewise.
        gains: who gains what, or why it does not apply.
    """

    format: str
    nbytes: int | None
    share: float | None
    gains: str


class Sizing(ABC):
    """Measures what one format would take, as the tensors pass; what a `Format.estimate` returns.

    Args:
        stream: the weights.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def add(self, entry: Entry, tensor: Tensor) -> None:  # noqa: B027  # most need no more than names and shapes
        """Take note of a tensor: contiguous, on the CPU, in the dtype that would be written. Nothing by default."""

    @abstractmethod
    def nbytes(self) -> int:
        """Return the size of the weights in the format, once all tensors have passed; tokenizer and card come on top.

        Raises:
            InputError: if the format cannot hold the model, saying why.
        """

    def notes(self) -> Sequence[str]:
        """Return who gains what by it, beyond what the format's row says; asked after `nbytes`."""
        return ()


class Dense(Sizing):
    """The weights as they are."""

    def nbytes(self) -> int:
        """Return the size of all tensors."""
        return sum(entry.nbytes for entry in self.stream.entries)

    def notes(self) -> Sequence[str]:
        """Return for whom the zeros are good as they are."""
        if not self.stream.sparsity():
            return ("none: there are no zeros",)
        fits, matrices = sum(self.stream.two_four.values()), len(self.stream.two_four)
        if not fits:
            return (f"none: {zeros.SCATTERED}",)
        return (f"none: {fits} of {matrices} prunable matrices are 2:4, and {zeros.TWO_FOUR}",)


class Packed(Sizing):
    """What is not zero, compressed."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream)
        self._size = 0

    def add(self, entry: Entry, tensor: Tensor) -> None:
        """Compress a tensor."""
        self._size += sum(len(frame) for chunk in encoded(tensor, self._reference(entry)) for frame in chunk)

    def nbytes(self) -> int:
        """Return the size of what was compressed."""
        return self._size

    def _reference(self, entry: Entry) -> Tensor | None:  # noqa: ARG002
        return None


class Delta(Packed):
    """What is not the base's, compressed."""

    def _reference(self, entry: Entry) -> Tensor | None:
        return self.stream.pool.checkpoints[BASE].load(entry.name).to(entry.dtype)


class Recipe(Sizing):
    """The recipe and the digests of the tensors."""

    def nbytes(self) -> int:
        """Return the size of both as text."""
        return len(dumps(encode(self.stream.recipe)).encode()) + sum(len(n) + 68 for n in self.stream.digests)


class Mergekit(Sizing):
    """A configuration for mergekit."""

    def nbytes(self) -> int:
        """Return the size of the text."""
        text, self._notes = writer.configuration_text(self.stream.recipe, self.stream.pool)
        return len(text.encode())

    def notes(self) -> Sequence[str]:
        """Return what its reader should know."""
        return self._notes


class Structured(Sizing):
    """The weights without what is zero as a whole. Costs a pass over the matrices that hold units."""

    def nbytes(self) -> int:
        """Return the size of the smaller tensors."""
        small = Shrunk(self.stream)
        self._notes = (f"{small.dropped} dropped", *small.left())
        return sum(entry.nbytes for entry in small.entries)

    def notes(self) -> Sequence[str]:
        """Return what is dropped, and where blocks differ what both ways to write their widths take."""
        return self._notes


def estimates(stream: Stream, formats: Sequence[Format]) -> list[Estimate]:
    """Return an estimate of formats; sizes are exact for the weights, tokenizer and card come on top.

    Costs the arithmetic and the compression of an export, and a pass more for what could be dropped.

    Args:
        stream: the weights.
        formats: rows, in the order of the result.

    Raises:
        RunError: naming a guest whose code fails.
    """
    sizings: list[Sizing | None] = []
    for row in formats:
        with _blamed(row):
            sizings.append(None if row.estimate is None else resolved(row.estimate)(stream))
    for entry in stream.entries:
        tensor = stream.tensor(entry.name)
        stream.hashed(tensor, entry.name)
        for row, sizing in zip(formats, sizings, strict=True):
            with _blamed(row):
                if sizing is not None:
                    sizing.add(entry, tensor)
    whole = sum(entry.nbytes for entry in stream.entries)
    return [_estimate(row, sizing, whole) for row, sizing in zip(formats, sizings, strict=True)]


def _estimate(row: Format, sizing: Sizing | None, whole: int) -> Estimate:
    if sizing is None:
        return Estimate(row.name, None, None, "; ".join(filter(None, ("its size is known once written", row.gains))))
    try:
        if not row.smaller:
            check_whole(sizing.stream, f"format {row.name}")
        with _blamed(row):
            size = sizing.nbytes()
            return Estimate(row.name, size, size / whole, "; ".join(filter(None, (row.gains, *sizing.notes()))))
    except InputError as error:
        first, *others = (line.strip().removeprefix("- ") for line in str(error).splitlines())
        if others and first.endswith(":"):  # a title and its points
            first, *others = f"{first} {others[0]}", *others[1:]
        return Estimate(row.name, None, None, f"{first} (and {len(others)} more)" if others else first)


def _blamed(row: Format) -> AbstractContextManager[None]:
    return blamed(row, f"estimate of format {row.name!r}")
