"""Files of tensors: read back by the safetensors library, split as transformers splits them."""

from __future__ import annotations

import json

import pytest
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from safetensors.torch import load_file

from sae_moo.deploy.tensor_files import Entry, header, shard_bytes, shards, write_shards
from sae_moo.errors import InputError
from sae_moo.experts.layout import raw

TENSORS = {
    "b": torch.randn(5, 3),
    "a": torch.randn(4).bfloat16(),
    "ünï": torch.randn(2, 2, 2).half(),
    "empty": torch.empty(0, 3),
    "scalar": torch.tensor(1.5),
}
ENTRIES = [Entry(name, tuple(tensor.shape), tensor.dtype) for name, tensor in TENSORS.items()]


def content(entry):
    whole = raw(TENSORS[entry.name])
    yield whole[: len(whole) // 2]
    yield whole[len(whole) // 2 :]


@pytest.mark.parametrize("size", [1, 60, 68, 69, 10**9])
def test_what_is_written_is_read(tmp_path, size):
    write_shards(tmp_path, ENTRIES, content, size)
    expected = split_torch_state_dict_into_shards(
        TENSORS, filename_pattern="model{suffix}.safetensors", max_shard_size=size
    )
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) == (1 if size > 99 else len(files))
    assert files == [name for name, _ in shards(ENTRIES, size)]
    if size > 60:
        assert files == sorted(expected.filename_to_tensors)
    found = {}
    for name in files:
        found |= load_file(tmp_path / name)
        with safe_open(tmp_path / name, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    index = tmp_path / "model.safetensors.index.json"
    assert index.exists() == (len(files) > 1)
    if index.exists():
        document = json.loads(index.read_text())
        assert document["metadata"] == {"total_parameters": 28, "total_size": 60 + 8 + 16 + 0 + 4}
        for name, file in document["weight_map"].items():
            assert name in load_file(tmp_path / file)


def test_headers_end_on_eight_bytes():
    for n in range(5):
        assert len(header(ENTRIES[:n])) % 8 == 0


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("1.5 kb", 1500), ("2MiB", 2**21), ("7000000", 7_000_000), ("7 KB", 7000), ("1gib", 2**30)],
)
def test_sizes(text, size):
    assert shard_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "5TB", "0.1", "5", "999999"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(InputError, match="expected one such as 5GB"):
        shard_bytes(text)
