"""Global random numbers: whoever draws from them makes another's results depend on the order of work."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def untouched() -> Iterator[None]:
    """Assert that what happens inside draws no global random number of Python, NumPy or torch, and sets no seed."""
    before = _states()
    yield
    for generator, state, now in zip(("torch", "numpy", "random"), before, _states(), strict=True):
        assert state == now, f"the global random numbers of {generator} were drawn from"


def _states() -> tuple[object, object, object]:
    return (
        torch.get_rng_state().tolist(),
        str(np.random.get_state(legacy=False)),  # noqa: NPY002  # the global one is what is looked at
        random.getstate(),
    )
