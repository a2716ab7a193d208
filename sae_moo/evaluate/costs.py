"""What a token costs of a model: from a few measured numbers to the speed of any structure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sae_moo.errors import InputError
from sae_moo.recipe import Recipe
from sae_moo.recipe.structure import removed_blocks, units_gone

DIGITS = 6
"""Speeds are rounded once, so that a stored one equals the one the search saw."""


@dataclass(frozen=True, slots=True)
class Widths:
    """What a block takes by how many units of a scope it has, and how many the structured export can leave it.

    Args:
        units: how many units, ascending; the last is the whole block.
        seconds: what a block takes with so many, ascending.
        each: whether every block can have a number of its own; else all are as wide as the widest.
        able: the numbers that a ``config.json`` can say, ascending, the whole among them; empty: any.
    """

    units: tuple[int, ...]
    seconds: tuple[float, ...]
    each: bool = False
    able: tuple[int, ...] = ()

    def exported(self, kept: Sequence[int]) -> list[int]:
        """Return how many units the structured export leaves to blocks that need so many; as many blocks."""
        if self.each and (not self.able or set(kept) <= {*self.able}):
            return list(kept)
        widest = max(kept, default=0)
        return [next((count for count in self.able if count >= widest), widest)] * len(kept)


@dataclass(frozen=True, slots=True)
class CostTable:
    """Seconds that a token takes, by what it passes; measured once (`timing.measured`), and kept with a study.

    A model takes what is outside of its blocks and each of its blocks. A block with fewer units takes as much as was
    measured for so many, with straight lines between; what fewer neurons and fewer heads save is added. Scattered zeros
    and patterns change nothing: runtimes compute with zeros as with any weight. Nor do a mixture's experts that go: a
    token passes as many of them as before.

    Args:
        blocks: how many blocks the base has.
        outside: of embeddings, final norm, head, and what a forward pass takes besides.
        block: of one whole block.
        widths: scope -> what a block takes by how many units it has. Scopes that are not there change nothing.
        origin: by what it was measured, in words, by name: machine, device, versions, settings.
    """

    blocks: int
    outside: float
    block: float
    widths: Mapping[str, Widths]
    origin: Mapping[str, str]

    @property
    def base(self) -> float:
        """Seconds that a token takes of the base."""
        return self.outside + self.blocks * self.block

    def seconds(self, removed: frozenset[int], gone: Mapping[str, Sequence[int]]) -> float:
        """Return the seconds that a token takes of a structure.

        Args:
            removed: positions of the blocks that are not there.
            gone: scope -> how many units each of all blocks lacks.
        """
        left = [block for block in range(self.blocks) if block not in removed]
        total = self.outside + len(left) * self.block
        for scope, known in self.widths.items():
            whole = known.units[-1]
            kept = known.exported([max(1, whole - gone[scope][block]) if gone.get(scope) else whole for block in left])
            total -= sum(self.block - float(taken) for taken in np.interp(kept, known.units, known.seconds))
        return max(total, self.outside)

    def speed(self, recipe: Recipe) -> float:
        """Return how many times as many tokens per second as of the base a candidate's structured export computes.

        Args:
            recipe: the candidate, resolved: units that go have numbers.
        """
        gone = {scope: [len(units) for units in units_gone(recipe, scope)] for scope in self.widths}
        return round(self.base / max(self.seconds(removed_blocks(recipe), gone), 1e-6 * self.base), DIGITS)

    def document(self) -> dict[str, Any]:
        """Return the table as JSON has it, bit for bit."""
        document: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return document

    @classmethod
    def read(cls, document: object) -> CostTable:
        """Return the table that `document` wrote.

        Raises:
            InputError: if it is none.
        """
        try:
            if not isinstance(document, Mapping):
                raise TypeError("expected a mapping")
            widths = {
                str(scope): Widths(
                    tuple(map(int, each["units"])),
                    tuple(map(float, each["seconds"])),
                    bool(each["each"]),
                    tuple(map(int, each["able"])),
                )
                for scope, each in document["widths"].items()
            }
            origin = {str(name): str(words) for name, words in document["origin"].items()}
            table = cls(
                int(document["blocks"]),
                float(document["outside"]),
                float(document["block"]),
                widths,
                origin,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"the table of what a token costs is damaged: {error!r}") from error
        if table.blocks < 1 or not (table.outside >= 0 and table.block > 0) or not all(map(_ascends, widths.values())):
            raise InputError("the table of what a token costs is damaged: its numbers do not fit together")
        return table


def _ascends(widths: Widths) -> bool:
    alike = 0 < len(widths.units) == len(widths.seconds)
    rising = all(bool((np.diff(row) > 0).all()) for row in (widths.units, widths.able))
    return alike and rising and bool((np.diff(widths.seconds) >= 0).all())


def fitted(
    times: Mapping[int, float], widths: Mapping[str, Mapping[int, float]], units: Mapping[str, int]
) -> tuple[float, float, dict[str, Widths]]:
    """Return what measured times of small models say: outside of the blocks, of a whole one, and by width.

    What is less must not take longer: where noise says so, it takes as long as what has more.

    Args:
        times: number of whole blocks -> seconds a token; two numbers.
        widths: scope -> units left in each block -> seconds a token of models with the larger number of blocks.
        units: scope -> units of a whole block.

    Returns:
        `CostTable.outside`, `CostTable.block` and `CostTable.widths`.
    """
    (few, short), (many, long) = sorted(times.items())
    block = (long - short) / (many - few)
    outside = min(max(long - many * block, 0.0), 0.999 * long)
    block = (long - outside) / many
    rows = {}
    for scope, measured in widths.items():
        row = [(units[scope], block)]
        for left, total in sorted(measured.items(), reverse=True):
            row.append((left, min(max((total - outside) / many, 0.0), row[-1][1])))
        counts, seconds = zip(*reversed(row), strict=True)
        rows[scope] = Widths(counts, seconds)
    return outside, block, rows
