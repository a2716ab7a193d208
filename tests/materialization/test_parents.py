"""Candidates' weights on a device that is made up, then on the host, then gone: always the bits that were put."""

from __future__ import annotations

import pytest
import torch
from made_up_device import MadeUpDevice
from stand_ins import weights_of

from sae_moo.materialization import parents
from sae_moo.materialization.into_model import materialize
from sae_moo.materialization.parents import ALIGNED, PART, SMALLEST, WeightCache
from sae_moo.recipe import Cast, Expert, Merge, Prune

SHAPES = {"a": (3, 5), "b": (0, 2), "c": (), "d": (700,), "e": (64, 64), "f": (1,)}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def weights(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    cast = {name: weight.to(DTYPES[i % 3]) for i, (name, weight) in enumerate(drawn.items())}
    cast["t"] = torch.randn(8, 6, generator=generator).T  # as a view into a fused parameter lies
    return cast


SIZE = sum(weight.nbytes for weight in weights(0).values())
TAKEN = sum(-(-weight.nbytes // ALIGNED) * ALIGNED for weight in weights(0).values())


def recipe(i: int) -> Cast:
    return Cast(Prune(Expert("a"), i / 100), "float32")


@pytest.fixture(params=[None, 1, 2])
def device(request, monkeypatch) -> MadeUpDevice:
    made_up = MadeUpDevice(request.param)
    monkeypatch.setattr(parents, "link_to", lambda _: made_up)
    copy = torch._foreach_copy_  # what the device is given runs when it likes
    monkeypatch.setattr(torch, "_foreach_copy_", lambda into, source: made_up.work(lambda: copy(into, source)))
    return made_up


def put(cache: WeightCache, i: int, device: MadeUpDevice | None = None) -> None:
    live = weights(i)
    cache.put(recipe(i), live.items(), SIZE)
    if device is not None:  # the next candidate is written over the live model

        def overwrite() -> None:
            for weight in live.values():
                weight.fill_(9)

        device.work(overwrite)


def holds(cache: WeightCache, i: int) -> bool:
    found = cache.get(recipe(i))
    return list(found) == list(weights(i)) and all(
        (found[name].dtype, found[name].shape) == (weight.dtype, weight.shape) and torch.equal(found[name], weight)
        for name, weight in weights(i).items()
    )


def on_device(cache: WeightCache) -> list[int]:
    return [i for i in range(20) if recipe(i) in cache and cache._held[recipe(i)].bytes_on_device]


def test_candidates_go_from_the_device_to_the_host_and_from_there_out(device):
    cache = WeightCache(4 * SIZE, device_bytes=2 * TAKEN)
    for i in range(3):
        put(cache, i, device)
    assert (on_device(cache), len(cache), cache.bytes) == ([1, 2], 3, 3 * SIZE)
    cache.get(recipe(1))
    put(cache, 3, device)
    assert on_device(cache) == [1, 3]
    assert cache.bytes_on_device == 2 * TAKEN
    put(cache, 4, device)
    assert (list(cache), on_device(cache)) == ([recipe(i) for i in (2, 1, 3, 4)], [3, 4])
    assert cache.bytes == 4 * SIZE
    device.drain()
    assert all(holds(cache, i) for i in (1, 2, 3, 4))
    assert on_device(cache) == [3, 4], "what is looked at stays where it is"


def test_what_is_asked_for_is_there_although_nothing_has_run_yet(device):
    cache = WeightCache(9 * SIZE, device_bytes=TAKEN)
    for i in range(4):
        put(cache, i)
    assert on_device(cache) == [3]
    assert all(holds(cache, i) for i in range(3)), "the host waits, as it does by itself for what is on a device"


def test_weights_that_were_given_stay_when_the_candidate_moves_or_goes(device):
    cache = WeightCache(2 * SIZE, device_bytes=TAKEN)
    put(cache, 0, device)
    given = cache.get(recipe(0))
    before = {name: device.read(weight) for name, weight in given.items()}
    for i in range(1, 5):
        put(cache, i, device)
    after = {name: device.read(weight) for name, weight in given.items()}
    device.drain()
    assert recipe(0) not in cache
    assert before == after
    assert all(torch.equal(given[name], weight) for name, weight in weights(0).items())


def test_a_candidate_that_the_device_has_no_room_for_is_held_on_the_host_before_it_is_written_over(device):
    cache = WeightCache(9 * SIZE, device_bytes=SIZE - 1)
    for i in range(3):
        put(cache, i, device)
    device.drain()
    assert on_device(cache) == []
    assert not device.blocks
    assert all(holds(cache, i) for i in range(3))


def test_a_quarter_of_what_is_free_is_taken(device):
    device.room = 4 * 3 * TAKEN + 3
    cache = WeightCache(9 * SIZE)
    for i in range(5):
        put(cache, i, device)
    assert cache.device_bytes == 3 * TAKEN
    assert on_device(cache) == [2, 3, 4]


def test_too_little_memory_on_the_device_is_no_failure_and_told_once(device, caplog, monkeypatch):
    parents._tell_full.cache_clear()
    monkeypatch.setattr(parents, "PART", 4 * ALIGNED)
    monkeypatch.setattr(parents, "SMALLEST", 4 * ALIGNED)
    device.room = TAKEN + TAKEN // 2
    cache = WeightCache(9 * SIZE, device_bytes=5 * TAKEN)
    for i in range(2):
        put(cache, i, device)
    assert TAKEN < cache.bytes_on_device == cache.device_bytes < 2 * TAKEN, "what fits stays there"
    put(cache, 2, device)
    device.drain()
    assert all(holds(cache, i) for i in range(3))
    assert [record.message for record in caplog.records] == [
        "the device's memory is full: no more candidates are held there, the host's memory holds them"
    ]

    def broken(*_):
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(device, "empty", broken)
    with pytest.raises(RuntimeError, match="device-side assert"):
        put(WeightCache(9 * SIZE, device_bytes=9 * TAKEN), 0)


def test_room_on_the_device_can_be_asked_back(device):
    cache = WeightCache(9 * SIZE, device_bytes=9 * TAKEN)
    for i in range(4):
        put(cache, i, device)
    assert cache.to_host(TAKEN + 1) == 2 * TAKEN
    assert on_device(cache) == [2, 3]
    assert cache.to_host(100 * TAKEN) == 2 * TAKEN
    assert cache.to_host(1) == 0
    device.drain()
    assert all(holds(cache, i) for i in range(4))


def test_a_candidate_is_copied_in_few_pieces_of_powers_of_two_bytes():
    shapes = [300, 1, 5000, 100, 20, 2000, 7000, 3, 0, 40]
    tensors = [(str(i), torch.empty(size << 10, dtype=torch.uint8)) for i, size in enumerate(shapes)]
    size = sum(weight.nbytes for _, weight in tensors)
    found = list(parents._parts(iter(tensors), size))
    assert [pair for part in found for pair in part] == tensors
    assert len(found) == 1
    assert PART % SMALLEST == 0
    many = [(str(i), torch.empty(90 << 20, dtype=torch.uint8, device="meta")) for i in range(167)]
    held = [sum(weight.nbytes for _, weight in part) for part in parents._parts(many, 167 * 90 << 20)]
    locked = [1 << (size - 1).bit_length() for size in held]
    assert max(held) <= PART
    assert sum(locked) < 1.15 * sum(held), "page-locked memory is rounded up by little"
    huge = [("h", torch.empty(3 * PART, dtype=torch.uint8, device="meta")), ("i", torch.empty(5, device="meta"))]
    assert [len(part) for part in parents._parts(huge, 3 * PART + 20)] == [1, 1]


def test_on_the_cpu_every_tensor_is_its_own_and_what_is_no_model_is_nothing():
    cache = WeightCache(9 * SIZE)
    put(cache, 0)
    assert holds(cache, 0)
    found = cache.get(recipe(0))
    assert {weight.untyped_storage().nbytes() for weight in found.values()} == {w.nbytes for w in weights(0).values()}
    assert (cache.bytes_on_device, cache.device_bytes, cache.to_host(1)) == (0, None, 0)
    cache.put(recipe(1), (), 0)
    assert dict(cache.get(recipe(1))) == {}


def test_bounds_below_nothing_are_refused():
    with pytest.raises(ValueError, match="max_bytes: expected 0 or more, got -1"):
        WeightCache(-1)
    with pytest.raises(ValueError, match="device_bytes: expected 0 or more, got -2"):
        WeightCache(0, -2)


@pytest.mark.parametrize("room", [0, 1, 20])
def test_children_of_held_parents_have_the_bits_they_have_without(tiny, tiny_model, monkeypatch, room):
    made_up = MadeUpDevice(prompt=True)
    monkeypatch.setattr(parents, "link_to", lambda _: made_up)
    size = sum(parameter.nbytes for parameter in tiny.parameters(tiny_model).values())
    cache = WeightCache(4 * size, device_bytes=room * (size + 40 * ALIGNED))
    parent = Cast(Merge("linear", (Expert("math"), Expert("code")), (0.3, 0.7)), "float32")
    for i in range(5):
        child = Cast(Prune(Merge("zero_aware", (parent, Expert("law")), (0.5, 0.5)), 0.1 + i / 20), "float32")
        materialize(child, tiny, tiny_model, cache)
        held = weights_of(tiny, tiny_model)
        made_up.drain()
        materialize(child, tiny, tiny_model)
        assert all(torch.equal(held[name], weight) for name, weight in weights_of(tiny, tiny_model).items())
        parent = child
    assert len(cache) == 4
    assert (cache.bytes_on_device > 0) == (room > 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("room", [0, 2, 20])
def test_on_a_gpu_what_was_put_is_held_while_it_is_written_over(room):
    live = {f"w{i}": torch.empty(1 << 20, dtype=DTYPES[i % 3], device="cuda") for i in range(30)}
    size = sum(weight.nbytes for weight in live.values())
    cache = WeightCache(6 * size, device_bytes=room * size)
    for i in range(9):
        for weight in live.values():
            weight.fill_(i)
        torch.cuda._sleep(1_000_000)
        cache.put(recipe(i), live.items(), size)
    held = [(int(node.input.sparsity * 100 + 0.5), cache.get(node)) for node in list(cache)]
    assert sorted(i for i, _ in held) == [3, 4, 5, 6, 7, 8]
    assert all(bool((weight == i).all()) for i, found in held for weight in found.values())
    places = [weight.device.type for _, found in held for weight in found.values()]
    assert places.count("cuda") == min(room, 6) * len(live)
