from __future__ import annotations

import numpy as np
import pytest
import torch

from sae_moo.ops.prune import (
    LOW_BINS,
    high_histogram,
    kth_smallest,
    low_histogram,
    magnitude,
    prune,
    target_count,
)

SIZES = [1, 2, 3, 64, 1000]


def weights(size: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(size)).to(dtype)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.75, 0.999])
def test_the_count_is_exact_and_the_smallest_go(size, dtype, sparsity):
    tensor = weights(size, dtype)
    count = target_count(sparsity, size)
    pruned = prune(tensor, magnitude(tensor), count)
    gone = pruned == 0
    assert int(gone.sum()) == count == round(sparsity * size)
    assert torch.equal(pruned[~gone], tensor[~gone])
    if 0 < count < size:
        assert tensor[gone].abs().max() <= tensor[~gone].abs().min()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_equal_magnitudes_go_in_order_of_position(size, sign):
    tensor = torch.full((size,), 0.5 * sign)
    count = target_count(0.5, size)
    assert (prune(tensor, magnitude(tensor), count) == 0).tolist() == [i < count for i in range(size)]


def test_zeros_count_and_nothing_more_goes():
    tensor = torch.tensor([0.0, 3.0, 0.0, 1.0, 2.0])
    assert prune(tensor, magnitude(tensor), 2).tolist() == [0.0, 3.0, 0.0, 1.0, 2.0]
    assert prune(tensor, magnitude(tensor), 1).tolist() == tensor.tolist()
    assert prune(tensor, magnitude(tensor), 3).tolist() == [0.0, 3.0, 0.0, 0.0, 2.0]
    empty = torch.zeros(4)
    assert prune(empty, magnitude(empty), 2).tolist() == [0.0] * 4


def test_the_input_stays_and_shape_is_kept():
    tensor = weights(6).reshape(2, 3)
    copy = tensor.clone()
    assert prune(tensor, magnitude(tensor), 0).data_ptr() != tensor.data_ptr()
    assert prune(tensor, magnitude(tensor), 4).shape == (2, 3)
    assert torch.equal(tensor, copy)


@pytest.mark.parametrize("count", [-1, 5])
def test_counts_out_of_range(count):
    with pytest.raises(ValueError, match="expected 0 to 4"):
        prune(torch.ones(4), torch.ones(4), count)


@pytest.mark.parametrize("size", SIZES)
def test_histograms_find_the_same_value_as_a_partition(size):
    scores = torch.cat([weights(size).abs(), torch.zeros(size // 3), torch.full((size // 2,), 0.25)])
    high = np.cumsum(high_histogram(scores))
    assert high[-1] == len(scores)
    for k in {1, len(scores) // 2 + 1, len(scores)}:
        bin_ = int(np.searchsorted(high, k))
        low = np.cumsum(low_histogram(scores, bin_))
        assert len(low) == LOW_BINS
        cut = int(np.searchsorted(low, k - (high[bin_ - 1] if bin_ else 0)))
        value = np.array((bin_ << 16) | cut, dtype=np.int32).view(np.float32).item()
        assert value == kth_smallest(scores, k) == scores.sort().values[k - 1].item()
