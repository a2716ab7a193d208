"""A crew of processes on this machine."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, Pipe, wait
from typing import TypeVar

from sae_moo.study.crew import Heard, Lost, Ready, Refused, Replied

PATIENCE = 5.0
"""Seconds that a process has to end once it is asked to; then it is killed."""
LOOK = 1.0
"""Seconds between two looks at whether a process is there, where its line does not say so."""

Opened = tuple[Callable[[bytes], bytes], Mapping[str, str]]
"""What answers letters, and facts about it (`crew.Ready`)."""
Result = TypeVar("Result")

_BEGIN = """\
import sys
from multiprocessing.connection import Connection
line = Connection(int(sys.argv[1]))
sys.path[:] = line.recv()
from sae_moo.study.processes import serve
serve(line, int(sys.argv[2]))
"""


@dataclass(frozen=True, slots=True)
class _Member:
    place: int
    process: subprocess.Popen[bytes]
    line: Connection


class ProcessCrew:
    """Processes that are begun anew on this machine; see `Crew`.

    Each is an interpreter of its own: it shares no memory and no devices that are open, and the program that searches
    is not run again in it, so that a script needs no guard around what it does. Ctrl-C does not reach the processes:
    whoever searches says what becomes of them. What they print goes to stderr.

    Args:
        opens: called in each process: opens experts and tasks and returns what answers letters; can be pickled.
        workers: how many.
        environment: place of a worker, from 0 -> variables of its environment: which devices it sees, how many threads
            it has.
    """

    def __init__(
        self,
        opens: Callable[[], Opened],
        workers: int,
        environment: Callable[[int], Mapping[str, str]] = lambda place: {},
    ) -> None:
        self._opens = opens
        self._workers = workers
        self._environment = environment
        self._members: dict[str, _Member] = {}
        self._gone: dict[str, int] = {}  # name of a lost worker -> its place
        self._unborn: list[Heard] = []
        self._begun = 0

    @property
    def size(self) -> int:
        """How many workers there are to be."""
        return self._workers

    def begin(self) -> None:
        """Begin the processes."""
        for place in range(self._workers):
            self._hire(place)

    def send(self, worker: str, letter: bytes) -> None:
        """Send a letter to a worker that is ready."""
        with suppress(OSError, KeyError):  # it is gone; `hear` says so, or has said so
            self._members[worker].line.send_bytes(letter)

    def hear(self, seconds: float | None = None) -> Sequence[Heard]:
        """Return what was heard since, once there is anything."""
        end = None if seconds is None else time.monotonic() + seconds
        heard, self._unborn = self._unborn, []
        while not heard:
            left = LOOK if end is None else min(LOOK, end - time.monotonic())
            wait([member.line for member in self._members.values()], max(0.0, left))
            for name in tuple(self._members):
                heard += self._heard(name)
            if end is not None and time.monotonic() >= end:
                break
        return heard

    def replace(self, worker: str) -> None:
        """Begin another process in the place of a lost one."""
        self._hire(self._gone.pop(worker))

    def close(self) -> None:
        """End all processes."""
        members = [*self._members.values()]
        for member in members:
            member.process.terminate()
        for member in members:
            _end(member)
        self._members.clear()

    def _hire(self, place: int) -> None:
        self._begun += 1
        name = f"worker {self._begun}"
        opens = pickle.dumps(self._opens)
        ours, theirs = Pipe()
        command = [sys.executable, "-c", _BEGIN, str(theirs.fileno()), str(os.getpid()), name]  # named for `ps`
        environment = {**os.environ, **self._environment(place)}
        with theirs, _uninterrupted():
            try:
                process = subprocess.Popen(
                    command, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=2
                )
            except OSError as error:
                ours.close()
                self._gone[name] = place
                self._unborn.append(Lost(name, f"its process could not be begun: {error.strerror or error}"))
                return
            self._members[name] = _Member(place, process, ours)
        with suppress(OSError):  # it is gone already; `hear` says so
            ours.send(sys.path)
            ours.send_bytes(opens)

    def _heard(self, name: str) -> list[Heard]:
        member, heard = self._members[name], list[Heard]()
        ended = member.process.poll() is not None  # looked at before what it said last is read
        try:
            while member.line.poll():
                kind, *rest = member.line.recv()
                heard.append(_HEARD[kind](name, *rest))
        except (EOFError, OSError):  # it is gone, perhaps within a message
            ended = True
        if ended:
            del self._members[name]
            _end(member)
            self._gone[name] = member.place
            heard.append(Lost(name, _end_of(member.process.returncode)))
        return heard


_HEARD: dict[str, Callable[..., Heard]] = {"ready": Ready, "replied": Replied, "refused": Refused}


def _end(member: _Member) -> None:
    """Wait for a process that was asked to end, or whose line broke; one that does not end in time is killed."""
    try:
        member.process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        member.process.kill()
        member.process.wait()
    member.line.close()


def _end_of(code: int) -> str:
    """Return how a process ended, a clause."""
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        out = ", as where memory runs out" if code == -signal.SIGKILL else ""
        return f"its process was ended by {name}{out}"
    return f"its process ended with exit code {code}"


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back until a process that is begun is known; it inherits that Ctrl-C is blocked."""
    held: list[int] = []
    handles = threading.current_thread() is threading.main_thread()  # Python's handlers run there, whoever is signalled
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    handler = signal.signal(signal.SIGINT, lambda number, frame: held.append(number)) if handles else None
    try:
        yield
    finally:
        if handles:
            signal.signal(signal.SIGINT, signal.SIG_DFL if handler is None else handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        if held:
            signal.raise_signal(signal.SIGINT)


def serve(line: Connection, driver: int) -> None:
    """Answer letters until the line ends; what a process of the crew does.

    Args:
        line: to the process that searches: what opens experts and tasks comes first, pickled, then letters.
        driver: that process.
    """
    threading.Thread(target=_end_without, args=(driver,), daemon=True).start()
    try:
        opens = line.recv_bytes()
        answer, facts = _done(lambda: pickle.loads(opens)(), line)
        line.send(("ready", {"host": socket.gethostname(), "process": str(os.getpid()), **facts}))
        while True:
            letter = line.recv_bytes()
            line.send(("replied", _done(partial(answer, letter), line)))
    except (EOFError, ConnectionError):  # of the line: nobody is at its other end any more
        return


def _done(work: Callable[[], Result], line: Connection) -> Result:
    """Return what comes of some work; if it raises anything, say so and end this process."""
    try:
        return work()
    except Exception as error:  # whatever the work raises is said to the driver, which raises it
        refused = Refused.over("", error)  # the driver knows the name
        line.send(("refused", refused.message, refused.kind))
    sys.exit(1)


def _end_without(driver: int) -> None:
    """End this process when the one that began it is gone, whatever became of it."""
    while os.getppid() == driver:
        time.sleep(LOOK)
    os._exit(1)
