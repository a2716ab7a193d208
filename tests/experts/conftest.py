from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from adapted_models import SETTINGS, model_of
from safetensors.torch import save_file


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """Return a function that saves the base of a kind once."""
    root = tmp_path_factory.mktemp("bases")

    def folder(kind: str, dtype: torch.dtype = torch.float32) -> Path:
        place = root / f"{kind}-{dtype}".replace("torch.", "")
        if not place.is_dir():
            model_of(kind).to(dtype).save_pretrained(place)
        return place

    return folder


@pytest.fixture
def adapter(tmp_path):
    """Return a function that writes an adapter's folder by hand."""

    def written(tensors, name: str = "adapter", **settings) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps(SETTINGS | settings))
        named = {f"base_model.model.{key}": value.contiguous() for key, value in tensors.items()}
        save_file(named, folder / "adapter_model.safetensors")
        return folder

    return written
