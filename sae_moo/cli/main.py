"""The command line `sae-moo`: which commands there are, and how the process begins and ends."""

from __future__ import annotations

import io
import signal
import sys
from typing import Annotated

import typer

from sae_moo import __version__
from sae_moo.cli.commands.decide import diff, pick
from sae_moo.cli.commands.deploy import evaluate, export, merge, unpack
from sae_moo.cli.commands.explore import dashboard, figures, front, report, trials
from sae_moo.cli.commands.search import compare, search, validate

app = typer.Typer(
    name="sae-moo",
    help="Search merges of fine-tuned language models for the Pareto front of accuracy against sparsity.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)
for command in (
    search,
    compare,
    front,
    trials,
    pick,
    export,
    unpack,
    evaluate,
    diff,
    merge,
    validate,
    figures,
    report,
    dashboard,
):
    app.command()(command)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"sae-moo {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[  # its callback does it
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # an exit cleans up, a death does not
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a plain-ASCII terminal shows ? for ±
    try:
        app()
    except KeyboardInterrupt:  # before the command itself began
        print("sae-moo: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
