"""Whatever stands in a YAML file, it is read or refused in words, soon, and in few of them."""

from __future__ import annotations

import time

import pytest

from sae_moo.config.document import Config
from sae_moo.errors import InputError
from sae_moo.files.marked_yaml import LONGEST, MOST_BYTES, MOST_TOLD, MOST_VALUES, override_, parse

CONFIG = """
study: {name: s}
models: {base: "zoo:base", experts: {m: "zoo:math"}}
tasks: [{name: zoo_math}]
objectives: [zoo_math, sparsity]
"""
REFUSED = {
    "an integer of a million digits": "1" * 1_000_000,
    "an integer of too many digits": "1" + "0" * 5000,
    "an integer of many bits": "0x" + "f" * 5000,
    "no integer": "!!int x",
    "an empty integer": "!!int ''",
    "no float": "!!float x",
    "no truth value": "!!bool x",
    "a moment": "!!timestamp 2001-01-01",
    "no moment": "!!timestamp x",
    "bytes": "!!binary aGk=",
    "a set": "!!set {a}",
    "pairs": "!!omap [a: 1]",
    "code": "!!python/object/apply:os.system [ls]",
    "another's tag": "!foo 1",
    "a list as a mapping": "!!map [1]",
    "a list as a key": "{[1]: 2}",
    "a mapping as a key": "{? {a: 1} : 2}",
    "an alias of itself": "&a [*a]",
    "an alias of nothing": "*a",
    "no mapping to merge": "{<<: 5}",
    "no mappings to merge": "{<<: [1]}",
    "deep lists": "[" * 5000 + "]" * 5000,
    "deep mappings": "{a: " * 5000 + "1" + "}" * 5000,
    "half a character": '"\\ud800"',
    "the character NUL": "a\0b",
    "a tab": "\n\tx: 1",
    "a reserved character": "@x",
}


def bomb(merged: bool) -> str:
    lines = ["b0: &b0 {x: 1, y: 2}" if merged else "b0: &b0 [1, 1]"]
    for i in range(1, 40):
        twice = f"*b{i - 1}, *b{i - 1}"
        lines.append(f"b{i}: &b{i} " + (f"{{<<: [{twice}]}}" if merged else f"[{twice}]"))
    return "\n".join(lines)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_is_refused_in_few_words(kind, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_bytes(f"{CONFIG}search: {{algorithm: {REFUSED[kind]}}}\n".encode())
    with pytest.raises(InputError, match=r"c\.yaml") as caught:
        Config.load(path)
    assert len(str(caught.value)) < 1500
    path.write_text(CONFIG)
    with pytest.raises(InputError) as caught:
        Config.load(path, [f"search.algorithm={REFUSED[kind]}"])
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"study: {name: \xff}", "cannot read the configuration .*utf-8"),
        (CONFIG.encode("utf-16"), "cannot read the configuration .*utf-8"),
        (b"", "expected a mapping with the keys study, models"),
        (b"- 1", "expected a mapping with the keys"),
        (b"a: 1\n---\nb: 2", "not YAML: expected a single document"),
        (bomb(merged=False).encode(), f"expected at most {MOST_VALUES} values"),
        (bomb(merged=True).encode(), f"expected at most {MOST_VALUES} values"),
        (b"#" * (MOST_BYTES + 1), f"expected at most {MOST_BYTES} bytes"),
        (b"a: [" + b"1," * 100_000 + b"]", f"expected at most {MOST_VALUES} values"),
        (b"".join(b"k%d: 1\n" % i for i in range(50_000)), f"expected at most {MOST_VALUES} values"),
    ],
)
def test_a_file_that_is_no_configuration_is_one_fault(content, message, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    start = time.process_time()
    with pytest.raises(InputError, match=message) as caught:
        Config.load(path)
    assert time.process_time() - start < 15
    assert len(str(caught.value)) < 600


def test_a_date_is_the_text_that_stands_there():
    raw, _, _ = parse("a: 2001-01-01\nb: 0001-01-01T00:00:00+23:00\nc: 2001-99-99\n2001-01-01: x", "f", ["a"])
    assert raw == {"a": "2001-01-01", "b": "0001-01-01T00:00:00+23:00", "c": "2001-99-99", "2001-01-01": "x"}
    changed: dict = {}
    assert override_(changed, {}, "study.name=2001-01-01", "--set") == []
    assert changed == {"study": {"name": "2001-01-01"}}


def test_merge_keys_are_filled_in_and_what_overrides_them_is_no_duplicate():
    raw, lines, faults = parse("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  x: 3\nc: {x: 1,\n x: 2}", "f", ["a"])
    assert raw["b"] == {"x": 3, "y": 2}
    assert lines["b", "x"] == "f:4"
    assert faults == ["f:6: c.x: expected every key once, it came before"]


ENTRIES = 4000
MANY = {
    "unknown keys": "".join(f"k{i}: 1\n" for i in range(ENTRIES)),
    "unknown settings": "search:\n" + "".join(f"  k{i}: 1\n" for i in range(ENTRIES)),
    "limits of nothing": "constraints:\n" + "".join(f"  c{i}: {{min: 0.5}}\n" for i in range(ENTRIES)),
    "weights of nothing": "search:\n  algorithm: pso\n  weights:\n" + "".join(f"    k{i}: 1\n" for i in range(ENTRIES)),
    "methods": "compare:\n  methods:\n" + "".join(f"  - x{i}\n" for i in range(ENTRIES)),
    "keys that come twice": "constraints:\n" + "  sparsity: {min: 0.5}\n" * ENTRIES,
    "one long word": f"search: {{algorithm: {'a' * 100_000}}}\n",
}


@pytest.mark.parametrize("kind", MANY)
def test_of_very_many_faults_the_first_are_told_and_their_number(kind, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG + MANY[kind])
    start = time.process_time()
    with pytest.raises(InputError) as caught:
        Config.load(path)
    assert time.process_time() - start < 10
    lines = str(caught.value).splitlines()
    assert len(lines) <= MOST_TOLD + 2
    assert max(map(len, lines)) <= LONGEST + 10
    if len(lines) > 2:
        assert lines[0].startswith(f"the configuration has {ENTRIES - (kind == 'keys that come twice')} faults")
        assert lines[-1].startswith("  ... and ")


def test_tasks_and_objectives_without_end_are_checked_in_linear_time(tmp_path):
    path = tmp_path / "c.yaml"
    names = [f"t{i}" for i in range(2500)]
    tasks = "".join(f"  - {{name: {name}, data: x, kind: likelihood}}\n" for name in names)
    path.write_text(
        f"models: {{base: 'zoo:base', experts: {{m: 'zoo:math'}}}}\ntasks:\n{tasks}objectives: [{{name: a, mean: "
        f"[{', '.join(names)}]}}, sparsity]\n"
    )
    start = time.process_time()
    assert len(Config.load(path).tasks) == 2500
    assert time.process_time() - start < 10
