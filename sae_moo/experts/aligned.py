"""A model in another vocabulary: its tensors with a row per token put together anew, row by row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from sae_moo.experts.checkpoint import ModelWeights, TensorFacts
from sae_moo.experts.layout import STORED_DTYPES, has_a_row_per_token, stored_name
from sae_moo.recipe import BASE


@dataclass(frozen=True, slots=True)
class Filling:
    """Where rows come from that a model has not of its own: the same for all models.

    Args:
        lenders: name -> model.
        lent: for each row the names of lenders and their rows: the mean of these is the row; zero where there is none.
        padding: number of rows at the end that are no token: each is the mean of all rows before.
    """

    lenders: Mapping[str, ModelWeights]
    lent: Sequence[Sequence[tuple[str, int]]]
    padding: int = 0

    @classmethod
    def of_base(cls, base: ModelWeights) -> Filling:
        """Return what lends every row of the base."""
        return cls({BASE: base}, [((BASE, row),) for row in range(base.vocabulary or 0)])

    def write_(self, name: str, out: Tensor, rows: Tensor) -> None:
        """Write some rows of a tensor into place: int64, where they stand in `out`."""
        places: dict[str, list[tuple[int, int]]] = {}
        for place in rows.tolist():
            for lender, row in self.lent[place]:
                places.setdefault(lender, []).append((place, row))
        whole = torch.zeros((len(rows), *out.shape[1:]), dtype=torch.float32)
        position = torch.zeros(len(out), dtype=torch.int64)
        position[rows] = torch.arange(len(rows))
        for lender, pairs in places.items():
            here, there = torch.tensor(pairs, dtype=torch.int64).T
            whole[position[here]] += self.lenders[lender].load(name)[there].float()
        counts = torch.tensor([max(1, len(self.lent[place])) for place in rows.tolist()], dtype=torch.float32)
        out[rows] = (whole / counts.reshape(-1, *[1] * (whole.ndim - 1))).to(out.dtype)


class Aligned:
    """A model in another vocabulary.

    Rows are held in a dtype that loses nothing of any lender's; the base's in its own.

    Args:
        weights: the model.
        base: the base, whose tensors decide which have a row per token.
        rows: for each row the model's own, int64; -1 takes what `filling` lends.
        filling: rows of others.
    """

    def __init__(self, weights: ModelWeights, base: ModelWeights, rows: Tensor, filling: Filling) -> None:
        self._weights, self._base, self._rows, self._filling = weights, base, rows, filling
        self.source, self.origin, self.folder = weights.source, weights.origin, weights.folder
        self.tied, self.vocabulary = weights.tied, len(rows) + filling.padding
        self.config = with_vocabulary(weights.config, self.vocabulary)
        self.tensors: Mapping[str, TensorFacts] = {
            name: self._facts(name, facts) if self._picked(name) else facts for name, facts in weights.tensors.items()
        }

    @property
    def as_it_is(self) -> bool:
        """Whether this is the model itself: every row its own, and in its place."""
        rows = torch.arange(self._weights.vocabulary or 0)
        return not self._filling.padding and torch.equal(self._rows, rows)

    @property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of the fingerprints of all who give rows, and which rows are whose."""
        borrowed = {place: self._filling.lent[place] for place in self._borrowed().tolist()}
        lenders = sorted({lender for lent in borrowed.values() for lender, _ in lent})
        parts = [
            self._weights.fingerprint,
            {name: self._filling.lenders[name].fingerprint for name in lenders},
            self._rows.tolist(),
            borrowed,
            self._filling.padding,
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def load(self, name: str) -> Tensor:
        """Return one tensor; those with a row per token are put together anew."""
        own = self._weights.load(name)
        if not self._picked(name):
            return own
        facts = self.tensors[name]
        whole = torch.empty(facts.shape, dtype=STORED_DTYPES[facts.dtype])
        known = self._rows >= 0
        tokens = whole[: len(self._rows)]
        tokens[known] = own[self._rows[known]].to(whole.dtype)
        borrowed = self._borrowed()
        if len(borrowed):
            self._filling.write_(name, tokens, borrowed)
        if self._filling.padding:
            whole[len(tokens) :] = torch.mean(tokens, dim=0)
        return whole

    def stored(self, name: str) -> bool:
        """Say whether a tensor is read as it lies in a file: not if its rows are picked."""
        return not self._picked(name) and self._weights.stored(name)

    def shares_base(self, name: str) -> bool:
        """Say whether a tensor is known to be the base's."""
        if not self._picked(name):
            return self._weights.shares_base(name)
        lent = self._filling.lent
        return (
            not bool((self._rows >= 0).any())
            and len(self._rows) == self._base.vocabulary
            and all(tuple(given) == ((BASE, row),) for row, given in enumerate(lent))
        )

    def _borrowed(self) -> Tensor:
        return torch.nonzero(self._rows < 0).flatten()

    def _picked(self, name: str) -> bool:
        return has_a_row_per_token(name) and name in self._base.tensors

    def _facts(self, name: str, facts: TensorFacts) -> TensorFacts:
        if self._weights is self._base:  # whose dtypes those of all that is made follow
            return TensorFacts((self.vocabulary, *facts.shape[1:]), facts.dtype)
        lenders = self._filling.lenders.values()
        stored = [facts.dtype, *(each.tensors[name].dtype for each in lenders if name in each.tensors)]
        if any(dtype not in STORED_DTYPES for dtype in stored):
            return facts  # refused elsewhere
        wide = reduce(torch.promote_types, (STORED_DTYPES[dtype] for dtype in stored))
        return TensorFacts((self.vocabulary, *facts.shape[1:]), stored_name(wide))


def with_vocabulary(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Return a ``config.json`` with the number of rows that the embeddings have, wherever it said one."""
    changed = dict(config)
    if "vocab_size" in config:
        changed["vocab_size"] = rows
    for part in ("text_config", "llm_config"):
        inner = config.get(part)
        if isinstance(inner, Mapping) and "vocab_size" in inner:
            changed[part] = {**inner, "vocab_size": rows}
    return changed
