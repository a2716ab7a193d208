"""Which form merging takes, by pretending: devices that are not here, and Tritons that are broken in every way."""

from __future__ import annotations

import subprocess
import sys
import types
from dataclasses import dataclass, field

import pytest
import torch

from sae_moo.materialization import forms
from sae_moo.materialization.forms import Form, form
from sae_moo.materialization.ops import fused

CARD = "NVIDIA H100 80GB HBM3"


@pytest.fixture(autouse=True)
def anew(monkeypatch):
    monkeypatch.delenv(forms.PLAIN, raising=False)
    forms._form.cache_clear()
    yield
    forms._form.cache_clear()


@dataclass
class Triton:
    """A `triton` to import, as far as it is asked."""

    error: Exception | None = None
    asked: list[str] = field(default_factory=list)

    def get_current_target(self):
        self.asked.append("target")
        if self.error is not None:
            raise self.error


@pytest.fixture
def triton(monkeypatch) -> Triton:
    found = Triton()
    driver = types.ModuleType("triton.runtime.driver")
    driver.driver = types.SimpleNamespace(active=found)
    package, runtime = types.ModuleType("triton"), types.ModuleType("triton.runtime")
    package.__path__ = runtime.__path__ = []
    for module in (package, runtime, driver):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return found


@pytest.fixture
def card(monkeypatch):
    """A CUDA device, of whatever compute capability the test says."""
    card = types.SimpleNamespace(capability=(9, 0))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: CARD)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: card.capability)
    monkeypatch.setattr(torch.version, "hip", None)
    return card


def test_a_card_with_a_triton_that_works_takes_fused_kernels(card, triton):
    assert form("cuda:0") == Form("triton", "cuda:0", f"fused Triton kernels on cuda:0 ({CARD})")
    assert form(torch.device("cuda")).device == "cuda:1", "the current one"
    assert triton.asked, "that it works is tried"
    card.capability = (7, 0)
    assert form("cuda:2").kind == "triton"


def test_a_form_is_looked_for_once(card, triton):
    assert form("cuda:0") is form("cuda:0")
    assert triton.asked == ["target"]


def refused(why: str) -> Form:
    return Form("torch", "cuda:0", f"plain torch on cuda:0 ({CARD}): {why}")


def test_rocm_is_plain_torch(card, triton, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert form("cuda:0") == refused("the fused kernels are not for ROCm")
    assert not triton.asked


def test_an_old_card_is_plain_torch(card, triton):
    card.capability = (6, 1)
    assert form("cuda:0") == refused("compute capability 6.1, Triton needs 7.0")
    assert not triton.asked


def test_who_wants_plain_torch_gets_it_on_a_card_and_can_change_their_mind(card, triton, monkeypatch):
    monkeypatch.setenv(forms.PLAIN, "1")
    assert form("cuda:0") == refused("SAE_MOO_PLAIN=1 is set")
    assert not triton.asked
    monkeypatch.setenv(forms.PLAIN, "0")
    assert form("cuda:0").kind == "triton"


def test_without_triton_it_is_plain_torch(card, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert form("cuda:0") == refused("triton is not installed")


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (RuntimeError("Failed to find C compiler.\nPlease"), "triton cannot be used: Failed to find C compiler."),
        (subprocess.CalledProcessError(1, ["gcc"]), "triton cannot compile its launcher: a C compiler and Python's headers are needed"),
        (AssertionError(), "triton cannot be used: AssertionError"),
    ],
)  # fmt: skip
def test_a_triton_that_does_not_work_is_plain_torch_and_says_why(card, triton, error, why):
    triton.error = error
    assert form("cuda:0") == refused(why)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("import no_such_module_of_triton", "triton cannot be used: No module named 'no_such_module_of_triton'"),
        ("raise ImportError('libcuda.so.1: cannot open\\nmore')", "triton cannot be used: libcuda.so.1: cannot open"),
        ("raise AttributeError('torch')", "triton cannot be used: torch"),
    ],
)
def test_a_triton_that_cannot_be_imported_is_plain_torch_and_says_why(card, monkeypatch, tmp_path, source, why):
    (tmp_path / "triton.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    assert form("cuda:0") == refused(why)


@pytest.mark.parametrize("device", ["mps", "xpu:0", "meta"])
def test_other_devices_are_plain_torch(triton, device):
    assert form(device) == Form("torch", device, f"plain torch on {device}: the fused kernels are for CUDA")
    assert not triton.asked


def test_the_cpu_takes_compiled_loops_where_numba_is_and_never_looks_for_triton(monkeypatch, triton):
    monkeypatch.setattr(fused, "available", lambda: True)
    assert form("cpu") == Form("numba", "cpu", "compiled loops (numba) on cpu")
    forms._form.cache_clear()
    monkeypatch.setattr(fused, "available", lambda: False)
    assert form("cpu") == Form("torch", "cpu", "plain torch on cpu: numba is not installed")
    assert not triton.asked


def test_triton_is_not_imported_for_the_cpu():
    code = "import sys; from sae_moo.materialization.forms import form; form('cpu'); assert 'triton' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
