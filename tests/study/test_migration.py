"""Studies that take over what others find while they search."""

from __future__ import annotations

import pytest
from scripted_study import GROUND, LANDSCAPE, LIMITS, OBJECTIVES, Script, Setup, interrupting
from stand_ins import Landscape

from sae_moo.errors import InputError, Interrupted
from sae_moo.objectives.front import Front, front_of
from sae_moo.recipe import Cast, Expert
from sae_moo.searchers.nsga import NsgaSearcher
from sae_moo.searchers.space import CoefficientSpace, LineageSpace
from sae_moo.study.events import Arrived, Resumed
from sae_moo.study.local import LocalExecutor
from sae_moo.study.loop import Study
from sae_moo.study.migration import Migrant
from sae_moo.study.record import Inherited, ended, evaluations, inherited, own, told

EVERY, COUNT = 8, 3


class Beside:
    """Brings members of the front of a study that is over."""

    def __init__(self, records):
        self.front = front_of(ended(records), OBJECTIVES).ranked
        self.visits, self.asked = None, []

    def due(self, made):
        before, self.visits = self.visits, made // EVERY
        return before is not None and self.visits > before

    def arrivals(self, known, whole):
        self.asked.append((len(known), whole))
        new = [each for each in self.front if each.digest not in known]
        return [Migrant(each, Inherited("other", each.number)) for each in (new if whole else new[:COUNT])]


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Trials of another search of the same."""
    study = Setup(tmp_path_factory.mktemp("other") / "s")
    study.run(32, seed=5)
    return study.storage().records()


def generation(searcher, landscape):
    """Evaluate one generation, and return it."""
    asked = searcher.ask(8)
    for proposal in asked:
        searcher.tell(proposal, landscape(proposal.recipe))
    return asked


def searched(tmp_path, other, name, pace="generational", *, racing=False, count=24):
    made = Setup(tmp_path / name, pace)
    made.rivals = Front(OBJECTIVES, LIMITS) if racing else None

    def run(evaluations=count, **rest):
        made.migration = Beside(other)
        return made.run(evaluations, **rest)

    return made, run


@pytest.mark.parametrize("racing", [False, True])
@pytest.mark.parametrize("pace", ["generational", "steady-state"])
def test_a_study_with_guests_stopped_anywhere_and_resumed_equals_an_unbroken_one(tmp_path, other, pace, racing):
    study, run = searched(tmp_path, other, "whole", pace, racing=racing)
    whole = run()
    records = study.storage().records()
    assert len(inherited(records)) > 2 * COUNT
    assert evaluations(records) == 24, "guests take nothing of its budget"
    for at in (7, 8, 9, 17, 23):
        broken, go_on = searched(tmp_path, other, f"broken-{at}", pace, racing=racing)
        with pytest.raises(Interrupted, match=rf"stopped after {at} evaluations; all are saved"):
            go_on(evaluate=interrupting(broken.landscape, at))
        assert go_on() == whole
        assert len(broken.landscape.evaluated) == sum(each.repeats is None for each in own(records))


def test_guests_come_between_evaluations_when_it_is_time_and_all_at_the_end(tmp_path, other):
    study, run = searched(tmp_path, other, "s")
    events = []
    run(listener=events.append)
    arrived = [event.record for event in events if isinstance(event, Arrived)]
    records = study.storage().records()
    assert arrived == inherited(records)
    assert [(each.inherited.study, each.evaluation, each.values) for each in arrived] == [
        ("other", other[each.inherited.number].evaluation, other[each.inherited.number].values) for each in arrived
    ]
    made = [sum(mine.inherited is None for mine in told(records)[: each.told]) for each in arrived]
    assert made[: 2 * COUNT] == [EVERY] * COUNT + [2 * EVERY] * COUNT
    assert set(made[2 * COUNT :]) <= {24}
    assert not {each.digest for each in study.migration.front} - {each.digest for each in records}
    assert len({each.digest for each in arrived}) == len(arrived), "nobody comes twice"
    assert study.migration.asked[-1][1] is True, "at its end it asks for all"
    assert [each.told for each in told(records)] == list(range(len(records)))


def test_later_candidates_race_against_guests(tmp_path, other):
    study, run = searched(tmp_path, other, "s", racing=True)
    met = []

    def evaluate(recipe, rivals=None):
        met.append(() if rivals is None else tuple(each.recipe for each in rivals.ranked))
        return study.landscape(recipe, rivals)

    run(evaluate=evaluate)
    guests = [each.recipe for each in inherited(study.storage().records())[:COUNT]]
    assert not any(set(guests) & set(before) for before in met[:EVERY])
    assert set(guests) & set(met[EVERY])


def test_guests_become_parents_and_are_not_evaluated(tmp_path, other):
    study, run = searched(tmp_path, other, "s", "steady-state", count=40)
    run()
    records = study.storage().records()
    guests = {each.number for each in inherited(records)}
    bred = [each for each in own(records) if guests & set(each.parents)]
    assert bred, "some child has a parent from elsewhere"
    for child in bred:
        assert all(records[number].told < child.asked_after for number in child.parents)
    assert not {each.recipe for each in inherited(records)} & set(study.landscape.evaluated)


def test_what_arrived_is_the_studys_own_and_looked_up_nowhere_when_it_is_resumed(tmp_path, other):
    study, run = searched(tmp_path, other, "s")
    whole = run()
    events = []
    study.migration = None
    assert study.run(24, listener=events.append) == whole
    assert [type(event) for event in events] == [Resumed]


def test_a_searcher_that_takes_in_nothing_is_refused_before_it_evaluates(tmp_path, other):
    setup = Setup(tmp_path / "s")
    storage, landscape = setup.storage(), setup.landscape
    searcher = Script([Cast(Expert(name), "float32") for name in ("math", "code")])
    rest = {"evaluations": 2, "versions": "v", "migration": Beside(other)}
    with pytest.raises(InputError, match=r"study.islands: the searcher takes in nothing that other searches find"):
        Study(storage, searcher, LocalExecutor(landscape), **LANDSCAPE, **rest).run()
    assert not landscape.evaluated


def test_a_search_over_coefficients_hosts_nobody(other):
    searcher = NsgaSearcher(CoefficientSpace(GROUND), OBJECTIVES, LIMITS, population=8)
    with pytest.raises(ValueError, match="expected a search over lineages"):
        searcher.host(ended(other)[0].evaluation)


def test_guests_before_the_first_generation_wait_for_it(other):
    landscape, guest = Landscape(), front_of(ended(other), OBJECTIVES).ranked[0].evaluation
    searcher = NsgaSearcher(LineageSpace(GROUND), OBJECTIVES, LIMITS, population=8, seed=0)
    first = searcher.ask(8)
    searcher.host(guest)
    for proposal in first:
        searcher.tell(proposal, landscape(proposal.recipe))
    bred = [proposal for _ in range(4) for proposal in generation(searcher, landscape)]
    assert guest.recipe in {parent for proposal in bred for parent in proposal.parents}
    assert guest.recipe not in landscape.evaluated
