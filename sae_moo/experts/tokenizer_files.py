"""A tokenizer to hand on: loaded and saved anew, or its files as they are where it cannot be loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from sae_moo.errors import InputError
from sae_moo.experts.code import TOKENIZER_SETTINGS, auto_map, code_files, copy_code
from sae_moo.experts.tokens import token_list, tokenizer_files
from sae_moo.experts.vocabulary import load_tokenizer
from sae_moo.files.json_text import read_json


class TokenizerFiles:
    """A tokenizer as its files: it can be copied, and neither encodes nor decodes.

    For those whose class is code beside them, those that transformers cannot load, and those of which it reads other
    tokens than the files say.

    Args:
        folder: where the files are.

    Attributes:
        chat_template: the one that the files hold, until another is set.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stated = self.chat_template = _template(folder)

    def __len__(self) -> int:
        return len(self.get_vocab())

    def get_vocab(self) -> dict[str, int]:
        """Return token -> row, if the files say it.

        Raises:
            InputError: if only the code knows.
        """
        try:
            tokens = token_list(self.folder)
        except InputError:
            tokens = None
        if tokens is None:
            code = ", ".join(code_files(self.folder, TOKENIZER_SETTINGS)[0]) or "code that is not there"
            raise InputError(f"{self.folder}: only the tokenizer's own code ({code}) knows its tokens, and is not run")
        return tokens

    def save_pretrained(self, folder: Path) -> None:
        """Copy the files, and the code that they name."""
        for file in tokenizer_files(self.folder):
            shutil.copyfile(file, folder / file.name)
        copy_code(self.folder, TOKENIZER_SETTINGS, folder)
        if self.chat_template != self._stated:
            (folder / "chat_template.jinja").write_text(self.chat_template or "", encoding="utf-8")
            settings = folder / TOKENIZER_SETTINGS[0]
            stated = read_json(settings, "a tokenizer's settings") if settings.is_file() else {}
            if "chat_template" in stated:  # older releases of transformers look there
                stated["chat_template"] = self.chat_template
                settings.write_text(json.dumps(stated, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _template(folder: Path) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    settings = folder / TOKENIZER_SETTINGS[0]
    if not settings.is_file():
        return None
    stated = read_json(settings, "a tokenizer's settings").get("chat_template")
    return stated if isinstance(stated, str) else None


def tokenizer_to_write(folder: Path) -> Any:
    """Return the tokenizer of a folder, to be written with a merge: transformers' own, or `TokenizerFiles`.

    Raises:
        InputError: if there is none.
    """
    if auto_map(folder, TOKENIZER_SETTINGS[0]):
        return TokenizerFiles(folder)
    return load_tokenizer(folder)
