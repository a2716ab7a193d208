"""Tables of features: what they hold, as CSV and back, and what they refuse."""

from __future__ import annotations

import builtins
import math
import pickle
from pathlib import Path

import numpy as np
import pytest

from sae_moo.errors import InputError
from sae_moo.prediction.frames import KEYS, frame, read_csv, write_csv
from sae_moo.prediction.table import FeatureTable


def table(**changes):
    rows = {("a", "b", "t"): [0.1, math.nan], ("b", "a", "t"): [1 / 3, -0.0], ("a", "b", "u"): [1e-300, 2.0]}
    return FeatureTable(("x", "y, z"), rows | changes.get("rows", {}))


def test_a_row_is_read_only_and_in_the_order_given():
    features = table()
    assert list(features.rows) == [("a", "b", "t"), ("b", "a", "t"), ("a", "b", "u")]
    assert (features.experts, features.tasks, features.pairs) == (("a", "b"), ("t", "u"), (("a", "b"), ("b", "a")))
    with pytest.raises(ValueError, match="read-only"):
        features.of("a", "b", "t")[0] = 1.0
    assert features.matrix([("a", "b", "u"), ("b", "a", "t")]).tolist() == [[1e-300, 2.0], [1 / 3, -0.0]]
    assert features.matrix([]).shape == (0, 2)
    assert features.column("x").tolist() == [0.1, 1 / 3, 1e-300]


def test_a_row_does_not_follow_the_array_it_was_made_of():
    row = np.array([1.0, 2.0])
    features = FeatureTable(("x", "y"), {("a", "b", "t"): row})
    row[0] = 5.0
    assert features.of("a", "b", "t").tolist() == [1.0, 2.0]


def test_a_table_goes_to_another_process_whole():
    assert pickle.loads(pickle.dumps(table())) == table() != table().only(("x",))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (("math", "a", "t"), "none of expert 'math'"),
        (("a", "b", "tt"), r"none of task 'tt' \(did you mean 't'"),
        (("b", "a", "u"), "none of 'b' merged with 'a', in this order, on 'u'"),
    ],
)
def test_what_is_not_there_is_told(asked, words):
    with pytest.raises(InputError, match=words):
        table().of(*asked)


@pytest.mark.parametrize(
    ("names", "rows", "words"),
    [
        (("x", "x"), {}, "named twice: 'x'"),
        ((), {}, "at least one feature"),
        (("x", ""), {}, "a feature's name, got ''"),
        (("x",), {("a", "b", "t"): [1.0, 2.0]}, r"a \+ b \+ t: expected 1 numbers"),
        (("x",), {("a", "b", "t"): [math.inf]}, "infinite x"),
        (("x",), {("a", "a", "t"): [1.0]}, "one twice"),
        (("x",), {("a", "b"): [1.0]}, "two experts and a task"),
    ],
)
def test_what_is_no_table_is_refused(names, rows, words):
    with pytest.raises(InputError, match=words):
        FeatureTable(names, rows)


def test_a_table_reads_back_from_its_file_bit_for_bit(tmp_path):
    numbers = np.random.default_rng(0).normal(size=(6, 2)) * 10.0 ** np.arange(-3, 3)[:, None]
    rows = {(a, b, "t,1"): row for (a, b), row in zip(["ab", "ba", "ac", "ca", "bc", "cb"], numbers, strict=True)}
    features = table(rows=rows)
    write_csv(features, tmp_path / "features.csv")
    assert read_csv(tmp_path / "features.csv") == features
    assert list(frame(features).columns) == [*KEYS, "x", "y, z"]
    with pytest.raises(InputError, match="exists already"):
        write_csv(features, tmp_path / "features.csv")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("first,second,x\na,b,1\n", "expected the columns first, second, task"),
        ("first,second,task,x\na,b,t,one\n", "line 2, x: expected a finite number or nothing, got 'one'"),
        ("first,second,task,x\na,b,t,inf\n", "line 2, x"),
        ("first,second,task,x\na,b,t,1\na,b,t,1\n", "line 3: a . b . t is there twice"),
        ("first,second,task,x\na,b,t,1,2\n", "expected a CSV file of features"),
        ("first,second,task,x,y\na,b,t,,\nb,a,t,1\n", "line 3: expected 5 cells, as in the first line, got 4"),
        ("first,second,task,x\na,b,t,1\n\nb,a", "line 3: expected 4 cells, .*, got 0\n.*line 4: .*, got 2"),
        ("first,second,task\na,b,t\n", "at least one feature"),
        ("", "expected a CSV file of features"),
    ],
)
def test_a_file_that_is_no_table_is_told_where(tmp_path, text, words):
    (tmp_path / "features.csv").write_text(text)
    with pytest.raises(InputError, match=words) as told:
        read_csv(tmp_path / "features.csv")
    assert "features.csv" in str(told.value)


def test_a_table_is_joined_with_another_whose_features_differ():
    other = FeatureTable(("x", "w"), {("c", "d", "t"): [7.0, 8.0]})
    both = table().joined(other)
    assert both.names == ("x", "y, z", "w")
    assert np.array_equal(both.of("c", "d", "t"), [7.0, math.nan, 8.0], equal_nan=True)
    assert both.only(("x", "y, z"), experts="ab") == table()
    with pytest.raises(InputError, match="two rows, and they differ"):
        table().joined(FeatureTable(("x", "y, z"), {("a", "b", "t"): [0.0, math.nan]}))
    assert table().joined(table()) == table()


def test_experts_are_renamed():
    assert list(table().renamed({"a": "z"}).rows)[:2] == [("z", "b", "t"), ("b", "z", "t")]
    assert table().renamed({"a": "b", "b": "a"}).of("b", "a", "u").tolist() == [1e-300, 2.0]
    with pytest.raises(InputError, match="two experts would be named 'b'"):
        table().renamed({"a": "b"})


def test_it_is_said_what_to_install_where_pandas_is_absent(monkeypatch):
    usual = builtins.__import__

    def without(name, *arguments, **keywords):
        if name == "pandas":
            raise ImportError(name)
        return usual(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"needs pandas, which is not installed: pip install pandas"):
        read_csv(Path("features.csv"))
