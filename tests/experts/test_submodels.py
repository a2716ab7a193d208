"""Which part of a model a tensor belongs to, by its name as checkpoints are published."""

from __future__ import annotations

import pytest

from sae_moo.experts.layout import group_name
from sae_moo.experts.submodels import group_names


def text(start: str, layers: int = 2) -> list[str]:
    """The names of a text model."""
    inner = [f"{start}layers.{i}.{name}.weight" for i in range(layers) for name in ("mlp.up_proj", "self_attn.q_proj")]
    return [f"{start}embed_tokens.weight", *inner, f"{start}norm.weight"]


SEES = {"text_config": {"num_hidden_layers": 2}, "vision_config": {"num_hidden_layers": 3}}
CLIP = [f"vision_model.encoder.layers.{i}.mlp.fc1.weight" for i in range(3)]
CLIP += ["vision_model.embeddings.patch_embedding.weight", "vision_model.post_layernorm.weight"]
# what it is -> names of the text model, the others by sub-model, settings
MODELS = {
    "gemma 3 as published": (
        [*text("language_model.model."), "language_model.lm_head.weight"],
        {"vision_tower": [f"vision_tower.{name}" for name in CLIP],
         "multi_modal_projector": ["multi_modal_projector.mm_input_projection_weight"]},
        SEES,
    ),
    "gemma 3 as saved now": (
        [*text("model.language_model."), "lm_head.weight"],
        {"vision_tower": [f"model.vision_tower.{name}" for name in CLIP],
         "multi_modal_projector": ["model.multi_modal_projector.mm_input_projection_weight"]},
        SEES,
    ),
    "qwen2-vl as published": (
        [*text("model."), "lm_head.weight"],
        {"visual": ["visual.blocks.0.mlp.fc1.weight", "visual.blocks.1.norm1.bias", "visual.merger.mlp.0.weight",
                    "visual.patch_embed.proj.weight"]},
        {"vision_config": {"depth": 2}, "num_hidden_layers": 2},
    ),
    "qwen3-vl": (
        [*text("model.language_model."), "lm_head.weight"],
        {"visual": ["model.visual.blocks.0.mlp.fc1.weight", "model.visual.deepstack_merger_list.0.norm.weight"]},
        SEES,
    ),
    "llava as first published": (
        [*text("model."), "lm_head.weight"],
        {"vision_tower": [f"model.vision_tower.vision_tower.{name}" for name in CLIP],
         "mm_projector": ["model.mm_projector.0.weight"], "image_newline": ["model.image_newline"]},
        {"mm_vision_tower": "clip", "num_hidden_layers": 2},
    ),
    "llava-next": (
        [*text("language_model.model."), "language_model.lm_head.weight"],
        {"vision_tower": [f"vision_tower.{name}" for name in CLIP],
         "multi_modal_projector": ["multi_modal_projector.linear_1.bias"], "image_newline": ["image_newline"]},
        SEES,
    ),
    "internvl": (
        [*text("language_model.model."), "language_model.lm_head.weight"],
        {"vision_model": CLIP, "mlp1": ["mlp1.0.weight", "mlp1.output.weight"]},
        {"vision_config": {"a": 1}, "llm_config": {"num_hidden_layers": 2}},
    ),
    "lfm2-vl": (
        [*text("model.language_model."), "lm_head.weight"],
        {"vision_tower": [f"model.vision_tower.{name}" for name in CLIP],
         "multi_modal_projector": ["model.multi_modal_projector.linear_1.weight"]},
        SEES,
    ),
    "idefics 3": (
        [*text("model.text_model."), "lm_head.weight"],
        {"vision_model": [f"model.{name}" for name in CLIP], "connector": ["model.connector.proj.weight"]},
        SEES,
    ),
    "llama 3.2 vision": (
        [*text("language_model.model."), "language_model.lm_head.weight"],
        {"vision_model": ["vision_model.transformer.layers.0.mlp.fc1.weight", "vision_model.class_embedding",
                          "vision_model.global_transformer.layers.0.mlp.fc1.weight"],
         "multi_modal_projector": ["multi_modal_projector.weight"]},
        SEES,
    ),
    "gemma 3n": (
        text("model.language_model."),
        {"vision_tower": ["model.vision_tower.timm_model.blocks.0.0.conv.weight"],
         "audio_tower": ["model.audio_tower.conformer.0.norm.weight"],
         "embed_vision": ["model.embed_vision.embedding.weight"], "embed_audio": ["model.embed_audio.hard.weight"]},
        SEES | {"audio_config": {}},
    ),
    "voxtral": (
        [*text("language_model.model."), "language_model.lm_head.weight"],
        {"audio_tower": ["audio_tower.layers.0.fc1.weight", "audio_tower.conv1.weight"],
         "multi_modal_projector": ["multi_modal_projector.linear_1.weight"]},
        {"audio_config": {}, "text_config": {"num_hidden_layers": 2}},
    ),
    "glm-4v": (
        ["transformer.embedding.word_embeddings.weight", "transformer.encoder.layers.0.mlp.weight",
         "transformer.encoder.final_layernorm.weight", "transformer.output_layer.weight"],
        {"vision": ["transformer.vision.transformer.layers.0.mlp.weight", "transformer.vision.conv.weight"]},
        {"vision_config": {}, "num_layers": 1},
    ),
    "qwen-omni": (
        [*text("thinker.model."), "thinker.lm_head.weight"],
        {"visual": ["thinker.visual.blocks.0.mlp.weight"], "audio_tower": ["thinker.audio_tower.layers.0.fc1.weight"],
         "talker": [*text("talker.model."), "talker.codec_head.weight"], "token2wav": ["token2wav.dit.blocks.0.weight"]},
        {"thinker_config": {"text_config": {"num_hidden_layers": 2}}, "talker_config": {}},
    ),
    "whisper": (
        ["model.decoder.embed_tokens.weight", *(f"model.decoder.layers.{i}.fc1.weight" for i in range(3)),
         "model.decoder.layer_norm.weight"],
        {"encoder": ["model.encoder.layers.0.fc1.weight", "model.encoder.conv1.weight",
                     "model.encoder.embed_positions.weight"]},
        {"num_hidden_layers": 1, "encoder_layers": 1, "decoder_layers": 3},
    ),
    "deepseek-v3": (
        [*text("model."), "lm_head.weight"],
        {"mtp": ["model.layers.2.mlp.up_proj.weight", "model.layers.2.eh_proj.weight",
                 "model.layers.2.embed_tokens.weight", "model.layers.3.shared_head.head.weight"]},
        {"num_hidden_layers": 2, "num_nextn_predict_layers": 2},
    ),
    "qwen3-next": (
        [*text("model."), "lm_head.weight"],
        {"mtp": ["mtp.layers.0.mlp.up_proj.weight", "mtp.fc.weight", "mtp.norm.weight"]},
        {"num_hidden_layers": 2},
    ),
    "ernie 4.5": (
        [*text("model."), "lm_head.weight"],
        {"mtp": ["model.mtp_block.0.mlp.up_proj.weight", "model.mtp_emb_norm.0.weight", "model.mtp_layers.0.a.weight"]},
        {"num_hidden_layers": 2},
    ),
}  # fmt: skip
PLAIN = {
    "llama": ([*text("model."), "lm_head.weight"], {"num_hidden_layers": 2}),
    "settings say nothing": (text("model."), {}),
    "gpt-2": (["wte.weight", "wpe.weight", "h.0.attn.c_attn.weight", "h.1.mlp.c_fc.weight", "ln_f.weight"], {"n_layer": 2}),
    "neox": (["gpt_neox.embed_in.weight", "gpt_neox.layers.0.mlp.dense.weight", "embed_out.weight"], {}),
    "chatglm": (
        ["transformer.embedding.word_embeddings.weight", "transformer.encoder.layers.0.mlp.weight",
         "transformer.output_layer.weight"],
        {"num_layers": 1},
    ),
    "several stacks of text": (
        [*text("model.global_transformer."), "model.local_encoder.layers.0.mlp.weight",
         "model.local_decoder.layers.0.mlp.weight", "model.patcher.layers.0.w.weight", "lm_head.weight"],
        {"encoder_config": {"num_hidden_layers": 1}, "decoder_config": {"num_hidden_layers": 1}},
    ),
    "the text part of another, alone": (text("language_model.model."), {"text_config": {"num_hidden_layers": 2}}),
}  # fmt: skip


@pytest.mark.parametrize("kind", MODELS)
def test_what_is_not_the_text_model_is_a_group_of_its_own(kind):
    own, others, config = MODELS[kind]
    named = {name: part for part, names in others.items() for name in names}
    found = group_names([*named, *own], config)
    assert list(found) == [*named, *own]
    assert {name: found[name] for name in named} == named
    assert {name: found[name] for name in own} == {name: group_name(name) for name in own}


def test_a_text_model_that_names_its_blocks_otherwise_than_its_tower():
    tower = [f"git.image_encoder.{name}" for name in CLIP] + ["git.visual_projection.visual_projection.0.weight"]
    own = [
        "git.embeddings.word_embeddings.weight",
        "git.encoder.layer.1.attention.output.dense.weight",
        "output.weight",
    ]
    found = group_names([*tower, *own], {"vision_config": {}, "num_hidden_layers": 2})
    assert set(map(found.get, tower)) == {"image_encoder", "visual_projection"}
    assert list(map(found.get, own)) == ["embeddings", "block.1", "head"]


@pytest.mark.parametrize("kind", PLAIN)
def test_models_of_text_alone_have_the_groups_they_had(kind):
    names, config = PLAIN[kind]
    assert group_names(names, config) == {name: group_name(name) for name in names}


def test_a_sub_model_has_no_other_groups_name():
    own, config = text("model.language_model."), {"vision_config": {"a": 1}}
    found = group_names([*own, "head.blocks.0.weight", "head.fc.weight"], config)
    assert {found["head.blocks.0.weight"], found["head.fc.weight"]} == {"head_model"}
