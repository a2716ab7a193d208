"""Deciding on the command line: picks with their neighbours and test scores, and two models held against each other."""

from __future__ import annotations

import io
import json
import math
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from commands import call, refused
from rich.console import Console

from sae_moo.cli import deciding
from sae_moo.config.document import Config
from sae_moo.errors import InputError
from sae_moo.evaluate.scorer import Scorer
from sae_moo.explore.decide.significance import Paired
from sae_moo.explore.run import Run
from sae_moo.jobs import diff, judge
from sae_moo.materialization.into_model import materialize
from sae_moo.objectives import Evaluation, Sparsity, TaskMean
from sae_moo.objectives.front import Front
from sae_moo.objectives.scores import task_scores
from sae_moo.recipe import Expert, Merge


@pytest.fixture
def mine(searched, tmp_path, monkeypatch):
    """A copy of the finished run, to write into."""
    shutil.copytree(searched, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def two(run: Run) -> list:
    """The best trial of a run, and one that scores less and is not as sparse."""
    first = run.front()[0]
    others = [record for record in run.trials() if record.values["sparsity"] != first.values["sparsity"]]
    return [first, min(others, key=lambda record: record.values["facts"])]


def test_picks_tell_their_neighbours(there, monkeypatch):
    pair = two(Run.open("tiny"))
    monkeypatch.setattr("sae_moo.explore.run.front_of", lambda records, objectives: Front(objectives, members=pair))
    front = json.loads(call("front", "tiny", "--json").stdout)["trials"]
    found = json.loads(call("pick", "tiny", "--wish", "facts=1", "--json").stdout)
    assert found["trial"] == front[0]
    assert "facts is in the way" in found["why"]
    (below,) = found["neighbours"]
    differences = {name: value - front[0]["values"][name] for name, value in front[1]["values"].items()}
    assert below["number"] == front[1]["number"]
    assert below["has"] == ["less facts", "more sparsity" if differences["sparsity"] > 0 else "less sparsity"]
    assert below["difference"] == pytest.approx(differences)
    assert set(below["significance"]) == {"facts"}
    assert below["significance"]["facts"]["mean"] == pytest.approx(differences["facts"])
    shown = call("pick", "tiny", "--order", "facts,sparsity", "--tolerance", "0.001").stdout
    assert f"neighbours on the front, minus trial {pair[0].number} (search split)" in shown
    assert f"significant  {differences['sparsity']:+.3f}" in re.sub(" {2,}", "  ", shown)
    assert "sign-flip test" in shown


def test_rules_that_cannot_be_kept_are_refused(there):
    assert json.loads(call("pick", "tiny", "--pseudo", "facts=1", "--json").stdout)["why"].startswith("pseudo-weights")
    message = refused("pick", "tiny", "--where", "sparsity>=0.95")
    assert "no trial of the front keeps sparsity >= 0.95" in message
    assert "nearest is trial" in message
    assert "sparsity is in the way" in message
    assert "knee and weights choose differently" in refused("pick", "tiny", "--knee", "--weights", "facts=1")
    assert "give one or the other" in refused("export", "tiny", "--trial", "0", "--wish", "facts=1", "-o", "m")


def test_a_tested_pick(mine, monkeypatch):
    run_of = Run.open("tiny").trial
    result = call("pick", "tiny", "--test", "--json")
    document = json.loads(result.stdout)
    trial, test = document["trial"], document["test"]
    assert test["split"] == "test"
    assert {name: each["instances"] for name, each in test["tasks"].items()} == {"facts": 8, "zoo_math": 4}
    assert {name: each["score"] for name, each in test["search"].items()} == trial["tasks"]
    for told in (test["optimism"]["facts"], test["objectives"]["facts"]["optimism"]):
        search, anew = test["search"]["facts"], test["tasks"]["facts"]
        assert told["mean"] == pytest.approx(search["score"] - anew["score"])
        assert told["stderr"] == pytest.approx(math.hypot(search["stderr"], anew["stderr"]))
    base, best, average = test["references"].values()
    assert run_of(base["trial"]).recipe.input.name == "base"
    assert list(test["references"])[0::2] == ["base", "uniform average"]
    name = list(test["references"])[1].removeprefix("best expert (").removesuffix(")")
    assert name in ("math", "code", "law")
    for source, each in {"base": base, name: best}.items():
        found = json.loads(
            call("evaluate", str(Config.load("c.yaml").models.experts.get(source) or Config.load("c.yaml").models.base),
                 "--config", "c.yaml", "--json").stdout
        )  # fmt: skip
        assert each["tasks"] == found["tasks"]
        assert each["sparsity"] == found["sparsity"]
    difference = test["tasks"]["facts"]["score"] - average["tasks"]["facts"]["score"]
    assert average["difference"]["facts"]["mean"] == pytest.approx(difference)

    asked = []
    score = Scorer.score
    monkeypatch.setattr(Scorer, "score", lambda *arguments: asked.append(arguments[2]) or score(*arguments))
    assert json.loads(call("pick", "tiny", "--test", "--json").stdout) == document
    assert asked == [], "scores are kept"
    shown = call("pick", "tiny", "--test").stdout
    assert f"trial {trial['number']} minus it, test" in shown
    (mine / "runs/tiny/test.json").write_text("[1]")
    assert "test.json: expected scores on the test split" in refused("pick", "tiny", "--test")


def test_the_best_expert_is_chosen_on_the_search_split_and_scored_where_the_study_did_not(mine):
    run = Run.open("tiny")
    known, record = run.trials(), run.front()[0]
    run.trials = lambda: [
        replace(each, evaluation=Evaluation(each.recipe, reason="no"), values={}, feasible=False) for each in known
    ]
    _, base, best, average = judge.on_both_splits(run, run.view(), [record])
    assert [each.trial for each in (base, best, average)] == [None] * 3
    names = {record.recipe.input.name: record for record in known if type(record.recipe.input).__name__ == "Expert"}
    scores = {name: record.values["facts"] for name, record in names.items() if name != "base"}
    assert best.name == f"best expert ({max(scores, key=scores.get)})"
    assert best.scores["search"]["facts"].mean() == pytest.approx(max(scores.values()), abs=1e-6)
    assert base.scores["search"]["facts"].mean() == pytest.approx(names["base"].values["facts"], abs=1e-6)


def test_base_experts_and_average_are_the_trials_that_pages_name_in_a_search_over_coefficients_too(here):
    """Such a search makes the average by task arithmetic, and the base and the experts as well."""
    call("search", "c.yaml", "--evaluations", "6", "--set", "space.kind=coefficients", "--set", "space.sparsity=0")
    run = Run.open("tiny")
    view = run.view()
    named = {each.name: each.record.number for each in view.references}
    assert set(named) == {"base", "math", "code", "law", "uniform average"}
    assert {type(record.recipe.input) for record in view.done} == {Merge}
    _, base, best, average = judge.on_both_splits(run, view, [view.front[0]])
    told = {"base": base.trial, "uniform average": average.trial}
    told |= {best.name.removeprefix("best expert (").removesuffix(")"): best.trial}
    assert told == {name: named[name] for name in told}
    assert average.scores["search"]["facts"].tolist() == list(view.average.evaluation.scores["facts"])


def test_tasks_need_test_instances(here):
    with pytest.raises(InputError, match=r"tasks without test instances \(test: 0\): zoo_math"):
        judge.check_has_test(Config.load("c.yaml", ["tasks.1.test=0"]))


def test_a_verified_export_tells_its_optimism(there, tmp_path):
    found = json.loads(
        call("export", "tiny", "--order", "facts,sparsity", "-o", f"{tmp_path}/m", "--verify", "--json").stdout
    )
    scores = {split: found["scores"][split]["facts"]["score"] for split in ("search", "test")}
    assert found["optimism"]["facts"]["mean"] == pytest.approx(scores["search"] - scores["test"])
    card = (tmp_path / "m/README.md").read_text()
    assert f"Optimism of the search (search minus test): facts {found['optimism']['facts']['mean']:+.4f} ±" in card
    shown = call("export", "tiny", "--knee", "-o", f"{tmp_path}/n", "--verify").stdout
    assert "optimism is search minus test" in shown


def test_two_trials(mine, tiny, tiny_model):
    run = Run.open("tiny")
    first, second = two(run)
    numbers = [str(first.number), str(second.number)]
    found = json.loads(call("diff", "tiny", *numbers, "--json").stdout)
    assert found["models"] == [f"trial {number}" for number in numbers]
    assert found["split"] == "search"
    facts = found["scores"]["facts"]
    rows = [np.array(record.evaluation.scores["facts"]) for record in (first, second)]
    assert facts["first"]["score"] == pytest.approx(rows[0].mean())
    assert facts["second"]["stderr"] == pytest.approx(second.evaluation.stderr("facts"))
    assert facts["difference"]["mean"] == pytest.approx((rows[1] - rows[0]).mean())
    assert facts["difference"]["won"] == int((rows[1] > rows[0]).sum())
    assert found["weights"]["sparsity"] == [first.evaluation.sparsity, second.evaluation.sparsity]
    weights = []
    for record in (first, second):
        materialize(record.recipe, tiny, tiny_model)
        weights.append({name: weight.detach().clone() for name, weight in tiny.parameters(tiny_model).items()})
    assert list(found["groups"]) == list(tiny.groups)
    for i, group in enumerate(tiny.groups):
        own = [info.name for info in tiny.tensors if info.group == i]
        a, b = (torch.cat([each[name].flatten() for name in own]) for each in weights)
        assert found["groups"][group]["distance"] == pytest.approx(float((b - a).norm() / a.norm()), rel=1e-5)
        if group.startswith("block"):
            shares = [record.evaluation.group_sparsity[i] for record in (first, second)]
            assert found["groups"][group]["sparsity"] == pytest.approx(shares)
        else:
            assert found["groups"][group]["sparsity"] is None
    same = json.loads(call("diff", "tiny", numbers[0], numbers[0], "--json").stdout)
    assert same["weights"]["distance"] == 0
    assert same["scores"]["facts"]["difference"]["p"] == 1
    anew = json.loads(call("diff", "tiny", *numbers, "--split", "test", "--json").stdout)
    assert anew["scores"]["facts"]["first"]["instances"] == 8
    shown = call("diff", "tiny", *numbers).stdout
    assert "second minus first" in shown
    assert "block.1" in shown


def test_two_models(there, tmp_path):
    first, second = (str(record.number) for record in two(Run.open("tiny")))
    for number in (first, second):
        call("export", "tiny", "--trial", number, "-o", f"{tmp_path}/{number}")
    trials = json.loads(call("diff", "tiny", first, second, "--json").stdout)
    for a, b in ((first, second), (f"{first}/recipe.json", second)):
        command = ("diff", f"{tmp_path}/{a}", f"{tmp_path}/{b}", "--config", "c.yaml", "--json")
        found = json.loads(call(*command, "--split", "search").stdout)
        assert found["weights"] == trials["weights"]
        assert found["groups"] == trials["groups"]
        told = [each["scores"]["facts"]["difference"]["mean"] for each in (found, trials)]
        assert told[0] == pytest.approx(told[1], abs=1e-6)
    assert json.loads(call(*command).stdout)["split"] == "test"


def test_two_recipes_are_held_against_each_other_with_one_bench(there, tmp_path, monkeypatch):
    opened, open_bench = [], diff.Bench.open
    monkeypatch.setattr(diff.Bench, "open", lambda config: opened.append(config) or open_bench(config))
    for name in ("math", "code"):
        (tmp_path / f"{name}.json").write_text(Expert(name).to_json())
    found = diff.of_models(f"{tmp_path}/math.json", f"{tmp_path}/code.json", Config.load("c.yaml"), "search")
    assert len(opened) == 1
    experts = {record.recipe.input.name: record for record in Run.open("tiny").trials()[:3]}
    scores = [experts[name].values["facts"] for name in ("math", "code")]
    assert [found.scores["facts"].first.score, found.scores["facts"].second.score] == pytest.approx(scores, abs=1e-6)


def test_what_cannot_be_held_against_each_other(there):
    assert "expected RUN and two numbers of trials, or two models" in refused("diff", "tiny", "1")
    assert "two models and --config CONFIG; got tiny 1 2 --config c.yaml" in refused(
        "diff", "tiny", "1", "2", "--config", "c.yaml"
    )
    assert "expected two numbers of trials behind tiny, got 1 two" in refused("diff", "tiny", "1", "two")
    assert "no trial 99; there are 0 to 13" in refused("diff", "tiny", "1", "99")
    assert "--set changes a configuration" in refused("diff", "tiny", "1", "2", "--set", "models.dtype=float16")
    base = str(Config.load("c.yaml").models.base)
    assert "are not of one architecture" in refused("diff", "zoo:math", base, "--config", "c.yaml")


def test_another_device_will_do_where_scores_are_only_looked_at(there):
    run = Run.open("tiny")
    run.identity = run.identity | {"device": "cuda"}
    assert judge.bench_of(run, any_device=True).device == "cpu"
    with pytest.raises(InputError, match="device: the study has 'cuda', now it is 'cpu'"):
        judge.bench_of(run)
    run.identity = run.identity | {"search.population": 7}
    with pytest.raises(InputError, match=r"search\.population: the study has 7, now it is 6"):
        judge.bench_of(run, any_device=True)


def test_trials_without_test_items_have_no_test_diff(there):
    run = Run.open("tiny")
    run.config = Config.load("c.yaml", ["tasks.0.test=0"])
    with pytest.raises(InputError, match=r"tasks without test instances \(test: 0\): facts"):
        diff.of_trials(run, run.trial(0), run.trial(1), "test")


def test_models_are_compared_as_they_are_served(there, tmp_path, tiny_folders):
    """A recipe and a folder are the same model only once both are rounded to the configured dtype."""
    (tmp_path / "bare.json").write_text(Expert("math").to_json())
    command = ("diff", f"{tmp_path}/bare.json", str(tiny_folders["math"]), "--config", "c.yaml", "--json")
    found = json.loads(call(*command, "--set", "models.dtype=bfloat16").stdout)
    assert found["weights"]["distance"] == 0


def test_objectives_of_several_tasks_are_told_beside_their_tasks():
    rows = [
        {"a": np.array([0.0, 1.0]), "b": np.array([0.0, 0.0])},
        {"a": np.array([1.0, 1.0]), "b": np.array([0.0, 1.0])},
    ]
    found = diff._scores(rows, [TaskMean("both", ("a", "b")), TaskMean("a", ("a",)), Sparsity()])
    assert list(found) == ["a", "b", "both"]
    assert (found["both"].first.score, found["both"].second.score, found["both"].change.mean) == (0.25, 0.75, 0.5)


def test_what_grew_out_of_nothing_is_infinitely_far(tiny):
    zeros = diff._groups(tiny, lambda info: torch.zeros(info.shape), lambda info: torch.ones(info.shape))
    assert {group.distance for group in zeros} == {math.inf}
    assert zeros[0].sparsity == (1.0, 0.0)
    same = diff._groups(tiny, lambda info: torch.zeros(info.shape), lambda info: torch.zeros(info.shape))
    assert {group.distance for group in same} == {0.0}


def test_both_splits_side_by_side():
    def tested(name, sparsity, search, test):
        return judge.Tested(
            name, None, sparsity, {"search": {"facts": np.array(search)}, "test": {"facts": np.array(test)}}
        )

    found = [
        tested("trial 7", 0.5, [1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]),
        tested("base", 0.0, [1.0, 0.0] * 2, [0.0] * 4),
    ]
    console = Console(width=200, record=True, file=io.StringIO())
    for table in deciding.tested_tables(found, [TaskMean("facts", ("facts",)), Sparsity()]):
        console.print(table)
    lines = [re.split(" {2,}", line.strip()) for line in console.export_text().splitlines()]
    assert ["trial 7", "0.500", "0.750 ± 0.250", "0.500 ± 0.289", "+0.250 ± 0.382"] in lines
    assert ["base", "0.000", "0.500 ± 0.289", "0.000", "+0.500 ± 0.289"] in [line[:5] for line in lines]
    assert ["+0.500 [-0.419, +1.419] p=0.500, not significant"] in [line[5:] for line in lines]
    assert ["facts", "0.750 ± 0.250", "4", "0.500 ± 0.289", "4", "+0.250 ± 0.382"] in lines


def test_the_best_expert_of_a_table_is_said_to_be_the_best_by_another_measure():
    rows = {split: {"a": np.ones(3), "b": np.zeros(3)} for split in ("search", "test")}
    found = [judge.Tested(name, None, 0.0, rows) for name in ("trial 7", f"{judge.BEST_EXPERT} (math)")]
    one, two = [TaskMean("a", ("a",)), Sparsity()], [TaskMean("a", ("a",)), TaskMean("b", ("b",))]
    shown = [[list(table.columns[0].cells)[1] for table in deciding.tested_tables(found, o)[:-1]] for o in (one, two)]
    assert shown == [["best expert (math)"], ["best expert (math) by accuracy"] * 2]
    (table, _) = deciding.tested_tables(found, one)
    assert list(table.columns[-1].cells)[1] == "equal on all 3 items"


def test_how_differences_are_told():
    sure = Paired(mean=0.1, stderr=0.02, low=0.06, high=0.14, p=0.0004, won=9, lost=1)
    assert deciding.paired_text(sure) == "+0.100 [+0.060, +0.140] p<0.001, significant"
    unsure = Paired(mean=-0.01, stderr=math.nan, low=math.nan, high=math.nan, p=0.7, won=1, lost=2)
    assert deciding.paired_text(replace(unsure, low=-0.04, high=0.02, p=0.25)).endswith("p=0.250, not significant")
    assert deciding.paired_json(sure) == {"mean": 0.1, "stderr": 0.02, "low": 0.06, "high": 0.14, "p": 0.0004} | {
        "significant": True, "won": 9, "lost": 1,
    }  # fmt: skip
    assert deciding.paired_json(unsure)["low"] is None
    assert deciding.optimism_json({"search": task_scores({"a": np.ones(3)})}) == {}
