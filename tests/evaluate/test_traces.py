"""Traces: what a forward pass leaves, how much of it, kept whole or not at all."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_moo.errors import InputError
from sae_moo.evaluate import screening, traces
from sae_moo.evaluate.probes import Probes
from sae_moo.evaluate.traces import Extent, Plan, Traces, traced
from sae_moo.experts.pool import ExpertPool
from sae_moo.files import user_cache
from sae_moo.materialization.into_model import materialize
from sae_moo.recipe import Expert

PROBES = Probes("t", ((1, 5, 7, 9), (2, 6, 8), (1, 5, 7, 2), (11, 12, 13, 14, 15, 16)))
LAID_OUT = ((2, 6, 8), (1, 5, 7, 9), (1, 5, 7, 2), (11, 12, 13, 14, 15, 16))


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "sae_moo" / "traces"


@pytest.fixture
def model(tiny, tiny_model):
    materialize(Expert("math"), tiny, tiny_model)
    return tiny_model


def trace(model, most=1 << 20):
    return traced(model, PROBES, Plan.of(Extent.of(model), PROBES, most))


@torch.inference_mode()
def test_a_trace_holds_what_the_model_says_of_each_text(model):
    found = trace(model)
    logs = [model(torch.tensor([each])).logits[0].log_softmax(-1) for each in LAID_OUT]
    whole = torch.cat(logs)
    torch.testing.assert_close(found["log_probabilities"], whole, rtol=1e-4, atol=1e-5)
    assert found["argmax"].tolist() == whole.argmax(-1).tolist()
    torch.testing.assert_close(found["entropy"], -(whole.exp() * whole).sum(-1), rtol=1e-4, atol=1e-5)
    following = [
        float(rows[i, each[i + 1]]) for rows, each in zip(logs, LAID_OUT, strict=True) for i in range(len(each) - 1)
    ]
    assert found["log_likelihood"].tolist() == pytest.approx(following, abs=1e-5)
    states = [model(torch.tensor([each]), output_hidden_states=True).hidden_states[1:] for each in LAID_OUT]
    for layer in range(2):
        torch.testing.assert_close(
            found["hidden"][layer], torch.cat([each[layer][0] for each in states]), rtol=1e-4, atol=1e-5
        )


@torch.inference_mode()
def test_patterns_are_those_of_eager_attention_and_the_model_keeps_its_own(model):
    assert model.config._attn_implementation == "sdpa"
    assert not model(torch.tensor([[1, 2]]), output_attentions=True).attentions, "or the pass of its own can go"
    found = trace(model)
    assert model.config._attn_implementation == "sdpa"
    patterns = [found[f"attention.{i}"] for i in range(3)]
    assert [tuple(each.shape) for each in patterns] == [(2, 1, 2, 3, 3), (2, 2, 2, 4, 4), (2, 1, 2, 6, 6)]
    for each in patterns:
        assert torch.allclose(each.float().sum(-1), torch.ones(()), atol=1e-3)
        assert not each.triu(1).any()


def test_parts_change_nothing_and_a_plan_takes_the_bytes_that_it_says(model, monkeypatch):
    whole = trace(model)
    monkeypatch.setattr(screening, "PASS_BYTES", 1)
    monkeypatch.setattr(traces, "PART_BYTES", 1)
    alone = trace(model)
    for name, numbers in whole.items():
        if not name.startswith("attention"):
            torch.testing.assert_close(alone[name], numbers, rtol=1e-4, atol=1e-5)
    extent = Extent.of(model)
    assert extent == Extent(512, 2, 16, 4)
    for most in (1 << 20, 40_000, 20_000, 9000, 3000, 1):
        plan = Plan.of(extent, PROBES, most)
        found = traced(model, PROBES, plan)
        assert plan.places == {9000: 8, 3000: 2, 1: 1}.get(most, 17)
        places = plan.chosen(17)
        assert places.tolist() == sorted(set(places.tolist())) == plan.chosen(17).tolist()
        assert found["log_probabilities"].dtype == (torch.float32 if most >= 1 << 17 else torch.float16)
        assert found["hidden"].dtype == (torch.float32 if most >= 1 << 17 else torch.bfloat16)
        kept = {
            "log_probabilities": whole["log_probabilities"][places],
            "hidden": whole["hidden"][:, places],
        }
        for name, numbers in kept.items():
            torch.testing.assert_close(found[name].float(), numbers, rtol=1e-2, atol=1e-2)
        for name in ("argmax", "entropy", "log_likelihood"):
            torch.testing.assert_close(found[name], alone[name], rtol=1e-4, atol=1e-5)
        size = sum(each.nbytes for each in found.values())
        assert size <= plan.nbytes
        assert plan.nbytes <= most + 12 * 17 or plan.places == 1


def test_attention_gets_a_quarter_of_the_trace_at_most_and_whole_beginnings_or_none():
    long = Probes("t", ((1,) * 100,) * 40)
    for heads, attended in ((0, 0), (20, 768), (270, 768), (2000, 131), (20_000, 0)):
        assert Plan.of(Extent(10, 0, 0, heads), long, 1 << 27).attended == attended
    assert [len(each) for each in traces._beginnings(long.sequences, 163)] == [64, 64, 35]
    assert [len(each) for each in traces._beginnings(((1, 2, 3), (4, 5)), 4)] == [3]


def test_models_without_attention_or_hidden_states_that_fit_have_none_in_their_traces():
    from transformers import AutoModelForCausalLM, JambaConfig, MambaConfig

    small = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3}
    mamba = AutoModelForCausalLM.from_config(MambaConfig(**small)).eval()
    assert Extent.of(mamba) == Extent(50, 3, 16, 0)
    assert sorted(trace(mamba)) == ["argmax", "entropy", "hidden", "log_likelihood", "log_probabilities"]
    jamba = JambaConfig(
        **small,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
        attn_layer_period=2,
        attn_layer_offset=1,
        num_experts=2,
        mamba_dt_rank=4,
    )
    hybrid = AutoModelForCausalLM.from_config(jamba).eval()
    assert Extent.of(hybrid).heads == 2, "of the one layer that has it"
    assert trace(hybrid)["attention.0"].shape[0] == 1


def test_a_trace_is_made_once_on_a_machine_and_mapped_afterwards(tiny, empty, monkeypatch):
    first = Traces(tiny, [PROBES], "float32", "cpu")
    first.make({"t": ["math", "code"]})
    assert first.tokens == 2 * (17 + 17)
    monkeypatch.setattr(tiny, "live_model", None, raising=False)  # asked again, it would raise
    again = Traces(tiny, [PROBES], "float32", "cpu")
    again.make({"t": ["code", "math"]})
    assert again.tokens == 0
    made = first.of(["math"], "t")["math"]
    for name, numbers in again.of(["math"], "t")["math"].items():
        assert torch.equal(made[name], numbers)
    assert len(list(empty.iterdir())) == 2, "nothing half written"


@pytest.mark.parametrize("damage", ["cut short", "a bit", "no digest", "other tensors", "empty"])
def test_a_damaged_trace_is_made_anew(tiny, empty, damage):
    first = Traces(tiny, [PROBES], "float32", "cpu")
    first.make({"t": ["math"]})
    wanted = {name: each.clone() for name, each in first.of(["math"], "t")["math"].items()}
    (path,) = empty.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "cut short":
        content = content[:-100]
    elif damage == "a bit":
        content[-5] ^= 1
    elif damage == "empty":
        content = bytearray()
    path.unlink()
    path.write_bytes(bytes(content))
    if damage in ("no digest", "other tensors"):
        tensors = load_file(path)
        tensors["entropy"] = tensors["entropy"] + 1
        path.unlink()
        save_file(tensors, path, metadata={"digest": "0" * 64} if damage == "other tensors" else None)
    again = Traces(tiny, [PROBES], "float32", "cpu")
    again.make({"t": ["math"]})
    assert again.tokens > 0
    found = again.of(["math"], "t")["math"]
    assert all(torch.equal(found[name], each) for name, each in wanted.items())


def test_where_nothing_can_be_kept_traces_are_held(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    found = Traces(tiny, [PROBES], "float32", "cpu")
    found.make({"t": ["math"]})
    assert found.of(["math"], "t")["math"]["argmax"].shape == (17,)


def test_a_trace_is_of_the_expert_the_texts_and_the_machine(tiny, tiny_folders, monkeypatch):
    names = {Traces(tiny, [PROBES], "float32", "cpu").name(name, "t") for name in ("math", "code", "base")}
    names.add(Traces(tiny, [PROBES], "bfloat16", "cpu").name("math", "t"))
    names.add(Traces(tiny, [Probes("t", ((1, 2),))], "float32", "cpu").name("math", "t"))
    names.add(Traces(tiny, [PROBES, Probes("u", ((1, 2),))], "float32", "cpu").name("math", "t"))  # a smaller trace
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    names.add(Traces(tiny, [PROBES], "float32", "cpu").name("math", "t"))
    monkeypatch.undo()
    assert len(names) == 7
    again = ExpertPool.open(str(tiny_folders["base"]), {"renamed": str(tiny_folders["math"])})
    assert Traces(again, [PROBES], "float32", "cpu").name("renamed", "t") in names


def test_what_cannot_be_read_is_said(tiny, empty, monkeypatch):
    found = Traces(tiny, [Probes("t", ((1, 10_000),))], "float32", "cpu")
    with pytest.raises(InputError, match="expected token ids below 512, got 10000"):
        found.make({"t": ["math"]})
    broken = traces._read

    def read(model, batch):
        given = broken(model, batch)
        given.logits[0, 0, 0] = float("nan")
        return given

    monkeypatch.setattr(traces, "_read", read)
    with pytest.raises(InputError, match="math: logits are not finite on the probes of t"):
        Traces(tiny, [PROBES], "float32", "cpu").make({"t": ["math"]})
    assert user_cache.kept("traces", "anything") is None
