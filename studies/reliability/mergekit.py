# a configuration a line, where it fits
"""Which configurations of the kinds that stand in public model cards run here, and are the numbers mergekit's?

    python studies/reliability/mergekit.py --oracle PYTHON [--folder DIR]

PYTHON has mergekit 0.1.5 (in a virtual environment of its own: its pins clash with ours). Makes random Llama models of
four layers with tokenizers, merges every kind by mergekit and by `sae-moo merge`, and prints a table. Rows of tokens
are compared by token. The configurations are our own; only their kinds are those of public ones.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TWO = "models:\n  - {model: math, parameters: {weight: 0.5}}\n  - {model: code, parameters: {weight: 0.9}}\n"
DENSE = (
    "models:\n  - {model: math, parameters: {weight: 0.5, density: 0.6}}\n"
    "  - {model: code, parameters: {weight: [0.2, 0.8], density: 0.4}}\n"
)
PLAIN = "models: [{model: math}, {model: code}, {model: law}]\n"
CHAT = "models:\n  - {model: chat, parameters: {weight: 0.5}}\n  - {model: tool, parameters: {weight: 0.4}}\n"
T = "parameters: {t: [{filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}, {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}, {value: 0.5}]}\n"

KINDS: Mapping[str, str] = {
    "linear": "merge_method: linear\n" + TWO,
    "linear, normalize off, out_dtype": "merge_method: linear\nparameters: {normalize: false}\ndtype: float32\nout_dtype: bfloat16\n" + TWO,
    "linear, gradients and filters": (
        "merge_method: linear\nmodels:\n"
        "  - {model: math, parameters: {weight: [{filter: mlp, value: [0.1, 0.9]}, {value: 1}]}}\n"
        "  - {model: code, parameters: {weight: [0.3, 0.6, 0.2]}}\n"
    ),
    "slerp of slices, gradients and filters": (
        "merge_method: slerp\nbase_model: math\nslices:\n  - sources:\n"
        "      - {model: math, layer_range: [0, 4]}\n      - {model: code, layer_range: [0, 4]}\n" + T
    ),
    "slerp of models": "merge_method: slerp\nbase_model: math\nmodels: [{model: math}, {model: code}]\n" + T,
    "ties": "merge_method: ties\nbase_model: base\nparameters: {normalize: true, int8_mask: true}\n" + DENSE,
    "ties, lambda": "merge_method: ties\nbase_model: base\nparameters: {lambda: 0.8}\n" + DENSE,
    "dare_ties, dropped at random": "merge_method: dare_ties\nbase_model: base\nparameters: {int8_mask: true}\n" + DENSE,
    "dare_linear, dropped at random": "merge_method: dare_linear\nbase_model: base\nparameters: {normalize: true}\n" + DENSE,
    "della, dropped at random": "merge_method: della\nbase_model: base\nparameters: {epsilon: 0.1}\n" + DENSE,
    "dare_ties, nothing dropped": "merge_method: dare_ties\nbase_model: base\nparameters: {int8_mask: true}\n" + TWO,
    "dare_linear, nothing dropped": "merge_method: dare_linear\nbase_model: base\nparameters: {lambda: 0.5}\n" + TWO,
    "della, nothing dropped": "merge_method: della\nbase_model: base\nparameters: {lambda: 1.1, epsilon: 0.05}\n" + TWO,
    "della_linear, nothing dropped": "merge_method: della_linear\nbase_model: base\n" + TWO,
    "breadcrumbs": "merge_method: breadcrumbs\nbase_model: base\nparameters: {gamma: 0.02}\n" + DENSE,
    "breadcrumbs_ties": "merge_method: breadcrumbs_ties\nbase_model: base\n" + DENSE,
    "model_stock": "merge_method: model_stock\nbase_model: base\n" + PLAIN,
    "nuslerp": "merge_method: nuslerp\n" + TWO,
    "nuslerp on task vectors": "merge_method: nuslerp\nbase_model: base\n" + TWO,
    "sce": "merge_method: sce\nbase_model: base\nparameters: {select_topk: 0.3}\n" + PLAIN,
    "karcher": "merge_method: karcher\nparameters: {max_iter: 20, tol: 1e-5}\n" + PLAIN,
    "arcee_fusion": "merge_method: arcee_fusion\nbase_model: base\nmodels: [{model: code}]\n",
    "multislerp": "merge_method: multislerp\n" + TWO,
    "multislerp on task vectors": "merge_method: multislerp\nbase_model: base\n" + TWO,
    "task_arithmetic": "merge_method: task_arithmetic\nbase_model: base\n" + TWO,
    "nearswap": "merge_method: nearswap\nbase_model: math\nmodels: [{model: code}]\nparameters: {t: 0.05}\n",
    "nearswap, gradient": "merge_method: nearswap\nbase_model: math\nmodels: [{model: math}, {model: code}]\nparameters: {t: [0.01, 0.2]}\n",
    "ram": "merge_method: ram\nbase_model: base\n" + PLAIN,
    "ramplus_tl": "merge_method: ramplus_tl\nbase_model: base\nparameters: {epsilon: 0.1, r: 0.3}\n" + PLAIN,
    "passthrough of one model": "merge_method: passthrough\nmodels: [{model: code}]\n",
    "passthrough, layers repeated (frankenmerge)": (
        "merge_method: passthrough\nslices:\n  - sources: [{model: math, layer_range: [0, 3]}]\n"
        "  - sources: [{model: code, layer_range: [1, 4]}]\n  - sources: [{model: math, layer_range: [2, 4]}]\n"
    ),
    "passthrough, layers dropped": (
        "merge_method: passthrough\nslices:\n  - sources: [{model: math, layer_range: [0, 1]}]\n"
        "  - sources: [{model: math, layer_range: [3, 4]}]\n"
    ),
    "passthrough with scale (zeroed projections)": (
        "merge_method: passthrough\nslices:\n  - sources: [{model: math, layer_range: [0, 3]}]\n"
        "  - sources:\n      - model: math\n        layer_range: [1, 4]\n        parameters:\n"
        "          scale: [{filter: o_proj, value: 0.0}, {filter: layers.2.mlp.down_proj, value: 0.5}, {value: 1.0}]\n"
    ),
    "slices of other layers, merged": (
        "merge_method: linear\nslices:\n"
        "  - sources: [{model: math, layer_range: [0, 2]}, {model: code, layer_range: [2, 4]}]\n"
        "  - sources: [{model: math, layer_range: [1, 4]}, {model: code, layer_range: [1, 4]}]\n"
        "    parameters: {weight: [{filter: layers.1., value: 0.9}, {value: [0.1, 0.7]}]}\nparameters: {weight: 0.5}\n"
    ),
    "ties over a model with an adapter": (
        "merge_method: task_arithmetic\nbase_model: base\nmodels:\n"
        "  - {model: base+lora, parameters: {weight: 0.7}}\n  - {model: code+lora, parameters: {weight: 0.3}}\n"
    ),
    "adapter on the base as base": "merge_method: model_stock\nbase_model: base+lora\nmodels: [{model: math+lora}, {model: code}]\n",
    "tokenizer_source: base": "merge_method: linear\nbase_model: base\nparameters: {weight: 0.3}\ntokenizer_source: base\nmodels: [{model: base}, {model: chat}, {model: tool}]\n",
    "tokenizer_source: a model": "merge_method: task_arithmetic\nbase_model: base\ntokenizer_source: tool\n" + CHAT,
    "tokenizer_source: union": "merge_method: task_arithmetic\nbase_model: base\ntokenizer_source: union\n" + CHAT,
    "tokenizer_source: union, no base_model": "merge_method: linear\ntokenizer_source: union\nmodels:\n  - {model: base, parameters: {weight: 0.2}}\n  - {model: chat, parameters: {weight: 0.5}}\n  - {model: tool, parameters: {weight: 0.4}}\n",
    "tokenizer: union of slerp": "merge_method: slerp\nbase_model: chat\nmodels: [{model: tool}]\nparameters: {t: 0.4}\ntokenizer: {source: union}\n",
    "tokenizer: rows of tokens, padded": (
        "merge_method: task_arithmetic\nbase_model: base\ntokenizer:\n  source: union\n  pad_to_multiple_of: 64\n  tokens:\n"
        "    <|im_start|>: {source: chat}\n    <|im_end|>: {source: {kind: model_token, model: tool, token: <tool>}}\n"
        "    <new>: {source: {kind: zero}}\n    <end>: {source: chat, force: true}\n" + CHAT
    ),
    "tokenizer_source: union, all the same": "merge_method: ties\nbase_model: base\ntokenizer_source: union\n" + DENSE,
    "chat_template auto": "merge_method: linear\nchat_template: auto\n" + TWO,
    "chat_template chatml": "merge_method: linear\nchat_template: chatml\ntokenizer_source: base\n" + TWO,
    "name and architecture keys, dtype among parameters": (
        "name: mine\narchitecture: LlamaForCausalLM\nmerge_method: linear\nparameters: {dtype: bfloat16, unknown: 3}\n" + TWO
    ),
    "dtype: bfloat16 of float32 models": "merge_method: linear\ndtype: bfloat16\n" + TWO,
    "modules": "merge_method: linear\nmodules:\n  default:\n    " + TWO.replace("\n", "\n    ").rstrip() + "\n",
    "several merges in one file": (
        "name: half\nmerge_method: linear\n" + TWO + "---\nmerge_method: ties\nbase_model: half\n"
        "models: [{model: law, parameters: {weight: 0.5, density: 0.5}}]\n"
    ),
}  # fmt: skip
"""Kind -> a configuration of it."""
OWN_MASKS = ("dare_ties, dropped at random", "dare_linear, dropped at random", "della, dropped at random")
"""Kinds whose random masks are each program's own: nothing to compare."""
ROUNDED = ("dtype: bfloat16 of float32 models",)
"""Kinds that mergekit computes in bfloat16, where this rounds once."""

ORACLE = """
import logging, sys
from pathlib import Path
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from mergekit.scripts.multimerge import load_config, make_tasks
from mergekit.graph import Executor
logging.disable(logging.ERROR)
options = MergeOptions(write_model_card=False, quiet=True, lora_merge_cache="cache")
for file in sorted(Path().glob("*.yaml")):
    text, out = file.read_text(), Path("theirs") / file.stem
    try:
        if "\\n---\\n" in text:
            merges, needs = load_config(text, str(out) + "-parts")
            Executor(make_tasks(merges, needs, options, str(out) + "-parts", str(out), False)).execute()
        else:
            run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), str(out), options)
    except Exception as error:
        Path("theirs").mkdir(exist_ok=True)
        (Path("theirs") / (file.stem + ".error")).write_text(f"{type(error).__name__}: {error}")
"""


@dataclass(frozen=True)
class Outcome:
    """What came of one kind.

    Args:
        theirs: None if mergekit ran, else its error.
        ours: None if we did, else our error.
        difference: largest difference between two numbers, infinite if names, shapes or tokens differ; None if one did
            not run.
    """

    theirs: str | None
    ours: str | None
    difference: float | None


def make_models(folder: Path) -> None:
    """Write four random models with one tokenizer, two with further tokens in other orders, and an adapter."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    from sae_moo import zoo

    torch.manual_seed(0)
    added = {"chat": ["<|im_start|>", "<|im_end|>"], "tool": ["<|im_end|>", "<tool>", "<|im_start|>"]}
    start: dict[str, Any] = {}
    for name in ("base", "math", "code", "law", "chat", "tool"):
        rows = 512 + len(added.get(name, []))
        config = LlamaConfig(
            vocab_size=rows, hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2,
            tie_word_embeddings=False, max_position_embeddings=64, bos_token_id=None, eos_token_id=1, pad_token_id=0,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
        start = start or {key: each.clone() for key, each in model.state_dict().items()}
        with torch.no_grad():
            for key, each in model.named_parameters():
                each[: len(start[key])].copy_(
                    start[key] + (0.1 * torch.randn_like(start[key]) if name != "base" else 0)
                )
        model.save_pretrained(folder / name)
        document = json.loads((zoo.checkpoint("base") / "tokenizer.json").read_text())
        marks = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for row, token in enumerate(added.get(name, []), start=512):
            document["added_tokens"].append({"id": row, "content": token, **marks})
        (folder / name / "tokenizer.json").write_text(json.dumps(document))
        shutil.copy(zoo.checkpoint("base") / "tokenizer_config.json", folder / name)
    adapter: dict[str, Any] = {}
    for key in (key for key in start if "q_proj" in key or "down_proj" in key):
        rows, columns = start[key].shape
        module = f"base_model.model.{key.removesuffix('.weight')}"
        adapter |= {
            f"{module}.lora_A.weight": torch.randn(2, columns),
            f"{module}.lora_B.weight": torch.randn(rows, 2) / 9,
        }
    (folder / "lora").mkdir()
    save_file(adapter, folder / "lora/adapter_model.safetensors")
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "bias": "none"}
    settings |= {"target_modules": ["q_proj", "down_proj"], "base_model_name_or_path": "base"}
    (folder / "lora/adapter_config.json").write_text(json.dumps(settings))


def outcomes(folder: Path, oracle: str) -> dict[str, Outcome]:
    """Merge every kind both ways, in an empty folder.

    Args:
        folder: to work in.
        oracle: a Python that has mergekit.
    """
    from sae_moo.errors import SaeMooError
    from sae_moo.jobs.merge import merge

    make_models(folder)
    stems = {kind: f"{number:02}" for number, kind in enumerate(KINDS)}
    for kind, text in KINDS.items():
        (folder / f"{stems[kind]}.yaml").write_text(text)
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    subprocess.run([oracle, "-c", ORACLE], check=True, cwd=folder, env=offline, capture_output=True)
    (folder / "ours").mkdir()
    found: dict[str, Outcome] = {}
    with chdir(folder):
        for kind, stem in stems.items():
            failure, fault = Path(f"theirs/{stem}.error"), None
            theirs = failure.read_text() if failure.is_file() else None
            try:
                merge(f"{stem}.yaml", f"ours/{stem}")
            except SaeMooError as error:
                fault = str(error)
            both = theirs is None and fault is None
            far = difference(Path(f"theirs/{stem}"), Path(f"ours/{stem}")) if both else None
            found[kind] = Outcome(theirs, fault, far)
    return found


def difference(theirs: Path, ours: Path) -> float:
    """Return the largest difference between two numbers of two models, infinite if names, shapes or tokens differ."""
    import torch

    from sae_moo.experts.checkpoint import Checkpoint
    from sae_moo.experts.layout import has_a_row_per_token
    from sae_moo.experts.tokens import token_list

    one, other = Checkpoint(str(theirs)), Checkpoint(str(ours))
    if one.tensors != other.tensors:
        return math.inf
    keys = ("num_hidden_layers", "vocab_size")
    if any(one.config[key] != other.config[key] for key in keys):
        return math.inf
    tokens, mine = token_list(theirs) or {}, token_list(ours) or {}
    if tokens.keys() != mine.keys():
        return math.inf
    largest = 0.0
    for name in one.tensors:
        a, b = one.load(name).double(), other.load(name).double()
        if has_a_row_per_token(name):
            order = torch.arange(len(a))
            order[list(tokens.values())] = torch.tensor([mine[token] for token in tokens])
            b = b[order]
        largest = max(largest, float((a - b).abs().max()))
    return largest


def table(found: Mapping[str, Outcome]) -> str:
    """Return the outcomes as a table in Markdown."""
    lines = ["| kind | mergekit runs | ours runs | largest difference |", "|---|---|---|---|"]
    for kind, each in found.items():
        far = "" if each.difference is None else ("none" if each.difference == 0 else f"{each.difference:.1e}")
        far = "masks of its own" if kind in OWN_MASKS else f"{far}, roundings to bfloat16" if kind in ROUNDED else far
        lines.append(f"| {kind} | {_said(each.theirs)} | {_said(each.ours)} | {far} |")
    ran = sum(each.theirs is None for each in found.values())
    run = sum(each.ours is None for each in found.values() if each.theirs is None)
    return "\n".join([*lines, "", f"mergekit runs {ran} of {len(found)}, this {run} of these"])


def _said(error: str | None) -> str:
    return "yes" if error is None else "no: " + " ".join(error.split())[:120]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--oracle", required=True, help="a Python that has mergekit 0.1.5")
    parser.add_argument("--folder", type=Path, help="an empty folder to work in, which is kept")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        folder.mkdir(exist_ok=True)
        print(table(outcomes(folder.resolve(), given.oracle)))


if __name__ == "__main__":
    main()
