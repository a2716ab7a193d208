"""What a config.json can say of narrower blocks; transformers is asked."""

from __future__ import annotations

import transformers as hf

from sae_moo.experts.pool import ExpertPool
from sae_moo.experts.widths import narrower, reads_one_for_each, said

SMALL = {"vocab_size": 32, "hidden_size": 24, "intermediate_size": 12, "num_hidden_layers": 2}


def pool_of(folder, model) -> ExpertPool:
    for name in ("base", "math"):
        model.save_pretrained(folder / name)
    return ExpertPool.open(str(folder / "base"), {"math": str(folder / "math")})


def test_fewer_neurons_and_heads_are_said_in_the_words_of_the_architecture(tmp_path):
    llama = pool_of(
        tmp_path / "llama",
        hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL, num_attention_heads=6, num_key_value_heads=3)),
    )
    assert narrower(llama, "neurons", 5) == {"intermediate_size": 5}
    assert narrower(llama, "heads", 2) == {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
    config = hf.GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=4, n_positions=32)
    gpt2 = pool_of(tmp_path / "gpt2", hf.GPT2LMHeadModel(config))
    assert narrower(gpt2, "neurons", 5) == {"n_inner": 5}
    assert narrower(gpt2, "heads", 2) is None


def test_what_transformers_refuses_is_known_before_anything_is_built():
    config = {"model_type": "llama", "hidden_size": 24, "head_dim": 4, "num_key_value_heads": 1}
    assert [heads for heads in range(1, 9) if said({**config, "num_attention_heads": heads})] == [1, 2, 3, 4, 6, 8]


def test_one_width_for_each_is_known_by_what_transformers_builds(tmp_path, monkeypatch):
    """No architecture here has it; the layers of this one are given what those of others get (dots3_note)."""
    from transformers.models.mistral import modeling_mistral

    pool = pool_of(tmp_path, hf.MistralForCausalLM(hf.MistralConfig(**SMALL, num_attention_heads=6)))
    assert not reads_one_for_each(pool, "neurons")
    made = modeling_mistral.MistralDecoderLayer.__init__

    def init(self, config, layer_idx):
        made(self, config.per_layer_config[layer_idx], layer_idx)

    monkeypatch.setattr(modeling_mistral.MistralDecoderLayer, "__init__", init)
    assert reads_one_for_each(pool, "neurons")
