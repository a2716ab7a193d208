"""The main job from the command line: searched, interrupted, resumed, bound to what it was made with."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import yaml
from commands import call, config_for, refused, written

from sae_moo.evaluate.evaluator import Evaluator
from sae_moo.explore.run import Run
from sae_moo.materialization.forms import Form, form
from sae_moo.objectives import Evaluation
from sae_moo.recipe import Merge
from sae_moo.study.folder import RunFolder


def test_a_search_goes_on_and_shows_plain_lines(here):
    first = call("search", "c.yaml", "--evaluations", "3")
    assert "3 evaluations in" in first.stdout
    assert "the study lies in runs/tiny" in first.stdout
    second = call("search", "c.yaml", "--evaluations", "8")
    assert "resumed: 3 evaluations replayed" in second.stdout
    assert "8/8 evaluations" in second.stdout
    for command in ("pick", "export", "report", "dashboard"):
        assert f"  sae-moo {command} tiny " in second.stdout.partition("\nnext:\n")[2]
    assert json.loads(call("search", "c.yaml", "--evaluations", "8", "--json").stdout)["evaluations"] == 8


def test_which_form_merges_is_told_by_validate_by_a_search_and_by_its_study(here, monkeypatch):
    facts = json.loads(call("validate", "c.yaml", "--json").stdout)
    merging = form("cpu").words
    assert facts["merging"] == merging
    assert f"\n  merging     {merging}\n" in call("validate", "c.yaml").stdout
    assert call("search", "c.yaml", "--evaluations", "1").stdout.startswith(f"merging: {merging}\n")
    assert Run.open("tiny").merging == merging
    other = Form("torch", "cpu", "plain torch on cpu: numba is not installed")
    monkeypatch.setattr("sae_moo.jobs.search.form", lambda device: other)
    call("search", "c.yaml", "--evaluations", "2")
    assert Run.open("tiny").merging == other.words, "of the session that ran last"


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
    assert "annealing.high: the study has 0.8, now it is 0.5" in message
    assert "study.seed: the study has 0, now it is 1" in message
    assert "the study was made under other settings" in refused("validate", "c.yaml", "--set", "study.seed=1")
    changed = {**tiny_folders, "math": tiny_folders["code"]}
    (here / "c2.yaml").write_text(written(config_for(changed)))
    assert "weights of math: the study has" in refused("search", "c2.yaml")
    (here / "facts.jsonl").write_text((here / "facts.jsonl").read_text().replace("fact 1", "fact one"))
    assert "items of facts: the study has" in refused("search", "c.yaml")
    assert "put aside: runs/tiny.1" in call("search", "c.yaml", "--evaluations", "2", "--fresh").stdout
    call("search", "c.yaml", "--evaluations", "2", "--fresh")
    assert sorted(path.name for path in (here / "runs").iterdir()) == ["tiny", "tiny.1", "tiny.2"]
    assert len(Run.open("tiny.1").trials()) == 2


def test_a_failed_evaluation_is_shown_and_kept(here, monkeypatch):
    from sae_moo.evaluate.evaluator import Evaluator
    from sae_moo.objectives import Evaluation

    original, calls = Evaluator.evaluate, []

    def sometimes(self, recipe, rivals):
        calls.append(recipe)
        return Evaluation(recipe, reason="out of memory: x") if len(calls) == 3 else original(self, recipe, rivals)

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

    def interrupted(self, recipe, rivals):
        calls.append(recipe)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return original(self, recipe, rivals)

    monkeypatch.setattr(Evaluator, "evaluate", interrupted)
    result = call("search", "c.yaml", code=130)
    assert "stopped after 4 evaluations; all are saved, the same command goes on" in result.stderr
    assert traced() == {f"trial {i}" for i in range(4)}
    calls.clear()
    assert "saved, the same command without --fresh goes on" in call("search", "c.yaml", "--fresh", code=130).stderr
    monkeypatch.setattr(Evaluator, "evaluate", original)
    assert "resumed: 4 evaluations replayed" in call("search", "c.yaml").stdout
    made = {record.number: record for record in Run.open("tiny").trials()}
    assert traced() == {f"trial {i}" for i, record in made.items() if record.repeats is None}
    document = json.loads(call("trials", "tiny", "--json").stdout)["trials"]
    assert [(each["worker"], each["workers_lost"]) for each in document] == [(None, 0)] * len(made)


def traced() -> set[str]:
    """Which trials the run's timeline tells of."""
    events = json.loads(RunFolder(Path("runs/tiny")).timeline.read_text("utf-8"))["traceEvents"]
    return {event["name"] for event in events if event.get("cat") == "evaluation"}


def test_two_searches_of_one_run_do_not_meet(here):
    with RunFolder(Path("runs/tiny")).held():
        assert f"another search is running there (process {os.getpid()}) on " in refused("search", "c.yaml")
    assert not (here / "runs/tiny").exists(), "a lock alone leaves no run behind"


def test_a_study_is_bound_to_its_device_and_the_bases_config(here, tiny_folders, monkeypatch):
    call("search", "c.yaml", "--evaluations", "2")
    monkeypatch.setattr("sae_moo.jobs.bench.Bench.identity", changed_identity("sae_moo.jobs.bench"))
    message = refused("search", "c.yaml")
    assert "device: the study has 'cpu', now it is 'cuda'" in message
    assert "config.json of base" in message
    assert "config.json of base" in refused("export", "tiny", "--trial", "0", "-o", "m")


def changed_identity(_module):
    from sae_moo.jobs.bench import Bench

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


def test_what_was_pruned_by_neurons_is_dropped(here):
    from transformers import AutoModelForCausalLM

    call("search", "c.yaml", "--evaluations", "10", "--set", "pruning.scope=neurons")
    pick = ("export", "tiny", "--weights", "sparsity=1")
    document = json.loads(call(*pick, "-o", "out", "--format", "structured", "--verify", "--json").stdout)
    dropped, faster, verified = document["notes"]
    assert verified.startswith("verified in a fresh process: 20 tensors read back as computed; ")
    model = AutoModelForCausalLM.from_pretrained(here / "out")
    left = model.config.intermediate_size
    assert 0 < left < 24
    assert f"{24 - left} of 24 neurons of every block dropped" in dropped
    told = re.fullmatch(
        r"tokens per second of CPU time over the base's on cpu, .*: reading a prompt (\S+) at batch 1 and (\S+) at batch 16, "
        r"writing (\S+) at batch 1 and (\S+) at batch 16 times as fast",
        faster,
    )
    assert told is not None
    assert [f"{each['times']:.2f}" for each in document["speed"]] == list(told.groups())
    assert [(each["what"], each["batch"]) for each in document["speed"]] == [
        ("prompt", 1), ("prompt", 16), ("decode", 1), ("decode", 16),
    ]  # fmt: skip
    card = (here / "out/README.md").read_text()
    assert f"T{faster[1:]}." in card
    assert f"were exact zeros before {24 - left} of 24 neurons of every block were dropped" in card
    assert "merge recipe.json --output DIR  # whole, with zeros" in card
    score = document["scores"]["search"]["facts"]["score"]
    assert score == pytest.approx(document["trial"]["tasks"]["facts"], abs=1e-5)
    call("merge", "out/recipe.json", "-o", "whole")
    found = json.loads(call("diff", "whole", "out", "--config", "c.yaml", "--json").stdout)
    assert (found["weights"], found["groups"]) == (None, {})
    assert found["scores"]["facts"]["difference"]["mean"] == pytest.approx(0, abs=1e-5)
    assert "tensors have other shapes (" in " ".join(call("diff", "whole", "out", "--config", "c.yaml").stdout.split())
    assert AutoModelForCausalLM.from_pretrained(here / "whole").config.intermediate_size == 24
    formats = json.loads(call(*pick, "--estimate", "--json").stdout)["formats"]
    assert formats[-1]["nbytes"] == sum(p.numel() * 4 for p in model.parameters())


def test_scopes_share_one_digest_between_trial_and_export(here):
    call("search", "c.yaml", "--set", "pruning.scope=global")
    trial = json.loads(call("pick", "tiny", "--where", "sparsity>=0.01", "--json").stdout)["trial"]
    call("export", "tiny", "--trial", str(trial["number"]), "-o", "out")
    assert json.loads((here / "out/recipe.json").read_text())["digest"] == trial["digest"]


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
    for file, message in (
        ("gone/s.jsonl", "there is no folder gone"),
        ("s.jsonl", "s.jsonl: exists already"),
        ("c.yaml", "c.yaml: exists already"),
        (".", "expected the name of a new file, got '.'"),
    ):
        assert message in refused("evaluate", "zoo:math", "--config", "c.yaml", "--samples", file)
    assert len((here / "s.jsonl").read_text().splitlines()) == 10
    changed = written(config_for(tiny_folders, tasks=[{**entry, "fewshot": 1}]))
    (here / "h.yaml").write_text(changed)
    assert "items of facts" in refused("search", "h.yaml")


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


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_equals_unbroken(here):
    """kill -9 a real process, again and again, then compare with a run that was left alone."""
    search = ["search", "c.yaml", "--json", "--set"]
    call(*search, "study.name=whole")
    command = [sys.executable, "-m", "sae_moo.cli.main", *search, "study.name=broken"]
    journal = here / "runs/broken/study.journal"
    for kill in range(2):
        grown = journal.stat().st_size if journal.exists() else 0
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while not journal.exists() or journal.stat().st_size < grown + 3000 * (kill + 1):
            assert time.monotonic() < deadline
            if process.poll() is not None:
                break
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    call(*search, "study.name=broken")
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


@pytest.mark.parametrize("algorithm", ["sae-local", "pso", "optuna:TPESampler", "ties"])
def test_other_algorithms_from_the_command_line(here, algorithm):
    changes = ["--set", f"search.algorithm={algorithm}", "--set", "search.one_shot.scales=[1.0]"]
    changes = changes[:2] if algorithm != "ties" else [*changes, "--set", "search.one_shot.levels=[0.5]"]
    first = json.loads(call("search", "c.yaml", "--evaluations", "8", *changes, "--json").stdout)
    again = call("search", "c.yaml", "--evaluations", "10", *changes)
    assert first["evaluations"] == (4 if algorithm == "ties" else 8)
    if algorithm == "ties":
        assert "nothing left to try after 4 of 10 evaluations" in again.stdout
    else:
        assert "10 with those of earlier sessions" in again.stdout
    run = Run.open(here / "runs" / "tiny")
    assert len(run.trials()) == (4 if algorithm == "ties" else 10)
    assert call("export", "tiny", "--knee", "--output", "out", "--verify").exit_code == 0


def test_another_measure_of_sparsity_is_told_and_kept(here):
    call("search", "c.yaml", "--set", "search.algorithm=sae-global", "--set", "search.sae.measure=hoyer")
    found = [record.evaluation for record in Run.open(here / "runs" / "tiny").trials()]
    assert all(len(evaluation.sparseness) == 1 + len(evaluation.group_sparsity) for evaluation in found)
    assert all(0 < evaluation.sparseness[0] < 1 for evaluation in found)
    error = refused("search", "c.yaml", "--set", "search.algorithm=sae-global", "--set", "search.sae.measure=l1")
    assert "search.sae.measure: the study has 'hoyer', now it is 'l1'" in error


def test_operators_are_turned_off_by_name(here):
    off = [
        "ablation.attraction=false",
        "operators.remerge=0",
        "ablation.zero_aware=false",
        "operators.prune_after=false",
        "ablation.ladder=1",
    ]
    changes = [each for change in off for each in ("--set", f"search.{change}")]
    call("search", "c.yaml", *changes, "--set", "search.population=10")
    records = Run.open(here / "runs" / "tiny").trials()
    children = [record for record in records if record.generation > 0]
    assert {record.operator for record in children} == {"crossover"}
    assert all(isinstance(record.asked.input, Merge) and record.asked.input.method == "linear" for record in children)
    assert [record.operator for record in records].count("pruned average") == 1


def suggested(stdout: str) -> list[list[str]]:
    """The commands that a command ends with."""
    return [shlex.split(line, comments=True) for line in stdout.partition("\nnext:\n")[2].splitlines()]


def test_what_each_command_suggests_leads_from_a_search_to_a_model_that_answers(here, monkeypatch):
    pick = suggested(call("search", "c.yaml").stdout)[0]
    assert pick[:2] == ["sae-moo", "pick"]
    (export,) = suggested(call(*pick[1:]).stdout)
    assert (export[:2], export[-1]) == (["sae-moo", "export"], "--verify")
    (load,) = suggested(call(*export[1:]).stdout)
    assert load[:2] == ["python", "-c"]
    answered = subprocess.run([sys.executable, *load[1:]], check=True, capture_output=True, text=True).stdout
    assert re.match(r"fact \d+ is", answered)
    used = (here / export[-2] / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(export[-2])
    with redirect_stdout(StringIO()) as output:
        exec(used, {})
    assert output.getvalue().startswith("Your prompt")


@pytest.mark.parametrize("form", ["packed", "delta", "recipe", "mergekit"])
def test_what_is_no_folder_yet_says_how_to_make_one(here, form):
    call("search", "c.yaml", "--evaluations", "6")
    average = next(record for record in Run.open("tiny").trials() if record.operator == "weighted average").number
    written = call("export", "tiny", "--trial", str(average), "--format", form, "-o", "it.yaml").stdout
    *_, command = suggested(written)
    call(*command[1:])
    made = here / ("it-unpacked" if form in ("packed", "delta") else "it-merged")
    assert (made / "model.safetensors").is_file()
    assert "## To use it" in (made / "README.md").read_text()


def test_experts_that_are_one_model_are_told(here, tiny_folders, caplog):
    twins = {"base": tiny_folders["base"], "math": tiny_folders["math"], "same": tiny_folders["math"]}
    (here / "t.yaml").write_text(written(config_for(twins | {"plain": tiny_folders["base"]})))
    call("validate", "t.yaml")
    assert caplog.messages == ["math and same are the same model", "base and plain are the same model"]
    caplog.clear()
    call("search", "t.yaml", "--evaluations", "2")
    assert "math and same are the same model" in caplog.messages


def test_a_search_with_nothing_left_to_try_is_finished(here):
    call("search", "c.yaml", "--set", "search={algorithm: weighted-average, evaluations: 40}")
    assert len(Run.open("tiny").trials()) < 40
    assert Run.open("tiny").view().unfinished == ""
    assert "not finished" not in call("pick", "tiny").stdout


def test_a_fault_of_an_override_names_the_flag_that_it_was_given_by(here):
    for command in (("search", "c.yaml"), ("validate", "c.yaml")):
        assert "--set search.populaton=3: search.populaton: no such key" in refused(
            *command, "--set", "search.populaton=3"
        )
    assert "\n  --evaluations 0: search.evaluations: expected" in refused("search", "c.yaml", "--evaluations", "0")
    assert "\n  --seed -1: study.seed: expected" in refused("search", "c.yaml", "--seed", "-1")


def test_a_search_whose_evaluations_keep_failing_stops_in_a_line_and_goes_on_later(here, monkeypatch):
    real, made = Evaluator.evaluate, []

    def failing(self, recipe, rivals=None):
        made.append(recipe)
        return real(self, recipe, rivals) if len(made) <= 8 else Evaluation(recipe, reason="out of memory: 9 GiB")

    changes = ("--set", "executor.failures=3")
    monkeypatch.setattr(Evaluator, "evaluate", failing)
    stopped = call("search", "c.yaml", *changes, code=1)
    (line,) = [line for line in stopped.stderr.splitlines() if line.startswith("sae-moo: stopped")]
    assert "3 evaluations in a row failed: 3 x out of memory: 9 GiB. Likely memory is short" in line
    assert "the same search goes on from here; executor.failures says" in line
    states = [record.state for record in Run.open("runs/tiny").trials()]
    assert states.count("failed") == 3
    monkeypatch.setattr(Evaluator, "evaluate", real)
    assert "14/14 evaluations" in call("search", "c.yaml", "--set", "executor.failures=0").stdout, "no other study"
    assert [record.state for record in Run.open("runs/tiny").trials()][: len(states)] == states


def test_items_that_are_left_out_are_told_once_on_stderr(here, caplog):
    lines = (here / "facts.jsonl").read_text().splitlines()
    (here / "facts.jsonl").write_text("\n".join([*lines, lines[3], lines[7]]))
    said = "2 of 32 items of task facts are left out"
    assert "left out" in call("validate", "c.yaml").stdout
    assert caplog.text.count(said) == 1
    run = [sys.executable, "-m", "sae_moo.cli.main", "search", "c.yaml", "--evaluations", "2"]
    told = subprocess.run(run, capture_output=True, text=True, check=True)
    assert told.stderr.count(said) == 1
