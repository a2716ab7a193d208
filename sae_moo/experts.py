"""The pool of experts: checked against the base before anything runs, read tensor by tensor, grouped by block."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sae_moo.checkpoint import DTYPES, HEADS, Checkpoint
from sae_moo.errors import InputError
from sae_moo.ops.operands import Remembered
from sae_moo.recipe import BASE

# Settings that change what a model computes from the same weights: experts that differ there cannot be mixed.
BEHAVIOUR = (
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "hidden_activation",
    "activation_function",
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "partial_rotary_factor",
    "sliding_window",
    "attn_logit_softcapping",
    "final_logit_softcapping",
)
EMBEDDINGS = "embeddings"
HEAD = "head"
# `layers.3.` (Llama, Mistral, Qwen, Gemma, Phi, NeoX), `h.3.` (GPT-2), `blocks.3.`
_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|embed_in|embed_positions|wte|wpe|tok_embeddings|word_embeddings)\.")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One weight tensor of the base model.

    Args:
        name: its name in the checkpoint.
        shape: its shape.
        group: index into `ExpertPool.groups`.
        prunable: whether it is a 2-D weight inside a transformer block.
    """

    name: str
    shape: tuple[int, ...]
    group: int
    prunable: bool

    @property
    def numel(self) -> int:
        """Number of elements."""
        return int(torch.Size(self.shape).numel())


def group_name(tensor: str) -> str:
    """Return the group of a tensor by its name: ``embeddings``, ``block.N`` or ``head`` (final norm and head)."""
    block = _BLOCK.search(tensor)
    if block:
        return f"block.{int(block.group(1))}"
    return EMBEDDINGS if _EMBEDDING.search(tensor) else HEAD


class ExpertPool:
    """A base model and the experts fine-tuned from it, all of one architecture.

    Build one with `open`.

    Attributes:
        names: ``base`` first, then the experts in the order given.
        groups: group names in model order: embeddings, blocks, head.
        tensors: every weight tensor once (a tied head is none), in model order.
        fingerprints: name -> content fingerprint.
        remembered: numbers about the experts' tensors that merge methods computed once.
    """

    def __init__(self, checkpoints: Mapping[str, Checkpoint]) -> None:
        self.checkpoints = dict(checkpoints)
        self.names = tuple(self.checkpoints)
        _check_compatible(self.checkpoints)
        base = self.checkpoints[BASE]
        named = {name: group_name(name) for name in base.tensors}
        self.groups = tuple(sorted(set(named.values()), key=_group_order))
        ordered = sorted(base.tensors, key=lambda name: (_group_order(named[name]), name))
        self.tensors = tuple(
            TensorInfo(
                name,
                base.tensors[name].shape,
                self.groups.index(named[name]),
                len(base.tensors[name].shape) == 2 and named[name].startswith("block."),
            )
            for name in ordered
        )
        if not ordered:
            raise InputError(f"{base.source}: the checkpoint holds no tensors")
        if not any(tensor.prunable for tensor in self.tensors):
            raise InputError(
                f"{base.source}: found no 2-D weights inside transformer blocks; names such as {ordered[0]}"
            )
        self.fingerprints = _fingerprints(self.checkpoints)
        self.remembered = Remembered()

    @classmethod
    def open(cls, base: str, experts: Mapping[str, str], relative_to: Path | None = None) -> ExpertPool:
        """Open and check the checkpoints; nothing is read into memory beyond headers and one pass for fingerprints.

        Args:
            base: the base model: ``zoo:NAME``, a folder, or a hub id.
            experts: name -> the same, at least one; ``base`` is not a name for an expert.
            relative_to: folder that relative paths start from; None means the current one.

        Raises:
            InputError: listing every checkpoint that cannot be opened, or every difference from the base.
        """
        if not experts:
            raise InputError("experts: expected at least one, got none")
        if BASE in experts:
            raise InputError(f"experts: {BASE!r} names the base model; give the expert another name")
        opened: dict[str, Checkpoint] = {}
        faults = []
        for name, source in {BASE: base, **experts}.items():
            try:
                opened[name] = Checkpoint(str(source), relative_to)
            except InputError as error:
                faults.append(f"{name}: {error}")
        if faults:
            raise InputError(_listed("cannot open", faults))
        return cls(opened)

    def load(self, name: str, tensor: str) -> Tensor:
        """Return one tensor of one expert as stored, on the CPU, memory-mapped: do not write to it."""
        return self.checkpoints[name].load(tensor)

    def live_model(self, dtype: torch.dtype | str = torch.float32, device: torch.device | str = "cpu") -> Any:
        """Return a transformers model to materialize into; its weights are the base's until then.

        Args:
            dtype: dtype of the weights, a torch dtype or its name.
            device: where the weights live.

        Raises:
            InputError: if transformers does not know the architecture or its parameters do not match the tensors.
        """
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        model = load_model(self.checkpoints[BASE].folder, dtype, device)
        self.parameters(model)
        return model

    def tokenizer(self) -> Any:
        """Return the base model's tokenizer."""
        return load_tokenizer(self.checkpoints[BASE].folder)

    def parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return tensor name -> parameter of a live model, in the pool's order.

        Raises:
            InputError: naming parameters without a tensor and tensors without a parameter.
        """
        own = dict(model.named_parameters())  # a tied head is listed once, under the embeddings' name
        prefix = getattr(model, "base_model_prefix", "")
        found = {info.name: own.get(info.name, own.get(f"{prefix}.{info.name}")) for info in self.tensors}
        for name in HEADS:  # transformers renames some heads as it loads them
            if name in found and found[name] is None:
                found[name] = model.get_output_embeddings().weight  # type: ignore[operator]
        lost = [name for name, parameter in found.items() if parameter is None]
        matched = {id(parameter) for parameter in found.values()}
        unset = [name for name, parameter in own.items() if id(parameter) not in matched]
        if lost or unset:
            raise InputError(
                _listed(
                    "the model that transformers builds does not match the checkpoint",
                    [f"tensor without parameter: {name}" for name in lost[:10]]
                    + [f"parameter without tensor: {name}" for name in unset[:10]],
                )
            )
        return {name: parameter for name, parameter in found.items() if parameter is not None}


def load_model(folder: Path, dtype: torch.dtype, device: torch.device | str) -> Any:
    """Load a causal LM from a local folder, ready for scoring.

    Raises:
        InputError: if transformers cannot build it.
    """
    from transformers import AutoModelForCausalLM

    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True
        )
    except Exception as error:  # whatever transformers' many config classes raise at what they find
        raise InputError(f"{folder}: transformers cannot load this as a causal LM: {error}") from error
    return model.to(device).eval().requires_grad_(False)


def load_tokenizer(folder: Path) -> Any:
    """Load a tokenizer from a local folder.

    Raises:
        InputError: if there is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever transformers' many tokenizer classes raise at what they find
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{folder}: expected a tokenizer beside the model: {reason}") from error


def _check_compatible(checkpoints: Mapping[str, Checkpoint]) -> None:
    base = checkpoints[BASE]
    faults = []
    for name, expert in checkpoints.items():
        odd = Counter(facts.dtype for facts in expert.tensors.values() if facts.dtype not in DTYPES)
        faults += [f"{name}: {n} tensors of dtype {dtype}; expected {', '.join(DTYPES)}" for dtype, n in odd.items()]
        if name == BASE:
            continue
        facts = [
            ("architecture", base.config.get("model_type"), expert.config.get("model_type")),
            ("vocabulary size", base.vocabulary, expert.vocabulary),
            ("head", *("tied to the embeddings" if each.tied else "of its own" for each in (base, expert))),
        ]
        facts += [(f"{key} in config.json", base.config.get(key), expert.config.get(key)) for key in BEHAVIOUR]
        faults += [
            f"{name}: {what} is {theirs}, the base's is {ours}" for what, ours, theirs in facts if ours != theirs
        ]
        missing = [tensor for tensor in base.tensors if tensor not in expert.tensors]
        extra = [tensor for tensor in expert.tensors if tensor not in base.tensors]
        faults += _at_most([f"{name}: tensor {tensor} is missing" for tensor in missing])
        faults += _at_most([f"{name}: tensor {tensor} is not in the base" for tensor in extra])
        shared = [tensor for tensor in base.tensors if tensor in expert.tensors]
        pairs = [(tensor, base.tensors[tensor], expert.tensors[tensor]) for tensor in shared]
        faults += _at_most(
            [
                f"{name}: {tensor} has shape {b.shape}, expected {a.shape}"
                for tensor, a, b in pairs
                if a.shape != b.shape
            ]
        )
        faults += _at_most(
            [
                f"{name}: {tensor} has dtype {b.dtype}, expected {a.dtype}"
                for tensor, a, b in pairs
                if a.dtype != b.dtype
            ]
        )
    if faults:
        raise InputError(_listed("the experts do not fit the base", faults))


def _fingerprints(checkpoints: Mapping[str, Checkpoint]) -> dict[str, str]:
    found, faults = {}, []
    for name, checkpoint in checkpoints.items():
        try:
            found[name] = checkpoint.fingerprint
        except InputError as error:
            faults.append(f"{name}: {error}")
    if faults:
        raise InputError(_listed("cannot use", faults))
    return found


def _at_most(faults: Sequence[str], shown: int = 8) -> list[str]:
    return [*faults[:shown], *([f"... and {len(faults) - shown} more like this"] if len(faults) > shown else [])]


def _listed(title: str, faults: Sequence[str]) -> str:
    return title + ":\n" + "\n".join(f"  - {fault}" for fault in faults)


def _group_order(group: str) -> tuple[int, int]:
    if group == EMBEDDINGS:
        return (0, 0)
    return (2, 0) if group == HEAD else (1, int(group.removeprefix("block.")))
