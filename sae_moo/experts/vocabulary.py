"""Vocabularies that differ: whether models may be merged row by row, and which tokens a merge of them has."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_moo.errors import InputError, nearest
from sae_moo.experts.aligned import Aligned, Filling
from sae_moo.experts.checkpoint import ModelWeights
from sae_moo.experts.tokens import Rows, has_tokenizer, marks_of, same_files, token_list
from sae_moo.recipe import BASE

REFUSE, INTERSECTION, KEEP_BASE, UNION, BY_POSITION = POLICIES = ("refuse", "intersection", "base", "union", "position")
_ADVICE = (
    "models.vocabulary: intersection, base or union (ExpertPool.open(..., vocabulary=...); tokenizer_source in a "
    "mergekit configuration) matches rows by token"
)
_AS_THEY_LIE = "models.vocabulary: position takes rows as they lie"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """Where the row of one token comes from.

    Args:
        model: name of the model whose row it is; None: the row is zero.
        token: the token whose row it is there; None: the same.
        row: its row there; None: where `token` stands.
        force: whether models that know the token take this row too.
    """

    model: str | None = None
    token: str | None = None
    row: int | None = None
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """A vocabulary that is put together, as mergekit 0.1.5 does it.

    A model keeps its rows of the tokens that it knows. A token that it does not know gets the row of the only model
    that does; of several the base's, if the base knows it, else their mean. Rows of no token are left out.

    Args:
        source: ``union`` of all models' tokens, the base's first; or the name of a model, whose tokens and tokenizer
            the result has.
        tokens: tokens that are there in any case, and where their rows come from.
        multiple: round the number of rows up to a multiple of this; None: one for each token.
        base_first: whether the base's row counts before the mean of those who know a token.
    """

    source: str = UNION
    tokens: Mapping[str, TokenRow] = field(default_factory=dict)
    multiple: int | None = None
    base_first: bool = True

    def document(self) -> dict[str, Any]:
        """Return this as JSON; `policy_of` reads it."""
        tokens = {
            token: {"model": row.model, "token": row.token, "row": row.row, "force": row.force}
            for token, row in self.tokens.items()
        }
        return {"source": self.source, "tokens": tokens, "multiple": self.multiple, "base_first": self.base_first}


Policy = str | Vocabulary


def policy_of(document: object) -> Policy:
    """Read a policy from JSON: its name, or what `Vocabulary.document` wrote.

    Raises:
        InputError: if it is neither.
    """
    if isinstance(document, str) and document in POLICIES:
        return document
    if isinstance(document, Mapping):
        try:
            tokens = {str(token): TokenRow(**row) for token, row in document["tokens"].items()}
            return Vocabulary(**{**document, "tokens": tokens})
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"vocabulary: expected source, tokens, multiple and base_first: {error}") from error
    near = nearest(str(document), POLICIES)
    raise InputError(f"vocabulary: expected {', '.join(POLICIES)}, got {document!r}{near}")


@dataclass(frozen=True, slots=True)
class Matched:
    """Models that can be merged row by row.

    Args:
        models: name -> weights, in the order given; one that is aligned already as it is.
        faults: one for every model that the policy cannot serve; the models are those given then.
        tokens: token -> row of a vocabulary that was put together; None: it is the base's.
        tokenizer: name of the model whose tokenizer the result has, tokens that it lacks added.
    """

    models: dict[str, ModelWeights]
    faults: list[str]
    tokens: Rows | None = None
    tokenizer: str = BASE

    def folder(self, given: Mapping[str, ModelWeights]) -> Path | None:
        """Return where the tokenizer of the result lies as it is; None if it lies nowhere."""
        folder = given[self.tokenizer].folder
        return folder if self.tokens is None or token_list(folder) == self.tokens else None

    def whole_tokenizer(self, given: Mapping[str, ModelWeights]) -> Any:
        """Return the tokenizer of the result.

        Args:
            given: the models, before they were aligned.

        Raises:
            InputError: if it cannot be loaded, or gives tokens other rows.
        """
        whole = self.folder(given)
        if whole is not None or self.tokens is None:
            return load_tokenizer(given[self.tokenizer].folder)
        folder = given[self.tokenizer].folder
        return _extended(load_tokenizer(folder), folder, self.tokens, [model.folder for model in given.values()])


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


def aligned(models: Mapping[str, ModelWeights], policy: Policy) -> Matched:
    """Return the models with their embeddings and heads in one vocabulary, or what forbids it.

    Tokens are those that the tokenizers' files say (`tokens.token_list`), whatever files these are. Rows are matched
    by token, not by position. Under all policies but the last two the result has the base's vocabulary and tokenizer;
    what experts added to it is dropped. The policies differ in what a token counts that some model lacks:

    * ``refuse``: nothing is matched. A number of rows that differs, or a token of the base that stands at another row
      of an expert or is missing there, is a fault; so are tokens that cannot be compared. Tokens that an expert added
      in unused rows are no fault: the base's tokenizer never asks for those rows. Where the base has no tokenizer, the
      first expert's that has one stands for it.
    * ``base``: every expert says what it knows: where it lacks a token of the base, it takes the base's row, and the
      others are merged with that.
    * ``intersection``: only tokens that all models share are merged: where one expert lacks a token, every expert takes
      the base's row, so that any merge leaves that row as the base has it.
    * ``union``, or a `Vocabulary`: the result has the tokens of all models, or of one of them; rows of tokens that only
      some know come from those that do.
    * ``position``: nothing is looked at but the number of rows. For who knows that rows fit.

    ``base`` and ``intersection`` differ only for tokens of the base that one expert lacks and another has. There, rows
    that are no token, by which checkpoints are padded, are matched by position, where they are no token of the expert
    either. A model without a tokenizer of its own (adapters often) has the base's, if it has as many rows.

    Args:
        models: name -> weights, the base under ``base``.
        policy: one of `POLICIES`, or a `Vocabulary`.
    """
    base = models[BASE]
    if policy in (REFUSE, BY_POSITION):
        return Matched(dict(models), [*_sizes(models), *(_differences(models) if policy == REFUSE else ())])
    tokens, faults = _read(models, policy)
    if faults or base.vocabulary is None or (len(models) == 1 and isinstance(policy, str)):
        return Matched(dict(models), faults)
    if policy == UNION or isinstance(policy, Vocabulary):
        return _together(models, tokens, policy if isinstance(policy, Vocabulary) else Vocabulary())
    rows = {
        name: _rows(base.vocabulary, model.vocabulary or 0, tokens[BASE], tokens[name])
        for name, model in models.items()
        if name != BASE
    }
    if policy == INTERSECTION:
        shared = torch.stack([picked >= 0 for picked in rows.values()]).all(0)
        rows = {name: torch.where(shared, picked, -1) for name, picked in rows.items()}
    return Matched({BASE: base, **_put(models, base, rows, Filling.of_base(base))}, [])


def _put(
    models: Mapping[str, ModelWeights], base: ModelWeights, rows: Mapping[str, Tensor], filling: Filling
) -> dict[str, ModelWeights]:
    made = {name: Aligned(models[name], base, picked, filling) for name, picked in rows.items()}
    return {name: models[name] if each.as_it_is else each for name, each in made.items()}


def _same_tokens(model: ModelWeights, other: ModelWeights) -> bool:
    """Say whether nothing need be read to know that two models have the same tokens."""
    return model.folder == other.folder or same_files(model.folder, other.folder)


def _distinct(models: Mapping[str, ModelWeights]) -> list[str]:
    """Return the first model that has a tokenizer, and all that have another."""
    having = [name for name, model in models.items() if has_tokenizer(model.folder)]
    return having[:1] + [name for name in having[1:] if not _same_tokens(models[name], models[having[0]])]


def _sizes(models: Mapping[str, ModelWeights]) -> Iterator[str]:
    rows = models[BASE].vocabulary
    for name, model in models.items():
        if model.vocabulary != rows:
            yield f"{name}: vocabulary size is {model.vocabulary}, the base's is {rows}; {_ADVICE}"


def _differences(models: Mapping[str, ModelWeights]) -> Iterator[str]:
    """Yield what is wrong with the tokens of models that have as many rows as the base."""
    rows = models[BASE].vocabulary or 0
    first, *others = _distinct({name: model for name, model in models.items() if model.vocabulary == rows}) or [BASE]
    whose = "the base" if first == BASE else first
    held: Rows | None = None
    for name in others:
        try:
            if held is None:
                held = {token: row for token, row in (token_list(models[first].folder) or {}).items() if row < rows}
        except InputError as error:
            yield f"{name}: its tokens cannot be compared with those of {whose}: {error}; {_AS_THEY_LIE}"
            return
        try:
            own = token_list(models[name].folder) or {}
        except InputError as error:
            yield f"{name}: its tokens cannot be compared with those of {whose}: {error}; {_AS_THEY_LIE}"
            continue
        moved = sorted(token for token, row in held.items() if own.get(token) != row)
        if moved:
            count = "one token" if len(moved) == 1 else f"{len(moved)} tokens"
            shown = ", ".join(repr(token) for token in moved[:3])
            yield f"{name}: {count} of {whose} ({shown}) elsewhere or missing in its tokenizer; {_ADVICE}"


def _read(models: Mapping[str, ModelWeights], policy: Policy) -> tuple[dict[str, Rows], list[str]]:
    """Return the tokens of all models, the base's where one has none of its own; and what is wrong."""
    base = models[BASE]
    called = policy if isinstance(policy, str) else policy.source
    tokens: dict[str, Rows] = {}
    faults: list[str] = []
    for name, model in models.items():
        if BASE in tokens and _same_tokens(model, base):
            tokens[name] = tokens[BASE]
            continue
        try:
            own = token_list(model.folder)
        except InputError as error:
            faults.append(f"{name}: models.vocabulary: {called} needs the tokens: {error}")
            continue
        if own is None and (name == BASE or model.vocabulary != base.vocabulary):
            faults.append(f"{name}: models.vocabulary: {called} needs a tokenizer, there is none in {model.folder}")
        tokens[name] = tokens.get(BASE, {}) if own is None else own
    return tokens, faults


def _rows(base_rows: int, rows: int, base_tokens: Mapping[str, int], tokens: Mapping[str, int]) -> Tensor:
    """Return for each row of the base the expert's row of the same token, -1 where it has none."""
    token_at = {row: token for token, row in base_tokens.items()}
    taken = set(tokens.values())
    found = []
    for row in range(base_rows):
        there = tokens.get(token_at[row], -1) if row in token_at else (-1 if row in taken else row)
        found.append(there if there < rows else -1)
    return torch.tensor(found, dtype=torch.int64)


def _together(models: Mapping[str, ModelWeights], tokens: Mapping[str, Rows], wanted: Vocabulary) -> Matched:
    """Put a vocabulary together; see `Vocabulary`."""
    known = {  # a token behind the last row has none
        name: {token: row for token, row in tokens[name].items() if row < (model.vocabulary or 0)}
        for name, model in models.items()
    }
    if wanted.source != UNION and wanted.source not in models:
        near = nearest(wanted.source, models)
        return Matched(dict(models), [f"vocabulary: expected union or one of {', '.join(models)}{near}"])
    named = BASE if wanted.source == UNION else wanted.source
    result = dict(known[named])
    size = max(result.values(), default=-1) + 1
    for token in _further(models, known, wanted):
        if token not in result:
            result[token] = size
            size += 1
    lent: list[tuple[tuple[str, int], ...]] = [()] * size
    own = {name: torch.full((size,), -1, dtype=torch.int64) for name in models}
    faults = []
    for token, place in result.items():
        given = wanted.tokens.get(token)
        there = [(name, known[name][token]) for name in models if token in known[name]]
        if given is None:
            lent[place] = tuple(there[:1] if wanted.base_first and there and there[0][0] == BASE else there)
        elif given.model is not None:
            row = given.row if given.row is not None else known.get(given.model, {}).get(given.token or token)
            if given.model not in models or row is None or not 0 <= row < (models[given.model].vocabulary or 0):
                faults.append(f"tokens: {token!r}: expected a row of one of {', '.join(models)}, got {given}")
                continue
            lent[place] = ((given.model, row),)
        for name, row in there if given is None or not given.force else ():
            own[name][place] = row
    padding = -size % wanted.multiple if wanted.multiple else 0
    filling = Filling(models, lent, padding)
    made = {} if faults else _put(models, models[BASE], own, filling)
    return Matched(made or dict(models), faults, result, named)


def _further(models: Mapping[str, ModelWeights], known: Mapping[str, Rows], wanted: Vocabulary) -> Iterable[str]:
    """Yield the tokens besides those of the tokenizer that is taken: ordinary ones of all models, then added ones."""
    if wanted.source == UNION:
        beside = {name: marks_of(model.folder) for name, model in models.items()}
        for added in (False, True):
            for name in models:
                ordered = sorted(known[name], key=known[name].__getitem__)
                yield from (token for token in ordered if (token in beside[name]) is added)
    yield from wanted.tokens


def _extended(tokenizer: Any, folder: Path, tokens: Rows, folders: Iterable[Path]) -> Any:
    """Return a tokenizer that has just these tokens, changed in place."""
    from tokenizers import AddedToken, Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(f"{folder}: expected a tokenizer that tokens can be added to, got {type(tokenizer).__name__}")
    document = json.loads(backend.to_str())
    # what has no row: tokens behind the last one, and those that a class of transformers adds of its own
    document["added_tokens"] = [each for each in document["added_tokens"] if each["content"] in tokens]
    model = document["model"]
    if isinstance(model.get("vocab"), dict):
        model["vocab"] = {token: row for token, row in model["vocab"].items() if token in tokens}
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model.get("merges") or ()]
        if "merges" in model:
            model["merges"] = [pair for pair in pairs if {*pair, "".join(pair)} <= tokens.keys()]
    whole = Tokenizer.from_str(json.dumps(document))
    marks = {token: each for other in folders for token, each in marks_of(other).items()}
    for token in sorted(tokens, key=tokens.__getitem__):
        if whole.token_to_id(token) is None:
            whole.add_tokens([AddedToken(token, **marks.get(token, {}))])
    got = whole.get_vocab(with_added_tokens=True)
    moved = [token for token, row in tokens.items() if got.get(token) != row]
    more = [token for token in got if token not in tokens]
    if moved or more:
        fault = f"{moved[0]!r} elsewhere" if moved else f"{more[0]!r}, which has no row"
        raise InputError(f"{folder}: the tokenizer cannot be extended, it has the token {fault}")
    tokenizer._tokenizer = whole
    return tokenizer
