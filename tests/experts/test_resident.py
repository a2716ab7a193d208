from __future__ import annotations

import sys

import pytest
import torch

from sae_moo.experts.pool import ExpertPool
from sae_moo.experts.resident import MEMORY, Resident, budget_of


def kept(resident: Resident) -> set[str]:
    return {f"{name} {tensor}" for name, tensors in resident.tensors.items() for tensor in tensors}


def keep(resident: Resident, name: str, tensor: str, numel: int = 10) -> torch.Tensor:
    return resident.keep(name, tensor, torch.ones(numel, dtype=torch.uint8), own=True)


def used(resident: Resident, name: str, times: int) -> None:
    for _ in range(times):
        resident.count([name])


def test_first_come_first_kept_while_the_budget_lasts():
    resident = Resident(25)
    first = keep(resident, "a", "x")
    keep(resident, "b", "x")
    assert keep(resident, "c", "x") is not None
    keep(resident, "c", "y", 5)
    assert kept(resident) == {"a x", "b x", "c y"}
    assert (resident.bytes, resident.get("a", "x")) == (25, first)
    assert resident.get("c", "x") is None
    assert resident.get("d", "x") is None
    assert keep(resident, "a", "x") is first, "kept twice, it is there once"
    assert resident.bytes == 25


def test_what_is_kept_of_memory_that_is_used_again_is_a_copy():
    resident, sent = Resident(100), torch.zeros(8)
    there = resident.keep("a", "x", sent, own=False)
    sent.fill_(1)
    assert there.sum() == 0
    assert resident.get("a", "x") is there
    assert resident.keep("a", "y", torch.zeros(30), own=False).sum() == 0
    assert kept(resident) == {"a x"}


@pytest.mark.parametrize(("rare", "often", "moves"), [(0, 7, False), (0, 8, True), (40, 49, False), (40, 50, True)])
def test_a_tensor_takes_the_place_of_one_that_is_used_clearly_less(rare, often, moves):
    resident = Resident(30)
    for tensor in "xyz":
        keep(resident, "rare", tensor)
    used(resident, "rare", rare)
    used(resident, "often", often)
    keep(resident, "often", "x", 15)
    assert kept(resident) == ({"rare x", "often x"} if moves else {"rare x", "rare y", "rare z"})
    assert [gone.numel() for gone in resident.left()] == [10] * (2 * moves)
    assert not resident.left()


def test_the_least_used_go_first_and_nothing_goes_for_what_does_not_fit():
    resident = Resident(30)
    for name, uses in [("some", 10), ("none", 0), ("many", 90)]:
        keep(resident, name, "x")
        used(resident, name, uses)
    used(resident, "base", 50)
    assert keep(resident, "base", "large", 25).numel() == 25
    assert kept(resident) == {"some x", "none x", "many x"}
    keep(resident, "base", "x")
    assert kept(resident) == {"some x", "base x", "many x"}
    keep(resident, "base", "y")
    assert kept(resident) == {"base y", "base x", "many x"}


def test_experts_that_are_used_alike_do_not_take_turns():
    resident = Resident(10)
    generator = torch.Generator().manual_seed(0)
    moves = 0
    for _ in range(3000):
        name = "ab"[int(torch.randint(2, (1,), generator=generator))]
        resident.count([name])
        keep(resident, name, "x")
        moves += len(resident.left())
    assert moves <= 2


def test_what_is_used_now_counts_more_than_what_was_used_long_ago():
    resident = Resident(10)
    keep(resident, "old", "x")
    used(resident, "old", MEMORY)
    used(resident, "new", MEMORY)
    keep(resident, "new", "x")
    assert kept(resident) == {"new x"}


def test_what_else_is_kept_counts_in_the_budget_and_tensors_make_room_for_a_quarter_of_it():
    resident = Resident(100)
    assert resident.reserve(60)
    keep(resident, "a", "x", 30)
    keep(resident, "a", "y", 20)
    assert kept(resident) == {"a x"}
    assert not resident.reserve(20), "above a quarter, tensors stay"
    assert resident.reserve(10)
    resident.release(70)
    for tensor in "yzvw":
        keep(resident, "b", tensor, 17)
    used(resident, "b", 1)
    assert resident.reserve(25)
    assert kept(resident) == {"b y", "b z", "b v", "b w"}
    assert resident.bytes + resident.reserved <= 100
    assert not resident.reserve(101)
    resident.release(25)
    assert resident.reserved == 0


def test_a_smaller_budget_lets_tensors_go_and_a_larger_one_takes_more():
    resident = Resident(40)
    for tensor in "xyz":
        keep(resident, "a", tensor)
    resident.budget = 15
    assert kept(resident) == {"a x"}
    resident.budget = 20
    keep(resident, "a", "y")
    assert kept(resident) == {"a x", "a y"}


def test_room_that_is_given_back_is_not_taken_again():
    resident = Resident(40)
    for tensor in "xyz":
        keep(resident, "a", tensor)
    assert resident.give_back(15, but={"z"}) == 20
    assert (kept(resident), resident.budget, resident.left()) == ({"a z"}, 10, [])
    keep(resident, "a", "x")
    assert kept(resident) == {"a z"}
    assert resident.give_back(100, but={"z"}) == 0


def test_too_little_memory_is_no_failure_and_told_once(caplog, monkeypatch):
    from sae_moo.experts import resident as module

    module._tell_full.cache_clear()
    resident = Resident(100)
    keep(resident, "a", "x")

    def full(_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(torch.Tensor, "clone", full)
    sent = torch.ones(4)
    for tensor in "yz":
        assert resident.keep("a", tensor, sent, own=False) is sent
    assert (kept(resident), resident.budget, len(caplog.records)) == ({"a x"}, 10, 1)

    def broken(_):
        raise RuntimeError("CUDA error: device-side assert triggered")

    resident.budget = 100
    monkeypatch.setattr(torch.Tensor, "clone", broken)
    with pytest.raises(RuntimeError, match="device-side assert"):
        resident.keep("a", "y", sent, own=False)


def test_half_of_what_is_free_is_the_budget_of_a_cuda_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 5000))
    assert budget_of(torch.device("cuda", 0)) == 500
    assert budget_of(torch.device("mps")) == 0
    assert budget_of(torch.device("cpu")) == sys.maxsize


def test_a_pool_has_one_budget_for_each_device(tiny, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 5000))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    pool = ExpertPool(tiny.checkpoints)
    assert pool.resident("cuda").budget == 500
    assert pool.resident("cuda") is pool.resident(torch.device("cuda", 0))
    assert pool.resident("cuda:1") is not pool.resident("cuda")
    pool.resident_bytes = 70
    assert [pool.resident(device).budget for device in ("cuda", "cuda:1", "meta")] == [70] * 3
    assert pool.resident("cpu").reserve(1 << 40)
    pool.resident_bytes = None
    assert pool.resident("cuda").budget == 500
