"""Letters between a driver and a worker: both ends read what the other wrote, and a lineage does not make them long."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scripted_study import LIMITS, OBJECTIVES

from sae_moo.objectives import Evaluation, Screened, Stopped
from sae_moo.objectives.front import Front
from sae_moo.recipe import Cast, Expert, Merge, Prune, children
from sae_moo.study.executor import Job
from sae_moo.study.post import DriverLine, WorkerLine

SHORT = 900
"""Bytes of a letter with a child both of whose parents are known; what it asks of every block is in there."""


def first(weight: float) -> Cast:
    return Cast(Merge("linear", (Expert("math"), Expert("code")), (weight, 1.0)), "float32")


def child(one, other, share: float) -> Cast:
    levels = (0.0, share, share / 2, 0.0)
    return Cast(Merge("zero_aware", (Prune(one, levels), other), (share, 1 - share)), "float32")


def scored(recipe, accuracy: float, sparsity: float, **more) -> Evaluation:
    scores = {"a": tuple(np.linspace(0, accuracy, 50)), "b": tuple(np.linspace(accuracy, 0, 60))}
    return Evaluation(recipe, scores, sparsity, (0.0, sparsity, sparsity, 0.0), **more)


class Pair:
    """Both ends of a line."""

    def __init__(self):
        self.driver, self.worker = DriverLine(), WorkerLine()

    def ask(self, job: Job) -> int:
        """Send a job, hold what arrives against it, and return how long its letter was."""
        letter = self.driver.written(job)
        arrived = self.worker.read(letter)
        assert (arrived.number, arrived.recipes) == (job.number, job.recipes)
        assert [recipe.key for recipe in arrived.recipes] == [recipe.key for recipe in job.recipes]
        if job.rivals is None:
            assert arrived.rivals is None
        else:
            assert arrived.rivals.members == job.rivals.members
            assert (arrived.rivals.objectives, arrived.rivals.constraints) == (OBJECTIVES, LIMITS)
            assert (arrived.rivals.points == job.rivals.points).all()
        return len(letter)

    def answer(self, number: int, evaluation: Evaluation) -> int:
        letter = self.worker.written(number, evaluation, 1.5, {"scoring": 4096})
        answer, batches = self.driver.read(letter)
        assert (answer.number, answer.evaluation, answer.began) == (number, evaluation, 1.5)
        assert batches == {"scoring": 4096}
        return len(letter)


def test_a_letter_does_not_grow_with_the_lineage():
    pair, members = Pair(), [first(0.2), first(0.8)]
    asked, answered = [], []
    for number in range(200):
        recipe = child(members[-1], members[-2], (number + 1) / 300)
        asked.append(pair.ask(Job(number, (recipe,))))
        answered.append(pair.answer(number, scored(recipe, 0.5, 0.1)))
        members.append(recipe)
    assert max(asked) < SHORT
    assert max(asked[10:]) - min(asked[10:]) < 40
    assert max(answered) - min(answered) < 40


def test_what_went_to_others_goes_over_a_line_once():
    """A worker that sees every third child of a line is told the two between, and no more."""
    pair, members = Pair(), [first(0.2), first(0.8)]
    for number in range(200):
        members.append(child(members[-1], members[-2], (number + 1) / 300))
    sizes = [pair.ask(Job(number, (members[number],))) for number in range(4, 200, 3)]
    assert max(sizes) < 3 * SHORT
    late = Pair().ask(Job(0, (members[-1],)))
    assert late > 20 * SHORT, "a new worker is told a lineage whole"


def test_of_a_candidate_that_went_over_the_line_a_name_is_left():
    pair, recipe = Pair(), first(0.5)
    assert pair.ask(Job(0, (recipe,))) > 200
    assert pair.ask(Job(1, (recipe,))) < 120
    assert pair.answer(1, Evaluation(recipe, reason="out of memory")) < 500


def test_rivals_travel_once_and_those_that_a_worker_evaluated_never():
    pair, front = Pair(), Front(OBJECTIVES, LIMITS)
    own = first(0.1)
    pair.ask(Job(0, (own,), front))
    evaluation = scored(own, 0.9, 0.0)
    pair.answer(0, evaluation)
    front = front.after(evaluation)
    with_own = pair.ask(Job(1, (first(0.2),), front))
    assert with_own < 1000, "without its scores, which are as long"
    pair.answer(1, scored(first(0.2), 0.1, 0.0))
    for number, sparsity in enumerate((0.1, 0.2, 0.3, 0.4), 2):
        front = front.after(scored(first(number), 0.9 - sparsity, sparsity))
    assert len(front.members) == 5
    with_new = pair.ask(Job(2, (first(0.3),), front))
    again = pair.ask(Job(3, (first(0.4),), front))
    assert with_new > with_own + 4 * 500, "scores of four others"
    assert again < with_own + 200


@pytest.mark.parametrize(
    "evaluation",
    [
        lambda recipe: scored(recipe, 0.7, 0.25, speed=1.5, tokens=12_345, sparseness=(0.1, 0.2)),
        lambda recipe: Evaluation(recipe, reason="log probabilities are not finite", seconds_merge=0.25),
        lambda recipe: Evaluation(
            recipe, reason="stopped", sparsity=0.1, stopped=Stopped("0" * 64, {"a": 20}, {"x": 0.1}, {"x": 0.2})
        ),
        lambda recipe: scored(recipe, 0.7, 0.25, screened=Screened(3, 1, 0.9, 400, 0.5)),
        lambda recipe: Evaluation(recipe, {"a": (1 / 3,), "b": (2 / 3,)}, 1 / 3, (1 / 3,)),
    ],
    ids=["with everything", "failed", "stopped", "screened", "thirds"],
)
def test_evaluations_arrive_as_they_were_and_can_be_rivals_after(evaluation):
    pair, recipe = Pair(), first(0.5)
    pair.ask(Job(7, (recipe,)))
    made = evaluation(recipe)
    pair.answer(7, made)
    pair.ask(Job(8, (first(0.6),), Front(OBJECTIVES, LIMITS).after(made)))


def test_a_recipe_with_scopes_resolved_and_the_chosen_alternative_are_known_from_then_on():
    pair = Pair()
    asked = Cast(Prune(first(0.5), 0.5, scope="global"), "float32")
    resolved = Cast(Prune(first(0.5), (0.0, 0.4, 0.6, 0.0)), "float32")
    pair.ask(Job(0, (asked,)))
    pair.answer(0, scored(resolved, 0.7, 0.25))
    assert pair.ask(Job(1, (child(resolved, asked, 0.5),))) < SHORT
    several = tuple(child(resolved, asked, share) for share in (0.1, 0.2, 0.3))
    assert pair.ask(Job(2, several)) < 3 * SHORT
    pair.answer(2, scored(several[2], 0.7, 0.25, screened=Screened(3, 2, 0.9, 400)))
    assert pair.ask(Job(3, (child(several[2], several[1], 0.5),))) < SHORT


def test_a_long_search_stays_in_step():
    """Children of random members, some with rivals, some resolved, some failed, answered on one line of three."""
    rng, pairs = np.random.default_rng(0), [Pair() for _ in range(3)]
    members, front = [first(i / 10) for i in range(4)], Front(OBJECTIVES, LIMITS)
    for number in range(300):
        one, other = (members[i] for i in rng.integers(max(0, len(members) - 20), len(members), 2))
        recipe = child(one, other, round(float(rng.random()), 3))
        pair = pairs[int(rng.integers(3))]
        pair.ask(Job(number, (recipe,), front if number % 3 else None))
        if number % 7 == 0:
            pair.answer(number, Evaluation(recipe, reason="out of memory"))
            continue
        came = Cast(Prune(recipe, (0.0, 0.5, 0.0, 0.0)), "float32") if number % 5 == 0 else recipe
        evaluation = scored(came, float(rng.random()), float(rng.random()) / 2)
        pair.answer(number, evaluation)
        front = front.after(evaluation)
        members.append(came)
    depth, node = 0, members[-1]
    while children(node):
        depth, node = depth + 1, children(node)[0]
    assert depth > 30


def test_writing_a_letter_takes_no_time_that_grows_with_the_lineage():
    pair, members = Pair(), [first(0.2), first(0.8)]
    for number in range(2000):
        recipe = child(members[-1], members[-2], (number + 1) / 3000)
        pair.driver.written(Job(number, (recipe,)))
        members.append(recipe)
    start = time.process_time()
    pair.driver.written(Job(2000, (child(members[-1], members[-2], 0.9),)))
    assert time.process_time() - start < 0.02
