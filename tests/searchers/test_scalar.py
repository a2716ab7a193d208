"""Particle swarms, CMA-ES, random draws, Optuna's samplers: what each does beyond the contract."""

from __future__ import annotations

import numpy as np
import optuna
import pytest

from sae_moo.objectives import Constraint, Evaluation, Sparsity, TaskMean, loss
from sae_moo.objectives.front import Accuracy
from sae_moo.recipe import Cast, Expert, Prune
from sae_moo.searchers.ground import Ground
from sae_moo.searchers.optuna_samplers import OptunaSearcher
from sae_moo.searchers.scalar import CovarianceAdaptation, ParticleSwarm, RandomDraws, ScalarSearcher, Swarm
from sae_moo.searchers.space import CoefficientSpace

GROUND = Ground(("math", "code", "law"), (False, True, True, False))
OBJECTIVES = (TaskMean("accuracy", ("a", "b")), Sparsity())
SPACE = CoefficientSpace(GROUND)


def sphere(x):
    """A bowl whose bottom is at 0.5 of every range."""
    low, high = SPACE.bounds
    return (((x - low) / (high - low) - 0.5) ** 2).sum(axis=1)


def minimized(optimizer, rounds, seed=0):
    rng = np.random.default_rng(seed)
    x = optimizer.start(rng)
    least = [sphere(x).min()]
    low, high = SPACE.bounds
    for _ in range(rounds):
        x = optimizer.advance(x, sphere(x), rng)
        assert ((x >= low - 1e-12) & (x <= high + 1e-12)).all()
        least.append(min(least[-1], sphere(x).min()))
    return least


@pytest.mark.parametrize(
    ("make", "share"),
    [
        (lambda: CovarianceAdaptation(SPACE, 12, 0.6), 0.02),
        (lambda: ParticleSwarm(SPACE, 12, 0.6, Swarm(flavour="pso-merging")), 0.4),
        (lambda: ParticleSwarm(SPACE, 12, 0.6), 0.8),
    ],
    ids=["cma-es", "pso merging", "model swarms"],
)
def test_they_descend(make, share):
    least = minimized(make(), 60)
    assert least[-1] < share * least[0]
    if share < 0.5:
        assert least[-1] < minimized(RandomDraws(SPACE, 12, 0.6), 60)[-1]


def test_cma_es_begins_anew_where_it_has_converged():
    optimizer, rng = CovarianceAdaptation(SPACE, 12, 0.6), np.random.default_rng(0)
    x = optimizer.start(rng)
    strategies = set()
    for _ in range(300):
        x = optimizer.advance(x, np.round(sphere(x), 1), rng)  # flat at the bottom
        strategies.add(id(optimizer._strategy))
    assert len(strategies) > 1


def test_model_swarms_moves_as_its_equation_says():
    swarm, rng = ParticleSwarm(SPACE, 6, 0.6), np.random.default_rng(3)
    x = swarm.start(rng)
    velocity = swarm._velocity.copy()
    losses = sphere(x)
    same = np.random.default_rng()
    same.bit_generator.state = rng.bit_generator.state
    moved = swarm.advance(x, losses, rng)
    r = same.random((6, 4)) * np.array([0.4, 0.3, 0.3, 0.3])
    expected = []
    for i in range(6):
        pulls = [velocity[i], x[i] - x[i], x[losses.argmin()] - x[i], x[i] - x[losses.argmax()]]
        expected.append(x[i] + sum(r[i, k] * pulls[k] for k in range(4)) / r[i].sum())
    np.testing.assert_allclose(moved, np.clip(expected, *SPACE.bounds))
    assert swarm._step == 0.95


def test_a_tired_particle_begins_anew_at_its_best():
    swarm, rng = ParticleSwarm(SPACE, 4, 0.6, Swarm(patience=4)), np.random.default_rng(0)
    start = x = swarm.start(rng)
    for losses in ([0.1, 0.2, 0.3, 0.4], [1, 1, 1, 1]):
        x = swarm.advance(x, np.array(losses, dtype=float), rng)
    assert swarm._idle.tolist() == [1, 1, 1, 1]
    x = swarm.advance(x, np.ones(4), rng)
    assert swarm._idle.tolist() == [0, 0, 0, 0], "after half the patience"
    assert (swarm._own == start).all()


def test_pso_merging_begins_at_base_experts_and_sparsified_experts():
    searcher = ScalarSearcher(
        SPACE, OBJECTIVES, (), optimizer=ParticleSwarm(SPACE, 12, 0.6, Swarm(flavour="pso-merging")), name="pso"
    )
    vectors = np.array([p.vector for p in searcher.ask(12)])
    one_hot = [vectors[1 + i][: SPACE.weights].reshape(4, 3) for i in range(3)]
    assert (vectors[0] == 0).all()
    for i in range(3):
        assert (one_hot[i] == np.eye(3)[i]).all()
        assert (vectors[4 + i][: SPACE.weights] == vectors[1 + i][: SPACE.weights]).all()
    assert (vectors[4:7, SPACE.weights :] == 0.6).all()


def test_one_fixed_sparsity_is_asked_of_every_candidate(landscape):
    space = CoefficientSpace(GROUND, sparsity=0.25)
    searcher = ScalarSearcher(space, OBJECTIVES, (), optimizer=RandomDraws(space, 8, 0.6), name="random")
    for proposal in searcher.ask(8):
        assert isinstance(proposal.recipe.input, Prune)
        assert proposal.recipe.input.sparsity == (0.0, 0.25, 0.25, 0.0)
    dense = CoefficientSpace(GROUND, sparsity=0.0)
    assert not isinstance(dense.decode(dense.encode(np.ones(3))).input, Prune)
    assert dense.n_var == 12


def evaluated(accuracy, sparsity=0.0):
    return Evaluation(Cast(Expert("math"), "float32"), {"a": (accuracy,), "b": (accuracy,)}, sparsity, (0.0,) * 4)


def test_a_loss_orders_what_keeps_limits_before_what_breaks_them_and_that_before_failures():
    limits = (Constraint(OBJECTIVES[1], high=0.5),)
    weights = {"accuracy": 1.0, "sparsity": 1.0}
    best, good = evaluated(0.9, 0.5), evaluated(0.1, 0.0)
    slightly, badly = evaluated(1.0, 0.51), evaluated(1.0, 0.9)
    failed = Evaluation(Cast(Expert("math"), "float32"), reason="x")
    losses = [loss(OBJECTIVES, weights, limits, each) for each in (best, good, slightly, badly, failed)]
    assert losses == sorted(losses)
    assert losses[0] == pytest.approx(-0.7)
    assert losses[1] < 0 < losses[2]
    assert loss(OBJECTIVES, Accuracy(OBJECTIVES).weights, (), best) == pytest.approx(-0.9)


def test_a_forgetful_sampler_recalls_without_thinking(landscape, monkeypatch):
    first = OptunaSearcher(SPACE, OBJECTIVES, (), sampler="TPESampler", population=6)
    history = []
    for _ in range(15):
        (proposal,) = first.ask(1)
        history.append((proposal, landscape(proposal.recipe)))
        first.tell(*history[-1])
    again = OptunaSearcher(SPACE, OBJECTIVES, (), sampler="TPESampler", population=6)
    with monkeypatch.context() as patched:
        patched.setattr("optuna.samplers.TPESampler.sample_independent", lambda *a: pytest.fail("it thought"))
        for proposal, evaluation in history:
            assert again.recall(proposal.vector) == proposal
            assert isinstance(again._study.sampler, optuna.samplers.RandomSampler), "a Gaussian process would think"
            again.tell(proposal, evaluation)
    assert again.ask(1) == first.ask(1)


def test_optuna_gets_the_objectives_and_the_limits(landscape):
    searcher = OptunaSearcher(
        SPACE, OBJECTIVES, (Constraint(OBJECTIVES[1], high=0.2),), sampler="TPESampler", population=6
    )
    told = []
    for _ in range(8):
        (proposal,) = searcher.ask(1)
        told.append(landscape(proposal.recipe))
        searcher.tell(proposal, told[-1])
    for trial, evaluation in zip(searcher._study.trials, told, strict=True):
        assert trial.values == pytest.approx([-OBJECTIVES[0].value(evaluation), -evaluation.sparsity])
        assert trial.constraints == pytest.approx({"sparsity max": evaluation.sparsity - 0.2})


def test_settings_out_of_range():
    with pytest.raises(ValueError, match="population: expected at least 2, got 1"):
        RandomDraws(SPACE, 1, 0.5)
    with pytest.raises(ValueError, match=r"step\n.*greater than 0"):
        Swarm(step=0)
    with pytest.raises(ValueError, match="expected own or swarm above 0, got 0 for both"):
        Swarm(own=0, swarm=0)


def test_where_nothing_may_be_sparse_there_are_no_coordinates_for_it():
    space = CoefficientSpace(Ground(("math", "code"), (True, True), most=0.0))
    assert space.ratios == 0
    searcher = ScalarSearcher(space, OBJECTIVES, (), optimizer=CovarianceAdaptation(space, 4, 0.0), name="cmaes")
    for _ in range(12):
        (proposal,) = searcher.ask(1)
        searcher.tell(proposal, evaluated(float(np.clip(proposal.vector[0], 0, 1))))
        assert not isinstance(proposal.recipe.input, Prune)


def test_draws_need_no_objective_that_is_scored_on_tasks(landscape):
    draws = RandomDraws(SPACE, 4, 0.5)
    searcher = ScalarSearcher(SPACE, (Sparsity(),), (), optimizer=draws, name="random")
    for _ in range(3):
        for proposal in searcher.ask(4):
            searcher.tell(proposal, landscape(proposal.recipe))
    assert searcher.ask(1)[0].generation == 3
