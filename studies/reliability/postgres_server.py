"""A PostgreSQL server of one's own in a temporary folder, where one is installed; gone with the context."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PLACES = ("/usr/local/bin", *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)))
USERS = ("postgres", "nobody")  # a server does not run as root: who it runs as then


@dataclass(frozen=True)
class Server:
    """A running server; only who may read its folder can reach it."""

    programs: Path
    folder: Path
    user: Mapping[str, Any]

    def url(self, database: str) -> str:
        """Return the Optuna URL of a new database."""
        self.say("postgres", f'CREATE DATABASE "{database}"')
        return f"postgresql+psycopg://postgres@/{database}?host={self.folder}"

    def say(self, database: str, statement: str) -> None:
        """Have a statement done, outside of any transaction."""
        import psycopg

        with psycopg.connect(f"host={self.folder} user=postgres dbname={database}", autocommit=True) as connection:
            connection.execute(statement)

    def stop(self) -> None:
        """End it as a power cut would."""
        self.ctl("stop", "-m", "immediate")

    def start(self) -> None:
        """Start it, or start it again."""
        options = f"-k {self.folder} -c listen_addresses='' -c fsync=off -c max_connections=40"
        self.ctl("start", "-w", "-l", str(self.folder / "log"), "-o", options)

    def ctl(self, *arguments: str) -> None:
        run([self.programs / "pg_ctl", "-D", self.folder / "data", *arguments], self.user)


def run(command: list[object], user: Mapping[str, Any]) -> None:
    """Run a program as a user, who may read no other folder; what it says is told if it fails."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd="/", check=False, **user)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stderr.strip() or done.stdout.strip()}")


def missing() -> str | None:
    """Return why no server can be had here; None if one can."""
    if importlib.util.find_spec("psycopg") is None:
        return "psycopg is not installed"
    if programs() is None:
        return "no PostgreSQL server is installed"
    if os.getuid() == 0 and user() is None:
        return f"a server does not run as root, and there is no user {' or '.join(USERS)}"
    return None


def programs() -> Path | None:
    """Return the folder of the server's programs."""
    on_path = shutil.which("initdb")
    for place in (*PLACES, *([os.path.dirname(on_path)] if on_path else [])):
        if all(Path(place, name).exists() for name in ("initdb", "pg_ctl", "postgres")):
            return Path(place)
    return None


def user() -> dict[str, Any] | None:
    """Return as whom `subprocess` runs a server; nothing special unless we are root, None if there is nobody."""
    if os.getuid() != 0:
        return {}
    for name in USERS:
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": []}
    return None


@contextmanager
def server() -> Iterator[Server]:
    """Give a server that is running; ask `missing` first."""
    place, owner = programs(), user()
    assert place is not None
    assert owner is not None
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))  # short: the name of a socket has at most 107 bytes
    try:
        if owner:
            os.chown(folder, owner["user"], owner["group"])
        run(
            [place / "initdb", "-D", folder / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"], owner
        )
        running = Server(place, folder, owner)
        running.start()
        try:
            yield running
        finally:
            running.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
