"""SAE and M2N2: the formulas, and the defects that implementations of this family had."""

from __future__ import annotations

import numpy as np
import pytest
from stand_ins import weights_of

from sae_moo.materialization.into_model import materialize
from sae_moo.objectives import Constraint, Evaluation, Sparsity, TaskMean
from sae_moo.recipe import BASE, Cast, Expert, Merge, Prune, experts_of
from sae_moo.searchers import fitness
from sae_moo.searchers.ground import Ground
from sae_moo.searchers.ratio import RATIO
from sae_moo.searchers.sae import Sae, SaeSearcher
from sae_moo.searchers.schedule import Adaptive, Schedule

GROUND = Ground(("math", "code", "law"), (False, True, True, False))
OBJECTIVES = (TaskMean("accuracy", ("a", "b")), Sparsity())
LIMIT = (Constraint(OBJECTIVES[1], high=0.3),)
PUBLISHED, CLIMB = Sae(), Schedule(schedule="sawtooth", low=0.1, high=0.6, period=2, growth=1)


def drive(searcher, evaluate, count):
    history = []
    for _ in range(count):
        (proposal,) = searcher.ask(1)
        evaluation = evaluate(proposal.recipe)
        searcher.tell(proposal, evaluation)
        history.append((proposal, evaluation))
    return history


def made(settings=PUBLISHED, limits=(), *, schedule=CLIMB, **more):
    return SaeSearcher(GROUND, OBJECTIVES, limits, settings=settings, size=12, schedule=schedule, **more)


def total(members, settings=PUBLISHED, groups=False):
    scores = np.stack([fitness.instances(e) for e in members])
    sparsity = np.array([e.group_sparsity if groups else e.sparsity for e in members])
    competed = scores / np.where(scores.sum(0) == 0, 1, scores.sum(0)) ** settings.alpha
    weight = fitness.instance_weights(members[0])
    f = (competed * weight).sum(1) / scores.shape[1] ** settings.alpha
    p = np.exp(sparsity / settings.tau) / np.exp(sparsity / settings.tau).sum(0)
    return settings.omega * (f[:, None] if groups else f) + settings.beta * p


@pytest.mark.parametrize(
    ("settings", "local"),
    [(Sae(), False), (Sae(), True), (Sae(omega=0.8, beta=0.1, alpha=0.7, tau=0.5), False)],
)
def test_a_parents_share_follows_its_score(landscape, settings, local):
    searcher = made(settings, local=local)
    first = [e for _, e in drive(searcher, landscape, 12)]
    (child,) = searcher.ask(1)
    a, b = (next(i for i, e in enumerate(first) if e.recipe == parent) for parent in child.parents)
    t = total(first, settings, groups=local)
    share = np.broadcast_to(t[a] / (t[a] + t[b]), (4,))
    assert child.recipe.input.method == "zero_aware"
    np.testing.assert_allclose(np.array(child.recipe.input.weights)[:, 0], share, atol=6e-5)
    assert (len(set(share)) > 1) == local
    assert child.operator == "zero-aware merge"


def test_the_worst_leaves_and_the_rest_stays(landscape):
    searcher = made()
    members = [e for _, e in drive(searcher, landscape, 12)]
    for _ in range(20):
        ((_, child),) = drive(searcher, landscape, 1)
        everyone = [*members, child]
        worst = int(np.argmin(total(everyone)))
        members = everyone[:worst] + everyone[worst + 1 :]
        assert [m.evaluation for m in searcher._members] == members


def test_partners_complement_each_other_unless_the_matchmaker_is_off(landscape):
    pulls = {}
    for matchmaker in (True, False):
        searcher = made(Sae(matchmaker=matchmaker))
        first = [e for _, e in drive(searcher, landscape, 12)]
        scores = np.stack([fitness.instances(e) for e in first])
        gains = []
        for child in searcher.ask(60):
            a, b = (next(i for i, e in enumerate(first) if e.recipe == parent) for parent in child.parents)
            assert a != b
            gains.append(fitness.attraction(scores, a)[b])
        pulls[matchmaker] = np.mean(gains)
    assert pulls[True] > 1.1 * pulls[False]


def test_pruning_is_the_last_that_touches_a_weight_before_the_merge_and_the_merge_keeps_common_zeros(
    landscape, tiny, tiny_model
):
    history = drive(made(), landscape, 40)
    child = next(p for p, _ in reversed(history) if p.numbers.get(RATIO, 0) > 0.3)
    assert isinstance(child.recipe, Cast)
    merge = child.recipe.input
    zeros = []
    for parent in merge.inputs:
        assert isinstance(parent, Prune)
        materialize(Cast(parent, "float32"), tiny, tiny_model)
        zeros.append({name: weight == 0 for name, weight in weights_of(tiny, tiny_model).items()})
    report = materialize(child.recipe, tiny, tiny_model)
    assert report.sparsity > 0.05, "nothing after the pruning filled the zeros again"
    prunable = {info.name for info in tiny.tensors if info.prunable}
    for name, weight in weights_of(tiny, tiny_model).items():
        if name in prunable:
            assert ((weight == 0) == (zeros[0][name] & zeros[1][name])).all()


def test_a_limit_is_a_limit_and_no_part_of_the_score(landscape):
    free, limited = made(), made(limits=LIMIT)
    history = drive(free, landscape, 12)
    drive(limited, landscape, 12)
    np.testing.assert_array_equal(free._total, limited._total)
    kept = {e.recipe for _, e in history if e.sparsity <= 0.3}
    assert 0 < len(kept) < 12
    children = limited.ask(50)
    assert {parent for child in children for parent in child.parents} <= kept
    drawn = [parent for child in free.ask(50) for parent in child.parents]
    assert not set(drawn) <= kept


def test_what_breaks_a_limit_leaves_first_and_breeds_only_if_nothing_keeps_it(landscape):
    searcher = made(limits=LIMIT)
    drive(searcher, landscape, 120)
    assert all(member.sparsity <= 0.3 for member in searcher._members)
    alone = made(limits=(Constraint(OBJECTIVES[0], low=1.0),))
    drive(alone, landscape, 12)
    assert len(alone.ask(1)) == 1


def test_the_archive_begins_with_real_models():
    first = made().ask(12)
    assert len(first) == 12
    assert [p.recipe.input for p in first[:4]] == [Expert("math"), Expert("code"), Expert("law"), Expert(BASE)]
    for proposal in first:
        assert experts_of(proposal.recipe)
        inner = proposal.recipe.input
        assert np.max(inner.sparsity if isinstance(inner, Prune) else 0.0) <= 0.6


def test_the_schedule_begins_at_its_low_end(landscape):
    searcher = made(schedule=Schedule(schedule="cosine", low=0.2, high=0.6, period=4))
    history = drive(searcher, landscape, 12 + 36)
    ratios = [p.numbers[RATIO] for p, _ in history[12:]]
    assert ratios[:12] == [0.2] * 12
    assert ratios[12] == pytest.approx(Schedule(schedule="cosine", low=0.2, high=0.6, period=4)(1), abs=1e-4)
    assert [p.generation for p, _ in history] == [0] * 12 + [1] * 12 + [2] * 12 + [3] * 12


def test_failures_do_not_enter_the_archive_and_scores_of_other_questions_are_an_error(landscape):
    searcher = made()
    drive(searcher, landscape, 12)
    before = list(searcher._members)
    (child,) = searcher.ask(1)
    searcher.tell(child, Evaluation(child.recipe, reason="pruning raised"))
    assert searcher._members == before
    (child,) = searcher.ask(1)
    with pytest.raises(ValueError, match="must match exactly"):
        searcher.tell(child, Evaluation(child.recipe, {"a": (1.0,), "b": (0.0,)}, 0.1, (0.0,) * 4))


def test_m2n2_prunes_nothing_and_splits_an_arc(landscape):
    searcher = made(Sae(omega=1.0, beta=0.0), crossover="split-slerp")
    history = drive(searcher, landscape, 40)
    assert not any(isinstance(p.recipe.input, Prune) for p, _ in history)
    for proposal, _ in history[12:]:
        merge = proposal.recipe.input
        assert (merge.method, merge.inputs) == ("split_slerp", proposal.parents)
        assert sum(merge.weights) == pytest.approx(1)
        assert 0 <= dict(merge.params)["split"] <= 1
    assert len({dict(p.recipe.input.params)["split"] for p, _ in history[12:]}) > 20
    t = total([m.evaluation for m in searcher._members], Sae(omega=1.0, beta=0.0))
    np.testing.assert_allclose(searcher._total, t)


@pytest.mark.parametrize("measure", ["l1", "hoyer"])
def test_another_measure_of_sparsity_takes_the_place_of_zeros(landscape, measure):
    searcher = made(Sae(measure=measure))
    members = [e for _, e in drive(searcher, landscape, 12)]
    assert [m.sparsity for m in searcher._members] == [e.sparseness[0] for e in members]
    without = made(Sae(measure=measure))
    with pytest.raises(ValueError, match=f"expected evaluations that tell {measure}"):
        drive(without, lambda recipe: Evaluation(recipe, {"a": (1.0,), "b": (0.5,)}, 0.1, (0.0,) * 4), 12)


def test_an_archive_of_one_goes_on_with_random_merges(landscape):
    searcher = made()
    drive(searcher, lambda r: landscape(r) if r.input == Expert("math") else Evaluation(r, reason="x"), 12)
    born = [searcher.ask(1)[0] for _ in range(5)]
    assert "random merge" in {p.operator for p in born}
    assert len({p.recipe for p in born}) == 5


def test_an_adaptive_ratio_is_credited_with_what_children_gain(landscape):
    searcher = made(schedule=Adaptive(low=0.0, high=0.6))
    history = drive(searcher, landscape, 80)
    assert {p.numbers[RATIO] for p, _ in history[12:]} <= {round(r, 4) for r in Adaptive(low=0.0, high=0.6).ratios}
    assert max(filter(None, searcher._ratio.bandit.estimates)) > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"omega": 0.0, "beta": 0.0}, "expected omega or beta above 0, got 0 for both"),
        ({"omega": -1}, r"omega\n.*greater than or equal to 0"),
        ({"alpha": -0.1}, r"alpha\n.*greater than or equal to 0"),
        ({"tau": 0}, r"tau\n.*greater than 0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        Sae(**settings)


def test_an_archive_of_one_is_none():
    with pytest.raises(ValueError, match="size: expected at least 2, got 1"):
        SaeSearcher(GROUND, OBJECTIVES, size=1)


def test_two_parents_that_score_nothing_share_alike():
    searcher = made(Sae(omega=1.0, beta=0.0))
    drive(searcher, lambda r: Evaluation(r, {"a": (0.0, 0.0), "b": (0.0,)}, 0.0, (0.0,) * 4), 12)
    (child,) = searcher.ask(1)
    assert isinstance(child.recipe.input, Merge)
    np.testing.assert_allclose(np.array(child.recipe.input.weights), 0.5)


def test_first_candidates_that_are_alike_are_one():
    ground = Ground(("math",), (True,), granularity="model", scope="2:4")
    searcher = SaeSearcher(ground, OBJECTIVES, size=24, seed=3)
    seen = []
    for _ in range(40):
        (proposal,) = searcher.ask(1)
        seen.append(proposal.recipe)
        searcher.tell(proposal, Evaluation(proposal.recipe, {"a": (0.5, 1.0), "b": (0.0,)}, 0.1, (0.1,)))
    assert len(set(seen)) == 40
