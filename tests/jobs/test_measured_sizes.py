"""What was measured of a device is a study's: it goes on with it, and whoever scores for it afterwards takes it too."""

from __future__ import annotations

import pytest
import torch

import sae_moo as sm
from sae_moo.evaluate import sizes
from sae_moo.evaluate.batches import Batches
from sae_moo.evaluate.hardware import PASSES, Cost
from sae_moo.jobs.judge import bench_of


class Steady:
    """A device on which all work takes as long."""

    def __init__(self):
        self.tried = 0

    def free(self):
        return 2**30

    def cost(self, run):
        run()
        self.tried += 1
        return Cost(0.01, 1000)

    def tidy(self):
        pass


@pytest.fixture
def meter(monkeypatch, tmp_path):
    meter = Steady()
    monkeypatch.setattr(sizes, "meter_of", lambda device: meter)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return meter


@pytest.fixture
def configured(tiny_folders):
    def config(evaluations, name="sized"):
        return sm.Config.from_dict(
            {
                "study": {"name": name},
                "models": {"base": str(tiny_folders["base"]), "experts": {"math": str(tiny_folders["math"])}},
                "tasks": [{"name": "zoo_math", "search": 5, "test": 5}],
                "objectives": ["zoo_math", "sparsity"],
                "search": {"population": 4, "evaluations": evaluations},
            }
        )

    return config


def test_a_study_goes_on_with_what_it_measured(configured, meter, tmp_path, monkeypatch):
    run = sm.search(configured(4), root=tmp_path)
    assert run.batches == {PASSES.what: PASSES.least}
    measured = meter.tried
    assert 0 < measured <= 10, "once, not for each candidate"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    again = sm.search(configured(6), root=tmp_path)
    assert len(again.trials()) == 6
    assert again.batches == run.batches
    bench = bench_of(again)
    bench.scorer().score(bench.live_model(), "test")  # as judging and verifying do
    assert meter.tried == measured


def test_another_study_of_this_machine_takes_it_over(configured, meter, tmp_path):
    first = sm.search(configured(4), root=tmp_path)
    measured = meter.tried
    second = sm.search(configured(4, "other"), root=tmp_path)
    assert meter.tried == measured
    assert second.batches == first.batches
    assert [t.values for t in second.trials()] == [t.values for t in first.trials()]


def test_what_a_study_is_left_with_after_memory_ran_out_is_kept(configured, tmp_path, monkeypatch):
    """On a CPU too, where nothing is measured."""
    logits = Batches._logits

    def small(self, model, batch, head):
        if batch.inputs.numel() > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return logits(self, model, batch, head)

    assert sm.search(configured(4, "roomy"), root=tmp_path).batches == {}
    monkeypatch.setattr(Batches, "_logits", small)
    run = sm.search(configured(4), root=tmp_path)
    assert 0 < run.batches[PASSES.what] <= 20
    monkeypatch.setattr(Batches, "_logits", logits)
    assert sm.search(configured(6), root=tmp_path).batches == run.batches
