from __future__ import annotations

import pytest
from crews import ScriptedCrew, Stands, best_of
from scripted_study import LANDSCAPE, LIMITS, OBJECTIVES, Setup

from sae_moo.objectives.front import Front
from sae_moo.recipe import Cast, Expert, Merge
from sae_moo.study.cluster import Cluster, RayCrew
from sae_moo.study.executor import Executor, Job
from sae_moo.study.local import LocalExecutor
from sae_moo.study.loop import Study
from sae_moo.study.pool import PooledExecutor
from sae_moo.study.processes import ProcessCrew
from sae_moo.testing.searchers import Landscape


def merge(weight: float) -> Cast:
    return Cast(Merge("linear", (Expert("math"), Expert("code")), (weight, 1.0)), "float32")


def local() -> Executor:
    landscape = Landscape()
    return LocalExecutor(landscape, best_of(landscape))


CLUSTER = "actors of a Ray cluster"
EXECUTORS = {
    "local": local,
    "one worker": lambda: PooledExecutor(ScriptedCrew(1)),
    "workers that answer the other way round": lambda: PooledExecutor(ScriptedCrew(4)),
    "processes": lambda: PooledExecutor(ProcessCrew(Stands(), 2)),
    CLUSTER: lambda: PooledExecutor(RayCrew(Stands(), Cluster(2))),
}


@pytest.fixture(params=EXECUTORS, scope="module")
def executor(request):
    if request.param == CLUSTER:
        request.getfixturevalue("machines")
    made = EXECUTORS[request.param]()
    yield made
    made.close()
    made.close()


def test_every_job_comes_back_once_with_what_the_candidate_is(executor):
    recipes, back, number = [merge(0.1 * i) for i in range(9)], {}, 0
    assert executor.free
    assert not executor.busy
    while number < len(recipes) or executor.busy:
        while executor.free and number < len(recipes):
            executor.submit(Job(number, (recipes[number],)))
            number += 1
            assert executor.busy
        answer = executor.wait()
        assert answer.number not in back
        back[answer.number] = answer.evaluation
    landscape = Landscape()
    assert back == {i: landscape(recipe) for i, recipe in enumerate(recipes)}
    assert executor.free


def test_more_than_it_has_room_for_the_same_number_and_nothing_out_are_faults_of_the_caller(executor):
    with pytest.raises(RuntimeError, match="no job is out"):
        executor.wait()
    number = 0
    while executor.free:
        executor.submit(Job(number, (merge(number),)))
        with pytest.raises(RuntimeError, match="not come back"):
            executor.submit(Job(0, (merge(0.5),)))
        number += 1
    with pytest.raises(RuntimeError, match="not come back"):
        executor.submit(Job(99, (merge(0.5),)))
    assert sorted(executor.wait().number for _ in range(number)) == list(range(number))


def test_of_several_recipes_one_is_evaluated_and_rivals_are_held_against_it(executor):
    landscape = Landscape()
    rivals = Front(OBJECTIVES, LIMITS, [landscape(merge(0.3))])
    for number, front in enumerate((None, rivals, rivals)):
        executor.submit(Job(number, (merge(0.1), merge(0.2)), front))
        answer = executor.wait()
        assert answer.evaluation == landscape(merge(0.2))
        assert answer.began is not None


def test_a_generational_study_is_the_same_whoever_evaluates(tmp_path, executor):
    setup = Setup(tmp_path / "s")
    storage = setup.storage()
    rest = {"evaluations": 40, "versions": "v"}
    Study(storage, setup_searcher(), executor, **LANDSCAPE, **rest).run()
    whole = Setup(tmp_path / "whole").run()
    asked, told = 10, 11
    assert [fact[:asked] + fact[told + 1 :] for fact in setup.facts()] == [f[:asked] + f[told + 1 :] for f in whole]


def setup_searcher():
    from scripted_study import GROUND

    from sae_moo.searchers.nsga import NsgaSearcher
    from sae_moo.searchers.space import LineageSpace

    return NsgaSearcher(LineageSpace(GROUND), OBJECTIVES, LIMITS, population=8, seed=0)
