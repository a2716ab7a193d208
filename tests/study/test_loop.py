from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
from stand_ins import Landscape

from sae_moo.errors import InputError, Interrupted
from sae_moo.objectives import Constraint, Evaluation, Objective, Stopped
from sae_moo.objectives.front import Front
from sae_moo.recipe import Cast, Expert, Prune, digest
from sae_moo.searchers.baselines import OneShot, OneShotSearcher
from sae_moo.searchers.breeding import Operators
from sae_moo.searchers.nsga import NsgaSearcher
from sae_moo.searchers.optuna_samplers import OptunaSearcher
from sae_moo.searchers.sae import Sae, SaeSearcher
from sae_moo.searchers.scalar import CovarianceAdaptation, ParticleSwarm, ScalarSearcher
from sae_moo.searchers.schedule import Adaptive
from sae_moo.searchers.searcher import Proposal
from sae_moo.searchers.space import CoefficientSpace, Ground, LineageSpace
from sae_moo.study.local import LocalExecutor
from sae_moo.study.loop import Begun, Exhausted, Finished, Resumed, Study
from sae_moo.study.storage import FileLock, TrialStorage, absolute, create_or_load, open_storage

OBJECTIVES = (Objective("accuracy", ("a", "b")), Objective("sparsity"))
LIMITS = (Constraint(Objective("sparsity"), high=0.5),)
GROUND = Ground(("math", "code", "law"), Landscape.prunable)
SPACE = CoefficientSpace(GROUND)


class Setup:
    """A study over the stand-in for models; `after` interrupts at the n-th evaluation, before or after it is stored."""

    def __init__(self, path, pace="generational", space=LineageSpace, where=None, searcher=None):
        self.path, self.pace, self.space, self.where = path, pace, space, where
        self.searcher = searcher
        self.landscape = Landscape()
        self.rivals = None

    def storage(self) -> TrialStorage:
        opened = open_storage(self.where or self.path, write=True)
        create_or_load(opened, "s", OBJECTIVES)
        return TrialStorage(opened, "s", OBJECTIVES, LIMITS, Landscape.fingerprints)

    def run(self, evaluations=40, evaluate=None, seed=0, listener=lambda event: None):
        storage = self.storage()
        if self.searcher is not None:
            searcher = self.searcher()
        else:
            searcher = NsgaSearcher(self.space(GROUND), OBJECTIVES, LIMITS, population=8, seed=seed, pace=self.pace)
        executor = LocalExecutor(evaluate or self.landscape)
        groups = Landscape.groups
        Study(
            storage, searcher, executor, Landscape.fingerprints, groups, evaluations, "v", listener, self.rivals
        ).run()
        return self.facts()

    def facts(self):
        return [
            (
                r.number,
                r.state,
                r.asked,
                r.recipe,
                r.digest,
                r.evaluation,
                dict(r.values),
                r.operator,
                r.generation,
                r.parents,
                r.asked_after,
                r.told,
                r.repeats,
                dict(r.params),
                r.vector,
            )
            for r in self.storage().records()
        ]


def interrupting(landscape, at: int):
    def evaluate(recipe, rivals=None):
        if len(landscape.evaluated) == at:
            raise KeyboardInterrupt
        return landscape(recipe, rivals)

    return evaluate


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


def scalar(optimizer, **more):
    return lambda: ScalarSearcher(SPACE, OBJECTIVES, LIMITS, optimizer=optimizer(SPACE, 8, 0.6), name="moved", **more)


SEARCHERS = {
    "sae": lambda: SaeSearcher(GROUND, OBJECTIVES, LIMITS, size=8, local=True),
    "sae by norms": lambda: SaeSearcher(
        GROUND, OBJECTIVES, LIMITS, settings=Sae(measure="hoyer"), size=8, schedule=Adaptive()
    ),
    "m2n2": lambda: SaeSearcher(
        GROUND, OBJECTIVES, LIMITS, settings=Sae(omega=1.0, beta=0.0), size=8, crossover="split-slerp"
    ),
    "adaptive": lambda: NsgaSearcher(LineageSpace(GROUND), OBJECTIVES, LIMITS, population=8, schedule=Adaptive()),
    "swarm": scalar(ParticleSwarm),
    "cma-es": scalar(CovarianceAdaptation),
    "tpe": lambda: OptunaSearcher(SPACE, OBJECTIVES, LIMITS, sampler="TPESampler", population=8),
    "optuna's nsga2": lambda: OptunaSearcher(SPACE, OBJECTIVES, LIMITS, sampler="NSGAIISampler", population=8),
    "one-shot": lambda: OneShotSearcher(
        GROUND,
        OBJECTIVES,
        LIMITS,
        method="ties",
        settings=OneShot(scales=[0.5, 1.0], densities=[0.2, 0.8], levels=[0.3, 0.5]),
    ),
}


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


class Script:
    """A searcher that asks for given recipes, one after another."""

    def __init__(self, recipes):
        self.recipes, self.told = list(recipes), []

    def ask(self, n):
        return [Proposal(self.recipes.pop(0), operator="script")] if self.recipes else []

    def tell(self, proposal, evaluation):
        self.told.append((proposal.recipe, evaluation))


def scripted(tmp_path, recipes, evaluate, evaluations=None, listener=lambda event: None):
    setup = Setup(tmp_path / "s")
    storage, searcher = setup.storage(), Script(recipes)
    budget = len(recipes) if evaluations is None else evaluations
    rest = (Landscape.fingerprints, Landscape.groups, budget, "v", listener)
    Study(storage, searcher, LocalExecutor(evaluate), *rest).run()
    return storage.records(), searcher, setup


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


def test_a_reason_left_by_a_killed_run_does_not_outlive_a_good_evaluation(tmp_path, landscape):
    recipe = Cast(Expert("math"), "float32")
    storage = Setup(tmp_path / "s").storage()
    number = storage.begin(recipe, {}, [], "x", 0, 0, "v")
    optuna.trial.Trial(storage.study, storage.study.get_trials()[0]._trial_id).set_user_attr("reason", "out of memory")
    record = storage.finish(number, landscape(recipe), 0)
    assert (record.state, record.evaluation.ok) == ("complete", True)


def test_a_search_that_runs_dry_ends_and_says_so(tmp_path, landscape):
    events = []
    records, _, _ = scripted(tmp_path, [Cast(Expert("math"), "float32")], landscape, 3, events.append)
    assert [record.state for record in records] == ["complete"]
    assert events[-1] == Exhausted(evaluations=1, budget=3)


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


@pytest.mark.parametrize("name", ["told", "reason", "recipe", "parents", "digest", "instances", "sparsity score"])
def test_a_task_may_be_called_anything(tmp_path, name):
    objectives = (Objective(name, (name,)), Objective("sparsity"))
    opened = open_storage(tmp_path / "s", write=True)
    create_or_load(opened, "s", objectives)
    recipe = Cast(Expert("math"), "float32")
    storage = TrialStorage(opened, "s", objectives, (), Landscape.fingerprints)
    evaluation = Evaluation(recipe, {name: (0.25, 0.5)}, 0.125, (0.0, 0.125))
    Study(
        storage,
        Script([recipe]),
        LocalExecutor(lambda recipe, rivals: evaluation),
        Landscape.fingerprints,
        Landscape.groups,
        1,
        "v",
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


def test_deep_models_show_blocks_in_ranges(tmp_path, landscape):
    setup = Setup(tmp_path / "s")
    groups = ["embeddings", *(f"block.{i}" for i in range(32)), "head"]
    recipe = Cast(Expert("math"), "float32")
    Study(setup.storage(), Script([recipe]), LocalExecutor(landscape), Landscape.fingerprints, groups, 1, "v").run()
    (trial,) = setup.storage().study.get_trials()
    assert [name for name in trial.params if name.startswith("sparsity")] == [
        "sparsity block.0-5", "sparsity block.6-11", "sparsity block.12-16",
        "sparsity block.17-21", "sparsity block.22-26", "sparsity block.27-31",
    ]  # fmt: skip


def test_a_database_works_as_well(tmp_path):
    whole = Setup(tmp_path / "whole").run(evaluations=12)
    assert Setup(None, where=f"sqlite:///{tmp_path}/s.db").run(evaluations=12) == whole


@pytest.mark.parametrize("content", ["hello\nworld\n", '{"a": 1}\n', "[1]\n", "\x00\x01binary", "no newline at all"])
def test_a_file_that_is_no_study_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_text(content)
    for write in (True, False):
        with pytest.raises(InputError, match="not a study"):
            open_storage(path, write=write)
    assert path.read_text() == content


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


@pytest.mark.parametrize("url", ["sqlite:////no/such/folder/x.db", "nosuchdb://x"])
def test_a_storage_that_cannot_be_opened(url):
    with pytest.raises(InputError, match="Optuna cannot open it"):
        open_storage(url, write=True)


def test_ending_a_trial_reaches_the_disk_and_its_attributes_do_not_wait_for_it_one_by_one(tmp_path, monkeypatch):
    setup = Setup(tmp_path / "s")
    storage = setup.storage()
    number = storage.begin(Cast(Expert("math"), "float32"), {}, (), "expert", 0, 0, "v")
    waited = []
    monkeypatch.setattr("os.fsync", lambda handle: waited.append(setup.path.read_bytes()))
    storage.finish(number, setup.landscape(Cast(Expert("math"), "float32")), told=0)
    assert len(waited) == 2, "the constraint and the end"
    assert waited[-1] == setup.path.read_bytes(), "whole when the disk was last waited for"
    assert b"a score" in waited[-1]


def test_a_database_with_settings_in_its_url_is_found_again(tmp_path):
    url = f"sqlite:///{tmp_path}/s.db?timeout=20"
    with pytest.raises(InputError, match=r"no study at .*s\.db$"):
        open_storage(url, write=False)
    Setup(None, where=url).run(evaluations=6)
    assert (tmp_path / "s.db").is_file()
    assert (
        len(TrialStorage(open_storage(url, write=False), "s", OBJECTIVES, LIMITS, Landscape.fingerprints).records())
        == 6
    )


def test_a_lock_that_could_not_be_taken_is_free_afterwards(tmp_path):
    lock = FileLock(tmp_path / "j")
    (tmp_path / "j.lock").mkdir()
    for _ in range(2):
        with pytest.raises(IsADirectoryError):
            lock.acquire()
    (tmp_path / "j.lock").rmdir()
    assert lock.acquire()
    lock.release()


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("sqlite:///s.db", "sqlite:////c/s.db"),
        ("sqlite+pysqlite:///d/s.db?timeout=20", "sqlite+pysqlite:////c/d/s.db?timeout=20"),
        ("sqlite:////d/s.db", "sqlite:////d/s.db"),
        ("postgresql://me:secret@h/d", "postgresql://me:secret@h/d"),
        ("no url://", "no url://"),
        ("mysql://me:secret@h:33o6/d", "mysql://me:secret@h:33o6/d"),
    ],
)
def test_databases_start_from_the_configurations_folder(url, found):
    assert absolute(url, Path("/c")) == found
