"""Which engine does the arithmetic on a device."""

from __future__ import annotations

import importlib

import torch

from sae_moo.experts.memory import Remembered
from sae_moo.materialization.forms import form
from sae_moo.materialization.ops.engine import Engine, OneByOne


def engine_on(device: torch.device, remembered: Remembered) -> Engine:
    """Return an engine for one plan.

    Args:
        device: where the plan works.
        remembered: what is known of experts' tensors.
    """
    if device.type != "cuda" or form(device).kind != "triton":
        return OneByOne(remembered)
    # only now: its kernels are compiled by Triton, which other machines need not have
    banded = importlib.import_module("sae_moo.materialization.ops.device.engine")
    engine: Engine = banded.engine_of(torch.device(form(device).device), remembered)
    return engine
