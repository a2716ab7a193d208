"""Jobs that are split among idle workers: when, into how many shares, and what becomes of them."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from crews import ScriptedCrew, jobs
from scripted_study import GROUND, LANDSCAPE, LIMITS, OBJECTIVES, Setup

from sae_moo.objectives import Evaluation
from sae_moo.objectives.front import Front
from sae_moo.recipe import Cast, Expert, Merge
from sae_moo.searchers.nsga import NsgaSearcher
from sae_moo.searchers.space import LineageSpace
from sae_moo.study.executor import Job
from sae_moo.study.local import evaluated
from sae_moo.study.loop import Study
from sae_moo.study.pool import LOSSES, PooledExecutor
from sae_moo.study.post import WorkerLine
from sae_moo.study.splitting import MISFITS, Joining, Share, Shares, errand_of, found, misfit
from sae_moo.testing.searchers import Landscape

RECIPES = [Cast(Merge("linear", (Expert("math"), Expert("code")), (i / 30, 1 - i / 30)), "float32") for i in range(12)]


@dataclass
class Sharers:
    """Opens workers that evaluate the landscape, in shares too: every so-manieth instance.

    Args:
        most: among how many shares they say that a candidate can be split.
        misfits: whether what comes of shares is never put together.
        seconds: what scoring a candidate takes, as they say.

    Attributes:
        errands: what they were sent for, in their order.
    """

    most: int | None = None
    misfits: bool = False
    seconds: float = 0.0
    errands: list = field(default_factory=list)

    def __call__(self):
        line, landscape = WorkerLine(), Landscape()

        def answer(letter):
            errand = errand_of(line, letter)
            self.errands.append(errand)
            match errand:
                case Share(job, index, count):
                    scores = landscape(job.recipes[0]).scores
                    own = {task: row[index::count] for task, row in scores.items()}
                    return found(pickle.dumps(own), self.most, float(len(self.errands)), {})
                case Joining(job, findings):
                    if self.misfits:
                        return misfit({})
                    shares, scores = [pickle.loads(each) for each in findings], {}
                    for task in shares[0]:
                        row = [0.0] * sum(len(share[task]) for share in shares)
                        for i, share in enumerate(shares):
                            row[i :: len(shares)] = share[task]
                        scores[task] = tuple(row)
                    return line.written(
                        job.number,
                        replace(landscape(job.recipes[0]), scores=scores, seconds_score=self.seconds),
                        99.0,
                        {},
                    )
                case job:
                    evaluation = replace(evaluated(job, landscape, None), seconds_score=self.seconds)
                    return line.written(job.number, evaluation, 50.0, {})

        return answer, {}

    @property
    def sent(self):
        """What they were sent for, in short: a job's number; with a share and how many there are; with ``+``."""
        short = []
        for errand in self.errands:
            match errand:
                case Share(job, index, count):
                    short.append((job.number, index, count))
                case Joining(job):
                    short.append((job.number, "+"))
                case job:
                    short.append(job.number)
        return short


def pooled(size=4, **how) -> tuple[PooledExecutor, ScriptedCrew, Sharers]:
    sharers = Sharers(**how)
    crew = ScriptedCrew(size, lambda count: 0, sharers)
    executor = PooledExecutor(crew, splits=True, clock=lambda: crew.now)
    executor.submit(Job(100, (RECIPES[0],)))
    executor.wait()  # the first worker that is ready; now all are
    for each in range(size):
        executor.submit(Job(101 + each, (RECIPES[1],)))
    while executor.busy:
        executor.wait()
    sharers.errands.clear()
    return executor, crew, sharers


def answers(executor, given):
    for job in given:
        executor.submit(job)
    return sorted((executor.wait() for _ in given), key=lambda answer: answer.number)


def whole(recipes) -> list[Evaluation]:
    landscape = Landscape()
    return [landscape(recipe) for recipe in recipes]


@pytest.mark.parametrize(
    ("count", "sent"),
    [
        (1, [(0, 0, 4), (0, 1, 4), (0, 2, 4), (0, 3, 4), (0, "+")]),
        (2, [(0, 0, 2), (0, 1, 2), (1, 0, 2), (1, 1, 2), (0, "+"), (1, "+")]),
        (4, [0, 1, 2, 3]),
    ],
)
def test_fewer_jobs_than_idle_workers_are_split_among_them(count, sent):
    executor, _, sharers = pooled()
    found_out = answers(executor, jobs(RECIPES[:count]))
    assert [answer.evaluation for answer in found_out] == whole(RECIPES[:count])
    assert sharers.sent == sent
    assert found_out[0].began == (1.0 if count < 4 else 50.0)
    assert found_out[0].worker.count(",") == {1: 3, 2: 1, 4: 0}[count]
    assert executor.free
    assert not executor.busy


def test_jobs_beside_others_that_are_out_are_split_among_those_that_are_idle():
    executor, crew, sharers = pooled()
    for job in jobs(RECIPES[:4]):
        executor.submit(job)
    executor.wait()
    executor.wait()
    crew.order = lambda count: count - 1
    executor.submit(Job(9, (RECIPES[9],)))
    assert executor.wait().number == 9
    assert sharers.sent == [0, 1, (9, 1, 2), (9, 0, 2), (9, "+")]


def test_several_recipes_are_not_split_nor_more_than_there_are_batches():
    executor, _, sharers = pooled(most=2)
    answers(executor, jobs(RECIPES[:1]))
    sharers.errands.clear()
    answers(executor, jobs(RECIPES[1:2]))
    assert sharers.sent == [(0, 0, 2), (0, 1, 2), (0, "+")]
    shares = Shares()
    assert shares.best([Job(0, tuple(RECIPES[:2]))], 4) == 1
    assert shares.best([Job(0, tuple(RECIPES[:1]))], 1) == shares.best([], 4) == 1


def spent(merging, scoring, **rest) -> Evaluation:
    return Evaluation(RECIPES[0], seconds_merge=merging, seconds_score=scoring, **rest)


@pytest.mark.parametrize(
    ("merging", "scoring", "count", "idle", "best"),
    [
        (0.0, 1.0, 1, 8, 8),
        (1.0, 1.0, 1, 8, 8),
        (9.0, 1.0, 1, 8, 1),  # a tenth is scoring: too little is saved
        (0.0, 1.0, 2, 3, 3),  # of three workers each has a third of both
        (0.5, 1.0, 2, 3, 1),  # and would merge both
        (0.1, 1.0, 5, 8, 3),  # fifteen shares in two rounds
    ],
)
def test_what_merging_and_scoring_took_decides_into_how_many_shares(merging, scoring, count, idle, best):
    shares = Shares()
    shares.note(Job(0, (RECIPES[0],)), spent(3 * merging, scoring), 3)
    assert shares.best(jobs(RECIPES[:count]), idle) == best


def test_a_race_is_split_where_everything_in_shares_takes_less_than_what_races_are_asked():
    front = Front(OBJECTIVES, (), whole(RECIPES[:1]))
    racing, shares = Job(0, (RECIPES[0],), front), Shares()
    shares.note(Job(1, (RECIPES[0],)), spent(0.0, 1.0))
    assert shares.best([racing], 2) == 2
    for _ in range(3):
        shares.note(racing, spent(0.0, 0.4))
    assert [shares.best([racing], idle) for idle in (2, 4)] == [1, 4]
    shares.note(racing, spent(0.0, 1.2), 4)
    assert shares.best([racing], 4) == 4, "what it took in shares is no race's"
    assert Shares(races=False).best([Job(1, (RECIPES[0],)), racing], 4) == 1
    assert Shares(races=False).best([Job(1, (RECIPES[0],))], 4) == 4


def test_only_the_share_of_a_lost_worker_goes_to_another():
    executor, crew, sharers = pooled(2)
    crew.losing = ["w2"]
    crew.order = lambda count: count - 1
    (answer,) = answers(executor, jobs(RECIPES[3:4]))
    assert answer.evaluation == whole(RECIPES[3:4])[0]
    assert (answer.losses, answer.worker) == (1, "w1, w3")
    assert sorted(sharers.sent[:2]) == [(0, 0, 2), (0, 1, 2)]
    assert sharers.sent[2:] == [(0, "+")]


def test_a_job_over_whose_shares_workers_are_lost_has_failed_and_what_is_left_of_it_counts_for_nothing():
    executor, crew, sharers = pooled(3)
    crew.losing = ["any"] * LOSSES
    (answer,) = answers(executor, jobs(RECIPES[3:4]))
    assert answer.evaluation.reason == "2 workers were lost over it, the last one: killed"
    assert answer.losses == LOSSES
    again = answers(executor, [Job(i, (RECIPES[i],)) for i in (5, 6, 7)])
    assert [each.evaluation for each in again] == whole(RECIPES[5:8])
    assert (0, "+") not in sharers.sent


def test_shares_that_do_not_fit_are_evaluated_whole_and_soon_none_is_split():
    executor, _, sharers = pooled(2, misfits=True)
    for i in range(MISFITS + 1):
        (answer,) = answers(executor, [Job(i, (RECIPES[i],))])
        assert answer.evaluation == whole(RECIPES[i : i + 1])[0]
        assert answer.began == 50.0
        assert "," not in answer.worker
    split = [number for number, *_ in (each for each in sharers.sent if isinstance(each, tuple))]
    assert sorted(set(split)) == list(range(MISFITS))
    assert [each for each in sharers.sent if isinstance(each, int)] == list(range(MISFITS + 1))


def test_workers_that_compute_other_numbers_of_tokens_at_once_do_not_share(monkeypatch):
    executor, _, sharers = pooled(2)
    executor._batches["w1"] = {"passes": 64}
    answers(executor, jobs(RECIPES[:1]))
    assert sharers.sent == [0]


@pytest.mark.parametrize(
    ("passed", "idle", "best"),
    [(0.0, 3, 3), (0.6, 3, 3), (0.7, 3, 1), (0.4, 2, 2), (0.5, 2, 1), (0.0, 1, 1), (None, 3, 3)],
)
def test_a_job_that_was_begun_is_split_where_shares_are_done_a_tenth_sooner(passed, idle, best):
    job, shares = Job(0, (RECIPES[0],)), Shares()
    assert shares.best([job], idle, 0.0) == 1, "nothing is known yet"
    shares.note(job, spent(0.0, 1.0))
    assert shares.best([job], idle, passed) == best
    counted = Shares(races=False)
    counted.note(job, spent(0.0, 1.0))
    assert counted.best([job], 8, 0.0) == 1, "asked twice, it takes more forward tokens"


def tail(seconds=1.0, **how):
    """Five jobs on four workers, until all but the last one are back; the first worker, which has it, is the slowest."""
    executor, crew, sharers = pooled(**how)
    sharers.seconds = seconds
    for job in jobs(RECIPES[:4]):
        executor.submit(job)
    ended = [executor.wait()]
    crew.now += seconds
    executor.submit(Job(4, (RECIPES[4],)))
    crew.order = lambda count: next((i for i, (name, _) in enumerate(crew.out) if name != "w1"), 0)
    ended += [executor.wait() for _ in range(3)]
    return executor, crew, sharers, ended


LAST = [(4, 0, 2), (4, 1, 2)]
"""What of the last job goes to those that were idle first."""


def test_the_last_job_is_shared_by_those_that_are_idle_and_who_is_late_with_it_goes_on_with_the_next():
    executor, crew, sharers, ended = tail()
    last = executor.wait()
    assert [answer.number for answer in ended] == [0, 1, 2, 3]
    assert (last.number, last.worker) == (4, "w2, w3")
    assert last.evaluation == replace(whole(RECIPES[4:5])[0], seconds_score=1.0)
    assert sharers.sent == [0, 1, 2, 3, *LAST, (4, "+")]
    assert (executor.busy, executor.free, [name for name, _ in crew.out]) == (False, True, ["w1"])
    crew.order = lambda count: 0
    again = answers(executor, [Job(i, (RECIPES[i],)) for i in range(5, 9)])
    assert [answer.evaluation.scores for answer in again] == [each.scores for each in whole(RECIPES[5:9])]
    assert {answer.worker for answer in again} == {"w1", "w2", "w3", "w4"}, "its late answer counted for nothing"


def test_who_has_all_of_the_last_job_answers_where_that_is_sooner():
    executor, crew, sharers, _ = tail()
    crew.order = lambda count: next(i for i, (name, _) in enumerate(crew.out) if name == "w1")
    last = executor.wait()
    assert (last.worker, last.began) == ("w1", 50.0)
    assert last.evaluation == replace(whole(RECIPES[4:5])[0], seconds_score=1.0)
    crew.order = lambda count: 0
    again = answers(executor, [Job(i, (RECIPES[i],)) for i in range(5, 9)])
    assert [answer.evaluation.scores for answer in again] == [each.scores for each in whole(RECIPES[5:9])]
    assert (4, "+") not in sharers.sent


def test_nobody_shares_the_last_job_before_it_is_known_what_jobs_take():
    executor, _, sharers, _ = tail(seconds=0.0)
    assert executor.wait().worker == "w1"
    assert sharers.sent == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("lost", "worker"), [(["w1"], "w2, w3"), (["w2"], "w1"), (["w3", "w1"], ""), (["w2", "w3", "w1"], "")]
)
def test_whoever_is_left_with_the_last_job_answers_where_others_are_lost_over_it(lost, worker):
    executor, crew, _, _ = tail()
    crew.losing = list(lost)
    if lost[0] == "w1":
        crew.order = lambda count: next((i for i, (name, _) in enumerate(crew.out) if name == "w1"), 0)
    last = executor.wait()
    assert last.number == 4
    if len(lost) < LOSSES:
        assert (last.worker, last.losses) == (worker, 1)
        assert last.evaluation.scores == whole(RECIPES[4:5])[0].scores
    else:
        assert (last.evaluation.reason, last.losses) == ("2 workers were lost over it, the last one: killed", LOSSES)
    crew.losing = []
    again = answers(executor, [Job(i, (RECIPES[i],)) for i in range(5, 9)])
    assert [answer.evaluation.scores for answer in again] == [each.scores for each in whole(RECIPES[5:9])]


def test_shares_of_the_last_job_that_do_not_fit_leave_it_to_who_has_all_of_it():
    executor, _, sharers, _ = tail(misfits=True)
    assert executor.wait().worker == "w1"
    assert sharers.sent == [0, 1, 2, 3, *LAST, (4, "+"), 4]


@pytest.mark.parametrize("order", [0, -1])
def test_a_study_whose_candidates_are_split_is_the_study_that_one_worker_makes(tmp_path, order):
    alone = Setup(tmp_path / "alone").run(evaluations=24)
    setup, sharers = Setup(tmp_path / "s"), Sharers()
    crew = ScriptedCrew(20, lambda count: order % count, sharers)
    searcher = NsgaSearcher(LineageSpace(GROUND), OBJECTIVES, LIMITS, population=8, seed=0)
    executor = PooledExecutor(crew, splits=True)
    Study(setup.storage(), searcher, executor, **LANDSCAPE, evaluations=24, versions="v").run()
    asked, told = 10, 11
    assert [f[:asked] + f[told + 1 :] for f in setup.facts()] == [f[:asked] + f[told + 1 :] for f in alone]
    kinds = [type(errand) for errand in sharers.errands]
    assert kinds.count(Joining) >= 12, "of two generations, but for what repeats"
    assert kinds.count(Share) >= 2 * kinds.count(Joining)
    assert kinds.count(Job) + kinds.count(Joining) <= 24


def untimed(fact):
    """A fact about a trial, an evaluation without the time that it took."""
    return replace(fact, seconds_score=0.0) if isinstance(fact, Evaluation) else fact


class Timed(ScriptedCrew):
    """Workers that answer in any order, each answer a while after the last."""

    def __init__(self, size, stands, seed) -> None:
        self.rng = np.random.default_rng(seed)
        super().__init__(size, lambda count: int(self.rng.integers(count)), stands)

    def hear(self, seconds=None):
        self.now += self.rng.uniform(0.0, 0.4)
        return super().hear(seconds)


@pytest.mark.parametrize("seed", range(3))
def test_a_study_whose_last_candidates_are_shared_is_the_study_that_one_worker_makes(tmp_path, seed):
    alone = Setup(tmp_path / "alone").run(evaluations=24)
    setup, sharers = Setup(tmp_path / "s"), Sharers(seconds=1.0)
    crew = Timed(6, sharers, seed)
    searcher = NsgaSearcher(LineageSpace(GROUND), OBJECTIVES, LIMITS, population=8, seed=0)
    executor = PooledExecutor(crew, splits=True, clock=lambda: crew.now)
    Study(setup.storage(), searcher, executor, **LANDSCAPE, evaluations=24, versions="v").run()
    asked, told = 10, 11
    facts = [tuple(map(untimed, fact)) for fact in setup.facts()]
    assert [f[:asked] + f[told + 1 :] for f in facts] == [f[:asked] + f[told + 1 :] for f in alone]
    whole_ones = {errand.number for errand in sharers.errands if isinstance(errand, Job)}
    assert whole_ones & {errand.job.number for errand in sharers.errands if isinstance(errand, Share)}, "of the last"
