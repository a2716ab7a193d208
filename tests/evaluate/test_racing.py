from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sae_moo.evaluate.asking import Racing
from sae_moo.evaluate.evaluator import Evaluator
from sae_moo.evaluate.racing import Race, level, ridge
from sae_moo.evaluate.scorer import Scorer, dealt_parts
from sae_moo.evaluate.tasks import Item, ItemTask, split_items
from sae_moo.objectives import Constraint, Evaluation, Sparsity, Speed, TaskMean
from sae_moo.objectives.front import Front
from sae_moo.recipe import Cast, Expert, digest

ACCURACY = TaskMean("accuracy", ("a", "b"))
SPARSITY = Sparsity()
BOTH = (ACCURACY, SPARSITY)
N = {"a": 200, "b": 100}
USUAL = Racing(blocks=10, confidence=0.95, margin=0.0)


def evaluation(scores, sparsity=0.0, name="x") -> Evaluation:
    return Evaluation(Expert(name), {task: tuple(row) for task, row in scores.items()}, sparsity)


def flat(level: float, counts=N) -> dict[str, list[float]]:
    """Scores of 0 and 1 spread evenly, `level` of them 1."""
    return {task: [float((i + 1) * level // 1 > i * level // 1) for i in range(n)] for task, n in counts.items()}


def looks(blocks: int, counts=N) -> dict[str, list[int]]:
    return {task: [round(n * (i + 1) / blocks) for i in range(blocks)] for task, n in counts.items()}


def race(rivals: Front, sparsity=0.0, racing=USUAL, counts=N, speed=1.0) -> Race:
    order = {task: np.arange(n) for task, n in counts.items()}
    counted = {"sparsity": sparsity, "speed": speed}
    return Race(racing, rivals, order=order, looks=looks(racing.blocks, counts), counted=counted)


def run(rivals: Front, scores, sparsity=0.0, racing=USUAL):
    """The block a candidate is stopped at and by whom, or None."""
    counts = {task: len(row) for task, row in scores.items()}
    one = race(rivals, sparsity, racing, counts)
    for i in range(racing.blocks):
        seen = {task: np.array(row[: looks(racing.blocks, counts)[task][i]]) for task, row in scores.items()}
        beaten = one.beaten(seen)
        if beaten is not None:
            return i, *beaten
    return None


# How often many looks are wrong together


def test_a_single_look_has_the_whole_level():
    assert level((0.3,), 0.05) == pytest.approx(0.05, rel=1e-6)


@pytest.mark.parametrize(("count", "nominal"), [(2, 0.0294), (3, 0.0221), (5, 0.0158), (10, 0.0106)])
def test_looks_at_equal_steps_have_the_published_levels(count, nominal):
    """Pocock 1977, table 1: nominal two-sided levels for 0.05 overall; one side of them is half, to its precision."""
    times = tuple(step / (1 + step) for step in range(1, count + 1))  # share / (1 - share) grows by equal steps
    assert level(times, 0.025) == pytest.approx(nominal / 2, abs=1e-4)


def test_drawing_without_replacement_crosses_as_often_as_stated():
    rng = np.random.default_rng(0)
    population = rng.normal(size=400)
    population = (population - population.mean()) / population.std(ddof=1)
    shares = np.arange(1, 10) / 10
    counts = (shares * 400).astype(int)
    from scipy.stats import norm

    boundary = norm.isf(level(tuple(shares.tolist()), 0.1))
    orders = rng.permuted(np.tile(population, (20_000, 1)), axis=1)
    means = orders.cumsum(axis=1)[:, counts - 1] / counts
    crossed = (means / np.sqrt((1 - shares) / counts) > boundary).any(axis=1).mean()
    assert crossed == pytest.approx(0.1, abs=0.01)


# What is expected of the rest


def test_residuals_are_those_of_fits_without_the_instance():
    rng = np.random.default_rng(1)
    known, scores = rng.random((12, 3)), rng.random(12)
    groups = np.repeat([0, 1], [5, 7])

    def centred(values, kept):
        means = np.stack([values[kept & (groups == g)].mean(axis=0) for g in (0, 1)])
        return values - means[groups]

    everyone = np.ones(12, dtype=bool)
    coefficients, residual = ridge(centred(known, everyone), centred(scores, everyone), 1 / np.array([5, 7])[groups])
    a, y = centred(known, everyone), centred(scores, everyone)
    penalties = [p * (y**2).mean() for p in (4.0, 12.0, 40.0, 120.0, 400.0, 1200.0, 4000.0)]
    fits = {p: np.linalg.solve(a.T @ a + p * np.eye(3), a.T @ y) for p in penalties}
    chosen = min(fits, key=lambda p: np.abs(fits[p] - coefficients).max())
    assert coefficients == pytest.approx(fits[chosen])
    for i in range(12):
        kept = everyone.copy()
        kept[i] = False
        a, y = centred(known, kept), centred(scores, kept)
        fit = np.linalg.solve(a[kept].T @ a[kept] + chosen * np.eye(3), a[kept].T @ y[kept])
        assert residual[i] == pytest.approx(y[i] - a[i] @ fit)


def test_bounds_close_in_on_the_value():
    rng = np.random.default_rng(2)
    scores = {task: (rng.random(n) < 0.6).astype(float) for task, n in N.items()}
    rivals = Front(BOTH, members=(evaluation(flat(0.5)), evaluation(flat(0.4), 0.3)))
    one = race(rivals, sparsity=0.2)
    truth = (scores["a"].mean() + scores["b"].mean()) / 2
    widths = []
    for i in range(9):
        seen = {task: row[: looks(10)[task][i]] for task, row in scores.items()}
        expected, bound = one.bounds(seen)
        assert expected[1] == bound[1] == 0.2, "sparsity is counted, not estimated"
        assert truth < bound[0]
        assert expected[0] == pytest.approx(truth, abs=bound[0] - expected[0])
        widths.append(bound[0] - expected[0])
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.03


def test_what_a_rival_answers_alike_is_told_from_it():
    rng = np.random.default_rng(3)
    rival = {task: (rng.random(n) < 0.5).astype(float) for task, n in N.items()}
    alike = {task: np.where(rng.random(n) < 0.05, 1 - rival[task], rival[task]) for task, n in N.items()}
    seen = {task: row[: looks(10)[task][2]] for task, row in alike.items()}
    told, untold = (race(Front(BOTH, members=(evaluation(known),))).bounds(seen) for known in (rival, flat(0.5)))
    assert told[1][0] - told[0][0] < 0.6 * (untold[1][0] - untold[0][0])


def test_instances_that_all_come_out_alike_leave_some_doubt():
    rivals = Front(BOTH, members=(evaluation(flat(1.0)),))
    for i in (0, 4, 8):
        seen = {task: np.zeros(looks(10)[task][i]) for task in N}
        expected, bound = race(rivals).bounds(seen)
        assert expected[0] == pytest.approx(0)
        assert 0.001 < bound[0] < 0.1


def test_two_objectives_share_the_doubt_of_one():
    scores = flat(0.5, {"a": 200})
    twice = (TaskMean("a", ("a",)), TaskMean("once more", ("a",)))
    widths = []
    for objectives in (twice[:1], twice):
        rivals = Front(objectives, members=(evaluation(flat(0.7, {"a": 200})),))
        expected, bound = race(rivals, counts={"a": 200}).bounds({"a": np.array(scores["a"][:40])})
        widths.append(bound[0] - expected[0])
    assert widths[1] > 1.05 * widths[0]


# Who is stopped


def test_a_far_worse_candidate_is_stopped_at_the_first_look_by_the_one_farthest_ahead():
    better, best, sparser = evaluation(flat(0.7), 0.5), evaluation(flat(0.9), 0.4), evaluation(flat(0.8), 0.45)
    block, rival, expected, bound = run(Front(BOTH, members=(better, best, sparser)), flat(0.1), sparsity=0.3)
    assert (block, rival) == (0, best)
    assert expected["accuracy"] == pytest.approx(0.1, abs=0.05)
    assert expected["accuracy"] < bound["accuracy"] < 0.7
    assert bound["sparsity"] == 0.3


@pytest.mark.parametrize("racing", [USUAL, Racing(blocks=10, confidence=0.8, margin=0.0)])
def test_what_is_sparser_than_all_or_as_good_as_any_goes_on(racing):
    rivals = Front(BOTH, members=(evaluation(flat(0.9), 0.4),))
    assert run(rivals, flat(0.0), sparsity=0.41, racing=racing) is None
    assert run(rivals, flat(0.9), sparsity=0.4, racing=racing) is None, "an equal is not dominated"


@pytest.mark.parametrize(("speed", "stopped"), [(4.0, True), (4.1, True), (4.3, False)])
def test_speed_counts_as_the_share_of_time_that_it_saves(speed, stopped):
    rival = replace(evaluation(flat(0.9)), speed=4.0)
    racing = Racing(blocks=10, confidence=0.95, margin=0.01)  # 1 - 1/4.1 is less than that above 1 - 1/4
    one = race(Front((ACCURACY, Speed()), members=(rival,)), racing=racing, speed=speed)
    beaten = one.beaten({task: np.array(row[: N[task] // 10]) for task, row in flat(0.1).items()})
    assert (beaten is not None) == stopped
    if beaten is not None:
        assert beaten[2]["speed"] == speed, "people are told the speed itself"


def test_there_is_no_race_without_rivals():
    with pytest.raises(ValueError, match="rivals: expected at least one in front"):
        race(Front(BOTH))


def test_a_margin_stops_what_is_hardly_beyond_the_front():
    rivals = Front(BOTH, members=(evaluation(flat(0.9), 0.4),))
    assert run(rivals, flat(0.5), sparsity=0.42) is None
    assert run(rivals, flat(0.5), sparsity=0.42, racing=Racing(blocks=10, confidence=0.95, margin=0.01)) is None
    assert run(rivals, flat(0.5), sparsity=0.42, racing=Racing(blocks=10, confidence=0.95, margin=0.03)) is not None


def test_every_objective_counts():
    apart = (TaskMean("a", ("a",)), TaskMean("b", ("b",)))
    rivals = Front(apart, members=(evaluation({"a": flat(0.9)["a"], "b": flat(0.5)["b"]}),))
    worse_in_both = {"a": flat(0.2)["a"], "b": flat(0.1)["b"]}
    better_in_one = {"a": flat(0.2)["a"], "b": flat(0.8)["b"]}
    assert run(rivals, worse_in_both) is not None
    assert run(rivals, better_in_one) is None


def test_tasks_too_small_for_a_look_are_waited_for():
    counts = {"a": 200, "b": 5}  # ten blocks: b has its second instance in the fourth
    rivals = Front(BOTH, members=(evaluation(flat(1.0, counts), 0.5),))
    block, *_ = run(rivals, flat(0.0, counts))
    assert looks(10, counts)["b"][block] >= 2
    assert looks(10, counts)["b"][block - 1] < 2


@pytest.mark.parametrize("scale", [0.1, 0.01])
def test_scores_that_hardly_spread_are_predicted_as_well(scale):
    rng = np.random.default_rng(2)
    known = rng.normal(size=(40, 4))
    scores = known @ [1.0, -0.5, 0.2, 0.0] + rng.normal(size=40) / 3
    known, scores = known - known.mean(axis=0), scores - scores.mean()
    own = np.full(40, 1 / 40)
    coefficients, residual = ridge(known, scores, own)
    small, less = ridge(known * scale, scores * scale, own)
    assert small == pytest.approx(coefficients)
    assert less == pytest.approx(residual * scale)
    assert np.isfinite(np.concatenate(ridge(known, np.zeros(40), own))).all(), "nor does anything go wrong without any"


@pytest.mark.parametrize("count", [5, 6, 8, 12])
def test_instances_that_do_not_fill_the_blocks_race_all_the_same(count):
    counts = {"a": count}
    rivals = Front((TaskMean("a", ("a",)), SPARSITY), members=(evaluation({"a": [1.0] * count}, 0.5),))
    stopped = run(rivals, {"a": [0.0] * count})
    assert stopped is not None
    assert 2 <= looks(10, counts)["a"][stopped[0]] < count


def test_nobody_races_for_sparsity_alone():
    with pytest.raises(ValueError, match="expected an objective with tasks"):
        race(Front((SPARSITY,), members=(evaluation(flat(0.5), 0.5),)))


@pytest.mark.parametrize("values", [(1, 0.9, 0.0), (10, 0.4, 0.0), (10, 1.0, 0.0), (10, 0.9, -0.1), (10, 0.9, 1.0)])
def test_rules_out_of_range_are_refused(values):
    with pytest.raises(ValueError, match="should be"):
        Racing(**dict(zip(("blocks", "confidence", "margin"), values, strict=True)))


def test_a_task_of_one_instance_is_never_looked_at_early():
    counts = {"a": 200, "b": 1}
    assert run(Front(BOTH, members=(evaluation(flat(1.0, counts), 0.5),)), flat(0.0, counts)) is None


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_hardly_more_are_wrongly_stopped_than_stated(confidence):
    """Candidates just beyond the front, where errors are most likely: answers resemble those of the rivals."""
    rng = np.random.default_rng(4)
    ability, difficulty = rng.normal(size=6), {task: rng.normal(size=n) for task, n in N.items()}

    def answers(skill):
        return {
            task: (rng.random(n) < 1 / (1 + np.exp(3 * (d - skill)))).astype(float)
            for (task, n), d in zip(N.items(), difficulty.values(), strict=True)
        }

    wrong = tried = 0
    while tried < 400:
        rivals = Front(BOTH, members=tuple(evaluation(answers(skill), 0.3) for skill in ability))
        best = max(ACCURACY.value(each) for each in rivals.members)
        scores = answers(ability.max())
        if not 0 <= ACCURACY.value(evaluation(scores)) - best < 0.02:
            continue
        tried += 1
        wrong += (
            run(rivals, scores, sparsity=0.3, racing=Racing(blocks=10, confidence=confidence, margin=0.0)) is not None
        )
    assert wrong / tried <= 1 - confidence + 2 * np.sqrt(confidence * (1 - confidence) / tried)


# The front


def test_rivals_are_the_front_of_what_is_feasible_and_whole():
    limits = (Constraint(SPARSITY, high=0.6),)
    rivals = Front(BOTH, limits)
    first, better, sparser = evaluation(flat(0.5), 0.1), evaluation(flat(0.6), 0.1), evaluation(flat(0.4), 0.5)
    for each in (first, better, sparser):
        rivals = rivals.after(each)
    assert rivals.members == (better, sparser)
    for out in (evaluation(flat(0.1), 0.2), evaluation(flat(0.9), 0.7), Evaluation(Expert("x"), reason="broken")):
        assert rivals.after(out).members == (better, sparser)


# Parts, and a model behind them


def task(tiny, kind="exact_match", name="a", count=40) -> ItemTask:
    items = [Item(f"question {i} is", (f" {i}",)) for i in range(count + 10)]
    return ItemTask(name, kind, split_items(name, items, count, 5), tiny.tokenizer())


def test_parts_hold_every_instance_once_and_the_same_share_of_each_task(tiny):
    tasks = [task(tiny, name="a", count=40), task(tiny, name="b", count=27)]
    parts = Scorer(tasks, tokenizer=tiny.tokenizer(), blocks=10).order("search")
    for one in tasks:
        numbers = [part[one.name] for part in parts]
        assert sorted(np.concatenate(numbers).tolist()) == list(range(one.instances("search")))
        assert {len(part) for part in numbers} <= {one.instances("search") // 10, -(-one.instances("search") // 10)}
        assert not np.array_equal(np.concatenate(numbers), np.arange(one.instances("search"))), "shuffled"
        again = dealt_parts(one, "search", 10)
        assert all(np.array_equal(a, b) for a, b in zip(numbers, again, strict=True))
    assert len(Scorer(tasks, tokenizer=tiny.tokenizer(), blocks=10).order("test")) == 1


@pytest.mark.parametrize("kind", ["exact_match", "likelihood"])
def test_what_is_asked_in_parts_is_what_is_asked_at_once(tiny, tiny_model, kind):
    from sae_moo.materialization.into_model import materialize

    materialize(Cast(Expert("math"), "float32"), tiny, tiny_model)
    tasks = [task(tiny, kind, "a"), task(tiny, kind, "b", 23)]
    whole = Scorer(tasks).score(tiny_model, "search")
    parted = Scorer(tasks, blocks=7)
    for name, row in parted.score(tiny_model, "search").items():
        assert row == pytest.approx(whole[name], abs=1e-5)
    for part, scores in zip(parted.order("search"), parted.score_parts(tiny_model, "search"), strict=True):
        for name, row in scores.items():
            assert row == pytest.approx(whole[name][part[name]], abs=1e-5)


def test_a_candidate_is_stopped_and_says_why(tiny, tiny_model, monkeypatch):
    one = task(tiny, "likelihood")
    scorer = Scorer([one], blocks=10)
    asked = []
    original = ItemTask.score
    monkeypatch.setattr(
        ItemTask,
        "score",
        lambda self, split, answers, instances=None: (
            asked.append(len(instances)),
            original(self, split, answers, instances),
        )[1],
    )
    rival = Evaluation(Cast(Expert("code"), "float32"), {"a": (1.0,) * 40}, 0.9)
    rivals = Front((TaskMean("a", ("a",)), SPARSITY), members=(rival,))
    recipe = Cast(Expert("math"), "float32")
    bench = Evaluator(tiny, tiny_model, scorer, racing=Racing(blocks=10, confidence=0.9, margin=0.01))
    stopped = bench.evaluate(recipe, rivals)
    assert not stopped.ok
    assert stopped.scores == {}
    assert stopped.sparsity == bench.evaluate(recipe).sparsity
    assert stopped.stopped.instances == {"a": sum(asked[: asked.index(4) + 1])} == {"a": 4}
    assert stopped.stopped.rival == digest(rival.recipe, tiny.fingerprints)
    assert stopped.stopped.expected["a"] < stopped.stopped.bound["a"] < 1
    told = f"stopped after 4 of 40 instances: {stopped.stopped.rival[:8]} dominates it"
    assert stopped.reason == f"{told}, given the margin of 0.01"
    assert bench.evaluate(recipe, Front(rivals.objectives)).ok, "with nobody in front it is asked everything"
    assert Evaluator(tiny, tiny_model, scorer).evaluate(recipe, rivals).ok, "without racing too"
