"""The command line `sae-moo`: which commands there are, and how the process begins and ends."""

from __future__ import annotations

import signal
import sys
from typing import Annotated, NoReturn

import typer

from sae_moo import __version__
from sae_moo.cli.commands.decide import diff, pick
from sae_moo.cli.commands.deploy import evaluate, export, merge, unpack
from sae_moo.cli.commands.explore import dashboard, doctor, figures, front, report, trials
from sae_moo.cli.commands.search import compare, search, validate
from sae_moo.cli.streams import open_streams, tell, unprinted

ENDING = (signal.SIGTERM, signal.SIGHUP)  # Ctrl-C is an exception already

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
    doctor,
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
    for number in ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup's
            signal.signal(number, _end)
    open_streams()
    code: int | str | None = 0
    try:
        app()
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:  # before the command itself began
        tell("interrupted")
        code = 130
    except OSError as error:  # of printing help or what is wrong with an argument
        tell(f"{error.filename or 'stderr'}: {error.strerror or error}")
        code = 1
    if (why := unprinted()) is not None:
        tell(why)
        code = code or 1
    sys.exit(code)


def _end(number: int, frame: object) -> NoReturn:  # noqa: ARG001  # Python hands it in
    """End by an exit, which cleans up; a death does not."""
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
