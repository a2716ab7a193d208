"""Texts that a model reads before it is pruned or repaired: cut into sequences of tokens, named by a digest, kept.

A repair reads its sequences each time its recipe is materialized, so that they have to be at hand wherever it is: a
pool holds them, an export has a file of them beside it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae_moo.errors import InputError, first_few, shown
from sae_moo.experts.layout import longest_input
from sae_moo.experts.pool import ExpertPool
from sae_moo.files import json_lines, user_cache
from sae_moo.recipe import BASE, Recipe, Repair, walk

TOKENS = 16_384
"""Most tokens that a repair reads unless it is told otherwise."""
LONGEST = 2048
"""Longest sequence of a forward pass, where the model takes more."""

Sequences = tuple[tuple[int, ...], ...]


def calibration_texts(pool: ExpertPool, texts: Sequence[str | Sequence[int]], tokens: int = TOKENS) -> str:
    """Give a pool the token sequences that a repair reads.

    Texts are taken in order, cut into sequences the model can take, until there are `tokens` tokens. They are kept in
    the user's cache folder, too.

    Args:
        pool: the experts; its `texts` are added to.
        texts: texts, to which the tokenizer adds what it does by default, or token ids.
        tokens: how many tokens of them, at most; at least 2.

    Returns:
        The sequences' digest, for ``Repair(..., calibration=digest)``.

    Raises:
        InputError: for texts that give no sequence of two tokens.
    """
    sequences = tuple(tuple(sequence) for sequence in sequences_of(pool, texts, tokens))
    digest = texts_digest(sequences)
    pool.texts[digest] = sequences
    user_cache.keep("calibrations", texts_file(digest), json.dumps(sequences))
    return digest


def sequences_of(
    pool: ExpertPool, texts: Sequence[str | Sequence[int]], tokens: int, where: str = "calibration"
) -> list[list[int]]:
    """Return the sequences of token ids that a pool's models are given of texts; see `tokenised`."""
    longest = longest_input(pool.checkpoints[BASE].config)
    tokenizer = pool.tokenizer() if any(isinstance(text, str) for text in texts) else None
    return tokenised(tokenizer, texts, tokens, min(LONGEST, longest or LONGEST), where)


def texts_digest(sequences: Sequence[Sequence[int]]) -> str:
    """Return the hexadecimal digest of sequences of token ids."""
    return hashlib.sha256(json.dumps(sequences).encode()).hexdigest()


def texts_file(digest: str) -> str:
    """Return the name of the file that sequences are kept in."""
    return f"texts-{digest[:16]}.json"


def texts_of(recipe: Recipe) -> tuple[str, ...]:
    """Return the digests of the sequences that a recipe names, sorted."""
    return tuple(sorted({node.calibration for node in walk(recipe) if isinstance(node, Repair)}))


def save_texts(recipe: Recipe, pool: ExpertPool, folder: Path) -> None:
    """Write the sequences that a recipe names into a folder, one file per digest; nothing if it names none."""
    for digest in texts_of(recipe):
        (folder / texts_file(digest)).write_text(json.dumps(pool.texts[digest]), encoding="utf-8")


def load_texts(recipe: Recipe, pool: ExpertPool, folder: Path) -> None:
    """Give a pool the sequences that a recipe names, from a folder or the user's cache; those not found are left out.

    Raises:
        InputError: if a file in the folder holds other sequences than its name says.
    """
    for digest in texts_of(recipe):
        file = folder / texts_file(digest)
        if held_texts(pool, digest) is None and file.exists():
            sequences = _read(file)
            if sequences is None or texts_digest(sequences) != digest:
                raise InputError(f"{file}: expected the token sequences {digest}, it holds others")
            pool.texts[digest] = sequences


def held_texts(pool: ExpertPool, digest: str) -> Sequences | None:
    """Return the sequences of a digest that a pool holds, or is given now; None if nobody has them.

    It is given them from the user's cache, else by what it has for `further_texts`.

    Raises:
        InputError: if further texts cannot be read.
    """
    if digest not in pool.texts:
        sequences = _read(user_cache.folder("calibrations") / texts_file(digest))
        if sequences is not None and texts_digest(sequences) == digest:
            pool.texts[digest] = sequences
        elif pool.further_texts is not None:
            pool.further_texts()
    return pool.texts.get(digest)


def _read(file: Path) -> Sequences | None:
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(rows, list) or not all(
        isinstance(row, list) and len(row) > 1 and all(type(token) is int for token in row) for row in rows
    ):
        return None
    return tuple(tuple(row) for row in rows)


def tokenised(
    tokenizer: Any, texts: Sequence[str | Sequence[int]], tokens: int, longest: int, where: str = "calibration"
) -> list[list[int]]:
    """Return sequences of token ids, at least 2 and at most `longest` each, at most `tokens` in all.

    Raises:
        InputError: if there is no such sequence, saying `where`, and what came.
    """
    if tokens < 2:
        raise InputError(f"{where}: expected at least 2 tokens, got {tokens}")
    sequences: list[list[int]] = []
    left, most = tokens, 0
    for text in texts:
        if isinstance(text, str):
            ids = list(tokenizer(text, verbose=False).input_ids) if text else []
        elif isinstance(text, Sequence) and all(isinstance(each, int) and each >= 0 for each in text):
            ids = list(text)
        else:
            raise InputError(f"{where}: expected texts, or token ids, got {text!r}")
        most = max(most, len(ids))
        for start in range(0, len(ids), longest):
            sequence = ids[start : min(start + longest, start + left)]
            if len(sequence) > 1:  # a token alone has no context
                sequences.append(sequence)
                left -= len(sequence)
        if left < 2:
            break
    if not sequences:
        given = f"the longest has {most}" if texts else "there is none"
        raise InputError(f"{where}: expected texts of at least 2 tokens; of {len(texts)} texts {given}")
    return sequences


def _text(entry: Any) -> str:
    if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
        raise ValueError(f'expected an object with "text", got {shown(entry)}')
    return str(entry["text"])


def read_texts(path: Path, what: str = "calibration texts") -> list[str]:
    """Read texts, called `what`: of ``.jsonl`` the field ``text`` of every object, else what empty lines part.

    Raises:
        InputError: if the file cannot be read, a line is not such an object, or there is no text.
    """
    if path.suffix == ".jsonl":
        texts, faults = json_lines.read(path, what, _text)
        if faults:
            raise InputError("\n".join(first_few(faults)))
    else:
        try:
            content = path.read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise InputError(f"{path}: cannot read {what}: {reason}") from error
        texts = [text for text in re.split(r"\n[ \t\r]*\n", content) if text.strip()]
    if not texts:
        raise InputError(f"{path}: expected {what}, the file holds none")
    return texts
