from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys

import pytest
from rich.console import Console

from sae_moo.cli.frame import make_console, staged, suggest


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


@pytest.mark.parametrize("colours", ["", "1"])
def test_a_pipe_is_no_terminal_whatever_is_said_of_colours(monkeypatch, capsys, colours):
    monkeypatch.setenv("FORCE_COLOR", colours)
    console = make_console()
    assert not console.is_interactive
    assert console.width == 400
    console.print("[bold]x[/y] :smile: 12")
    assert capsys.readouterr().out == "[bold]x[/y] :smile: 12\n"


LEAVING = """
import sys
from sae_moo.cli.frame import make_console
console = make_console(goes_on=sys.argv[1] == "on")
for i in range(100_000):
    console.print("a line")
print("went on", file=sys.stderr)
"""


@pytest.mark.parametrize("what", ["on", "ends"])
def test_a_reader_that_leaves_ends_a_listing_and_no_search(what):
    process = subprocess.Popen(
        [sys.executable, "-c", LEAVING, what], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read()
    assert ("went on" in said) == (what == "on")
    process.stderr.close()
    process.wait(30)


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_closed_stream_is_no_terminal(monkeypatch, closed):
    monkeypatch.setattr(sys, closed, None)
    console = make_console(stderr=closed == "stderr")
    console.print("to nobody")
    assert not console.is_interactive
    with staged() as stage:
        stage("nothing")


def test_ctrl_c_while_a_string_is_run_ends_like_any_other(tmp_path):
    (tmp_path / "interrupted.py").write_text(
        "from sae_moo.cli import main\nmain.app = lambda: exec('raise KeyboardInterrupt')\nmain.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "interrupted"], cwd=tmp_path, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130, "sae-moo: interrupted\n")
