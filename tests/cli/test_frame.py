from __future__ import annotations

import io
import shlex

import pytest
from rich.console import Console

from sae_moo.cli.frame import suggest


@pytest.mark.parametrize("width", [40, 200])
def test_what_to_type_next_fits_the_terminal_and_can_be_pasted(width):
    commands = {"sae-moo pick r": "why, and what others would cost", "sae-moo export r --output 'a b'": "[bold]"}
    console = Console(width=width, file=io.StringIO(), markup=False)
    suggest(console, commands)
    first, *lines = console.file.getvalue().splitlines()
    assert first == "next:"
    assert [shlex.split(line, comments=True) for line in lines] == [shlex.split(command) for command in commands]
    assert all(len(line) <= width for line in lines)
    assert (commands["sae-moo pick r"] in lines[0]) == ("[bold]" in lines[1]) == (width == 200)
