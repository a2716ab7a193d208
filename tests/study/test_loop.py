from __future__ import annotations

from collections import Counter

import optuna
import pytest
from scripted_study import LANDSCAPE, LIMITS, OBJECTIVES, Script, Setup, interrupting, scripted
from searchers_to_resume import SEARCHERS
from stand_ins import Landscape

from sae_moo.errors import InputError, Interrupted, RunError
from sae_moo.objectives import Evaluation, Stopped
from sae_moo.objectives.front import Front
from sae_moo.recipe import Cast, Expert, Merge, Prune, Repair, digest
from sae_moo.searchers.optuna_samplers import OptunaSearcher
from sae_moo.searchers.space import CoefficientSpace, LineageSpace
from sae_moo.study import loop, trials
from sae_moo.study.events import Begun, Exhausted, Finished, Resumed
from sae_moo.study.journal import open_storage
from sae_moo.study.local import LocalExecutor
from sae_moo.study.loop import Study
from sae_moo.study.streak import Streak


@pytest.mark.parametrize("space", [LineageSpace, CoefficientSpace])
@pytest.mark.parametrize("pace", ["generational", "steady-state"])
def test_a_run_stopped_anywhere_and_resumed_equals_an_unbroken_one(tmp_path, pace, space):
    whole = Setup(tmp_path / "whole", pace, space).run()
    assert [fact[0] for fact in whole] == list(range(40))
    for at in (0, 1, 7, 8, 9, 23, 25):
        broken = Setup(tmp_path / f"broken-{at}", pace, space)
        with pytest.raises(Interrupted, match=rf"stopped after {at} evaluations?; all are saved"):
            broken.run(evaluate=interrupting(broken.landscape, at))
        assert broken.run() == whole
        fresh = [fact for fact in whole if fact[12] is None]
        assert len(broken.landscape.evaluated) == len(fresh), "nothing is evaluated twice"


@pytest.mark.parametrize("racing", [False, True])
def test_a_finish_stopped_anywhere_and_resumed_equals_an_unbroken_one(tmp_path, racing):
    def setup(name):
        made = Setup(tmp_path / name)
        made.finish = 3
        made.rivals = Front(OBJECTIVES, LIMITS) if racing else None
        return made

    events = []
    whole = setup("whole").run(24, listener=events.append)
    assert not any(isinstance(event, Exhausted) for event in events)
    assert [fact[0] for fact in whole] == list(range(27))
    assert [fact[7] for fact in whole[24:]] == ["repair"] * 3
    assert all(isinstance(fact[2].input, Repair) for fact in whole[24:])
    plain = Setup(tmp_path / "plain")
    plain.rivals = Front(OBJECTIVES, LIMITS) if racing else None
    assert plain.run(24) == whole[:24]
    evaluated = len(setup("whole").landscape.evaluated) + sum(fact[12] is None for fact in whole)
    for at in range(evaluated - 4, evaluated):
        broken = setup(f"broken-{at}")
        with pytest.raises(Interrupted):
            broken.run(24, evaluate=interrupting(broken.landscape, at))
        assert broken.run(24) == whole
        assert len(broken.landscape.evaluated) == evaluated


@pytest.mark.parametrize("racing", [False, True])
def test_what_was_finished_can_be_searched_and_finished_further(tmp_path, racing):
    study, alone = Setup(tmp_path / "s"), Setup(tmp_path / "plain")
    for each in (study, alone) if racing else ():
        each.landscape, each.rivals = Racing(), Front(OBJECTIVES, LIMITS)
    study.finish = 1
    first = study.run(16)
    study.finish = 2
    assert study.run(16)[:17] == first
    longer = study.run(24)
    assert longer[:17] == first
    assert [fact[7] == "repair" for fact in longer[:18]] == [False] * 16 + [True] * 2
    assert sum(fact[7] != "repair" for fact in longer) == 24
    plain = alone.run(24)
    kept = [fact for fact in longer if fact[7] != "repair"]
    assert [fact[2] for fact in kept] == [fact[2] for fact in plain], "a repair changes nothing of the search"
    assert [fact[5] for fact in kept] == [fact[5] for fact in plain], "nor of a race"
    study.finish = 0
    assert study.run(24) == longer


def test_a_front_with_fewer_to_repair_is_said_to_be_exhausted(tmp_path):
    study = Setup(tmp_path / "s")
    study.finish = 50
    events = []
    made = study.run(16, listener=events.append)
    assert [event for event in events if isinstance(event, Exhausted)] == [
        Exhausted(len(made), 66, unrepaired=66 - len(made))
    ]
    assert 16 < len(made) < 30


@pytest.mark.parametrize("name", SEARCHERS)
def test_every_algorithm_resumes_as_if_it_had_never_stopped(tmp_path, name):
    whole = Setup(tmp_path / "whole", searcher=SEARCHERS[name]).run(24)
    for at in (3, 5, 13, 17):
        if at < len(whole):
            broken = Setup(tmp_path / f"broken-{at}", searcher=SEARCHERS[name])
            with pytest.raises(Interrupted):
                broken.run(24, evaluate=interrupting(broken.landscape, at))
            assert broken.run(24) == whole


def test_what_is_known_is_recalled_and_not_asked_for_again(tmp_path, monkeypatch):
    setup = Setup(tmp_path / "s", searcher=SEARCHERS["tpe"])
    setup.run(12)
    asked = []
    ask = OptunaSearcher.ask
    monkeypatch.setattr(OptunaSearcher, "ask", lambda self, n: asked.append(n) or ask(self, n))
    setup.run(14)
    assert asked == [1, 1]


class Racing(Landscape):
    """Stops what the front it is given dominates; the front's size is told, so that another front is another result."""

    def __call__(self, recipe, rivals=None):
        evaluation = super().__call__(recipe)
        if rivals is None or evaluation in rivals.after(evaluation).members:
            return evaluation
        rival = digest(rivals.members[0].recipe, self.fingerprints)
        stopped = Stopped(rival, {"a": len(rivals.members)}, {"accuracy": 0.1}, {"accuracy": 0.2})
        rest = {"sparsity": evaluation.sparsity, "group_sparsity": evaluation.group_sparsity}
        return Evaluation(recipe, reason="stopped", stopped=stopped, **rest)


@pytest.mark.parametrize("pace", ["generational", "steady-state"])
def test_a_race_stopped_anywhere_and_resumed_equals_an_unbroken_one(tmp_path, pace):
    def setup(name):
        made = Setup(tmp_path / name, pace)
        made.landscape, made.rivals = Racing(), Front(OBJECTIVES, LIMITS)
        return made

    whole = setup("whole").run()
    states = [fact[1] for fact in whole]
    assert states[:8] == ["complete"] * 8, "the first generation is asked everything"
    assert 3 < states.count("stopped") < 30
    for fact in whole:
        if fact[1] == "stopped":
            assert (fact[5].stopped.expected, fact[5].scores, fact[6]) == ({"accuracy": 0.1}, {}, {})
    for at in (8, 9, 15, 23, 31):
        broken = setup(f"broken-{at}")
        with pytest.raises(Interrupted):
            broken.run(evaluate=interrupting(broken.landscape, at))
        assert broken.run() == whole
    seen = optuna.load_study(study_name="s", storage=open_storage(tmp_path / "whole", write=False))
    assert [t.state.name for t in seen.trials].count("PRUNED") == states.count("stopped")


def test_stopping_again_and_again(tmp_path):
    whole = Setup(tmp_path / "whole").run()
    broken = Setup(tmp_path / "broken")
    for at in range(3, 40, 5):
        with pytest.raises(Interrupted):
            broken.run(evaluate=interrupting(broken.landscape, at))
    assert broken.run() == whole


@pytest.mark.parametrize("cut", [1, 5, 60, 400, 1500])
def test_a_journal_torn_anywhere_near_its_end_resumes(tmp_path, cut):
    whole = Setup(tmp_path / "whole").run()
    torn = Setup(tmp_path / "torn")
    torn.run(evaluations=20)
    content = torn.path.read_bytes()
    torn.path.write_bytes(content[:-cut])
    assert torn.run() == whole


def test_a_larger_budget_goes_on_and_a_smaller_one_is_done(tmp_path):
    setup = Setup(tmp_path / "s")
    first = setup.run(evaluations=10)
    assert setup.run(evaluations=5) == first
    assert setup.run(evaluations=25)[:10] == first


@pytest.mark.parametrize(("first", "other"), [("evogm", "adaptive"), ("generator", "adaptive")])
def test_what_cannot_be_recalled_is_refused(tmp_path, first, other):
    Setup(tmp_path / "s", searcher=SEARCHERS[other]).run(16)
    with pytest.raises(InputError, match=r"trial \d+ of the study is not what this search would have asked for"):
        Setup(tmp_path / "s", searcher=SEARCHERS[first]).run(17)


def test_another_search_is_not_grafted_on(tmp_path):
    setup = Setup(tmp_path / "s")
    setup.run(evaluations=20)
    with pytest.raises(InputError, match=r"trial \d+ of the study is not what this search would have asked for"):
        setup.run(seed=1)


def test_events(tmp_path):
    setup, events = Setup(tmp_path / "s"), []
    setup.run(evaluations=3, listener=events.append)
    assert [type(event) for event in events] == [Begun, Finished] * 3
    assert [event.number for event in events[::2]] == [event.record.number for event in events[1::2]]
    assert [event.proposal.recipe for event in events[::2]] == [event.record.asked for event in events[1::2]]
    setup.run(evaluations=4, listener=events.append)
    assert [type(event) for event in events[6:]] == [Resumed, Begun, Finished]
    assert len(events[6].records) == 3


def test_equal_digests_are_evaluated_once(tmp_path, landscape):
    a, b = Cast(Expert("math"), "float32"), Cast(Expert("code"), "float32")
    records, searcher, _ = scripted(tmp_path, [a, b, a, a], landscape)
    assert landscape.evaluated == [a, b]
    assert [record.repeats for record in records] == [None, None, 0, 0]
    assert records[2].values == records[0].values
    assert [evaluation for _, evaluation in searcher.told][2] == records[0].evaluation


def test_a_failure_is_a_failed_trial_with_its_reason(tmp_path, landscape):
    def evaluate(recipe, rivals=None):
        return Evaluation(recipe, reason="log probabilities are not finite") if recipe == bad else landscape(recipe)

    bad = Cast(Expert("code"), "float32")
    records, searcher, setup = scripted(tmp_path, [Cast(Expert("math"), "float32"), bad], evaluate)
    assert [record.state for record in records] == ["complete", "failed"]
    assert (records[1].values, records[1].feasible) == ({}, False)
    assert records[1].evaluation.reason == "log probabilities are not finite"
    assert not searcher.told[1][1].ok
    trials = setup.storage().study.get_trials()
    assert trials[1].state == optuna.trial.TrialState.FAIL
    assert trials[1].values is None


def test_a_search_that_runs_dry_ends_and_says_so(tmp_path, landscape):
    events = []
    records, _, _ = scripted(tmp_path, [Cast(Expert("math"), "float32")], landscape, 3, events.append)
    assert [record.state for record in records] == ["complete"]
    assert events[-1] == Exhausted(evaluations=1, budget=3, unproposed=2)


def test_deep_models_show_blocks_in_ranges(tmp_path, landscape):
    setup = Setup(tmp_path / "s")
    groups = ["embeddings", *(f"block.{i}" for i in range(32)), "head"]
    recipe = Cast(Expert("math"), "float32")
    rest = {"fingerprints": Landscape.fingerprints, "groups": groups, "evaluations": 1, "versions": "v"}
    Study(setup.storage(), Script([recipe]), LocalExecutor(landscape), **rest).run()
    (trial,) = setup.storage().study.get_trials()
    assert [name for name in trial.params if name.startswith("sparsity")] == [
        "sparsity block.0-5", "sparsity block.6-11", "sparsity block.12-16",
        "sparsity block.17-21", "sparsity block.22-26", "sparsity block.27-31",
    ]  # fmt: skip


@pytest.mark.parametrize("scope", ["row", "tensor", "2:4"])
def test_a_sparsity_by_tensor_is_shown_as_the_mean_over_a_blocks_prunable_weights(tmp_path, scope):
    groups, tensors = ["embeddings", "block.0", "block.1"], [(0, 0), (1, 30), (1, 10), (1, 0), (2, 20), (2, 0)]
    recipe = Cast(Prune(Expert("math"), (0.0, 0.5, 0.0, 0.0, 0.5, 0.0), scope=scope), "float32")
    rest = {"fingerprints": Landscape.fingerprints, "groups": groups, "evaluations": 1, "versions": "v"}
    setup = Setup(tmp_path / "s")
    found = Evaluation(recipe, {"a": (1.0,), "b": (1.0,)}, 0.4)
    Study(setup.storage(), Script([recipe]), LocalExecutor(lambda *asked: found), **rest, tensors=tensors).run()
    (trial,) = setup.storage().study.get_trials()
    shown = {name: value for name, value in trial.params.items() if name.startswith("sparsity")}
    assert shown == {"sparsity block.0": 0.375, "sparsity block.1": 0.5}


def test_a_candidates_lineage_is_named_once_and_read_once(tmp_path, landscape, monkeypatch):
    """The digest comes from whoever asked; what was written just now is not decoded."""
    walks = Counter()
    for module, name in ((loop, "digest"), (trials, "digest"), (trials, "decode")):
        original = getattr(module, name)

        def counted(*arguments, original=original, name=name):
            walks[name] += 1
            return original(*arguments)

        monkeypatch.setattr(module, name, counted)
    a, b = (Cast(Expert(name), "float32") for name in ("math", "code"))
    scripted(tmp_path, [a, b, a], landscape)
    assert walks == {"digest": 3, "decode": 3}, "when the test read them all: none as they ended"


class Failing(Landscape):
    """Fails for a while, as where memory is short, then evaluates as ever."""

    def __init__(self, times, reason="out of memory: {} bytes"):
        super().__init__()
        self.times, self.reason = times, reason

    def __call__(self, recipe, rivals=None):
        if self.times:
            self.times -= 1
            return Evaluation(recipe, reason=self.reason.format(1000 + self.times))
        return super().__call__(recipe, rivals)


RECIPES = [Cast(Merge("linear", (Expert("math"), Expert("code")), (i / 30, 1 - i / 30)), "float32") for i in range(30)]


def study(tmp_path, evaluate, failures, budget=30, recipes=RECIPES, rivals=None):
    setup = Setup(tmp_path / "s")
    rest = {"evaluations": budget, "versions": "v", "rivals": rivals, "failures": failures}
    return Study(setup.storage(), Script(recipes), LocalExecutor(evaluate), **LANDSCAPE, **rest), setup


def test_as_many_failures_in_a_row_as_may_be_stop_a_search_that_goes_on_when_it_is_run_again(tmp_path):
    landscape = Failing(7)
    stopped, setup = study(tmp_path, landscape, 5)
    with pytest.raises(RunError) as caught:
        stopped.run()
    told = str(caught.value)
    assert told.startswith(
        "stopped after 5 evaluations: 5 evaluations in a row failed: 5 x out of memory: 1006 bytes. "
    )
    assert "Likely memory is short" in told
    assert "\n" not in told
    assert [fact[1] for fact in setup.facts()] == ["failed"] * 5
    study(tmp_path, landscape, 5)[0].run()
    facts = setup.facts()
    assert [fact[1] for fact in facts] == ["failed"] * 7 + ["complete"] * 23, "it counted anew"
    whole, other = study(tmp_path / "whole", Failing(7), 0)
    whole.run()
    assert [fact[:5] for fact in facts] == [fact[:5] for fact in other.facts()], "and is the search that never stopped"


@pytest.mark.parametrize(("times", "failures", "budget"), [(30, 0, 30), (4, 5, 30), (5, 5, 5), (30, 31, 30)])
def test_fewer_failures_or_the_last_of_the_budget_stop_nothing(tmp_path, times, failures, budget):
    going, setup = study(tmp_path, Failing(times), failures, budget)
    going.run()
    assert len(setup.facts()) == budget


def test_what_was_stopped_in_a_race_or_is_known_is_no_failure(tmp_path):
    class Beaten(Landscape):
        def __call__(self, recipe, rivals=None):
            return Evaluation(recipe, reason="stopped", stopped=Stopped("0" * 64, {"a": 1}, {"accuracy": 0.1}, {}))

    going, setup = study(tmp_path / "raced", Beaten(), 3)
    going.run()
    assert len(setup.facts()) == 30
    repeated = [RECIPES[0], RECIPES[0], RECIPES[0], *RECIPES[1:3]]
    going, setup = study(tmp_path / "known", Failing(2), 3, 5, repeated)
    going.run()
    assert [fact[1] for fact in setup.facts()] == ["failed"] * 4 + ["complete"]


@pytest.mark.parametrize(
    ("reasons", "told"),
    [
        (["task t raised KeyError: 'a'"] * 3, "3 x task t raised KeyError: 'a'. Likely a task's or a package's own"),
        (["logits are not finite\n while"] * 3, "3 x logits are not finite while. Likely numbers overflow"),
        (
            ["2 workers were lost over it, the last one: killed"] * 2,
            "2 x 2 workers were lost over it, the last one: killed. Likely memory is short: fewer",
        ),
        (["who knows"] * 3, "3 x who knows. The reasons say what is wrong"),
        (["a", "b 1", "b 2", "c", "d", "e"], "2 x b 1; 1 x a; 1 x c; 2 for other reasons. The reasons"),
        (["x" * 100_000] * 2, f"2 x {'x' * 160}... "),
    ],
)
def test_a_diagnosis_counts_reasons_and_says_what_they_point_to(reasons, told):
    streak = Streak(len(reasons))
    for reason in reasons:
        assert not streak.over
        streak.take(Evaluation(Expert("math"), reason=reason))
    assert streak.over
    assert f"{len(reasons)} evaluations in a row failed: {told.rstrip()}" in streak.diagnosis()
    streak.take(Evaluation(Expert("math"), {"a": (1.0,)}))
    assert not streak.over
