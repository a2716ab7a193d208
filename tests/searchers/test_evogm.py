"""EvoGM: its rounds, its networks, and what is recalled."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pymoo.algorithms.moo.nsga2 import RankAndCrowding
from pymoo.core.population import Population

from sae_moo.objectives import Evaluation
from sae_moo.recipe import Cast, Expert, Prune
from sae_moo.searchers import generators
from sae_moo.searchers.evogm import EvogmSearcher
from sae_moo.searchers.generators import Generators
from sae_moo.searchers.ground import Ground
from sae_moo.searchers.learning import Evogm, Training
from sae_moo.searchers.problem import MergeProblem
from sae_moo.searchers.ranking import by_fitness, by_front
from sae_moo.searchers.space import CoefficientSpace
from sae_moo.testing.searchers import GROUND, LIMIT, OBJECTIVES, drive

TEN = tuple(f"e{i}" for i in range(10))
DENSE = CoefficientSpace(Ground(TEN, (True,), granularity="model", most=0.0), -1.0, 1.0)
BLOCKS = CoefficientSpace(GROUND, -1.0, 1.0)
SMALL = Evogm(steps=20, widths=[32], rate=3e-3)


def weights_of(recipe):
    merged = recipe.input.input if isinstance(recipe.input, Prune) else recipe.input
    return np.array(merged.weights)


def bowl(recipe, best=0.3):
    """A task whose best merge is so much of every expert."""
    good = float(np.clip(1 - ((weights_of(recipe) - best) ** 2).mean() / 9, 0, 1))
    return Evaluation(recipe, {"a": (good,), "b": (good,)}, 0.0, (0.0,))


def searcher(space=DENSE, settings=SMALL, population=20, **more):
    return EvogmSearcher(space, OBJECTIVES, (), settings=settings, name="evogm", population=population, **more)


def test_two_rounds_of_ten_experts_are_the_160_evaluations_that_are_published():
    history = drive(searcher(settings=Evogm(steps=5, rounds=2)), bowl, 1000)
    assert len(history) == 160
    assert [p.generation for p, _ in history] == [i // 20 for i in range(160)]
    x = np.array([p.vector for p, _ in history])
    assert (np.abs(x) <= 1).all()
    for start in (0, 80):
        assert (x[start : start + 10] == np.eye(10)).all()
        assert (x[start + 10] == 0.1).all()
        assert x[start + 11 : start + 20].std() == pytest.approx(3**-0.5, abs=0.1), "uniform in [-1, 1]"
    assert [p.operator for p, _ in history[::20]] == [
        "first vectors",
        *3 * ["evogm"],
        "first vectors of a round",
        *3 * ["evogm"],
    ]
    assert [len(p.parents) for p, _ in history[::20]] == [0, 1, 1, 1, 0, 1, 1, 1]


def test_a_round_that_follows_begins_at_the_best_models_and_is_written_over_the_original_experts():
    history = drive(searcher(), lambda recipe: bowl(recipe, 2.0), 160)
    first = sorted(history[:80], key=lambda pair: -pair[1].mean("a"))
    best = np.array([weights_of(p.recipe) for p, _ in first[:10]])
    second = history[80:]
    for (proposal, _), expected in zip(second[:10], best, strict=True):
        assert (weights_of(proposal.recipe) == expected).all()
    for proposal, _ in second[10:]:
        np.testing.assert_allclose(weights_of(proposal.recipe), np.array(proposal.vector) @ best, atol=1e-3)
    assert np.abs([weights_of(p.recipe) for p, _ in second]).max() > 1, "coefficients may leave their range"
    still = drive(searcher(settings=SMALL.model_copy(update={"shift": False})), bowl, 90)
    assert [p.recipe for p, _ in still[80:90]] == [p.recipe for p, _ in still[:10]]


@pytest.mark.parametrize(("retrain", "made"), [("round", 2), ("iteration", 6)])
def test_winners_are_the_best_of_the_round_and_the_best_of_old_and_new_survive(monkeypatch, retrain, made):
    trainings, networks = [], []
    train, begin = Generators.train, Generators.__init__
    monkeypatch.setattr(Generators, "train", lambda self, *a: trainings.append(a) or train(self, *a))
    monkeypatch.setattr(Generators, "__init__", lambda self, *a: networks.append(a) or begin(self, *a))
    history = drive(searcher(settings=SMALL.model_copy(update={"retrain": retrain})), bowl, 160)
    assert len(networks) == made
    assert [(len(winners), len(losers)) for winners, losers, _ in trainings] == 2 * [(6, 14), (12, 28), (18, 42)]
    for i, (winners, losers, _) in enumerate(trainings):
        start, end = 80 * (i // 3), 80 * (i // 3) + 20 * (i % 3 + 1)
        best = sorted(history[start:end], key=lambda pair: -pair[1].mean("a"))
        x = np.array([p.vector for p, _ in best])
        np.testing.assert_array_equal(np.concatenate([winners, losers]), x)
        parents = [p.parents[0] for p, _ in history[end : end + 20]]
        assert parents == [p.recipe for p, _ in best[:20]]


def test_a_blocks_own_numbers_and_sparsities_stay_with_a_model_that_becomes_an_expert(landscape):
    history = drive(searcher(BLOCKS, population=8), landscape, 36)
    order = by_fitness([e for _, e in history[:32]], OBJECTIVES, (), {"accuracy": 1.0})
    assert {p.recipe for p, _ in history[32:35]} == {history[i][0].recipe for i in order[:3]}
    average = history[35][0].recipe
    rows = np.array([weights_of(history[i][0].recipe) for i in order[:3]])
    np.testing.assert_allclose(weights_of(average), rows.mean(axis=0), atol=2e-4)


@pytest.mark.parametrize("settings", [SMALL, SMALL.model_copy(update={"retrain": "iteration", "repeats": False})])
def test_what_was_asked_for_is_recalled_without_training(landscape, monkeypatch, settings):
    first, again = (searcher(BLOCKS, settings, 6) for _ in range(2))
    history = drive(first, landscape, 100)  # ends between two iterations of a round
    with monkeypatch.context() as patched:
        patched.setattr(Generators, "train", lambda *a: pytest.fail("it trained"))
        for proposal, evaluation in history:
            recalled = again.recall(proposal.vector)
            assert (recalled.recipe, recalled.parents, recalled.operator) == (
                proposal.recipe,
                proposal.parents,
                proposal.operator,
            )
            again.tell(recalled, evaluation)
    assert drive(first, landscape, 30) == drive(again, landscape, 30)


def test_what_another_machine_made_of_a_vector_is_taken_as_it_is():
    first, again = searcher(), searcher()
    history = drive(first, bowl, 45)
    elsewhere = np.nextafter([p.vector for p, _ in history], 2.0).tolist()
    for vector, (_, evaluation) in zip(elsewhere, history, strict=True):
        proposal = again.recall(tuple(vector))
        assert proposal.vector == tuple(vector)
        again.tell(proposal, evaluation)
    left = [again.ask(1)[0] for _ in range(15)]
    assert not again.ask(1)
    np.testing.assert_allclose([p.vector for p in left], [first.ask(1)[0].vector for _ in range(15)], atol=1e-4)


def test_nothing_global_of_torch_is_read_or_changed(monkeypatch):
    x = np.random.default_rng(0).uniform(-1, 1, (12, 5))

    def made():
        networks = Generators(5, SMALL, (1, 2))
        losses = networks.train(x[:4], x[4:], (3,))
        return losses, networks(x).tolist()

    counts, through = set(), generators._through
    monkeypatch.setattr(
        generators, "_through", lambda *arguments: counts.add(torch.get_num_threads()) or through(*arguments)
    )
    expected = made()
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    try:
        torch.set_num_threads(2)
        torch.set_default_dtype(torch.float64)
        torch.manual_seed(7)
        before = torch.get_rng_state()
        with torch.inference_mode():
            assert made() == expected
        assert counts == {1}, "sums have one order"
        assert torch.get_num_threads() == 2
        assert torch.equal(torch.get_rng_state(), before)
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(torch.float32)
        torch.set_rng_state(state)


LEARNS = {"widths": [64], "rate": 1e-2, "steps": 300}


def test_losers_are_drawn_to_the_centre_of_the_winners_or_to_the_nearest_of_them():
    rng = np.random.default_rng(0)
    winners = np.repeat([[0.6, 0.6], [-0.6, 0.0]], 5, axis=0)
    losers = winners + rng.normal(0.0, 0.1, (10, 2))
    centre, nearest = (
        Generators(2, Training(mode="single", target=target, **LEARNS), (0,)) for target in ("centre", "nearest")
    )
    for networks in (centre, nearest):
        losses = networks.train(winners, losers, (1,))
        assert losses.keys() == {"pull loss"}
        assert losses["pull loss"] < 0.01
    np.testing.assert_allclose(centre(losers), np.tile([0.0, 0.3], (10, 1)), atol=0.1)
    np.testing.assert_allclose(nearest(losers), winners, atol=0.2)


@pytest.mark.parametrize(("rows", "seen"), [(None, 4), (2, 2), (9, 4)])
def test_a_step_sees_as_many_winners_as_losers_and_no_more_than_it_may(monkeypatch, rows, seen):
    x, sizes, through = np.random.default_rng(0).uniform(-1, 1, (12, 3)), set(), generators._through
    monkeypatch.setattr(generators, "_through", lambda layers, u: sizes.add(u.shape[1]) or through(layers, u))
    for winners, losers in ((x[:4], x[4:]), (x[4:], x[:4])):
        Generators(3, Training(steps=3, widths=[4], rows=rows), (0,)).train(winners, losers, (1,))
    assert sizes == {seen}


@pytest.mark.parametrize("mode", ["dual", "single"])
def test_stacked_networks_learn_what_two_plain_ones_do(mode):
    """The losses of the paper, written over two modules of torch with its plain Adam, from the same weights."""
    settings = Training(mode=mode, steps=25, widths=[8, 6], rate=3e-3, cycle=7.0, pull=2.0)
    rng = np.random.default_rng(0)
    winners, losers = rng.uniform(-1, 1, (4, 3)), rng.uniform(-1, 1, (4, 3))
    learned = Generators(3, settings, (0,))
    nets = []
    for network in range(len(learned._layers[0])):
        layers = []
        for weight, bias in zip(learned._layers[::2], learned._layers[1::2], strict=True):
            layers.append(torch.nn.Linear(*weight.shape[1:]))
            with torch.no_grad():
                layers[-1].weight.copy_(weight[network].T)
                layers[-1].bias.copy_(bias[network, 0])
        nets.append(
            torch.nn.Sequential(
                *(each for layer in layers[:-1] for each in (layer, torch.nn.ReLU())), layers[-1], torch.nn.Tanh()
            )
        )
    won, lost = (torch.tensor(side, dtype=torch.float32) for side in (winners, losers))
    adam = torch.optim.Adam([each for net in nets for each in net.parameters()], lr=settings.rate)
    for _ in range(settings.steps):
        mse = torch.nn.functional.mse_loss
        losses = {"pull loss": mse(nets[0](lost), won.mean(dim=0).expand_as(lost))}
        if mode == "dual":
            forth, back = nets
            losses["cycle loss"] = mse(back(forth(lost)), lost) + mse(forth(back(won)), won)
        adam.zero_grad()
        (2.0 * losses["pull loss"] + 7.0 * losses.get("cycle loss", 0.0)).backward()
        adam.step()
    told = learned.train(winners, losers, (1,))
    assert told == pytest.approx({name: loss.item() for name, loss in losses.items()}, rel=1e-4)
    x = rng.uniform(-1, 1, (5, 3))
    expected = nets[0](torch.tensor(x, dtype=torch.float32)).detach().numpy()
    np.testing.assert_allclose(learned(x), expected, atol=1e-4)


def test_the_way_there_and_back_is_learned_and_keeps_losers_apart():
    x = np.random.default_rng(0).uniform(-0.8, 0.8, (30, 3))
    dual, single = (Generators(3, Training(mode=mode, **LEARNS), (0,)) for mode in ("dual", "single"))
    losses = dual.train(x[:10], x[10:], (1,))
    single.train(x[:10], x[10:], (1,))
    assert losses["cycle loss"] < 0.05
    assert dual(x[10:]).std(axis=0).mean() > 5 * single(x[10:]).std(axis=0).mean()


def test_it_is_said_how_far_offspring_scatter_and_noise_is_added_where_they_have_collapsed():
    def offspring(**changes):
        history = drive(searcher(settings=SMALL.model_copy(update={"mode": "single", **changes})), bowl, 40)
        x = np.array([p.vector for p, _ in history[20:]])
        (numbers,) = {tuple(p.numbers.items()) for p, _ in history[20:]}
        return float(np.sqrt(x.var(axis=0).mean())), dict(numbers)

    spread, numbers = offspring()
    assert numbers.keys() == {"pull loss", "spread of offspring", "spread of population"}
    assert numbers["spread of offspring"] == pytest.approx(spread)
    assert spread < 0.5 * numbers["spread of population"]
    noisy, told = offspring(collapse=0.5, noise=0.1)
    assert told == numbers, "what G made, before the noise"
    assert noisy == pytest.approx(np.hypot(spread, 0.2), rel=0.15), "a tenth of a range of 2"
    assert offspring(collapse=0.5 * spread / numbers["spread of population"])[0] == spread


def test_nothing_is_evaluated_twice_unless_as_published(landscape):
    settings = SMALL.model_copy(update={"repeats": False, "mode": "single", "rate": 0.5})  # collapses at once
    history = drive(searcher(BLOCKS, settings, 6), landscape, 90)
    assert len({p.recipe for p, _ in history}) == 90
    assert [p.operator for p, _ in history[24:28]] == 3 * ["first vectors of a round"] + ["evogm"], "three are known"


def test_where_a_whole_round_fails_it_goes_on_from_draws_and_from_the_experts_it_had(landscape):
    made = searcher(BLOCKS, population=6)
    history = drive(made, landscape, 72, failing=lambda i: 24 <= i < 48)
    assert {p.parents for p, _ in history[24:48]} == {()}
    assert [p.recipe for p, _ in history[48:51]] == [p.recipe for p, _ in history[24:27]]
    with pytest.raises(ValueError, match="population: expected at least 2, got 1"):
        searcher(population=1)


def evaluated(accuracy, sparsity, reason=None):
    scores = {} if reason else {"a": (accuracy,), "b": (accuracy,)}
    return Evaluation(Cast(Expert("math"), "float32"), scores, sparsity, (0.0,) * 4, reason=reason)


def test_the_order_on_the_front_is_that_of_survival_in_nsga2():
    rng = np.random.default_rng(0)
    evaluations = [evaluated(*rng.random(2).round(2)) for _ in range(40)] + 2 * [evaluated(0, 0, "no memory")]
    evaluations += evaluations[:3]
    order = by_front(evaluations, OBJECTIVES, LIMIT)
    assert sorted(order) == list(range(45))
    assert {40, 41} == set(order[-2:].tolist())
    broken = [evaluations[i].sparsity for i in order[:-2] if evaluations[i].sparsity > 0.5]
    assert broken == sorted(broken)
    assert [evaluations[i].sparsity for i in order[-2 - len(broken) : -2]] == broken
    problem = MergeProblem(BLOCKS, OBJECTIVES, LIMIT)
    f, g = zip(*map(problem.outcome, evaluations), strict=True)
    population = Population.new(F=np.array(f), G=np.array(g), X=np.arange(45)[:, None])
    survivors = RankAndCrowding().do(problem, population, n_survive=45, random_state=np.random.default_rng(0))
    pymoos = {each.X[0]: (each.get("rank"), -each.get("crowding")) for each in survivors if each.CV[0] == 0}
    ours = [pymoos[i] for i in order[: len(pymoos)]]
    assert len({rank for rank, _ in ours}) > 3
    assert ours == sorted(ours)
