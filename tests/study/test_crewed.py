"""What an executor tells of its workers while they come, evaluate and are lost."""

from __future__ import annotations

from crews import ScriptedCrew, jobs

from sae_moo.recipe import Cast, Expert, Merge
from sae_moo.study.executor import Crewed, WorkerLost
from sae_moo.study.pool import PooledExecutor

NONE = {"device": "none"}


def merge(weight: float) -> Cast:
    return Cast(Merge("linear", (Expert("math"), Expert("code")), (weight, 1.0)), "float32")


def test_who_evaluates_is_told_whenever_it_changes():
    heard: list = []
    pool = PooledExecutor(ScriptedCrew(2), listener=heard.append)
    for job in jobs([merge(0.1), merge(0.2)]):
        pool.submit(job)
    assert heard == [Crewed(2, {}, 0, 1, 0), Crewed(2, {}, 0, 2, 0)]
    assert [each.starting for each in heard] == [2, 2]
    heard.clear()
    pool.wait()
    first, both = Crewed(2, {"w1": NONE}, 1, 1, 0), Crewed(2, {"w1": NONE, "w2": NONE}, 2, 0, 0)
    idle = Crewed(2, {"w1": NONE, "w2": NONE}, 1, 0, 0)
    assert heard == [first, both, idle]
    assert (first.starting, both.starting) == (1, 0)
    pool.wait()
    assert heard[-1] == pool.standing == Crewed(2, {"w1": NONE, "w2": NONE}, 0, 0, 0)


def test_a_loss_is_told_with_what_follows():
    heard: list = []
    crew = ScriptedCrew(1)
    crew.losing = ["any", "any"]
    pool = PooledExecutor(crew, listener=heard.append)
    pool.submit(jobs([merge(0.1)])[0])
    assert not pool.wait().evaluation.ok
    assert [event for event in heard if isinstance(event, WorkerLost)] == [
        WorkerLost("w1", "killed", 0, again=True, replaced=True),
        WorkerLost("w2", "killed", 0, again=False, replaced=True),
    ]
    assert pool.standing == Crewed(1, {}, 0, 0, 2)


def test_a_place_that_is_given_up_counts_no_more():
    heard: list = []
    crew = ScriptedCrew(2)
    crew.stillborn = 7
    pool = PooledExecutor(crew, clock=lambda: crew.now, listener=heard.append)
    pool.submit(jobs([merge(0.1)])[0])
    pool.wait()
    lost = [event for event in heard if isinstance(event, WorkerLost)]
    assert [(event.number, event.again) for event in lost] == [(None, False)] * 7
    assert [event.replaced for event in lost] == [True] * 6 + [False]
    assert (pool.standing.size, pool.standing.lost, pool.standing.starting) == (1, 7, 0)
