from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_moo.errors import InputError
from sae_moo.experts.checkpoint import Checkpoint
from sae_moo.experts.pool import ExpertPool


@pytest.fixture
def copy(tiny_folders, tmp_path):
    """Return a function that copies an expert with further settings and tensors."""

    def copied(settings=None, tensors=None, files=()):
        folder = shutil.copytree(tiny_folders["math"], tmp_path / "copy")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | (settings or {})))
        stored = load_file(folder / "model.safetensors") | (tensors or {})
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
        for file in files:
            (folder / file).write_text("{}")
        return folder

    return copied


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq with 4 bits, says quantization_config"),
        ({"quantization_config": {"quant_method": "awq", "w_bit": 4}}, "awq with 4 bits"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "bitsandbytes with 4 bits"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "_load_in_8bit": True}}, "bitsandbytes with 8 bits"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, "fp8, says"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "mxfp4"),
        ({"text_config": {"quantization_config": {"quant_method": "compressed-tensors"}}}, "compressed-tensors"),
        ({"quantization_config": {"quant_algo": "NVFP4"}}, "NVFP4"),
        ({"quantization_config": "odd"}, "in a way that is not known here"),
    ],
)
def test_a_quantized_checkpoint_is_called_one(copy, tiny_folders, settings, told):
    folder = copy(settings)
    with pytest.raises(InputError) as caught:
        ExpertPool.open(str(tiny_folders["base"]), {"q": str(folder)})
    assert f"q: {folder}: quantized: {told}" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2


P = "model.layers.0.mlp.up_proj."
CODES = {P + "qweight": torch.zeros(4, 4, dtype=torch.int32), P + "scales": torch.ones(4)}


@pytest.mark.parametrize(
    ("tensors", "files"),
    [
        (CODES, ()),
        (CODES, ("quantize_config.json",)),
        ({P + "weight": torch.zeros(4, dtype=torch.uint8), P + "weight.absmax": torch.zeros(2, dtype=torch.uint8)}, ()),
        ({P + "weight": torch.zeros(24, 16).to(torch.float8_e4m3fn)}, ()),
        ({P + "weight_packed": torch.zeros(4, 4, dtype=torch.int32)}, ()),
    ],
)
def test_codes_are_recognized_without_settings(copy, tensors, files):
    with pytest.raises(InputError, match=r"quantized: (it holds|\S+ has dtype)"):
        Checkpoint(str(copy(tensors=tensors, files=files)))


@pytest.mark.parametrize("settings", [{"quantization_config": None}, {"quantization_config": {}}])
def test_no_settings_are_no_quantization(copy, tiny, settings):
    assert Checkpoint(str(copy(settings))).fingerprint == tiny.fingerprints["math"]
