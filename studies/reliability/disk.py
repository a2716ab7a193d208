"""Fills disks under commands, counts what goes wrong: ``python studies/reliability/disk.py [--steps N] [--only NAME]``.

A command is run on the embedded zoo while one of the places that it writes to (the run folder, its output, temporary
files, the cache, its log) has room for so many bytes more, from none to nearly enough. It must end with one line that
names the place, or work all the same. Then there is room again, and the same command must give what it gives on an
empty disk. As root the place is a small disk of its own (tmpfs); elsewhere, or with ``--limit``, every file may have so
many bytes and no more (RLIMIT_FSIZE), wherever it lies.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import pkgutil
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import sae_moo
from sae_moo.cli import main as cli
from sae_moo.explore.run import Run

CONFIG = """
study: {name: disk}
models:
  base: zoo:base
  experts: {math: zoo:math, lingua: zoo:lingua}
tasks: [{name: zoo_math, search: 6, test: 4}]
objectives: [zoo_math, sparsity]
search: {population: 4, evaluations: 8}
compare: {methods: [nsga2, pso], seeds: 1, resamples: 100}
"""
WORDS = ("No space left on device", "File too large", "disk is full", "database is full")


@dataclass(frozen=True)
class Case:
    """A command, and the place that has no room.

    Args:
        arguments: of the command; ``OUT`` stands for the folder of outputs.
        place: ``run``, ``output``, ``tmp``, ``cache``, ``stdout`` or ``stderr``.
        searched: whether there is a finished run already.
        result: folder of the case -> what the command came to, whatever was in its way before.
        room: bytes that the command takes there, about.
    """

    arguments: tuple[str, ...]
    place: str
    searched: bool = False
    result: Callable[[Path], object] = lambda folder: None
    room: int = 32_000


def trials(*names: str) -> Callable[[Path], object]:
    """Return what a case's searches came to."""

    def found(folder: Path) -> object:
        runs = [Run.open(folder / "cwd" / "runs" / name).trials() for name in names]
        return [[(r.number, r.state, r.digest, r.evaluation.scores, r.told) for r in records] for records in runs]

    return found


def files(folder: Path) -> object:
    """Return what a case's outputs hold: names, and what of them is the same every time."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.suffix in SAME else ""
        for path in sorted((folder / "out").rglob("*"))
        if path.is_file() and path.name != "filler"
    }


SAME = (".safetensors", ".json")
SEARCH = ("search", "c.yaml")
EXPORT = ("export", "disk", "--trial", "0", "-o", "OUT/m")
CASES = {
    "search, run folder": Case(SEARCH, "run", result=trials("disk")),
    "search, SQLite": Case(("search", "s.yaml"), "run", result=trials("disk"), room=200_000),
    "search, temporary files": Case(SEARCH, "tmp", result=trials("disk")),
    "search, cache": Case(SEARCH, "cache", result=trials("disk")),
    "search, stdout": Case(SEARCH, "stdout", result=trials("disk"), room=4096),
    "search, stderr": Case(SEARCH, "stderr", result=trials("disk"), room=4096),
    "compare": Case(("compare", "c.yaml"), "run", result=trials("disk/nsga2-0", "disk/pso-0")),
    "compare, two workers": Case(
        ("compare", "c.yaml", "--workers", "2"), "run", result=trials("disk/nsga2-0", "disk/pso-0")
    ),
    "pick --test": Case(("pick", "disk", "--test"), "run", True),
    "report": Case(("report", "disk", "-o", "OUT/r.html"), "output", True, files),
    "figures": Case(("figures", "disk", "-o", "OUT/f"), "output", True, files),
    "front --figure": Case(("front", "disk", "--figure", "OUT/f.png"), "output", True, files),
    "evaluate --samples": Case(("evaluate", "zoo:math", "--config", "c.yaml", "--samples", "OUT/s.jsonl"), "output"),
    "export": Case(EXPORT, "output", True, files, room=4_500_000),
    "export --verify, temporary files": Case((*EXPORT, "--verify"), "tmp", True, files),
    "export, packed": Case((*EXPORT, "--format", "packed"), "output", True, room=4_000_000),
    "export, recipe": Case((*EXPORT, "--format", "recipe"), "output", True),
    "front, stdout": Case(("front", "disk", "--json"), "stdout", True),
}


@dataclass
class Counts:
    """What came of a case at all sizes."""

    runs: int = 0
    refused: int = 0
    worked: int = 0
    tracebacks: int = 0
    unnamed: int = 0
    lost: int = 0
    leftovers: int = 0
    told: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not (self.tracebacks or self.unnamed or self.lost or self.leftovers)


def command(arguments: Sequence[str], folder: Path, full: dict[str, Path], most: int | None = None) -> tuple[int, str]:
    """Run a command in a process of its own; return its exit status and what it said on stderr.

    Args:
        arguments: of it.
        folder: of the case: its current folder is ``cwd``, its outputs go to ``out``.
        full: place -> the folder that takes its part.
        most: bytes that any file may have; None: as many as it takes.
    """
    places = {name: full.get(name, folder / name) for name in ("tmp", "cache", "stdout", "stderr")}
    for place in places.values():
        place.mkdir(exist_ok=True)
    logs = {name: places[name] / f"{name}.log" for name in ("stdout", "stderr")}
    child = os.fork()
    if child == 0:
        os.environ.update(TMPDIR=str(places["tmp"]), XDG_CACHE_HOME=str(places["cache"]), OMP_NUM_THREADS="1")
        tempfile.tempdir = None
        os.chdir(folder / "cwd")
        code = 99
        try:
            for number, name in ((1, "stdout"), (2, "stderr")):
                os.dup2(os.open(logs[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            if most is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
            sys.argv = ["sae-moo", *(part.replace("OUT", str(folder / "out")) for part in arguments)]
            try:
                cli.main()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            sys.excepthook(*sys.exc_info())  # as the interpreter would
            code = 1
        finally:
            os._exit(code or 0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, logs["stderr"].read_text(errors="replace") if logs["stderr"].exists() else ""


def prepared(folder: Path, reference: Path | None) -> None:
    """Make the folder of a case; with a finished run in it if there is a reference."""
    for name in ("cwd", "out"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "cwd" / "c.yaml").write_text(CONFIG)
    alone = CONFIG[: CONFIG.index("compare:")].replace("name: disk", "name: disk, storage: 'sqlite:///s.db'")
    (folder / "cwd" / "s.yaml").write_text(alone)
    if reference is not None:
        shutil.copytree(reference / "cwd" / "runs", folder / "cwd" / "runs")


@contextmanager
def small_disk(place: Path, size: int):
    """Give a disk of its own at a place."""
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def judged(case: Case, step: float, reference: Path, expected: object, limit: bool, counts: Counts) -> None:
    """Run a case with a part of the room it takes, then with enough; count what was wrong."""
    scratch = Path(tempfile.mkdtemp(prefix="disk"))
    try:
        folder, disk = scratch / "w", scratch / "disk"
        if limit:
            prepared(folder, reference if case.searched else None)
            status, said = command(case.arguments, folder, {}, 4096 + int(step * LARGEST))  # its log takes some
            closed(case, folder, {}, status, said, "/", expected, counts)
            return
        with small_disk(disk, 256 << 20):
            full = {case.place: disk / case.place} if case.place in ("tmp", "cache", "stdout", "stderr") else {}
            if case.place in ("run", "output"):
                inner = "cwd" if case.place == "run" else "out"
                (disk / inner).mkdir()
                folder.mkdir()
                (folder / inner).symlink_to(disk / inner)
            prepared(folder, reference if case.searched else None)
            for place in full.values():
                place.mkdir()
            free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
            filler = disk / "filler"
            with filler.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, free - int(step * case.room))
            status, said = command(case.arguments, folder, full)
            filler.unlink()
            closed(case, folder, full, status, said, str(scratch), expected, counts)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


LARGEST = 3 << 20  # bytes; more than any file that a case writes


def closed(
    case: Case,
    folder: Path,
    full: dict[str, Path],
    status: int,
    said: str,
    where: str,
    expected: object,
    counts: Counts,
) -> None:
    """Judge what a command did without room, and what it does with room again."""
    counts.runs += 1
    counts.worked += status == 0
    counts.refused += status != 0
    counts.tracebacks += "Traceback" in said
    lines = [line for line in said.splitlines() if any(words in line for words in WORDS)]
    if status != 0 and case.place != "stderr":
        named = len(lines) == 1 and any(each in lines[0] for each in (where, "runs/", "standard output", "s.db"))
        if not named:
            counts.unnamed += 1
            counts.told.append(said.strip()[-300:])
        else:
            counts.told.append(lines[0])
    if status == 0 and "search" not in case.arguments[0] and case.place == "output":
        shutil.rmtree(folder / "out", ignore_errors=True)  # it worked: what it made is in the way
        (folder / "out").mkdir(exist_ok=True)
    again, words = command(case.arguments, folder, full)
    taken = "exists already" in words
    same = taken or (again == 0 and case.result(folder) == expected)
    counts.lost += not same
    if not same:
        counts.told.append(f"again: {again} {words.strip()[-300:]}")
    left = [path for path in (folder / "cwd", folder / "out") for path in path.rglob(".*partial-*")]
    counts.leftovers += len(left)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=8, help="sizes of a disk, for each case")
    parser.add_argument("--only", nargs="+", default=list(CASES), metavar="NAME")
    parser.add_argument("--limit", action="store_true", help="limit files instead of filling a disk")
    parser.add_argument("--verbose", action="store_true", help="show what was said")
    given = parser.parse_args()
    limit = given.limit or os.getuid() != 0
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    total = Counts()
    for module in pkgutil.walk_packages(sae_moo.__path__, "sae_moo."):  # once, not in every process that is forked
        if not module.name.startswith(("sae_moo.testing", "sae_moo.zoo.train")):
            importlib.import_module(module.name)
    with tempfile.TemporaryDirectory() as root:
        reference = Path(root) / "reference"
        prepared(reference, None)
        status, said = command(SEARCH, reference, {})
        assert status == 0, said
        for name in given.only:
            case = CASES[name]
            whole = Path(root) / name.replace(" ", "-")
            prepared(whole, reference if case.searched else None)
            status, said = command(case.arguments, whole, {})
            assert status == 0, said
            counts = Counts()
            for step in range(given.steps):
                judged(case, step / given.steps, reference, case.result(whole), limit, counts)
            print(f"{name:34} {line(counts)}", flush=True)
            for text in dict.fromkeys(counts.told) if given.verbose or not counts.good else ():
                print(f"    {text}")
            for key in ("runs", "refused", "worked", "tracebacks", "unnamed", "lost", "leftovers"):
                setattr(total, key, getattr(total, key) + getattr(counts, key))
    print(f"{'in all':34} {line(total)}")
    return 0 if total.good else 1


def line(counts: Counts) -> str:
    return (
        f"{counts.runs:4} runs {counts.refused:4} one line {counts.worked:4} worked {counts.tracebacks:3} tracebacks "
        f"{counts.unnamed:3} unnamed {counts.lost:3} lost {counts.leftovers:3} left behind"
    )


if __name__ == "__main__":
    sys.exit(main())
