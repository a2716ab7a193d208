from __future__ import annotations

import pytest
import torch

from sae_moo.evaluate.hardware import ENGINES, PASSES, TEXTS


@pytest.mark.parametrize("at_once", [PASSES, TEXTS])
def test_other_devices_take_more_at_once_than_a_cpu(at_once):
    assert (
        at_once.on("cpu") == at_once.on(torch.device("cpu")) == at_once.cpu < at_once.on("cuda:0") == at_once.on("meta")
    )


def test_what_ran_out_of_memory_is_halved_down_to_one_token(caplog):
    assert PASSES.halved(1024, 800) == 400
    assert "out of memory: forward passes of at most 400 tokens from now on" in caplog.text
    assert PASSES.halved(1024, 5000) == 512, "what was allowed counts where a single row was longer"
    assert PASSES.halved(1, 1) == 1


def test_narrow_dtypes_may_round_more():
    rounding = ENGINES
    between = (rounding.single + rounding.half) / 2
    assert rounding.allows(between, torch.bfloat16)
    assert not rounding.allows(between, torch.float32)
    assert not rounding.allows(float("nan"), torch.bfloat16)
