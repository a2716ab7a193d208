"""Signals, and places that a process expects and does not have: a line and an exit code, or it works all the same."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from commands import call, refused

import sae_moo
from sae_moo.explore.run import Run
from sae_moo.jobs.bench import versions

MODULE = [sys.executable, "-m", "sae_moo.cli.main"]
CHECKOUT = Path(sae_moo.__file__).parents[1]
HIDING = """
import importlib.metadata as metadata

found = metadata.Distribution.from_name.__func__


@classmethod
def but_ours(cls, name):
    if metadata.Prepared.normalize(name) == "sae_moo":
        raise metadata.PackageNotFoundError(name)
    return found(cls, name)


metadata.Distribution.from_name = but_ours
"""
"""Source that hides this package's metadata, as on a machine where a checkout lies on PYTHONPATH."""


@pytest.fixture
def own(searched, tmp_path, monkeypatch) -> Path:
    """A copy of a folder with a finished run."""
    folder = shutil.copytree(searched, tmp_path / "own")
    monkeypatch.chdir(folder)
    return folder


def no_home(folder, monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "USER", "LOGNAME"):
        monkeypatch.delenv(name, raising=False)


def cache_is_a_file(folder, monkeypatch):
    (folder / "cache").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))


def cache_is_read_only(folder, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc")  # nobody, not even root, makes a file there


def no_temporary_folder(folder, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(folder / "gone"))
    monkeypatch.setattr(tempfile, "tempdir", None)


def temporary_folder_nobody_can_write(folder, monkeypatch):
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.setenv(name, "/proc")
    monkeypatch.setattr(tempfile, "tempdir", "/proc")


def stdin_is_closed(folder, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)


def not_installed(folder, monkeypatch):
    monkeypatch.setattr(importlib.metadata.Distribution, "from_name", importlib.metadata.Distribution.from_name)
    exec(HIDING, {})
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("sae-moo")


def plain_locale(folder, monkeypatch):
    for name, value in (("LC_ALL", "C"), ("PYTHONIOENCODING", "ascii"), ("LANG", "C")):
        monkeypatch.setenv(name, value)


SURROUNDINGS = (
    no_home,
    cache_is_a_file,
    cache_is_read_only,
    no_temporary_folder,
    temporary_folder_nobody_can_write,
    stdin_is_closed,
    plain_locale,
    not_installed,
)


@pytest.mark.parametrize("surroundings", SURROUNDINGS, ids=lambda each: each.__name__)
def test_commands_do_without_what_they_do_not_need(own, monkeypatch, surroundings):
    whole = [(t.number, t.digest, t.values) for t in Run.open("tiny").trials()]
    surroundings(own, monkeypatch)
    assert json.loads(call("search", "c.yaml", "--evaluations", "15", "--json").stdout)["evaluations"] == 15
    assert [(t.number, t.digest, t.values) for t in Run.open("tiny").trials()][:14] == whole
    call("validate", "c.yaml")
    call("pick", "tiny", "--test")
    call("export", "tiny", "--trial", "0", "-o", "m")
    call("report", "tiny", "-o", "r.html")
    call("doctor", "tiny")
    assert not list(own.rglob(".*partial-*"))


def test_a_checkout_that_was_never_installed_serves_other_processes_too(own, monkeypatch, tmp_path, fresh_process):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "sitecustomize.py").write_text(HIDING)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "first"), str(CHECKOUT)]))
    asked = "import sae_moo, importlib.metadata as m; print(sae_moo.__file__); m.version('sae-moo')"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=False)
    assert Path(done.stdout.strip()).parents[1] == CHECKOUT
    assert "PackageNotFoundError" in done.stderr, "it is hidden"
    told = subprocess.run([sys.executable, "-m", "sae_moo", "--version"], capture_output=True, text=True, check=True)
    assert told.stdout == f"sae-moo {sae_moo.__version__}\n"
    assert "verified in a fresh process" in call("export", "tiny", "--trial", "0", "-o", "m", "--verify").stdout


def test_versions_are_of_the_code_that_runs_and_unknown_where_nothing_says_one(monkeypatch):
    house, *others = versions().split(", ")
    assert house == f"sae-moo {sae_moo.__version__}"
    assert others == [
        f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "pymoo", "optuna")
    ]
    monkeypatch.setattr(sys, "path", [str(CHECKOUT)])
    monkeypatch.setattr(sys, "meta_path", [])
    assert versions() == f"{house}, torch unknown, transformers unknown, pymoo unknown, optuna unknown"


@pytest.mark.parametrize(
    ("command", "what"),
    [
        (("search", "{}/c.yaml"), "runs/tiny: the run folder cannot be written"),
        (("export", "{}/runs/tiny", "--trial", "0", "-o", "m"), "m: cannot be written"),
        (("report", "{}/runs/tiny", "-o", "r.html"), "r.html: "),
        (("figures", "{}/runs/tiny", "-o", "f"), "f: cannot be written"),
        (("front", "{}/runs/tiny", "--figure", "f.png"), "f.png: "),
    ],
)
def test_a_current_folder_that_cannot_be_written_is_one_line(own, monkeypatch, command, what):
    if not Path("/proc").is_dir():
        pytest.skip("no folder that not even root can write to")
    monkeypatch.chdir("/proc")
    (line,) = refused(*(part.format(own) for part in command)).splitlines()
    assert line.startswith(f"sae-moo: {what}")


def test_a_current_folder_that_is_gone_is_one_line(own, monkeypatch):
    (own / "gone").mkdir()
    monkeypatch.chdir(own / "gone")
    (own / "gone").rmdir()
    for command in (("search", f"{own}/c.yaml"), ("front", "tiny"), ("front", f"{own}/runs/tiny", "--figure", "f.png")):
        assert refused(*command) == "sae-moo: the current folder is there no more: it was removed or renamed\n"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_stream_on_a_full_disk_is_one_line_or_silence(there, stream):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    with Path("/dev/full").open("w") as full:
        other = {"stdout": "stderr", "stderr": "stdout"}[stream]
        for arguments, code in ((["front", "tiny"], 1), (["--help"], 1), (["front", "nothing"], 2)):
            done = subprocess.run(
                [*MODULE, *arguments], **{stream: full, other: subprocess.PIPE}, text=True, check=False
            )
            if stream == "stderr":
                assert done.returncode == (2 if code == 2 else 0)
                continue
            assert done.returncode == code
            (line,) = done.stderr.splitlines()
            assert line.startswith(
                "sae-moo: standard output: No space left on device" if code == 1 else "sae-moo: no run"
            )


ENDS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


DROPPED = """
import os, sys, time
from sae_moo.cli import main as line

class Finalized:
    def __del__(self):
        os.kill(os.getpid(), {number})
        time.sleep(0.01)  # here the handler raises, and Python drops what it raised

def work():
    Finalized()
    time.sleep(20)
    sys.exit(99)

line.app = work
line.main()
"""


@pytest.mark.parametrize("number", ENDS, ids=lambda number: number.name)
def test_a_signal_that_comes_while_an_object_is_finalized_is_not_lost(number):
    code = DROPPED.format(number=int(number))
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=lambda: [signal.signal(each, signal.SIG_DFL) for each in ENDS],
    )
    assert done.returncode == ENDS[number]
    assert "Exception ignored" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", ENDS, ids=lambda number: number.name)
def test_a_signal_ends_a_search_in_order_and_it_goes_on(here, number):
    def as_under_nohup():  # whatever the tests themselves were started under
        for each in ENDS:
            signal.signal(each, signal.SIG_DFL)
        if number == signal.SIGTERM:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = subprocess.Popen(
        [*MODULE, "search", "c.yaml", "--evaluations", "5000"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=as_under_nohup,
    )
    journal = here / "runs/tiny/study.journal"
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.stat().st_size > 20_000):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    if number == signal.SIGTERM:
        process.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        assert process.poll() is None, "what nohup ignores is ignored"
    process.send_signal(number)
    _, error = process.communicate(timeout=120)
    assert process.returncode == ENDS[number]
    assert len(error.splitlines()) <= 1, error
    assert (here / "runs/tiny/search.lock").read_text() == "", "it gave the folder back"
    made = len(Run.open("tiny").trials())
    assert "resumed" in call("search", "c.yaml", "--evaluations", str(made + 1)).stdout
    assert len(Run.open("tiny").trials()) == made + 1
