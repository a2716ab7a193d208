from __future__ import annotations

import pytest
import torch

from sae_moo.ops.merge import METHODS, Place


def place(method: str, base=None, prunable=True, **params) -> Place:
    return Place("w", prunable, base, {**METHODS[method].defaults, **params})


def tensors(count: int, size=(3, 5)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(1,), (2,), (64,), (3, 5)])
def test_contract_of_every_kernel(method, size):
    a, b, base = tensors(3, size)
    copies = [t.clone() for t in (a, b, base)]
    merged = METHODS[method].kernel([a, b], (0.3, 0.7), place(method, base))
    assert merged.shape == a.shape
    assert merged.dtype == torch.float32
    assert merged.data_ptr() not in (a.data_ptr(), b.data_ptr(), base.data_ptr())
    assert all(torch.equal(t, c) for t, c in zip((a, b, base), copies, strict=True)), "inputs are never changed"
    again = METHODS[method].kernel([a, b], (0.3, 0.7), place(method, base))
    assert torch.equal(merged, again)


@pytest.mark.parametrize("method", METHODS)
def test_equal_inputs_with_weights_that_sum_to_one_give_that_input(method):
    a, base = tensors(2)
    merged = METHODS[method].kernel([a, a], (0.25, 0.75), place(method, base))
    torch.testing.assert_close(merged, a)


@pytest.mark.parametrize("method", METHODS)
def test_a_weight_of_one_alone_gives_that_input(method):
    a, b, base = tensors(3)
    torch.testing.assert_close(METHODS[method].kernel([a, b], (1.0, 0.0), place(method, base)), a)


@pytest.mark.parametrize("method", METHODS)
def test_all_zero_inputs_stay_zero(method):
    zero = torch.zeros(4)
    assert not METHODS[method].kernel([zero, zero], (0.5, 0.5), place(method, zero)).any()


def test_linear_normalises_unless_told_not_to():
    a, b = tensors(2)
    kernel = METHODS["linear"].kernel
    torch.testing.assert_close(kernel([a, b], (1.0, 3.0), place("linear")), a * 0.25 + b * 0.75)
    torch.testing.assert_close(kernel([a, b], (1.0, 3.0), place("linear", normalize=False)), a + 3 * b)


def test_task_arithmetic_adds_scaled_task_vectors():
    a, b, base = tensors(3)
    merged = METHODS["task_arithmetic"].kernel([a, b], (0.5, 2.0), place("task_arithmetic", base, scale=0.5))
    torch.testing.assert_close(merged, base + 0.25 * (a - base) + 1.0 * (b - base))


def test_slerp_keeps_the_norm_between_unit_vectors_and_has_its_ends():
    a, b = (t / t.norm() for t in tensors(2, (64,)))
    kernel = METHODS["slerp"].kernel
    for t in (0.0, 0.3, 1.0):
        assert kernel([a, b], (1 - t, t), place("slerp")).norm().item() == pytest.approx(1.0, abs=1e-6)
    torch.testing.assert_close(kernel([a, b], (0.0, 1.0), place("slerp")), b)
    right = kernel([torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])], (0.5, 0.5), place("slerp"))
    torch.testing.assert_close(right, torch.full((2,), 0.5**0.5))


@pytest.mark.parametrize("b", [torch.tensor([2.0, 4.0]), torch.tensor([-1.0, -2.0]), torch.zeros(2)])
def test_slerp_of_parallel_or_zero_tensors_is_linear(b):
    a = torch.tensor([1.0, 2.0])
    merged = METHODS["slerp"].kernel([a, b], (0.25, 0.75), place("slerp"))
    torch.testing.assert_close(merged, 0.25 * a + 0.75 * b)


def test_zero_aware_takes_the_survivor_undiluted():
    a = torch.tensor([1.0, 0.0, 3.0, 0.0])
    b = torch.tensor([5.0, 6.0, 0.0, 0.0])
    merged = METHODS["zero_aware"].kernel([a, b], (0.25, 0.75), place("zero_aware"))
    assert merged.tolist() == [4.0, 6.0, 3.0, 0.0]


def test_zero_aware_outside_prunable_weights_is_plain():
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([5.0, 6.0])
    merged = METHODS["zero_aware"].kernel([a, b], (0.25, 0.75), place("zero_aware", prunable=False))
    assert merged.tolist() == [4.0, 4.5]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_zero_aware_of_three_renormalises_over_those_present(order):
    inputs = [
        torch.tensor([1.0, 0.0, 0.0, 2.0]),
        torch.tensor([3.0, 4.0, 0.0, 0.0]),
        torch.tensor([5.0, 0.0, 0.0, 6.0]),
    ]
    weights = (0.2, 0.3, 0.5)
    merged = METHODS["zero_aware"].kernel([inputs[i] for i in order], [weights[i] for i in order], place("zero_aware"))
    torch.testing.assert_close(merged, torch.tensor([3.6, 4.0, 0.0, (0.4 + 3.0) / 0.7]))


def test_zero_aware_of_three_agrees_with_two_when_one_has_no_weight():
    a, b, c = tensors(3)
    a[a.abs() < 0.5], b[b.abs() < 0.5] = 0, 0
    two = METHODS["zero_aware"].kernel([a, b], (0.4, 0.6), place("zero_aware"))
    three = METHODS["zero_aware"].kernel([a, b, torch.zeros_like(c)], (0.4, 0.6, 0.0), place("zero_aware"))
    torch.testing.assert_close(two, three)


@pytest.mark.parametrize("weights", [(1.0, 0.0), (1.0, 0.0, 0.0)])
def test_zero_aware_with_weight_zero_still_fills_gaps(weights):
    inputs = [torch.tensor([1.0, 0.0]), torch.tensor([3.0, 4.0]), torch.tensor([3.0, 8.0])][: len(weights)]
    merged = METHODS["zero_aware"].kernel(inputs, weights, place("zero_aware"))
    assert merged.tolist() == [1.0, 4.0 if len(weights) == 2 else 6.0]


@pytest.mark.parametrize("scale", [0.5, 1.3])
@pytest.mark.parametrize("count", [2, 3])
def test_scaling_brings_no_zero_back(scale, count):
    base, *inputs = tensors(count + 1, (200,))
    for tensor in inputs:
        tensor[tensor.abs() < 0.8] = 0
    merged = METHODS["zero_aware"].kernel(inputs, [1 / count] * count, place("zero_aware", base, scale=scale))
    gone = torch.stack([tensor == 0 for tensor in inputs]).all(dim=0)
    assert gone.sum() > 20
    assert torch.equal(merged == 0, gone)
    alone = (inputs[0] != 0) & torch.stack([tensor == 0 for tensor in inputs[1:]]).all(dim=0)
    torch.testing.assert_close(merged[alone], (base + scale * (inputs[0] - base))[alone])
