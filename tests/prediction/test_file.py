"""Predictors as files: they read back, and what is none is told."""

from __future__ import annotations

import json
import logging
import math

import numpy as np
import pytest
from made_up import NAMES, OPERATORS, TASKS, catalogue

from sae_moo.errors import InputError
from sae_moo.prediction.file import load, save
from sae_moo.prediction.predictor import Predictor
from sae_moo.prediction.table import FeatureTable


@pytest.fixture(scope="module")
def predictor():
    table, observations, _ = catalogue(5, noise=0.03, law="own")
    rows = {key: np.where(["e1" in key, False, False], math.nan, row) for key, row in table.rows.items()}
    told = {"models": ("features", "features and own scores"), "probes": {"items": "4"}, "tasks": {"kind": "choice"}}
    return Predictor.learn(FeatureTable(NAMES, rows), observations, OPERATORS, confidence=0.8, **told)


@pytest.fixture
def file(predictor, tmp_path):
    save(predictor, tmp_path / "predictor.json")
    return tmp_path / "predictor.json"


def test_a_predictor_that_is_read_predicts_the_same_bit_for_bit(predictor, file, caplog):
    read = load(file)
    asked = [((name,), pair, task) for name in ("linear", "linear-0.7") for pair in read.table.pairs for task in TASKS]
    assert read.chains(asked) == predictor.chains(asked)
    assert read.predict("linear", "e1", "e2", "sums") == predictor.predict("linear", "e1", "e2", "sums")
    assert (read.training.probes, read.training.tasks) == ({"items": "4"}, {"kind": "choice"})
    assert not caplog.records
    save(read, file.with_name("again.json"))
    assert file.with_name("again.json").read_text() == file.read_text()
    with pytest.raises(InputError, match="exists already"):
        save(read, file)


def test_that_other_releases_compute_now_is_told(file, caplog):
    document = json.loads(file.read_text())
    document["releases"]["scikit-learn"] = "1.0"
    file.write_text(json.dumps(document))
    with caplog.at_level(logging.WARNING):
        load(file)
    assert "predictions may differ in their last digits" in caplog.text
    assert "scikit-learn 1.0, now " in caplog.text


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("format", "other", "expected a predictor, got a file without format"),
        ("version", 1, "expected a predictor of version 2, got 1"),
        ("version", None, "expected a predictor of version 2, got None"),
        ("models", ["oracle"], "no regression 'oracle'"),
        ("models", "features", "models: expected a list of names"),
        ("confidence", "high", "confidence: expected a number, got 'high'"),
        ("confidence", True, "confidence: expected a number, got True"),
        ("confidence", 3, r"expected a number in \(0, 1\)"),
        ("operators", [{"name": "linear", "method": "linnear"}], r"operators: \[0\].method: .*'linnear'"),
        ("operators", ["linear", "linear"], "operators: expected every operator once, got 'linear' twice"),
        ("fingerprints", {"base": 3}, "fingerprints: expected a text for each name, got 3 for 'base'"),
        ("confidence", 10**400, "confidence: expected a number that a float holds"),
        ("operators", [], "none by an operator asked for"),
        ("features", ["x"], "expected 1 numbers"),
        ("rows", [["e0", "e1", "sums", [1.0, "x", 2.0]]], "rows: expected a number, got 'x'"),
        ("rows", [["e0", "e1", "sums"]], "rows: "),
        ("rows", {}, "rows: expected a list, got dict"),
        (
            "observations",
            [[["linear"], ["e0", "e1"], "sums", 2.0, 50]],
            r"observations: .* a score in \[0, 1\], got 2.0",
        ),
        (
            "observations",
            [[["linear"], ["e0", "e1"], "sums", 0.5, 50.5]],
            "observations: expected a number of instances",
        ),
        ("colour", "red", "this one has an unknown field 'colour'"),
        ("releases", ["1.0"], "releases: expected a text for each name, got list"),
    ],
)
def test_a_file_with_a_wrong_field_is_refused(file, field, value, words):
    document = json.loads(file.read_text()) | {field: value}
    file.write_text(json.dumps(document))
    with pytest.raises(InputError, match=words) as told:
        load(file)
    assert str(file) in str(told.value)


def test_a_file_that_lacks_something_is_refused(file):
    document = json.loads(file.read_text())
    del document["rows"]
    file.write_text(json.dumps(document))
    with pytest.raises(InputError, match="this one lacks rows"):
        load(file)
    file.write_text("predictor")
    with pytest.raises(InputError, match="expected a predictor: not JSON"):
        load(file)
    with pytest.raises(InputError, match=r"none\.json: expected a predictor, there is no such file"):
        load(file.with_name("none.json"))
