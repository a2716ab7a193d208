"""Every method that mergekit has too, tensor by tensor against mergekit itself, where it can be run.

Set SAE_MOO_ORACLE to a Python that has mergekit 0.1.5 (a virtual environment of its own: its pins clash with ours).
Random methods are compared with nothing dropped and by their rescaling only, since mergekit's masks have no seed.
"""

from __future__ import annotations

import json
import os
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_merge import inputs_of

from sae_moo.testing import experts, merged

PYTHON = os.environ.get("SAE_MOO_ORACLE")

pytestmark = pytest.mark.skipif(PYTHON is None, reason="no mergekit: set SAE_MOO_ORACLE to a Python that has it")

# method, our settings, mergekit's settings (per input: lists), base given to mergekit
CASES = [
    ("linear", {}, {}, False),
    ("linear", {"normalize": False}, {"normalize": False}, False),
    ("nuslerp", {}, {}, False),
    ("nuslerp", {"relative": True}, {}, True),
    ("multislerp", {}, {}, False),
    ("multislerp", {"relative": True}, {}, True),
    ("karcher", {}, {}, False),
    ("karcher", {"max_iter": 2}, {"max_iter": 2}, False),
    ("model_stock", {}, {}, True),
    ("task_arithmetic", {"scale": 0.7}, {"lambda": 0.7}, True),
    ("task_arithmetic", {"normalize": True}, {"normalize": True}, True),
    ("ties", {"density": 0.5}, {"density": 0.5}, True),
    ("ties", {"density": (0.2, 0.5, 0.9)}, {"density": [0.2, 0.5, 0.9]}, True),
    (
        "ties",
        {"density": 0.01, "normalize": False, "scale": 1.4},
        {"density": 0.01, "normalize": False, "lambda": 1.4},
        True,
    ),
    ("ties", {"density": 0.3, "rescale": "l1"}, {"density": 0.3, "rescale": True}, True),
    ("dare_linear", {}, {}, True),
    ("dare_ties", {}, {}, True),
    ("della", {}, {}, True),
    ("della_linear", {}, {}, True),
    ("breadcrumbs", {"density": 0.5, "gamma": 0.05}, {"density": 0.5, "gamma": 0.05}, True),
    ("breadcrumbs", {"density": 0.95, "gamma": 0.2}, {"density": 0.95, "gamma": 0.2}, True),
    ("breadcrumbs_ties", {"density": 0.4}, {"density": 0.4}, True),
    ("sce", {}, {}, True),
    ("sce", {"select_topk": 0.3}, {"select_topk": 0.3}, True),
    ("arcee_fusion", {}, {}, True),
    ("nearswap", {"t": 0.1}, {"t": 0.1}, True),
    ("ram", {}, {}, True),
    ("ram", {"epsilon": 0.5}, {"epsilon": 0.5}, True),
    ("ramplus_tl", {"epsilon": 0.5, "r": 0.4}, {"epsilon": 0.5, "r": 0.4}, True),
    ("slerp", {}, {}, True),
]
UNWEIGHTED = ("karcher", "model_stock", "sce", "arcee_fusion", "nearswap", "ram", "ramplus_tl")
SIZES = [(64,), (1, 64), (40, 33)]

SCRIPT = """
import json, sys
import torch
from safetensors.torch import load_file, save_file
from mergekit.merge_methods import merge_tensors
data, out = load_file(sys.argv[1] + "/in.safetensors"), {}
for case in json.load(open(sys.argv[1] + "/cases.json")):
    tensors = [data[name] for name in case["tensors"]]
    call = {"base_index": 0} if case["base"] else {}
    out[case["name"]] = merge_tensors(tensors, case["method"], parameters=case["parameters"], **call).contiguous()
save_file(out, sys.argv[1] + "/out.safetensors")
"""


def prepared(size, number):
    method, ours, theirs, with_base = CASES[number]
    base, *xs = experts(inputs_of(method), size, seed=number)
    weights = [1.0] * len(xs) if method in UNWEIGHTED else [0.5, 0.3, 0.9][: len(xs)]
    if method == "slerp":  # mergekit's runs from the base to one other model
        xs = [base, xs[0]]
        weights = [0.7, 0.3]
    return method, ours, dict(theirs), with_base, base, xs, weights


@pytest.fixture(scope="session")
def oracle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("oracle")
    data, cases = {}, []
    for size in SIZES:
        for number in range(len(CASES)):
            method, _, theirs, with_base, base, xs, weights = prepared(size, number)
            name = f"{number}-{'x'.join(map(str, size))}"
            ordered = xs if method == "slerp" else ([base] if with_base else []) + xs
            for i, tensor in enumerate(ordered):
                data[f"{name}.{i}"] = tensor.clone()
            if method == "slerp":
                theirs["t"] = weights[1]
            elif method not in UNWEIGHTED:
                theirs["weight"] = weights
            cases.append(
                {"name": name, "method": method, "tensors": [f"{name}.{i}" for i in range(len(ordered))],
                 "parameters": theirs, "base": with_base}
            )  # fmt: skip
    save_file(data, folder / "in.safetensors")
    (folder / "cases.json").write_text(json.dumps(cases))
    subprocess.run([PYTHON, "-c", SCRIPT, str(folder)], check=True)
    return load_file(folder / "out.safetensors")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda n: f"{n}-{CASES[n][0]}")
def test_agrees_with_mergekit(oracle, size, number):
    method, ours, _, _, base, xs, weights = prepared(size, number)
    result = merged(method, xs, weights, base, **ours)
    theirs = oracle[f"{number}-{'x'.join(map(str, size))}"]
    torch.testing.assert_close(result, theirs, rtol=1e-5, atol=1e-6)
