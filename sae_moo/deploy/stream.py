"""The weights of a recipe one tensor after another, rounded, counted and hashed as they pass; no model is built."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from sae_moo.deploy.tensor_files import Entry
from sae_moo.errors import RunError, WeightsError
from sae_moo.experts.anatomy import transposed
from sae_moo.experts.layout import KEPT_DTYPES, content_digest, raw
from sae_moo.experts.pool import ExpertPool
from sae_moo.materialization.into_model import fractions, write
from sae_moo.materialization.prepare import prepared
from sae_moo.recipe import BASE, STORED, Cast, Recipe
from sae_moo.recipe.structure import repair_of


class Stream:
    """The weights of a recipe, bit for bit those that `materialize` writes into a live model.

    In memory are the tensor asked for and what it is computed from; of a recipe that ends in a repair, which runs
    through a whole model, a live model that is made once, until it is released.

    Args:
        recipe: any recipe over the pool's experts.
        pool: the experts.
        dtype: of the weights; where the recipe ends in a cast to the stored dtypes, of most of them.
        device: where the arithmetic is done.

    Attributes:
        pool: the experts.
        recipe: the recipe with every pruning scope resolved.
        dtype: of the weights, of most of them where tensors keep their own.
        entries: every tensor once (a tied head is none), in the pool's order; then what no merge touches, the base's
            whole numbers and truth values.
        digests: name -> hexadecimal SHA-256 of the bytes, of the tensors that have passed.
        model: the live model of a repaired recipe, which holds it; None for others, and once it is released.
        two_four: name -> whether at most two of every four consecutive inputs are not zero, and not all are, of the
            prunable matrices that have passed.

    Raises:
        InputError: if the recipe does not fit the pool.
    """

    @torch.no_grad()
    def __init__(
        self, recipe: Recipe, pool: ExpertPool, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        ready = prepared(recipe, pool, device)
        self.pool = pool
        self.recipe = ready.recipe
        self.dtype = dtype
        own = isinstance(recipe, Cast) and recipe.dtype == STORED
        merged = (Entry(info.name, info.shape, info.dtype if own else dtype) for info in pool.tensors)
        kept = (Entry(name, facts.shape, KEPT_DTYPES[facts.dtype]) for name, facts in pool.kept.items())
        self.entries = (*merged, *kept)
        self.digests: dict[str, str] = {}
        self.two_four: dict[str, bool] = {}
        self._infos = {info.name: info for info in pool.tensors}
        self._dtypes = {entry.name: entry.dtype for entry in self.entries}
        self._zeros: dict[str, int] = {}
        self._broken: dict[str, None] = {}
        self._device = torch.device(device)
        self._plan = ready.plan
        self.model: Any = None
        self._held: Mapping[str, Tensor] = {}
        self._repair()

    def _repair(self) -> None:
        """Make the live model of a repaired recipe, unless it is there."""
        if self.model is None and repair_of(self.recipe) is not None:
            self.model = self.pool.live_model(self.dtype, self._device)
            written = write(self.recipe, self.pool, self.model)
            self._held, self._zeros = written.exact, dict(written.zeros)

    def release(self) -> None:
        """Give back the live model's memory, once all tensors have passed; a further one has it made again."""
        self.model, self._held = None, {}

    @torch.no_grad()
    def tensor(self, name: str) -> Tensor:
        """Return one tensor: new, contiguous, on the CPU."""
        if name in self.pool.kept:
            return self.pool.load(BASE, name).clone(memory_format=torch.contiguous_format)
        self._repair()
        info = self._infos[name]
        out = torch.empty(info.shape, dtype=self._dtypes[name], device=self._device)
        if name in self._held:
            out.copy_(self._held[name])
            self._zeros[name] = info.numel - int(torch.count_nonzero(out))
        else:
            (self._zeros[name],) = self._plan.write([(info, out)])
        out = out.cpu()
        if out.numel() and not all(torch.isfinite(end) for end in torch.aminmax(out)):  # in no memory of its own
            self._broken[name] = None
        if info.prunable and out.ndim == 2:
            self.two_four[name] = self._zeros[name] < info.numel and is_two_four(
                out.t() if transposed(self.pool) else out
            )
        return out

    def content(self, entry: Entry) -> Iterator[memoryview]:
        """Yield the bytes of one tensor, as `tensor_files.write_shards` asks for them."""
        yield self.hashed(self.tensor(entry.name), entry.name)

    def hashed(self, tensor: Tensor, name: str) -> memoryview:
        """Return the bytes of a tensor; their digest is kept under its name."""
        self.digests[name] = content_digest(tensor)
        return raw(tensor)

    @property
    def dtype_words(self) -> str:
        """The dtype for people; how many tensors have another, where some do."""
        others = Counter(entry.dtype for entry in self.entries if entry.dtype != self.dtype)
        short = {dtype: str(dtype).removeprefix("torch.") for dtype in (self.dtype, *others)}
        told = [f"{short[dtype]} for {count} of {len(self.entries)} tensors" for dtype, count in others.items()]
        return ", ".join([short[self.dtype], *told])

    def sparsity(self) -> float:
        """Return the fraction of exact zeros over all prunable weights, in [0, 1], once all tensors have passed.

        Where there is a live model it is known before.

        Raises:
            WeightsError: naming tensors that hold NaN or an infinity.
        """
        if self._broken:
            more = f" and {len(self._broken) - 3} more" if len(self._broken) > 3 else ""
            where = ", ".join(list(self._broken)[:3]) + more
            raise WeightsError(f"the merged weights are not finite in {where}; nothing was written")
        return fractions(self.pool, self._zeros)[0]


def check_sparsity(stream: Stream, sparsity: float, whose: str) -> None:
    """Raise RunError if weights, all of which have passed, have another sparsity than they should.

    Args:
        stream: the weights.
        sparsity: the fraction of exact zeros that they had.
        whose: what they are the weights of, such as ``trial 3``.
    """
    found = stream.sparsity()
    if found != sparsity:
        raise RunError(
            f"{whose} gives sparsity {found} here and had {sparsity}: the arithmetic of this machine or version "
            "differs; nothing was exported"
        )


def is_two_four(matrix: Tensor) -> bool:
    """Say whether each group of four along the inputs (columns) of a matrix has two zeros or more."""
    if matrix.shape[1] % 4:
        return False
    for rows in (matrix[:1], matrix):  # most matrices are none in their first row
        if int((rows != 0).reshape(-1, 4).sum(dim=1, dtype=torch.uint8).max()) > 2:
            return False
    return True
