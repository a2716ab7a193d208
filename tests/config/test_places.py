"""Where a fault of a configuration is said to be, and what came, in the words of who wrote it."""

from __future__ import annotations

import pickle
from functools import partial

import configurations
import pytest

from sae_moo.config.document import Config
from sae_moo.errors import InputError
from sae_moo.experts.opening import open_models

GOOD = """\
models: {base: zoo:base, experts: {math: zoo:math}}
tasks:
  - {name: mine, data: mine.jsonl, kind: likelihood}
objectives: [mine, sparsity]
constraints: {sparsity: {min: 0.1, max: 0.9}}
search: {algorithm: pso, weights: {mine: 1, sparsity: 1}}
"""
faults = partial(configurations.faults, given_as="--set")


@pytest.mark.parametrize(
    "line", ["foo:", "foo: null", "foo: ~", "foo: 1", "foo: {}", "serch:", "1:", "tasks : 1\n1.5:"]
)
def test_a_key_that_is_none_is_refused_whatever_it_holds(tmp_path, line):
    key = line.splitlines()[-1].partition(":")[0]
    assert any(fault.startswith(f"c.yaml:{6 + len(line.splitlines())}: {key}: no such key") for fault in faults(
        tmp_path, GOOD + line + "\n"
    ))  # fmt: skip


@pytest.mark.parametrize("change", ["foo=", "foo=null", "1=", "foo.bar="])
def test_so_is_one_of_an_override(tmp_path, change):
    (found,) = faults(tmp_path, GOOD, change)
    assert found.startswith(f"--set {change}: {change.partition('=')[0].partition('.')[0]}: no such key")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("objectives=[mine,mien]", "--set objectives=[mine,mien]: objectives[1]: expected a task"),
        ("objectives.0=mien", "--set objectives.0=mien: objectives[0]: expected a task"),
        ("objectives.0=sparsity", "c.yaml:4 with --set objectives.0=sparsity: objectives: expected every objective"),
        ("tasks.0.kind=null", "--set tasks.0.kind=null: tasks[0].kind: expected multiple_choice"),
        ("tasks=[{name: a, data: b}]", "--set tasks=[{name: a, data: b}]: tasks[0].kind: expected multiple_choice"),
        ("constraints.sparsity.min=0.95", "c.yaml:5 with --set constraints.sparsity.min=0.95: constraints.sparsity:"),
        ("search.weights={mine: 0}", "--set search.weights={mine: 0}: search.weights: expected at least one weight"),
        ("models.experts={}", "--set models.experts={}: models.experts: expected at least one expert"),
        ("models={base: zoo:base}", "--set models={base: zoo:base}: models.experts: expected this key, it is missing"),
        ("tasks.5.search=3", "--set tasks.5.search=3: tasks[5]: tasks has one entry, number 0"),
        ("tasks.1=x", "--set tasks.1=x: tasks[1]: tasks has one entry, number 0"),
        ("tasks.x=3", "--set tasks.x=3: tasks.x: tasks has one entry, number 0"),
        (
            "search.algorithm.x=3",
            "--set search.algorithm.x=3: search.algorithm.x: expected a mapping at search.algorithm",
        ),
        ("tasks=[]", "--set tasks=[]: tasks: expected at least one entry, got an empty list"),
    ],
)
def test_a_fault_of_an_override_names_it_wherever_it_shows(tmp_path, change, fault):
    found = faults(tmp_path, GOOD, change)
    assert any(each.startswith(fault) for each in found), found


def test_a_fault_that_an_override_has_no_part_in_is_where_it_stands(tmp_path):
    text = GOOD.replace("mine, sparsity]", "mien, sparsity]").replace(", kind: likelihood", "")
    text = text.replace(", weights: {mine: 1, sparsity: 1}", "")
    found = faults(tmp_path, text, "tasks.0.search=4", "search.population=9")
    assert [each.partition(" ")[0] for each in found] == ["c.yaml:3:", "c.yaml:4:"]


def test_what_a_flag_of_its_own_changes_is_called_by_that_flag(tmp_path):
    given = {"search.evaluations=0": "--evaluations 0", "study.seed=-1": "--seed -1"}
    assert faults(tmp_path, GOOD, shorthands=given) == [
        "--seed -1: study.seed: expected greater than or equal to 0, got -1",
        "--evaluations 0: search.evaluations: expected greater than or equal to 1, got 0",
    ]


@pytest.mark.parametrize(
    ("key", "text", "write"),
    [
        ("search.evaluations", "1e3", "1000"),
        ("search.evaluations", "2E+2", "200"),
        ("search.evaluations", "1.5e3", "1500"),
        ("models.cache_gib", "1e3", "1000.0"),
        ("models.cache_gib", "1e-7", "1.0e-07"),
        ("search.evaluations", "1e-3", None),
        ("search.evaluations", "1e300", None),
        ("models.cache_gib", "1e400", None),
        ("models.cache_gib", "1e-400", None),
    ],
)
def test_a_number_in_powers_of_ten_is_advised_as_it_will_be_read(tmp_path, key, text, write):
    (found,) = faults(tmp_path, GOOD, f"{key}={text}")
    assert found.endswith(f"YAML reads {text} as text, write {write}") == (write is not None)
    if write is None:
        assert found.endswith(f"got '{text}'")
    else:
        (tmp_path / "c.yaml").write_text(GOOD)
        Config.load(tmp_path / "c.yaml", [f"{key}={write}"])


@pytest.mark.parametrize(
    ("value", "shown"),
    [("", "null"), ("true", "true"), ("{a: 1}", "a mapping"), ("[1]", "a list"), ("[]", "an empty list"), ("x", "'x'")],
)
def test_what_came_is_said_as_yaml_has_it(tmp_path, value, shown):
    (found,) = faults(tmp_path, GOOD, f"search.evaluations={value}")
    assert found == f"--set search.evaluations={value}: search.evaluations: expected integer, got {shown}"


def test_a_folder_of_models_that_is_a_file_is_a_fault_with_its_place_and_one_that_is_not_there_is_none(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "weights.bin").write_text("")
    roots = "  roots:\n    - there\n    - weights.bin\n    - nowhere\n    - weights.bin/below\n"
    text = GOOD.replace("models: {base: zoo:base, experts: {math: zoo:math}}\n", "models:\n  base: zoo:base\n"
        "  experts: {math: zoo:math}\n" + roots)  # fmt: skip
    told = "models.roots[1]: expected a folder, or a path that does not exist here, and 'weights.bin' is a file"
    assert faults(tmp_path, text) == [f"c.yaml:6: {told}"]
    assert len(faults(tmp_path, text + "serch:\n")) == 2, "with all others"
    assert faults(tmp_path, GOOD, "models.roots=[c.yaml]") == [
        f"--set models.roots=[c.yaml]: {told.replace('[1]', '[0]').replace('weights.bin', 'c.yaml')}"
    ]
    config = configurations.load(tmp_path, text.replace("    - weights.bin\n", ""))
    assert config.models.roots == ["there", "nowhere", "weights.bin/below"]


def test_where_only_the_machine_that_opens_models_has_a_file_there_it_says_so(tmp_path):
    config = configurations.load(tmp_path, GOOD, "models.roots=[late]")
    (tmp_path / "late").write_text("")
    again = pickle.loads(pickle.dumps(config))  # as workers read it, and as stored studies are read
    with pytest.raises(InputError, match=r"^models.roots: expected a folder, .* and 'late' is a file$"):
        open_models(again.models.base, again.models.experts, again.directory, again.models.roots)
