from __future__ import annotations

import importlib.util
import json
import shutil
import struct
from pathlib import Path

import pytest
from safetensors.torch import load_file

from sae_moo.errors import InputError
from sae_moo.experts.checkpoint import Checkpoint

STUDY = Path(__file__).parents[2] / "studies" / "reliability" / "corrupted.py"


@pytest.fixture
def copy(tiny_folders, tmp_path):
    return shutil.copytree(tiny_folders["math"], tmp_path / "copy")


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("corrupted", STUDY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def written(folder, header, data=bytes(64), length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    content = struct.pack("<Q", len(text) if length is None else length) + text + data
    (folder / "model.safetensors").write_bytes(content)


def tensor(shape=(16,), offsets=(0, 64), dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    "header",
    [
        {"a": tensor((-16,))},
        {"a": tensor((2**62, 8))},
        {"a": tensor(dtype="X9")},
        {"a": tensor(), "b": tensor(offsets=(32, 96))},
        {"a": tensor((8,), (0, 32)), "b": tensor((4,), (48, 64))},
        {"a": tensor((99,))},
        {"a": tensor(offsets=(0, 10**12))},
        {"a": {"dtype": "F32"}},
        {"a": 1},
        [1],
        b"\xff\xfe",
        b"",
        b'{"a": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}, '
        b'"a": {"dtype": "F32", "shape": [8], "data_offsets": [32, 64]}}',
    ],
)
def test_a_header_that_says_what_cannot_be_is_one_line(copy, header):
    written(copy, header)
    with pytest.raises(InputError, match="truncated, or not a safetensors file") as caught:
        Checkpoint(str(copy))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("length", [0, 1, 10**6, 2**40, 2**63, 2**64 - 1])
def test_a_header_of_a_length_that_cannot_be_is_one_line(copy, length):
    written(copy, {"a": tensor()}, length=length)
    with pytest.raises(InputError, match="truncated, or not a safetensors file"):
        Checkpoint(str(copy))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04" + bytes(60),
        b"\x80\x02cos\nsystem\n",
        b"version https://git-lfs.github.com/spec/v1\n",
        bytes(99),
    ],
)
def test_another_file_under_the_name_is_one_line(copy, content):
    (copy / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="truncated, or not a safetensors file"):
        Checkpoint(str(copy))


def test_a_pointer_of_git_lfs_is_called_one(copy):
    (copy / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(InputError, match="pointer of Git LFS, git lfs pull fetches the weights"):
        Checkpoint(str(copy))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "model.pkl"])
def test_pickles_are_not_opened(copy, name):
    (copy / "model.safetensors").rename(copy / name)
    with pytest.raises(InputError, match=f"only pickled weights \\({name}\\), which can run code when opened"):
        Checkpoint(str(copy))


@pytest.mark.parametrize("name", ["model.gguf", "consolidated.safetensors", "model.fp16.safetensors"])
def test_weights_under_another_name_are_told_of(copy, name):
    (copy / "model.safetensors").rename(copy / name)
    with pytest.raises(InputError, match=rf"no model.safetensors and no .*; there is {name}"):
        Checkpoint(str(copy))


def test_more_layers_than_tensors_are_not_built(copy):
    config = json.loads((copy / "config.json").read_text())
    count = len(load_file(copy / "model.safetensors"))
    for change in ({"num_hidden_layers": 10**9}, {"text_config": {"num_hidden_layers": 10**9}}):
        (copy / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(InputError, match=f"num_hidden_layers 1000000000, the files hold {count} tensors"):
            Checkpoint(str(copy))


def test_damage_is_refused_or_harmless_and_never_a_traceback(study, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    counts, faults = study.counted(60, seed=3)
    assert faults == []
    assert sum(sum(row.values()) for row in counts.values()) == 60
    silent = {kind for kind, row in counts.items() if row["other numbers"]}
    assert {kind.partition(": ")[2] for kind in silent} <= {"bytes of the weights"}
    assert len({kind.partition(": ")[0] for kind in counts}) == 4


def test_an_exception_is_counted_as_a_traceback(study, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def broken(folder, draw):
        raise ValueError("damaged")

    monkeypatch.setattr(study, "FORMS", {"one file": {"broken": broken}})
    counts, faults = study.counted(2, seed=0)
    assert counts["one file: broken"]["traceback"] == 2
    assert "ValueError: damaged" in faults[0]
