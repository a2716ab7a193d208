"""Models that no folder holds: built from the content of a ``config.json`` alone."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sae_moo.errors import InputError
from sae_moo.experts.live import model_class, places


def built_model(config: Mapping[str, Any], dtype: torch.dtype, device: torch.device | str) -> Any:
    """Build a causal LM from the content of a ``config.json``, ready for scoring; its weights are not defined.

    Raises:
        InputError: if transformers cannot build it.
    """
    from transformers import AutoConfig

    try:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(dict(config)), encoding="utf-8")
            described = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device(device):
            model: Any = model_class(described).from_config(described, dtype=dtype, trust_remote_code=False)
    except Exception as error:  # whatever transformers' many config classes raise at what they find
        raise InputError(f"transformers cannot build a causal LM of this configuration: {error}") from error
    return model.eval().requires_grad_(False)


def check_places(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise InputError unless the model of a ``config.json`` has just these tensors; no memory is taken for it."""
    found = places(built_model(config, torch.float32, "meta"), shapes)
    odd = [name for name, place in found.items() if tuple(place.shape) != tuple(shapes[name])]
    if odd:
        shown = f"{odd[0]} has shape {tuple(shapes[odd[0]])}, expected {tuple(found[odd[0]].shape)}"
        raise InputError(f"the model that transformers builds does not match the checkpoint: {shown}")
