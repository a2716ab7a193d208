from __future__ import annotations

import html
import re

import pytest

from sae_moo.files.markdown import cell, escaped, row

ODD = [
    "<script>alert(1)</script>",
    "a|b",
    "`c`d",
    "[x](javascript:alert(1))",
    "two\nlines",
    "a & b",
    "back\\slash",
    "<img src=x onerror=y>",
]


@pytest.mark.parametrize("text", ODD)
def test_nothing_of_a_text_is_markup(text):
    for made in (escaped(text), cell(text)):
        assert not set("<>\n") & set(made)
        assert not re.search(r"(?<!\\)[\[\]]", made)
    assert not re.search(r"(?<!\\)[|`]", cell(text))
    back = html.unescape(re.sub(r"\\(.)", r"\1", cell(text)))
    assert back == text.replace("\n", " "), "it reads as it was"


def test_code_and_plain_words_stay():
    assert row("zoo_math", "`97bf1b`", "0.5 ± 0.1") == "| zoo_math | `97bf1b` | 0.5 ± 0.1 |"
    assert escaped("made with `sae-moo`") == "made with `sae-moo`"
