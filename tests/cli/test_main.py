"""The contract of the command line, on real (tiny) models, in this process."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from sae_moo.cli.main import app
from sae_moo.run import Run

BUDGET = 14


def config_for(folders, **changes) -> dict:
    config = {
        "study": {"name": "tiny"},
        "models": {
            "base": str(folders["base"]),
            "experts": {name: str(path) for name, path in folders.items() if name != "base"},
        },
        "tasks": [
            {"name": "facts", "data": "facts.jsonl", "kind": "likelihood", "search": 12, "test": 8},
            {"name": "zoo_math", "search": 6, "test": 4},
        ],
        "objectives": ["facts", "sparsity"],
        "search": {"population": 6, "evaluations": BUDGET},
    }
    return config | changes


def written(config: dict) -> str:
    return yaml.safe_dump(config, sort_keys=False)  # experts keep their order


@pytest.fixture
def here(tmp_path, monkeypatch, tiny_folders) -> Path:
    """An empty current folder with a configuration and items."""
    items = [{"prompt": f"fact {i} is", "answer": f" {i}"} for i in range(30)]
    (tmp_path / "facts.jsonl").write_text("\n".join(json.dumps(item) for item in items))
    (tmp_path / "c.yaml").write_text(written(config_for(tiny_folders)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def searched(tmp_path_factory, tiny_folders) -> Path:
    """A folder with a finished run, shared; tests only read it."""
    folder = tmp_path_factory.mktemp("searched")
    items = [{"prompt": f"fact {i} is", "answer": f" {i}"} for i in range(30)]
    (folder / "facts.jsonl").write_text("\n".join(json.dumps(item) for item in items))
    (folder / "c.yaml").write_text(written(config_for(tiny_folders)))
    before = Path.cwd()
    os.chdir(folder)
    try:
        result = call("search", "c.yaml", "--json")
    finally:
        os.chdir(before)
    (folder / "search.json").write_text(result.stdout)
    return folder


@pytest.fixture
def there(searched, monkeypatch) -> Path:
    monkeypatch.chdir(searched)
    return searched


def call(*arguments: str, code: int = 0):
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, (arguments, result.stdout, result.stderr, result.exception)
    assert "Traceback" not in result.stderr
    return result


def refused(*arguments: str, code: int = 2) -> str:
    result = call(*arguments, code=code)
    assert result.stdout == ""
    return result.stderr


def test_search_json(there):
    document = json.loads((there / "search.json").read_text())
    assert set(document) >= {"study", "run", "evaluations", "seconds", "hypervolume", "front"}
    assert (document["study"], document["run"], document["evaluations"]) == ("tiny", "runs/tiny", BUDGET)
    assert document["seconds"] > 0
    assert 0 < document["hypervolume"] < 1
    assert document["front"] == json.loads(call("front", "tiny", "--json").stdout)["trials"]


@pytest.mark.parametrize("command", ["front", "trials"])
@pytest.mark.parametrize("run", ["tiny", "runs/tiny"])
def test_front_and_trials_json(there, command, run):
    document = json.loads(call(command, run, "--json").stdout)
    assert document["study"] == "tiny"
    assert document["objectives"] == ["facts", "sparsity"]
    assert command == "front" or [trial["number"] for trial in document["trials"]] == list(range(BUDGET))
    for trial in document["trials"]:
        assert set(trial) >= {"number", "state", "values", "stderr", "sparsity", "digest"}
        assert trial["state"] == "complete"
        assert trial["values"]["sparsity"] == trial["sparsity"]
        assert trial["stderr"]["facts"] > 0
        assert len(trial["digest"]) == 64


def test_tables(there):
    assert "front of tiny (search split, mean ± standard error)" in call("front", "tiny").stdout
    assert call("trials", "tiny").stdout.count("complete") == BUDGET


def test_pick(there):
    document = json.loads(call("pick", "tiny", "--json").stdout)
    assert set(document) == {"trial", "why", "test"}
    assert document["why"].startswith("the knee of the")
    sparsest = json.loads(call("pick", "tiny", "--weights", "sparsity=1", "--json").stdout)["trial"]
    best = json.loads(call("pick", "tiny", "--where", "zoo_math>=0", "--weights", "facts=1", "--json").stdout)["trial"]
    front = json.loads(call("front", "tiny", "--json").stdout)["trials"]
    assert (best, sparsest) == (front[0], front[-1])
    assert f"export tiny --trial {document['trial']['number']}" in call("pick", "tiny", "--knee").stdout


def test_export_verify_and_merge(there, tmp_path, tiny):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    document = json.loads(
        call("export", "tiny", "--where", "sparsity>=0.02", "-o", f"{tmp_path}/m", "--verify", "--json").stdout
    )
    number = document["trial"]["number"]
    assert document["verified"] is True
    assert document["scores"]["search"]["facts"]["score"] == document["trial"]["tasks"]["facts"]
    assert document["scores"]["test"]["facts"]["instances"] == 8
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    weights = {info.name: model.get_parameter(info.name) for info in tiny.tensors}
    zeros = sum(int((weights[info.name] == 0).sum()) for info in tiny.tensors if info.prunable)
    total = sum(info.numel for info in tiny.tensors if info.prunable)
    assert zeros / total == document["trial"]["sparsity"]
    assert AutoTokenizer.from_pretrained(tmp_path / "m")("3 and 4").input_ids == tiny.tokenizer()("3 and 4").input_ids
    recipe = json.loads((tmp_path / "m/recipe.json").read_text())
    assert recipe["digest"] == document["trial"]["digest"]
    assert "never seen by the search" in (tmp_path / "m/README.md").read_text()
    call("merge", f"{tmp_path}/m/recipe.json", "--output", f"{tmp_path}/again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "m/model.safetensors").read_bytes()
    for target in (f"{tmp_path}/m", f"{tmp_path}/m/recipe.json"):
        scored = json.loads(call("evaluate", target, "--config", "c.yaml", "--split", "search", "--json").stdout)
        assert scored["split"] == "search"
        assert scored["tasks"]["facts"] == document["scores"]["search"]["facts"]
        assert scored["sparsity"] == document["trial"]["sparsity"]
    assert json.loads(call("trials", "tiny", "--json").stdout)["trials"][number] == document["trial"], "nothing changed"


def test_an_export_that_is_not_the_trial_is_not_written(there, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", spoil("transformers.PreTrainedModel"))
    message = refused("export", "tiny", "--trial", "0", "-o", f"{tmp_path}/m", "--verify", code=1)
    assert "the written model is not the evaluated one" in message
    assert list(tmp_path.iterdir()) == []


def spoil(_name):
    from transformers import PreTrainedModel

    original = PreTrainedModel.save_pretrained

    def save(self, *args, **kwargs):
        with torch.no_grad():
            self.get_input_embeddings().weight.mul_(1.5)
        return original(self, *args, **kwargs)

    return save


def test_exports_are_refused_before_anything_is_written(there, tmp_path, tiny_folders):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").touch()
    assert "exists already" in refused("export", "tiny", "-o", f"{tmp_path}/taken")
    assert "no trial 99; there are 0 to 13" in refused("export", "tiny", "--trial", "99", "-o", f"{tmp_path}/m")
    assert "give one or the other" in refused("export", "tiny", "--trial", "0", "--knee", "-o", f"{tmp_path}/m")
    assert "no quantity 'fact'" in refused("export", "tiny", "--where", "fact>=0", "-o", f"{tmp_path}/m")
    assert "cannot be written" in refused("export", "tiny", "--trial", "0", "-o", f"{tmp_path}/taken/file/m")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken"]


def test_evaluate_scores_the_test_split_by_default(there):
    document = json.loads(call("evaluate", "zoo:math", "--config", "c.yaml", "--json").stdout)
    assert (document["split"], document["tasks"]["zoo_math"]["instances"]) == ("test", 4)
    assert document["tasks"]["zoo_math"]["score"] > 0.2
    assert document["sparsity"] == 0.0
    assert "zoo_math" in call("evaluate", "zoo:math", "--config", "c.yaml").stdout


def test_a_task_of_the_harness_is_searched_on_resumed_and_told_of(here, tiny_folders):
    rows = [{"question": f"fact {i}", "options": [" yes", " no", f" {i}"], "label": i % 3} for i in range(40)]
    for part, chosen in (("train", rows[:25]), ("test", rows[25:])):
        (here / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    task = {
        "task": "our_facts",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {part: str(here / f"{part}.jsonl") for part in ("train", "test")}},
        "output_type": "multiple_choice",
        "training_split": "train",
        "test_split": "test",
        "doc_to_text": "{{question}} is",
        "doc_to_target": "label",
        "doc_to_choice": "{{options}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (here / "yamls").mkdir()
    (here / "yamls/facts.yaml").write_text(yaml.safe_dump(task))
    entry = {"name": "facts", "task": "our_facts", "include": "yamls", "search": 20, "test": 10}
    (here / "h.yaml").write_text(written(config_for(tiny_folders, tasks=[entry])))
    said = call("validate", "h.yaml").stdout
    assert (
        "searched on train documents of our_facts (20 of 25), tested on test documents of our_facts (10 of 15)" in said
    )
    call("search", "h.yaml", "--evaluations", "7")
    second = call("search", "h.yaml", "--evaluations", "9")
    assert "resumed: 7 evaluations replayed" in second.stdout
    stored = Run.open(here / "runs/tiny")
    assert len(stored.trials()[0].evaluation.scores["facts"]) == 20
    found = json.loads(
        call("evaluate", str(tiny_folders["math"]), "--config", "h.yaml", "--samples", "s.jsonl", "--json").stdout
    )["tasks"]["facts"]
    samples = [json.loads(line) for line in (here / "s.jsonl").read_text().splitlines()]
    assert len(samples) == found["instances"] == 10
    assert found["metrics"]["acc,none"]["value"] == found["score"] == sum(s["score"] for s in samples) / 10
    assert found["metrics"]["acc,none"]["stderr"] == pytest.approx(found["stderr"])
    assert {"name", "instance", "score", "doc", "arguments", "resps"} < samples[0].keys()
    assert "there is no folder" in refused("evaluate", "zoo:math", "--config", "c.yaml", "--samples", "gone/s.jsonl")
    changed = written(config_for(tiny_folders, tasks=[{**entry, "fewshot": 1}]))
    (here / "h.yaml").write_text(changed)
    assert "items of facts" in refused("search", "h.yaml")


def test_a_search_goes_on_and_shows_plain_lines(here):
    first = call("search", "c.yaml", "--evaluations", "3")
    assert "3 evaluations in" in first.stdout
    assert "the study lies in runs/tiny" in first.stdout
    second = call("search", "c.yaml", "--evaluations", "8")
    assert "resumed: 3 evaluations replayed" in second.stdout
    assert "8/8 evaluations" in second.stdout
    for command in ("front", "pick", "export", "dashboard"):
        assert f"sae-moo {command} runs/tiny" in second.stdout
    assert json.loads(call("search", "c.yaml", "--evaluations", "8", "--json").stdout)["evaluations"] == 8


def test_the_same_seed_gives_the_same_front(here):
    fronts = []
    for name in ("one", "two"):
        document = json.loads(call("search", "c.yaml", "--set", f"study.name={name}", "--json").stdout)
        fronts.append(document["front"])
    assert fronts[0] == fronts[1]
    other = json.loads(call("search", "c.yaml", "--set", "study.name=three", "--seed", "5", "--json").stdout)
    assert other["front"] != fronts[0]


def test_another_study_of_that_name_is_refused_and_fresh_puts_it_aside(here, tiny_folders):
    call("search", "c.yaml", "--evaluations", "2")
    message = refused("search", "c.yaml", "--evaluations", "2", "--seed", "1", "--set", "annealing.high=0.5")
    assert "annealing.high: the study has 0.6, now it is 0.5" in message
    assert "study.seed: the study has 0, now it is 1" in message
    assert "the study was made under other settings" in refused("validate", "c.yaml", "--set", "study.seed=1")
    changed = {**tiny_folders, "math": tiny_folders["code"]}
    (here / "c2.yaml").write_text(written(config_for(changed)))
    assert "weights of math: the study has" in refused("search", "c2.yaml")
    (here / "facts.jsonl").write_text((here / "facts.jsonl").read_text().replace("fact 1", "fact one"))
    assert "items of facts: the study has" in refused("search", "c.yaml")
    call("search", "c.yaml", "--evaluations", "2", "--fresh")
    call("search", "c.yaml", "--evaluations", "2", "--fresh")
    assert sorted(path.name for path in (here / "runs").iterdir()) == ["tiny", "tiny.1", "tiny.2"]
    assert len(Run.open("tiny.1").trials()) == 2


def test_a_failed_evaluation_is_shown_and_kept(here, monkeypatch):
    from sae_moo.evaluate.evaluator import Evaluator
    from sae_moo.objectives import Evaluation

    original, calls = Evaluator.evaluate, []

    def sometimes(self, recipe):
        calls.append(recipe)
        return Evaluation(recipe, reason="out of memory: x") if len(calls) == 3 else original(self, recipe)

    monkeypatch.setattr(Evaluator, "evaluate", sometimes)
    assert "trial 2 failed: out of memory: x" in call("search", "c.yaml").stdout
    trials = json.loads(call("trials", "tiny", "--json").stdout)["trials"]
    assert (trials[2]["state"], trials[2]["values"], trials[2]["reason"]) == ("failed", {}, "out of memory: x")
    assert trials[2]["sparsity"] is None
    assert "trial 2 has no result, it is failed: out of memory: x" in refused(
        "export", "tiny", "--trial", "2", "-o", "m"
    )


def test_ctrl_c_saves_and_exits_130(here, monkeypatch):
    from sae_moo.evaluate.evaluator import Evaluator

    original, calls = Evaluator.evaluate, []

    def interrupted(self, recipe):
        calls.append(recipe)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return original(self, recipe)

    monkeypatch.setattr(Evaluator, "evaluate", interrupted)
    result = call("search", "c.yaml", code=130)
    assert "stopped after 4 evaluations; all are saved, the same command goes on" in result.stderr
    monkeypatch.setattr(Evaluator, "evaluate", original)
    assert "resumed: 4 evaluations replayed" in call("search", "c.yaml").stdout


def test_two_searches_of_one_run_do_not_meet(here):
    from sae_moo.jobs import _locked

    with _locked(Path("runs/tiny"), fresh=False):
        assert f"another search is running there (process {os.getpid()})" in refused("search", "c.yaml")
    assert not (here / "runs/tiny").exists(), "a lock alone leaves no run behind"


def test_a_study_is_bound_to_its_device_and_the_bases_config(here, tiny_folders, monkeypatch):
    call("search", "c.yaml", "--evaluations", "2")
    monkeypatch.setattr("sae_moo.build.Bench.identity", changed_identity("sae_moo.build"))
    message = refused("search", "c.yaml")
    assert "device: the study has 'cpu', now it is 'cuda'" in message
    assert "config.json of base" in message
    assert "config.json of base" in refused("export", "tiny", "--trial", "0", "-o", "m")


def changed_identity(_module):
    from sae_moo.build import Bench

    original = Bench.identity
    return lambda self: original(self) | {"device": "cuda", "config.json of base": "changed"}


def test_moved_models_are_found_again(here, tiny_folders):
    moved = {name: shutil.copytree(path, here / "m1" / name) for name, path in tiny_folders.items()}
    (here / "c.yaml").write_text(written(config_for(moved)))
    call("search", "c.yaml", "--evaluations", "2")
    (here / "m1").rename(here / "m2")
    (here / "c.yaml").write_text(written(config_for({name: here / "m2" / name for name in tiny_folders})))
    call("search", "c.yaml", "--evaluations", "3")
    call("export", "tiny", "--trial", "0", "-o", "out", "--verify")


def test_scopes_share_one_digest_between_trial_and_export(here):
    call("search", "c.yaml", "--set", "pruning.scope=global")
    trial = json.loads(call("pick", "tiny", "--where", "sparsity>=0.01", "--json").stdout)["trial"]
    call("export", "tiny", "--trial", str(trial["number"]), "-o", "out")
    assert json.loads((here / "out/recipe.json").read_text())["digest"] == trial["digest"]


def test_validate(here):
    document = json.loads(call("validate", "c.yaml", "--json").stdout)
    assert document["experts"] == ["base", "math", "code", "law"]
    assert document["tasks"]["facts"] == {"search": 12, "test": 8}
    assert "c.yaml: fine" in call("validate", "c.yaml").stdout
    assert not (here / "runs").exists()


def bad_inputs(folders, tmp_path: Path) -> dict[str, tuple[dict, str]]:
    """Name -> what to change in the configuration, what the one message must say."""

    def spoilt(name: str, change) -> str:
        folder = shutil.copytree(folders["math"], tmp_path / name)
        change(folder / "model.safetensors")
        return str(folder)

    def models(**experts):
        return {"models": {"base": str(folders["base"]), "experts": experts}}

    def tasks(*entries):
        return {"tasks": list(entries), "objectives": [entries[0]["name"], "sparsity"]}

    return {
        "missing folder": (models(math=str(tmp_path / "gone")), "math: no such folder"),
        "only pickle": (models(math=spoilt("p", lambda f: f.rename(f.with_name("pytorch_model.bin")))), "only pickled"),
        "truncated": (models(math=spoilt("t", lambda f: f.write_bytes(f.read_bytes()[:-9]))), "truncated"),
        "another architecture": (models(math="zoo:math"), "the experts do not fit the base"),
        "no experts": (models(), "models.experts: expected at least one expert, got none"),
        "no such task": (
            tasks({"name": "gsm9k"}),
            "neither built in nor a task or group of the harness: 'gsm9k' (did you mean",
        ),
        "no such items": (tasks({"name": "x", "data": "gone.jsonl", "kind": "likelihood"}), "cannot read items"),
        "too many instances": (tasks({"name": "zoo_math", "search": 600, "test": 600}), "it has 1000 different items"),
        "a limit of 1.5": ({"constraints": {"sparsity": {"max": 1.5}}}, "constraints.sparsity.max: expected less than"),
        "no such device": (
            {"models": {**models(math=str(folders["math"]))["models"], "device": "tpu9"}},
            "no device 'tpu9'",
        ),
    }


@pytest.mark.parametrize(
    "name",
    [
        "missing folder", "only pickle", "truncated", "another architecture", "no experts", "no such task",
        "no such items", "too many instances", "a limit of 1.5", "no such device",
    ],
)  # fmt: skip
def test_bad_input_is_one_message_and_nothing_half_written(here, tiny_folders, tmp_path, name):
    changes, message = bad_inputs(tiny_folders, tmp_path)[name]
    (here / "bad.yaml").write_text(written(config_for(tiny_folders, **changes)))
    for command in ("validate", "search"):
        assert message in refused(command, "bad.yaml")
    assert not (here / "runs").exists()


def test_plain_ascii_terminals_closed_pipes_and_the_debris_of_killed_exports(there, tmp_path):
    command = [sys.executable, "-m", "sae_moo.cli.main"]
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    shown = subprocess.run([*command, "front", "tiny"], env=plain, capture_output=True, check=True)
    assert b" ? 0." in shown.stdout
    piped = subprocess.run(
        f"set -o pipefail; {shlex.join([*command, 'trials', 'tiny'])} | true",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        check=False,
    )
    assert (piped.returncode, piped.stderr) == (0, b"")
    debris = tmp_path / ".m.partial-999999999"
    debris.mkdir()
    call("export", "tiny", "--trial", "0", "-o", f"{tmp_path}/m")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "m").iterdir()} == {0o666 & ~umask()}
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert "exists already" in refused("export", "tiny", "--trial", "0", "-o", f"{tmp_path}/link")


def umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


def test_a_study_file_that_is_none(here):
    (here / "runs/tiny").mkdir(parents=True)
    (here / "runs/tiny/study.journal").write_text("shopping list\n")
    assert "not a study" in refused("search", "c.yaml")
    assert "not a study" in refused("front", "tiny")
    assert (here / "runs/tiny/study.journal").read_text() == "shopping list\n"


def test_a_run_folder_that_cannot_be_written(here):
    (here / "runs").write_text("a file where a folder should be")
    assert "cannot be written" in refused("search", "c.yaml")


def test_runs_that_do_not_exist(here):
    assert "no run 'tiny'" in refused("front", "tiny")
    (here / "runs/other").mkdir(parents=True)
    assert "under runs/ there are other" in refused("pick", "tiny")
    assert "no study at" in refused("trials", "other")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected a recipe as JSON"),
        ("[]", "expected a recipe as a JSON object, got list"),
        ('{"schema": 1, "nodes": [{"node": "expert", "name": "a"}]}', 'expected "experts"'),
    ],
)
def test_bad_recipes(here, content, message):
    (here / "recipe.json").write_text(content)
    assert message in refused("merge", "recipe.json", "--output", "out")
    assert not (here / "out").exists()


def test_a_database_lies_beside_the_configuration_wherever_one_stands(here, monkeypatch):
    (here / "else").mkdir()
    call("search", "c.yaml", "--set", "study.storage=sqlite:///s.db", "--evaluations", "2")
    assert (here / "s.db").is_file()
    monkeypatch.chdir(here / "else")
    changed = ["search", "../c.yaml", "--set", "study.storage=sqlite:///s.db", "--evaluations", "3"]
    assert "resumed: 2 evaluations" in call(*changed).stdout
    assert len(json.loads(call("trials", "../runs/tiny", "--json").stdout)["trials"]) == 3
    message = refused(*changed, "--seed", "1")
    assert "use another study.name" in message
    assert "--fresh" not in message
    (here / "s.db").unlink()
    assert "no study at" in refused("trials", "../runs/tiny")
    assert not (here / "s.db").exists()


def test_a_recipe_whose_experts_moved_is_merged_from_where_they_are(here, tiny_folders):
    nodes = {"schema": 1, "nodes": [{"node": "expert", "name": "math"}]}
    experts = {name: {"source": f"/elsewhere/{name}"} for name in ("base", "math")}
    (here / "recipe.json").write_text(json.dumps(nodes | {"experts": experts}))
    assert "no such folder: /elsewhere/base" in refused("merge", "recipe.json", "-o", "out")
    moved = [f"--expert={name}={tiny_folders[name]}" for name in ("base", "math")]
    call("merge", "recipe.json", "-o", "out", *moved)
    assert (here / "out/model.safetensors").is_file()
    assert "holds no expert 'maths' (did you mean 'math'?)" in refused(
        "merge", "recipe.json", "-o", "o", "--expert=maths=x"
    )
    assert "expected NAME=SOURCE" in refused("merge", "recipe.json", "-o", "o", "--expert=math")


def test_a_recipe_whose_expert_changed_is_refused(here, tiny_folders):
    recipe = {"schema": 1, "nodes": [{"node": "expert", "name": "math"}]}
    experts = {
        "base": {"source": str(tiny_folders["base"])},
        "math": {"source": str(tiny_folders["math"]), "fingerprint": "0"},
    }
    (here / "recipe.json").write_text(json.dumps(recipe | {"experts": experts}))
    assert "expert 'math' has other weights" in refused("merge", "recipe.json", "--output", "out")
    del experts["math"]["fingerprint"]
    (here / "recipe.json").write_text(json.dumps(recipe | {"experts": experts}))
    assert json.loads(call("merge", "recipe.json", "--output", "out", "--json").stdout)["sparsity"] == 0.0


@pytest.fixture
def beside(here, tiny_folders) -> Path:
    """The current folder with the tiny models in it and a mergekit configuration of them."""
    for name, folder in tiny_folders.items():
        (here / name).symlink_to(folder)
    (here / "m.yaml").write_text(
        "merge_method: task_arithmetic\nbase_model: base\nparameters: {int8_mask: true}\nmodels:\n"
        "  - {model: math, parameters: {weight: [0.5, 1]}}\n  - {model: ./code, parameters: {weight: 0.25}}\n"
        "dtype: bfloat16\ntokenizer: {source: ./code}\nchat_template: '{{ messages }}'\n"
    )
    return here


def test_a_mergekit_configuration_is_merged(beside):
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    document = json.loads(call("merge", "m.yaml", "--output", "out", "--json").stdout)
    assert (document["output"], document["sparsity"]) == ("out", 0.0)
    assert [note.split()[0] for note in document["notes"]] == ["int8_mask", "dtype"]
    base, math, code, out = (load_file(beside / name / "model.safetensors") for name in ("base", "math", "code", "out"))
    name = "model.layers.1.mlp.up_proj.weight"
    expected = base[name] + (math[name] - base[name]) + 0.25 * (code[name] - base[name])
    assert torch.equal(out[name], expected.bfloat16())
    assert AutoTokenizer.from_pretrained(beside / "out").chat_template == "{{ messages }}"
    assert "mergekit configuration m.yaml" in (beside / "out/README.md").read_text()
    call("merge", "out/recipe.json", "--output", "again")
    assert (beside / "again/model.safetensors").read_bytes() == (beside / "out/model.safetensors").read_bytes()


def test_a_merge_that_overflows_is_not_written(beside):
    (beside / "huge.yaml").write_text(
        (beside / "m.yaml").read_text().replace("weight: 0.25", "weight: 1.0e30").replace("bfloat16", "float16")
    )
    result = call("merge", "huge.yaml", "-o", "out", code=1)
    assert "huge.yaml: the merged weights are not finite in model.embed_tokens.weight" in result.stderr
    assert not (beside / "out").exists()


def test_notes_are_told_on_stderr(beside):
    result = call("merge", "m.yaml", "--output", "out")
    assert result.stdout == "out: sparsity 0.0000\n"
    assert "sae-moo: int8_mask changes mergekit's use of memory, no result" in result.stderr


def test_bad_mergekit_configurations_write_nothing(beside):
    text = (beside / "m.yaml").read_text()
    (beside / "bad.yml").write_text(text.replace("weight: 0.25", "wight: 0.25"))
    message = refused("merge", "bad.yml", "-o", "out")
    assert "sae-moo: the mergekit configuration has 2 faults:" in message
    assert "bad.yml:6: models[1].parameters.wight: no parameter of task_arithmetic (did you mean 'weight'?)" in message
    (beside / "bad.yml").write_text(text.replace("math", "nowhere/at/all"))
    assert "no such folder" in refused("merge", "bad.yml", "-o", "out")
    (beside / "bad.yml").write_text(text.replace("weight: 0.25", "weight: [{filter: mlp, value: 1}]"))
    assert "bad.yml:6: models[1]: expected a value of weight for ./code for every tensor" in refused(
        "merge", "bad.yml", "-o", "out"
    )
    assert "cannot read the mergekit configuration none.yaml" in refused("merge", "none.yaml", "-o", "out")
    assert "holds no expert 'maths' (did you mean 'math'?)" in refused(
        "merge", "m.yaml", "-o", "out", "--expert=maths=math"
    )
    assert not (beside / "out").exists()


def test_a_tokenizer_with_tokens_that_others_lack_is_refused(beside, tiny_folders):
    (beside / "code").unlink()
    shutil.copytree(tiny_folders["code"], beside / "code")
    tokenizer = json.loads((beside / "code/tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["another"] = len(tokenizer["model"]["vocab"])
    (beside / "code/tokenizer.json").write_text(json.dumps(tokenizer))
    assert "'base' has another vocabulary than 'code'; rows of embeddings are matched to the base's" in refused(
        "merge", "m.yaml", "-o", "out"
    )
    assert not (beside / "out").exists()


def test_with_the_bases_tokenizer_rows_are_matched_by_token(beside, tiny_folders):
    from safetensors.torch import load_file, save_file

    (beside / "code").unlink()
    shutil.copytree(tiny_folders["code"], beside / "code")
    tokenizer = json.loads((beside / "code/tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.get)[-2:]
    a, b = vocabulary[first], vocabulary[second]
    vocabulary[first], vocabulary[second] = b, a
    (beside / "code/tokenizer.json").write_text(json.dumps(tokenizer))
    weights = load_file(beside / "code/model.safetensors")
    weights["model.embed_tokens.weight"][[a, b]] = weights["model.embed_tokens.weight"][[b, a]]
    save_file(weights, beside / "code/model.safetensors", {"format": "pt"})
    text = (beside / "m.yaml").read_text().replace("tokenizer: {source: ./code}", "tokenizer_source: base")
    (beside / "m.yaml").write_text(text)
    call("merge", "m.yaml", "--output", "out")
    (beside / "code").rename(beside / "moved")
    (beside / "code").symlink_to(tiny_folders["code"])
    call("merge", "m.yaml", "--output", "plain")
    assert (beside / "out/model.safetensors").read_bytes() == (beside / "plain/model.safetensors").read_bytes()
    (beside / "code").unlink()
    (beside / "moved").rename(beside / "code")
    call("merge", "out/recipe.json", "--to-mergekit", "w.yaml")
    assert yaml.safe_load((beside / "w.yaml").read_text())["tokenizer"] == {"source": "base"}
    (beside / "m.yaml").write_text(text.replace("tokenizer_source: base", ""))
    assert "2 tokens of the base" in refused("merge", "m.yaml", "-o", "other")


def test_the_chat_template_that_most_models_have(beside, tiny_folders):
    from transformers import AutoTokenizer

    for name, template in (("math", "{{ a }}"), ("code", "{{ b }}"), ("base", "{{ b }}")):
        (beside / name).unlink()
        shutil.copytree(tiny_folders[name], beside / name)
        (beside / name / "chat_template.jinja").write_text(template)
    (beside / "m.yaml").write_text((beside / "m.yaml").read_text().replace("'{{ messages }}'", "auto"))
    call("merge", "m.yaml", "--output", "out")
    assert AutoTokenizer.from_pretrained(beside / "out").chat_template == "{{ b }}"


def test_a_recipe_is_written_for_mergekit_and_read_again(beside):
    call("merge", "m.yaml", "--output", "out")
    document = json.loads(call("merge", "out/recipe.json", "--to-mergekit", "w.yaml", "--json").stdout)
    assert document == {"output": "w.yaml", "notes": []}
    written = yaml.safe_load((beside / "w.yaml").read_text())
    assert written["models"][0]["parameters"] == {"weight": [0.5, 1.0]}
    assert (written["dtype"], written["out_dtype"]) == ("float32", "bfloat16")
    call("merge", "w.yaml", "--output", "again")
    assert (beside / "again/model.safetensors").read_bytes() == (beside / "out/model.safetensors").read_bytes()


def test_what_cannot_be_written_for_mergekit(beside):
    nodes = [{"node": "expert", "name": "math"}]
    nodes.append({"node": "prune", "inputs": [0], "sparsity": 0.5, "criterion": "magnitude", "scope": "tensor"})
    experts = {name: {"source": name} for name in ("base", "math")}
    (beside / "recipe.json").write_text(json.dumps({"schema": 1, "nodes": nodes, "experts": experts}))
    assert "recipe.json: mergekit cannot say this: it does not prune" in refused(
        "merge", "recipe.json", "--to-mergekit", "w.yaml"
    )
    assert "is a mergekit configuration already" in refused("merge", "m.yaml", "--to-mergekit", "w.yaml")
    assert "there is no folder none" in refused("merge", "recipe.json", "--to-mergekit", "none/w.yaml")
    assert "m.yaml: exists already" in refused("merge", "recipe.json", "--to-mergekit", "m.yaml")
    for arguments in ([], ["--output", "out", "--to-mergekit", "w.yaml"]):
        assert "expected either --output DIR or --to-mergekit FILE.yaml" in refused("merge", "recipe.json", *arguments)
    assert not list(beside.glob("*w.yaml*"))


@pytest.mark.parametrize(
    "command", ["search", "front", "trials", "pick", "export", "evaluate", "merge", "validate", "dashboard"]
)
def test_help_has_an_example(command):
    assert f"Example: sae-moo {command} " in " ".join(call(command, "--help").stdout.split())


@pytest.mark.parametrize(
    "arguments", [["serch"], ["front"], ["search", "c.yaml", "--evaluatons", "3"], ["export", "x"]]
)
def test_wrong_usage_exits_2(here, arguments):
    call(*arguments, code=2)


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_equals_unbroken(here):
    """kill -9 a real process, again and again, then compare with a run that was left alone."""
    command = [sys.executable, "-m", "sae_moo.cli.main", "search", "c.yaml", "--json", "--set"]
    subprocess.run([*command, "study.name=whole"], check=True, capture_output=True)
    journal = here / "runs/broken/study.journal"
    for kill in range(2):
        grown = journal.stat().st_size if journal.exists() else 0
        process = subprocess.Popen([*command, "study.name=broken"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while not journal.exists() or journal.stat().st_size < grown + 3000 * (kill + 1):
            assert time.monotonic() < deadline
            if process.poll() is not None:
                break
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    subprocess.run([*command, "study.name=broken"], check=True, capture_output=True)
    whole, broken = Run.open("whole").trials(), Run.open("broken").trials()
    assert [(t.number, t.state, t.digest, t.values, t.params) for t in broken] == [
        (t.number, t.state, t.digest, t.values, t.params) for t in whole
    ]


def short(folders, pruning: dict, **changes) -> str:
    changes = {"pruning": pruning, "search": {"population": 6, "evaluations": 10}} | changes
    return written(config_for(folders, **changes))


def test_searching_by_activations_from_search_to_merge(here, tiny_folders, monkeypatch):
    (here / "w.yaml").write_text(short(tiny_folders, {"criterion": "wanda", "scope": "row"}))
    facts = json.loads(call("validate", "w.yaml", "--json").stdout)
    assert len(facts["calibration"]) == 64
    assert f"norms       {facts['calibration']}" in call("validate", "w.yaml").stdout
    call("search", "w.yaml", "--json")
    run = Run.open("runs/tiny")
    assert run.identity["activation norms"] == facts["calibration"]
    call("export", "tiny", "--weights", "sparsity=1", "-o", "m", "--verify")
    assert facts["calibration"] in (here / "m/recipe.json").read_text()
    file = f"calibration-{facts['calibration'][:16]}.safetensors"
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "another user"))
    call("merge", "m/recipe.json", "--output", "again")
    assert (here / "again/model.safetensors").read_bytes() == (here / "m/model.safetensors").read_bytes()
    assert (here / "again" / file).read_bytes() == (here / "m" / file).read_bytes()
    (here / "m" / file).unlink()
    (here / "m" / "model.safetensors").unlink()
    message = refused("merge", "m/recipe.json", "--output", "third")
    assert f"the pool holds no activation norms {facts['calibration']}" in message


def test_a_study_is_bound_to_its_calibration_texts(here, tiny_folders):
    def config(name: str) -> str:
        return short(tiny_folders, {"criterion": "wanda", "calibration": {"data": name, "tokens": 64}})

    (here / "a.txt").write_text("2 plus 3 is 5\n\n4 plus 4 is 8\n")
    (here / "b.jsonl").write_text('{"text": "2 plus 3 is 5"}\n{"text": "4 plus 4 is 8\\n"}\n')
    (here / "c.txt").write_text("something else")
    (here / "w.yaml").write_text(config("a.txt"))
    call("search", "w.yaml", "--evaluations", "6")
    (here / "w.yaml").write_text(config("b.jsonl"))
    call("search", "w.yaml", "--evaluations", "7")  # the same texts
    (here / "w.yaml").write_text(config("c.txt"))
    assert "activation norms: the study has" in refused("search", "w.yaml")
    (here / "w.yaml").write_text(config("gone.txt"))
    assert "cannot read calibration texts" in refused("validate", "w.yaml")


def test_calibration_never_sees_the_test_split(here, tiny_folders, monkeypatch):
    from sae_moo.evaluate.tasks import ItemTask

    requests = ItemTask.requests

    def watched(self, split):
        assert split == "search"
        return requests(self, split)

    monkeypatch.setattr(ItemTask, "requests", watched)
    (here / "w.yaml").write_text(short(tiny_folders, {"criterion": "wanda"}))
    call("validate", "w.yaml")


@pytest.mark.parametrize("scope", ["neurons", "heads", "2:4"])
def test_searching_with_structure(here, tiny_folders, scope, tiny):
    (here / "s.yaml").write_text(short(tiny_folders, {"scope": scope}, annealing={"low": 0.5, "high": 0.6}))
    front = json.loads(call("search", "s.yaml", "--json").stdout)["front"]
    assert front[-1]["sparsity"] > 0
    call("export", "tiny", "--weights", "sparsity=1", "-o", "m", "--verify")
    recipe = json.loads((here / "m/recipe.json").read_text())
    prunes = [node for node in recipe["nodes"] if node["node"] == "prune"]
    assert prunes
    for node in prunes:
        assert node["scope"] == scope
        if scope != "2:4":
            assert len(node["units"]) == 2
            removed = {f"{int(row, 16):b}".count("1") for row in node["units"]}
            assert removed == {round(node["sparsity"] * (24 if scope == "neurons" else 2))}, "as many in every block"


def test_what_pruning_cannot_do_is_found_before_anything_runs(here, tiny_folders):
    (here / "s.yaml").write_text(short(tiny_folders, {"scope": "2:5"}))
    assert "down_proj.weight of shape (16, 24) has 24" in refused("validate", "s.yaml")
    assert "needs a number of inputs that 5 divides" in refused("search", "s.yaml")
    assert not (here / "runs").exists()
