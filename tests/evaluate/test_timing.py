"""Measuring what a token costs: which models, how large, once."""

from __future__ import annotations

import pytest
import torch

from sae_moo.errors import InputError
from sae_moo.evaluate import timing
from sae_moo.evaluate.timing import cost_table
from sae_moo.experts.pool import ExpertPool


@pytest.fixture
def seen(monkeypatch, tmp_path):
    """Models that are timed, by what they are; nothing depends on how fast this machine is."""
    models, make = {}, timing.forward

    def taken(model, mode, batch, length):
        ready = make(model, mode, batch, length)
        with torch.inference_mode():
            logits = ready()().logits
        assert logits.shape[:2] == (batch, 1), "only what a writer needs is computed"
        assert logits.isfinite().all()
        return model

    def fastest(passes, device):
        models.update(passes)
        size = {key: sum(p.numel() for p in model.parameters()) for key, model in passes.items()}
        return {key: 1e-6 * count for key, count in size.items()}

    monkeypatch.setattr(timing, "forward", taken)
    monkeypatch.setattr(timing, "fastest", fastest)
    monkeypatch.setattr(timing, "reads_one_for_each", lambda pool, scope: scope == "neurons")  # takes seconds
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return models


@pytest.mark.parametrize("mode", ["decode", "prompt"])
def test_models_are_the_bases_own_in_small_and_share_their_memory(tiny, seen, mode):
    table = cost_table(tiny, "float32", "cpu", "v", mode=mode, batch=3, length=7)
    assert {key for key in seen if key[0] != "heads"} == {
        ("blocks", 2),
        ("blocks", 1),
        *(("neurons", left) for left in (18, 12, 6, 1)),
    }
    widths = {left: seen["neurons", left].config.intermediate_size for left in (18, 12, 6, 1)}
    assert widths == {left: left for left in widths}
    assert seen["heads", 1].config.num_attention_heads == 1
    assert seen["heads", 1].config.head_dim == 8
    whole = {parameter.untyped_storage().data_ptr() for parameter in seen["blocks", 2].parameters()}
    for model in seen.values():
        assert {parameter.untyped_storage().data_ptr() for parameter in model.parameters()} <= whole
    assert table.blocks == 2
    assert {scope: row.each for scope, row in table.widths.items()} == {"neurons": True, "heads": False}
    # by their numbers of weights, as this clock runs: an MLP has 3 x 16 a neuron
    tokens = 3 * 7 if mode == "prompt" else 3
    known = table.widths["neurons"]
    fewer = (table.block - known.seconds[known.units.index(6)]) * tokens
    assert fewer == pytest.approx(18 * 3 * 16 * 1e-6)


def test_once_on_this_machine_and_again_where_anything_differs(tiny, seen, monkeypatch):
    first = cost_table(tiny, "float32", "cpu", "v")
    monkeypatch.setattr(timing, "measured", lambda *given, **named: pytest.fail("it is known"))
    assert cost_table(tiny, "float32", "cpu", "v") == first
    monkeypatch.undo()


@pytest.mark.parametrize("change", [{"mode": "prompt"}, {"batch": 2}, {"length": 9}, {"versions": "w"}])
def test_other_work_and_other_versions_are_measured_anew(tiny, seen, change, monkeypatch):
    first = cost_table(tiny, "float32", "cpu", "v")
    seen.clear()
    given = {"versions": "v", **change}
    second = cost_table(tiny, "float32", "cpu", **given)
    assert seen
    assert second.origin != first.origin


def test_what_is_kept_and_damaged_is_measured_anew(tiny, seen, tmp_path):
    cost_table(tiny, "float32", "cpu", "v")
    (file,) = (tmp_path / "sae_moo" / "costs").iterdir()
    file.write_text("{}")
    seen.clear()
    table = cost_table(tiny, "float32", "cpu", "v")
    assert seen
    assert cost_table(tiny, "float32", "cpu", "v") == table


def test_more_tokens_than_the_base_takes_are_refused(tiny, seen):
    cost_table(tiny, "float32", "cpu", "v", mode="prompt", length=128)
    with pytest.raises(InputError, match=r"speed\.length: expected at most 127, as many as the base takes, got 128"):
        cost_table(tiny, "float32", "cpu", "v", mode="decode", length=128)
    assert "127 tokens" in cost_table(tiny, "float32", "cpu", "v").origin["work"], "as many as it takes"


def test_a_configuration_that_cannot_say_fewer_heads_has_no_costs_of_them(tmp_path, seen):
    from transformers import GPT2Config, GPT2LMHeadModel

    settings = {"vocab_size": 32, "n_embd": 16, "n_layer": 3, "n_head": 4, "n_positions": 32}
    for name in ("base", "math"):
        GPT2LMHeadModel(GPT2Config(**settings)).save_pretrained(tmp_path / name)
    pool = ExpertPool.open(str(tmp_path / "base"), {"math": str(tmp_path / "math")})
    table = cost_table(pool, "float32", "cpu", "v")
    assert table.widths.keys() == {"neurons"}
    assert table.widths["neurons"].units[-1] == 64


@pytest.mark.parametrize(("heads", "able"), [(8, (1, 2, 4, 8)), (6, (1, 2, 3, 4, 6))])
def test_numbers_of_heads_that_transformers_refuses_are_not_exported(tmp_path, seen, heads, able):
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {"vocab_size": 32, "hidden_size": 24 if heads == 6 else 16, "intermediate_size": 8, "head_dim": 2}
    for name in ("base", "math"):
        config = LlamaConfig(**settings, num_hidden_layers=2, num_attention_heads=heads)
        LlamaForCausalLM(config).save_pretrained(tmp_path / name)
    pool = ExpertPool.open(str(tmp_path / "base"), {"math": str(tmp_path / "math")})
    assert cost_table(pool, "float32", "cpu", "v").widths["heads"].able == able


def test_a_real_clock_gives_a_table(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(timing, "ROUNDS", range(1, 3))
    table = cost_table(tiny, "float32", "cpu", "v", length=4)
    assert 0 < table.block < 1
    assert 0 <= table.outside < 1
    assert timing.CostTable.read(table.document()) == table
