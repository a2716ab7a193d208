from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from mixture_kinds import opened
from random_pools import made_once
from stand_ins import NAMES, Landscape

from sae_moo import zoo
from sae_moo.experts.pool import ExpertPool

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# models are tiny: a second thread waits for the first, and on a busy machine both wait for the processor
torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))
if not torch.cuda.is_available():
    # kernels for a GPU are interpreted: read when triton is imported, by whatever library is the first to do so
    os.environ["TRITON_INTERPRET"] = "1"

_NO_GPU = pytest.MonkeyPatch()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Open the GPU, where a test is marked ``gpu`` and there is one: what is open stays, whatever is hidden later."""
    if any(item.get_closest_marker("gpu") for item in session.items) and torch.cuda.is_available():
        torch.cuda.init()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Hide GPUs from a test and the processes it starts, unless it is marked ``gpu``.

    Tests hold the bits and counts of CPUs, and ``device: auto`` takes a GPU where it sees one. This comes before
    fixtures, of modules and of the session too.
    """
    _NO_GPU.undo()
    if item.get_closest_marker("gpu") is None:
        _NO_GPU.setenv("CUDA_VISIBLE_DEVICES", "")
        _NO_GPU.setattr(torch.cuda, "is_available", lambda: False)
        _NO_GPU.setattr(torch.cuda, "device_count", lambda: 0)


def pytest_unconfigure() -> None:
    _NO_GPU.undo()


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="torch finds no CUDA device here"))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Keep remembered fingerprints out of the user's cache folder."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(scope="session")
def mixtures(tmp_path_factory):
    """Return a function: model type of a mixture of experts -> pool of a base and the expert ``math``, made once."""
    return made_once(tmp_path_factory, opened)


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory) -> dict[str, Path]:
    """A base and three experts of random weights, Llama layout, tied, float32, with the zoo's tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    root = tmp_path_factory.mktemp("tiny")
    tokenizer = AutoTokenizer.from_pretrained(zoo.checkpoint("base"))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=128,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folders = {}
    for name in NAMES:
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                moved = torch.randn_like(parameter) * 0.05 if name != "base" else torch.zeros_like(parameter)
                parameter.copy_(start[key] + moved)
        folders[name] = root / name
        model.save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="session")
def tiny(tiny_folders) -> ExpertPool:
    experts = {name: str(path) for name, path in tiny_folders.items() if name != "base"}
    return ExpertPool.open(str(tiny_folders["base"]), experts)


@pytest.fixture(scope="session")
def tiny_model(tiny):
    """One live model for the session: every test materializes into it before it looks."""
    return tiny.live_model()


@pytest.fixture(scope="session")
def data() -> Path:
    """Real benchmark data beside the checkout, where all of it is there; where ``SAE_MOO_TEST_DATA`` says, it must be."""
    from harness_oracle import whole

    named = os.environ.get("SAE_MOO_TEST_DATA")
    return whole(Path(named or Path(__file__).parents[2] / "shared" / "data"), pytest.fail if named else pytest.skip)


@pytest.fixture
def landscape() -> Landscape:
    return Landscape()


@pytest.fixture
def fresh_process():
    """Have exports verified in a process of its own, as they are for users; see `verified_here`."""


@pytest.fixture
def verified_here(request, monkeypatch):
    """Verify exports in this process, which is seconds faster, and time them in as few rounds as there can be.

    What verifying opens and reads is the same; that a fresh process can is for the tests that ask for one.
    """
    from sae_moo.deploy import pace
    from sae_moo.jobs import verify

    if "fresh_process" not in request.fixturenames:
        monkeypatch.setattr(verify, "_answered_apart", lambda asked: verify.answer_to(asked).encode())
    monkeypatch.setattr(pace, "ROUNDS", (1, 1))
