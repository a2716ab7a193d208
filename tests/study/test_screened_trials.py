"""Trials whose candidate was chosen among several allocations, and budgets of forward tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scripted_study import GROUND, LANDSCAPE, LIMITS, OBJECTIVES, Setup
from stand_ins import Landscape

from sae_moo.errors import InputError, Interrupted
from sae_moo.objectives import Evaluation, Screened
from sae_moo.recipe import Cast, Expert, Merge, Prune, digest
from sae_moo.searchers.nsga import NsgaSearcher
from sae_moo.searchers.searcher import Proposal
from sae_moo.searchers.space import LineageSpace
from sae_moo.study import trials
from sae_moo.study.executor import Job
from sae_moo.study.local import LocalExecutor
from sae_moo.study.loop import Study
from sae_moo.study.record import tokens, told
from sae_moo.study.writer import Writer

MERGE = Merge("linear", (Expert("math"), Expert("code")), (0.5, 0.5))


def pruned(first: float, second: float) -> Cast:
    return Cast(Prune(MERGE, (0.0, first, second, 0.0)), "float32")


class Screener:
    """Chooses the allocation with the least sparsity in its first block; each takes 10 tokens, an evaluation 100."""

    def __init__(self, at: int = -1) -> None:
        self.landscape, self.chosen, self.at = Landscape(), [], at

    def evaluate(self, recipe, rivals=None) -> Evaluation:
        if len(self.landscape.evaluated) == self.at:
            raise KeyboardInterrupt
        return replace(self.landscape(recipe), tokens=100)

    def best_of(self, recipes, rivals=None) -> Evaluation:
        best = int(np.argmin([recipe.input.sparsity[1] for recipe in recipes]))
        self.chosen.append(best)
        screened = Screened(len(recipes), best, 0.9, 10 * (1 + len(recipes)), 0.5)
        return replace(self.evaluate(recipes[best]), screened=screened)


def run(path, searcher, screener: Screener, evaluations=40, **more):
    setup = Setup(path)
    executor = LocalExecutor(screener.evaluate, screener.best_of)
    study = Study(setup.storage(), searcher, executor, **LANDSCAPE, evaluations=evaluations, versions="v", **more)
    study.run()
    return setup


def nsga(pace="generational", allocations=4) -> NsgaSearcher:
    return NsgaSearcher(LineageSpace(GROUND), OBJECTIVES, LIMITS, population=8, pace=pace, allocations=allocations)


class Asks:
    """A searcher that proposes what it is given."""

    def __init__(self, *proposals: Proposal) -> None:
        self.left, self.told = list(proposals), []

    def ask(self, n):
        return [self.left.pop(0)] if self.left else []

    def tell(self, proposal, evaluation):
        self.told.append((proposal, evaluation))


@pytest.mark.parametrize("pace", ["generational", "steady-state"])
def test_a_screened_run_killed_anywhere_and_resumed_equals_an_unbroken_one(tmp_path, pace):
    whole = run(tmp_path / "whole", nsga(pace), Screener()).facts()
    assert sum(fact[5].screened is not None for fact in whole) > 20
    for at in (3, 9, 20, 37):
        with pytest.raises(Interrupted):
            run(tmp_path / f"broken-{at}", nsga(pace), Screener(at))
        assert run(tmp_path / f"broken-{at}", nsga(pace), Screener()).facts() == whole


def test_a_trial_stores_what_was_asked_for_and_what_was_evaluated(tmp_path):
    worse, best, other = pruned(0.5, 0.3), pruned(0.2, 0.6), pruned(0.4, 0.4)
    searcher = Asks(Proposal(worse, alternatives=(other, best)), Proposal(best))
    setup = run(tmp_path / "s", searcher, Screener(), 2)
    screened, plain = setup.storage().records()
    assert (screened.asked, screened.recipe) == (worse, best)
    assert screened.asked_digest == digest(worse, Landscape.fingerprints)
    assert screened.digest == digest(best, Landscape.fingerprints)
    assert screened.evaluation.screened == Screened(3, 2, 0.9, 40, 0.5)
    assert (screened.evaluation.tokens, screened.evaluation.spent, plain.evaluation.spent) == (100, 140, 100)
    shown = {name: value for name, value in screened.params.items() if name.startswith("sparsity")}
    assert shown == {"sparsity block.0": 0.2, "sparsity block.1": 0.6}, "those of the candidate that was evaluated"
    assert {*plain.params} == {*screened.params}
    assert searcher.told[0][1].recipe == best
    assert (plain.repeats, plain.allocations) == (None, None), "one that is screened is none that is not"


def test_only_proposals_with_the_same_alternatives_repeat_each_other(tmp_path):
    asked, other, third = pruned(0.5, 0.3), pruned(0.2, 0.6), pruned(0.4, 0.4)
    proposals = [
        Proposal(asked, alternatives=(other,)),
        Proposal(asked),
        Proposal(asked, alternatives=(third,)),
        Proposal(asked, alternatives=(other, third)),
        Proposal(asked, alternatives=(third, other)),
        Proposal(asked, alternatives=(other,)),
        Proposal(asked),
    ]
    screener = Screener()
    records = run(tmp_path / "s", Asks(*proposals), screener, 7).storage().records()
    assert [record.repeats for record in records] == [None, None, None, None, None, 0, 1]
    assert screener.chosen == [1, 1, 1, 2]
    assert [record.recipe for record in records] == [other, asked, third, other, other, other, asked]
    assert tokens(records) == 5 * 100 + 3 * 10 + 3 * 10 + 4 * 10 + 4 * 10, "what is repeated is not spent again"


def test_other_alternatives_than_the_study_has_are_refused(tmp_path):
    asked, other, third = pruned(0.5, 0.3), pruned(0.2, 0.6), pruned(0.4, 0.4)
    run(tmp_path / "s", Asks(Proposal(asked, alternatives=(other,))), Screener(), 1)
    for alternatives in ((), (third,), (other, third)):
        with pytest.raises(InputError, match="trial 0 of the study is not what this search"):
            run(tmp_path / "s", Asks(Proposal(asked, alternatives=alternatives)), Screener(), 1)


def test_an_end_that_was_half_written_is_written_again(tmp_path, monkeypatch):
    proposal = Proposal(pruned(0.5, 0.3), alternatives=(pruned(0.2, 0.6),))
    setup = Setup(tmp_path / "s")
    storage = type(setup.storage().study._storage)

    def killed(*given, **how):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(trials, "writer_of", Writer)  # entry by entry, as to a database
        patched.setattr(storage, "set_trial_state_values", killed)
        with pytest.raises(Interrupted):
            run(tmp_path / "s", Asks(proposal), Screener(), 1)
    assert setup.storage().study.trials[0].user_attrs["screened"]
    (record,) = run(tmp_path / "s", Asks(proposal), Screener(), 1).storage().records()
    assert record.params["sparsity block.0"] == 0.2
    assert record.evaluation.screened.chosen == 1


def test_a_budget_of_tokens_ends_a_search_and_a_larger_one_goes_on_with_it(tmp_path):
    whole = run(tmp_path / "whole", nsga(), Screener()).facts()
    path = tmp_path / "s"
    spent = tokens(run(path, nsga(), Screener(), tokens=1500).storage().records())
    records = Setup(path).storage().records()
    assert spent >= 1500 > spent - told(records)[-1].evaluation.spent
    assert len(records) < 15
    run(path, nsga(), Screener(), tokens=1500)
    assert len(Setup(path).storage().records()) == len(records), "nothing is left of it"
    assert run(path, nsga(), Screener(), tokens=10**6).facts() == whole


def test_trials_that_were_not_counted_are_read_and_refused_only_where_tokens_are_a_budget(tmp_path):
    def uncounted(recipe, rivals=None):
        return landscape(recipe)

    landscape = Landscape()
    setup = Setup(tmp_path / "s")
    before = setup.run(10, evaluate=uncounted)
    assert before[0][5].spent is None
    assert tokens(setup.storage().records()) is None
    plain = nsga(allocations=1)
    with pytest.raises(InputError, match=r"trial 0 does not tell how many tokens it took"):
        run(tmp_path / "s", plain, Screener(), 12, tokens=1000)
    assert len(setup.run(12, evaluate=uncounted)) == 12


def test_several_recipes_need_something_that_chooses(tmp_path):
    executor = LocalExecutor(Landscape())
    executor.submit(Job(0, (pruned(0.5, 0.3), pruned(0.3, 0.5))))
    with pytest.raises(RuntimeError, match="has 2 recipes, and nothing chooses"):
        executor.wait()
