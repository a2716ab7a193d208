"""What every command of `sae-moo` shares: its options, its one way to fail, its console."""

from __future__ import annotations

import errno
import functools
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, ParamSpec

import typer

from sae_moo.cli.streams import let_go_of, tell
from sae_moo.errors import Hint, InputError, SaeMooError

if TYPE_CHECKING:
    from rich.console import Console

    from sae_moo.explore.run import Run

# Everything heavy is imported inside the commands: `sae-moo --help` must answer at once.

P = ParamSpec("P")

ADVICE = {
    Hint.RENAME: "use another study.name",
    Hint.FRESH: "use another study.name, or --fresh to put the old run aside",
    Hint.ANEW: "start anew with --fresh, or under another study.name",
}
"""What may be done about an error, in the words of the command line."""


class SplitName(StrEnum):
    """Which items to score on."""

    search = "search"
    test = "test"


ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="The configuration, a YAML file.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or a name under runs/.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="The folder to make; it must not exist yet.")]
SET = "--set"
Overrides = Annotated[
    list[str], typer.Option(SET, metavar="KEY.PATH=VALUE", help="Change a value of the configuration.")
]


def reported(command: Callable[P, None]) -> Callable[P, None]:
    """Turn our errors into one message on stderr and the promised exit code.

    Args:
        command: the command.
    """

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except SaeMooError as error:
            fail(str(error) if error.hint is None else error.advising(ADVICE[error.hint]), error.exit_code)
        except BrokenPipeError:
            let_go_of(sys.stdout)
            raise typer.Exit(0) from None
        except KeyboardInterrupt:
            fail("interrupted", 130)
        except Exception as error:  # a full disk hides in errors of many libraries; all others go on up
            from sae_moo.files.disks import unplaced

            full = unplaced(error)
            if full is not None:
                fail(str(full), full.exit_code)
            if not isinstance(error, OSError):
                raise
            if isinstance(error, FileNotFoundError) and _nowhere():
                fail("the current folder is there no more: it was removed or renamed", 2)
            where = f"{error.filename}: " if error.filename else ""
            fail(f"{where}{error.strerror or error}", 2 if error.errno == errno.ENAMETOOLONG else 1)

    return wrapped


def _nowhere() -> bool:
    """Say whether the current folder was removed."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def fail(text: str, code: int) -> NoReturn:
    """Say why a command ends, and end it."""
    tell(text)
    raise typer.Exit(code) from None


def open_run(run: str) -> Run:
    """The run of that folder or name.

    Raises:
        InputError: if there is none, saying which there are.
    """
    quiet()
    from sae_moo.explore.run import Run
    from sae_moo.study.folder import RunFolder, runs_there

    folder = RunFolder.find(run)
    if not folder.begun and not folder.journal.is_file():
        raise InputError(f"{run}: no study at {folder.journal}{runs_there()}")
    return Run.open(run)


def called(name: str, folder: Path) -> str:
    """What commands call a run: its name where it is found by that, else its folder."""
    from sae_moo.study.folder import RUNS

    found = Path(name) if Path(name).is_dir() else RUNS / name
    return name if found.is_dir() and found.resolve() == folder.resolve() else str(folder)


def make_console(stderr: bool = False, goes_on: bool = False) -> Console:
    """A console that does not fold tables in a pipe, nor mind a reader that leaves; nothing it shows is markup.

    Args:
        stderr: whether it is on stderr.
        goes_on: whether the command goes on when its reader has left (a search), or ends (a listing).
    """
    from rich.console import Console

    class Piped(Console):
        def on_broken_pipe(self) -> None:
            let_go_of(self.file)
            if not goes_on:
                raise typer.Exit(0)

    stream = sys.stderr if stderr else sys.stdout  # None where it was closed
    piped = stream is None or not stream.isatty()  # whatever FORCE_COLOR and the like say of colours
    console = Piped(
        stderr=stderr, markup=False, emoji=False, highlight=False, force_interactive=False if piped else None
    )
    if piped:
        console.width = max(console.width, 400)  # a pipe has no width to fit; a folded table is hard to read
    return console


@contextmanager
def staged() -> Iterator[Callable[[str], None]]:
    """Give what shows on a terminal's last line what is being done, for as long as it is."""
    console = make_console(stderr=True)
    if not console.is_interactive:
        yield lambda what: None
        return

    def show(what: str) -> None:
        console.file.write(f"\r\x1b[2K{what[: console.width - 1]}")
        console.file.flush()

    try:
        yield show
    finally:
        show("")


def print_json(document: Any) -> None:
    """Print one document on stdout."""
    print(json.dumps(document, indent=1, allow_nan=False))


def suggest(console: Console, commands: Mapping[str, str]) -> None:
    """Print what to type next: command -> what it does, where it fits. A line can be pasted into a shell as it is."""
    width = min(max(map(len, commands)), 90)
    lines = [f"  {command:{width}}  # {what}" for command, what in commands.items()]
    if max(map(len, lines)) > console.width:
        lines = [f"  {command}" for command in commands]
    console.print("\n".join(("next:", *lines)), soft_wrap=True)


def quiet() -> None:
    """Keep other libraries' chatter off the screen; our own warnings stay."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(level=logging.WARNING, format="sae-moo: %(message)s", stream=sys.stderr)
    for name in ("huggingface_hub", "datasets", "httpx", "urllib3"):  # each retry without a network; the error says it
        logging.getLogger(name).setLevel(logging.ERROR)
