"""Searches of which several candidates are out at a time: whatever order answers come in, they resume as they were."""

from __future__ import annotations

from functools import partial

import optuna
import pytest
import scripted_study
from crews import ScriptedCrew, ShuffledCrew
from scripted_study import GROUND, LANDSCAPE, LIMITS, OBJECTIVES, Script, facts_of
from searchers_to_resume import SEARCHERS
from stand_ins import Landscape

from sae_moo.errors import Interrupted
from sae_moo.objectives import Evaluation, Stopped
from sae_moo.objectives.front import Front
from sae_moo.recipe import Cast, Expert, Merge, digest
from sae_moo.searchers.algorithms import ALGORITHMS
from sae_moo.searchers.generated import GeneratingNsga
from sae_moo.searchers.learning import Generator
from sae_moo.searchers.nsga import NsgaSearcher
from sae_moo.searchers.prescreened import PrescreeningNsga
from sae_moo.searchers.prescreening import Prescreening
from sae_moo.searchers.schedule import Adaptive
from sae_moo.searchers.space import CoefficientSpace, LineageSpace
from sae_moo.study.journal import create_or_load
from sae_moo.study.local import LocalExecutor
from sae_moo.study.loop import Study
from sae_moo.study.pool import PooledExecutor
from sae_moo.study.record import ended
from sae_moo.study.trials import TrialStorage
from sae_moo.testing.searchers import assignment


class Setup(scripted_study.Setup):
    """A study in memory: what a file adds is tested elsewhere."""

    def __init__(self, *given, **more):
        super().__init__(*given, **more)
        self.kept = optuna.storages.InMemoryStorage()

    def storage(self):
        create_or_load(self.kept, "s", OBJECTIVES)
        return TrialStorage(self.kept, "s", OBJECTIVES, LIMITS, Landscape.fingerprints)


ASKED, TOLD = 10, 11  # places of `facts_of` that say when


def nsga(kind=NsgaSearcher, space=LineageSpace, **more):
    return lambda: kind(space(GROUND), OBJECTIVES, LIMITS, population=8, pace="steady-state", **more)


STEADY = {
    "steady": nsga(),
    "steady over coefficients": nsga(space=CoefficientSpace),
    "steady, adaptive": nsga(schedule=Adaptive()),
    "steady, pre-screened": nsga(PrescreeningNsga, prescreening=Prescreening(factor=3)),
    "steady, with a generator": nsga(
        GeneratingNsga, generator=Generator(share=0.5, adaptive=True, after=1, steps=3, widths=[8])
    ),
}
BY_GENERATION = [
    "nsga2 pre-screened",
    "nsga2, merge methods by credit",
    "adaptive",
    "generator",
    "cma-es",
    "evogm",
    "one-shot",
]


def pooled(crew):
    return PooledExecutor(crew, clock=lambda: crew.now)


def stopped(setup, crew, evaluations=18):
    with pytest.raises(Interrupted):
        setup.run(evaluations, executor=pooled(crew))
    return setup.storage().records()


@pytest.mark.parametrize("name", [*SEARCHERS, *STEADY])
def test_a_search_with_several_out_resumes_as_if_it_had_never_stopped(tmp_path, name):
    made = {**SEARCHERS, **STEADY}[name]
    crew = ShuffledCrew(3)
    whole = Setup(tmp_path / "whole", searcher=made).run(18, executor=pooled(crew))
    fresh = sum(fact[12] is None for fact in whole)
    assert crew.evaluated == fresh
    assert [fact[TOLD] for fact in whole] != sorted(fact[TOLD] for fact in whole), "answers came in another order"
    broken, done = Setup(tmp_path / "broken", searcher=made), 0
    for count in (fresh // 4, fresh // 3):
        crew = ShuffledCrew(3, until=count)
        records = stopped(broken, crew)
        done += crew.evaluated
        assert facts_of(ended(records)) == [fact for fact in whole if fact[TOLD] < len(ended(records))]
        assert {record.number: (record.asked, record.asked_after) for record in records} == {
            fact[0]: (fact[2], fact[ASKED]) for fact in whole[: len(records)]
        }
    crew = ShuffledCrew(3)
    assert broken.run(18, executor=pooled(crew)) == whole
    assert done + crew.evaluated == fresh, "nothing is evaluated twice"


@pytest.mark.parametrize("name", ["nsga2, merge methods by credit", "evogm", "sae", "tpe", "bandit", "steady"])
def test_it_may_be_resumed_with_more_workers_or_fewer(tmp_path, name):
    made = {**SEARCHERS, **STEADY}[name]
    setup, done, before = Setup(tmp_path / "s", searcher=made), 0, []
    for count, size in ((1, 3), (2, 2), (1, 5)):
        crew = ShuffledCrew(size, seed=size, until=count)
        records = stopped(setup, crew)
        done += crew.evaluated
        after = {record.number: record for record in records}
        assert all(after[record.number] == record for record in before)
        before = ended(records)
    facts = setup.run(18)
    assert [fact for fact in facts if fact[0] in {record.number for record in before}] == facts_of(before)
    assert [fact[0] for fact in facts] == list(range(len(facts))) != []
    assert done + len(setup.landscape.evaluated) == sum(fact[12] is None for fact in facts), (
        "nothing is evaluated twice"
    )


def undated(facts):
    return [fact[:ASKED] + fact[TOLD + 1 :] for fact in facts]


@pytest.mark.parametrize("name", BY_GENERATION)
def test_a_search_by_generations_is_the_same_whatever_order_answers_come_in(tmp_path, name):
    alone = Setup(tmp_path / "alone", searcher=SEARCHERS[name]).run(18)
    setup = Setup(tmp_path / "s", searcher=SEARCHERS[name])
    stopped(setup, ShuffledCrew(5, seed=1, until=3))
    together = setup.run(18, executor=pooled(ShuffledCrew(3, seed=2)))
    assert undated(together) == undated(alone)


class Racing(Landscape):
    """Stops what the front it is given dominates; that front is told, in its order: another one is another result."""

    def __call__(self, recipe, rivals=None):
        evaluation = super().__call__(recipe)
        if rivals is None or evaluation in rivals.after(evaluation).members:
            return evaluation
        rival = " ".join(digest(member.recipe, self.fingerprints) for member in rivals.members)
        told = {"accuracy": float(rivals.points[:, 0].sum())}
        return Evaluation(recipe, reason="stopped", stopped=Stopped(rival, {"a": len(rivals.members)}, told, told))


def test_a_race_by_generations_is_the_same_whoever_is_told_first(tmp_path):
    def raced(name, *crews):
        setup = Setup(tmp_path / name)
        setup.rivals, setup.by_generation = Front(OBJECTIVES, LIMITS), True
        for crew in crews[:-1]:
            stopped(setup, crew, 40)
        return undated(setup.run(executor=pooled(crews[-1])))

    crew = partial(ShuffledCrew, evaluate=Racing())
    whole = raced("whole", crew(1))
    assert 3 < [fact[1] for fact in whole].count("stopped") < 30
    assert raced("three", crew(3, seed=1)) == whole
    assert raced("broken", crew(4, seed=2, until=11), crew(2, seed=3, until=9), crew(5, seed=4)) == whole


@pytest.mark.parametrize("pace", ["generational", "steady-state"])
def test_a_race_against_all_that_was_told_resumes_as_it_was(tmp_path, pace):
    def setup(name):
        made = Setup(tmp_path / name, pace)
        made.rivals = Front(OBJECTIVES, LIMITS)
        return made

    whole = setup("whole").run(executor=pooled(ShuffledCrew(3, evaluate=Racing())))
    assert 3 < [fact[1] for fact in whole].count("stopped") < 30
    broken = setup("broken")
    for count in (9, 7):
        stopped(broken, ShuffledCrew(3, until=count, evaluate=Racing()), 40)
    assert broken.run(executor=pooled(ShuffledCrew(3, evaluate=Racing()))) == whole


def test_a_front_is_repaired_several_at_a_time_and_is_that_of_a_single_worker(tmp_path):
    def setup(name):
        made = Setup(tmp_path / name)
        made.finish = 3
        return made

    alone = setup("alone").run(18)
    crew = ShuffledCrew(3, seed=1)
    together = setup("together").run(18, executor=pooled(crew))
    assert undated(together) == undated(alone)
    assert [fact[ASKED] for fact in together[18:]] == [18, 18, 18], "all at once"
    broken = setup("broken")
    stopped(broken, ShuffledCrew(3, seed=1, until=crew.evaluated - 2), 18)
    assert undated(broken.run(18, executor=pooled(ShuffledCrew(2)))) == undated(alone)


MATH, CODE, LAW = (Cast(Expert(name), "float32") for name in ("math", "code", "law"))


def of(setup, recipes, executor):
    rest = {"evaluations": len(recipes), "versions": "v"}
    Study(setup.storage(), Script(recipes), executor, **LANDSCAPE, **rest).run()
    return setup.storage().records()


def test_what_is_out_is_not_evaluated_beside_itself(tmp_path):
    crew = ShuffledCrew(3)
    records = of(Setup(tmp_path / "s"), [MATH, MATH, CODE, MATH, LAW, CODE], pooled(crew))
    assert crew.evaluated == 3
    assert [record.repeats for record in records] == [None, 0, None, 0, None, 2]
    assert [record.evaluation for record in records] == [records[i].evaluation for i in (0, 0, 2, 0, 4, 2)]
    assert [record.told for record in records][1] == records[0].told + 1, "twins are told right after the first"


def test_twins_of_what_fails_fail_likewise(tmp_path):
    crew = ShuffledCrew(2, evaluate=lambda recipe, rivals: Evaluation(recipe, reason="out of memory"))
    records = of(Setup(tmp_path / "s"), [MATH, MATH, CODE], pooled(crew))
    assert [record.state for record in records] == ["failed"] * 3
    assert [record.repeats for record in records] == [None, 0, None]
    assert crew.evaluated == 2


def test_twins_of_what_kills_workers_kill_no_more_of_them(tmp_path):
    crew = ScriptedCrew(2, order=lambda count: 0)
    crew.losing = ["any", "any"]
    records = of(Setup(tmp_path / "s"), [MATH, MATH, MATH], pooled(crew))
    assert [record.state for record in records] == ["failed"] * 3
    assert [(record.repeats, record.losses) for record in records] == [(None, 2), (0, 0), (0, 0)]
    assert crew.begun == 4


@pytest.mark.parametrize("size", [1, 2, 4])
def test_twins_that_were_out_when_a_run_was_killed_are_evaluated_once(tmp_path, size):
    recipes = [
        CODE,
        MATH,
        MATH,
        MATH,
        LAW,
        Cast(Merge("linear", (Expert("math"), Expert("law")), (1.0, 2.0)), "float32"),
    ]
    setup = Setup(tmp_path / "s")
    with pytest.raises(Interrupted):
        of(setup, recipes, pooled(ShuffledCrew(4, until=0)))
    assert [record.state for record in setup.storage().records()] == ["running"] * 6
    crew = ShuffledCrew(size)
    records = of(setup, recipes, pooled(crew))
    assert crew.evaluated == 4
    assert [record.repeats for record in records] == [None, None, 1, 1, None, None]
    assert sorted(record.told for record in records) == list(range(6))


def test_the_first_of_twins_that_is_told_when_a_run_is_killed_is_what_the_others_repeat(tmp_path, monkeypatch):
    recipes, setup = [MATH, MATH, MATH, CODE], Setup(tmp_path / "s")
    told = []
    finish = Study._finish

    def dying(self, answer, repeats=None):
        if len(told) == 2:
            raise KeyboardInterrupt
        told.append(answer.number)
        finish(self, answer, repeats)

    monkeypatch.setattr(Study, "_finish", dying)
    with pytest.raises(Interrupted):
        of(setup, recipes, pooled(ScriptedCrew(2, order=lambda count: 0)))
    assert told == [0, 1]
    monkeypatch.undo()
    landscape = Landscape()
    records = of(setup, recipes, LocalExecutor(landscape))
    assert [record.repeats for record in records] == [None, 0, 0, None]
    assert [record.told for record in records] == [0, 1, 2, 3]
    assert landscape.evaluated == [CODE]


@pytest.mark.parametrize("name", sorted({*ALGORITHMS} - {"optuna:GPSampler", "optuna:CmaEsSampler"}))
@pytest.mark.parametrize("pace", ["generational", "steady-state"])
def test_what_asks_for_a_generation_at_a_time_says_so(name, pace):
    row, size = ALGORITHMS.find(name), 12
    if pace == "steady-state" and not row.paces:
        return
    quick = {"evogm": {"steps": 1, "widths": [8]}} if name == "evogm" else {}
    searcher, landscape = row.searcher(assignment(name, quick, population=size, pace=pace)), Landscape()
    first = searcher.ask(1000)
    assert 0 < len(first) <= size or not row.spaces
    assert not searcher.ask(1)
    for proposal in first:
        searcher.tell(proposal, landscape(proposal.recipe))
    later = searcher.ask(size + 1)
    if row.by_generation(pace):
        more = searcher.ask(1)
        assert len(later) > 0
        assert row.spaces == () or (len(later) <= size and not more)
    else:
        assert len(later) == size + 1
