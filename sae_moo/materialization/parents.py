"""Weights of candidates already materialized, bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor

from sae_moo.recipe import Recipe


class WeightCache:
    """Materialized candidates, least recently used out first, bounded in bytes.

    It never changes a bit: it holds what a `Cast` node rounded, and an evicted candidate is recomputed from its recipe.

    Args:
        max_bytes: most bytes of weights to hold; 0 switches it off.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes: expected 0 or more, got {max_bytes}")
        self.max_bytes = max_bytes
        self.bytes = 0
        self._held: OrderedDict[Recipe, dict[str, Tensor]] = OrderedDict()

    def __contains__(self, recipe: object) -> bool:
        return recipe in self._held

    def __iter__(self) -> Iterator[Recipe]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    def get(self, recipe: Recipe) -> Mapping[str, Tensor]:
        """Return the weights of a held recipe and mark it as just used."""
        self._held.move_to_end(recipe)
        return self._held[recipe]

    def put(self, recipe: Recipe, parameters: Iterable[tuple[str, Tensor]], size: int) -> None:
        """Hold a copy, dropping the least recently used; a model larger than the bound is not held.

        Args:
            recipe: what the weights are of; a `Cast` to their own dtype.
            parameters: names and weights, taken one by one.
            size: bytes of all of them.
        """
        if recipe in self._held or size > self.max_bytes:
            return
        while self.bytes + size > self.max_bytes:
            _, dropped = self._held.popitem(last=False)
            self.bytes -= sum(tensor.nbytes for tensor in dropped.values())
        # in host memory: on a GPU the live model and its activations need the room more
        self._held[recipe] = {name: weight.detach().to("cpu", copy=True) for name, weight in parameters}
        self.bytes += size
