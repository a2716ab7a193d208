from __future__ import annotations

import json
from dataclasses import asdict, replace

import optuna
import pytest
from scripted_study import GROUND, LANDSCAPE, LIMITS, OBJECTIVES, Script, Setup, scripted
from stand_ins import Landscape

from sae_moo.errors import InputError
from sae_moo.objectives import Evaluation, Screened, Sparsity, Stopped, TaskMean
from sae_moo.recipe import Cast, Expert, Merge, Prune, digest
from sae_moo.searchers.breeding import Operators
from sae_moo.searchers.nsga import NsgaSearcher
from sae_moo.searchers.searcher import Proposal
from sae_moo.searchers.space import LineageSpace
from sae_moo.study.executor import Answer
from sae_moo.study.journal import create_or_load, open_storage
from sae_moo.study.local import LocalExecutor
from sae_moo.study.loop import Study
from sae_moo.study.trials import TrialStorage


def test_a_reason_left_by_a_killed_run_does_not_outlive_a_good_evaluation(tmp_path, landscape):
    recipe = Cast(Expert("math"), "float32")
    storage = Setup(tmp_path / "s").storage()
    proposal = Proposal(recipe)
    number = storage.begin(proposal, digest(recipe, Landscape.fingerprints), asked_after=0, versions="v")
    optuna.trial.Trial(storage.study, storage.study.get_trials()[0]._trial_id).set_user_attr("reason", "out of memory")
    record = storage.finish(number, proposal, Answer(number, landscape(recipe)), 0)
    assert (record.state, record.evaluation.ok) == ("complete", True)


def test_a_recipe_that_was_written_here_is_taken_from_memory_only_while_the_study_says_the_same(tmp_path, landscape):
    storage = Setup(tmp_path / "s").storage()
    for number, (name, other) in enumerate([("math", "math"), ("law", "code")]):
        recipe = Cast(Expert(name), "float32")
        assert storage.begin(Proposal(recipe), f"{number:016}", asked_after=0, versions="v") == number
        if other != name:
            trial = optuna.trial.Trial(storage.study, storage.study.get_trials()[number]._trial_id)
            trial.set_user_attr("recipe", trial.user_attrs["recipe"].replace(name, other))
        record = storage.finish(number, Proposal(recipe), Answer(number, landscape(recipe)), number)
        assert (record.asked is recipe) == (other == name)
        assert record.asked == record.evaluation.recipe == Cast(Expert(other), "float32")


SCORES = {"a": (1.0, 0.0, 1.0), "b": (0.123456789123, 0.5)}
PRUNED = {"sparsity": 0.25, "group_sparsity": (0.0, 0.5, 0.25, 0.0)}


@pytest.mark.parametrize(
    "facts",
    [
        {"scores": SCORES, **PRUNED},
        {"scores": {"a": (0.5,), "b": (1 / 3,)}, **PRUNED},
        {"scores": SCORES, **PRUNED, "seconds_merge": 0.1, "seconds_score": 1 / 3, "tokens": 70, "speed": 1.1},
        {"scores": SCORES, **PRUNED, "sparseness": (0.1, 0.2), "screened": Screened(3, 1, 0.25, 9)},
        {"reason": "out of memory"},
        {"reason": "out of memory", "sparsity": 0.25, "group_sparsity": (0.25,), "speed": 1.5, "sparseness": (0.1,)},
        {"scores": SCORES, "sparsity": 0.25, "group_sparsity": [0.0, 0.5, 0.25, 0.0], "sparseness": [0.5]},
        {"reason": "lost", "scores": SCORES, **PRUNED},
        {
            "reason": "raced",
            "stopped": Stopped("d", {"a": 12}, {"accuracy": 0.5}, {"accuracy": 0.25}),
            **PRUNED,
            "tokens": 7,
        },
    ],
    ids=lambda facts: ",".join(facts),
)
@pytest.mark.parametrize("left", [{}, {"screened": asdict(Screened(3, 2, 0.5, 3)), "speed": 2.0, "tokens": 3}])
def test_a_trial_that_was_finished_is_the_one_that_is_read(tmp_path, facts, left):
    recipe, where = Cast(Expert("math"), "float32"), f"sqlite:///{tmp_path}/s.db" if left else None
    storage = Setup(tmp_path / "s", where=where).storage()
    number = storage.begin(Proposal(recipe), "d", asked_after=0, versions="v")
    if left:  # a run was killed as it wrote into a database; a journal gets all of them or none
        trial = optuna.trial.Trial(storage.study, storage.study.get_trials()[0]._trial_id)
        for name, value in left.items():
            trial.set_user_attr(name, value)
        trial.set_constraint("sparsity max", 5.0)
        storage = Setup(tmp_path / "s", where=where).storage()
    record = storage.finish(number, Proposal(recipe), Answer(number, Evaluation(recipe, **facts)), 0)
    (read,) = Setup(tmp_path / "s", where=where).storage().records()
    assert repr(record) == repr(read), "an error that is not a number is not equal to itself"
    assert left or not record.evaluation.ok or record.evaluation == Evaluation(recipe, **facts)
    if record.evaluation.ok:
        assert storage.study.get_trials()[0].constraints == {"sparsity max": -0.25}


def test_a_limit_that_is_not_a_number_is_not_stored(tmp_path):
    recipe, storage = Cast(Expert("math"), "float32"), Setup(tmp_path / "s").storage()
    number = storage.begin(Proposal(recipe), "d", asked_after=0, versions="v")
    evaluation = Evaluation(recipe, SCORES, float("nan"), (0.0, 0.5, 0.25, 0.0))
    with pytest.raises(ValueError, match=r"trial 0: constraints:sparsity max is not a number"):
        storage.finish(number, Proposal(recipe), Answer(number, evaluation), 0)
    assert [record.state for record in Setup(tmp_path / "s").storage().records()] == ["running"]


def test_what_a_trial_holds(tmp_path, landscape):
    recipe = Cast(Prune(Expert("math"), (0, 0.25, 0.75, 0)), "float32")
    _, _, setup = scripted(tmp_path, [recipe], landscape)
    storage = setup.storage()
    (trial,) = storage.study.get_trials()
    (record,) = storage.records()
    assert storage.study.directions == [optuna.study.StudyDirection.MAXIMIZE] * 2
    assert storage.study.metric_names == ["accuracy", "sparsity"]
    assert trial.values == [record.values["accuracy"], 0.5], "in the user's direction"
    assert trial.params == {
        "weight base": 0.0, "weight math": 1.0, "weight code": 0.0, "weight law": 0.0,
        "sparsity block.0": 0.25, "sparsity block.1": 0.75,
    }  # fmt: skip
    assert trial.constraints == {"sparsity max": 0.0}
    assert trial.user_attrs["digest"] == digest(recipe, Landscape.fingerprints)
    assert trial.user_attrs["a score"] == record.evaluation.mean("a")
    assert trial.user_attrs["a stderr"] == record.evaluation.stderr("a")
    assert trial.user_attrs["sparsity"] == 0.5
    assert trial.user_attrs["versions"] == "v"
    assert record.stderr["accuracy"] == OBJECTIVES[0].stderr(record.evaluation)


MERGE = Merge("linear", (Expert("math"), Expert("code")), (0.5, 0.5))
ONE_GONE = Prune(MERGE, 0.5, scope="blocks", units=((0,), ()))


@pytest.mark.parametrize(
    ("pruned", "params"),
    [
        (MERGE, {"sparsity block.0": 0, "sparsity block.1": 0}),
        (Prune(MERGE, 0.25, scope="neurons"), {"sparsity block.0": 0.25, "sparsity block.1": 0.25, "neurons removed": 0.25}),
        (Prune(MERGE, 0.5, scope="blocks"), {"sparsity block.0": 0, "sparsity block.1": 0, "blocks removed": 1}),
        (ONE_GONE, {"sparsity block.0": 0, "sparsity block.1": 0, "blocks removed": 1}),
        (
            Prune(Prune(Prune(ONE_GONE, (0, 0, 0.2, 0), scope="neurons"), (0, 0, 0.1, 0), scope="heads"), (0, 0, 0.4, 0)),
            {"sparsity block.0": 0, "sparsity block.1": 0.4, "blocks removed": 1, "neurons removed": 0.2, "heads removed": 0.1},
        ),
        (Prune(ONE_GONE, (0, 0.1, 0.2, 0.3, 0.4, 0)), {"sparsity block.0": 0.1667, "sparsity block.1": 0.1667, "blocks removed": 1}),
    ],
)  # fmt: skip
def test_what_a_trial_tells_of_what_goes_whole(tmp_path, landscape, pruned, params):
    dense = Cast(MERGE, "float32")
    _, _, setup = scripted(
        tmp_path, [Cast(pruned, "float32")], lambda recipe, _: replace(landscape(dense), recipe=recipe)
    )
    (trial,) = setup.storage().study.get_trials()
    assert {key: value for key, value in trial.params.items() if not key.startswith("weight")} == params


@pytest.mark.parametrize("name", ["told", "reason", "recipe", "parents", "digest", "instances", "sparsity score"])
def test_a_task_may_be_called_anything(tmp_path, name):
    objectives = (TaskMean(name, (name,)), Sparsity())
    opened = open_storage(tmp_path / "s", write=True)
    create_or_load(opened, "s", objectives)
    recipe = Cast(Expert("math"), "float32")
    storage = TrialStorage(opened, "s", objectives, (), Landscape.fingerprints)
    evaluation = Evaluation(recipe, {name: (0.25, 0.5)}, 0.125, (0.0, 0.125))
    Study(
        storage,
        Script([recipe]),
        LocalExecutor(lambda recipe, rivals: evaluation),
        **LANDSCAPE,
        evaluations=1,
        versions="v",
    ).run()
    (record,) = TrialStorage(opened, "s", objectives, (), Landscape.fingerprints).records()
    assert (record.evaluation, record.told, record.state) == (evaluation, 0, "complete")


def test_trials_do_not_grow_with_the_lineage(tmp_path):
    searcher = NsgaSearcher(LineageSpace(GROUND), OBJECTIVES, LIMITS, population=8, settings=Operators(remerge=0.0))
    setup = Setup(tmp_path / "s", searcher=lambda: searcher)
    setup.run(evaluations=160)
    trials = setup.storage().study.get_trials()
    sizes = [len(json.dumps(trial.user_attrs)) for trial in trials]
    assert max(t.user_attrs["generation"] for t in trials) == 19
    assert sum(sizes[-20:]) < 1.3 * sum(sizes[10:30])
    deepest = setup.storage().records()[-1].recipe
    assert len(deepest.to_json()) > 5 * len(trials[-1].user_attrs["recipe"]), "the record gives the whole"


def test_a_study_of_something_else_is_refused(tmp_path):
    opened = open_storage(tmp_path / "s", write=True)
    study = create_or_load(opened, "s", OBJECTIVES)
    study.add_trial(optuna.trial.create_trial(values=[0.5, 0.5]))
    with pytest.raises(InputError, match="trial 0 was not written by sae-moo"):
        TrialStorage(opened, "s", OBJECTIVES, (), Landscape.fingerprints).records()
    with pytest.raises(InputError, match=r"has the objectives \['accuracy', 'sparsity'\], the configuration asks for"):
        create_or_load(opened, "s", OBJECTIVES[:1])


def test_reading_changes_nothing(tmp_path):
    setup = Setup(tmp_path / "s")
    setup.run(evaluations=5)
    torn = setup.path.read_bytes()[:-3]
    setup.path.write_bytes(torn)
    opened = open_storage(setup.path, write=False)
    records = TrialStorage(opened, "s", OBJECTIVES, LIMITS, Landscape.fingerprints).records()
    assert [record.state for record in records] == ["complete"] * 4 + ["running"]
    assert setup.path.read_bytes() == torn
