"""A study that goes on from an earlier one: what it takes over, what it is bound to, and what is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

from sae_moo.config.document import Config
from sae_moo.errors import InputError
from sae_moo.explore.run import Run
from sae_moo.explore.words import summary
from sae_moo.jobs import bench as bench_module
from sae_moo.jobs.bench import Bench
from sae_moo.jobs.doctor import examine
from sae_moo.jobs.extending import COUNT, inheritance
from sae_moo.jobs.search import check_resumable, search
from sae_moo.prediction.table import FeatureTable
from sae_moo.recipe.operators import USUAL, pair_of
from sae_moo.study.record import evaluations, inherited, own
from sae_moo.study.trials import TrialStorage

EXPERTS = {"math": "zoo:math", "lingua": "zoo:lingua"}
BANDIT = {"features": False, "operators": ["linear-0.7"], "pairs": 5, "levels": [0.3]}


def configured(
    name, extends=None, *, experts=EXPERTS, tasks=("zoo_math",), items=6, evaluations=99, bandit=BANDIT, **rest
):
    return Config.from_dict(
        {
            "study": {"name": name, **({} if extends is None else {"extends": str(extends)})},
            "models": {"base": "zoo:base", "experts": experts, **rest.pop("models", {})},
            "tasks": [{"name": task, "search": items, "test": 2} for task in tasks],
            "objectives": [{"mean": list(tasks), "name": "accuracy"}, "sparsity"],
            "search": {"algorithm": "simmerge-bandit", "evaluations": evaluations, "bandit": bandit},
            **rest,
        }
    )


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """A folder of runs, with one that is over: `first`."""
    root = tmp_path_factory.mktemp("runs")
    search(configured("first"), root=root)
    return root


@pytest.fixture
def root(earlier, tmp_path):
    """The same, of a test's own."""
    shutil.copytree(earlier / "first", tmp_path / "first")
    return tmp_path


def read(run):
    return [(each.asked, each.state, each.evaluation.scores, each.parents, each.told) for each in run.trials()]


PAIRS = {"algorithm": "pairs", "evaluations": 99, "pairs": {"operators": ["linear-0.7"], "levels": []}}
MORE = {
    "experts": {**EXPERTS, "logic": "zoo:logic"},
    "bandit": {**BANDIT, "operators": ["linear-0.7", "linear"], "pairs": 4, "levels": [0.3, 0.4]},
}


def test_an_operator_and_an_expert_join_and_nothing_is_evaluated_twice(root):
    first = Run.open(root / "first").trials()
    assert len(first) == 3 + 2 + 1, "experts and base, both orders, one pruning"
    run = search(configured("second", "first", **MORE), root=root)
    records = run.trials()
    taken, made = inherited(records), own(records)
    assert [(each.inherited.study, each.inherited.number) for each in taken] == [("first", i) for i in range(6)]
    assert [each.evaluation.scores for each in taken] == [each.evaluation.scores for each in first]
    assert taken[-1].parents == first[-1].parents
    assert taken[0].params["weight logic"] == 0.0
    assert evaluations(records) == len(made) == 1 + 4 + 1, "the new expert, four merges, the pruning that is new"
    assert made[-1].parents == taken[-1].parents, "what was taken over may be a parent"
    assert not {each.asked for each in made} & {each.asked for each in taken}
    assert "linear" in {each.operator for each in made}
    assert run.identity[COUNT] == 6
    assert run.view().exhausted
    assert "6 taken over from other studies beside them" in str(summary(run.view()))
    assert [finding for finding in examine(run.folder).findings if finding.state != "note"] == []


def test_it_is_resumed_as_it_began_whatever_the_earlier_one_does(root):
    whole = read(search(configured("whole", "first", **MORE), root=root))
    search(configured("second", "first", **MORE, evaluations=3), root=root)
    shutil.rmtree(root / "first")
    again = search(configured("second", "first", **MORE), root=root)
    assert read(again) == whole
    with pytest.raises(InputError, match=r"study.extends: the study has 'first', now it is None"):
        search(configured("second", **MORE), root=root)


@pytest.mark.parametrize("meanwhile", ["nothing", "it is gone", "it is another"])
def test_killed_while_it_took_over_it_takes_over_the_rest(root, monkeypatch, meanwhile):
    whole = read(search(configured("whole", "first", **MORE), root=root))
    adopt, taken = TrialStorage.adopt, []

    def killed(self, record, *rest):
        if len(taken) == 2:
            raise KeyboardInterrupt
        taken.append(record)
        return adopt(self, record, *rest)

    monkeypatch.setattr(TrialStorage, "adopt", killed)
    with pytest.raises(KeyboardInterrupt):
        search(configured("second", "first", **MORE), root=root)
    monkeypatch.undo()
    if meanwhile == "nothing":
        assert read(search(configured("second", "first", **MORE), root=root)) == whole
        return
    shutil.rmtree(root / "first")
    if meanwhile == "it is another":
        search(configured("first", search=PAIRS), root=root)
    words = {"it is gone": "no run 'first'", "it is another": "first no longer has the others as they were"}
    with pytest.raises(InputError, match=words[meanwhile]):
        search(configured("second", "first", **MORE), root=root)


def test_a_study_that_was_extended_is_extended_again_and_says_where_trials_are_from(root):
    search(configured("second", "first", **MORE, evaluations=2), root=root)
    run = search(configured("third", root / "second", **MORE), root=root)
    assert [each.inherited.study for each in inherited(run.trials())] == ["first"] * 6 + ["second"] * 2


def test_what_was_not_scored_on_a_new_task_is_partial_and_may_be_asked_for_again(root):
    run = search(configured("second", "first", tasks=("zoo_math", "zoo_logic")), root=root)
    taken, made = inherited(run.trials()), own(run.trials())
    assert {each.state for each in taken} == {"partial"}
    assert {each.evaluation.reason for each in taken} == {"not scored on zoo_logic"}
    assert [set(each.evaluation.scores) for each in taken] == [{"zoo_math"}] * 6
    assert not any(each.values for each in taken)
    assert len(made) == 6
    assert {each.asked for each in made[:5]} == {each.asked for each in taken[:5]}
    assert all(each.repeats is None and each.values for each in made)
    assert not {each.number for each in run.front()} & {each.number for each in taken}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"experts": {**EXPERTS, "math": "zoo:logic"}}, "models.experts.math: it has other weights under this name"),
        ({"experts": {"math": "zoo:math", "logic": "zoo:logic"}}, "it has 'lingua', which this configuration lacks"),
        ({"items": 5}, "tasks.zoo_math.search: it has 6, here it is 5"),
        ({"tasks": ("zoo_logic",)}, "tasks: none of its tasks is here; it has zoo_math"),
        ({"models": {"dtype": "bfloat16"}}, "models.dtype: it has 'float32', here it is 'bfloat16'"),
        ({"evaluation": {"anchors": 0.5}}, "evaluation.anchors: scores of chosen instances are of one study"),
    ],
    ids=lambda each: each[:40] if isinstance(each, str) else "",
)
def test_what_would_not_mean_the_same_is_refused_before_anything_is_written(earlier, changes, words):
    config = configured("second", "first", **changes)
    with pytest.raises(InputError, match=r"study.extends: .*first cannot be gone on from here") as caught:
        search(config, root=earlier)
    assert words in str(caught.value)
    assert not (earlier / "second").exists()
    with pytest.raises(InputError, match="cannot be gone on from here"):
        check_resumable(config, Bench.open(config), earlier)


def test_scores_of_another_kind_of_device_are_not_taken_over(earlier):
    bench = replace(Bench.open(configured("second", "first")), device="cuda")
    with pytest.raises(InputError, match="device: it has 'cpu', here it is 'cuda'"):
        inheritance(bench, earlier)


@pytest.mark.parametrize(
    ("name", "extends", "words"),
    [("first", "first", "does not extend itself"), ("second", "fist", "^study.extends: no run 'fist' \\(did")],
)
def test_what_is_no_earlier_run_is_refused(earlier, tmp_path, name, extends, words):
    root = earlier
    if name == "first":
        shutil.copytree(earlier / "first", tmp_path / "first")
        (tmp_path / "first" / "study.journal").unlink()
        root = tmp_path
    with pytest.raises(InputError, match=words):
        search(configured(name, extends), root=root)


def test_a_run_without_a_result_has_nothing_to_take_over(earlier, tmp_path):
    search(configured("empty"), root=tmp_path, searcher=lambda bench: NOBODY)
    with pytest.raises(InputError, match="has evaluated nothing so far"):
        search(configured("second", "empty"), root=tmp_path)


class _Nobody:
    def ask(self, n):
        return ()


NOBODY = _Nobody()


def test_only_algorithms_that_can_take_something_over():
    with pytest.raises(InputError) as caught:
        configured("second", "first", search={"algorithm": "nsga2"})
    assert "study.extends: algorithm: nsga2 takes nothing over from an earlier run; pairs, simmerge-bandit do" in str(
        caught.value
    )
    with pytest.raises(InputError, match="searches that are compared begin anew"):
        configured("second", "first", compare={"methods": ["random"]})


def test_what_a_study_without_it_is_bound_to_has_not_changed():
    assert "study.extends" not in configured("first").identity()
    assert configured("second", "first").identity()["study.extends"] == "first"


def test_what_is_asked_for_again_has_the_result_that_was_taken_over_and_is_not_taken_over_again(tmp_path):
    ranked = {
        **PAIRS,
        "pairs": {"operators": ["rankmean"], "levels": []},
    }  # whole models tell its ranks: another recipe
    search(configured("one", search=ranked), root=tmp_path)
    run = search(configured("two", "one", search=ranked), root=tmp_path)
    (merge,) = own(run.trials())
    assert merge.repeats == next(each.number for each in inherited(run.trials()) if each.operator == "rankmean")
    again = search(configured("three", "two", search=ranked), root=tmp_path)
    assert [each.inherited.study for each in inherited(again.trials())] == ["one"] * 4


def test_pairs_go_on_where_others_were(root):
    run = search(configured("second", "first", experts=MORE["experts"], search=PAIRS), root=root)
    read = [pair_of(each.asked, USUAL) for each in own(run.trials())[1:]]
    assert {(first, second) for _, first, second in read} == {
        ("math", "logic"), ("logic", "math"), ("lingua", "logic"), ("logic", "lingua")
    }  # fmt: skip


def test_features_are_made_for_those_who_read_them_alone(monkeypatch):
    asked = []

    def made(config, pool, tasks, device, probes, experts):
        asked.append(probes)
        rows = {(a, b, "zoo_math"): np.zeros(1) for a in EXPERTS for b in EXPERTS if a != b}
        return FeatureTable(("x",), rows)

    monkeypatch.setattr(bench_module, "features_of", made)
    without = Bench.open(configured("second"))
    without.searcher()
    assert asked == []
    assert not any(key.startswith("probes of") for key in without.identity())
    bench = without.configured(
        configured("second", bandit={**BANDIT, "features": True}, predict={"probes": {"items": 3}})
    )
    bench.searcher()
    assert [probes.items for probes in asked] == [3]
    assert (
        bench.identity()["probes of zoo_math"]
        != without.configured(configured("second", bandit={**BANDIT, "features": True})).identity()[
            "probes of zoo_math"
        ]
    )
