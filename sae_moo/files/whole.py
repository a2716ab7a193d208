"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import glob
import hashlib
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sae_moo.errors import NO_ROOM, InputError, SaeMooError, StorageError
from sae_moo.files.room import KEPT, writing


def check_creatable(path: Path) -> None:
    """Raise InputError unless a file of that name could be made: it exists, or its folder does not or is closed."""
    check_free(path, folder=False)
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{path}: the folder {path.parent} cannot be written to")


def check_all_creatable(files: Mapping[str, Path | None]) -> None:
    """Raise InputError unless every file could be made, each a file of its own.

    Args:
        files: option that names it -> file; None: it was not given.
    """
    taken: dict[Path, str] = {}
    for option, file in files.items():
        if file is None:
            continue
        check_creatable(file)
        other = taken.setdefault(file.absolute().parent.resolve() / file.name, option)
        if other != option:
            raise InputError(f"{file}: expected a file for {other} and another for {option}, got one for both")


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """Give a new folder to write into, which becomes `output` at the end, or vanishes if anything fails.

    Raises:
        InputError: if `output` is taken or cannot be written.
        StorageError: if there is no room.
    """
    check_free(output)
    with _new(output, Path.mkdir) as partial:
        yield partial
        _shared(partial)
        if output.is_dir():
            output.rmdir()  # empty, as checked


@contextmanager
def whole_file(output: Path, replace: bool = False) -> Iterator[Path]:
    """Give the name of a new file to write, which becomes `output` at the end, or vanishes if anything fails.

    Args:
        output: the file.
        replace: whether a file that is there is replaced.

    Raises:
        InputError: if `output` is taken or cannot be written.
        StorageError: if there is no room.
    """
    if not replace:
        check_free(output, folder=False)
    with _new(output, Path.touch) as partial:
        yield partial


@contextmanager
def _new(output: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """Give what was made beside `output`, which takes its name on leaving, or vanishes if anything fails."""
    partial = _beside(output)
    try:
        make(partial)
    except OSError as error:
        raise _unwritable(output, error) from error
    with writing(output):
        try:
            yield partial
            partial.replace(output)
        finally:
            remove(partial)


def _unwritable(output: Path, error: OSError) -> SaeMooError:
    """Return what to say of an output that cannot be begun."""
    if error.errno in NO_ROOM:
        return StorageError(f"{output}: {error.strerror}; {KEPT}")
    return InputError(f"{output}: cannot be written: {error.strerror}")


def check_free(output: Path, folder: bool = True) -> None:
    """Raise InputError if there is a file of that name, or a folder; an empty one may become one that is written."""
    if not output.name:
        raise InputError(f"expected the name of a new {'folder' if folder else 'file'}, got {str(output)!r}")
    if folder and output.is_dir() and not output.is_symlink() and not any(output.iterdir()):
        return
    if output.exists() or output.is_symlink():
        raise InputError(f"{output}: exists already; give a new name, or remove it")


def _beside(output: Path) -> Path:
    """Return a name beside `output` to write under; what killed processes left under such names is removed.

    Raises:
        InputError: if there can be no such place.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        for left in unfinished(output.parent, output.name):
            remove(left)
    except OSError as error:
        raise _unwritable(output, error) from error
    return output.parent / f".{output.name}.{_mark()}{os.getpid()}"


def unfinished(folder: Path, name: str | None = None) -> list[Path]:
    """Return what processes of this machine that are gone left half written in a folder, whole to nobody.

    Args:
        folder: the folder.
        name: of the file or folder that it should have become; None: any.
    """
    pattern = f".{'*' if name is None else glob.escape(name)}.{_mark()}*"
    return sorted(left for left in folder.glob(pattern) if not _writer_lives(left))


def remove(path: Path) -> None:
    """Remove a file or a folder with all that it holds, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _mark() -> str:
    """Return what names of unfinished files and folders hold before a process id, which is of this machine alone."""
    return f"partial-{hashlib.sha256(platform.node().encode()).hexdigest()[:8]}-"


@contextmanager
def scratch_folder(output: Path) -> Iterator[Path]:
    """Give a folder beside `output` that vanishes; if the process is killed, the next that writes there removes it."""
    folder = output.parent / f".{output.name}.{_mark()}scratch-{os.getpid()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        remove(folder)


def _shared(folder: Path) -> None:
    """Give the files of a folder the usual permissions: some writers keep theirs to the owner."""
    umask = os.umask(0)
    os.umask(umask)
    for file in folder.iterdir():
        file.chmod(0o666 & ~umask)


def _writer_lives(unfinished: Path) -> bool:
    """Say whether the process lives that gave an unfinished file or folder its name."""
    process = unfinished.name.rpartition("-")[2]
    try:
        os.kill(int(process), 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True
