"""Telling that a checkpoint is quantized: its numbers are codes, of which no mean can be taken."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_SETTINGS = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
"""Files that quantizers write beside ``config.json``: GPTQ, AWQ, ModelOpt."""
_CODES = re.compile(
    r"[._](qweight|qzeros|g_idx|weight_packed|weight_scale(_inv)?|weight_zero_point|absmax|quant_map|SCB|blocks"
    r"|quant_state\.\w+|_?packed_params)$"
)
_BITS = ("bits", "w_bit", "nbits", "weight_bits")
_NARROW = re.compile(r"F[468]_|F4$")


def quantized(folder: Path, config: Mapping[str, Any], dtypes: Mapping[str, str] | None = None) -> str | None:
    """Return how a checkpoint is quantized and what says so, for people; None if nothing says that it is.

    Args:
        folder: where it lies.
        config: its ``config.json``.
        dtypes: tensor name -> dtype as safetensors names it; None: not known yet.
    """
    nested = [value for value in config.values() if isinstance(value, Mapping)]
    for part in (config, *nested):
        for key in ("quantization_config", "compression_config"):
            settings = part.get(key)
            if settings:
                return f"{_method(settings)}, says {key} in its config.json"
    if dtypes is None:
        return None
    told = next((name for name in _SETTINGS if (folder / name).is_file()), None)
    codes = next((name for name in dtypes if _CODES.search(name)), None)
    narrow = next((f"{name} has dtype {dtype}" for name, dtype in dtypes.items() if _NARROW.match(dtype)), None)
    if codes is not None and (told is not None or _are_codes(dtypes)):
        return f"it holds {codes}"
    return narrow


def _are_codes(dtypes: Mapping[str, str]) -> bool:
    """Say whether tensors that are named like codes are whole numbers, or eight bits wide."""
    return any(dtypes[name][0] in "IUB" or _NARROW.match(dtypes[name]) for name in dtypes if _CODES.search(name))


def _method(settings: Any) -> str:
    if not isinstance(settings, Mapping):
        return "in a way that is not known here"
    method = settings.get("quant_method") or settings.get("quant_algo") or settings.get("format")
    bits: Iterable[Any] = (settings.get(key) for key in _BITS)
    if settings.get("load_in_4bit") or settings.get("_load_in_4bit"):
        bits = [4]
    elif settings.get("load_in_8bit") or settings.get("_load_in_8bit"):
        bits = [8]
    width = next((each for each in bits if isinstance(each, int)), None)
    return str(method or "in a way that is not known here") + (f" with {width} bits" if width is not None else "")
