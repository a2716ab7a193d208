"""Which engine does the arithmetic on a device."""

from __future__ import annotations

import importlib

import torch

from sae_moo.experts.pool import ExpertPool
from sae_moo.materialization.forms import form
from sae_moo.materialization.ops.engine import Engine, OneByOne


def engine_on(device: torch.device, pool: ExpertPool) -> Engine:
    """Return an engine for one plan.

    Args:
        device: where the plan works.
        pool: the experts.
    """
    if device.type != "cuda" or form(device).kind != "triton":
        return OneByOne(pool.remembered)
    # only now: its kernels are compiled by Triton, which other machines need not have
    banded = importlib.import_module("sae_moo.materialization.ops.device.engine")
    place = torch.device(form(device).device)
    engine: Engine = banded.engine_of(place, pool.remembered, pool.resident(place).reserve)
    return engine
