"""What becomes of jobs when workers are lost, late, slow, or never begin."""

from __future__ import annotations

import logging

import pytest
from crews import ScriptedCrew, best_of, jobs
from scripted_study import LANDSCAPE, Script, Setup

from sae_moo.errors import InputError, RunError, StorageError
from sae_moo.recipe import Cast, Expert, Merge
from sae_moo.study.crew import Lost
from sae_moo.study.executor import Job
from sae_moo.study.local import LocalExecutor
from sae_moo.study.loop import Study
from sae_moo.study.pool import LOSSES, PooledExecutor
from sae_moo.study.post import WorkerLine
from sae_moo.study.roster import PAUSE, STARTS
from sae_moo.testing.searchers import Landscape

RECIPES = [Cast(Merge("linear", (Expert("math"), Expert("code")), (i / 30, 1 - i / 30)), "float32") for i in range(12)]


def pooled(crew) -> PooledExecutor:
    return PooledExecutor(crew, clock=lambda: crew.now)


def all_of(executor, waiting):
    """Every answer to some jobs, submitted as there is room."""
    waiting, answers = list(waiting), []
    while waiting or executor.busy:
        while waiting and executor.free:
            executor.submit(waiting.pop(0))
        answers.append(executor.wait())
    return answers


def test_the_job_of_a_lost_worker_goes_to_another_and_comes_back_once():
    crew = ScriptedCrew(2, order=lambda count: 0)
    crew.losing = ["w1"]
    answers = all_of(pooled(crew), jobs(RECIPES))
    landscape = Landscape()
    assert sorted(answer.number for answer in answers) == list(range(12))
    assert {a.number: a.evaluation for a in answers} == {i: landscape(each) for i, each in enumerate(RECIPES)}
    assert [answer.number for answer in answers if answer.losses] == [0]
    assert [answer.losses for answer in answers if answer.losses] == [1]
    assert {answer.worker for answer in answers} == {"w2", "w3"}
    assert crew.begun == 3


def test_a_candidate_that_kills_its_workers_has_failed_and_the_others_go_on():
    crew = ScriptedCrew(1)
    crew.losing = ["any"] * LOSSES
    first, *rest = all_of(pooled(crew), jobs(RECIPES[:4]))
    assert (first.number, first.losses, first.evaluation.recipe) == (0, 2, RECIPES[0])
    assert first.evaluation.reason == "2 workers were lost over it, the last one: killed"
    assert [(answer.number, answer.evaluation.ok, answer.losses) for answer in rest] == [
        (i, True, 0) for i in (1, 2, 3)
    ]


def test_a_worker_that_is_lost_idle_takes_nothing_with_it_and_is_replaced():
    crew = ScriptedCrew(2, order=lambda count: 0)
    executor = pooled(crew)
    executor.submit(Job(0, (RECIPES[0],)))
    assert executor.wait().number == 0
    executor.submit(Job(1, (RECIPES[1],)))
    crew.lose("w2")
    assert (executor.wait().losses, executor.busy) == (0, False)
    assert all_of(executor, [Job(2, (RECIPES[2],)), Job(3, (RECIPES[3],))])
    assert {name for name, _ in crew.sent} == {"w1", "w3"}


def test_a_worker_that_becomes_ready_late_gets_work_from_then_on():
    crew = ScriptedCrew(2, late=["w2"])
    executor = pooled(crew)
    for number in range(2):
        executor.submit(Job(number, (RECIPES[number],)))
    assert not executor.free, "it is counted before it is there"
    assert [executor.wait().worker, executor.wait().worker] == ["w1", "w1"]
    crew.arrive("w2")
    for number in range(2, 4):
        executor.submit(Job(number, (RECIPES[number],)))
    assert {executor.wait().worker, executor.wait().worker} == {"w1", "w2"}


def test_a_slow_worker_holds_nobody():
    crew = ScriptedCrew(3)
    crew.order = lambda count: next((i for i, (name, _) in enumerate(crew.out) if name != "w1"), 0)
    answers = all_of(pooled(crew), jobs(RECIPES))
    assert (answers[-1].number, answers[-1].worker) == (0, "w1"), "the slow one, with its first job"
    assert [answer.number for answer in answers[:-1]] == sorted(range(1, 12), key=lambda n: (n - 1) // 2)


def test_where_no_worker_ever_begins_the_search_ends_and_says_why():
    crew = ScriptedCrew(3, stillborn=1000)
    executor = pooled(crew)
    executor.submit(Job(0, (RECIPES[0],)))
    total = 3 + STARTS * 3
    told = f"no worker is left: {total} in a row were lost before they were ready, the last one: w{total} never began"
    for _ in range(2):
        with pytest.raises(RunError) as caught:
            executor.wait()
        assert str(caught.value) == told
    assert crew.begun == total
    rounds = [0.0, 0.0, PAUSE, PAUSE * 3]
    assert crew.begun_at == [when for when in rounds for _ in range(3)], "at once, then after longer and longer"


def test_where_some_never_begin_there_are_fewer_and_nothing_more_is_submitted(caplog):
    class Half(ScriptedCrew):
        """Its first worker is there; every other one is lost at once."""

        def arrive(self, name):
            super().arrive(name) if name == "w1" else self.heard.append(Lost(name, "no room"))

    crew = Half(2)
    executor = pooled(crew)
    answers, number = [], 0
    while number < 12 or executor.busy:
        while executor.free and number < 12:
            executor.submit(Job(number, (RECIPES[number],)))
            number += 1
        crew.now += PAUSE
        answers.append(executor.wait())
    assert sorted(answer.number for answer in answers) == list(range(12))
    assert crew.begun == 2 + STARTS * 2
    executor.submit(Job(20, (RECIPES[0],)))
    assert not executor.free, "one worker, one job"
    (told,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert told == "w8 could not be begun (no room); the work goes on with 1 worker"


def test_a_worker_that_is_there_ends_the_row_of_those_that_were_not():
    crew = ScriptedCrew(2, stillborn=STARTS * 2)
    executor = pooled(crew)
    assert len(all_of(executor, jobs(RECIPES[:3]))) == 3
    assert executor._roster._lost_early == 0


@pytest.mark.parametrize(
    ("said", "kind"),
    [(InputError, InputError), (StorageError, StorageError), (RunError, RunError), (None, RuntimeError)],
)
def test_a_worker_that_cannot_do_what_it_is_for_ends_the_search(said, kind):
    crew = ScriptedCrew(1)
    executor = pooled(crew)
    executor.submit(Job(0, (RECIPES[0],)))
    crew.refuse("items of a are others", said)
    crew.heard.rotate(1)
    with pytest.raises(kind) as caught:
        executor.wait()
    assert type(caught.value) is kind
    assert str(caught.value) == f"w1:{' ' if said else chr(10)}items of a are others"


def test_batch_sizes_are_told_when_they_change():
    said = []
    crew = ScriptedCrew(1)
    executor = PooledExecutor(crew, said.append)
    sizes = iter([{"scoring": 512}, {"scoring": 512}, {"scoring": 256}])
    line, landscape = WorkerLine(), Landscape()

    def answer(letter):
        job = line.read(letter)
        return line.written(job.number, landscape(job.recipes[0]), 0.0, next(sizes))

    executor.submit(Job(0, (RECIPES[0],)))
    crew.answers["w1"] = answer
    executor.wait()
    assert len(all_of(executor, jobs(RECIPES[1:3]))) == 2
    assert said == [{"scoring": 512}, {"scoring": 256}]


def study(tmp_path, executor, budget=12):
    setup = Setup(tmp_path / "s")
    rest = {"evaluations": budget, "versions": "v"}
    return Study(setup.storage(), Script(RECIPES), executor, **LANDSCAPE, **rest), setup


def test_a_candidate_that_kills_its_workers_is_a_failed_trial_with_its_reason(tmp_path):
    crew = ScriptedCrew(1)
    crew.losing = ["any"] * LOSSES
    searching, setup = study(tmp_path, pooled(crew))
    searching.run()
    records = setup.storage().records()
    assert [record.state for record in records] == ["failed"] + ["complete"] * 11
    assert records[0].evaluation.reason == "2 workers were lost over it, the last one: killed"
    assert (records[0].losses, records[0].worker, records[1].losses, records[1].worker) == (2, "w2", 0, "w3")


def test_a_study_whose_workers_were_all_lost_goes_on_when_it_is_run_again(tmp_path):
    class Dying(ScriptedCrew):
        """Nobody begins any more once three letters were answered."""

        def hear(self, seconds=None):
            if len(self.sent) == 5 and self.stillborn == 0:
                self.stillborn = 1000
                for name in tuple(self.answers):
                    self.lose(name)
            return super().hear(seconds)

    searching, setup = study(tmp_path, pooled(Dying(2, order=lambda count: 0)))
    with pytest.raises(RunError, match="no worker is left: 8 in a row"):
        searching.run()
    before = [record for record in setup.storage().records() if record.state == "complete"]
    assert len(before) == 3
    landscape = Landscape()
    again = study(tmp_path, LocalExecutor(landscape, best_of(landscape)))[0]
    again.run()
    records = setup.storage().records()
    assert [record.state for record in records] == ["complete"] * 12
    assert [records[each.number] for each in before] == before
    assert len(landscape.evaluated) == 9, "nothing is evaluated twice"
