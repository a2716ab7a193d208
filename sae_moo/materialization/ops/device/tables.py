"""Where the tensors of a launch lie: a table with a row for each, and which tile is whose."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_moo.materialization.ops.deferred import CutRef, NumberRef, Numbers, bits_of
from sae_moo.materialization.ops.select import Cut

CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Dtypes as kernels know them."""
ALIGNED = 16
"""Bytes that addresses have to be multiples of for many elements to be read at once."""
KEPT = 256
"""Most layouts of tiles, and most rows of numbers, that are kept; a model has a few."""
KEPT_TILES = 1 << 24
"""Most tiles of all layouts that are kept: 64 MiB on the device."""
TILE = 2048
"""Elements that a program works on."""
SPAN = 1024
"""Tiles that a program which goes over a tensor's tiles takes at once."""

J = TypeVar("J")
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Tiles:
    """The tiles of some tensors, one tensor after another.

    Args:
        jobs: whose each tile is, int32, on the device.
        first: number of each tensor's first tile, int64.
        lasts: number of the tile after each tensor's last, int64, on the device.
        number: of all tiles.
    """

    jobs: Tensor
    first: NDArray[np.int64]
    lasts: Tensor
    number: int


class Card:
    """A device that kernels are launched on.

    Args:
        device: a CUDA device; the CPU where Triton's interpreter stands in for one.
        tile: elements that a program works on; a power of 2.
    """

    def __init__(self, device: torch.device, tile: int = TILE) -> None:
        self.device = device
        self.tile = tile
        self.launches = 0
        """Kernels launched so far."""
        self.waits = 0
        """How many times the host has waited for the device so far."""
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._tiles: OrderedDict[tuple[Sequence[int], int], Tiles] = OrderedDict()
        self._kept_tiles = 0

    def tiles(self, sizes: Sequence[int], tile: int | None = None) -> Tiles:
        """Return the tiles of tensors of some sizes; kept, since a model's tensors are always the same.

        Args:
            sizes: numbers of elements, or of whatever a program takes some of.
            tile: how many a program takes; None: the card's.
        """
        key = tuple(sizes), tile or self.tile
        if key in self._tiles:
            self._tiles.move_to_end(key)
            return self._tiles[key]
        counts = -(-np.array(key[0], np.int64) // key[1])
        until = np.cumsum(counts)
        jobs = self.sent(np.repeat(np.arange(len(counts), dtype=np.int32), counts))
        made = Tiles(jobs, until - counts, self.sent(until), int(until[-1]))
        self._tiles[key] = made
        self._kept_tiles += made.number
        while len(self._tiles) > 1 and (len(self._tiles) > KEPT or self._kept_tiles > KEPT_TILES):
            self._kept_tiles -= self._tiles.popitem(last=False)[1].number
        return made

    def sent(self, numbers: NDArray[Any]) -> Tensor:
        """Return numbers on the device, on their way: nobody waits for them."""
        tensor = torch.from_numpy(numbers)
        if self.device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def kept(self, name: str, numbers: Callable[[], NDArray[Any]]) -> Tensor:
        """Return numbers that a name stands for, sent to the device once and kept there while they are used."""
        if name not in self._kept:
            self._kept[name] = self.sent(numbers())
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(name)
        return self._kept[name]

    def fetched(self, tensor: Tensor) -> NDArray[Any]:
        """Return a tensor's numbers on the host, which waits for them."""
        self.waits += 1
        numbers: NDArray[Any] = tensor.cpu().numpy()
        return numbers

    def zeros(self, *size: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """Return zeros on the device."""
        return torch.zeros(size, dtype=dtype, device=self.device)

    def empty(self, *size: int, dtype: torch.dtype) -> Tensor:
        """Return memory on the device."""
        return torch.empty(size, dtype=dtype, device=self.device)

    def launch(self, kernel: Any, programs: int, *given: Any, **constants: Any) -> None:
        """Launch so many programs of a kernel; none if there are none."""
        if not programs:
            return
        self.launches += 1
        # products are never fused with sums: two roundings, as everywhere else
        if self.device.type == "cpu":
            kernel[(programs,)](*given, **constants)
        else:
            with torch.cuda.device(self.device):
                kernel[(programs,)](*given, **constants, enable_fp_fusion=False)


class Table:
    """The rows of a launch: numbers of elements, first tiles, then what the kernel asks for.

    Args:
        card: where it will be.
        tiles: of the launch.
        sizes: number of elements of each job.
        width: of a row.
    """

    def __init__(self, card: Card, tiles: Tiles, sizes: Sequence[int], width: int) -> None:
        self._card = card
        self._rows = np.zeros((len(sizes), width), np.int64)
        self._rows[:, 0] = sizes
        self._rows[:, 1] = tiles.first
        self._patches: list[tuple[Numbers, list[tuple[int, int, int, float]]]] = []
        self.width = width
        self.aligned = True
        """Whether all addresses are such that many elements can be read at once."""

    def put(self, column: int, numbers: Sequence[int] | NDArray[np.int64]) -> None:
        """Fill a column with whole numbers."""
        self._rows[:, column] = numbers

    def addresses(self, column: int, tensors: Sequence[Tensor]) -> None:
        """Fill a column with the addresses of tensors, one for each job."""
        found = [tensor.data_ptr() for tensor in tensors]
        self._rows[:, column] = found
        self.aligned = self.aligned and not any(address % ALIGNED for address in found)

    def floats(self, column: int, numbers: Sequence[float]) -> None:
        """Fill a column with numbers, as float32."""
        self._rows[:, column] = bits_of(list(numbers))

    def cuts(self, column: int, cuts: Sequence[Cut | CutRef]) -> None:
        """Fill two columns with cuts: the bits of the value, the position."""
        known = [cut if isinstance(cut, Cut) else cut.settled for cut in cuts]
        self._rows[:, column] = bits_of([0.0 if cut is None else cut.value for cut in known])
        self._rows[:, column + 1] = [0 if cut is None else cut.position for cut in known]
        self._patch(column, 1.0, [cut if found is None else None for cut, found in zip(cuts, known, strict=True)])

    def factors(self, column: int, numbers: Sequence[float | NumberRef], weights: Sequence[float]) -> None:
        """Fill a column with products of numbers and weights, float64 rounded to float32."""
        self._rows[:, column] = bits_of(
            [
                number * weight if isinstance(number, float) else 0.0
                for number, weight in zip(numbers, weights, strict=True)
            ]
        )
        for i, (number, weight) in enumerate(zip(numbers, weights, strict=True)):
            if isinstance(number, NumberRef):
                self._patch_at(number.table, (i, column, number.index, weight))

    def sent(self) -> Tensor:
        """Return the table on the device, with what is known only there."""
        table = self._card.sent(self._rows)
        for numbers, places in self._patches:
            rows, columns, indices, weights = zip(*places, strict=True)
            at = self._card.sent(np.array([rows, columns, indices], np.int64))
            values = numbers.values
            if values.ndim == 2:  # cuts
                found = values[at[2]]
                table[at[0], at[1]] = found[:, 0]
                table[at[0], at[1] + 1] = found[:, 1]
            else:
                product = values[at[2]] * self._card.sent(np.array(weights, np.float64))
                table[at[0], at[1]] = product.float().view(torch.int32).long()
        return table

    def _patch(self, column: int, weight: float, refs: Sequence[Cut | CutRef | None]) -> None:
        for i, ref in enumerate(refs):
            if isinstance(ref, CutRef):
                self._patch_at(ref.table, (i, column, ref.index, weight))

    def _patch_at(self, numbers: Numbers, place: tuple[int, int, int, float]) -> None:
        for known, places in self._patches:
            if known is numbers:
                places.append(place)
                return
        self._patches.append((numbers, [place]))


def codes_of(tensors: Sequence[Tensor]) -> int:
    """Return the dtypes of operands as one number, two bits for each, the first the lowest."""
    return sum(CODES[tensor.dtype] << (2 * i) for i, tensor in enumerate(tensors))


def grouped(jobs: Sequence[J], kind: Callable[[J], K]) -> list[tuple[K, list[int]]]:
    """Return the kinds of jobs in the order in which they come, with the indices of the jobs of each."""
    found: dict[K, list[int]] = {}
    for i, job in enumerate(jobs):
        found.setdefault(kind(job), []).append(i)
    return list(found.items())


@functools.cache
def card_of(device: torch.device) -> Card:
    """Return the card of a device: layouts of tiles are kept as long as the process lives."""
    return Card(device)
