from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from sae_moo.objectives import Evaluation, Sparsity, TaskMean, objective_scores
from sae_moo.objectives.scores import Score, mean_score, optimism, task_scores
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


def test_optimism_adds_the_doubt_of_both_splits():
    found = optimism(Score(0.8, 0.03, 10), Score(0.7, 0.04, 10))
    assert (found.mean, found.stderr) == (pytest.approx(0.1), pytest.approx(0.05))


def test_a_model_card_knows_no_tasks():
    """Files that are handed on take scores, not what makes them."""
    code = (
        "import sys, sae_moo.deploy.card; print([name for name in sys.modules if name.startswith('sae_moo.evaluate')])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
