from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stand_ins import NAMES
from synthetic import GROUPS, view

from sae_moo.config.document import Config
from sae_moo.config.sections import MethodSection
from sae_moo.explore.decide.pick import pick
from sae_moo.explore.run import Run
from sae_moo.jobs.compare.cells import Cell, outcome_of
from sae_moo.objectives import (
    Constraint,
    Evaluation,
    Sparsity,
    TaskMean,
    loss,
    minimized,
    named_quantities,
    violations,
)
from sae_moo.objectives.front import Accuracy, Front, front_of
from sae_moo.objectives.pareto import hypervolume, non_dominated
from sae_moo.recipe import Cast, Expert, Prune, digest
from sae_moo.searchers.ratio import RATIO, AnnealedRatio
from sae_moo.searchers.schedule import Adaptive
from sae_moo.searchers.searcher import Proposal
from sae_moo.study.executor import Answer
from sae_moo.study.folder import RunFolder, StudyHeader
from sae_moo.study.journal import create_or_load, describe, open_storage
from sae_moo.study.record import Ended
from sae_moo.study.trials import TrialStorage

SPARSITY = Sparsity()
OVERLAP = (TaskMean("first", ("a", "b")), TaskMean("second", ("b", "c")), SPARSITY)


def evaluated(means: dict[str, float], sparsity: float = 0.0, instances: int = 100, expert: str = "base") -> Evaluation:
    """Answers right or wrong, so many of them right."""
    scores = {task: tuple(float(i < round(mean * instances)) for i in range(instances)) for task, mean in means.items()}
    return Evaluation(Expert(expert), scores, sparsity)


def trial(number: int, evaluation: Evaluation, objectives=OVERLAP, **changes) -> Ended:
    """A trial as a study holds it."""
    record = Ended(
        number=number,
        recipe=evaluation.recipe,
        asked=evaluation.recipe,
        digest=f"{number}",
        asked_digest=f"{number}",
        evaluation=evaluation,
        values={each.name: each.value(evaluation) for each in objectives} if evaluation.ok else {},
        stderr={
            each.name: each.stderr(evaluation)
            for each in (*(TaskMean(task, (task,)) for task in evaluation.scores), *objectives)
            if evaluation.ok
        },
        feasible=evaluation.ok,
        operator="",
        generation=0,
        parents=(),
        asked_after=number,
        told=number,
        repeats=None,
    )
    return replace(record, **changes)


def page(records, objectives=OVERLAP, tasks=("a", "b", "c")):
    """A study of these trials, as pages show it; the first is the base."""
    best = front_of(records, objectives).ranked
    quantities = named_quantities(tasks, objectives)
    return replace(view(1), objectives=objectives, quantities=quantities, tasks=tasks, records=records, front=best)


def random_points(count: int, width: int, seed: int = 0) -> np.ndarray:
    """Points on a coarse grid, so that some are equal and many tie in one objective."""
    return np.random.default_rng(seed).integers(0, 8, (count, width)) / 7


def randomly(count: int, tasks: tuple[str, ...], seed: int = 0) -> list[Evaluation]:
    return [
        evaluated(dict(zip(tasks, row, strict=False)), float(row[-1]), 7)
        for row in random_points(count, len(tasks) + 1, seed)
    ]


# Accuracy


def test_the_knee_is_sought_within_the_error_that_the_page_shows():
    """Objectives that share a task err together: taken as independent, their mean looks better known than it is."""
    base = trial(0, evaluated(dict.fromkeys("abc", 0.5)))
    study = page([base])
    error = study.accuracy_error(base)
    assert error == pytest.approx(math.sqrt(0.25**2 + 0.5**2 + 0.25**2) * 0.5 / math.sqrt(99))
    for share, within in ((0.9, True), (1.1, False)):
        value = 0.5 - share * error
        values = {"first": value, "second": value, "sparsity": 0.5}
        less = replace(base, number=1, values=values, evaluation=replace(base.evaluation, sparsity=0.5))
        study = page([base, less])
        chosen, why = pick(study.front, OVERLAP, study.quantities, base=study.base)
        assert (chosen.number == 1) == within, why
        assert ("2 trials on the front at least as accurate as the base less its standard error" in why) == within


def test_an_evaluation_and_its_trial_are_as_accurate_and_as_well_known():
    one = evaluated({"a": 0.3, "b": 0.5, "c": 0.9})
    accuracy = Accuracy(OVERLAP)
    assert accuracy.shares == {"a": 0.25, "b": 0.5, "c": 0.25}
    assert accuracy.value(one) == accuracy.value(trial(0, one)) == pytest.approx(0.25 * 0.3 + 0.5 * 0.5 + 0.25 * 0.9)
    assert accuracy.stderr(one) == accuracy.stderr(trial(0, one)) == page([trial(0, one)]).accuracy_error(trial(0, one))
    assert accuracy.value(one) == pytest.approx(-loss(OVERLAP, accuracy.weights, (), one))
    rows = {"first": np.array([[0.1, 0.2]]), "second": np.array([[0.3, 0.6]]), "sparsity": np.array([[1.0, 1.0]])}
    assert accuracy.of(rows) == pytest.approx(np.array([[0.2, 0.4]]))


def test_one_objective_is_as_well_known_as_it_says():
    one, mean = evaluated({"a": 0.3, "b": 0.5, "c": 0.9}), TaskMean("mean", ("a", "b", "c"))
    assert Accuracy([mean, SPARSITY]).stderr(one) == pytest.approx(mean.stderr(one))
    assert Accuracy([mean, SPARSITY]).value(one) == mean.value(one)


def test_an_unknown_error_is_not_a_number_and_allows_nothing():
    base = trial(0, evaluated(dict.fromkeys("abc", 1.0), instances=1))
    study = page([base])
    assert math.isnan(Accuracy(OVERLAP).stderr(base))
    assert math.isnan(Accuracy(OVERLAP).stderr(base.evaluation))
    assert math.isnan(study.accuracy_error(base))
    assert math.isnan(Accuracy(OVERLAP).stderr(replace(base, stderr={})))
    less = replace(base, number=1, values={"first": 0.99, "second": 0.99, "sparsity": 0.9})
    less = replace(less, evaluation=replace(base.evaluation, sparsity=0.9))
    chosen, why = pick([base, less], OVERLAP, study.quantities, base=base)
    assert (chosen.number, "the one trial on the front at least as accurate" in why) == (0, True)


def test_without_an_objective_scored_on_tasks_nothing_is_accurate():
    accuracy, one = Accuracy([SPARSITY]), evaluated({"a": 0.5}, 0.25)
    assert not accuracy
    assert (accuracy.shares, accuracy.weights) == ({}, {})
    assert (accuracy.value(one), accuracy.stderr(one)) == (0.0, 0.0)
    assert accuracy.of({"sparsity": np.ones((2, 3))}).tolist() == [[0.0] * 3] * 2
    study = page([trial(0, one, (SPARSITY,))], (SPARSITY,), ("a",))
    assert (study.accuracy(study.records[0]), study.accuracy_error(study.records[0])) == (0.0, 0.0)
    assert [each.name for each in study.picks] == ["knee"]
    assert Accuracy(OVERLAP)


# The front


@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_a_front_taken_in_one_by_one_is_the_front_of_all(width):
    tasks = tuple("abcd"[: width - 1])
    objectives = (*(TaskMean(task, (task,)) for task in tasks), SPARSITY)
    limit = Constraint(SPARSITY, high=0.8)
    candidates = [*randomly(60, tasks), Evaluation(Expert("base"), reason="broken")]
    front, volume = Front(objectives, (limit,)), 0.0
    for i, candidate in enumerate(candidates):
        volume += front.gain(candidate)
        before, front = front, front.after(candidate)
        assert (front is before) == (candidate not in front.members)
        whole = front_of(candidates[: i + 1], objectives, (limit,))
        assert front.members == whole.members
        assert front.ranked == whole.ranked
        assert np.array_equal(front.points, whole.points)
        assert front.volume == whole.volume == pytest.approx(volume, abs=1e-12)
    kept = [one for one in candidates if one.ok and one.sparsity <= 0.8]
    values = np.array([[each.value(one) for each in objectives] for one in kept])
    assert list(front.members) == [one for one, best in zip(kept, non_dominated(values), strict=True) if best]


def test_the_front_as_it_was_stays_as_it_was():
    """What a candidate races against is handed to whoever evaluates it, while the search goes on."""
    first, better = evaluated({"a": 0.5}), evaluated({"a": 0.6})
    front = Front((TaskMean("a", ("a",)),), members=(first,))
    assert front.after(better).members == (better,)
    assert front.members == (first,)
    assert front.volume == 0.5


def test_of_equal_ones_all_are_kept_and_the_first_leads():
    worse, one, same = evaluated({"a": 0.5}, 0.5), evaluated({"a": 0.7}, 0.1), evaluated({"a": 0.7}, 0.1, expert="x")
    front = front_of([worse, one, same], (TaskMean("a", ("a",)), SPARSITY))
    assert front.members == (worse, one, same)
    assert front.ranked == (one, same, worse)
    assert front.gain(same) == 0.0
    assert front.volume == pytest.approx(0.7 * 0.1 + 0.5 * 0.4)


def test_what_is_infeasible_failed_or_repeated_does_not_contend():
    good = evaluated(dict.fromkeys("abc", 0.9), 0.9)
    out = [
        trial(0, good, feasible=False),
        trial(1, good, repeats=0),
        trial(2, Evaluation(Expert("base"), reason="broken")),
    ]
    front = Front(OVERLAP)
    for record in out:
        assert front.point(record) is None
        assert front.gain(record) == 0.0
        assert front.after(record) is front
    assert front_of(out, OVERLAP).members == ()
    assert front_of(out, OVERLAP).volume == 0.0
    limited = Front(OVERLAP, (Constraint(SPARSITY, high=0.5),))
    assert limited.point(good) is None
    assert limited.point(replace(good, sparsity=0.5)) is not None


def test_gains_that_credit_pruning_ratios_are_counted_as_ever():
    """To the last bit: an adaptive search is resumed by replay."""
    tasks = tuple("abcd")
    objectives, limits = (*(TaskMean(t, (t,)) for t in tasks), SPARSITY), (Constraint(SPARSITY, high=0.8),)
    ratio, credited = AnnealedRatio(Adaptive(), objectives, limits), []
    ratio.bandit.credit = lambda ratio, gain: credited.append(gain)
    front, volume, expected = np.empty((0, 5)), 0.0, []
    for candidate in [*randomly(150, tasks), Evaluation(Expert("base"), reason="broken")]:
        ratio.tell(Proposal(candidate.recipe, numbers={RATIO: 0.3}), candidate)
        if not candidate.ok or (violations(limits, candidate) > 0).any():
            expected.append(0.0)
            continue
        points = np.vstack([front, -minimized(objectives, candidate)])
        now = hypervolume(points)
        expected.append(max(0.0, now - volume))
        front, volume = points[non_dominated(points)], now
    assert credited == expected
    assert 10 < sum(gain > 0 for gain in credited) < 100


def studied(folder: Path, candidates: list[Evaluation]) -> Run:
    """A run of these evaluations on disk, with a limit; an evaluation that was there before repeats it."""
    config = Config.from_dict(
        {
            "study": {"name": "s"},
            "models": {"base": "zoo:base", "experts": {name: f"zoo:{name}" for name in NAMES[1:]}},
            "tasks": [{"name": t, "data": "x.jsonl", "kind": "likelihood", "search": 7} for t in "abc"],
            "objectives": [{"name": "first", "mean": ["a", "b"]}, {"name": "second", "mean": ["b", "c"]}, "sparsity"],
            "constraints": {"sparsity": {"max": 0.8}},
        },
        folder,
    )
    place = RunFolder(folder)
    storage = open_storage(place.journal, write=True)
    study, prints = create_or_load(storage, "s", config.objective_list()), dict.fromkeys(NAMES, "f" * 64)
    header = StudyHeader(
        config=config.model_dump(mode="json"), directory=str(folder), fingerprints=prints, groups=GROUPS, identity={}
    )
    describe(study, header.attributes())
    place.point("s", None)
    trials = TrialStorage(storage, "s", config.objective_list(), config.constraint_list(), prints)
    first: dict[int, int] = {}
    judged: dict[str, dict[str, np.ndarray]] = {}
    for told, evaluation in enumerate(candidates):
        proposal = Proposal(evaluation.recipe)
        number = trials.begin(proposal, digest(evaluation.recipe, prints), asked_after=told, versions="v")
        record = trials.finish(number, proposal, Answer(number, evaluation), told, first.get(id(evaluation)))
        first.setdefault(id(evaluation), number)
        if evaluation.ok:
            judged[record.digest] = {task: np.array(row) for task, row in evaluation.scores.items()}
    place.keep_judged(judged)
    return Run.open(folder)


def test_run_page_and_comparison_have_one_hypervolume(tmp_path):
    """Infeasible, failed and repeated trials among them."""
    candidates = [
        replace(each, recipe=Cast(Prune(Expert("base"), (i / 1000,) * len(GROUPS)), "float32"))
        for i, each in enumerate(randomly(80, tuple("abc"), 3))
    ]
    broken = Evaluation(Cast(Expert("base"), "float32"), reason="broken")
    best = max((each for each in candidates if each.sparsity <= 0.8), key=Accuracy(OVERLAP).value)
    run = studied(tmp_path, [*candidates[:40], broken, best, *candidates[40:], best])
    assert any(each.sparsity > 0.8 and each.mean("a") > 0.5 for each in candidates)
    study, judged = run.view(), RunFolder(run.folder).judged(run.tasks)
    outcome = outcome_of(Cell(MethodSection(name="m"), 0, run.config), study, judged)
    front = front_of(candidates, OVERLAP, run.config.constraint_list())
    assert run.front() == list(study.front)
    assert [record.evaluation for record in run.front()] == list(front.ranked)
    assert run.hypervolume() == front.volume
    assert study.hypervolumes[-1] == pytest.approx(front.volume, abs=1e-12)
    assert outcome.progress[:, 0].tolist() == study.hypervolumes.tolist()
    assert outcome.progress[-1, 1] == Accuracy(OVERLAP).value(best)
    assert [point.number for point in outcome.front] == [record.number for record in study.front]
    for record in run.trials():
        assert record.feasible == (record.evaluation.ok and record.evaluation.sparsity <= 0.8)
