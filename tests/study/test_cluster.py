"""Ray clusters: what is told before anything begins, and what becomes of workers that are lost and that join."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from crews import Stands

from sae_moo.errors import InputError, RunError, StorageError
from sae_moo.recipe import Cast, Expert
from sae_moo.study import cluster
from sae_moo.study.cluster import Cluster, RayCrew, check_answers
from sae_moo.study.crew import Lost, Ready, Refused, Replied
from sae_moo.study.executor import Job
from sae_moo.study.post import DriverLine
from sae_moo.study.roster import Roster


def test_without_ray_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    for address in (None, "auto", "node:6379"):
        with pytest.raises(InputError) as caught:
            Cluster(2, address=address).check()
        assert str(caught.value) == ("executor.kind: ray needs Ray, which is not installed: pip install 'sae-moo[ray]'")


@pytest.mark.parametrize(
    ("wrong", "kind", "said"),
    [("input", InputError, "items of a are others"), ("room", StorageError, "/cache: no space left")],
)
def test_what_an_actor_cannot_open_is_said_in_one_line_with_its_machine(monkeypatch, wrong, kind, said):
    """By an actor in this process, where Ray has only to say where it is."""
    context = SimpleNamespace(get_node_id=lambda: "node")
    ray = SimpleNamespace(
        util=SimpleNamespace(get_node_ip_address=lambda: "10.0.0.1"), get_runtime_context=lambda: context
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    refused = cluster._Actor("worker 1", pickle.dumps(Stands(wrong=wrong))).open()
    assert refused == Refused("worker 1", f"on {socket.gethostname()}: {said}", kind)


class Late:
    """Ray on a machine that is too busy for it."""

    @staticmethod
    def init(*args, **kwargs):
        raise Exception("The current node timed out during startup")  # as Ray does


def test_a_cluster_of_our_own_that_does_not_begin_is_told_in_one_line():
    with pytest.raises(RunError) as caught:
        Cluster(2)._init(Late)
    assert str(caught.value) == (
        "executor.kind: ray: a cluster could not be begun on this machine: The current node timed out during startup"
    )


SMALL, LARGE = {"CPU": 4.0, "GPU": 2.0, "memory": 1e9}, {"CPU": 64.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("asked", "machines", "room"),
    [
        (Cluster(5), [SMALL], 4),
        (Cluster(3, cpus=3), [SMALL, SMALL], 2),
        (Cluster(11, gpus=1), [SMALL, LARGE], 10),
        (Cluster(7, cpus=1, gpus=0.5), [SMALL], 4),
        (Cluster(31, cpus=1, gpus=1 / 3), [LARGE], 24),
        (Cluster(5, gpus=2), [SMALL, {"CPU": 8.0, "GPU": 7.0}], 4),
        (Cluster(1, gpus=1), [{"CPU": 8.0}], 0),
        (Cluster(1), [], 0),
    ],
)
def test_a_worker_lies_on_one_machine_and_there_is_room_for_so_many(asked, machines, room):
    named = [("one of several", resources) for resources in machines]
    with pytest.raises(InputError, match=f"there is room for {room} "):
        asked.check_room(named)
    if room:
        Cluster(room, asked.cpus, asked.gpus).check_room(named)


def test_what_is_asked_for_and_what_there_is_are_told_in_one_message(monkeypatch):
    monkeypatch.setattr(cluster, "find_spec", lambda name: object())
    with pytest.raises(InputError) as caught:
        Cluster(4, cpus=2, gpus=1, devices=1).check()
    assert str(caught.value) == (
        "executor.workers: expected room for 4 workers with 2 processors and 1 GPU each, and there is room for 1 "
        "(this machine: 8 processors and 1 GPU)"
    )
    Cluster(4, cpus=2).check()


def server(says: bytes | None):
    """Listen once and answer with some bytes, with nothing where they are None; return the address and the end."""
    listener = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def serve():
        line, _ = listener.accept()
        with line:
            if says is not None:
                line.recv(100)
                line.sendall(says)
            done.wait(5)

    thread = threading.Thread(target=serve)
    thread.start()

    def end():
        done.set()
        thread.join()
        listener.close()

    return f"127.0.0.1:{listener.getsockname()[1]}", end


@pytest.mark.parametrize(
    ("says", "fault"),
    [
        (None, "no Ray cluster can be reached there: no answer"),
        (b"HTTP/1.1 400 Bad Request\r\n", "what answers there is not Ray"),
        (bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]), None),
    ],
    ids=["silent", "another service", "one that may be Ray"],
)
def test_a_cluster_that_does_not_answer_as_one_is_told_within_seconds(monkeypatch, says, fault):
    monkeypatch.setattr(cluster, "ANSWERS", 0.3)
    monkeypatch.delenv("RAY_USE_TLS", raising=False)
    address, end = server(says)
    try:
        if fault is None:
            check_answers(address)
        else:
            with pytest.raises(InputError) as caught:
                check_answers(address)
            assert str(caught.value) == f"executor.address: {address}: {fault}"
    finally:
        end()
    if says is None:
        with pytest.raises(InputError, match="can be reached there: "):  # nobody listens there any more
            check_answers(address)


def crew_of(machines, stands=None, workers=2) -> RayCrew:
    return RayCrew(stands or Stands(), Cluster(workers, address=machines.address))


def heard_until(crew, enough, seconds=60.0):
    heard, end = [], time.monotonic() + seconds
    while not enough(heard):
        assert time.monotonic() < end, heard
        heard += crew.hear(1.0)
    return heard


def count(kind, number):
    return lambda heard: sum(isinstance(each, kind) for each in heard) >= number


def letter(line: DriverLine, name: str) -> bytes:
    return line.written(Job(0, (Cast(Expert(name), "float32"),)))


@pytest.mark.slow
def test_workers_that_are_lost_are_heard_of_once_idle_or_not_and_others_begin_in_their_places(machines):
    crew = crew_of(machines, Stands(dies_at="math"))
    try:
        crew.begin()
        first, second = heard_until(crew, count(Ready, 2))
        assert {first.worker, second.worker} == {"worker 1", "worker 2"}
        assert first.facts["device"] == "none"
        assert {first.facts["host"], first.facts["address"]} == {socket.gethostname(), "127.0.0.1"}
        assert first.facts["process"] != second.facts["process"]
        line = DriverLine()
        crew.send(first.worker, letter(line, "code"))
        (replied,) = heard_until(crew, count(Replied, 1))
        assert (replied.worker, line.read(replied.letter)[0].number) == (first.worker, 0)

        os.kill(int(second.facts["process"]), signal.SIGKILL)  # it has nothing to do
        (lost,) = heard_until(crew, count(Lost, 1))
        assert lost == Lost(second.worker, "its process ended unexpectedly, as where memory runs out")
        crew.send(second.worker, b"too late")
        crew.replace(second.worker)
        crew.send(first.worker, letter(DriverLine(), "math"))  # it dies of that
        heard = heard_until(crew, lambda heard: count(Ready, 1)(heard) and count(Lost, 1)(heard))
        assert {(type(each), each.worker) for each in heard} == {(Lost, first.worker), (Ready, "worker 3")}
        assert list(crew.hear(0.2)) == []
    finally:
        crew.close()
    crew.close()
    assert machines.ray.is_initialized()  # it was connected before


@pytest.mark.slow
def test_a_machine_that_leaves_takes_its_workers_and_one_that_joins_gets_those_that_waited(machines):
    joined = machines.join(1)
    crew = crew_of(machines, workers=3)
    try:
        crew.begin()
        ready = heard_until(crew, count(Ready, 3))
        node = machines.ray.nodes()
        there = next(each["NodeID"] for each in node if each["Alive"] and each["Resources"].get("CPU") == 1.0)
        (leaving,) = [each.worker for each in ready if each.facts["node"] == there]
        machines.leave(joined)
        (lost,) = heard_until(crew, count(Lost, 1))
        assert lost.worker == leaving
        assert lost.why in (
            "its machine left the cluster",
            "it cannot be reached any more, as where its machine is gone",
        )
        crew.replace(leaving)  # nowhere to go
        (stays,) = [each.worker for each in ready if each.worker != leaving][:1]
        line = DriverLine()
        crew.send(stays, letter(line, "code"))
        assert [each.worker for each in heard_until(crew, count(Replied, 1))] == [stays]
        joined = machines.join(1)
        roster = Roster(crew)  # whoever was sent to the machine before its end was known is lost, and replaced
        later = []
        while not any(isinstance(each, Ready) for each in later):
            later += roster.hear()
        assert later[-1].worker not in {each.worker for each in ready}
        assert later[-1].facts["node"] != there
    finally:
        crew.close()
        machines.leave(joined)


@pytest.mark.slow
def test_what_a_worker_cannot_open_is_told_with_its_machine_and_too_many_workers_are_none(machines):
    for wrong, kind, words in (
        ("input", InputError, "items of a are others"),
        ("room", StorageError, "/cache: no space left"),
        ("fault", None, "a fault of ours"),
    ):
        crew = crew_of(machines, Stands(wrong=wrong), workers=1)
        try:
            crew.begin()
            (refused,) = heard_until(crew, count(Refused, 1))
            assert (refused.worker, refused.kind) == ("worker 1", kind)
            assert refused.message.startswith(f"on {socket.gethostname()}: ")
            assert words in refused.message
        finally:
            crew.close()
    with pytest.raises(InputError, match=r"expected room for 9 workers .* there is room for 2 \("):
        crew_of(machines, workers=9).begin()
