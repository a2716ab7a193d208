from __future__ import annotations

import pytest
import torch
from elsewhere import DEVICE, Elsewhere

from sae_moo.errors import WeightsError
from sae_moo.materialization.ops import fused
from sae_moo.materialization.ops.measure import WHOLE, distance, l1_norm, magnitudes, numbers_of
from sae_moo.materialization.ops.prune import target_count
from sae_moo.materialization.ops.random import Draws, threshold
from sae_moo.materialization.ops.select import NOTHING, compact, from_bits, lowest
from sae_moo.materialization.ops.write import write_pruned
from sae_moo.testing import experts

SIZES = [1, 2, 3, 64, 1000, 70_000]


@pytest.fixture(params=["compiled", "plain"], autouse=True)
def path(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setattr(fused, "available", lambda: False)
    else:
        pytest.importorskip("numba", reason="numba is not installed: the plain path is the only one")
        monkeypatch.setattr(fused, "GRAIN", 1 << 14)


def weights(size: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(size)).to(dtype)


def prune(tensor: torch.Tensor, count: int) -> torch.Tensor:
    out = torch.full_like(tensor, 7.0)
    zeros = write_pruned(tensor, lowest(magnitudes(tensor, None), count), out)
    assert zeros == int((out == 0).sum())
    return out


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.75, 0.999, 1.0])
def test_the_count_is_exact_and_the_smallest_go(size, dtype, sparsity):
    tensor = weights(size, dtype)
    tensor[tensor == 0] = 1
    count = target_count(sparsity, size)
    pruned = prune(tensor, count)
    gone = pruned == 0
    assert int(gone.sum()) == count == round(sparsity * size)
    assert torch.equal(pruned[~gone], tensor[~gone])
    wanted = torch.zeros(size, dtype=torch.bool)
    wanted[tensor.float().abs().argsort(stable=True)[:count]] = True
    assert torch.equal(gone, wanted), "equal ones go in order of position"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_equal_magnitudes_go_in_order_of_position(size, sign):
    count = target_count(0.5, size)
    pruned = prune(torch.full((size,), 0.5 * sign), count)
    assert not pruned[:count].any()
    assert pruned[count:].all()


def test_zeros_count_and_nothing_more_goes():
    tensor = torch.tensor([0.0, 3.0, -0.0, 1.0, 2.0])
    assert prune(tensor, 2).tolist() == [0.0, 3.0, 0.0, 1.0, 2.0]
    assert prune(tensor, 1).tolist() == tensor.tolist()
    assert prune(tensor, 3).tolist() == [0.0, 3.0, 0.0, 0.0, 2.0]
    assert prune(torch.zeros(4), 2).tolist() == [0.0] * 4


@pytest.mark.parametrize("count", [-1, 5])
def test_counts_out_of_range(count):
    with pytest.raises(ValueError, match="expected 0 to 4"):
        lowest(magnitudes(torch.ones(4), None), count)


def test_nothing_below_makes_a_copy():
    tensor = weights(1000)
    out = torch.empty_like(tensor)
    assert write_pruned(tensor, NOTHING, out) == 0
    assert torch.equal(out, tensor)


@pytest.mark.parametrize("size", SIZES)
def test_a_histogram_answers_every_count(size):
    tensor = torch.cat([weights(size), torch.zeros(size // 3), torch.full((size // 2,), 0.25)])
    scores = magnitudes(tensor, None)
    kept = compact(scores.high())
    assert len(kept.counts) < 32768
    assert int(kept.whole().sum()) == len(tensor)
    ranked = tensor.abs().sort().values
    for k in {1, len(tensor) // 2 + 1, len(tensor)}:
        cut = lowest(scores, k, kept.whole())
        assert cut == lowest(scores, k)
        assert cut.value == ranked[k - 1].item()


def test_bits_and_values():
    assert from_bits(0x3F80, 0) == 1.0
    assert from_bits(0, 1) == 2.0**-149


def test_random_numbers_are_a_function_of_their_place():
    stream = Draws.of(3, "w", "x")
    whole = stream.draw(0, 100_000)
    assert torch.equal(whole[777:2000], stream.draw(777, 1223))
    assert whole.min() >= 0
    assert whole.max() < 2**32
    assert not torch.equal(whole, Draws.of(4, "w", "x").draw(0, 100_000))
    assert not torch.equal(whole, Draws.of(3, "v", "x").draw(0, 100_000))
    assert stream.draw(2**32 + 5, 3).tolist() != stream.draw(5, 3).tolist(), "the upper half of a position counts"


@pytest.mark.parametrize("seed", range(5))
def test_random_numbers_are_even_and_independent(seed):
    count = 1 << 18
    a, b = (Draws.of(seed, "w", name).draw(0, count) for name in "ab")
    for bit in range(32):
        share = ((a >> bit) & 1).float().mean().item()
        assert abs(share - 0.5) < 5 * 0.5 / count**0.5
    joint = (((a >> 31) & 1) ^ ((b >> 31) & 1)).float().mean().item()
    assert abs(joint - 0.5) < 5 * 0.5 / count**0.5
    neighbours = ((a[1:] >> 31) ^ (a[:-1] >> 31)).float().mean().item()
    assert abs(neighbours - 0.5) < 5 * 0.5 / count**0.5
    buckets = torch.bincount(a >> 22, minlength=1024).double()
    assert ((buckets - count / 1024) ** 2 / (count / 1024)).sum().item() < 1024 + 5 * (2 * 1024) ** 0.5


@pytest.mark.parametrize(("density", "dropped"), [(1.0, 0), (0.0, 2**32), (0.75, 2**30)])
def test_thresholds(density, dropped):
    assert threshold(density) == dropped


def test_every_float16_is_widened_as_torch_does():
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    out = torch.empty(len(halves))
    write_pruned(halves, NOTHING, out)
    assert torch.equal(out.nan_to_num(nan=7.0), halves.float().nan_to_num(nan=7.0))
    assert torch.equal(out.isnan(), halves.isnan())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_is_never_pruned_away(dtype):
    tensor = weights(1000).to(dtype)
    tensor[::10] = torch.nan
    assert prune(tensor, 500)[::10].isnan().all()
    with pytest.raises(WeightsError, match="weights are NaN: no order among 1000 scores to take the 950 smallest of"):
        lowest(magnitudes(tensor, None), 950)


def test_an_interrupt_waits_for_the_threads_that_still_work(monkeypatch, path):
    """They write to addresses that the caller frees next."""
    import threading
    import time

    done, waits = threading.Event(), []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    waiting = fused.wait

    def interrupted(futures):
        waits.append(1)
        if len(waits) == 1:
            raise KeyboardInterrupt
        return waiting(futures)

    monkeypatch.setattr(fused, "wait", interrupted)

    def part(start: int, stop: int) -> None:
        if start:
            time.sleep(0.2)
            done.set()

    with pytest.raises(KeyboardInterrupt):
        fused._spread(part, 4 * fused.GRAIN)
    assert done.is_set()
    assert len(waits) == 2


def test_distances_elsewhere_are_fetched_once_and_are_those_of_the_cpu():
    base, *models = (tensor.flatten() for tensor in experts(3, (40, 33)))
    wanted = [distance(model, base) for model in models]
    assert wanted == [l1_norm(model, base, WHOLE, 1) for model in models]
    with Elsewhere() as elsewhere:
        ground, *there = (tensor.to(DEVICE) for tensor in (base, *models))
        assert numbers_of([distance(model, ground) for model in there]) == pytest.approx(wanted, rel=1e-13)
    assert elsewhere.waits.total() == 1
