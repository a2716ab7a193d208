from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from stand_ins import record
from synthetic import view

from sae_moo.explore.decide.significance import paired
from sae_moo.explore.view import Marked
from sae_moo.explore.words import (
    MOST_STEPS,
    difference,
    difference_words,
    duration,
    listed,
    mix_words,
    objective_words,
    recipe_words,
    summary,
)
from sae_moo.objectives import Constraint, Sparsity, TaskMean
from sae_moo.recipe import Cast, Expert, Merge, Prune

MATH, CODE = Expert("math"), Expert("code")
FIRST = Cast(Merge("linear", (MATH, CODE), (0.5, 0.5)), "float32")


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], "nothing"), (["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c"),
        (list("abcdef"), "a, b, c, d and 2 more"),
    ],
)  # fmt: skip
def test_lists(names, text):
    assert listed(names) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.0 s"),
        (3.21, "3.2 s"),
        (85, "85 s"),
        (150, "2.5 min"),
        (7000, "117 min"),
        (9000, "2.5 h"),
        (200000, "2.3 days"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("objective", "text"),
    [
        (Sparsity(), "sparsity (fraction of zeros among prunable weights)"),
        (TaskMean("qa", ("qa",)), "qa (mean score, 0 to 1)"),
        (TaskMean("accuracy", ("qa", "exam")), "accuracy (mean score of 2 tasks, 0 to 1)"),
    ],
)
def test_objectives(objective, text):
    assert objective_words(objective) == text


@pytest.mark.parametrize(
    ("recipe", "lines"),
    [
        (Cast(MATH, "float32"), ["math, rounded to float32"]),
        (FIRST, ["the merge: linear of math (weight 0.50) and code (weight 0.50)", "rounded to float32"]),
        (
            Cast(Prune(FIRST, (0.0, 0.2, 0.4), rescale=True), "bfloat16"),
            [
                "trial 7 pruned by magnitude within each tensor, sparsity 0.20 to 0.40, mean 0.30 in 2 of 3 groups, "
                "what is left rescaled to its norm",
                "rounded to bfloat16",
            ],
        ),
        (
            Cast(
                Merge("ties", (Prune(FIRST, 0.5, scope="2:4"), MATH), ((1.0, 0.2), (0.0, 0.2)), {"density": 0.5}),
                "float32",
            ),
            [
                "trial 7 pruned by magnitude in the pattern 2:4, sparsity 0.50",
                "the merge: ties of trial 7, pruned (weight 0.00 to 1.00, mean 0.50) and math (weight 0.20); density 0.5",
                "rounded to float32",
            ],
        ),
        (
            Merge("slerp", (Merge("linear", (MATH, CODE), (1, 2)), CODE), (0.5, 0.5)),
            [
                "merge 1: linear of math (weight 1.00) and code (weight 2.00)",
                "merge 2: slerp of merge 1 (weight 0.50) and code (weight 0.50)",
            ],
        ),
    ],
)
def test_recipes(recipe, lines):
    known = {FIRST: 7, Cast(MATH, "float32"): 0}
    assert recipe_words(recipe, known) == lines


def test_long_recipes_begin_with_what_is_left_out():
    recipe = MATH
    for i in range(40):
        recipe = Prune(recipe, i / 100)
    lines = recipe_words(recipe, {})
    assert len(lines) == MOST_STEPS + 1
    assert lines[0] == f"({40 - MOST_STEPS} earlier steps)"


def test_differences_are_those_of_the_paired_test():
    study = view(30)
    a, b = study.records[29], study.records[4]
    found = difference(study, a, b)
    assert found == paired(a.evaluation.scores, b.evaluation.scores, ["a", "b"])
    assert found.mean == pytest.approx(study.accuracy(a) - study.accuracy(b))
    said = difference_words(study, a, Marked("it", b, "the other"))
    more = "more" if found.mean > 0 else "less"
    assert said == f"{abs(found.mean):.3f} {more} accurate than it {found.verdict}"
    assert difference_words(study, b, Marked("it", b, "the other")) == "it is the other"


def test_tasks_count_in_a_difference_as_in_the_objectives():
    study = view(30, ("a", "b", "c"))
    objectives = (TaskMean("both", ("a", "b")), TaskMean("c", ("c",)))
    records = [
        replace(r, values={o.name: o.value(r.evaluation) for o in objectives}, stderr=dict(r.stderr))
        for r in study.records
    ]
    study = replace(study, objectives=objectives, records=tuple(records))
    assert study.shares == {"a": 0.25, "b": 0.25, "c": 0.5}
    found = difference(study, records[29], records[4])
    assert found.mean == pytest.approx(study.accuracy(records[29]) - study.accuracy(records[4]))


def test_differences_without_the_same_instances_have_no_test():
    study = view(30)
    fewer = {task: row[:5] for task, row in study.records[3].evaluation.scores.items()}
    other = replace(study.records[3], evaluation=replace(study.records[3].evaluation, scores=fewer))
    assert difference(study, study.records[4], other) is None
    assert difference_words(study, study.records[4], Marked("it", other, "the other")).endswith(" accurate than it")
    assert difference(replace(study, objectives=study.objectives[-1:]), study.records[4], study.records[3]) is None


def test_summaries_say_what_was_asked_found_and_spent():
    study = view(60)
    bad = replace(study.records[50].evaluation, scores={}, reason="NaN logits")
    failed = replace(study.records[50], values={}, feasible=False, evaluation=bad)
    again = replace(study.records[51], repeats=3)
    records = (*study.records[:50], failed, again, *study.records[52:])
    limit = Constraint(Sparsity(), high=0.9)
    study = replace(study, records=records, budget=80, constraints=(limit,))
    searched, found, sure, cost = summary(study)
    assert "Merges of 3 experts (math, code and law) of one base" in searched.text
    assert "Limits: sparsity at most 0.9. Algorithm: nsga3 over lineages." in searched.text
    assert f"A front of {len(study.front)} trials" in found.text
    assert found.points[0].lower().startswith("knee")
    assert "over 80 instances of 2 tasks, the search split" in sure.text
    assert "chosen from 59 trials by these same instances" in sure.text
    assert cost.text.startswith(
        "60 of 80 evaluations (1 failed; 1 the same weights as an earlier one, not scored again), "
    )
    assert cost.text.endswith("5.9 s of merging and 59 s of scoring.")


def test_mixes_begin_with_what_there_is_most_of():
    study = view(10)
    assert mix_words(Merge("linear", (MATH, CODE), (1, 3)), study) == "0.75 code and 0.25 math"
    assert mix_words(record(0, 0.1, 0.1).recipe, replace(study, experts=("base", "a"))) == "1.00 a"


@pytest.mark.parametrize(
    ("volumes", "told"),
    [
        ([0.1] * 6 + [0.2, 0.2], "grew by 100.0%: it was still growing"),
        ([0.1] * 7 + [0.15], "grew by 50.0%: it was still growing"),
        ([0.1] * 8, "grew by 0.0%: more evaluations may add little"),
        ([0.0] * 7 + [0.1], "grew from nothing: it was still growing"),
    ],
)
def test_how_much_the_hypervolume_grew_at_the_end(volumes, told):
    study = view(8)
    study.__dict__["hypervolumes"] = np.array(volumes)
    assert f"In the last quarter of the evaluations the hypervolume {told}." in " ".join(
        section.text for section in summary(study)
    )
