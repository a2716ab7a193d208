"""Configurations with faults: what rules can still read of them, and that nothing breaks whatever stands there."""

from __future__ import annotations

import contextlib
import copy

import pytest

from sae_moo.config.document import Config
from sae_moo.config.drafts import draft
from sae_moo.errors import InputError

WHOLE = {
    "study": {"name": "x", "seed": 1, "storage": "sqlite:///x.db"},
    "models": {"base": "zoo:base", "experts": {"math": "zoo:math", "lingua": "zoo:lingua"}, "cache_gib": 1.0},
    "tasks": [
        {"name": "zoo_math", "search": 5, "test": 5},
        {"name": "mine", "data": "x.jsonl", "kind": "likelihood"},
        {"name": "arc_easy", "chat_template": True, "multiturn": True, "generation": {"max_gen_toks": 3}},
    ],
    "objectives": [{"mean": ["zoo_math", "mine"], "name": "accuracy"}, "arc_easy", "sparsity"],
    "constraints": {"sparsity": {"min": 0.1, "max": 0.9}},
    "space": {"kind": "coefficients", "sparsity": 0.5},
    "pruning": {"criterion": "wanda", "scope": "2:4", "rescale": True, "calibration": {"model": "math"}},
    "annealing": {"schedule": "cosine", "low": 0.1, "high": 0.5},
    "search": {"algorithm": "pso", "population": 8, "weights": {"accuracy": 1.0}, "pso": {"flavour": "pso-merging"}},
    "evaluation": {"racing": None, "anchors": 0.5, "generation": "transformers"},
}
COMPARED = {
    **{key: value for key, value in WHOLE.items() if key not in ("space", "search", "study")},
    "search": {"operators": {"tilt": 0.2}, "ablation": {"split": 0.1}, "pace": "steady-state"},
    "compare": {
        "methods": ["nsga2", {"name": "swarm", "search": {"algorithm": "pso"}, "annealing": {"high": 0.5}}],
        "reference": "nsga2",
        "thresholds": [0.1],
    },
}
WRONG = [None, True, 3, -1, 10**30, 0.5, float("nan"), "x", "", "a/b", [], [1, [2]], {}, {"a": {"b": 1}}, {1: 2}]


def places(value, key=()):
    yield key
    for inner in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[inner], (*key, inner))


@pytest.mark.parametrize("whole", [WHOLE, COMPARED], ids=["searched", "compared"])
def test_whatever_stands_anywhere_is_read_or_refused(whole, tmp_path):
    Config.from_dict(whole, tmp_path)
    for key in list(places(whole))[1:]:
        for wrong in WRONG:
            changed = copy.deepcopy(whole)
            target = changed
            for part in key[:-1]:
                target = target[part]
            target[key[-1]] = wrong
            with contextlib.suppress(InputError):
                Config._checked(changed, {}, "c.yaml", [], tmp_path)


def test_a_draft_has_what_can_be_read_and_defaults_and_none_for_the_rest():
    raw = copy.deepcopy(WHOLE)
    raw["search"] |= {"population": "many", "pso": {"inertia": "x", "own": 0.7}, "weights": {"accuracy": "x", "b": 1.0}}
    raw["models"]["experts"]["math"] = 3
    raw["tasks"][1] = 5
    raw["objectives"][0]["mean"] = "zoo_math"
    read = draft(Config, raw)
    assert (read.search.population, read.search.evaluations) == (None, 400)
    assert (read.search.pso.inertia, read.search.pso.own, read.search.pso.swarm) == (None, 0.7, 0.3)
    assert read.search.pso.unread == {"inertia"}
    assert read.search.weights == {"b": 1.0}
    assert read.models.experts == {"lingua": "zoo:lingua"}
    assert [task.name for task in read.tasks] == ["zoo_math", None, "arc_easy"]
    assert [getattr(entry, "name", entry) for entry in read.objectives] == ["accuracy", "arc_easy", "sparsity"]
    assert read.objectives[0].mean is None
    assert draft(Config, {}).tasks == []
    assert draft(Config, WHOLE).model_dump() == Config.from_dict(WHOLE).model_dump()
