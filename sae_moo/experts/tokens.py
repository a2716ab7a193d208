"""Which token stands at which row of a model's embeddings, by the files of its tokenizer.

Files say which rows a model was trained with; a tokenizer that is loaded may say otherwise (transformers adds tokens
that no row belongs to, and builds an empty vocabulary where it looks for another file than the one there is). So no
tokenizer is built here, but where special tokens are named without a row, and no code of a model's own is run.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sae_moo.errors import InputError

ADDED, SETTINGS, SPECIAL = "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json"
_ONE = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_MANY = ("additional_special_tokens", "extra_special_tokens")
_DECODER = "added_tokens_decoder"
MARKS = ("single_word", "lstrip", "rstrip", "normalized", "special")
Rows = dict[str, int]


def token_list(folder: Path) -> Rows | None:
    """Return token -> row of the tokenizer in a folder; None if there is no tokenizer.

    Bytes that are no text are written as byte-level tokenizers write them, in all kinds of file.

    Raises:
        InputError: if there is one that cannot be read, or whose files do not say all of it.
    """
    form = next(((file, read) for name, read in _FORMS for file in _files(folder, name)), None)
    if form is None:
        if has_tokenizer(folder):
            raise InputError(f"{folder}: the tokenizer's files do not say its tokens; save it with a tokenizer.json")
        return None
    file, read = form
    try:
        rows = read(file)
        added, special = _added(folder), _special(folder)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise InputError(f"{file}: expected a tokenizer: {error or type(error).__name__}") from error
    if not added and (read is _tiktoken or (read is _model and _is_tiktoken(file))):
        raise InputError(f"{file}: does not say where the special tokens stand; save it with a tokenizer.json")
    # only tokenizer.json is complete in itself: what it says counts
    placed = {**added, **rows} if file.name == "tokenizer.json" else {**rows, **added}
    homeless = [token for token in special if token not in placed]
    return {**placed, **_given_rows(folder, placed, homeless)} if homeless else placed


def has_tokenizer(folder: Path) -> bool:
    """Say whether there is a tokenizer in a folder, readable or not."""
    return any(_files(folder, name) for name, _ in _FORMS) or (folder / ADDED).is_file() or _class(folder) is not None


def same_files(one: Path, other: Path) -> bool:
    """Say whether two folders hold tokenizers with the same files, byte for byte, as far as tokens are concerned."""
    mine, theirs = _named(one), _named(other)
    if mine.keys() != theirs.keys() or not (mine or _class(one)) or _class(one) != _class(other):
        return False
    if any(file.stat().st_size != theirs[name].stat().st_size for name, file in mine.items()):
        return False
    if any(file.read_bytes() != theirs[name].read_bytes() for name, file in mine.items()):
        return False
    try:
        return _added(one) == _added(other) and _special(one) == _special(other)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False  # `token_list` says what is wrong with it


def tokenizer_files(folder: Path) -> list[Path]:
    """Return the files that a tokenizer is made of, its settings and templates among them, in a fixed order."""
    others = (ADDED, SETTINGS, SPECIAL, "merges.txt", "chat_template.jinja", "chat_template.json")
    return [*_named(folder).values(), *(folder / name for name in others if (folder / name).is_file())]


def marks_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Return for tokens beside the vocabulary how they are matched in a text: ``special``, ``lstrip`` and so on."""
    found: dict[str, dict[str, Any]] = {}
    settings = _json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    file = folder / "tokenizer.json"
    listed = (_json(file).get("added_tokens") or []) if file.is_file() else []
    for entry in [*(settings.get(_DECODER) or {}).values(), *listed]:
        if isinstance(entry, Mapping):
            found[entry["content"]] = {mark: bool(entry[mark]) for mark in MARKS if mark in entry}
    return found


def _named(folder: Path) -> dict[str, Path]:
    """Return the files that say the tokens, by name; where the class of the tokenizer is the model's own, its code."""
    patterns = [*(name for name, _ in _FORMS), "tokenization_*.py"]
    return {file.name: file for name in patterns for file in _files(folder, name)}


def _files(folder: Path, name: str) -> list[Path]:
    return sorted(file for file in folder.glob(name) if file.is_file())


def _class(folder: Path) -> Any:
    """Return what the settings say of the class of a tokenizer that has no files of the known forms; None: nothing."""
    if any(_files(folder, name) for name, _ in _FORMS):
        return None
    try:
        settings = _json(folder / SETTINGS)
    except (OSError, ValueError, RecursionError):
        return None
    named = [settings.get(key) for key in ("tokenizer_class", "auto_map")] if isinstance(settings, dict) else []
    return named if any(named) else None


def _added(folder: Path) -> Rows:
    """Return the tokens that stand beside the vocabulary, as releases before and after 4.34 of transformers say it."""
    listed = _json(folder / ADDED) if (folder / ADDED).is_file() else {}
    settings = _json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    decoder = settings.get(_DECODER) or {}
    contents = {row: token["content"] if isinstance(token, Mapping) else token for row, token in decoder.items()}
    return {**{str(token): _row(row) for token, row in listed.items()}, **{t: _row(row) for row, t in contents.items()}}


def _special(folder: Path) -> list[str]:
    """Return the special tokens that the settings name, in the order in which transformers adds them."""
    found: dict[str, None] = {}
    stated = [_json(folder / name) for name in (SPECIAL, SETTINGS) if (folder / name).is_file()]
    for key in (*_ONE, *_MANY):
        for settings in stated:
            value = settings.get(key)
            listed = value if isinstance(value, list) else [value]
            if isinstance(value, Mapping) and "content" not in value:  # by names of their own
                listed = list(value.values())
            contents = (token.get("content") if isinstance(token, Mapping) else token for token in listed)
            found.update(dict.fromkeys(token for token in contents if isinstance(token, str) and token))
    return list(found)


def _given_rows(folder: Path, placed: Rows, tokens: list[str]) -> Rows:
    """Return the rows that transformers gives to special tokens which the files name and do not place.

    Raises:
        InputError: if it cannot load the tokenizer, or reads other rows than the files say.
    """
    from transformers import AutoTokenizer

    fault = f"{folder}: the files name the special token {tokens[0]!r} and do not say its row"
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        loaded = dict(tokenizer.get_vocab())
    except Exception as error:  # whatever transformers' many tokenizer classes raise at what they find
        raise InputError(f"{fault}; save it with a tokenizer.json") from error
    if any(loaded.get(token) != row for token, row in placed.items()):
        raise InputError(f"{fault}, and transformers reads the others elsewhere; save it with a tokenizer.json")
    return {token: loaded[token] for token in tokens if token in loaded}


def _row(value: Any) -> int:
    """Return a row as files write it: a whole number, or one as text.

    Raises:
        ValueError: if it is something else.
    """
    if isinstance(value, str):
        return int(value)
    if type(value) is not int or value < 0:
        raise ValueError(f"expected the row of a token, got {value!r}")
    return value


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _tokenizer_json(file: Path) -> Rows:
    document = _json(file)
    listed = document["model"]["vocab"]
    vocabulary = listed if isinstance(listed, dict) else {entry[0]: row for row, entry in enumerate(listed)}
    added = {entry["content"]: _row(entry["id"]) for entry in document.get("added_tokens") or ()}
    return {**added, **{str(token): _row(row) for token, row in vocabulary.items()}}


def _vocab_json(file: Path) -> Rows:
    return {str(token): _row(row) for token, row in _json(file).items()}


def _lines(file: Path) -> Rows:
    text = file.read_text(encoding="utf-8")
    return {token: row for row, token in enumerate(text.removesuffix("\n").split("\n"))}


def _model(file: Path) -> Rows:
    """Read a ``tokenizer.model``: SentencePiece's, or (Llama 3, Kimi) tiktoken's under that name."""
    return _tiktoken(file) if _is_tiktoken(file) else _sentencepiece(file)


def _is_tiktoken(file: Path) -> bool:
    with file.open("rb") as stream:
        first = stream.readline(256).split()
    return len(first) == 2 and first[1].isdigit()


def _sentencepiece(file: Path) -> Rows:
    """Read the pieces of a SentencePiece model: field 1 of the message, whose field 1 is the text."""
    rows: Rows = {}
    count = 0
    for number, piece in _fields(memoryview(file.read_bytes())):
        if number == 1:
            texts = [value for field, value in _fields(piece) if field == 1]
            if len(texts) != 1:
                raise ValueError(f"a SentencePiece model whose piece {count} has no text")
            rows.setdefault(bytes(texts[0]).decode(), count)
            count += 1
    if not rows:
        raise ValueError("a SentencePiece model without pieces")
    return rows


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield number and content of the fields of a protocol buffer's message; numbers have none."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 2:
            length, at = _varint(message, at)
        elif kind == 0:
            _, after = _varint(message, at)
            length = after - at
        else:
            length = {1: 8, 5: 4}[kind]
        if at + length > len(message):
            raise ValueError("a SentencePiece model that is cut off")
        yield tag >> 3, message[at : at + length] if kind == 2 else message[:0]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while message[at] & 0x80:
        value |= (message[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
    return value | message[at] << shift, at + 1


def _tiktoken(file: Path) -> Rows:
    pairs = (line.split() for line in file.read_bytes().splitlines() if line)
    return {_byte_level(base64.b64decode(token)): int(row) for token, row in pairs}


def _tekken(file: Path) -> Rows:
    """Read Mistral's own format: special tokens come first, ordinary ones behind the room that is kept for them."""
    document = _json(file)
    room, size = document["config"]["default_num_special_tokens"], document["config"]["default_vocab_size"]
    special = {_row(entry["rank"]): entry["token_str"] for entry in document.get("special_tokens") or ()}
    rows = {special.get(row, f"<SPECIAL_{row}>"): row for row in range(room)}
    for entry in document["vocab"]:
        if entry["rank"] + room < size:
            rows[_byte_level(base64.b64decode(entry["token_bytes"]))] = entry["rank"] + room
    return rows


def _byte_level(token: bytes) -> str:
    return "".join(_LETTERS[byte] for byte in token)


def _letters() -> str:
    """Return the letter for every byte in byte-level vocabularies (GPT-2's `bytes_to_unicode`)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return "".join(chr(byte) if byte in shown else chr(256 + hidden.index(byte)) for byte in range(256))


_LETTERS = _letters()


def _shifted(file: Path) -> Rows:
    raise ValueError(f"{file.name} does not say its rows, the class of the tokenizer moves them; save a tokenizer.json")


# In the order in which they count where a folder holds several: a pattern of the name, and how it is read.
_FORMS: tuple[tuple[str, Callable[[Path], Rows]], ...] = (
    ("tokenizer.json", _tokenizer_json),
    ("vocab.json", _vocab_json),
    ("vocab.txt", _lines),
    ("tokenizer.model", _model),
    ("spiece.model", _sentencepiece),
    ("spm.model", _sentencepiece),
    ("tekken.json", _tekken),
    ("*.tiktoken", _tiktoken),
    ("tiktoken.model", _tiktoken),
    ("sentencepiece.bpe.model", _shifted),
)
