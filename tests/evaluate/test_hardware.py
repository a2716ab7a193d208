from __future__ import annotations

import pytest
import torch

from sae_moo.evaluate.hardware import ENGINES, PASSES, TEXTS, Cost, meter_of, name_of


@pytest.mark.parametrize("at_once", [PASSES, TEXTS])
def test_other_devices_take_more_at_once_than_a_cpu(at_once):
    assert (
        at_once.on("cpu") == at_once.on(torch.device("cpu")) == at_once.cpu < at_once.on("cuda:0") == at_once.on("meta")
    )


def test_what_ran_out_of_memory_is_halved_down_to_one_token(caplog):
    assert PASSES.halved(1024, 800) == 400
    assert "out of memory: forward passes of at most 400 tokens from now on" in caplog.text
    assert PASSES.halved(1024, 5000) == 512, "what was allowed counts where a single row was longer"
    assert PASSES.halved(1, 1) == 1


class Gpu:
    """What torch.cuda says of a device on which a run takes 5 ms and up to 70 bytes more than the 100 held before."""

    def __init__(self, device):
        self.device, self.calls, self.peak = torch.device(device), [], 500

    def asked(self, name, answer=None):
        def call(device):
            assert torch.device(device) == self.device
            self.calls.append(name)
            return answer

        return call

    def Event(self, *, enable_timing):
        assert enable_timing
        return Event(self)

    def reset_peak_memory_stats(self, device):
        self.asked("reset")(device)
        self.peak = 0

    def max_memory_allocated(self, device):
        return self.peak

    def pretend(self, monkeypatch):
        for name, answer in {
            "synchronize": None, "memory_allocated": 100, "memory_reserved": 400, "mem_get_info": (1000, 5000),
            "current_stream": "stream", "get_device_name": "H100",
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, self.asked(name, answer))
        for name in ("Event", "reset_peak_memory_stats", "max_memory_allocated"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: self.calls.append("empty"))


class Event:
    def __init__(self, gpu):
        self.gpu = gpu

    def record(self, stream):
        assert stream == "stream"
        self.gpu.calls.append("record")

    def synchronize(self):
        self.gpu.calls.append("wait")

    def elapsed_time(self, end):
        return 5.0  # milliseconds


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_is_looked_at_by_its_own_clock_and_nothing_else_counts(monkeypatch, device):
    gpu = Gpu(device)
    gpu.pretend(monkeypatch)
    meter = meter_of(device)
    assert meter.free() == 1000 + 400 - 100, "what torch holds and does not use can be had too"
    gpu.calls.clear()

    def run():
        gpu.calls.append("run")
        gpu.peak = 170

    assert meter.cost(run) == Cost(0.005, 70)
    done = [call for call in gpu.calls if call != "current_stream"]
    assert done == ["synchronize", "reset", "memory_allocated", "record", "run", "record", "wait"]
    meter.tidy()
    assert gpu.calls[-1] == "empty"
    assert name_of(device) == "H100"
    assert (meter_of("cpu"), meter_of("mps"), name_of("mps")) == (None, None, "mps")


def test_narrow_dtypes_may_round_more():
    rounding = ENGINES
    between = (rounding.single + rounding.half) / 2
    assert rounding.allows(between, torch.bfloat16)
    assert not rounding.allows(between, torch.float32)
    assert not rounding.allows(float("nan"), torch.bfloat16)
