"""The numbers of a candidate that dashboards plot: mixing weights, sparsities by ranges of blocks, what goes whole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sae_moo.objectives.scores import mean
from sae_moo.recipe import BLOCKS, STRUCTURED, Recipe
from sae_moo.recipe.groups import in_block
from sae_moo.recipe.mixing import mixing_weights
from sae_moo.recipe.rows import Rows
from sae_moo.recipe.scopes import going
from sae_moo.recipe.structure import chain, removed_blocks
from sae_moo.searchers.searcher import Proposal
from sae_moo.study.record import weight_of

# A dashboard stays readable with about fifteen parameters: deep models show their blocks in this many ranges.
BLOCK_RANGES = 6


class Plotted:
    """Says which numbers of candidates are worth plotting.

    Args:
        names: of the experts, the base among them.
        groups: parameter group names in the pool's order.
        tensors: parameter group and number of prunable weights of each tensor, in the pool's order; read where
            sparsities differ by tensor.
    """

    def __init__(self, names: Sequence[str], groups: Sequence[str], tensors: Sequence[tuple[int, int]] = ()) -> None:
        self._names = tuple(names)
        self._groups = tuple(groups)
        self._tensors = tuple(tensors)
        self._mixing: dict[Recipe, NDArray[np.float64]] = {}
        self._blocks = [i for i, group in enumerate(groups) if in_block(group)]
        self._ranges: dict[str, list[int]] = {}  # what a range is called -> its blocks
        count = min(BLOCK_RANGES, len(self._blocks))
        for part in np.array_split(np.array(self._blocks), count) if count else ():
            first, last = int(part[0]), int(part[-1])
            label = groups[first] if first == last else f"{groups[first]}-{last - self._blocks[0]}"
            self._ranges[f"sparsity {label}"] = part.tolist()

    def of(self, proposal: Proposal) -> dict[str, float]:
        """Return the numbers of a proposal; of one with alternatives, those that all of them have."""
        weights = mixing_weights(proposal.recipe, self._names, len(self._groups), self._mixing).mean(axis=0)
        params = {weight_of(name): round(float(weight), 4) for name, weight in zip(self._names, weights, strict=True)}
        levels = {} if proposal.alternatives else self.levels(proposal.recipe)
        return params | levels | {name: float(value) for name, value in proposal.numbers.items()}

    def levels(self, recipe: Recipe) -> dict[str, float]:
        """Return the sparsity that a candidate asks for, by ranges of blocks."""
        asked = _asked_sparsity(recipe, len(self._groups), self._tensors).tolist()
        params = {label: round(mean([asked[i] for i in part]), 4) for label, part in self._ranges.items()}
        return params | _whole(recipe, self._blocks, len(self._groups))


def _asked_sparsity(recipe: Recipe, groups: int, tensors: Sequence[tuple[int, int]]) -> NDArray[np.float64]:
    """Return the scattered sparsity per group that a candidate asks for, or else what its last pruning does.

    Where it differs by tensor, the mean over a group's prunable weights; zeros where only blocks go, or nothing.
    """
    prunings = [node for node in chain(recipe) if node.scope != BLOCKS]
    scattered = [node for node in prunings if node.scope not in STRUCTURED] or prunings
    rows = Rows.of_places(scattered[-1].sparsity if scattered else 0.0)
    if not rows.placed or len(rows.rows) == groups or len(rows.rows) != len(tensors):
        return rows.per_group(groups)[:, 0]
    group, weights = np.array(tensors, dtype=np.int64).T
    asked = np.bincount(group, weights * np.array(rows.numbers), groups)
    return asked / np.maximum(np.bincount(group, weights, groups), 1.0)


def _whole(recipe: Recipe, groups: Sequence[int], count: int) -> dict[str, float]:
    """Return how many blocks a candidate lacks, and which share of the units of the others: of what is asked of it.

    Args:
        recipe: the candidate.
        groups: those that are blocks.
        count: number of groups.
    """
    params: dict[str, float] = {}
    for node in chain(recipe):
        if node.scope not in STRUCTURED:
            continue
        asked = Rows.of_places(node.sparsity).per_group(count)[list(groups), 0]
        if node.scope == BLOCKS:
            params["blocks removed"] = float(len(removed_blocks(recipe)) or going(asked[0], len(groups)))
        else:
            stay = [i for i in range(len(groups)) if i not in removed_blocks(recipe)]
            params[f"{node.scope} removed"] = round(float(asked[stay].mean()), 4)
    return params
