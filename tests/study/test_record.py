from __future__ import annotations

from dataclasses import replace

from stand_ins import record, running

from sae_moo.study.record import evaluations, told


def test_trials_are_told_in_another_order_than_they_are_asked_for():
    first, second, third = (record(i, 0.5, 0.5) for i in range(3))
    records = [replace(first, told=2), running(second), replace(third, told=0)]
    assert [each.number for each in told(records)] == [2, 0]
    assert evaluations(records) == 2
    assert (told([]), evaluations([])) == ([], 0)
