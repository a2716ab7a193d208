"""Experts on their way to a device that is made up: what is worked on is what the files hold, in any order of work."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from made_up_device import MadeUpDevice
from safetensors.torch import save_file
from stand_ins import weights_of

from sae_moo.experts.checkpoint import TensorFacts
from sae_moo.experts.layout import stored_name
from sae_moo.experts.memory import Remembered
from sae_moo.experts.pool import ExpertPool, TensorInfo
from sae_moo.experts.resident import Resident
from sae_moo.materialization import plan
from sae_moo.materialization.feed import Feed
from sae_moo.materialization.into_model import materialize
from sae_moo.materialization.link import NoStreams
from sae_moo.materialization.staging import ALIGNED, Staging
from sae_moo.recipe import Cast, Expert, Merge, Prune

DTYPES = {"base": torch.float32, "math": torch.bfloat16, "code": torch.float16}
NAMES = tuple(DTYPES)
SLOT = 2 * ALIGNED
# empty, one element, small ones that share a piece, one that fills a piece, and some of many pieces
SHAPES = [(3,), (0, 4), (1,), (40,), (7, 9), (SLOT // 4,), (), (500,), (11, 37), (2,), (1000,), (SLOT // 2,), (3, 0)]


class Models:
    """What a feed asks a pool for."""

    def __init__(self, shapes=SHAPES, stored=True) -> None:
        self.tensors = tuple(TensorInfo(f"t{i}", shape, 0, False) for i, shape in enumerate(shapes))
        generator = torch.Generator().manual_seed(7)
        self.weights = {
            (name, info.name): torch.randn(info.shape, generator=generator).to(dtype)
            for name, dtype in DTYPES.items()
            for info in self.tensors
        }
        facts = {info.name: info.shape for info in self.tensors}
        self.checkpoints = {
            name: SimpleNamespace(
                tensors={tensor: TensorFacts(shape, stored_name(dtype)) for tensor, shape in facts.items()}
            )
            for name, dtype in DTYPES.items()
        }
        self.asked: list[tuple[str, str]] = []
        self.remembered = Remembered()
        self.stored = lambda name, tensor: stored

    def owner(self, name: str, tensor: str) -> str:
        return name

    def load(self, name: str, tensor: str) -> torch.Tensor:
        assert threading.current_thread() is not threading.main_thread()
        self.asked.append((name, tensor))
        return self.weights[name, tensor]

    def bytes(self, name: str, tensor: str) -> bytes:
        return self.weights[name, tensor].reshape(-1).view(torch.uint8).numpy().tobytes()


def feed_to(device, models, slots=3, threads=3, resident=0):
    staging = Staging(device, slots, SLOT, threads)
    return Feed(models, "cpu", NAMES, staging=staging, resident=Resident(resident)), staging


def bands_of(tensors, size):
    return [tensors[i : i + size] for i in range(0, len(tensors), size)]


def slots_back(staging) -> bool:
    """Whether the three threads come to an end with what they have been given, and every slot is in the ring then."""
    meeting = threading.Barrier(4)
    for _ in range(3):
        staging._threads.submit(meeting.wait, 20)
    meeting.wait(20)
    return staging._slots.qsize() == 3


class Address:
    """Where a tensor is, without holding its memory: all that a kernel is given."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.nbytes = tensor.nbytes
        self._address = tensor.data_ptr()

    def data_ptr(self) -> int:
        return self._address


def worked(feed, device, models, order):
    """Work on bands, each time on the one before once more; the bytes are compared when all has run."""
    read, before = [], []
    for band, following in order:
        feed.begin(band, following)
        read += [(key, device.read(place)) for key, place in before]
        before = []
        for key in [(name, info.name) for info in band for name in NAMES]:
            tensor = feed.get(*key)
            assert (tensor.dtype, tensor.shape) == (DTYPES[key[0]], models.weights[key].shape)
            read.append((key, device.read(tensor)))
            before.append((key, Address(tensor)))
            del tensor  # which would hold the memory of its whole band
    device.drain()
    return [(key, found == [models.bytes(*key)]) for key, found in read]


@pytest.mark.parametrize("size", [1, 3, 13])
@pytest.mark.parametrize("seed", [None, 1, 2, 3])
@pytest.mark.parametrize(("slots", "threads"), [(1, 1), (3, 3)])
def test_in_any_order_of_work_a_band_and_the_one_before_hold_what_the_files_hold(size, seed, slots, threads):
    device, models = MadeUpDevice(seed), Models()
    feed, _ = feed_to(device, models, slots, threads)
    bands = bands_of(models.tensors, size)
    right = worked(feed, device, models, list(zip(bands, [*bands[1:], ()], strict=True)))
    assert len(right) == sum(len(NAMES) * len(band) for band in bands + bands[:-1])
    assert all(same for _, same in right), right
    filled = [key for key, weight in models.weights.items() if weight.numel()]
    assert sorted(models.asked) == sorted(filled), "each is read once, in however many pieces; an empty one never"


@pytest.mark.parametrize("seed", [None, 5, 6, 7])
def test_a_band_may_be_begun_again_and_another_come_than_was_announced(seed):
    device, models = MadeUpDevice(seed), Models([(64, 5)] * 8)
    feed, _ = feed_to(device, models)
    bands = [*bands_of(models.tensors, 2), ()]
    order = [(0, 1), (0, 2), (2, 0), (3, -1), (1, 2), (2, 1), (2, 2), (0, -1), (1, 2), (-1, 0), (3, 1), (2, 0)]
    right = worked(feed, device, models, [(bands[here], bands[there]) for here, there in order])
    assert all(same for _, same in right), right


def test_memory_on_the_device_is_that_of_three_bands_however_many_there_are():
    device, models = MadeUpDevice(4), Models([(64, 5)] * 40)
    feed, _ = feed_to(device, models)
    bands = bands_of(models.tensors, 2)
    for i, band in enumerate(bands):
        feed.begin(band, *bands[i + 1 : i + 2])
        for info in band:
            for name in NAMES:
                device.read(feed.get(name, info.name))
    assert len(device.blocks) == 3


def test_many_small_tensors_are_one_copy():
    device, models = MadeUpDevice(), Models([(2,)] * 200)
    staging = Staging(device, 2, 1 << 20)
    feed = Feed(models, "cpu", NAMES, staging=staging, resident=Resident(0))
    feed.begin(models.tensors)
    found = device.read(feed.get("code", "t199"))
    device.drain()
    assert (device.sends, found) == (1, [models.bytes("code", "t199")])


def test_what_nobody_announced_is_sent_when_it_is_asked_for():
    device, models = MadeUpDevice(), Models()
    feed, _ = feed_to(device, models)
    read = [(key, device.read(feed.get(*key))) for key in [("math", "t7")]]
    feed.begin(models.tensors[:1])
    read += [(key, device.read(feed.get(*key))) for key in [("code", "t10"), ("math", "t0"), ("base", "t1")]]
    device.drain()
    assert all(found == [models.bytes(*key)] for key, found in read)


def test_what_is_asked_for_again_lasts_from_then_on():
    device, models = MadeUpDevice(), Models([(64, 5)] * 8)
    feed, _ = feed_to(device, models)
    feed.begin(models.tensors[:2])
    for info in models.tensors[:2]:
        for name in NAMES:
            feed.get(name, info.name)
    feed.begin(models.tensors[2:4], models.tensors[4:6])
    place = Address(feed.get("math", "t1"))
    feed.begin(models.tensors[4:6], models.tensors[6:])
    found = device.read(place)
    device.drain()
    assert found == [models.bytes("math", "t1")]


def test_what_is_still_there_is_not_sent_again_when_it_is_announced():
    device, models = MadeUpDevice(), Models([(64, 5)] * 4)
    feed, _ = feed_to(device, models)
    bands = bands_of(models.tensors, 2)
    order = [(bands[0], bands[1]), (bands[1], bands[0]), (bands[0], bands[1]), (bands[1], ())]
    assert all(same for _, same in worked(feed, device, models, order))
    assert len(models.asked) == len(models.weights)


def test_what_fails_on_its_way_fails_where_it_is_needed_and_nothing_else_does(monkeypatch):
    device, models = MadeUpDevice(), Models()
    feed, staging = feed_to(device, models)
    load = models.load

    def failing(name, tensor):
        if (name, tensor) == ("math", "t10"):
            raise OSError("the disk is gone")
        return load(name, tensor)

    monkeypatch.setattr(models, "load", failing)
    feed.begin(models.tensors)
    for _ in range(2):
        with pytest.raises(OSError, match="the disk is gone"):
            feed.get("math", "t10")
    found = device.read(feed.get("code", "t4"))
    assert slots_back(staging)
    device.drain()
    assert found == [models.bytes("code", "t4")]


def test_a_tensor_that_is_not_what_was_opened_is_refused():
    models = Models()
    feed, _ = feed_to(MadeUpDevice(), models)
    models.weights["math", "t4"] = torch.zeros(9, 7, dtype=torch.bfloat16)
    feed.begin(models.tensors[4:5])
    with pytest.raises(RuntimeError, match=r"math: t4: expected a tensor of torch.bfloat16 \(7, 9\), .*got .*\(9, 7\)"):
        feed.get("math", "t4")


def test_a_link_that_breaks_is_told_where_a_tensor_is_needed():
    class Broken(MadeUpDevice):
        def enter(self):
            raise RuntimeError("no such device")

    models = Models()
    feed, _ = feed_to(Broken(), models)
    for info in models.tensors[2:5]:
        feed.begin([info])
        with pytest.raises(RuntimeError, match="no such device"):
            feed.get("math", info.name)


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot send itself Ctrl-C there")
def test_ctrl_c_while_waiting_leaves_nothing_on_its_way(monkeypatch):
    device, models = MadeUpDevice(6), Models()
    feed, staging = feed_to(device, models)
    load, go_on = models.load, threading.Event()

    def slow(name, tensor):
        assert go_on.wait(20)
        return load(name, tensor)

    monkeypatch.setattr(models, "load", slow)

    feed.begin(models.tensors[:8], models.tensors[8:])
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # shells ignore it for what runs in the background
    try:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            feed.get("math", "t7")
        del feed
        gc.collect()
    finally:
        signal.signal(signal.SIGINT, before)
        go_on.set()
    assert slots_back(staging)
    assert device.sends == 0, "what was not asked for yet is not asked for any more"
    assert "t10" not in {tensor for _, tensor in models.asked}
    assert device.lent == 0


def test_memory_of_a_feed_that_is_gone_is_not_given_out_while_copies_into_it_run():
    device, models = MadeUpDevice(), Models([(SLOT,)])
    feed, staging = feed_to(device, models)
    feed.begin(models.tensors)
    feed.get("base", "t0")  # asked for, and not over: nothing has run; the other experts' nobody waits for
    assert slots_back(staging)
    assert device.sends == 8
    del feed
    gc.collect()
    later = device.empty(len(device.blocks[0]))
    device.work(lambda: later.fill_(1))
    device.drain()
    assert bool((later == 1).all())
    assert len(device.blocks) == 2


def test_what_has_to_be_computed_is_computed_once_and_one_at_a_time(monkeypatch):
    device, models = MadeUpDevice(1), Models(stored=False)
    feed, _ = feed_to(device, models)
    load, at_once = models.load, threading.Lock()

    def computing(name, tensor):
        assert at_once.acquire(blocking=False), "two at a time"
        time.sleep(0.001)
        at_once.release()
        return load(name, tensor).clone()

    monkeypatch.setattr(models, "load", computing)
    feed.begin(models.tensors)
    read = [(key, device.read(feed.get(*key))) for key in models.weights]
    device.drain()
    assert all(found == [models.bytes(*key)] for key, found in read)
    assert len(models.asked) == len(set(models.asked))


def test_what_stays_is_not_sent_again_and_a_look_at_it_is_no_copy():
    device, models = MadeUpDevice(prompt=True), Models()
    feed, _ = feed_to(device, models, resident=1 << 20)
    for _ in range(2):
        for i, info in enumerate(models.tensors):
            feed.begin([info], models.tensors[i + 1 : i + 2])
            for name in NAMES:
                tensor = feed.get(name, info.name)
                assert torch.equal(tensor, models.weights[name, info.name])
                assert feed.get(name, info.name) is tensor
        assert feed.complete
    assert len(models.asked) == len(set(models.asked))
    sends = device.sends
    again = Feed(models, "cpu", NAMES, staging=feed._staging, resident=feed._resident)
    again.begin(models.tensors)
    assert again.get("math", "t10") is feed.get("math", "t10")
    assert device.sends == sends


def test_a_tensor_that_has_to_go_is_valid_until_the_band_after_the_next():
    device, models = MadeUpDevice(prompt=True), Models([(64,)] * 6)
    resident = Resident(models.weights["base", "t0"].nbytes * 2)
    staging = Staging(device, 3, SLOT, 3)
    rare = Feed(models, "cpu", ["base"], staging=staging, resident=resident)
    rare.begin(models.tensors[:1])
    rare.get("base", "t0")
    gone = [resident.tensors["base"]["t0"].data_ptr()]
    for _ in range(10):
        often = Feed(models, "cpu", ["math"], staging=staging, resident=resident)
    often.begin(models.tensors)
    for info in models.tensors[:5]:
        often.get("math", info.name)
    assert "t0" not in resident.tensors["base"]
    often.begin(models.tensors[5:])
    assert [tensor.data_ptr() for tensor in often._leaving] == gone
    often.begin(())
    assert not often._leaving


def test_without_room_to_send_ahead_each_band_is_sent_when_it_is_its_turn(caplog):
    models = Models([(256,)] * 6)
    band = sum(256 * dtype.itemsize for dtype in DTYPES.values())
    device = MadeUpDevice(room=2 * band)
    feed, _ = feed_to(device, models)
    read = []
    for i, info in enumerate(models.tensors):
        feed.begin([info], models.tensors[i + 1 : i + 2])
        read += [((name, info.name), device.read(feed.get(name, info.name))) for name in NAMES]
    device.drain()
    assert all(found == [models.bytes(*key)] for key, found in read)
    assert [record.message for record in caplog.records].count(caplog.records[0].message) == 1
    assert "too short to send experts ahead" in caplog.text


def test_without_room_for_a_band_what_stays_gives_way_but_not_what_is_worked_on():
    models = Models([(256,)] * 4)
    band = sum(256 * dtype.itemsize for dtype in DTYPES.values())
    device = MadeUpDevice(room=4 * band, prompt=True)
    feed, _ = feed_to(device, models, resident=1 << 20)
    for info in models.tensors[:3]:
        feed.begin([info])
        for name in NAMES:
            feed.get(name, info.name)
    device.room = band  # taken by the band before
    given_back = Resident.give_back

    def freeing(self, nbytes, but=()):
        freed = given_back(self, nbytes, but)
        device.room += freed
        return freed

    feed._resident.give_back = freeing.__get__(feed._resident)
    feed.begin(models.tensors[3:])
    assert torch.equal(feed.get("math", "t3"), models.weights["math", "t3"])
    assert {tensor for held in feed._resident.tensors.values() for tensor in held} >= {"t2"}
    assert feed._resident.budget < 1 << 20
    device.room = 0
    with pytest.raises(torch.cuda.OutOfMemoryError):
        feed.begin(models.tensors[:1])


@pytest.mark.parametrize("ahead", [None, False])
def test_on_the_cpu_nothing_is_sent(tiny, ahead):
    feed = Feed(tiny, "cpu", ("math",), ahead)
    feed.begin(tiny.tensors[:2], tiny.tensors[2:])
    info = tiny.tensors[1]
    assert not feed.complete
    assert feed.get("math", info.name) is tiny.load("math", info.name)


def test_on_a_device_without_streams_a_tensor_is_sent_when_it_is_asked_for(tiny):
    pool = ExpertPool(tiny.checkpoints)
    feed = Feed(pool, "meta", ("math",))
    feed.begin(pool.tensors[:2], pool.tensors[2:])
    assert feed.get("math", pool.tensors[0].name).device.type == "meta"


def test_slots_that_nothing_fits_into_are_refused():
    for slots, size in [(0, ALIGNED), (1, 0), (2, ALIGNED + 1)]:
        with pytest.raises(ValueError, match="slots of a multiple"):
            Staging(NoStreams(), slots, size)


@pytest.fixture
def with_adapter(tiny, tiny_folders, tmp_path) -> ExpertPool:
    """The experts, and a LoRA adapter of two matrices: what it changes is computed by each load."""
    import json

    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["q_proj"], "bias": "none"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    low = {f"{prefix}.lora_A.weight": torch.randn(2, 16), f"{prefix}.lora_B.weight": torch.randn(16, 2)}
    save_file(low, tmp_path / "adapter_model.safetensors")
    experts = {name: str(folder) for name, folder in tiny_folders.items() if name != "base"}
    return ExpertPool.open(str(tiny_folders["base"]), {**experts, "adapter": str(tmp_path)})


def test_sent_ahead_or_not_the_weights_are_the_same(with_adapter, tiny_model, monkeypatch):
    pool = with_adapter
    merged = Merge("ties", (Expert("math"), Expert("adapter")), (0.6, 0.7), {"density": 0.5})
    recipe = Cast(Prune(Merge("zero_aware", (merged, Expert("law")), (0.5, 0.5), {"scale": 1.2}), 0.3), "float32")
    materialize(recipe, pool, tiny_model)
    plainly = weights_of(pool, tiny_model)
    for resident in (0, 1 << 13, 1 << 30):
        kept = Resident(resident)
        staging = Staging(NoStreams(), 3, SLOT, 3)
        sent = lambda pool, device, names, kept=kept, staging=staging: Feed(  # noqa: E731
            pool, device, names, staging=staging, resident=kept
        )
        monkeypatch.setattr(plan, "Feed", sent)
        assert set(plan.Plan(recipe, pool, "cpu", None)._feed._names) == {"math", "adapter", "law", "base"}
        for _ in range(2):
            materialize(recipe, pool, tiny_model)
            assert all(torch.equal(plainly[name], weight) for name, weight in weights_of(pool, tiny_model).items())
        monkeypatch.undo()


@pytest.mark.parametrize("resident", [0, 1 << 30])
def test_what_an_adapter_leaves_as_it_is_is_sent_and_kept_once(with_adapter, resident, monkeypatch):
    asked = []
    load = ExpertPool.load
    monkeypatch.setattr(ExpertPool, "load", lambda pool, *key: asked.append(key) or load(pool, *key))
    device, kept = MadeUpDevice(prompt=True), Resident(resident)
    staging = Staging(device, 3, SLOT, 3)
    for _ in range(2):
        feed = Feed(with_adapter, "cpu", ["adapter", "math"], staging=staging, resident=kept)
        feed.begin(with_adapter.tensors)
        for name in ("adapter", "math", "base"):
            for info in with_adapter.tensors:
                assert torch.equal(feed.get(name, info.name), load(with_adapter, name, info.name))
        feed.begin(())
    changed = [
        ("adapter", info.name) for info in with_adapter.tensors if info.name.endswith("0.self_attn.q_proj.weight")
    ]
    whole = [(name, info.name) for name in ("base", "math") for info in with_adapter.tensors]
    assert sorted(set(asked)) == sorted(changed + whole)
    assert feed.complete == bool(resident)
    if resident:
        assert len(asked) == len(set(asked))
        feed.begin(with_adapter.tensors)
        assert not feed._on_its_way


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("resident", [0, 1 << 21, 1 << 30])
def test_on_a_gpu_what_is_worked_on_is_what_the_files_hold(resident):
    """Bands of many megabytes through a small ring, with work that is slower than the copies and work that is not."""
    from sae_moo.materialization.link import Streams, located

    models = Models([(1 << 20,), (3,), (0,), (1000, 1000), (5,)] * 12)
    place = located("cuda")
    staging = Staging(Streams(place), 4, 1 << 20, 4)
    kept = Resident(resident)
    bands = bands_of(models.tensors, 3)
    expected = {key: weight.to(place) for key, weight in models.weights.items()}
    for slow in (False, True):
        feed = Feed(models, place, NAMES, staging=staging, resident=kept)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        sums = []
        for i, band in enumerate(bands):
            feed.begin(band, *bands[i + 1 : i + 2])
            for info in band:
                for name in NAMES:
                    if slow:
                        torch.cuda._sleep(100_000)
                    wrong = (feed.get(name, info.name) != expected[name, info.name]).sum()
                    sums.append(wrong)
        assert int(torch.stack(sums).sum()) == 0
        largest = max(sum(info.numel for info in band) for band in bands) * 8
        assert torch.cuda.max_memory_allocated() - before < 5 * largest + resident + (1 << 22)
