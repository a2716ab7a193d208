"""Who evaluates, as the configuration says; and that it makes no difference to a search."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import sae_moo as sm
from sae_moo.jobs import executors
from sae_moo.jobs.executors import words_of
from sae_moo.study.events import Finished


def configured(**executor) -> sm.Config:
    return sm.Config.from_dict(
        {
            "study": {"name": "shared"},
            "models": {"base": "zoo:base", "experts": {"math": "zoo:math", "lingua": "zoo:lingua"}},
            "tasks": [{"name": "zoo_math", "search": 12, "test": 5}, {"name": "zoo_lingua", "search": 12, "test": 5}],
            "objectives": [{"mean": ["zoo_math", "zoo_lingua"], "name": "accuracy"}, "sparsity"],
            "search": {"population": 4, "evaluations": 10},
            "executor": executor,
        }
    )


def facts(run):
    """What every trial says of itself but when it was, and how long it took."""
    return [
        (
            *(r.number, r.asked_digest, r.digest, dict(r.values), r.generation, r.parents, r.repeats),
            *(dict(r.evaluation.scores), r.evaluation.sparsity, r.evaluation.group_sparsity, r.evaluation.reason),
        )
        for r in run.trials()
    ]


@pytest.mark.slow
def test_a_search_by_processes_that_is_stopped_and_goes_on_alone_is_that_of_one_process(tmp_path):
    """Scores and zeros of the embedded models, bit for bit."""
    finished = []

    def stops(event):
        finished.extend([event.record] if isinstance(event, Finished) else [])
        if len(finished) == 7:
            raise KeyboardInterrupt

    with pytest.raises(sm.Interrupted):
        sm.search(configured(kind="processes", workers=2), stops, tmp_path / "shared")
    assert {record.worker for record in finished} == {"worker 1", "worker 2"}
    shared = sm.search(configured(), root=tmp_path / "shared")
    alone = sm.search(configured(), root=tmp_path / "alone")
    assert facts(shared) == facts(alone)
    assert [record.number for record in shared.front()] == [record.number for record in alone.front()]


@pytest.mark.parametrize(
    ("executor", "cores", "words"),
    [
        ({}, 8, "this process, one candidate after another"),
        ({"kind": "processes"}, 8, "4 processes of this machine, 2 threads each"),
        ({"kind": "processes", "workers": 3}, 8, "3 processes of this machine, 2 threads each"),
        ({"kind": "processes", "workers": 1}, 8, "1 process of this machine, 8 threads"),
        ({"kind": "processes"}, 1, "1 process of this machine, 1 thread"),
        ({"kind": "processes", "workers": 4}, 2, "4 processes of this machine, 1 thread each"),
    ],
)
def test_who_evaluates_is_said_in_words(monkeypatch, executor, cores, words):
    monkeypatch.setattr(executors.os, "cpu_count", lambda: cores)
    assert words_of(SimpleNamespace(config=configured(**executor), device="cpu")) == words


@pytest.mark.parametrize(
    ("executor", "told"),
    [
        (
            {"kind": "process"},
            "executor.kind: expected 'local', 'processes' or 'ray', got 'process' (did you mean 'processes'?)",
        ),
        ({"workers": 0}, "executor.workers: expected greater than or equal to 1, got 0"),
        ({"kind": "processes", "workers": "two"}, "executor.workers: expected integer, got 'two'"),
        ({"workers": 2}, "executor.workers: local evaluates in this process; for 2 use kind: processes"),
        ({"worker": 2}, "executor.worker: no such key (did you mean 'workers'?)"),
    ],
)
def test_nonsense_is_refused_in_one_line(executor, told):
    with pytest.raises(sm.InputError) as caught:
        configured(**executor)
    assert str(caught.value).splitlines()[0] == "the configuration has one fault:"
    assert told in str(caught.value)
