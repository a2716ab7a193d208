from __future__ import annotations

from dataclasses import replace

import pytest
from stand_ins import FRONT, OBJECTIVES, record

from sae_moo.explore.decide.neighbours import neighbours
from sae_moo.objectives import Evaluation, Sparsity, TaskMean


def test_a_trial_that_is_next_in_both_objectives_comes_once():
    above, below = neighbours(FRONT[1], FRONT, OBJECTIVES)
    assert (above.record.number, above.towards) == (0, ("more accuracy", "less sparsity"))
    assert (below.record.number, below.towards) == (2, ("less accuracy", "more sparsity"))
    assert above.difference == pytest.approx({"accuracy": 0.02, "sparsity": -0.4})
    assert below.difference == pytest.approx({"accuracy": -0.28, "sparsity": 0.2})
    assert set(above.tests) == {"accuracy"}
    assert above.tests["accuracy"].mean == pytest.approx(0.02)


def test_the_ends_of_a_front():
    assert [each.record.number for each in neighbours(FRONT[0], FRONT, OBJECTIVES)] == [1]
    assert neighbours(FRONT[0], FRONT[:1], OBJECTIVES) == ()


def test_three_objectives_have_up_to_six_neighbours():
    objectives = (TaskMean("x", ("x",)), TaskMean("y", ("y",)), Sparsity())

    def trial(number, x, y, sparsity):
        evaluation = Evaluation(FRONT[0].recipe, {"x": (x, x), "y": (y, y)}, sparsity)
        return replace(record(number, 0, 0), evaluation=evaluation, values={"x": x, "y": y, "sparsity": sparsity})

    front = [trial(0, 0.5, 0.5, 0.5), trial(1, 0.6, 0.1, 0.5), trial(2, 0.7, 0.4, 0.4), trial(3, 0.1, 0.6, 0.9)]
    found = {each.record.number: each.towards for each in neighbours(front[0], front, objectives)}
    assert found == {1: ("more x",), 3: ("less x", "more y", "more sparsity"), 2: ("less y", "less sparsity")}
