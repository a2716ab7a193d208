"""How alike the weights of experts are: structural features of two task vectors, without texts and forward passes.

All tensors are gone over once, for all pairs together: of one tensor all experts are looked at before the next. What is
read lies in mapped files; beside them there are chunks of a few MiB, the tensors that are computed (those an adapter
touches), which are taken two experts at a time where all are over `HELD_BYTES`, and a few counts for each pair.

Everything is exact but the effective rank of large matrices: of those whose sides are both over `SKETCH`, the singular
values are those of a projection on `SKETCH` random directions on each side, drawn once for each size from a seed of its
own. A rank below `SKETCH` is kept by that, a flat spectrum stays flat; the effective rank is given as a share of the
full one, which for a sketch is `SKETCH`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_moo.experts.layout import STORED_DTYPES
from sae_moo.experts.pool import ExpertPool, TensorInfo
from sae_moo.materialization.ops.measure import gram_matrix, magnitudes
from sae_moo.materialization.ops.operands import CHUNK
from sae_moo.materialization.ops.select import Cut, lowest
from sae_moo.recipe import BASE
from sae_moo.recipe.groups import THIRDS, in_block, thirds

Numbers = NDArray[np.float64]
Pair = tuple[str, str]

ALL = "all"
REGIONS = (*THIRDS, ALL)
"""What features by depth are given for: thirds of the blocks, and everything there is."""
TOP = (1, 10)
"""Percent of a tensor's entries that are its largest."""
SKETCH = 256
"""Longest shorter side of a matrix whose singular values are exact; and directions on each side of a sketch."""
HELD_BYTES = 1 << 28
"""Most bytes of tensors that are computed, not read, at a time; two are held whatever they take."""
BAND = 1 << 20
"""Elements of a matrix that are projected at a time."""
DIGITS = 6
"""Significant digits of a feature: the last ones of a sum depend on the machine."""

_BY_REGION = ("task_vector_cosine", "norm_ratio", "sign_agreement", *(f"top_{percent}_overlap" for percent in TOP))
_BY_EXPERT = ("relative_norm", "effective_rank")
SIDES = ("first", "second", "difference")
STRUCTURAL = (
    *(f"{name}_{region}" for name in _BY_REGION for region in REGIONS),
    *(f"{name}_{side}" for name in _BY_EXPERT for side in SIDES),
)
"""Names of the structural features, the same for every architecture.

* ``task_vector_cosine``: cosine of the task vectors, in [-1, 1].
* ``norm_ratio``: natural logarithm of the second task vector's length over the first's.
* ``sign_agreement``: of the entries that both change, the share that both move in the same direction.
* ``top_P_overlap``: how many of the P percent largest entries of each tensor's task vector are among the other's, over
  how many there are (the geometric mean of both, entries that are 0 are none), in [0, 1].
* ``relative_norm``: length of a task vector over that of the base.
* ``effective_rank``: e to the entropy of the singular values over their sum (Roy and Vetterli 2007), over the full
  rank; the mean over the prunable matrices that an expert changes, in (0, 1].
"""


def likenesses(pool: ExpertPool, pairs: Iterable[Pair]) -> dict[Pair, dict[str, float]]:
    """Return the structural features of ordered pairs of experts.

    Reads each tensor of each expert a few times, one after another, however many pairs there are.

    Args:
        pool: the experts.
        pairs: names, first and second.

    Returns:
        Pair -> feature, by the names in `STRUCTURAL`, rounded; NaN where there is none: the angle of an expert that is
        the base, signs where no entry is changed by both.
    """
    pairs = list(pairs)
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    if not pairs:
        return {}
    sums = [_Sums(len(names)) for _ in pool.groups]
    for info in pool.tensors:
        _add(sums[info.group], pool, info, names)
    blocks = [i for i, group in enumerate(pool.groups) if in_block(group)]
    regions = {
        region: functools.reduce(_Sums.joined, (sums[blocks[i]] for i in part), _Sums(len(names)))
        for region, part in zip(THIRDS, thirds(len(blocks)), strict=True)
    }
    regions[ALL] = functools.reduce(_Sums.joined, sums, _Sums(len(names)))
    found = {}
    for pair in pairs:
        i, j = (names.index(name) for name in pair)
        features: dict[str, float] = {}
        for region, total in regions.items():
            features |= {f"{name}_{region}": value for name, value in total.of(i, j).items()}
        for name, (one, other) in regions[ALL].of_each(i, j).items():
            features |= sides(name, one, other)
        found[pair] = {name: rounded(features[name]) for name in STRUCTURAL}
    return found


def sides(name: str, first: float, second: float) -> dict[str, float]:
    """Return a number of each of two models as features: both, and by how much the second's is larger."""
    return dict(zip((f"{name}_{side}" for side in SIDES), (first, second, second - first), strict=True))


def turned(features: Mapping[str, float]) -> dict[str, float]:
    """Return the features of a pair with first and second exchanged, whatever their order was, in the same order.

    It is told by their names: what is of one side is the other's, differences and logarithms of ratios change their
    signs, everything else is the same for both orders.
    """

    def other(name: str) -> float:
        for one, two in (("_first", "_second"), ("_forward_", "_backward_")):
            for here, there in ((one, two), (two, one)):
                if here in name:
                    return features[name.replace(here, there)]
        opposite = name.endswith("_difference") or name.startswith("norm_ratio_")
        return 0.0 - features[name] if opposite else features[name]

    return {name: other(name) for name in features}


def rounded(value: float) -> float:
    """Return a feature to `DIGITS` digits; NaN for what is not finite."""
    return float(f"{value:.{DIGITS - 1}e}") if math.isfinite(value) else math.nan


@dataclass(slots=True)
class _Sums:
    """What is summed up of tensors, for all pairs of some models.

    Args:
        count: how many models.

    Attributes:
        dots: of task vectors, shape (models, models).
        both: how many entries both change, and `agreeing`, move in the same direction; likewise.
        overlaps: how many of the largest both have; shape (shares, models, models).
        base: square of the base's length.
        ranks: sum of effective ranks, and of how many matrices, `ranked`; shape (models,).
    """

    count: int
    dots: Numbers = field(init=False)
    both: Numbers = field(init=False)
    agreeing: Numbers = field(init=False)
    overlaps: Numbers = field(init=False)
    base: float = 0.0
    ranks: Numbers = field(init=False)
    ranked: Numbers = field(init=False)

    def __post_init__(self) -> None:
        square = (self.count, self.count)
        self.dots, self.both, self.agreeing = (np.zeros(square) for _ in range(3))
        self.overlaps = np.zeros((len(TOP), *square))
        self.ranks, self.ranked = np.zeros(self.count), np.zeros(self.count)

    def joined(self, other: _Sums) -> _Sums:
        """Return the sums of both."""
        total = _Sums(self.count)
        for each in fields(self):
            if each.name != "count":
                setattr(total, each.name, getattr(self, each.name) + getattr(other, each.name))
        return total

    def of(self, i: int, j: int) -> dict[str, float]:
        """Return the features of two models that are given by region; NaN where there is none."""
        found = {
            "task_vector_cosine": _over(self.dots[i, j], math.sqrt(self.dots[i, i] * self.dots[j, j])),
            "norm_ratio": 0.5 * _logarithm(_over(self.dots[j, j], self.dots[i, i])),
            "sign_agreement": _over(self.agreeing[i, j], self.both[i, j]),
        }
        for percent, overlap in zip(TOP, self.overlaps, strict=True):
            found[f"top_{percent}_overlap"] = _over(overlap[i, j], math.sqrt(overlap[i, i] * overlap[j, j]))
        return found

    def of_each(self, i: int, j: int) -> dict[str, tuple[float, float]]:
        """Return the features that each of two models has."""
        norms = [_over(math.sqrt(self.dots[each, each]), math.sqrt(self.base)) for each in (i, j)]
        ranks = [_over(self.ranks[each], self.ranked[each]) for each in (i, j)]
        return {"relative_norm": (norms[0], norms[1]), "effective_rank": (ranks[0], ranks[1])}


def _over(one: float, other: float) -> float:
    return float(one / other) if other else math.nan


def _logarithm(value: float) -> float:
    return math.log(value) if value > 0 else math.nan


def _add(sums: _Sums, pool: ExpertPool, info: TensorInfo, names: Sequence[str]) -> None:
    """Add a tensor to the sums of its group, which are changed; what is known to be the base's is not read."""
    base = _flat(pool.load(BASE, info.name))
    sums.base += float(gram_matrix([base], None)[0, 0])
    changed = [i for i, name in enumerate(names) if not pool.shares_base(name, info.name)]
    cuts: dict[int, list[Cut]] = {}
    fresh = np.ones((len(names), len(names)), dtype=bool)
    for members in _held_together(pool, info, names, changed):
        tensors = [_flat(pool.load(names[i], info.name)) for i in members]
        for i, tensor in zip(members, tensors, strict=True):
            if i not in cuts:
                cuts[i] = _cuts(tensor, base)
                rank = _effective_rank(tensor, base, info)
                if rank is not None:
                    sums.ranks[i] += rank
                    sums.ranked[i] += 1
        place = np.ix_(members, members)
        new = fresh[place]
        sums.dots[place] += new * gram_matrix(tensors, base)
        both, agreeing, overlaps = _compared(tensors, base, [cuts[i] for i in members])
        sums.both[place] += new * both
        sums.agreeing[place] += new * agreeing
        for total, overlap in zip(sums.overlaps, overlaps, strict=True):
            total[place] += new * overlap
        fresh[place] = False


def _flat(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten()


def _held_together(
    pool: ExpertPool, info: TensorInfo, names: Sequence[str], changed: Sequence[int]
) -> Iterator[list[int]]:
    """Yield which models' tensor to hold at a time, so that each two of them are held together once: all if they fit.

    What is read as it lies in a file takes no memory.
    """
    if not changed:
        return
    facts = {i: pool.checkpoints[names[i]].tensors[info.name] for i in changed}
    sizes = {
        i: 0 if pool.stored(names[i], info.name) else info.numel * STORED_DTYPES[facts[i].dtype].itemsize
        for i in changed
    }
    if sum(sizes.values()) <= HELD_BYTES:
        yield list(changed)
        return
    parts: list[list[int]] = [[]]
    for i in changed:
        if parts[-1] and sum(sizes[each] for each in parts[-1]) + sizes[i] > HELD_BYTES // 2:
            parts.append([])
        parts[-1].append(i)
    if len(parts) == 1:
        yield parts[0]
        return
    for one, other in combinations(parts, 2):
        yield sorted(one + other)


def _cuts(tensor: Tensor, base: Tensor) -> list[Cut]:
    """Return the borders above which the largest entries of a task vector lie, one for each of `TOP`."""
    scores = magnitudes(tensor, base)
    high = scores.high()
    counts = [math.ceil(tensor.numel() * percent / 100) for percent in TOP]
    return [lowest(scores, tensor.numel() - count, high) for count in counts]


def _compared(
    tensors: Sequence[Tensor], base: Tensor, cuts: Sequence[Sequence[Cut]]
) -> tuple[Numbers, Numbers, list[Numbers]]:
    """Return how many entries each two task vectors both change, move alike, and both have among the largest."""
    square = (len(tensors), len(tensors))
    both, alike, overlaps = np.zeros(square), np.zeros(square), [np.zeros(square) for _ in TOP]
    for start in range(0, base.numel(), CHUNK):
        part = slice(start, start + CHUNK)
        ground = base[part].float()
        deltas = torch.stack([tensor[part].float() - ground for tensor in tensors])
        signs, sizes = deltas.sign(), deltas.abs()
        moved = signs.abs()
        both += _counted(moved)
        alike += _counted(signs)  # those that agree minus those that do not
        for place, overlap in enumerate(overlaps):
            low = [cut[place].below(size, start) for size, cut in zip(sizes, cuts, strict=True)]
            overlap += _counted(moved.masked_fill(torch.stack(low), 0.0))
    return both, (both + alike) / 2, overlaps


def _counted(rows: Tensor) -> Numbers:
    """Return the dot products of rows of -1, 0 and 1; exact, since float32 holds every whole number up to 2 ** 24."""
    counts: Numbers = (rows @ rows.T).double().numpy()
    return counts


def _effective_rank(tensor: Tensor, base: Tensor, info: TensorInfo) -> float | None:
    """Return the effective rank of a task vector over the full one; None if it is no prunable matrix, or nothing."""
    if not info.prunable or len(info.shape) != 2 or min(info.shape) < 2:
        return None
    wide = info.shape[0] < info.shape[1]
    after, before = (each.view(info.shape).T if wide else each.view(info.shape) for each in (tensor, base))
    rows, columns = after.shape
    sketched = columns > SKETCH
    matrix = torch.zeros(SKETCH, SKETCH) if sketched else torch.zeros(columns, columns, dtype=torch.float64)
    band = max(1, BAND // columns)
    for start in range(0, rows, band):
        part = slice(start, start + band)
        delta = after[part].float() - before[part].float()
        if sketched:
            matrix += _directions(rows, 0)[part].T @ (delta @ _directions(columns, 1))
        else:
            matrix += delta.double().T @ delta.double()
    squares = torch.linalg.eigvalsh(matrix.double().T @ matrix.double() if sketched else matrix)
    values = squares.clamp(min=0).sqrt()
    total = float(values.sum())
    return math.exp(float(torch.special.entr(values / total).sum())) / len(values) if total else None


@functools.lru_cache(maxsize=8)
def _directions(size: int, side: int) -> Tensor:
    """Return `SKETCH` orthonormal directions, float32, shape (size, SKETCH); the same for a size and side always."""
    seeded = torch.Generator().manual_seed(2 * size + side)
    directions: Tensor = torch.linalg.qr(torch.randn(size, SKETCH, generator=seeded)).Q.contiguous()
    return directions
