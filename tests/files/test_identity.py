from __future__ import annotations

import os
import shutil

import pytest
import torch
from safetensors.torch import save_file

from sae_moo.files import identity
from sae_moo.files.identity import stamp, state


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "large": torch.randn(300, 300, generator=generator),
        "small": torch.randn(7, generator=generator),
        "empty": torch.zeros(0, 4),
        "scalar": torch.randn((), generator=generator),
    }


@pytest.fixture
def weights(tmp_path):
    save_file(tensors(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "model.safetensors"


@pytest.fixture(params=["whole", "sampled"])
def reading(request, monkeypatch):
    """Read files whole, or the headers and blocks of larger ones."""
    if request.param == "sampled":
        monkeypatch.setattr(identity, "WHOLE", 0)
        monkeypatch.setattr(identity, "BLOCKS", 16)


@pytest.fixture
def frozen(monkeypatch):
    """A file system that tells nothing: one size, one inode, one time for all."""
    monkeypatch.setattr(identity, "state", lambda files: [file.name for file in files])


def stamped(file, facts=()) -> str:
    return stamp(file.parent, [file], list(facts))


def changes(weights):
    """Yield what is done to the file, and how."""
    for name, at in (("large", (0, 0)), ("large", (299, 299)), ("small", (3,)), ("scalar", ())):

        def change(name=name, at=at):
            moved = tensors()
            moved[name][at] += 1
            save_file(moved, weights, metadata={"format": "pt"})

        yield f"{name}{at}", change
    yield "all", lambda: save_file(tensors(1), weights, metadata={"format": "pt"})
    yield "note", lambda: save_file(tensors(), weights, metadata={"format": "pT"})
    renamed = {("lerge" if name == "large" else name): tensor for name, tensor in tensors().items()}
    yield "name", lambda: save_file(renamed, weights, metadata={"format": "pt"})


@pytest.mark.usefixtures("reading", "frozen")
def test_other_content_of_one_size_has_another_stamp_whatever_the_file_system_says(weights):
    before, size = stamped(weights), weights.stat().st_size
    assert stamped(weights) == before
    seen = {before}
    for what, change in changes(weights):
        change()
        assert weights.stat().st_size == size, what
        assert stamped(weights) not in seen, what
        seen.add(stamped(weights))
    save_file(tensors(), weights, metadata={"format": "pt"})
    assert stamped(weights) == before


@pytest.mark.usefixtures("reading")
def test_a_file_put_in_anothers_place_has_another_stamp(weights, tmp_path):
    os.utime(weights, (1, 1))
    before = stamped(weights)
    copy = shutil.copy2(weights, tmp_path / "copy")
    os.replace(copy, weights)
    assert weights.stat().st_mtime == 1
    assert stamped(weights) != before, "another inode, changed at another time"


@pytest.mark.usefixtures("reading")
def test_place_and_further_facts_count(weights, tmp_path):
    assert stamped(weights, ["a"]) != stamped(weights, ["b"])
    assert stamp(tmp_path / "elsewhere", [weights], []) != stamp(tmp_path, [weights], [])
    assert stamp(tmp_path, [], []) != stamp(tmp_path, [weights], [])


def test_only_a_part_of_large_files_is_read(weights, monkeypatch):
    monkeypatch.setattr(identity, "WHOLE", 0)
    monkeypatch.setattr(identity, "BLOCKS", 16)
    read = []
    monkeypatch.setattr(
        identity, "_read", lambda handle, offset, size, f=identity._read: read.append(size) or f(handle, offset, size)
    )
    stamped(weights)
    assert sum(read) < weights.stat().st_size / 4


def test_other_files_than_weights_are_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "WHOLE", 0)
    monkeypatch.setattr(identity, "state", lambda _: None)
    file = tmp_path / "a.json"
    seen = set()
    for content in ("{}", "[]", "{ "):
        file.write_text(content)
        seen.add(stamped(file))
    assert len(seen) == 3


def test_the_state_of_a_file_follows_links(tmp_path, weights):
    link = tmp_path / "link.safetensors"
    link.symlink_to(weights)
    assert state([link])[0][1:] == state([weights])[0][1:]
