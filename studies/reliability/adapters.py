"""Every form of adapter that PEFT writes, opened as an expert and compared, tensor by tensor, with PEFT's own merge.

    python studies/reliability/adapters.py                  # all forms, a few minutes
    python studies/reliability/adapters.py tied gemma3      # the forms whose names hold one of these words

Tiny random models are trained by noise: an adapter of each form is built with PEFT, its trainable numbers are moved at
random, it is saved as PEFT saves it, loaded again by PEFT and merged. PEFT's merge counts as right where the merged
model's logits are those of the model with the adapter on it (1e-3 of their spread), which is the model that was
trained. Ours are compared in the checkpoint's own names. Ends with 1 if one that is right is refused without being
listed as refused, or if any number differs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sae_moo import ExpertPool, InputError
from sae_moo.experts.adapters import Adapter
from sae_moo.experts.checkpoint import Checkpoint

TOKENS = torch.tensor([[3, 4, 5, 6, 7, 8, 9, 10]])
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "head_dim": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
Post = Callable[[Path], None]


def base_model(kind: str) -> Any:
    """Return a tiny random model."""
    import transformers as t

    torch.manual_seed(0)
    auto = t.AutoModelForCausalLM.from_config
    stacked = {"num_experts_per_tok": 2, "num_local_experts": 4}
    if kind == "gpt2":
        return auto(t.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0))
    if kind == "gemma3 text":
        model, whole = auto(t.Gemma3TextConfig(**SIZES)), base_model("gemma3")
        model.model.load_state_dict(whole.model.language_model.state_dict())
        return model
    if kind == "gemma3":
        vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = t.Gemma3Config(
            text_config=SIZES,
            vision_config=vision | {"image_size": 28, "patch_size": 14},
            mm_tokens_per_image=4,
            image_token_index=60,
            boi_token_index=61,
            eoi_token_index=62,
        )
        return t.Gemma3ForConditionalGeneration(config)
    built = {
        "llama": lambda: t.LlamaConfig(**SIZES, tie_word_embeddings=False),
        "llama tied": lambda: t.LlamaConfig(**SIZES, tie_word_embeddings=True),
        "llama biases": lambda: t.LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, tie_word_embeddings=False),
        "mixtral": lambda: t.MixtralConfig(**SIZES, **stacked),
        "qwen3 moe": lambda: t.Qwen3MoeConfig(
            **SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, tie_word_embeddings=False
        ),
        "llama 4": lambda: t.Llama4TextConfig(
            **SIZES,
            **(stacked | {"num_experts_per_tok": 1}),
            intermediate_size_mlp=48,
            interleave_moe_layer_step=1,
            moe_layers=[0, 1],
        ),
        "granite moe": lambda: t.GraniteMoeConfig(**SIZES, **stacked, tie_word_embeddings=False),
        "deepseek v2": lambda: t.DeepseekV2Config(
            **{key: size for key, size in SIZES.items() if key != "head_dim"},
            n_routed_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=24,
            n_group=1,
            topk_group=1,
            kv_lora_rank=8,
            q_lora_rank=8,
            qk_rope_head_dim=4,
            qk_nope_head_dim=4,
            v_head_dim=8,
            first_k_dense_replace=1,
        ),
        "gpt-oss": lambda: t.GptOssConfig(**(SIZES | {"intermediate_size": 32}), **stacked),
    }
    return auto(built[kind]())


@dataclass(frozen=True)
class Form:
    """One form of adapter.

    Args:
        name: what it is.
        base: kind of the base model.
        settings: arguments of the adapter's configuration.
        kind: name of PEFT's configuration class.
        dtype: of the base.
        saved: dtype that the adapter is stored in; None: as it is.
        vocabulary: rows that the embeddings are resized to before training; None: as the base has them.
        converted: whether it is saved as an update of the base as it was before the start changed it.
        ours: kind of the base that we are given, where it is another than PEFT's.
        written: what is done to the folder before PEFT loads it.
        edit: what is done to it after PEFT merged it.
        expected: start of a word in our refusal, where one is due; None: to be equal.
    """

    name: str
    base: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "LoraConfig"
    dtype: torch.dtype = torch.float32
    saved: torch.dtype | None = None
    vocabulary: int | None = None
    converted: bool = False
    ours: str | None = None
    written: Post | None = None
    edit: Post | None = None
    expected: str | None = None


def lora(*modules: str, **settings: Any) -> dict[str, Any]:
    """Return settings of a LoRA on some modules."""
    return {"r": 4, "lora_alpha": 6, "target_modules": list(modules) or ["q_proj", "down_proj"]} | settings


def renamed(old: str, new: str) -> Post:
    """Return an edit that gives tensors the names that another release gives them."""

    def edit(folder: Path) -> None:
        file = folder / "adapter_model.safetensors"
        save_file({name.replace(old, new): tensor for name, tensor in load_file(file).items()}, file)

    return edit


def of_release_4(folder: Path) -> None:
    """Edit an adapter of Mixtral into what transformers 4 had: each expert's own factors, w1 and w3 apart."""
    file = folder / "adapter_model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if ".mlp." not in name}
    for layer in range(SIZES["num_hidden_layers"]):
        module = f"base_model.model.model.layers.{layer}.block_sparse_moe"
        shapes = {f"experts.{i}.w{n}": (32, 48) if n == 2 else (48, 32) for i in range(4) for n in (1, 2, 3)}
        for name, (outputs, inputs) in (shapes | {"gate": (4, 32)}).items():
            tensors[f"{module}.{name}.lora_A.weight"] = torch.randn(4, inputs) * 0.1
            tensors[f"{module}.{name}.lora_B.weight"] = torch.randn(outputs, 4) * 0.1
    save_file(tensors, file)
    modules = [*ATTENTION, "gate", "w1", "w2", "w3"]
    rewritten(target_parameters=None, rank_pattern={}, alpha_pattern={}, target_modules=modules)(folder)


def rewritten(**changes: Any) -> Post:
    """Return an edit of the settings."""

    def edit(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return edit


def cut_ranks(folder: Path) -> None:
    """Edit AdaLoRA's adapter into one whose ranks were allocated: some are gone at one module."""
    file, module = folder / "adapter_model.safetensors", "model.layers.0.self_attn.q_proj"
    tensors, kept = load_file(file), [True, False, True, False, False]
    for part, rows in (("lora_A", (kept,)), ("lora_E", (kept,)), ("lora_B", (slice(None), kept))):
        name = f"base_model.model.{module}.{part}"
        tensors[name] = tensors[name][rows].clone()
    save_file(tensors, file)
    rewritten(rank_pattern={f"{module}.lora_E": kept})(folder)


def pickled(folder: Path) -> None:
    """Edit an adapter into a pickled one."""
    file = folder / "adapter_model.safetensors"
    torch.save(load_file(file), folder / "adapter_model.bin")
    file.unlink()


def nested(folder: Path) -> None:
    """Edit an adapter's folder into one that holds two, under their names."""
    for name in ("law", "medicine"):
        (folder / name).mkdir()
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy(folder / file, folder / name / file)
    (folder / "adapter_model.safetensors").unlink()


def unknown_tensor(folder: Path) -> None:
    """Edit an adapter into one that holds a tensor of another kind."""
    file = folder / "adapter_model.safetensors"
    extra = {"base_model.model.model.layers.0.self_attn.q_proj.lora_new.weight": torch.ones(4)}
    save_file(load_file(file) | extra, file)


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
EXPERTS = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj"]}
BOTH = EXPERTS | {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}
STACKED = ["experts.gate_up_proj", "experts.down_proj"]
GEMMA = r".*language_model.*\.(q_proj|v_proj|down_proj)"
ADAPTED = {"target_modules": ["q_proj", "down_proj"], "total_step": 9}
OTHER_KINDS: Mapping[str, dict[str, Any]] = {
    "OFT": {"oft_block_size": 8},
    "BOFT": {"boft_block_size": 4},
    "HRA": {},
    "FourierFT": {"n_frequency": 9},
    "Miss": {"r": 4},
    "RandLora": {"r": 4},
    "Shira": {"r": 4},
    "C3A": {"block_size": 8},
    "Road": {"group_size": 8},
    "Delora": {"r": 4},
}
FORMS = (
    Form("list of modules", "llama", lora(*ATTENTION)),
    Form("regex", "llama", lora(target_modules=r".*\.1\..*(up|v)_proj")),
    Form("all-linear", "llama", lora(target_modules="all-linear")),
    Form("exclude_modules", "llama", lora(target_modules="all-linear", exclude_modules=r".*\.0\..*|.*mlp.*")),
    Form("layers_to_transform", "llama", lora(layers_to_transform=[1], layers_pattern="layers")),
    Form(
        "rank_pattern and alpha_pattern",
        "llama",
        lora(
            *ATTENTION,
            rank_pattern={r"layers\.1\.self_attn\.q_proj": 1, "proj": 9, "q_proj": 3},
            alpha_pattern={r"^model\.layers\.0\.self_attn\.v_proj": 11, r"layers.\d+.self_attn.q_proj": 7},
        ),
    ),
    Form("rank-stabilized", "llama", lora(use_rslora=True, rank_pattern={"q_proj": 2})),
    Form("bias: all", "llama biases", lora(bias="all")),
    Form("bias: lora_only", "llama biases", lora(bias="lora_only")),
    Form("lora_bias", "llama biases", lora(lora_bias=True)),
    Form("lora_bias, no bias in the base", "llama", lora(lora_bias=True), expected="has no bias"),
    Form("DoRA", "llama", lora(use_dora=True)),
    Form("DoRA on embeddings", "llama", lora("embed_tokens", "q_proj", use_dora=True)),
    Form("embeddings and head", "llama", lora("embed_tokens", "lm_head", "k_proj")),
    Form("modules_to_save", "llama", lora(modules_to_save=["lm_head", "norm"])),
    Form("modules_to_save: a whole block", "llama", lora("q_proj", modules_to_save=["mlp"])),
    Form("added tokens, modules_to_save", "llama", lora(modules_to_save=["embed_tokens", "lm_head"]), vocabulary=72),
    Form("added tokens, LoRA on embeddings", "llama", lora("embed_tokens", "lm_head", "q_proj"), vocabulary=72),
    Form("added tokens, nothing trained on them", "llama", lora(), vocabulary=72),
    Form("added tokens, trained alone", "llama", lora(trainable_token_indices=[64, 70, 71]), vocabulary=72),
    Form("trained tokens", "llama", lora(trainable_token_indices=[5, 3, 9])),
    Form("trained tokens, twice", "llama", lora(trainable_token_indices={"embed_tokens": [3], "lm_head": [4, 9]})),
    Form("trained tokens without LoRA", "llama", {"token_indices": [4, 5]}, "TrainableTokensConfig"),
    Form("base in bfloat16", "llama", lora(), dtype=torch.bfloat16),
    Form("base and adapter in bfloat16", "llama", lora(*ATTENTION), dtype=torch.bfloat16, saved=torch.bfloat16),
    Form("adapter in bfloat16", "llama", lora(), saved=torch.bfloat16),
    Form("adapter in float16", "llama", lora("embed_tokens", "q_proj"), saved=torch.float16),
    Form("embeddings in bfloat16", "llama", lora("embed_tokens", "lm_head"), dtype=torch.bfloat16),
    Form(
        "whole modules in float32, base in bfloat16",
        "llama",
        lora(modules_to_save=["lm_head"]),
        dtype=torch.bfloat16,
        saved=torch.float32,
    ),
    Form("DoRA in bfloat16", "llama", lora(use_dora=True), dtype=torch.bfloat16),
    Form("start: gaussian", "llama", lora(init_lora_weights="gaussian")),
    Form("start: orthogonal", "llama", lora(init_lora_weights="orthogonal")),
    Form("start: MiCA", "llama", lora(init_lora_weights="mica")),
    Form("start: PiSSA", "llama", lora(init_lora_weights="pissa"), expected="starts from a changed base"),
    Form("start: PiSSA, converted", "llama", lora(init_lora_weights="pissa", use_rslora=True), converted=True),
    Form("start: OLoRA", "llama", lora(init_lora_weights="olora"), expected="starts from a changed base"),
    Form("VeLoRA", "llama", lora(velora_config={"num_groups": 4})),
    Form("KaSA", "llama", lora(kasa_config={}), expected="kasa_config"),
    Form(
        "block-diagonal",
        "llama",
        lora("q_proj", use_bdlora={"target_modules_bd_a": ["q_proj"], "nblocks": 2}),
        expected="use_bdlora",
    ),
    Form("activated LoRA", "llama", lora(alora_invocation_tokens=[3]), expected="alora_invocation_tokens"),
    Form("MonteCLoRA", "llama", lora(monteclora_config={}), expected="monteclora_config"),
    Form("layer_replication", "llama", lora(layer_replication=[[0, 2], [1, 2]]), expected="layer_replication"),
    Form("QA-LoRA", "llama", lora(), edit=rewritten(use_qalora=True), expected="use_qalora"),
    Form("Arrow", "llama", lora(), edit=rewritten(arrow_config={"top_k": 3}), expected="arrow_config"),
    Form("a setting of tomorrow", "llama", lora(), edit=rewritten(curvature=0.5), expected="curvature"),
    Form("a tensor of tomorrow", "llama", lora(), edit=unknown_tensor, expected="lora_new"),
    Form("pickled", "llama", lora(), edit=pickled, expected="pickled"),
    Form("two adapters in one folder", "llama", lora(), edit=nested, expected="law"),
    Form("tied: not the embeddings", "llama tied", lora()),
    Form("tied: LoRA on the embeddings", "llama tied", lora("embed_tokens", "q_proj"), expected="as if untied"),
    Form("tied: LoRA on the head", "llama tied", lora("lm_head", "q_proj"), expected="would untie it"),
    Form(
        "tied: LoRA, ensure_weight_tying",
        "llama tied",
        lora("embed_tokens", ensure_weight_tying=True),
        expected="adds twice",
    ),
    Form("tied: modules_to_save", "llama tied", lora(modules_to_save=["embed_tokens"]), expected="unties the head"),
    Form(
        "tied: modules_to_save, ensure_weight_tying",
        "llama tied",
        lora(modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    ),
    Form(
        "tied: added tokens, ensure_weight_tying",
        "llama tied",
        lora(modules_to_save=["embed_tokens"], ensure_weight_tying=True),
        vocabulary=72,
    ),
    Form("tied: trained tokens", "llama tied", lora(trainable_token_indices=[3, 9])),
    Form(
        "tied: trained tokens, of each its own",
        "llama tied",
        lora(trainable_token_indices={"embed_tokens": [3], "lm_head": [4]}),
        expected="would untie it",
    ),
    Form("GPT-2: fan_in_fan_out", "gpt2", lora("c_attn", "c_proj", "c_fc", fan_in_fan_out=True)),
    Form("GPT-2: DoRA", "gpt2", lora("c_attn", "c_proj", fan_in_fan_out=True, use_dora=True)),
    Form("GPT-2: bias: all", "gpt2", lora("c_attn", fan_in_fan_out=True, bias="all")),
    Form("GPT-2: trained tokens", "gpt2", lora("c_attn", fan_in_fan_out=True, trainable_token_indices={"wte": [7, 8]})),
    Form("Mixtral: all-linear", "mixtral", lora(target_modules="all-linear")),
    Form("Mixtral: all-linear, in bfloat16", "mixtral", lora(target_modules="all-linear"), dtype=torch.bfloat16),
    Form("Mixtral: attention and router", "mixtral", lora("q_proj", "gate")),
    Form("Mixtral: as transformers 4 named it", "mixtral", lora(target_modules="all-linear"), written=of_release_4),
    Form("Mixtral: target_parameters, one", "mixtral", EXPERTS | {"target_parameters": ["experts.down_proj"]}),
    Form("Qwen3-MoE: target_parameters, one", "qwen3 moe", EXPERTS),
    Form(
        "Qwen3-MoE: target_parameters, both",
        "qwen3 moe",
        BOTH | {"rank_pattern": {"experts.down_proj": 2}, "use_rslora": True},
    ),
    Form("GPT-OSS: target_parameters, stored turned", "gpt-oss", BOTH),
    Form("Llama 4: target_parameters, stored turned", "llama 4", BOTH | {"target_parameters": STACKED}),
    Form("Granite: target_parameters, stored stacked", "granite moe", BOTH | {"target_parameters": STACKED}),
    Form("DeepSeek-V2: all-linear", "deepseek v2", lora(target_modules="all-linear")),
    Form("DeepSeek-V2: target_parameters", "deepseek v2", BOTH | {"target_modules": ["q_a_proj"]}),
    Form("Gemma3 within its wrapper", "gemma3", lora(target_modules=GEMMA)),
    Form("Gemma3 and its vision tower", "gemma3", lora("q_proj", "fc1")),
    Form("Gemma3, an adapter of the text model", "gemma3 text", lora("q_proj", "down_proj"), ours="gemma3"),
    Form(
        "Gemma3, an adapter of the wrapper on the text model", "gemma3", lora(target_modules=GEMMA), ours="gemma3 text"
    ),
    Form(
        "Gemma3, names of transformers 4",
        "gemma3",
        lora(target_modules=GEMMA),
        edit=renamed("model.model.language_model.", "model.language_model.model."),
    ),
    Form("convolution", "gemma3", lora("patch_embedding", "q_proj")),
    Form(
        "(IA)^3",
        "llama biases",
        {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
        "IA3Config",
    ),
    Form(
        "(IA)^3 on GPT-2",
        "gpt2",
        {"target_modules": ["c_attn", "mlp.c_proj"], "feedforward_modules": ["mlp.c_proj"], "fan_in_fan_out": True},
        "IA3Config",
    ),
    Form(
        "LoHa",
        "llama",
        {"r": 4, "alpha": 6, "target_modules": ["q_proj", "up_proj"], "rank_pattern": {"up_proj": 2}},
        "LoHaConfig",
    ),
    Form("LoKr", "llama", {"r": 4, "alpha": 6, "target_modules": ["q_proj", "up_proj"]}, "LoKrConfig"),
    Form(
        "LoKr, both decomposed",
        "llama",
        {"r": 2, "alpha": 3, "target_modules": ["q_proj", "up_proj"], "decompose_both": True},
        "LoKrConfig",
    ),
    Form("AdaLoRA", "llama", {**ADAPTED, "init_r": 4, "lora_alpha": 6}, "AdaLoraConfig"),
    Form(
        "AdaLoRA, ranks cut, bias: all",
        "llama biases",
        {**ADAPTED, "init_r": 5, "bias": "all"},
        "AdaLoraConfig",
        written=cut_ranks,
    ),
    Form("VeRA", "llama", {"r": 4, "target_modules": ["q_proj", "k_proj"]}, "VeraConfig"),
    Form("VeRA on GPT-2", "gpt2", {"r": 3, "target_modules": ["c_attn"], "fan_in_fan_out": True}, "VeraConfig"),
    Form(
        "VeRA without its projections",
        "llama",
        {"r": 4, "target_modules": ["q_proj"], "save_projection": False},
        "VeraConfig",
        expected="save_projection",
    ),
    Form("norms", "llama", {"target_modules": ["input_layernorm", "norm"]}, "LNTuningConfig"),
    *(
        Form(kind, "llama", {"target_modules": ["q_proj"]} | settings, f"{kind}Config", expected="peft_type")
        for kind, settings in OTHER_KINDS.items()
    ),
    Form("prompt tuning", "llama", {"num_virtual_tokens": 4}, "PromptTuningConfig", expected="peft_type"),
    Form("prefix tuning", "llama", {"num_virtual_tokens": 4}, "PrefixTuningConfig", expected="peft_type"),
)


@dataclass(frozen=True)
class Outcome:
    """What came of one form: PEFT's word, ours, and whether that is as it should be."""

    peft: str
    ours: str
    right: bool


class Desk:
    """Builds bases and adapters below a folder, each base once."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def base(self, kind: str, dtype: torch.dtype) -> Path:
        """Return the folder of a base."""
        folder = self._root / f"{kind} {dtype}".replace("torch.", "")
        if not folder.is_dir():
            base_model(kind).to(dtype).save_pretrained(folder)
        return folder

    def outcome(self, form: Form) -> Outcome:
        """Build, save, merge and compare one form."""
        folder, merged = (self._root / part / form.name for part in ("adapters", "merged"))
        peft, right = self._by_peft(form, folder, merged)
        if form.edit is not None and folder.is_dir():
            form.edit(folder)
        base = self.base(form.ours or form.base, form.dtype)
        try:
            ExpertPool.open(str(base), {"a": str(folder)}, vocabulary="refuse" if form.vocabulary is None else "base")
        except InputError as error:
            if form.vocabulary is None or "needs a tokenizer" not in str(error):
                word = str(error).strip().splitlines()[-1].strip()
                return Outcome(peft, f"refused: {word}", form.expected is not None and form.expected in str(error))
        worst, number = compared(Adapter(str(folder), Checkpoint(str(base))), Checkpoint(str(merged)))
        equal = "bit for bit" if worst == 0 else f"within {worst:.2g} ulp"
        return Outcome(
            peft, f"{equal}, {number} tensors changed", right and form.expected is None and worst <= 4 and number > 0
        )

    def _by_peft(self, form: Form, folder: Path, merged: Path) -> tuple[str, bool]:
        """Write an adapter, merge it with PEFT; return what PEFT did, and whether that is the model trained."""
        import peft

        base = self.base(form.base, form.dtype)
        torch.manual_seed(1)
        try:
            model = peft.get_peft_model(loaded(base, form), configured(form))
        except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
            return f"cannot build it: {str(error).splitlines()[0][:70]}", False
        if form.converted:
            saved_start(model, folder / "start")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    scale = 0.3 * parameter.abs().mean().clamp(min=0.1) if "magnitude" not in name else 0.1
                    parameter.add_(torch.randn_like(parameter) * scale)
        start = {"path_initial_model_for_weight_conversion": str(folder / "start")} if form.converted else {}
        model.save_pretrained(folder, **start)
        if form.written is not None:
            form.written(folder)
        if form.saved is not None:
            file = folder / "adapter_model.safetensors"
            save_file({name: tensor.to(form.saved) for name, tensor in load_file(file).items()}, file)
        try:
            model = peft.PeftModel.from_pretrained(loaded(base, form), folder).eval()
            if form.vocabulary is not None:
                adopted(model, folder)
            before = model(TOKENS).logits.float()
            whole = model.merge_and_unload()
            whole.save_pretrained(merged)
        except (ValueError, AttributeError, RuntimeError, NotImplementedError, TypeError) as error:
            return f"refuses: {str(error).splitlines()[0][:70]}", False
        apart = float((whole(TOKENS).logits.float() - before).abs().max() / before.std())
        tolerance = 1e-3 if form.dtype == torch.float32 else 0.1
        return ("merges", True) if apart < tolerance else (f"merges wrongly: logits {apart:.1f} spreads apart", False)


def adopted(model: Any, folder: Path) -> None:
    """Give a loaded model the resized embeddings that lie whole in its adapter: PEFT leaves new rows at random."""
    tensors = load_file(folder / "adapter_model.safetensors")
    inner = model.get_base_model()
    for module in (inner.get_input_embeddings(), inner.get_output_embeddings()):
        own = getattr(module, "token_adapter", module)
        name = next(name for name, each in model.named_modules() if each is own)
        for part in (f"{name}.weight", f"{name}.base_layer.weight"):
            if part in tensors and not hasattr(module, "modules_to_save"):
                getattr(own, "base_layer", own).weight.data.copy_(tensors[part])


def saved_start(model: Any, folder: Path) -> None:
    """Save an adapter before training as one that starts from nothing, as PEFT's guide to its conversion has it."""
    settings = model.peft_config["default"]
    start, settings.init_lora_weights = settings.init_lora_weights, True
    model.save_pretrained(folder)
    settings.init_lora_weights = start


def configured(form: Form) -> Any:
    """Return PEFT's configuration of a form."""
    import peft

    settings = dict(form.settings)
    if "kasa_config" in settings:
        settings["kasa_config"] = peft.tuners.lora.config.KasaConfig()
    return getattr(peft, form.kind)(**settings, task_type="CAUSAL_LM")


def loaded(base: Path, form: Form) -> Any:
    """Return the base as transformers loads it, resized where the form asks."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=form.dtype)
    if form.vocabulary is not None:
        torch.manual_seed(3)
        model.resize_token_embeddings(form.vocabulary)
    return model


def compared(ours: Adapter, theirs: Checkpoint) -> tuple[float, int]:
    """Return how many units in the last place the tensors are at most apart, and how many the adapter changes."""
    worst = 0.0
    renames = {name: wrapped(name, theirs) for name in ours.tensors}
    for name, other in renames.items():
        mine, its = ours.load(name), theirs.load(other) if other else ours.base.load(name)
        base = ours.base.load(name)
        if mine.dtype != its.dtype or mine.shape != its.shape:
            return float("inf"), 0
        size = torch.maximum(mine.double().abs(), its.double().abs())
        if base.shape == mine.shape:
            size = torch.maximum(size, base.double().abs())
        spacing = torch.finfo(mine.dtype).eps * size.clamp(min=1e-3)
        worst = max(worst, float(((mine.double() - its.double()).abs() / spacing).max()))
    return worst, sum(not ours.shares_base(name) for name in ours.tensors)


def wrapped(name: str, model: Checkpoint) -> str | None:
    """Return the name that a tensor of the text model has in its wrapper, or the other way round."""
    others = (name, f"language_model.{name}", name.removeprefix("language_model."))
    return next((each for each in others if each in model.tensors), None)


def main(words: Sequence[str]) -> int:
    """Print the table; return the exit status."""
    forms = [form for form in FORMS if not words or any(word.lower() in form.name.lower() for word in words)]
    print("| form | base | PEFT | here |\n|---|---|---|---|")
    wrong, equal = [], 0
    with tempfile.TemporaryDirectory() as root:
        desk = Desk(Path(root))
        for form in forms:
            outcome = desk.outcome(form)
            print(f"| {form.name} | {form.base} | {outcome.peft} | {outcome.ours.replace(root, '')} |", flush=True)
            equal += outcome.right and form.expected is None
            wrong += [] if outcome.right else [form.name]
    refused = len(forms) - equal - len(wrong)
    print(
        f"\n{len(forms)} forms: {equal} equal PEFT's merge, {refused} are refused by name, "
        f"{len(wrong)} are wrong: {', '.join(wrong) or 'none'}"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="forms whose names hold one of these; none: all")
    sys.exit(main(parser.parse_args().words))
