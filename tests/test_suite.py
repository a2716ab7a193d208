"""The suite's own arrangements (`conftest`), by which it passes on other machines: what is hidden, what is passed over."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from harness_oracle import FILES, whole

from sae_moo.jobs.bench import resolve_device


@pytest.fixture(scope="module")
def chosen_before_the_test() -> str:
    return resolve_device("auto")


def test_a_test_its_fixtures_and_its_processes_see_no_gpu(chosen_before_the_test):
    assert chosen_before_the_test == resolve_device("auto") == "cpu"
    assert torch.cuda.device_count() == 0
    asked = "import os; print(repr(os.environ['CUDA_VISIBLE_DEVICES']))"
    assert subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout == "''\n"


def test_a_test_that_is_marked_sees_the_gpu_and_the_next_one_does_not(pytestconfig):
    file = str(Path(__file__).with_name("conftest.py"))
    (suite,) = [each for each in pytestconfig.pluginmanager.get_plugins() if getattr(each, "__file__", None) == file]
    suite._NO_GPU.undo()
    with pytest.MonkeyPatch.context() as pretended:
        pretended.setattr(torch.cuda, "is_available", lambda: True)
        pretended.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        for marked, seen in ((False, "cpu"), (True, "cuda"), (False, "cpu")):
            suite.pytest_runtest_setup(SimpleNamespace(get_closest_marker=lambda name, marked=marked: marked or None))
            assert resolve_device("auto") == seen
            assert ("CUDA_VISIBLE_DEVICES" in os.environ) is not marked
        suite._NO_GPU.undo()


@pytest.mark.parametrize("left_out", [1, len(FILES)])
@pytest.mark.parametrize("otherwise", [pytest.skip, pytest.fail])
def test_benchmark_data_that_is_not_all_there_is_not_there(tmp_path, otherwise, left_out):
    absent, present = list(FILES.values())[:left_out], list(FILES.values())[left_out:]
    for name in present:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(
        otherwise.Exception, match=rf"{left_out} of {len(FILES)} files are not there, {absent[0]} first"
    ):
        whole(tmp_path, otherwise)
    for name in absent:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert whole(tmp_path, otherwise) == tmp_path
