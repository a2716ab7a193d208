"""Text of others (names, licences, reasons) in Markdown: shown as it is, never as markup."""

from __future__ import annotations

import re

_MARKUP = str.maketrans(
    {"\\": "\\\\", "&": "&amp;", "<": "&lt;", ">": "&gt;", "[": "\\[", "]": "\\]", "\n": " ", "\r": " "}
)
_CODE = re.compile(r"`[^`|\n]*`")


def escaped(text: str) -> str:
    """Return a text within a line: HTML and links are shown, not followed; code stays code."""
    return text.translate(_MARKUP)


def cell(text: str) -> str:
    """Return a text as a cell of a table; one that is code as a whole stays so."""
    if _CODE.fullmatch(text):
        return text
    return escaped(text).replace("|", "\\|").replace("`", "\\`")


def row(*cells: str) -> str:
    """Return a row of a table."""
    return "| " + " | ".join(map(cell, cells)) + " |"
