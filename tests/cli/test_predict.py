"""`predict`: what it ranks with and without having learned, what it makes, keeps and writes, and what it refuses."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from itertools import permutations
from pathlib import Path

import pytest
from commands import call, refused, written
from safetensors.torch import load_file, save_file

from sae_moo.explore.run import Run

CONFIG = {
    "study": {"name": "four"},
    "tasks": [{"name": "zoo_math", "search": 6, "test": 4}, {"name": "zoo_logic", "search": 6, "test": 4}],
    "objectives": [{"mean": ["zoo_math", "zoo_logic"], "name": "accuracy"}, "sparsity"],
    "search": {"population": 6, "evaluations": 6},
    "space": {"kind": "lineage"},
    "predict": {"operators": ["linear", "linear-0.7"], "probes": {"items": 2}, "largest": 3, "listed": 400},
}
EXPERTS = ("math", "code", "law", "fourth")


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory, tiny_folders) -> Path:
    """A folder with a configuration of four experts, what predict said of it first, the study which that named, and
    what it said after learning from that, with what it saved."""
    folder = tmp_path_factory.mktemp("catalogue")
    fourth = folder / "fourth"
    shutil.copytree(tiny_folders["math"], fourth)
    tensors = {name: 1.5 * tensor for name, tensor in load_file(fourth / "model.safetensors").items()}
    save_file(tensors, fourth / "model.safetensors", {"format": "pt"})
    experts = {name: str(path) for name, path in {**tiny_folders, "fourth": fourth}.items() if name != "base"}
    models = {"base": str(tiny_folders["base"]), "experts": experts}
    (folder / "c.yaml").write_text(written(CONFIG | {"models": models}))
    two = dict(list(experts.items())[:2])
    (folder / "two.yaml").write_text(written(CONFIG | {"models": {**models, "experts": two}, "study": {"name": "two"}}))
    before = Path.cwd()
    os.chdir(folder)
    try:
        first = call("predict", "c.yaml", "--features", "f.csv", "--json").stdout
        (folder / "first.json").write_text(first)
        evaluate, learn = (shlex.split(command)[1:] for command in json.loads(first)["needs"]["commands"])
        call(*evaluate)
        (folder / "learned.json").write_text(call(*learn, "--save", "saved.json", "--json").stdout)
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def there(catalogue, monkeypatch) -> Path:
    monkeypatch.chdir(catalogue)
    return catalogue


@pytest.fixture
def copied(catalogue, tmp_path, monkeypatch) -> Path:
    """A copy to write runs into."""
    shutil.copytree(catalogue, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def predicted(*arguments: str) -> dict:
    return json.loads(call("predict", *arguments, "--json").stdout)


def test_without_anything_to_learn_from_pairs_are_ranked_by_signals_and_no_score_is_made_up(there):
    document = json.loads((there / "first.json").read_text())
    assert (document["study"], document["trained"], document["predictor"]) == ("four", False, None)
    merges = document["merges"]
    assert {tuple(each["operators"]) for each in merges} == {("linear",), ("linear", "linear")}
    signals = [each["signal"] for each in merges]
    assert signals == sorted(signals, reverse=True)
    assert all(each["predicted"] is each["low"] is each["high"] is each["measured"] is None for each in merges)
    assert all(each["features"] == {} and "argmax_agreement" in each["signals"] for each in merges)
    assert document["needs"]["evaluations"] == 6 + 12 + 5
    text = call("predict", "c.yaml", "--set", "predict.listed=2").stdout
    assert "untrained signals: no score is predicted" in text
    assert all(command in text for command in document["needs"]["commands"])


def test_experts_of_fewer_pairs_than_learning_takes_are_not_sent_to_learn(there):
    needs = predicted("two.yaml")["needs"]
    assert (needs["evaluations"], len(needs["commands"])) == (3 + 3, 1)
    text = call("predict", "two.yaml").stdout
    assert needs["commands"][0] in text
    assert "4 pairs of experts at least" in " ".join(text.split())
    assert "--learn" not in text


def test_the_study_that_it_asks_for_holds_every_pair_and_teaches_it(there):
    document = json.loads((there / "learned.json").read_text())
    assert document["learned"] == [{"run": "four-pairs", "trials": 23, "pairs": 18, "longer": 0, "stopped": 0}]
    assert document["trained"]
    assert document["needs"] is None
    merges = document["merges"]
    assert document["ranked"] == {"2": {"ranked": 18, "possible": 18}, "3": {"ranked": 72, "possible": 72}}
    assert len(merges) == 90
    scores = [each["predicted"] for each in merges]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= each["low"] <= each["predicted"] <= each["high"] <= 1 for each in merges)
    pairs = [(*each["operators"], *each["experts"]) for each in merges if len(each["experts"]) == 2]
    assert {pair[1:] for pair in pairs if pair[0] == "linear-0.7"} == {*permutations(EXPERTS, 2)}
    assert len({frozenset(pair[1:]) for pair in pairs if pair[0] == "linear"}) == 6
    assert document["predictor"]["unseen"] == 0
    assert document["predictor"]["observations"] == 18 * 2
    assert set(document["predictor"]["operators"]["linear"]) >= {"correlation", "baseline", "model", "pairs"}
    assert document["predictor"]["features"].keys() >= {"argmax_agreement"}


def test_what_the_study_measured_stands_beside_what_is_predicted(there):
    run = Run.open("four-pairs")
    document = json.loads((there / "learned.json").read_text())
    found = {each["digest"]: each["measured"] for each in document["merges"]}
    trials = {each.digest: each for each in run.view().done}
    measured = {digest: each for digest, each in found.items() if each is not None}
    assert len(measured) == 18
    for digest, each in measured.items():
        trial = trials[digest]
        assert (each["run"], each["trial"], each["score"]) == ("four-pairs", trial.number, trial.values["accuracy"])
        assert each["tasks"]["zoo_math"]["score"] == trial.evaluation.mean("zoo_math")
    other = predicted("c.yaml", "--learn", "four-pairs", "--set", "tasks.0.search=5", "--set", "predict.largest=2")
    assert all(each["measured"] is None for each in other["merges"]), "other instances were asked"


def test_the_best_are_made_once_scored_on_both_splits_and_the_winner_is_applied(copied):
    first = ("c.yaml", "--set", "predict.listed=2")
    document = predicted(*first, "--evaluate-top", "3", "--test", "--apply", "best.json")
    assert len(document["merges"]) == 3, "as many as were evaluated"
    held = {each["digest"]: each["measured"] for each in document["merges"]}
    assert [each.digest for each in Run.open("four-predict").view().done] == [*held]
    assert [m["trial"] for m in held.values()] == [0, 1, 2]
    assert all(m["run"] == "four-predict" and m["test"]["instances"] == 8 for m in held.values())
    again = predicted(*first, "--evaluate-top", "4")
    assert [each["measured"]["score"] for each in again["merges"][:3]] == [m["score"] for m in held.values()]
    assert len(Run.open("four-predict").trials()) == 4, "three were known"
    best = max(held, key=lambda digest: held[digest]["score"])
    assert json.loads(Path("best.json").read_text())["digest"] == best
    call("merge", "best.json", "--output", "merged")
    scored = json.loads(call("evaluate", "merged", "--config", "c.yaml", "--split", "search", "--json").stdout)
    assert scored["objectives"]["accuracy"]["score"] == pytest.approx(held[best]["score"])
    assert "sae-moo trials four-predict" in call("predict", *first, "--evaluate-top", "1").stdout


def test_what_a_study_has_measured_is_not_made_again(copied):
    pairs = ("c.yaml", "--learn", "four-pairs", "--set", "predict.largest=2")
    document = predicted(*pairs, "--evaluate-top", "2", "--test")
    assert all(each["measured"]["run"] == "four-pairs" for each in document["merges"] if each["rank"] < 3)
    assert not Path("runs/four-predict").exists()
    assert Path("runs/four-pairs/test.json").exists(), "what was judged is kept"


def test_what_a_study_of_more_tasks_has_judged_is_left_alone(copied):
    one = ("tasks=[{name: zoo_math, search: 6, test: 4}]", "objectives=[zoo_math, sparsity]")
    changes = [word for change in (*one, "predict.largest=2") for word in ("--set", change)]
    document = predicted("c.yaml", "--learn", "four-pairs", *changes, "--evaluate-top", "1", "--test")
    assert document["merges"][0]["measured"]["run"] == "four-predict"
    assert not Path("runs/four-pairs/test.json").exists(), "it would lack a task of that study"


def test_what_is_interrupted_goes_on_by_the_same_command_whatever_it_is_to_write(copied, monkeypatch):
    def interrupt(*args, **how):
        raise KeyboardInterrupt

    command = ("predict", "c.yaml", "--learn", "four-pairs", "--evaluate-top", "1", "--test")
    written_ = ("--save", "p.json", "--features", "g.csv", "--apply", "best.json")
    with monkeypatch.context() as patched:
        patched.setattr("sae_moo.jobs.tried.judge", interrupt)
        call(*command, *written_, code=130)
    assert not any(Path(name).exists() for name in written_[1::2])
    call(*command, *written_)
    assert all(Path(name).exists() for name in written_[1::2])


def test_merges_that_were_made_under_other_settings_are_not_taken_for_these(copied):
    call("predict", "c.yaml", "--evaluate-top", "1")
    said = refused("predict", "c.yaml", "--evaluate-top", "1", "--set", "study.seed=3")
    assert "the study was made under other settings" in said
    assert "give runs/four-predict another name, or use another study.name" in said
    assert "--fresh" not in said


def test_what_was_learned_is_written_and_read_back_to_the_same_predictions(there, caplog):
    learned, file = json.loads((there / "learned.json").read_text()), "saved.json"
    read = predicted("c.yaml", "--predictor", file)
    assert "other texts" not in caplog.text
    same = ("experts", "operators", "predicted", "low", "high", "features")
    assert [[each[key] for key in same] for each in read["merges"]] == [
        [each[key] for key in same] for each in learned["merges"]
    ]
    assert read["predictor"] == learned["predictor"]
    assert read["learned"] == []
    predicted("c.yaml", "--predictor", file, "--set", "predict.probes.items=3", "--set", "predict.largest=2")
    was, now = (f"(data: prompts of each task, items: {items}, tokens: 4096)" for items in (2, 3))
    assert f"learned of features of other texts {was} than predict.probes says here {now}" in caplog.text
    other = "{name: linear, method: linear, weights: [0.9, 0.1]}"
    said = refused("predict", "c.yaml", "--predictor", file, "--set", f"predict.operators=[{other}]")
    assert "linear: it learned of linear [0.5, 0.5], predict.operators has linear [0.9, 0.1]" in said
    assert "none of predict.operators: slerp" in refused(
        "predict", "c.yaml", "--predictor", file, "--set", "predict.operators=[slerp]"
    )


def test_what_was_learned_of_another_task_of_the_same_name_is_refused(there, tmp_path):
    saved = json.loads(Path("saved.json").read_text())
    saved["tasks"]["tasks.zoo_math.kind"] = "likelihood"
    (tmp_path / "other.json").write_text(json.dumps(saved))
    said = refused("predict", "c.yaml", "--predictor", str(tmp_path / "other.json"))
    assert "tasks of the same name are others here" in said
    assert "tasks.zoo_math.kind: it has 'likelihood', here it is 'None'" in said


def test_an_expert_that_was_in_no_merge_is_new_to_what_was_saved_too(there, tmp_path):
    raw, fifth = Run.open("four-pairs").config.models, tmp_path / "fifth"
    shutil.copytree(raw.experts["fourth"], fifth)
    tensors = {name: 0.5 * tensor for name, tensor in load_file(fifth / "model.safetensors").items()}
    save_file(tensors, fifth / "model.safetensors", {"format": "pt"})
    experts = {**raw.experts, "fifth": str(fifth)}
    predict = {**CONFIG["predict"], "largest": 2}
    asked = CONFIG | {"models": {"base": raw.base, "experts": experts}, "predict": predict}
    (tmp_path / "five.yaml").write_text(written(asked))
    file, saved = str(tmp_path / "five.yaml"), str(tmp_path / "p.json")
    learned, read = predicted(file, "--learn", "four-pairs", "--save", saved), predicted(file, "--predictor", saved)
    assert learned["predictor"]["unseen"] == read["predictor"]["unseen"] == 1
    assert [each["predicted"] for each in read["merges"]] == [each["predicted"] for each in learned["merges"]]


def test_experts_of_other_studies_teach_too_and_namesakes_with_other_weights_are_strangers(there, tmp_path):
    """The run's four experts are one of ours under another name, and three that are not ours."""
    config = json.loads(json.dumps(CONFIG))
    raw = Run.open("four-pairs").config.models
    names = list(raw.experts)
    renamed = {"mine": raw.experts[names[0]], names[1]: raw.experts[names[2]]}
    config["models"] = {"base": raw.base, "experts": renamed}
    (tmp_path / "texts.txt").write_text("one and two\nis it three\nnobody knows\n")
    config["predict"]["probes"] = {"data": "texts.txt"}  # found from here by the run's models as well
    file = tmp_path / "renamed.yaml"
    file.write_text(written(config))
    document = predicted(str(file), "--learn", "four-pairs", "--save", str(tmp_path / "p.json"))
    assert document["predictor"]["unseen"] == 0, "both were in the study, by other names"
    assert document["merges"][0]["measured"] is not None
    saved = json.loads((tmp_path / "p.json").read_text())
    assert {name for each in saved["observations"] for name in each[1]} == {
        "mine",
        names[1],
        f"{names[1]} of four-pairs",
        f"{names[3]} of four-pairs",
    }
    config["models"]["experts"] = {names[0]: raw.experts[names[3]], "new": raw.experts[names[1]]}
    file.write_text(written(config))
    read = predicted(str(file), "--predictor", str(tmp_path / "p.json"))
    assert read["predictor"]["unseen"] == 0, "known by their weights"


def test_the_features_are_a_table_of_pairs_and_tasks(there):
    from sae_moo.prediction.frames import read_csv

    table = read_csv(there / "f.csv")
    assert len(table) == 4 * 3 * 2
    assert table.tasks == ("zoo_math", "zoo_logic")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "predict.operators=[slrp]"], "got 'slrp' (did you mean 'slerp'?)"),
        (["--learn", "four-pairs", "--set", "tasks.0.name=zoo_lingua", "--set", "objectives=[zoo_lingua]"], "no task"),
        (["--learn", "four-pairs", "--set", "predict.operators=[slerp]"], "none of its 23 trials with a result"),
        (["--learn", "four-pears"], "no run 'four-pears' (did you mean 'four-pairs'?)"),
        (["--learn", "four-pairs", "--learn", "four-pairs"], "'four-pairs' came before"),
        (["--learn", "four-pairs", "--predictor", "x.json"], "either --learn RUN or --predictor FILE"),
        (["--predictor", "missing.json"], "missing.json: expected a predictor, there is no such file"),
        (["--predictor", "runs"], "runs: expected a predictor: Is a directory"),
        (["--learn", ""], "got no name; there are four-p"),
        (["--predictor", "c.yaml"], "c.yaml: expected a predictor: not JSON"),
        (["--predictor", "first.json"], "first.json: expected a predictor"),
        (["--save", "p.json"], "expected --learn RUN beside it"),
        (["--test"], "expected --evaluate-top N beside it"),
        (["--evaluate-top", "0"], "0"),
        (["--apply", "first.json"], "first.json: exists already"),
        (["--features", "nowhere/f.csv"], "there is no folder nowhere"),
        (["--features", ""], "expected the name of a new file, got '.'"),
        (["--features", "new", "--apply", "./new"], "a file for --features and another for --apply, got one for both"),
        (["--set", "objectives=[sparsity]"], "expected one that is scored on tasks"),
        (["--set", "predict.probes.data=none.txt"], "none.txt: cannot read texts of predict.probes.data: No"),
    ],
)
def test_what_does_not_fit_is_told_in_one_message_before_anything_is_written(there, arguments, words):
    before = sorted(path.name for path in there.iterdir())
    assert words in refused("predict", "c.yaml", *arguments)
    assert sorted(path.name for path in there.iterdir()) == before


def test_experts_that_are_the_same_model_are_told(there, caplog):
    models = Run.open("four-pairs").config.models.experts
    predicted("two.yaml", "--set", f"models.experts={{one: {models['math']}, two: {models['math']}}}")
    assert caplog.messages == ["one and two are the same model"]


def test_one_expert_cannot_be_merged(there):
    text = Path("two.yaml").read_text().splitlines()
    gone = next(i for i, line in enumerate(text) if line.startswith("  experts:")) + 1
    Path("one.yaml").write_text("\n".join([*text[:gone], *text[gone + 1 :]]))
    try:
        assert "models.experts: expected two or more to merge" in refused("predict", "one.yaml")
    finally:
        Path("one.yaml").unlink()


def test_learning_says_what_it_needs_and_ranking_by_signals_does_not(there, monkeypatch):
    for name in ("sklearn", "sklearn.linear_model", "sklearn.ensemble", "pandas"):
        monkeypatch.setitem(sys.modules, name, None)
    said = refused("predict", "c.yaml", "--learn", "four-pairs")
    assert "scikit-learn, which is not installed: pip install scikit-learn" in said
    assert not predicted("c.yaml", "--set", "search.prescreening.factor=1")["trained"]
