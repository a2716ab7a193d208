"""A crew of actors on a Ray cluster: workers on several machines."""

from __future__ import annotations

import logging
import math
import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from sae_moo.errors import InputError, RunError
from sae_moo.study.crew import Heard, Lost, Ready, Refused, Replied
from sae_moo.study.processes import Opened

log = logging.getLogger(__name__)

ANSWERS = 5.0
"""Seconds in which a cluster has to answer; Ray itself would try for more than five minutes."""
TOGETHER = 0.5
"""Seconds in which the workers of a machine are lost with the first of them; what is lost so is heard at once."""
PATIENCE = 60.0
"""Seconds after which it is told that workers are not ready yet."""
STORE = 80 * 2**20
"""Bytes of shared memory for a cluster of our own, nearly the least that Ray takes: only letters pass through it."""
_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Variable that keeps a cluster to the loopback interface where it is 0; Ray looks at it when it is imported."""
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""Begins a conversation by HTTP/2, which Ray's services speak: a preface, and settings that change nothing."""
_SETTINGS = 4
"""Kind of the frame that such a service says first."""
_WATCH = "watch"
"""Concurrency group of what is called beside the work."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Which cluster works, and what each worker has of it.

    Args:
        workers: how many workers there are to be.
        cpus: processors of each.
        gpus: GPUs of each, or which share of one.
        address: ``HOST:PORT`` of its head, or ``auto`` for the one that runs on this machine; None: one of our own, on
            this machine alone.
        devices: GPUs of this machine, for one of our own.
    """

    workers: int
    cpus: int = 1
    gpus: float = 0.0
    address: str | None = None
    devices: int = 0

    @property
    def words(self) -> str:
        """What works, in words."""
        where = "a Ray cluster on this machine alone" if self.address is None else f"the Ray cluster {self.address}"
        return f"{self._asked} on {where}"

    def check(self) -> None:
        """Say whether the workers have a place, beginning nothing; a cluster that runs is asked.

        Raises:
            InputError: if Ray is not installed, the cluster cannot be joined, or it has no room for so many workers.
        """
        if self.address is None:
            check_installed()
            self.check_room([("this machine", self._own)])
            return
        with self.joined():
            pass

    @contextmanager
    def joined(self) -> Iterator[Any]:
        """Join the cluster, or begin one of our own; one that this process is connected to already is taken as it is.

        Yields:
            The module `ray`, connected. It is left as it was found: a cluster of our own ends, another one runs on.

        Raises:
            InputError: as `check`.
            RunError: if Ray does not begin a cluster of our own, as where a machine is too busy.
        """
        check_installed()
        with _alone() if self.address is None else nullcontext():
            import ray

            theirs = ray.is_initialized()
            try:
                if not theirs:
                    self._init(ray)
                self.check_room([(_called(node), node["Resources"]) for node in ray.nodes() if node["Alive"]])
                yield ray
            finally:
                if not theirs:
                    ray.shutdown()

    @property
    def _own(self) -> Mapping[str, float]:
        """What a cluster of our own has."""
        return {"CPU": self.workers * self.cpus, "GPU": self.devices}

    def _init(self, ray: Any) -> None:
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        with _own_signals():
            if self.address is None:
                own = {"num_cpus": self.workers * self.cpus, "num_gpus": self.devices, "object_store_memory": STORE}
                try:
                    ray.init("local", include_dashboard=False, **own, **quiet)
                except Exception as error:  # Ray has no class of its own for it
                    raise RunError(
                        f"executor.kind: ray: a cluster could not be begun on this machine: {error}"
                    ) from error
            else:
                address = _resolved(self.address)
                check_answers(address)
                try:
                    ray.init(address, **quiet)
                except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
                    raise InputError(f"executor.address: {address}: Ray cannot join the cluster: {error}") from error
        # deaths of workers would be printed to stdout; they are heard by their futures
        ray._private.worker._worker_logs_enabled = False

    def check_room(self, machines: Sequence[tuple[str, Mapping[str, float]]]) -> None:
        """Raise InputError if machines have no room for the workers, for which Ray would wait without end."""
        room = sum(self._places(resources) for _, resources in machines)
        if room < self.workers:
            there = [f"{name}: {_amount(has.get('CPU', 0), has.get('GPU', 0))}" for name, has in machines]
            raise InputError(
                f"executor.workers: expected room for {self._asked}, and there is room for {room} "
                f"({'; '.join(there) or 'no machine is there'})"
            )

    @property
    def _asked(self) -> str:
        each, many = _amount(self.cpus, self.gpus), self.workers > 1
        return f"{self.workers} worker{'s' if many else ''} with {each}{' each' if many else ''}"

    def _places(self, resources: Mapping[str, float]) -> int:
        """Return how many workers a machine has room for."""
        places = resources.get("CPU", 0.0) / self.cpus
        if self.gpus:
            places = min(places, resources.get("GPU", 0.0) / self.gpus)
        return math.floor(places + 1e-6)


@dataclass(frozen=True, slots=True)
class _Member:
    """A worker.

    Args:
        actor: what it is called by.
        lasting: future of what ends with it.
    """

    actor: Any
    lasting: Any


class RayCrew:
    """Actors on a Ray cluster, one a worker; see `Crew`.

    Letters travel as bytes in calls, weights not at all: each actor opens what lies on its own machine. An actor that
    is lost is neither restarted nor is its call repeated by Ray: whoever sends letters decides what becomes of them.
    One that the cluster has no room for now waits until it has, and keeps nobody else waiting.

    Args:
        opens: called in each actor: opens experts and tasks and returns what answers letters; can be pickled, by what
            every machine of the cluster can import.
        cluster: where the actors are.
    """

    def __init__(self, opens: Callable[[], Opened], cluster: Cluster) -> None:
        self._opens = opens
        self._cluster = cluster
        self._joined = ExitStack()
        self._ray: Any = None
        self._class: Any = None
        self._members: dict[str, _Member] = {}
        self._said: dict[Any, str] = {}  # future of what a worker will say -> its name
        self._unready: dict[str, float] = {}  # name -> when it was begun
        self._begun = 0

    @property
    def size(self) -> int:
        """How many workers there are to be."""
        return self._cluster.workers

    def begin(self) -> None:
        """Join the cluster and let the actors begin.

        Raises:
            InputError: as `Cluster.check`.
        """
        self._ray = self._joined.enter_context(self._cluster.joined())
        self._class = self._ray.remote(concurrency_groups={_WATCH: 1})(_Actor)
        for _ in range(self.size):
            self._hire()

    def send(self, worker: str, letter: bytes) -> None:
        """Send a letter to a worker that is ready."""
        if worker in self._members:  # else it is gone, and `hear` has said so
            self._said[self._members[worker].actor.answer.remote(letter)] = worker

    def hear(self, seconds: float | None = None) -> Sequence[Heard]:
        """Return what was heard since, once there is anything."""
        end = math.inf if seconds is None else time.monotonic() + seconds
        heard: list[Heard] = []
        while not heard:
            left = end - time.monotonic()
            heard = self._within(max(0.0, min(left, PATIENCE)))
            if left <= PATIENCE:
                break
            self._tell_of_unready()
        if any(isinstance(each, Lost) for each in heard):
            heard += self._within(TOGETHER)
        return heard

    def replace(self, worker: str) -> None:  # noqa: ARG002  # a place is as good as another
        """Let another actor begin in the place of a lost one."""
        self._hire()

    def close(self) -> None:
        """End all actors, and a cluster of our own."""
        for member in self._members.values():
            self._ray.kill(member.actor)
        self._members.clear()
        self._said.clear()
        self._joined.close()

    def _hire(self) -> None:
        self._begun += 1
        name = f"worker {self._begun}"
        share = {"num_cpus": self._cluster.cpus, "num_gpus": self._cluster.gpus, "scheduling_strategy": "SPREAD"}
        actor = self._class.options(**share, max_restarts=0, max_task_retries=0).remote(name, pickle.dumps(self._opens))
        self._members[name] = _Member(actor, actor.last.options(concurrency_group=_WATCH).remote())
        self._said[actor.open.remote()] = name
        self._unready[name] = time.monotonic()

    def _within(self, seconds: float) -> list[Heard]:
        """Return all that was heard, after so many seconds at most: where nobody is lost, once there is anything."""
        ends = {member.lasting: name for name, member in self._members.items()}
        futures = {**self._said, **ends}  # in this order: what a worker said last is heard before its end
        if not futures:
            time.sleep(seconds)
            return []
        self._ray.wait([*futures], timeout=seconds)
        done = set(self._ray.wait([*futures], num_returns=len(futures), timeout=0)[0])
        heard: list[Heard] = []
        for future, name in futures.items():
            if future in done and name in self._members:  # else it was lost a moment ago
                self._said.pop(future, None)
                heard.append(self._heard(name, future))
        return heard

    def _heard(self, name: str, future: Any) -> Heard:
        errors = self._ray.exceptions
        self._unready.pop(name, None)
        try:
            said: Heard = self._ray.get(future)
        except errors.RayTaskError as error:  # before anything of ours ran: the machine has another package, or none
            return Refused(name, f"what it is to run cannot be run there: {error}", None)
        except errors.RayError as error:
            member = self._members.pop(name)
            self._ray.kill(member.actor)  # one that is merely out of reach must not come back
            self._said = {future: worker for future, worker in self._said.items() if worker != name}
            return Lost(name, _why(error))
        return said

    def _tell_of_unready(self) -> None:
        late = [name for name, begun in self._unready.items() if time.monotonic() - begun >= PATIENCE]
        if late:
            log.warning(
                "not ready yet: %s. Experts and tasks are still being opened there, or the cluster has no room now; "
                "ray status tells. The search goes on with the others",
                ", ".join(late),
            )
            self._unready = {name: begun for name, begun in self._unready.items() if name not in late}


class _Actor:
    """A worker in a process of the cluster; what it returns is heard.

    Args:
        name: what the driver calls it.
        opens: pickled: opens experts and tasks and returns what answers letters.
    """

    def __init__(self, name: str, opens: bytes) -> None:
        self._name = name
        self._opens = opens
        self._answer: Callable[[bytes], bytes] | None = None

    def last(self) -> None:
        """Never return: the future of this call ends with the process."""
        threading.Event().wait()

    def open(self) -> Ready | Refused:
        """Open experts and tasks."""
        import ray

        where = {
            "host": socket.gethostname(),
            "process": str(os.getpid()),
            "address": ray.util.get_node_ip_address(),
            "node": ray.get_runtime_context().get_node_id(),
        }
        try:
            self._answer, facts = pickle.loads(self._opens)()
        except Exception as error:  # whatever opening raises is said to the driver, which raises it
            return self._refusal(error)
        return Ready(self._name, {**where, **facts})

    def answer(self, letter: bytes) -> Replied | Refused:
        """Answer a letter."""
        assert self._answer is not None
        try:
            return Replied(self._name, self._answer(letter))
        except Exception as error:  # likewise of answering
            return self._refusal(error)

    def _refusal(self, error: Exception) -> Refused:
        """Return what is said instead of an answer, with the machine that says it."""
        return Refused.over(self._name, error, f"on {socket.gethostname()}: ")


def check_installed() -> None:
    """Raise InputError if Ray is not installed; nothing is imported for it."""
    if find_spec("ray") is None:
        raise InputError("executor.kind: ray needs Ray, which is not installed: pip install 'sae-moo[ray]'")


def _resolved(address: str) -> str:
    """Return the address of a cluster's head; ``auto`` is one that runs here, or is named by ``RAY_ADDRESS``.

    Raises:
        InputError: if none runs here.
    """
    if address != "auto":
        return address
    from ray._private.services import get_ray_address_from_environment

    try:
        return str(get_ray_address_from_environment("auto", None))
    except ConnectionError as error:
        raise InputError(
            "executor.address: auto, and no Ray cluster runs on this machine: begin one with ray start, or give "
            "HOST:PORT, or null for one of the search's own"
        ) from error


def check_answers(address: str) -> None:
    """Raise InputError unless something answers at an address that may be Ray, within seconds."""
    host, _, port = address.rpartition(":")
    what = f"executor.address: {address}"
    try:
        with socket.create_connection((host.strip("[]"), int(port)), ANSWERS) as line:
            line.sendall(_GREETING)
            said = line.recv(9)
    except OSError as error:
        why = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise InputError(f"{what}: no Ray cluster can be reached there: {why}") from error
    secret = os.environ.get("RAY_USE_TLS", "0") not in ("", "0", "false")  # then nothing is said in the clear
    if not secret and said[3:4] != bytes([_SETTINGS]):
        raise InputError(f"{what}: what answers there is not Ray")


def _why(error: Exception) -> str:
    """Return why an actor is lost, a clause."""
    text = str(error)
    for words, why in _ENDS.items():
        if words in text:
            return why
    said = " ".join(text.rpartition("The actor is dead because ")[2].split())
    return f"its actor is gone: {said[:300]}"


_ENDS = {
    "ray.kill": "its actor was killed",
    "temporarily unavailable": "it cannot be reached any more, as where its machine is gone",
    "node was terminated": "its machine left the cluster",
    "node has died": "its machine left the cluster",
    "node running low on memory": "Ray ended its process, for its machine ran out of memory",
    "worker process has died": "its process ended unexpectedly, as where memory runs out",
}
"""What Ray says of an actor that died, by words in it -> a clause."""


def _called(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


def _amount(cpus: float, gpus: float) -> str:
    """Return so many processors and GPUs in words."""
    return f"{cpus:g} processor{'' if cpus == 1 else 's'} and {gpus:g} GPU{'' if gpus == 1 else 's'}"


@contextmanager
def _alone() -> Iterator[None]:
    """Let Ray be imported and begun for this machine alone: it listens on the loopback interface only."""
    before = os.environ.get(_LOOPBACK)
    os.environ[_LOOPBACK] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_LOOPBACK]
        else:
            os.environ[_LOOPBACK] = before


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep what this process does on SIGTERM, which Ray would change."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)
