from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from stand_ins import OBJECTIVES, record, running
from synthetic import view

from sae_moo.explore.history import generations, hypervolumes, lineage
from sae_moo.objectives import Evaluation, TaskMean
from sae_moo.objectives.front import Front, front_of
from sae_moo.objectives.pareto import hypervolume
from sae_moo.recipe import Expert


@pytest.mark.parametrize("tasks", [("a",), ("a", "b"), ("a", "b", "c", "d")])
def test_the_curve_is_the_hypervolume_of_every_prefix(tasks):
    study = view(120, tasks)
    points = np.array([[each.values[o.name] for o in study.objectives] for each in study.records])
    expected = [hypervolume(points[: i + 1]) for i in range(len(points))]
    assert hypervolumes(study.records, study.objectives) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("tasks", [("a",), ("a", "b")])
def test_a_growing_front_is_that_of_every_prefix(tasks):
    study = view(80, tasks)
    records = [*study.records, replace(study.front[0], number=80), replace(study.front[-1], number=81, repeats=3)]
    front, volume = Front(study.objectives), 0.0
    for i, each in enumerate(records):
        volume += front.gain(each)
        before, front = front, front.after(each)
        expected = front_of(records[: i + 1], study.objectives)
        assert front.ranked == expected.ranked
        assert (front is not before) == (each in expected.members)
        assert volume == pytest.approx(expected.volume, abs=1e-12)
    assert 80 in [each.number for each in front.members], "of equal points all are kept"


def test_only_what_is_told_feasible_and_new_adds_anything():
    kept = record(0, 0.5, 0.5)
    others = [
        replace(record(1, 0.9, 0.9), feasible=False),
        replace(
            record(2, 0.9, 0.9),
            values={},
            feasible=False,
            evaluation=Evaluation(Expert("a"), reason="no"),
        ),
        replace(record(3, 0.5, 0.5), repeats=0),
        running(record(4, 0.9, 0.9)),
    ]
    assert hypervolumes([kept, *others], OBJECTIVES).tolist() == [0.25] * 4
    assert hypervolumes([], OBJECTIVES).shape == (0,)


def test_evaluations_count_in_the_order_they_were_told():
    first, second = replace(record(0, 0.5, 0.5), told=1), replace(record(1, 0.2, 0.2), told=0)
    assert hypervolumes([first, second], OBJECTIVES) == pytest.approx([0.04, 0.25])


def test_generations_have_quartiles_and_the_median_ratio():
    rows = [(0, 0.0, None), (2, 0.1, 0.4), (2, 0.3, 0.6), (2, 0.2, 0.8)]
    records = [
        replace(record(i, 0.5, rho), generation=g, params={} if ratio is None else {"r": ratio})
        for i, (g, rho, ratio) in enumerate(rows)
    ]
    found = generations(records, "r")
    assert found.number.tolist() == [0, 2]
    assert found.sparsity.tolist() == [[0, 0, 0], pytest.approx([0.15, 0.2, 0.25])]
    assert np.isnan(found.ratio[0])
    assert found.ratio[1] == 0.6
    assert generations([], "r").sparsity.shape == (0, 3)


@pytest.mark.parametrize("most", [1, 5, 24, 10_000])
def test_a_lineage_shows_so_many_and_counts_the_rest(most):
    study = view(150)
    ancestors, todo = set(), [149]
    while todo:
        now = todo.pop()
        if now not in ancestors:
            ancestors.add(now)
            todo += study.records[now].parents
    found = lineage(study.records, 149, most)
    assert len(found.numbers) == min(most, len(ancestors))
    assert found.numbers[-1] == 149
    assert set(found.numbers) <= ancestors
    assert found.hidden == len(ancestors) - len(found.numbers)
    shown = set(found.numbers)
    edges = {(p, child) for child in shown for p in study.records[child].parents if p in shown}
    assert set(found.edges) == edges
    assert len(found.edges) == len(edges)


def test_one_who_has_no_parents_and_one_who_has_the_same_twice():
    alone = [record(0, 0.1, 0.1), replace(record(1, 0.2, 0.2), parents=(0, 0))]
    assert lineage(alone, 0).numbers == (0,)
    assert lineage(alone, 1).edges == ((0, 1),)


def test_objectives_beyond_sparsity_alone_are_fine():
    assert hypervolumes([record(0, 0.5, 0.25)], [TaskMean("accuracy", ("x", "y"))]).tolist() == [0.5]
