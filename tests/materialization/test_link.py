"""What a CUDA device is told, with torch's streams and events replaced by ones that write down what they are asked."""

from __future__ import annotations

import contextlib

import pytest
import torch

from sae_moo.materialization import link as module
from sae_moo.materialization.link import NoStreams, Streams, link_to, located

CUDA = torch.device("cuda", 0)


@pytest.fixture
def told(monkeypatch) -> list[str]:
    said: list[str] = []

    class Stream:
        made = 0

        def __init__(self, device=None) -> None:
            assert device in (None, CUDA)
            self.name = ["to", "back", "work"][Stream.made]
            Stream.made += 1

        def wait_event(self, event) -> None:
            said.append(f"{self.name} waits for {event.name}")

        def wait_stream(self, other) -> None:
            said.append(f"{self.name} waits for all of {other.name}")

    class Event:
        def __init__(self, *, blocking=False) -> None:
            assert blocking, "a waiting thread would keep its processor"
            self.name = "nothing"

        def record(self, stream) -> None:
            self.name = f"{stream.name} {len(said)}"
            said.append(f"{stream.name} has an event")

        def synchronize(self) -> None:
            said.append(f"the host waits for {self.name}")

    @contextlib.contextmanager
    def within(stream):
        said.append(f"on {stream.name}")
        yield
        said.append(f"off {stream.name}")

    def copying(self, source, non_blocking=False):
        said.append(f"copy of {source.numel()}{' in order' if non_blocking else ''}")
        return self

    work: list[Stream] = []
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: said.append(f"device {device}"))
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: said.append(f"current is {stream.name}"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (7, 9))

    def current(_):
        if not work:
            work.append(Stream())
        return work[0]

    monkeypatch.setattr(torch.cuda, "current_stream", current)
    monkeypatch.setattr(torch.Tensor, "copy_", copying)
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda self, stream: said.append(f"{stream.name} has {self.numel()}")
    )
    return said


def test_a_copy_to_the_device_waits_for_the_memory_and_the_work_for_the_copy(told):
    link = Streams(CUDA)
    link.enter()
    after = link.mark()
    sent = link.send(torch.empty(5), torch.empty(5), after)
    link.join(sent)
    link.wait(sent)
    link.abandon(torch.empty(6))
    assert told == [
        "device cuda:0",
        "current is to",
        "work has an event",
        "to waits for work 2",
        "copy of 5 in order",
        "to has an event",
        "work waits for to 5",
        "the host waits for to 5",
        "to has 6",
    ]
    assert link.free() == 7


def test_a_copy_to_the_host_comes_after_the_work_and_keeps_the_memory(told):
    link = Streams(CUDA)
    done = link.fetch([torch.empty(5), torch.empty(2)], [torch.empty(5), torch.empty(2)])
    link.wait(done)
    assert told == [
        "back waits for all of work",
        "on back",
        "copy of 5 in order",
        "back has 5",
        "copy of 2 in order",
        "back has 2",
        "off back",
        "back has an event",
        "the host waits for back 7",
    ]


def test_where_no_memory_can_be_locked_other_memory_does_and_it_is_said_once(told, caplog, monkeypatch):
    module._tell_unlocked.cache_clear()
    empty = torch.empty

    def refusing(*args, pin_memory=False, **kwargs):
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA")
        return empty(*args, **kwargs)

    monkeypatch.setattr(torch, "empty", refusing)
    link = Streams(CUDA)
    assert [link.staging(8).numel() for _ in range(2)] == [8, 8]
    assert [record.message.rpartition(": ")[2] for record in caplog.records] == ["out of memory"]


def test_only_a_cuda_device_has_a_link_and_its_index_counts(told, monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert located("cuda") == torch.device("cuda", 1)
    assert located("mps") == torch.device("mps")
    assert link_to(torch.device("cpu")) is None
    assert link_to(torch.device("mps")) is None
    link_to.cache_clear()
    try:
        assert link_to(CUDA) is link_to(CUDA) is not None
    finally:
        link_to.cache_clear()


def test_without_streams_everything_is_over_at_once():
    link, memory = NoStreams(), torch.zeros(3, dtype=torch.uint8)
    link.enter()
    assert link.send(memory, torch.ones(3, dtype=torch.uint8), link.mark()) is None
    assert memory.tolist() == [1, 1, 1]
    copy = link.staging(3)
    assert link.fetch([memory], [copy]) is None
    assert copy.tolist() == [1, 1, 1]
    assert link.empty(4).numel() == 4
    assert link.free() == 0
