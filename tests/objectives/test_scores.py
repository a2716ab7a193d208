from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from sae_moo.objectives import Evaluation, Sparsity, TaskMean, objective_scores
from sae_moo.objectives.scores import (
    Score,
    mean,
    mean_score,
    optimism,
    packed,
    statistics,
    stderr,
    task_scores,
    unpacked,
)
from sae_moo.recipe import Expert

ROWS = {"a": (1.0, 0.0, 1.0, 1.0), "b": (0.25, 0.75), "c": (0.5,)}


def test_a_summary_has_mean_standard_error_and_count():
    found = task_scores({task: np.array(row) for task, row in ROWS.items()})
    assert found["a"] == Score(0.75, pytest.approx(0.25), 4)
    assert found["b"] == Score(0.5, pytest.approx(0.25), 2)
    assert (found["c"].score, found["c"].instances) == (0.5, 1)
    assert math.isnan(found["c"].stderr), "of a single instance it is unknown"


@pytest.mark.parametrize("tasks", [("a",), ("a", "b"), tuple("abcdefghij")])
def test_an_evaluation_its_objectives_and_a_summary_say_the_same(tasks):
    rng = np.random.default_rng(0)
    evaluation = Evaluation(Expert("x"), {task: tuple(rng.random(7 + i)) for i, task in enumerate(tasks)})
    scores = task_scores(evaluation.scores)
    for task in tasks:
        assert scores[task] == Score(evaluation.mean(task), evaluation.stderr(task), len(evaluation.scores[task]))
    objective = TaskMean("all", tasks)
    mean = mean_score(scores, tasks)
    assert (mean.score, mean.stderr) == (objective.value(evaluation), objective.stderr(evaluation))
    assert mean.instances == sum(map(len, evaluation.scores.values()))
    assert objective_scores(scores, [objective, TaskMean("a", ("a",)), Sparsity()]) == {"all": mean}


@pytest.mark.parametrize("instances", [1, 2, 3, 7, 8, 9, 100, 1319])
def test_all_tasks_at_once_give_the_very_numbers_of_each(instances):
    rng = np.random.default_rng(instances)
    for rows in (rng.random((5, instances)), rng.integers(0, 2, (3, instances)).astype(float), np.ones((1, instances))):
        means, errors = statistics(rows)
        assert means == [mean(row) for row in rows] == rows.mean(axis=1).tolist()
        np.testing.assert_array_equal(errors, [stderr(row) for row in rows])


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 40])
def test_a_mean_is_the_same_number_of_a_list_and_of_an_array(count):
    rng = np.random.default_rng(count)
    for _ in range(200):
        row = (rng.random(count) * 10.0 ** rng.integers(-9, 9, count)).tolist()
        assert mean(row) == mean(np.array(row)) == mean(tuple(row)) == float(np.mean(row))
    assert math.isnan(mean([0.5, math.nan]))
    assert math.copysign(1.0, mean([-0.0, -0.0])) == math.copysign(1.0, np.mean([-0.0, -0.0]))
    assert mean([np.float32(0.1), np.float32(0.2)]) == float(np.mean([np.float32(0.1), np.float32(0.2)]))
    assert mean([1, 0, True]) == float(np.mean([1, 0, True]))


@pytest.mark.parametrize(
    "row",
    [(1.0, 0.0, 1.0), (0.0,), (1.0,) * 9, (0.5, 1.0), (1 / 3, 2 / 3), (0.0, -0.0, 1.0), [1.0, 0.0], (1e-9, 0.0)],
)
def test_scores_are_read_as_they_were_written(row):
    written = packed(row)
    assert isinstance(written, str) == (set(row) <= {0.0, 1.0})
    assert unpacked(written) == tuple(row)


def test_optimism_adds_the_doubt_of_both_splits():
    found = optimism(Score(0.8, 0.03, 10), Score(0.7, 0.04, 10))
    assert (found.mean, found.stderr) == (pytest.approx(0.1), pytest.approx(0.05))


def test_a_model_card_knows_no_tasks():
    """Files that are handed on take scores, not what makes them."""
    code = (
        "import sys, sae_moo.deploy.card; print([name for name in sys.modules if name.startswith('sae_moo.evaluate')])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
