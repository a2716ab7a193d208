"""Ray's keys of a configuration, folders of models, and workers in another setting; none of it needs Ray."""

from __future__ import annotations

from dataclasses import replace

import pytest

import sae_moo as sm
from sae_moo.files.places import rooted
from sae_moo.jobs.worker import Assigned

RAW = {
    "study": {"name": "shared"},
    "models": {"base": "zoo:base", "experts": {"math": "zoo:math"}},
    "tasks": [{"name": "zoo_math", "search": 4, "test": 4}],
    "objectives": ["zoo_math", "sparsity"],
}


def configured(executor, **models):
    return sm.Config.from_dict({**RAW, "models": {**RAW["models"], **models}, "executor": executor})


@pytest.mark.parametrize(
    ("executor", "models", "fault"),
    [
        ({"kind": "processes", "address": "auto"}, {}, "it is for kind: ray, got kind: processes"),
        ({"kind": "ray", "address": "auto"}, {}, "a cluster that runs already has its own size"),
        ({"kind": "ray", "address": "ray://node:1", "workers": 2}, {}, "address"),
        ({"kind": "ray", "gpus_per_worker": 1.5}, {}, "expected a whole number of GPUs, or a share of one, got 1.5"),
        ({"kind": "ray"}, {"device": "cuda:1"}, "a worker of Ray is given its GPUs"),
    ],
)
def test_what_does_not_fit_a_cluster(executor, models, fault):
    with pytest.raises(sm.InputError, match=fault):
        configured(executor, **models)


def test_where_models_lie_and_who_evaluates_bind_no_study():
    ray = configured({"kind": "ray", "address": "node:6379", "workers": 3, "gpus_per_worker": 0.5}, roots=["a", "b"])
    assert ray.identity() == configured({}).identity()


def test_the_first_folder_that_has_a_model_is_taken(tmp_path):
    for place in ("two/m", "one/other", "three/m"):
        (tmp_path / place).mkdir(parents=True)
    roots = ["one", str(tmp_path / "two"), "three"]
    assert rooted("m", roots, tmp_path) == str(tmp_path / "two" / "m")
    for given in ("nowhere", "zoo:base", str(tmp_path / "m"), "~/m"):
        assert rooted(given, roots, tmp_path) == given


@pytest.mark.parametrize("name", ["device", "versions"])
def test_a_worker_with_another_device_or_other_versions_refuses(name):
    assigned = Assigned(configured({}), {}, {}, sharing=0)
    with pytest.raises(sm.InputError, match=f"{name}: .* instead of another"):
        replace(assigned, setting={name: "another"})()
