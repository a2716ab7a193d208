"""Processes as workers: how they begin, answer, die, and end with whoever began them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from echoes import Echo, Unreadable

from sae_moo.errors import InputError, RunError, StorageError
from sae_moo.study import processes
from sae_moo.study.crew import Lost, Ready, Refused, Replied
from sae_moo.study.processes import ProcessCrew

SECONDS = 60.0
"""Within which something must be heard, however busy the machine is."""


@pytest.fixture
def crew_of():
    made = []

    def begun(opens, size=1, environment=lambda place: {"SEEN": str(place)}):
        made.append(ProcessCrew(opens, size, environment))
        made[-1].begin()
        return made[-1]

    yield begun
    for crew in made:
        crew.close()
        crew.close()


def heard(crew, count=1):
    """The next things that are heard."""
    things, end = [], time.monotonic() + SECONDS
    while len(things) < count:
        assert time.monotonic() < end, things
        things += crew.hear(1.0)
    return things


def gone(*pids: int) -> bool:
    """Whether processes end within seconds."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if not any(Path(f"/proc/{pid}").exists() and "zombie" not in status(pid) for pid in pids):
            return True
        time.sleep(0.1)
    return False


def status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "zombie"


def test_workers_answer_and_one_that_is_killed_is_heard_lost_and_replaced(crew_of):
    crew = crew_of(Echo(), 2)
    one, two = heard(crew, 2)
    assert {type(one), type(two)} == {Ready}
    assert {one.facts["seen"], two.facts["seen"]} == {"0", "1"}, "each has the environment of its place"
    assert one.facts["process"] != two.facts["process"] != str(os.getpid())
    os.kill(int(one.facts["process"]), signal.SIGINT)  # as a terminal does, to all
    crew.send(one.worker, b"a letter")
    assert heard(crew) == [Replied(one.worker, b"a letter")]
    crew.send(one.worker, b"die")
    assert heard(crew) == [Lost(one.worker, "its process was ended by SIGKILL, as where memory runs out")]
    crew.send(one.worker, b"whatever")
    assert crew.hear(0.0) == []
    crew.replace(one.worker)
    (three,) = heard(crew)
    assert three.worker == "worker 3"
    assert three.facts["seen"] == one.facts["seen"], "in the same place"
    crew.send(two.worker, b"wait")
    start = time.monotonic()
    crew.close()
    assert time.monotonic() - start < processes.PATIENCE, "nobody waits for what it does"
    assert gone(*(int(each.facts["process"]) for each in (one, two, three)))


def test_what_a_worker_cannot_do_is_told_by_it(crew_of):
    crew = crew_of(Echo())
    (ready,) = heard(crew)
    crew.send(ready.worker, b"fault")
    refused = heard(crew)[0]
    assert (type(refused), refused.kind) == (Refused, None)
    assert "ZeroDivisionError: a fault of ours" in refused.message
    assert "line" in refused.message, "a traceback"


@pytest.mark.parametrize("when", ["opening", "answering"])
def test_what_has_no_room_is_told_in_one_line_whenever_it_is_raised(crew_of, when):
    if when == "opening":
        crew = crew_of(Echo("no room"))
    else:
        crew = crew_of(Echo())
        (ready,) = heard(crew)
        crew.send(ready.worker, b"no room")
    refused = heard(crew)[0]
    assert refused.kind is StorageError
    assert refused.message.startswith("/cache/scores.json: No space left on device; ")
    assert len(refused.message.splitlines()) == 1


@pytest.mark.parametrize(
    ("opens", "told"),
    [
        (Echo("input"), Refused("worker 1", "items of a are others", InputError)),
        (Echo("room"), Refused("worker 1", "/cache: no space left", StorageError)),
        (Echo("run"), Refused("worker 1", "task a: the logits are not finite", RunError)),
        (Echo("death"), Lost("worker 1", "its process ended with exit code 3")),
        (Unreadable(), "ValueError: invalid literal for int() with base 10: 'no number'"),
    ],
    ids=["wrong input", "no room", "a failure", "an end", "what cannot be read"],
)
def test_what_cannot_be_opened_is_heard(crew_of, opens, told):
    first = heard(crew_of(opens))[0]
    if isinstance(told, str):
        assert (type(first), first.kind) == (Refused, None)
        assert told in first.message
    else:
        assert first == told


def test_a_process_that_cannot_be_begun_is_lost(crew_of, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    crew = crew_of(Echo())
    told = [Lost("worker 1", "its process could not be begun: No such file or directory")]
    assert heard(crew) == told
    crew.replace("worker 1")
    assert heard(crew) == [Lost("worker 2", told[0].why)]


def test_ctrl_c_while_processes_are_begun_leaves_none(crew_of, monkeypatch):
    begun = []

    class Interrupted(subprocess.Popen):
        def __init__(self, *given, **more):
            super().__init__(*given, **more)
            begun.append(self.pid)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    crew, before = ProcessCrew(Echo(), 2), signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            crew.begin()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    finally:
        signal.signal(signal.SIGINT, before)
        crew.close()
    assert len(begun) == 1
    assert gone(*begun)


DRIVER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs tests in the background ignores it
sys.path.insert(0, {tests!r})
from echoes import Echo
from sae_moo.study.crew import Ready
from sae_moo.study.processes import ProcessCrew
crew, there = ProcessCrew(Echo(), 2), 0
try:
    crew.begin()
    while True:
        for heard in crew.hear():
            assert isinstance(heard, Ready), heard
            print(heard.facts["process"], flush=True)
            crew.send(heard.worker, b"wait")
except KeyboardInterrupt:
    crew.close()
    sys.exit(130)
"""


@pytest.fixture
def driver(tmp_path):
    """A script without a guard that runs two workers, in a group of its own; and their processes."""
    script = tmp_path / "driver.py"
    script.write_text(DRIVER.format(tests=str(Path(__file__).parents[1])))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, script], start_new_session=True, **pipes) as process:
        yield process, [int(process.stdout.readline()) for _ in range(2)]
        process.kill()


def test_ctrl_c_to_all_ends_the_workers_with_the_driver_and_nobody_complains(driver):
    process, workers = driver
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(SECONDS) == 130
    assert gone(*workers)
    assert process.stderr.read() == ""


def test_workers_of_a_driver_that_is_killed_end_by_themselves(driver):
    process, workers = driver
    process.kill()
    process.wait()
    assert gone(*workers)
