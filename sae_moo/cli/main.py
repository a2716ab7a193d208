"""The command line `sae-moo`: which commands there are, and how the process begins and ends."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from sae_moo import __version__
from sae_moo.cli.commands.decide import diff, pick
from sae_moo.cli.commands.deploy import evaluate, export, merge, unpack
from sae_moo.cli.commands.explore import dashboard, doctor, figures, front, report, trials
from sae_moo.cli.commands.predict import predict
from sae_moo.cli.commands.search import compare, search, validate
from sae_moo.cli.streams import open_streams, tell, unprinted

AGAIN = 0.05  # seconds after which a signal is sent again
ENDING = (signal.SIGTERM, signal.SIGHUP)  # Ctrl-C is an exception already

WORDS = (
    (re.compile(r"Input should be a valid integer.*"), "expected a whole number"),
    (re.compile(r"Input should be a valid number.*"), "expected a number"),
    (re.compile(r"Input should be (.*)"), r"expected \1"),
    (re.compile(r"Value error, "), ""),
)
"""What the parser of arguments says of a value -> how it is said here."""


class Commands(TyperGroup):
    """The commands; what is wrong with an argument is said in our words, with what came."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        given = tuple(ctx.args)
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            said = error.message
            for pattern, words in WORDS:
                said = pattern.sub(words, said)
            came = _given_to(error.param, given)
            error.message = f"{said}, got {came!r}" if said.startswith("expected") and came is not None else said
            raise


def _given_to(parameter: Any, given: Sequence[str]) -> str | None:
    """Return what an option was given in an argument list; None if it cannot be told."""
    for option in getattr(parameter, "opts", ()):
        for i, word in enumerate(given):
            if word == option and i + 1 < len(given):
                return given[i + 1]
            if word.startswith(f"{option}="):
                return word.partition("=")[2]
    return None


app = typer.Typer(
    name="sae-moo",
    cls=Commands,
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
    predict,
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
    sys.unraisablehook = _sent_again
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
    # CPython notes a Ctrl-C that arrives while it runs a string, as dataclasses and compilers do, and forgets it when
    # it runs the next one; under ``python -m`` it would else die by SIGINT here, whatever the code.
    exec("")
    sys.exit(code)


def _end(number: int, frame: object) -> NoReturn:  # noqa: ARG001  # Python hands it in
    """End by an exit, which cleans up; a death does not."""
    sys.exit(128 + number)


def _sent_again(unraisable: sys.UnraisableHookArgs) -> None:
    """Send a signal once more whose exception Python had to drop: it came while an object was being finalized."""
    error = unraisable.exc_value
    number = (error.code if isinstance(error.code, int) else 0) - 128 if isinstance(error, SystemExit) else None
    if isinstance(error, KeyboardInterrupt):
        number = signal.SIGINT
    if number not in (signal.SIGINT, *ENDING):
        sys.__unraisablehook__(unraisable)
        return
    later = threading.Timer(AGAIN, os.kill, (os.getpid(), number))
    later.daemon = True
    later.start()


if __name__ == "__main__":
    main()
