"""Packed models and deltas: bit for bit back, small, and refused when torn or edited."""

from __future__ import annotations

import math

import pytest
import torch

from sae_moo.deploy import packing
from sae_moo.deploy.packing import Packer, encoded, unpack
from sae_moo.deploy.tensor_files import Entry, write_shards
from sae_moo.errors import InputError
from sae_moo.experts.layout import content_digest, raw

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def pruned(shape, sparsity, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator) * 0.02
    if sparsity and weight.numel():
        weight[weight.abs() <= weight.abs().flatten().kthvalue(int(sparsity * weight.numel())).values] = 0
    return weight.to(dtype)


def tensors_of(dtype):
    special = torch.tensor([0.0, -0.0, 1.0, -1.0, float("inf"), float("nan"), 1e-7, -3e-5, 65504.0]).to(dtype)
    return {
        "a.weight": pruned((33, 7), 0.5, dtype),
        "special": special,
        "zeros": torch.zeros(40, dtype=dtype),
        "empty": torch.empty(0, 3, dtype=dtype),
        "scalar": torch.tensor(2.5, dtype=dtype),
        "full": pruned((9,), 0.0, dtype),
        "large": pruned((5, 100), 0.9, dtype),
    }


def pack(path, tensors, references=None, base=None, files=(), shard_bytes=10**9):
    with Packer(path, shard_bytes, base) as packer:
        for name, tensor in tensors.items():
            digest = content_digest(tensor)
            entry = Entry(name, tuple(tensor.shape), tensor.dtype)
            packer.add(entry, tensor, digest, None if references is None else references[name])
        packer.seal({"older": b"gone"})
        packer.seal(dict(files))


def folder_of(path, tensors, shard_bytes):
    path.mkdir()
    entries = [Entry(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()]
    write_shards(path, entries, lambda entry: [raw(tensors[entry.name])], shard_bytes)
    return path


@pytest.mark.parametrize("shard_bytes", [300, 10**9])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_folder_comes_back_bit_for_bit(tmp_path, dtype, shard_bytes, monkeypatch):
    monkeypatch.setattr(packing, "CHUNK", 64)
    tensors = tensors_of(dtype)
    files = {"config.json": b"{}", "README.md": b"x" * 999, "empty.txt": b""}
    pack(tmp_path / "m.saepack", tensors, files=files.items(), shard_bytes=shard_bytes)
    assert unpack(tmp_path / "m.saepack", tmp_path / "out") == len(tensors)
    expected = folder_of(tmp_path / "expected", tensors, shard_bytes)
    for name, content in files.items():
        (expected / name).write_bytes(content)
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == {
        p.name: p.read_bytes() for p in expected.iterdir()
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_a_delta_needs_its_base_and_comes_back_bit_for_bit(tmp_path, tiny, tiny_folders, dtype, sparsity, monkeypatch):
    monkeypatch.setattr(packing, "CHUNK", 1000)
    base = {info.name: tiny.load("base", info.name).to(dtype) for info in tiny.tensors}
    tensors = {}
    for name, tensor in base.items():
        moved = tensor + 0.001 * pruned(tensor.shape, 0.3, dtype)
        moved[pruned(tensor.shape, sparsity, dtype, seed=1) == 0] = 0
        moved.view(-1)[:3] = torch.tensor([-0.0, 30000.0, -30000.0]).to(dtype)
        tensors[name] = moved
    named = {"source": "there", "fingerprint": tiny.fingerprints["base"]}
    path = tmp_path / "d.saepack"
    pack(path, tensors, base, named)
    unpack(path, tmp_path / "out", str(tiny_folders["base"]))
    expected = folder_of(tmp_path / "expected", tensors, 10**9)
    assert (tmp_path / "out/model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="holds a delta over there; expected base"):
        unpack(path, tmp_path / "no")
    with pytest.raises(InputError, match=r"expected the base with fingerprint \w{64} \(there\), got .*math with"):
        unpack(path, tmp_path / "no", str(tiny_folders["math"]))
    pack(path, tensors)
    with pytest.raises(InputError, match="holds a whole model; a base is for"):
        unpack(path, tmp_path / "no", str(tiny_folders["base"]))
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(("sparsity", "most"), [(0.0, 0.72), (0.3, 0.51), (0.5, 0.38), (0.7, 0.25), (0.9, 0.09)])
def test_half_precision_weights_pack_to_less_than_is_promised(sparsity, most):
    weight = pruned((1024, 512), sparsity, torch.bfloat16)
    assert sum(len(frame) for chunk in encoded(weight) for frame in chunk) / (2 * weight.numel()) < most


def test_a_fine_tuned_tensor_is_smaller_as_a_delta():
    base = pruned((1024, 512), 0.0, torch.bfloat16)
    near = (base.float() + 0.0005 * torch.randn(base.shape, generator=torch.Generator().manual_seed(5))).bfloat16()
    sizes = [sum(len(frame) for chunk in encoded(near, ref) for frame in chunk) for ref in (None, base)]
    assert sizes[1] < 0.7 * sizes[0]
    assert sum(len(frame) for chunk in encoded(base, base) for frame in chunk) < 200


@pytest.fixture
def packed(tmp_path):
    pack(tmp_path / "m.saepack", tensors_of(torch.bfloat16), files={"config.json": b"{}"}.items())
    return tmp_path / "m.saepack"


def test_a_torn_or_edited_file_is_refused_wherever_it_was_touched(packed, tmp_path):
    whole = packed.read_bytes()
    for cut in (0, 4, 8, 60, len(whole) // 2, len(whole) - 1):
        packed.write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"m\.saepack: (torn or edited|expected a packed model)"):
            unpack(packed, tmp_path / "out")
    for place in range(0, len(whole), math.ceil(len(whole) / 150)):
        packed.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        with pytest.raises(InputError, match=r"m\.saepack: (torn or edited|expected a packed model)"):
            unpack(packed, tmp_path / "out")
    packed.write_bytes(whole + b"more")
    with pytest.raises(InputError, match="its index, at the end, is not whole"):
        unpack(packed, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["m.saepack"]


@pytest.mark.parametrize(
    "name", ["../out.txt", "/tmp/x", ".hidden", "", "model.safetensors", "model.safetensors/x", "a/../b", ".."]
)
def test_a_file_that_would_lie_elsewhere_is_refused(tmp_path, name):
    pack(tmp_path / "m.saepack", tensors_of(torch.float32), files={name: b"evil"}.items())
    with pytest.raises(InputError, match="holds a file named"):
        unpack(tmp_path / "m.saepack", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["m.saepack"]


def test_what_is_no_packed_model_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"none: expected the file of a packed model: No such file"):
        unpack(tmp_path / "none", tmp_path / "out")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(InputError, match="expected a packed model, which begins with SAEPACK1"):
        unpack(tmp_path / "text", tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/file").touch()
    with pytest.raises(InputError, match="exists already"):
        unpack(tmp_path / "text", tmp_path / "out")
