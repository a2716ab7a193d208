"""Predictors as files: plain JSON of what they were learned from, which is learned anew when it is read.

Nothing in a file is run. Regressions and penalties are chosen and fitted by the same rules, so that the same releases
of the libraries that compute them predict the same numbers, bit for bit, on one machine.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sae_moo.errors import InputError
from sae_moo.files.json_text import read_json
from sae_moo.files.whole import whole_file
from sae_moo.prediction.estimators import release
from sae_moo.prediction.observations import Observation
from sae_moo.prediction.predictor import Predictor
from sae_moo.prediction.table import FeatureTable, Key, Numbers
from sae_moo.recipe.operators import Operator, OperatorSection
from sae_moo.recipe.section import ValidationError

log = logging.getLogger(__name__)

FORMAT = "sae-moo predictor"
VERSION = 2
"""Of the file; raised when the same file would be read otherwise, or the same training would choose otherwise."""


def save(predictor: Predictor, path: Path, replace: bool = False) -> None:
    """Write what a predictor was learned from, whole or not at all.

    Which experts it is asked about (`Predictor.on`) is not written: those it was learned from are.

    Args:
        predictor: the predictor.
        path: a new file.
        replace: whether a file that is there is replaced.

    Raises:
        InputError: if the file is taken or cannot be written.
        StorageError: if there is no room.
    """
    training = predictor.training
    document = {
        "format": FORMAT,
        "version": VERSION,
        "releases": _releases(),
        "confidence": training.confidence,
        "fingerprints": dict(training.fingerprints),
        "probes": dict(training.probes),
        "tasks": dict(training.tasks),
        "models": [model.name for model in training.models],
        "operators": [
            {
                "name": operator.name,
                "method": operator.method,
                "weights": list(operator.weights),
                "settings": dict(operator.settings),
            }
            for operator in training.operators
        ],
        "features": list(training.table.names),
        "rows": [
            [*key, [None if math.isnan(number) else number for number in row.tolist()]]
            for key, row in training.table.rows.items()
        ],
        "observations": [
            [list(each.operators), list(each.experts), each.task, each.score, each.instances]
            for each in training.observations
        ],
    }
    with whole_file(path, replace=replace) as partial:
        partial.write_text(json.dumps(document, allow_nan=False) + "\n", encoding="utf-8")


def load(path: Path) -> Predictor:
    """Read what `save` wrote; logs a warning if other releases compute now than did then.

    Raises:
        InputError: naming the file and what is wrong with it: another version, a field that lacks, that nobody knows or
            that holds something else; or if scikit-learn is not installed.
    """
    document = read_json(path, "a predictor")
    if document.get("format") != FORMAT:
        raise InputError(f"{path}: expected a predictor, got a file without format: {FORMAT!r}")
    if document.get("version") != VERSION:
        raise InputError(f"{path}: expected a predictor of version {VERSION}, got {document.get('version')!r}")
    lacking = [name for name in _FIELDS if name not in document]
    unknown = [name for name in document if name not in (*_FIELDS, "format", "version")]
    if lacking or unknown:
        words = [f"lacks {name}" for name in lacking] + [f"has an unknown field {name!r}" for name in unknown]
        raise InputError(f"{path}: expected a predictor of version {VERSION}; this one {', '.join(words)}")
    fields: dict[str, Any] = {}
    for name, read in _FIELDS.items():
        try:
            fields[name] = read(document[name])
        except (ValueError, TypeError, KeyError, AttributeError) as error:  # an InputError is a ValueError
            raise InputError(f"{path}: {name}: {str(error).splitlines()[0]}") from error
    try:
        predictor = Predictor.learn(
            FeatureTable(fields["features"], fields["rows"]),
            fields["observations"],
            fields["operators"],
            models=fields["models"],
            confidence=fields["confidence"],
            fingerprints=fields["fingerprints"],
            probes=fields["probes"],
            tasks=fields["tasks"],
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    changed = [f"{name} {was}, now {_releases().get(name)}" for name, was in fields["releases"].items()]
    if fields["releases"] != _releases():
        log.warning(
            "%s: predictions may differ in their last digits from when it was saved: %s", path, "; ".join(changed)
        )
    return predictor


def _releases() -> dict[str, str]:
    return {"scikit-learn": release(), "numpy": np.__version__}


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError("expected a list of names")
    return tuple(value)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"expected a number, got {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError("expected a number that a float holds, got an integer of too many digits") from None


def _rows(value: object) -> dict[Key, Numbers]:
    rows: dict[Key, Numbers] = {}
    for first, second, task, numbers in _list(value):
        key = (*_texts([first, second, task]),)
        if key in rows:
            raise ValueError(f"{' + '.join(key)} is there twice")
        rows[key[0], key[1], key[2]] = np.array(
            [math.nan if each is None else _number(each) for each in _list(numbers)]
        )
    return rows


def _observations(value: object) -> list[Observation]:
    observations = []
    for operators, experts, task, score, instances in _list(value):
        if isinstance(instances, bool) or not isinstance(instances, int):
            raise ValueError(f"expected a number of instances, got {instances!r}")
        (name,) = _texts([task])
        observations.append(Observation(_texts(operators), _texts(experts), name, _number(score), instances))
    return observations


def _operators(value: object) -> list[Operator]:
    operators: list[Operator] = []
    for number, each in enumerate(_list(value)):
        try:
            operator = OperatorSection.model_validate(each).operator
        except ValidationError as error:
            fault = error.errors()[0]
            where = "".join(f".{part}" for part in fault["loc"])
            raise ValueError(f"[{number}]{where}: {fault['msg'].removeprefix('Value error, ')}") from error
        if operator.name in {other.name for other in operators}:
            raise ValueError(f"expected every operator once, got {operator.name!r} twice")
        operators.append(operator)
    return operators


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"expected a list, got {type(value).__name__}")
    return value


def _named_texts(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError(f"expected a text for each name, got {type(value).__name__}")
    for name, text in value.items():
        if not isinstance(text, str):
            raise ValueError(f"expected a text for each name, got {text!r} for {name!r}")
    return dict(value)


_FIELDS: Mapping[str, Callable[[object], Any]] = {
    "releases": _named_texts,
    "confidence": _number,
    "fingerprints": _named_texts,
    "probes": _named_texts,
    "tasks": _named_texts,
    "models": _texts,
    "operators": _operators,
    "features": _texts,
    "rows": _rows,
    "observations": _observations,
}
"""Field -> what reads it."""
