"""What several workers take of memory, beside what there is: said by `validate`, and at the beginning of a search."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch

from sae_moo.config.document import Config
from sae_moo.jobs import memory, search
from sae_moo.jobs.bench import Bench
from sae_moo.jobs.memory import HERE, Taking, takings

GIB = 2**30


@pytest.mark.parametrize(
    ("taking", "words"),
    [
        (
            Taking(HERE, 4, GIB, 2 * GIB, 16 * GIB),
            "4 workers each with a model of 1.0 GiB and a cache of up to 2.0 GiB: up to 12.0 GiB of the 16.0 GiB of "
            "this machine",
        ),
        (
            Taking(HERE, 1, 3 * 2**20, 0, GIB),
            "1 worker with a model of 3.0 MiB: 3.0 MiB of the 1.0 GiB of this machine",
        ),
        (
            Taking(HERE, 4, GIB, 2 * GIB, 7 * GIB),
            "4 workers each with a model of 1.0 GiB and a cache of up to 2.0 GiB: up to 12.0 GiB of the 7.0 GiB of this "
            "machine, too little; there is room with executor.workers: 2, or models.cache_gib: 0.75, or a smaller "
            "models.dtype",
        ),
        (
            Taking(HERE, 4, 2 * GIB, 2 * GIB, 7 * GIB),
            "4 workers each with a model of 2.0 GiB and a cache of up to 2.0 GiB: up to 16.0 GiB of the 7.0 GiB of this "
            "machine, too little; there is room with executor.workers: 1, or a smaller models.dtype",
        ),
        (
            Taking("a GPU", 3, 30 * GIB, 0, 80 * GIB),
            "3 workers each with a model of 30.0 GiB: 90.0 GiB of the 80.0 GiB of a GPU, too little; there is room with "
            "executor.workers: 2 for each GPU, or a smaller models.dtype",
        ),
        (
            Taking(HERE, 2, 0, 9 * GIB, 8 * GIB),
            "2 workers each with a cache of up to 9.0 GiB: up to 18.0 GiB of the 8.0 GiB of this machine, too little; "
            "there is room with models.cache_gib: 4",
        ),
        (
            Taking("the machines of the cluster", 2, GIB, 0, None),
            "2 workers each with a model of 1.0 GiB: 2.0 GiB on the machines of the cluster",
        ),
    ],
)
def test_what_workers_take_is_said_with_what_has_room(taking, words):
    assert taking.words == words
    assert taking.too_much == ("too little" in words)


def configured(executor, **search):
    return Config.from_dict(
        {
            "models": {"base": "zoo:base", "experts": {"math": "zoo:math"}},
            "tasks": [{"name": "zoo_math", "search": 4, "test": 4}],
            "objectives": ["zoo_math", "sparsity"],
            "search": {"algorithm": "sae-global", "evaluations": 100, "population": 8, **search},
            "executor": executor,
        }
    )


@pytest.fixture(scope="module")
def opened():
    return Bench.open(configured({}))


def bench_of(opened, device="cpu", **given):
    """What is asked of a bench on a device that is not here, with models of 100 MiB."""
    bench = opened.configured(configured(**given))
    return SimpleNamespace(config=bench.config, device=device, model_bytes=100 * 2**20, cache_bytes=bench.cache_bytes)


PROCESSES = {"kind": "processes", "workers": 3}


@pytest.mark.parametrize(
    ("device", "executor", "taken"),
    [
        ("cpu", {}, []),
        ("cpu", PROCESSES, [(HERE, 3, 100, 2048, 4096)]),
        ("cpu", {"kind": "ray", "workers": 3}, [(HERE, 3, 100, 2048, 4096)]),
        (
            "cpu",
            {"kind": "ray", "workers": 3, "address": "node:1"},
            [("the machines of the cluster", 3, 100, 2048, None)],
        ),
        ("cuda", PROCESSES, [(HERE, 3, 0, 2048, 4096), ("a GPU", 2, 100, 0, 1024)]),
        ("cuda", {"kind": "processes", "workers": 2}, [(HERE, 2, 0, 2048, 4096)]),
        ("cuda:1", PROCESSES, [(HERE, 3, 0, 2048, 4096), ("a GPU", 3, 100, 0, 1024)]),
        ("cuda", {"kind": "ray", "workers": 3}, [(HERE, 3, 0, 2048, 4096)]),
        (
            "cuda",
            {"kind": "ray", "workers": 3, "gpus_per_worker": 0.5},
            [(HERE, 3, 0, 2048, 4096), ("a GPU", 2, 100, 0, 1024)],
        ),
    ],
)
def test_whose_memory_it_is(monkeypatch, opened, device, executor, taken):
    monkeypatch.setattr(memory, "memory", lambda: 4 * GIB)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=GIB))
    found = takings(bench_of(opened, device, executor=executor))
    mib = [
        (each.where, each.workers, *(None if n is None else n // 2**20 for n in (each.model, each.cache, each.there)))
        for each in found
    ]
    assert mib == taken


def test_a_cache_is_no_larger_than_what_a_search_evaluates_nor_is_there_one_where_nothing_reads_parents(opened):
    (small,) = takings(bench_of(opened, executor=PROCESSES, evaluations=9))
    assert small.cache == 9 * small.model
    (none,) = takings(bench_of(opened, executor=PROCESSES, algorithm="cmaes"))
    assert none.cache == 0


def test_a_container_has_what_it_may_have(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "LIMITS", (limit,))
    whole = memory.memory()
    limit.write_text("max\n")
    assert memory.memory() == whole > 2**20
    limit.write_text("1048576\n")
    assert memory.memory() == 2**20


@pytest.mark.parametrize(("there", "told"), [(2**20, 1), (2**50, 0)])
def test_a_search_begins_with_a_warning_where_it_is_too_little(monkeypatch, opened, caplog, there, told):
    class Enough(Exception):
        """Nothing more is asked."""

    def enough(*given):
        raise Enough

    monkeypatch.setattr(memory, "memory", lambda: there)
    monkeypatch.setattr(search, "RunFolder", enough)
    config = configured(PROCESSES)
    with caplog.at_level(logging.WARNING), pytest.raises(Enough):
        search.search(config, bench=opened.configured(config))
    said = [record.message for record in caplog.records if record.message.startswith("memory: 3 workers each with")]
    assert len(said) == told
    assert all("too little; there is room with " in each for each in said)
