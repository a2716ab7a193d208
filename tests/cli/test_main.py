"""The contract of the command line: what is shown of a run, picked, exported, scored; and what is refused."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import BUDGET, call, config_for, refused, written

import sae_moo
from sae_moo.cli.commands.deploy import _python, _write_samples
from sae_moo.deploy.mergekit.writer import configuration_text
from sae_moo.errors import RunError
from sae_moo.explore.run import Run
from sae_moo.files.whole import _mark
from sae_moo.jobs.export import export
from sae_moo.recipe import Cast, Merge


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
    assert set(document) >= {"trial", "why", "test"}
    assert document["test"] is None
    assert document["why"].startswith("the knee of the")
    sparsest = json.loads(call("pick", "tiny", "--weights", "sparsity=1", "--json").stdout)["trial"]
    best = json.loads(call("pick", "tiny", "--where", "zoo_math>=0", "--weights", "facts=1", "--json").stdout)["trial"]
    front = json.loads(call("front", "tiny", "--json").stdout)["trials"]
    assert (best, sparsest) == (front[0], front[-1])
    assert f"export tiny --trial {document['trial']['number']}" in call("pick", "tiny", "--knee").stdout


def test_report(there, tmp_path):
    document = json.loads(call("report", "tiny", "--output", f"{tmp_path}/r.html", "--json").stdout)
    assert set(document) == {"output", "trials", "bytes", "seconds"}
    text = (tmp_path / "r.html").read_text("utf-8")
    assert (document["output"], document["trials"]) == (f"{tmp_path}/r.html", BUDGET)
    assert document["bytes"] == len(text.encode())
    front = json.loads(call("front", "tiny", "--json").stdout)["trials"]
    assert all(f'<tr id="row-{trial["number"]}"' in text for trial in front)
    number = json.loads(call("pick", "tiny", "--json").stdout)["trial"]["number"]
    assert f"sae-moo export tiny --trial {number} --output exported-{number} --verify" in text
    assert "exists already" in refused("report", "tiny", "-o", f"{tmp_path}/r.html")
    assert "there is no folder" in refused("report", "tiny", "-o", f"{tmp_path}/gone/r.html")
    assert "no run 'other'" in refused("report", "other", "-o", f"{tmp_path}/r2.html")
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]
    assert "14 trials, 4." in call("report", "runs/tiny", "-o", f"{tmp_path}/r3.html").stdout


def test_export_verify_and_merge(there, tmp_path, tiny, fresh_process):
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


def test_an_export_that_is_not_the_trial_is_not_written(there, tmp_path, monkeypatch, fresh_process):
    from sae_moo.deploy.stream import Stream

    right = Stream.tensor
    scaled = lambda self, name: right(self, name) * (1.5 if "embed" in name else 1)  # noqa: E731
    monkeypatch.setattr(Stream, "tensor", scaled)
    message = refused("export", "tiny", "--trial", "0", "-o", f"{tmp_path}/m", "--verify", code=1)
    assert "the written model is not the evaluated one" in message
    assert list(tmp_path.iterdir()) == []


def test_a_byte_that_changed_on_its_way_to_the_disk_is_found(there, tmp_path, monkeypatch):
    from sae_moo.deploy.stream import Stream

    right = Stream.hashed

    def spoilt(self, tensor, name):
        content = right(self, tensor, name)
        content[0] ^= name.endswith("1.mlp.up_proj.weight")
        return content

    monkeypatch.setattr(Stream, "hashed", spoilt)
    message = refused("export", "tiny", "--trial", "0", "-o", f"{tmp_path}/m", "--verify", code=1)
    assert "1 of 20 tensors are not what was to be written, model.layers.1.mlp.up_proj.weight among them" in message
    assert list(tmp_path.iterdir()) == []


def test_export_in_shards_with_an_experts_tokenizer(there, tmp_path, tiny_folders):
    from transformers import AutoModelForCausalLM

    chosen = ("--tokenizer-from", "code", "--max-shard-size", "9KB")
    call("export", "tiny", "--trial", "0", "-o", f"{tmp_path}/m", *chosen, "--verify")
    call("export", "tiny", "--trial", "0", "-o", f"{tmp_path}/whole")
    files = sorted(path.name for path in (tmp_path / "m").glob("*.safetensors"))
    assert files[0] == "model-00001-of-00003.safetensors"
    assert "| tokenizer, chat template, settings of generation | code |" in (tmp_path / "m/README.md").read_text()
    one, other = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("m", "whole"))
    assert all(torch.equal(other[name], weight) for name, weight in one.items())
    for flags, message in (
        (("--tokenizer-from", "cod"), "expected one of base, math, code, law, got 'cod' (did you mean 'code'?)"),
        (("--max-shard-size", "9 parsecs"), "size of a shard: expected one such as 5GB or 800MiB, got '9 parsecs'"),
    ):
        assert message in refused("export", "tiny", "--trial", "0", "-o", f"{tmp_path}/n", *flags)


def test_packed_files_deltas_and_recipes_give_the_exported_folder(there, tmp_path, tiny_folders):
    pick = ("export", "tiny", "--weights", "sparsity=1", "-o")
    call(*pick, f"{tmp_path}/dense")
    weights = (tmp_path / "dense/model.safetensors").read_bytes()
    packed = json.loads(call(*pick, f"{tmp_path}/m.saepack", "--format", "packed", "--verify", "--json").stdout)
    assert packed["scores"]["search"]["facts"]["score"] == packed["trial"]["tasks"]["facts"]
    verified, size = packed["notes"]
    assert re.fullmatch(r"verified in a fresh process: 20 tensors read back as computed; all 18 instances .*", verified)
    assert "of the dense weights" in size
    assert set(packed["objectives"]) == set(packed["scores"]) == {"search", "test"}
    assert "in" in call(*pick, f"{tmp_path}/d.saepack", "--format", "delta").stdout
    call(*pick, f"{tmp_path}/r", "--format", "recipe")
    assert {path.name for path in (tmp_path / "r").iterdir()} == {"recipe.json", "README.md"}
    assert "never seen by the search" in call_and_read(tmp_path, "unpack", "m.saepack", "-o", "from-packed")
    assert "fingerprint" in call_and_read(
        tmp_path, "unpack", "d.saepack", "-o", "from-delta", "--base", str(tiny_folders["base"])
    )
    merged = call("merge", f"{tmp_path}/r/recipe.json", "-o", f"{tmp_path}/from-recipe")
    assert "all 20 tensors are bit for bit those that the recipe was written with" in merged.stdout
    assert merged.stderr == ""
    for name in ("from-packed", "from-delta", "from-recipe"):
        assert (tmp_path / name / "model.safetensors").read_bytes() == weights
        for file in ("config.json", "generation_config.json", "recipe.json", "tokenizer.json"):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / "dense" / file).read_bytes(), (name, file)
    assert "exists already" in refused(*pick, f"{tmp_path}/r", "--format", "packed")
    document = json.loads((tmp_path / "r/recipe.json").read_text())
    document["tensors"]["model.norm.weight"] = "0" * 64
    (tmp_path / "r/recipe.json").write_text(json.dumps(document))
    message = refused("merge", f"{tmp_path}/r/recipe.json", "-o", f"{tmp_path}/other", code=1)
    assert "1 of 20 tensors are not those that the recipe was written with, model.norm.weight among them" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "d.saepack", "dense", "from-delta", "from-packed", "from-recipe", "m.saepack", "r",
    ]  # fmt: skip


def call_and_read(folder: Path, command: str, file: str, _o: str, output: str, *rest: str) -> str:
    assert (
        "20 tensors, each with the digest it had"
        in call(command, f"{folder}/{file}", "-o", f"{folder}/{output}", *rest).stdout
    )
    return (folder / output / "README.md").read_text()


def test_what_mergekit_can_say_is_written_for_it_and_is_the_trial(there, tmp_path):
    pick = ("export", "tiny", "--format", "mergekit", "--trial")
    average = next(record for record in Run.open("tiny").trials() if record.operator == "weighted average").number
    found = json.loads(call(*pick, str(average), "-o", f"{tmp_path}/m.yaml", "--verify", "--json").stdout)
    assert any("all 20 tensors are bit for bit the trial's" in note for note in found["notes"])
    assert found["scores"]["search"]["facts"]["score"] == found["trial"]["tasks"]["facts"]
    call("export", "tiny", "--trial", str(average), "-o", f"{tmp_path}/dense")
    call("merge", f"{tmp_path}/m.yaml", "-o", f"{tmp_path}/merged")
    weights = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("dense", "merged")]
    assert weights[0] == weights[1]
    sparsest = str(max(Run.open("tiny").front(), key=lambda record: record.values["sparsity"]).number)
    message = refused(*pick, sparsest, "-o", f"{tmp_path}/n.yaml")
    assert "format mergekit: mergekit cannot say this: it does not prune, this is Prune to" in message
    assert "hf, packed, delta and recipe hold any model" in message
    assert "ends in .yaml or .yml" in refused(*pick, str(average), "-o", f"{tmp_path}/n.json")
    assert "format mergekit holds none" in refused(
        *pick, str(average), "-o", f"{tmp_path}/n.yaml", "--tokenizer-from", "math"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "m.yaml", "merged"]


def test_how_far_a_mergekit_file_is_from_the_trial_is_told(there, tmp_path, monkeypatch):
    average = next(record for record in Run.open("tiny").trials() if record.operator == "weighted average")
    near = Cast(Merge("linear", average.recipe.input.inputs, (0.334, 0.333, 0.333)), "float32")
    monkeypatch.setattr(
        "sae_moo.deploy.mergekit.writer.configuration_text", lambda recipe, pool: configuration_text(near, pool)
    )
    export = ("export", "tiny", "--trial", str(average.number), "--format", "mergekit", "-o", f"{tmp_path}/m.yaml")
    (note,) = (
        note for note in json.loads(call(*export, "--verify", "--json").stdout)["notes"] if "bit for bit" in note
    )
    same, _, told = note.partition(" tensors are bit for bit the trial's; the largest difference is ")
    assert int(same.split()[-3]) < 20
    assert 0 < float(told.split(",")[0]) < 0.01


def test_an_estimate_is_what_exports_take_and_writes_nothing(there, tmp_path):
    document = json.loads(call("export", "tiny", "--weights", "sparsity=1", "--estimate", "--json").stdout)
    found = {each["format"]: each for each in document["formats"]}
    assert list(found) == ["hf", "packed", "delta", "recipe", "mergekit", "structured"]
    assert found["hf"]["share"] == 1
    assert found["hf"]["gains"].startswith("none")
    assert found["structured"]["nbytes"] is None
    assert "nothing can be dropped" in found["structured"]["gains"]
    assert "mergekit cannot say this" in found["mergekit"]["gains"]
    for form in ("packed", "delta"):
        call("export", "tiny", "--weights", "sparsity=1", "--format", form, "-o", f"{tmp_path}/{form}")
        size = (tmp_path / form).stat().st_size
        assert 0 < size - found[form]["nbytes"] < 25_000, "tokenizer, card and index"
    assert "which runtimes gain" in call("export", "tiny", "--estimate").stdout
    assert "expected either --output DIR or --estimate" in refused("export", "tiny")
    assert "expected either --output DIR or --estimate" in refused("export", "tiny", "--estimate", "-o", "x")


def test_exports_are_refused_before_anything_is_written(there, tmp_path, tiny_folders):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").touch()
    assert "exists already" in refused("export", "tiny", "-o", f"{tmp_path}/taken")
    assert "no trial 99; there are 0 to 13" in refused("export", "tiny", "--trial", "99", "-o", f"{tmp_path}/m")
    assert "give one or the other" in refused("export", "tiny", "--trial", "0", "--knee", "-o", f"{tmp_path}/m")
    assert "got 'fact' (did you mean 'facts'?)" in refused(
        "export", "tiny", "--where", "fact>=0", "-o", f"{tmp_path}/m"
    )
    assert "cannot be written" in refused("export", "tiny", "--trial", "0", "-o", f"{tmp_path}/taken/file/m")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken"]


def test_what_verifies_knows_when_the_tasks_are_not_the_studys_any_more(here):
    call("search", "c.yaml", "--evaluations", "7")
    run = Run.open("tiny")
    facts = Path("facts.jsonl").read_text()

    def edited(what: str) -> None:
        if what.startswith("loaded"):  # the export itself has read them before
            Path("facts.jsonl").write_text(facts.replace("fact 3 is", "fact 3 was"))

    with pytest.raises(RunError, match=r"this is not what the study was made with:\n  - items of facts: the study has"):
        export(run, run.front()[0], "", "out", verify=True, stage=edited)
    assert not Path("out").exists()


def test_evaluate_scores_the_test_split_by_default(there):
    document = json.loads(call("evaluate", "zoo:math", "--config", "c.yaml", "--json").stdout)
    assert (document["split"], document["tasks"]["zoo_math"]["instances"]) == ("test", 4)
    assert document["tasks"]["zoo_math"]["score"] > 0.2
    assert document["sparsity"] == 0.0
    assert "zoo_math" in call("evaluate", "zoo:math", "--config", "c.yaml").stdout


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
    elsewhere = ".m.partial-another.machine-999999999"
    for debris in (f".m.{_mark()}999999999", f".m.{_mark()}scratch-999999999", elsewhere):
        (tmp_path / debris).mkdir()
    call("export", "tiny", "--trial", "0", "-o", f"{tmp_path}/m")
    assert sorted(path.name for path in tmp_path.iterdir()) == [elsewhere, "m"], "who writes there may be alive"
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
    assert f"neither a folder nor a name in {here}/runs; there are other" in refused("pick", "tiny")
    assert "no run 'othre' (did you mean 'other'?)" in refused("pick", "othre")
    assert "no study at" in refused("trials", "other")


@pytest.mark.parametrize(
    "command",
    [
        "search",
        "front",
        "trials",
        "pick",
        "export",
        "evaluate",
        "diff",
        "merge",
        "unpack",
        "validate",
        "report",
        "dashboard",
        "doctor",
    ],
)
def test_help_has_an_example(command):
    assert f"Example: sae-moo {command} " in " ".join(call(command, "--help").stdout.split())


@pytest.mark.parametrize(
    "arguments", [["serch"], ["front"], ["search", "c.yaml", "--evaluatons", "3"], ["export", "x"]]
)
def test_wrong_usage_exits_2(here, arguments):
    call(*arguments, code=2)


def test_samples_that_no_file_can_hold_as_they_are(tmp_path):
    _write_samples(tmp_path / "s.jsonl", [{"asked": "\ud800 é"}, {"asked": "b"}])
    lines = (tmp_path / "s.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["asked"] for line in lines] == ["\ud800 é", "b"]
    with pytest.raises(TypeError):
        _write_samples(tmp_path / "t.jsonl", [{"asked": "a"}, {"asked": object()}])
    assert [path.name for path in tmp_path.iterdir()] == ["s.jsonl"]


@pytest.mark.parametrize("text", ['say "hi" 😀', "it's \\ a\nline"])
def test_texts_as_python_writes_them(text):
    assert ast.literal_eval(_python(text)) == text
    assert _python(text).isascii() == text.isascii()


def test_what_no_estimate_reads_is_refused(there):
    message = refused("export", "tiny", "--estimate", "--verify", "--format", "packed", "--max-shard-size", "1MB")
    assert message.endswith("writes nothing; leave out --verify, --format, --max-shard-size\n")


def test_pictures_do_not_replace_what_is_there(there, tmp_path):
    (tmp_path / "f.png").write_bytes(b"mine")
    assert "f.png: exists already" in refused("front", "tiny", "--figure", f"{tmp_path}/f.png")
    assert "f.png" in call("front", "tiny", "--figure", f"{tmp_path}/new/folder/f.png").stderr, "folders are made"
    assert (tmp_path / "new/folder/f.png").is_file()
    assert (tmp_path / "f.png").read_bytes() == b"mine"


@pytest.mark.parametrize("command", [("figures", "tiny"), ("export", "tiny", "--knee")])
def test_the_current_folder_is_no_new_one(there, tmp_path, monkeypatch, command):
    shutil.copytree(there / "runs", tmp_path / "a/runs")
    shutil.copy(there / "facts.jsonl", tmp_path / "a")
    (tmp_path / "a/empty").mkdir()
    monkeypatch.chdir(tmp_path / "a/empty")
    assert "expected the name of a new folder" in refused(command[0], "../runs/tiny", *command[2:], "--output", ".")


def test_names_are_shown_as_they_are(here, tiny_folders):
    (here / "n.yaml").write_text(
        written(config_for(tiny_folders, objectives=["qa [/en]", "sparsity"], tasks=[
            {"name": "qa [/en]", "data": "facts.jsonl", "kind": "likelihood", "search": 12, "test": 8}
        ]))
    )  # fmt: skip
    assert "qa [/en]" in call("search", "n.yaml", "--evaluations", "7").stdout
    assert "qa [/en]" in call("front", "tiny").stdout
    assert "lies in out[v2];" in call("export", "tiny", "--trial", "0", "--output", "out[v2]").stdout


def test_the_version():
    assert call("--version").stdout == f"sae-moo {sae_moo.__version__}\n"


def test_an_empty_front_says_why(here, monkeypatch):
    def unready(self, *arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("sae_moo.evaluate.evaluator.Evaluator.evaluate", unready)
        call("search", "c.yaml", code=130)
    assert "front of tiny is empty: no evaluation has ended yet" in call("front", "tiny").stderr
    assert "front of tiny is empty: no evaluation has ended yet" in refused("pick", "tiny")
    call("search", "c.yaml", "--fresh", "--evaluations", "7", "--set", "constraints={facts: {min: 1.0}}")
    assert "front of tiny is empty: no evaluation so far keeps the limits" in refused("pick", "tiny")
    assert "keeps the limits: facts at least 1, the best so far is 0.0" in call("figures", "tiny", "-o", "f").stdout
    assert sorted(path.name for path in (here / "f").iterdir()) == [
        "generations.png",
        "hypervolume.png",
        "timeline.json",
        "timeline.png",
    ]


def test_an_unfinished_search_says_so(here):
    call("search", "c.yaml", "--evaluations", "8")
    assert "evaluations" not in call("front", "tiny").stdout
    call("search", "c.yaml", "--fresh", "--evaluations", "7")
    run = Run.open("tiny")
    storage = {**run.config.model_dump(mode="json"), "search": {"population": 6, "evaluations": 12}}
    study = run.storage
    study.set_study_user_attr(study.get_study_id_from_name("tiny"), "config", storage)
    assert "after 7 of 12 evaluations)" in call("front", "tiny").stdout
    assert "not finished: this is after 7 of 12 evaluations" in call("pick", "tiny").stdout


def test_the_page_is_a_page(there):
    assert "expected a name that ends in .html" in refused("report", "tiny", "-o", "r.pdf")
