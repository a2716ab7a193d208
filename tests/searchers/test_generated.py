"""Children of our own search that a learned generator makes."""

from __future__ import annotations

import numpy as np
import pytest

from sae_moo.objectives import Evaluation
from sae_moo.searchers.algorithms import ALGORITHMS
from sae_moo.searchers.generated import GENERATOR, GeneratingNsga
from sae_moo.searchers.generators import Generators
from sae_moo.searchers.ground import Ground
from sae_moo.searchers.learning import Generator
from sae_moo.searchers.nsga import NsgaSearcher
from sae_moo.searchers.ranking import by_front
from sae_moo.searchers.space import CoefficientSpace, LineageSpace
from sae_moo.testing.searchers import GROUND, LIMIT, OBJECTIVES, assignment, drive

SMALL = {"steps": 5, "widths": [16]}
SPACES = {
    "coefficients": CoefficientSpace(GROUND),
    "lineages": LineageSpace(GROUND),
    "lineages of one set": LineageSpace(Ground(GROUND.experts, GROUND.prunable, granularity="model")),
}


@pytest.fixture(params=SPACES)
def space(request):
    return SPACES[request.param]


def searcher(space, population=8, **changes):
    generator = Generator(**{**SMALL, "share": 1.0, **changes})
    return GeneratingNsga(space, OBJECTIVES, LIMIT, generator=generator, population=population)


def test_without_a_share_nothing_is_there_of_it(landscape):
    plain = ALGORITHMS["nsga2"].searcher(assignment("nsga2", {"prescreening": {"factor": 1}}))
    assert type(plain) is NsgaSearcher
    assert type(ALGORITHMS["nsga3"].searcher(assignment("nsga3", {"generator": {"share": 0.1}}))) is GeneratingNsga
    assert not any(proposal.vector for proposal, _ in drive(plain, landscape, 40))


def test_once_enough_is_known_children_are_what_g_makes_of_the_population(space, landscape):
    history = drive(searcher(space, after=2), landscape, 32)
    bred, made = history[:16], history[16:]
    assert not any(p.vector or p.operator == GENERATOR for p, _ in bred)
    vectors = CoefficientSpace(space.ground, sparsest=0.95) if isinstance(space, LineageSpace) else space
    evaluated = {e.recipe for _, e in bred}
    for proposal, _ in made:
        assert proposal.operator == GENERATOR
        assert proposal.recipe == vectors.decode(np.array(proposal.vector))
        assert proposal.numbers.keys() == {
            "generator share", "cycle loss", "pull loss", "spread of offspring", "spread of population"
        }  # fmt: skip
    assert {parent for p, _ in made[:8] for parent in p.parents} <= evaluated
    assert len({p.parents for p, _ in made[:8]}) == 8, "the whole population goes through it"
    assert len({p.recipe for p, _ in history}) == 32


@pytest.mark.parametrize(("renew", "begun"), [(1, [2, 3, 4, 5]), (3, [2, 5])])
def test_it_learns_from_every_population_and_begins_anew_after_a_few(landscape, monkeypatch, renew, begun):
    made, trained = [], []
    begin, train = Generators.__init__, Generators.train
    monkeypatch.setattr(Generators, "__init__", lambda self, *a: made.append(a[2]) or begin(self, *a))
    monkeypatch.setattr(Generators, "train", lambda self, *a: trained.append(a) or train(self, *a))
    searched = searcher(SPACES["coefficients"], renew=renew)
    history = drive(searched, landscape, 48)
    assert [seed[2] for seed in made] == begun
    assert [len(winners) + len(losers) for winners, losers, _ in trained] == [16, 24, 32, 40]
    order = by_front([e for _, e in history[:16]], OBJECTIVES, LIMIT)
    best = searched._vectors.scaled(np.array([searched._history[i][0] for i in order[:4]]))
    np.testing.assert_array_equal(trained[0][0], best)


def test_a_generator_that_copies_what_it_is_given_is_moved_apart(space, landscape, monkeypatch):
    monkeypatch.setattr(Generators, "__call__", lambda self, u: u)
    made = searcher(space, after=1, noise=0.001)
    history = drive(made, landscape, 16)
    before = {p.recipe: made._vectors.scaled(made._history[i][0]) for i, (p, _) in enumerate(history[:8])}
    assert len({p.recipe for p, _ in history}) == 16
    for proposal, _ in history[8:]:
        x = made._vectors.scaled(np.array(proposal.vector))
        np.testing.assert_allclose(x, before[proposal.parents[0]], atol=0.02)


def test_what_it_made_is_recalled_without_training(space, landscape, monkeypatch):
    first, again = searcher(space, share=0.5, adaptive=True), searcher(space, share=0.5, adaptive=True)
    history = drive(first, landscape, 43)
    with monkeypatch.context() as patched:
        patched.setattr(Generators, "train", lambda *a: pytest.fail("it trained"))
        for proposal, evaluation in history:
            recalled = again.recall(proposal.vector)
            assert recalled.recipe == proposal.recipe
            assert recalled.operator == proposal.operator
            again.tell(recalled, evaluation)
    assert {p.operator for p, _ in history[16:]} > {GENERATOR}
    assert drive(first, landscape, 20) == drive(again, landscape, 20)


def test_what_it_cannot_have_asked_for_is_not_recalled(landscape):
    made = searcher(SPACES["coefficients"], after=1)
    assert made.recall((0.5,) * 14) is None
    drive(made, landscape, 8)
    assert made.recall(()) is None
    assert made.recall((0.5,)) is None
    assert made.recall((np.nan,) * 14) is None
    assert made.recall((0.5,) * 14).vector == (0.5,) * 14
    while made.ask(1):
        pass
    assert made.recall((0.5,) * 14) is None, "it would have to be told more first"


@pytest.mark.parametrize(("better", "low", "high"), [(True, 0.8, 0.95), (False, 0.05, 0.2)])
def test_an_adaptive_share_follows_what_children_gain(better, low, high):
    made = searcher(SPACES["coefficients"], share=0.5, adaptive=True, after=1)
    assert made.share == 0.5
    level = 0.1
    for _ in range(150):
        (proposal,) = made.ask(1)
        if "generator share" in proposal.numbers and (proposal.operator == GENERATOR) == better:
            level += 0.005
        score = level if (proposal.operator == GENERATOR) == better else 0.1
        made.tell(proposal, Evaluation(proposal.recipe, {"a": (score,), "b": (score,)}, 0.3, (0.0, 0.3, 0.3, 0.0)))
    assert low <= made.share <= high + 1e-9
    assert proposal.numbers["generator share"] == pytest.approx(made.share, abs=0.1)


def test_whole_parts_have_no_coordinates_over_lineages():
    with pytest.raises(ValueError, match="generator: expected one scope of scattered zeros, got whole parts"):
        searcher(LineageSpace(Ground(GROUND.experts, GROUND.prunable, scope="neurons")))
