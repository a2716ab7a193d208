"""The suite that every merge method passes, and what this one computes."""

import torch

from sae_moo.testing import MergeMethodContract, merged


class TestMedian(MergeMethodContract):
    method = "sae-moo-example/median"
    settings = ({}, {"scale": 0.5})


def test_it_is_the_median_and_scale_counts_from_the_base():
    base, *inputs = (torch.tensor([value]) for value in (1.0, 2.0, 9.0, 3.0))
    assert merged("sae-moo-example/median", inputs, (1, 1, 1), base).item() == 3.0
    assert merged("sae-moo-example/median", inputs, (1, 1, 1), base, scale=0.5).item() == 2.0
    assert merged("sae-moo-example/median", inputs[:2], (1, 1), base).item() == 5.5
