"""Vocabularies that differ: which row of an expert's embeddings stands for which token of the base."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_moo.errors import InputError
from sae_moo.experts.checkpoint import ModelWeights, TensorFacts
from sae_moo.experts.layout import STORED_DTYPES, has_a_row_per_token, stored_name
from sae_moo.recipe import BASE

REFUSE, INTERSECTION, KEEP_BASE = POLICIES = ("refuse", "intersection", "base")
_TOKENIZER_FILES = ("tokenizer_config.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")
_ADVICE = "models.vocabulary: intersection or base (ExpertPool.open(..., vocabulary=...)) matches rows by token"


def load_tokenizer(folder: Path) -> Any:
    """Load a tokenizer from a local folder.

    Raises:
        InputError: if there is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever transformers' many tokenizer classes raise at what they find
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{folder}: expected a tokenizer beside the model: {reason}") from error


def token_list(folder: Path) -> dict[str, int] | None:
    """Return token -> row of the tokenizer in a folder; None if there is no tokenizer.

    Raises:
        InputError: if there is one that cannot be read.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
            return None
        return dict(load_tokenizer(folder).get_vocab())
    from transformers import PreTrainedTokenizerFast

    try:
        return dict(PreTrainedTokenizerFast(tokenizer_file=str(file)).get_vocab())  # type: ignore[no-untyped-call]
    except Exception as error:  # the tokenizers library raises bare Exception
        raise InputError(f"{file}: expected a tokenizer: {error}") from error


def aligned(models: Mapping[str, ModelWeights], policy: str) -> tuple[dict[str, ModelWeights], list[str]]:
    """Return the models with the experts' embeddings and heads in the base's vocabulary, and what forbids it.

    The result of a merge always has the base's vocabulary and tokenizer; what experts added to it is dropped. Rows are
    matched by token, not by position. The policies differ in what a token counts that some model lacks:

    * ``refuse``: nothing is matched. A number of rows that differs, or a token of the base that stands at another row
      of an expert or is missing there, is a fault. Tokens that an expert added in unused rows are no fault: the base's
      tokenizer never asks for those rows.
    * ``base``: every expert says what it knows: where it lacks a token of the base, it takes the base's row, and the
      others are merged with that.
    * ``intersection``: only tokens that all models share are merged: where one expert lacks a token, every expert takes
      the base's row, so that any merge leaves that row as the base has it.

    The two differ only for tokens of the base that one expert lacks and another has. Rows that are no token, by which
    checkpoints are padded, are matched by position, where they are no token of the expert either. A model without a
    tokenizer of its own (adapters often) has the base's, if it has as many rows.

    Args:
        models: name -> weights, the base under ``base``.
        policy: one of `POLICIES`.

    Returns:
        Name -> weights in the order given, an expert that is aligned already as it is; and a fault for every model that
        the policy cannot serve, in which case the weights are those given.
    """
    base = models[BASE]
    faults: list[str] = []
    tokens: dict[str, dict[str, int]] = {}
    if policy == REFUSE and not any(_other_tokenizer(model, base) for model in models.values()):
        return dict(models), list(_differences(models, tokens))
    for name, model in models.items():
        try:
            own = _tokens(model, base, tokens, policy)
        except InputError as error:
            faults.append(f"{name}: {error}")
            continue
        if own is None and policy != REFUSE and (name == BASE or model.vocabulary != base.vocabulary):
            faults.append(f"{name}: models.vocabulary: {policy} needs a tokenizer, there is none in {model.folder}")
        tokens[name] = own or {}
    if policy == REFUSE:
        faults += _differences(models, tokens)
    if faults or policy == REFUSE or base.vocabulary is None or len(models) == 1:
        return dict(models), faults
    rows = {
        name: _rows(base.vocabulary, model.vocabulary or 0, tokens[BASE], tokens[name])
        for name, model in models.items()
        if name != BASE
    }
    if policy == INTERSECTION:
        shared = torch.stack([picked >= 0 for picked in rows.values()]).all(0)
        rows = {name: torch.where(shared, picked, -1) for name, picked in rows.items()}
    result: dict[str, ModelWeights] = {BASE: base}
    for name, picked in rows.items():
        as_it_is = models[name].vocabulary == base.vocabulary and torch.equal(picked, torch.arange(len(picked)))
        result[name] = models[name] if as_it_is else Aligned(models[name], base, picked)
    return result, []


class Aligned:
    """An expert in the base's vocabulary: its tensors with a row per token, picked and completed row by row.

    Args:
        weights: the expert.
        base: the base.
        rows: for each row of the base the expert's, int64; -1 takes the base's.
    """

    def __init__(self, weights: ModelWeights, base: ModelWeights, rows: Tensor) -> None:
        self._weights, self._base, self._rows = weights, base, rows
        self.source, self.origin, self.folder = weights.source, weights.origin, weights.folder
        self.config, self.tied, self.vocabulary = weights.config, weights.tied, base.vocabulary
        self.tensors: Mapping[str, TensorFacts] = {
            name: self._facts(name, facts) if self._picked(name) else facts for name, facts in weights.tensors.items()
        }

    @property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of the expert's and the base's fingerprints and which rows are whose."""
        parts = [self._weights.fingerprint, self._base.fingerprint, self._rows.tolist()]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def load(self, name: str) -> Tensor:
        """Return one tensor; those with a row per token are put together anew."""
        own = self._weights.load(name)
        if not self._picked(name):
            return own
        known = self._rows >= 0
        whole = self._base.load(name).to(STORED_DTYPES[self.tensors[name].dtype], copy=True)
        whole[known] = own[self._rows[known]].to(whole.dtype)
        return whole

    def stored(self, name: str) -> bool:
        """Say whether a tensor is read as it lies in a file: not if its rows are picked."""
        return not self._picked(name) and self._weights.stored(name)

    def shares_base(self, name: str) -> bool:
        """Say whether a tensor is known to be the base's."""
        return (self._picked(name) and not bool((self._rows >= 0).any())) or (
            not self._picked(name) and self._weights.shares_base(name)
        )

    def _picked(self, name: str) -> bool:
        return has_a_row_per_token(name) and name in self._base.tensors

    def _facts(self, name: str, facts: TensorFacts) -> TensorFacts:
        theirs = self._base.tensors[name]
        if facts.dtype not in STORED_DTYPES or theirs.dtype not in STORED_DTYPES:
            return facts  # refused elsewhere
        wide = torch.promote_types(STORED_DTYPES[facts.dtype], STORED_DTYPES[theirs.dtype])
        dtype = stored_name(wide)
        return TensorFacts((len(self._rows), *facts.shape[1:]), dtype)


def _other_tokenizer(model: ModelWeights, base: ModelWeights) -> bool:
    """Say whether a model and the base both have a ``tokenizer.json``, and not the same."""
    file, theirs = model.folder / "tokenizer.json", base.folder / "tokenizer.json"
    return file.is_file() and theirs.is_file() and file.read_bytes() != theirs.read_bytes()


def _tokens(
    model: ModelWeights, base: ModelWeights, known: Mapping[str, dict[str, int]], policy: str
) -> dict[str, int] | None:
    """Return a model's tokens, the base's where it has none of its own or the same file; None if nothing is known."""
    has_file = (model.folder / "tokenizer.json").is_file()
    if BASE in known and has_file and not _other_tokenizer(model, base):
        return known[BASE]
    if policy == REFUSE and not has_file:
        return None  # no reason to load a tokenizer of another kind, which may need code of its own
    own = token_list(model.folder)
    return known[BASE] if own is None and BASE in known and model.vocabulary == base.vocabulary else own


def _differences(models: Mapping[str, ModelWeights], tokens: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    base = models[BASE]
    for name, model in models.items():
        if model.vocabulary != base.vocabulary:
            yield f"{name}: vocabulary size is {model.vocabulary}, the base's is {base.vocabulary}; {_ADVICE}"
        elif tokens.get(BASE) and tokens.get(name):
            held = {token: row for token, row in tokens[BASE].items() if row < (base.vocabulary or 0)}
            moved = sorted(token for token, row in held.items() if tokens[name].get(token) != row)
            if moved:
                count = "one token" if len(moved) == 1 else f"{len(moved)} tokens"
                shown = ", ".join(repr(token) for token in moved[:3])
                yield f"{name}: {count} of the base ({shown}) elsewhere or missing in its tokenizer; {_ADVICE}"


def _rows(base_rows: int, rows: int, base_tokens: Mapping[str, int], tokens: Mapping[str, int]) -> Tensor:
    """Return for each row of the base the expert's row of the same token, -1 where it has none."""
    token_at = {row: token for token, row in base_tokens.items()}
    taken = set(tokens.values())
    found = []
    for row in range(base_rows):
        there = tokens.get(token_at[row], -1) if row in token_at else (-1 if row in taken else row)
        found.append(there if there < rows else -1)
    return torch.tensor(found, dtype=torch.int64)
