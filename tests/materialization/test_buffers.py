from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest
import torch

from sae_moo.materialization.buffers import Buffers, _warn


def test_buffers_of_any_sizes_in_any_order():
    buffers = Buffers("cpu")
    for buffer in [buffers.take(size, torch.float32) for size in (100, 200, 150)]:
        buffers.give(buffer)
    larger = buffers.take(300, torch.float32)
    assert larger.numel() == 1200
    buffers.give(larger)
    assert buffers.take(140, torch.float32).numel() == 600, "the smallest that fits"


def test_beyond_the_bound_buffers_lie_in_files_that_are_gone_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    buffers = Buffers("cpu", bound=1000)
    inside, outside = buffers.take(250, torch.float32), buffers.take(4096, torch.float32)
    assert buffers.bytes == 1000
    assert list(tmp_path.iterdir()) == []
    values = torch.arange(4096, dtype=torch.float32)
    assert torch.equal(outside.view(torch.float32).copy_(values), values)
    assert any("sae_moo_" in line for line in Path("/proc/self/maps").read_text().splitlines())
    buffers.give(outside)
    buffers.give(inside)
    assert buffers.take(10, torch.float32) is inside
    assert buffers.take(10, torch.float32) is outside
    buffers.give(outside)
    assert buffers.take(5000, torch.float32).numel() == 20_000, "a larger file instead of the one that was too small"
    assert buffers.bytes == 1000
    assert len(buffers._mapped) == 1


def test_memory_is_lent_before_files_whatever_their_sizes():
    buffers = Buffers("cpu", bound=1000)
    inside, outside = buffers.take(250, torch.float32), buffers.take(20, torch.float32)
    buffers.give(outside)
    buffers.give(inside)
    assert buffers.take(10, torch.float32) is inside


def test_a_full_disk_is_a_warning_and_memory_is_used(monkeypatch, caplog):
    _warn.cache_clear()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("sae_moo.materialization.buffers._reserve", full)
    buffers = Buffers("cpu", bound=0)
    taken = buffers.take(1 << 20, torch.float32)
    assert buffers.bytes == taken.numel() == 4 << 20
    buffers.take(1 << 20, torch.float32)
    assert caplog.text.count("memory is used: [Errno 28]") == 1


def test_a_mapping_that_fails_is_no_error_either(monkeypatch):
    def failing(*_, **__):
        raise RuntimeError("unable to mmap")

    monkeypatch.setattr(torch, "from_file", failing)
    assert Buffers("cpu", bound=0).take(10, torch.float32).numel() == 40


@pytest.mark.parametrize("numel", [0, 1])
def test_nothing_and_one_element(numel):
    assert Buffers("cpu", bound=0).take(numel, torch.bfloat16).numel() == 2 * numel
