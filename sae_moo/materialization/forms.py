"""Which form the arithmetic of merging takes on a device: fused launches, compiled loops or plain torch, and why.

All forms give the same bits; they differ in time. Triton is imported only when a CUDA device is asked about.
"""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
from dataclasses import dataclass
from typing import Literal

import torch

from sae_moo.materialization.ops import fused

Kind = Literal["triton", "numba", "torch"]

PLAIN = "SAE_MOO_PLAIN"
"""Environment variable: 1 takes plain torch on a GPU, to compare bits and times."""
OLDEST = (7, 0)
"""Smallest compute capability that Triton compiles for."""
_WORDS: dict[Kind, str] = {
    "triton": "fused Triton kernels",
    "numba": "compiled loops (numba)",
    "torch": "plain torch",
}


@dataclass(frozen=True, slots=True)
class Form:
    """How recipes become weights on a device.

    Args:
        kind: ``triton``: fused launches over many tensors; ``numba``: compiled loops on the CPU; ``torch``: the
            reference, chunk by chunk.
        device: the device, with its index where there are several of a kind (``cuda:0``).
        words: the same for people, in a line, with the reason where it is plain torch.
    """

    kind: Kind
    device: str
    words: str


def form(device: torch.device | str) -> Form:
    """Return the form that merging takes on a device.

    Raises:
        RuntimeError: if torch does not know the device, or the machine lacks it.
    """
    place = torch.device(device)
    if place.type == "cuda" and place.index is None:
        place = torch.device("cuda", torch.cuda.current_device())
    return _form(str(place), os.environ.get(PLAIN) == "1")


@functools.cache
def _form(device: str, plain: bool) -> Form:
    kind = torch.device(device).type
    if kind == "cpu":
        return _said("numba", device) if fused.available() else _said("torch", device, why="numba is not installed")
    if kind != "cuda":
        return _said("torch", device, why="the fused kernels are for CUDA")
    name = torch.cuda.get_device_name(device)
    why = _missing(device, plain)
    return _said("triton", device, name) if why is None else _said("torch", device, name, why)


def _said(kind: Kind, device: str, name: str = "", why: str = "") -> Form:
    words = f"{_WORDS[kind]} on {device}" + (f" ({name})" if name else "") + (f": {why}" if why else "")
    return Form(kind, device, words)


def _missing(device: str, plain: bool) -> str | None:
    """Return what keeps the fused kernels from running on a CUDA device; None: nothing does."""
    if torch.version.hip is not None:
        return "the fused kernels are not for ROCm"
    if plain:
        return f"{PLAIN}=1 is set"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST:
        own, least = (".".join(map(str, each)) for each in (capability, OLDEST))
        return f"compute capability {own}, Triton needs {least}"
    try:
        importlib.import_module("triton")
    except ModuleNotFoundError as error:
        if error.name == "triton":
            return "triton is not installed"
        return _unusable(error)
    except Exception as error:  # whatever an installation that does not fit torch, Python or the driver raises
        return _unusable(error)
    try:
        # compiles its launcher, once for a user: small images of torch have no C compiler, or not Python's headers
        importlib.import_module("triton.runtime.driver").driver.active.get_current_target()
    except subprocess.CalledProcessError:
        return "triton cannot compile its launcher: a C compiler and Python's headers are needed"
    except Exception as error:  # likewise
        return _unusable(error)
    return None


def _unusable(error: Exception) -> str:
    first = str(error).strip().partition("\n")[0]
    return f"triton cannot be used: {first or type(error).__name__}"
