"""Our own search of whose children those are evaluated that promise most."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, permutations

import numpy as np
import pytest

from sae_moo.objectives import Constraint, Evaluation, Sparsity
from sae_moo.objectives.front import front_of
from sae_moo.objectives.pareto import hypervolume
from sae_moo.prediction.regressions import TREES
from sae_moo.prediction.surrogate import Surrogate
from sae_moo.prediction.table import FeatureTable
from sae_moo.recipe import Cast, Expert, Prune
from sae_moo.searchers.algorithms import ALGORITHMS
from sae_moo.searchers.coordinates import Coordinates, pair_axes
from sae_moo.searchers.ground import Ground
from sae_moo.searchers.nsga import NsgaSearcher
from sae_moo.searchers.outlook import Outlooks
from sae_moo.searchers.prescreened import PrescreeningNsga
from sae_moo.searchers.prescreening import EXPLORED, GAIN, Prescreening
from sae_moo.searchers.space import CoefficientSpace, LineageSpace
from sae_moo.searchers.structure import Structure, built
from sae_moo.testing.searchers import GROUND, LIMIT, OBJECTIVES, assignment, drive

SPACES = {"coefficients": CoefficientSpace(GROUND), "lineages": LineageSpace(GROUND)}
PACES = ("generational", "steady-state")


@pytest.fixture(autouse=True)
def few_trees(monkeypatch):
    monkeypatch.setitem(TREES, "n_estimators", 10)


def searcher(space="lineages", pace="generational", population=12, **changes):
    settings = Prescreening(**{"factor": 3, "after": 1, **changes})
    return PrescreeningNsga(
        SPACES[space], OBJECTIVES, LIMIT, prescreening=settings, population=population, pace=pace, seed=1
    )


def test_with_a_factor_of_one_nothing_is_there_of_it(landscape):
    plain = ALGORITHMS["nsga2"].searcher(assignment("nsga2", {"prescreening": {"factor": 1}}))
    assert type(plain) is NsgaSearcher
    assert type(ALGORITHMS["nsga2"].searcher(assignment("nsga2"))) is PrescreeningNsga
    assert type(ALGORITHMS["nsga2"].searcher(assignment("nsga2", pace="steady-state"))) is NsgaSearcher
    made = ALGORITHMS["nsga3"].searcher(assignment("nsga3", {"prescreening": {"factor": 2}}))
    assert type(made) is PrescreeningNsga
    with pytest.raises(ValueError, match="generator, prescreening: expected one of them, got both"):
        ALGORITHMS["nsga2"].searcher(assignment("nsga2", {"prescreening": {"factor": 2}, "generator": {"share": 0.1}}))


@pytest.mark.parametrize("pace", PACES)
def test_once_enough_is_known_a_part_of_what_is_bred_is_evaluated(landscape, pace):
    history = drive(searcher(pace=pace, explore=0.3), landscape, 36)
    first, chosen = history[:12], history[12:]
    assert not any(proposal.vector for proposal, _ in first)
    places = {proposal.vector for proposal, _ in chosen}
    assert places <= {(float(place),) for place in range(36 if pace == "generational" else 3)}
    assert len(places) > 1
    names = {EXPLORED, GAIN, "predicted accuracy", "spread of predicted accuracy"}
    assert all(names <= proposal.numbers.keys() for proposal, _ in chosen)
    assert {proposal.numbers[EXPLORED] for proposal, _ in chosen} == {0.0, 1.0}
    said = [proposal.numbers["predicted accuracy"] for proposal, _ in chosen]
    assert np.corrcoef(said, [OBJECTIVES[0].value(evaluation) for _, evaluation in chosen])[0, 1] > 0.7
    assert len({proposal.recipe for proposal, _ in history}) == 36


def test_those_that_promise_most_are_chosen_and_no_two_for_the_same_reason(landscape):
    history = drive(searcher(explore=0.0), landscape, 24)
    chosen = [proposal for proposal, _ in history[12:]]
    gains = [proposal.numbers[GAIN] for proposal in chosen]
    assert gains == sorted(gains, reverse=True)
    points = front_of([evaluation for _, evaluation in history[:12]], OBJECTIVES, LIMIT).points
    expected = [(p.numbers["predicted accuracy"], evaluation.sparsity) for p, evaluation in history[12:]]
    together = hypervolume(np.vstack([points, expected])) - hypervolume(points)
    assert together < sum(gains) < 3 * together, "each adds to those before it; each by itself would be 5.6"
    explored = [proposal for proposal, _ in drive(searcher(explore=1.0), landscape, 24)[12:]]
    assert [proposal.vector for proposal in explored] == [(float(place),) for place in range(12)]


@pytest.mark.parametrize(("space", "pace"), [("coefficients", "steady-state"), ("lineages", "generational")])
def test_it_gains_more_than_without(landscape, space, pace):
    plain = NsgaSearcher(SPACES[space], OBJECTIVES, LIMIT, population=12, pace=pace, seed=1)
    volumes = [
        front_of([evaluation for _, evaluation in drive(made, landscape, 36)], OBJECTIVES, LIMIT).volume
        for made in (searcher(space, pace), plain)
    ]
    assert volumes[0] > volumes[1]


def driven(made, landscape, count, out=()):
    """Ask for two at a time and tell the later of them first; return what happened: who was asked for, or told."""
    events, out = [], list(out)
    while sum(evaluation is not None for _, evaluation in events) < count:
        asked = made.ask(2 - len(out))
        out += asked
        events += [(proposal, None) for proposal in asked]
        events.append((proposal := out.pop(), landscape(proposal.recipe)))
        made.tell(*events[-1])
    return events, out


@pytest.mark.parametrize("pace", PACES)
@pytest.mark.parametrize("space", SPACES)
def test_a_broken_run_goes_on_as_an_unbroken_one_and_learns_nothing_for_what_it_has(
    landscape, monkeypatch, space, pace
):
    unbroken, broken = searcher(space, pace), searcher(space, pace)
    events, out = driven(unbroken, landscape, 31)  # in the middle of a generation
    with monkeypatch.context() as patched:
        patched.setattr(Surrogate, "__init__", lambda *a: pytest.fail("it learned"))
        for proposal, evaluation in events:
            if evaluation is None:
                recalled = broken.recall(proposal.vector)
                assert replace(recalled, numbers=proposal.numbers) == proposal
            else:
                broken.tell(proposal, evaluation)
    assert driven(unbroken, landscape, 12, out) == driven(broken, landscape, 12, out)


def test_what_others_have_found_is_to_be_improved_upon_by_what_is_bred_after_it_came(landscape):
    best = Cast(Prune(Expert("code"), 0.5), "float32")
    scores = {task: tuple(1.0 for _ in row) for task, row in landscape(best).scores.items()}
    guest = replace(landscape(best), scores=scores, sparsity=0.5)

    def found(comes, known=()):
        """Ask for 36, or recall some that are known; the guest comes after so many."""
        made = searcher(explore=0.0)
        for number in range(36):
            if number == comes:
                made.host(guest)
            proposal = made.recall(known[number].vector) if number < len(known) else made.ask(1)[0]
            made.tell(proposal, landscape(proposal.recipe))
            yield proposal

    def gains(proposals):
        return [proposal.numbers[GAIN] for proposal in proposals]

    alone, early, late = ([*found(comes)] for comes in (None, 12, 15))
    assert max(gains(early[12:24])) < 1e-3 < max(gains(alone[12:24]))
    assert late[:24] == alone[:24], "what was bred before it came was chosen without it"
    assert max(gains(late[24:])) < 1e-3 < max(gains(alone[24:]))
    assert [*found(15, late[:18])][18:] == late[18:], "also by who goes on in the middle of what was bred"


def test_what_it_cannot_have_asked_for_is_not_recalled(landscape):
    made = searcher()
    assert made.recall((0.0,)) is None
    drive(made, landscape, 12)
    for vector in ((), (36.0,), (-1.0,), (0.5,), (float("nan"),), (0.0, 1.0)):
        assert made.recall(vector) is None
    assert made.recall((7.0,)).vector == (7.0,)
    assert made.recall((7.0,)) is None, "it is out"
    assert 7.0 not in {proposal.vector[0] for proposal in made.ask(20)}
    assert made.recall((8.0,)) is None, "it would have to be told more first"


def test_what_is_known_to_break_a_limit_is_chosen_last(landscape):
    limit = Constraint(Sparsity(), high=0.3)
    made = PrescreeningNsga(
        SPACES["lineages"],
        OBJECTIVES,
        (limit,),
        prescreening=Prescreening(factor=4, after=1, explore=0.0),
        population=12,
    )
    history = drive(made, landscape, 36)
    assert all(limit.violations(evaluation)[0] <= 0 for _, evaluation in history[12:])
    assert any(limit.violations(evaluation)[0] > 0 for _, evaluation in history[:12])


def test_failures_are_not_learned_from_and_with_too_few_others_children_are_taken_as_they_come(landscape):
    history = drive(searcher(), landscape, 24, failing=lambda i: i > 5)
    assert [proposal.vector for proposal, _ in history[12:]] == [(float(place),) for place in range(12)]
    assert all(proposal.numbers[EXPLORED] for proposal, _ in history[12:])


WHOLE = Ground(
    ("math", "code", "law"), (False, True, True, True, True, False), scope="tensor", structured=("neurons", "blocks"),
    blocks=(1, 2, 3, 4), units=(("neurons", 8),),
)  # fmt: skip


def test_coordinates_tell_weights_levels_and_what_goes_whole():
    shares = {"neurons": np.array([0, 0.25, 0.5, 0, 0, 0])}
    structure = Structure(frozenset({2}), shares, np.array([0, 0.1, 0.2, 0.3, 0.4, 0]))
    weights = np.arange(18).reshape(6, 3) / 20
    recipe = WHOLE.candidate(built(WHOLE.task_arithmetic(weights), structure, WHOLE))
    coordinates = Coordinates(WHOLE)
    row = coordinates.of(recipe)
    np.testing.assert_allclose(row[:18], weights.ravel())
    left = (0.1 + 0.2 + 0.4) / 3  # of the block that is gone nothing is asked: the mean of the others stands there
    np.testing.assert_allclose(row[18:22], [0.1, 0.2, left, 0.4], atol=1e-4)
    np.testing.assert_allclose(row[22:26], [0.25, 0.5, 0.25, 0.0], atol=1e-4)
    assert row[26:].tolist() == [0, 0, 1, 0]
    assert coordinates.asked(recipe) == pytest.approx((0.1 + 0.2 + 1.0 + 0.4) / 4, abs=1e-4)
    dense = Cast(Expert("math"), "float32")
    assert coordinates.asked(dense) == 0.0
    assert coordinates.of(dense).shape == row.shape
    other = WHOLE.candidate(WHOLE.summed("breadcrumbs", weights, (("density", 0.5),)))
    of_methods = Coordinates(WHOLE, methods=("task_arithmetic", "breadcrumbs"))
    assert [of_methods.of(each)[-2:].tolist() for each in (recipe, other, dense)] == [[1, 0], [0, 1], [0, 0]]
    assert Coordinates(GROUND).asked(Cast(Prune(Expert("math"), 0.3), "float32")) == pytest.approx(0.3)


def test_features_of_pairs_are_mixed_by_the_shares_of_experts():
    experts = ("math", "code", "law")
    close = {("math", "code"): 0.9, ("math", "law"): 0.1, ("code", "law"): 0.2}
    rows = {
        (*pair, "a"): np.array([close.get(pair, close.get(pair[::-1])), 1.0, np.nan])
        for pair in [(a, b) for a in experts for b in experts if a != b]
    }
    table = FeatureTable(("cosine", "constant", "missing"), rows)
    axes = pair_axes(table, experts)
    assert axes.shape == (3, 3, 1)
    np.testing.assert_array_equal(axes, axes.swapaxes(0, 1))
    assert abs(axes[0, 1] - axes[1, 2]) > abs(axes[0, 2] - axes[1, 2])
    mixed = Coordinates(GROUND, table).of(GROUND.candidate(GROUND.task_arithmetic(np.tile([0.5, 0.5, 0.0], (4, 1)))))
    assert mixed[-1] == pytest.approx(2 * 0.25 * axes[0, 1, 0])


@pytest.mark.parametrize("seed", range(4))
def test_which_way_an_axis_points_is_told_by_the_farthest_pair(seed):
    experts, rng = ("a", "b", "c", "d"), np.random.default_rng(seed)
    likeness = {frozenset(pair): rng.normal(size=5) for pair in combinations(experts, 2)}
    rows = {(*pair, "t"): likeness[frozenset(pair)] for pair in permutations(experts, 2)}
    axes = pair_axes(FeatureTable(tuple("uvwxy"), rows), experts)
    assert axes.shape == (4, 4, 3)
    for axis in np.moveaxis(axes, 2, 0):
        assert axis.max() > -axis.min(), "the sum over pairs is 0 but for rounding: it tells nothing"


def test_what_sparsity_comes_to_beyond_what_is_asked_is_learned(landscape):
    ground, rng = GROUND, np.random.default_rng(0)
    recipes = [ground.random_merge(rng, 0.6)[1] for _ in range(30)]
    coordinates = Coordinates(ground)
    for more, exact in ((0.0, True), (0.05, False)):
        evaluations = [
            Evaluation(each, {"a": (0.5,), "b": (0.5,)}, coordinates.asked(each) * (1 - more)) for each in recipes
        ]
        outlook = Outlooks(coordinates, OBJECTIVES, LIMIT, evaluations[:24], 12)(recipes[24:])
        np.testing.assert_allclose(outlook.means[:, 1], [each.sparsity for each in evaluations[24:]], atol=5e-3)
        assert (outlook.spreads[:, 1] == 0.0).all() == exact
