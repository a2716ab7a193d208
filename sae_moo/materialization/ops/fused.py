"""The compiled forms of the common steps on the CPU, spread over torch's number of threads.

Every function here returns None where the plain path has to do: on other devices, for float16 outputs, for rarer steps,
without numba. Of finite numbers both give the same bits.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_moo.materialization.ops.deferred import CutRef, restored
from sae_moo.materialization.ops.operands import Operands
from sae_moo.materialization.ops.select import HIGH_BINS, LOW_BINS, NOTHING, Counts, Cut
from sae_moo.materialization.ops.steps import (
    Combination,
    Selected,
    Step,
    Thinning,
    Vote,
    ZeroAware,
    divisor,
    drops_by_rank,
)

Numbers = TypeVar("Numbers", NDArray[np.float64], Counts)
_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_OUT = (torch.float32, torch.bfloat16)
GRAIN = 1 << 17
"""Fewest elements worth a thread of their own."""


@functools.cache
def available() -> bool:
    """Say whether the compiled kernels can be used on this machine (numba is installed)."""
    return importlib.util.find_spec("numba") is not None


@functools.cache
def _kernels() -> Any:
    return importlib.import_module("sae_moo.materialization.ops.kernels")


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="sae_moo kernel")


def write(step: Step, operands: Operands, out: Tensor) -> int | None:
    """Write a step's result; return the number of zeros written, or None where there is no compiled form."""
    if out.dtype not in _OUT or not _usable(out, *operands.inputs, *_some(operands.base)):
        return None
    if isinstance(step, ZeroAware) and not step.prunable:
        step = step.plain
    numbers: tuple[Any, ...]
    base = _address(operands.base)
    target = _address(out)
    if isinstance(step, Combination):
        origin = operands.base if step.origin is None else operands.inputs[step.origin]
        assert origin is not None
        chosen = [operands.inputs[i] for i in step.others]
        numbers = (*_address(origin), np.float32(step.total), *_addresses(chosen), _floats(step.coefficients))
        kernel = _kernels().combine
    elif isinstance(step, ZeroAware):
        base = base if step.scale != 1.0 else (0, 0)
        numbers = (*_addresses(operands.inputs), _floats(step.shares), *base, np.float32(step.scale))
        kernel = _kernels().zero_aware
    elif isinstance(step, Vote):
        rows = [_thinning(thinning) for thinning in step.thinnings]
        numbers = (
            *_addresses(operands.inputs),
            *base,
            *(np.array(column) for column in zip(*rows, strict=True)),
            _drops(step.thinnings, step.row),
            _floats(step.factors),
            _floats(step.weights),
            np.float32(step.scale),
            step.elect,
            step.normalize,
            np.float32(1.0 / divisor(step.weights)),
        )
        kernel = _kernels().vote
    elif isinstance(step, Selected):
        cut = restored(step.cut or NOTHING)
        weights = (_floats(step.weights), np.float32(step.scale))
        numbers = (*_variance(operands.inputs, operands.base), np.float32(cut.value), cut.position, *weights)
        kernel = _kernels().select
    else:
        return None
    parts = _spread(lambda start, stop: int(kernel(*numbers, *target, start, stop)), operands.numel, step.align)
    return int(sum(parts))


def write_pruned(source: Tensor, cut: Cut, out: Tensor, factor: float) -> int | None:
    """Write a factor times a tensor without the weights whose magnitude is below a cut; return the zeros, or None."""
    if out.dtype not in _OUT or not _usable(source, out):
        return None
    numbers = (*_address(source), np.float32(cut.value), cut.position, np.float32(factor), *_address(out))
    kernel = _kernels().prune
    return int(sum(_spread(lambda start, stop: int(kernel(*numbers, start, stop)), source.numel())))


def kept_squares(source: Tensor, cut: Cut) -> NDArray[np.float64] | None:
    """Return the sum of squares of a tensor, and of the weights whose magnitude is not below a cut; or None."""
    if not _usable(source):
        return None
    numbers, kernel = (*_address(source), np.float32(cut.value), cut.position), _kernels().kept_squares

    def part(start: int, stop: int) -> NDArray[np.float64]:
        sums = np.zeros(2)
        kernel(*numbers, sums, start, stop)
        return sums

    sums: NDArray[np.float64] = _summed(_spread(part, source.numel()))
    return sums


def gram(inputs: Sequence[Tensor], base: Tensor | None) -> NDArray[np.float64] | None:
    """Return the lower triangle of dot products of the inputs, or of their differences from the base, or None."""
    if not _usable(*inputs, *_some(base)):
        return None
    addresses, codes = _addresses(inputs)
    kernel = _kernels().gram

    def part(start: int, stop: int) -> NDArray[np.float64]:
        products = np.zeros((len(inputs), len(inputs)))
        kernel(addresses, codes, *_address(base), products, start, stop)
        return products

    products: NDArray[np.float64] = _summed(_spread(part, inputs[0].numel()))
    return products


def l1(tensor: Tensor, base: Tensor, thinning: Thinning, row: int) -> float | None:
    """Return the sum of absolute differences that a thinning leaves, or None."""
    if not _usable(tensor, base):
        return None
    drops = _drops((thinning,), row)[0]
    numbers = (*_address(tensor), *_address(base), *(np.array(each) for each in _thinning(thinning)), drops)
    kernel = _kernels().l1
    parts = _spread(lambda start, stop: float(kernel(*numbers, start, stop)), tensor.numel(), max(1, len(drops)))
    return float(sum(parts))


def variances(inputs: Sequence[Tensor], base: Tensor) -> tuple[Magnitudes, int] | None:
    """Return the variance over inputs of every element, as scores, and how many are not zero; or None.

    They are held in memory: as much as the tensor in float32.
    """
    if not _usable(*inputs, base):
        return None
    found = torch.empty(base.numel(), dtype=torch.float32, device="cpu")
    numbers, kernel = (*_variance(inputs, base), found.data_ptr()), _kernels().variances
    zeros = sum(_spread(lambda start, stop: int(kernel(*numbers, start, stop)), base.numel()))
    return Magnitudes(found, None), base.numel() - zeros


def squares(inputs: Sequence[Tensor], base: Tensor, cut: Cut) -> NDArray[np.float64] | None:
    """Return each input's sum of squared differences from the base, of what has a variance not below a cut; or None."""
    if not _usable(*inputs, base):
        return None
    numbers, kernel = (*_variance(inputs, base), np.float32(cut.value), cut.position), _kernels().selected_squares

    def part(start: int, stop: int) -> NDArray[np.float64]:
        found = np.zeros(len(inputs))
        kernel(*numbers, found, start, stop)
        return found

    sums: NDArray[np.float64] = _summed(_spread(part, base.numel()))
    return sums


def magnitudes(tensor: Tensor, base: Tensor | None) -> Magnitudes | None:
    """Return the absolute values of a flat tensor, or of its difference from the base, or None."""
    return Magnitudes(tensor, base) if _usable(tensor, *_some(base)) else None


@dataclass(frozen=True, slots=True)
class Magnitudes:
    """Absolute values as `Importances`, counted by compiled loops.

    Args:
        tensor: flat.
        base: subtracted first, or None.
    """

    tensor: Tensor
    base: Tensor | None

    @property
    def numel(self) -> int:
        """Number of scores."""
        return self.tensor.numel()

    def high(self) -> Counts:
        """See `Importances`."""
        return self._counted(HIGH_BINS, _kernels().high_histogram)

    def low(self, high: int) -> Counts:
        """See `Importances`."""
        return self._counted(LOW_BINS, _kernels().low_histogram, high)

    def lowest(self, count: int) -> Cut | None:
        """Return the cut below which `count` scores lie, for small tensors; None for large ones."""
        if not 0 < count <= self.numel <= GRAIN:
            return None
        place = (*_address(self.tensor), *_address(self.base))
        value, position = _kernels().lowest(*place, count, self.numel)
        return Cut(float(value), int(position))

    def after(self, value: float, ties: int) -> int:
        """See `Importances`."""
        place = (*_address(self.tensor), *_address(self.base))
        return int(_kernels().after(*place, np.float32(value), ties, self.numel))

    def _counted(self, bins: int, kernel: Callable[..., None], *wanted: int) -> Counts:
        place = (*_address(self.tensor), *_address(self.base))

        def part(start: int, stop: int) -> Counts:
            histogram = np.zeros(bins, np.int64)
            kernel(*place, *wanted, histogram, start, stop)
            return histogram

        return _summed(_spread(part, self.numel))


def _summed(parts: Sequence[Numbers]) -> Numbers:
    """Return the sum of arrays that nobody else needs, in order, in the memory of the first."""
    total = parts[0]
    for part in parts[1:]:
        total += part
    return total


def _spread(part: Callable[[int, int], Any], size: int, align: int = 1) -> list[Any]:
    """Return the results of a function over consecutive ranges, in order; they begin at multiples of `align`."""
    threads = min(torch.get_num_threads(), max(1, size // max(GRAIN, align)))
    if threads == 1:
        return [part(0, size)]
    borders = [*(size * i // threads // align * align for i in range(threads)), size]
    futures = [_pool(threads - 1).submit(part, *borders[i : i + 2]) for i in range(1, threads)]
    interrupted: KeyboardInterrupt | None = None
    try:
        own = part(*borders[:2])
    finally:
        # whatever happened here, Ctrl-C while waiting included: they work on addresses that the caller may free next
        waiting = True
        while waiting:
            try:
                wait(futures)
                waiting = False
            except KeyboardInterrupt as error:
                interrupted = error
    if interrupted is not None:
        raise interrupted
    return [own, *(future.result() for future in futures)]


def _usable(*tensors: Tensor) -> bool:
    if not available():
        return False
    for tensor in tensors:
        if not tensor.is_cpu or tensor.dtype not in _CODES or not tensor.is_contiguous():
            return False
    return True


def _some(tensor: Tensor | None) -> tuple[Tensor, ...]:
    return () if tensor is None else (tensor,)


def _address(tensor: Tensor | None) -> tuple[int, int]:
    return (0, 0) if tensor is None else (tensor.data_ptr(), _CODES[tensor.dtype])


def _addresses(tensors: Sequence[Tensor]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    pairs = [_address(tensor) for tensor in tensors]
    return np.array([p[0] for p in pairs], np.int64), np.array([p[1] for p in pairs], np.int64)


def _floats(values: Sequence[float]) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def _thinning(thinning: Thinning) -> tuple[tuple[float, float], tuple[int, int], tuple[int, int, int]]:
    """Return limits, positions and random stream as numbers; negative is none."""
    cuts = [_border(cut) for cut in (thinning.above, thinning.under)]
    stream = (0, 0, -1)
    if thinning.stream is not None:
        drop = thinning.drop if thinning.epsilon is None else _kernels().BY_RANK
        stream = (*thinning.stream.keys, drop)
    return (cuts[0][0], cuts[1][0]), (cuts[0][1], cuts[1][1]), stream


def _border(cut: Cut | CutRef | None) -> tuple[float, int]:
    if cut is None:
        return -1.0, 0
    known = restored(cut)
    return known.value, known.position


def _drops(thinnings: Sequence[Thinning], row: int) -> NDArray[np.int64]:
    """Return per input the threshold of each rank within a row, shape (inputs, row); (inputs, 0) if none goes by rank.

    For inputs that do not go by rank the numbers mean nothing.
    """
    if all(thinning.epsilon is None for thinning in thinnings):
        return np.zeros((len(thinnings), 0), np.int64)
    return np.stack([drops_by_rank(row, each.density, each.epsilon or 0.0).numpy() for each in thinnings])


def _variance(inputs: Sequence[Tensor], base: Tensor | None) -> tuple[Any, ...]:
    return (*_addresses(inputs), *_address(base), np.float32(1.0 / len(inputs)))
