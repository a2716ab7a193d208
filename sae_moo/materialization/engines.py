"""Which engine does the arithmetic on a device."""

from __future__ import annotations

import torch

from sae_moo.experts.memory import Remembered
from sae_moo.materialization.ops.engine import Engine, OneByOne


def engine_on(device: torch.device, remembered: Remembered) -> Engine:
    """Return an engine for one plan.

    Args:
        device: where the plan works.
        remembered: what is known of experts' tensors.
    """
    return OneByOne(remembered)
