"""The pool of experts: checked against the base before anything runs, read tensor by tensor, grouped by block."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from sae_moo.errors import InputError, first_few, itemized
from sae_moo.experts.adapters import Adapter
from sae_moo.experts.built import built_model, check_places
from sae_moo.experts.checkpoint import Checkpoint, ModelWeights, is_adapter, locate
from sae_moo.experts.composed import Composed, is_composed
from sae_moo.experts.layers import Order, Relaid, layer_count
from sae_moo.experts.layout import STORED_DTYPES, dtype_of, group_name, has_a_row_per_token
from sae_moo.experts.live import load_model, parsed_config, places
from sae_moo.experts.memory import Remembered
from sae_moo.experts.tokens import token_list
from sae_moo.experts.vocabulary import REFUSE, Policy, aligned, policy_of
from sae_moo.recipe import BASE
from sae_moo.recipe.groups import in_block, model_order

SIZES = ("hidden_size", "n_embd", "num_hidden_layers", "n_layer", "intermediate_size", "n_inner", "num_local_experts")
"""Settings of ``config.json`` that say in a line why the tensors of two models differ."""
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
    "num_experts_per_tok",
    "norm_topk_prob",
)
# A mixture's experts stacked into one 3-D tensor, where a checkpoint stores them so (GPT-OSS, GraniteMoE).
_STACKED = re.compile(r"\.(?:experts|block_sparse_moe)\.")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One weight tensor of the base model.

    Args:
        name: its name in the checkpoint.
        shape: its shape.
        group: index into `ExpertPool.groups`.
        prunable: whether it is a 2-D weight inside a transformer block, or a stack of such (the experts of a mixture,
            where the checkpoint holds one 3-D tensor of them instead of a matrix each).
    """

    name: str
    shape: tuple[int, ...]
    group: int
    prunable: bool

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class ExpertPool:
    """A base model and the experts fine-tuned from it, all of one architecture; dtypes may differ.

    Build one with `open`.

    Args:
        checkpoints: name -> weights, the base under ``base``, first.
        vocabulary: what to do about experts whose vocabulary is not the base's; see `vocabulary.aligned`.
        layers: name -> for each layer of the models that are made, which of the expert's own it is; None: the base's.
            All models have them or none.

    Attributes:
        names: ``base`` first, then the experts in the order given.
        groups: group names in model order: embeddings, blocks, head.
        tensors: every weight tensor once (a tied head is none), in model order.
        fingerprints: name -> content fingerprint.
        vocabulary: the policy.
        layers: name -> the order of its layers, of models that do not have them as they lie.
        remembered: numbers about the experts' tensors that merge methods computed once.
        resident_bytes: most bytes of experts' tensors to keep on a device that is not the CPU; None: half of what is
            free there when the first one is asked for.
        norms: digest of a calibration -> tensor name -> norm of each input feature; see `calibration`.
    """

    def __init__(
        self,
        checkpoints: Mapping[str, ModelWeights],
        vocabulary: Policy = REFUSE,
        layers: Mapping[str, Order] | None = None,
    ) -> None:
        self.vocabulary = policy_of(vocabulary) if isinstance(vocabulary, str) else vocabulary
        self.names = tuple(checkpoints)
        self._opened = _in_order(checkpoints, layers or {})
        self.layers = {name: each.order for name, each in self._opened.items() if isinstance(each, Relaid)}
        self._matched = aligned(self._opened, self.vocabulary)
        self.checkpoints = self._matched.models
        faults = [*_incompatible(self.checkpoints), *self._matched.faults]
        if faults:
            raise InputError(itemized("the experts do not fit the base", faults))
        base = self.checkpoints[BASE]
        named = {name: group_name(name) for name in base.tensors}
        self.groups = tuple(sorted(set(named.values()), key=model_order))
        ordered = sorted(base.tensors, key=lambda name: (model_order(named[name]), name))
        self.tensors = tuple(
            TensorInfo(
                name,
                base.tensors[name].shape,
                self.groups.index(named[name]),
                in_block(named[name]) and _is_prunable(name, base.tensors[name].shape),
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
        self.resident_bytes: int | None = None
        self._resident: dict[tuple[str, str, str], Tensor] = {}
        self.norms: dict[str, Mapping[str, Tensor]] = {}

    @classmethod
    def open(
        cls, base: str, experts: Mapping[str, str], relative_to: Path | None = None, vocabulary: Policy = REFUSE
    ) -> ExpertPool:
        """Open and check the models; nothing is read into memory beyond headers and one pass for fingerprints.

        Args:
            base: the base model: ``zoo:NAME``, a folder, or a hub id (``owner/name@revision``).
            experts: name -> the same, or a PEFT LoRA adapter of the base; at least one; ``base`` is not a name for one.
            relative_to: folder that relative paths start from; None means the current one.
            vocabulary: ``refuse``, ``intersection``, ``base``, ``union``, ``position`` or a `vocabulary.Vocabulary`:
                what to do about experts whose vocabulary is not the base's; see `vocabulary.aligned`.

        Raises:
            InputError: listing every model that cannot be opened, or every difference from the base.
        """
        if not experts:
            raise InputError("experts: expected at least one, got none")
        return cls(open_models(base, experts, relative_to), vocabulary)

    def load(self, name: str, tensor: str) -> Tensor:
        """Return one tensor of one expert in its own dtype, on the CPU: do not write to it.

        A checkpoint's is memory-mapped, as stored. An adapter's is computed anew by each call, unless the adapter does
        not touch it: then it is the base's.
        """
        return self.checkpoints[name].load(tensor)

    def load_on(self, name: str, tensor: str, device: torch.device | str) -> Tensor:
        """Return one tensor of one expert on a device: do not write to it.

        On the CPU that is `load`. Elsewhere tensors stay, first come first kept, while they fit into `resident_bytes`:
        then a candidate costs no transfer. The others are sent anew each time. On CUDA a tensor may still be on its
        way, on the stream that was current when it was first asked for: `feed.Feed` waits for it.
        """
        device = torch.device(device)
        if device.type == "cpu":
            return self.load(name, tensor)
        key = (str(device), name, tensor)
        if key not in self._resident:
            if self.resident_bytes is None:
                self.resident_bytes = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 0
            source = self.load(name, tensor)
            # only from page-locked memory is anything sent while the device works
            sent = (source.pin_memory() if device.type == "cuda" else source).to(device, non_blocking=True)
            if sum(kept.nbytes for kept in self._resident.values()) + sent.nbytes > self.resident_bytes:
                return sent
            self._resident[key] = sent
        return self._resident[key]

    def stored(self, name: str, tensor: str) -> bool:
        """Say whether `load` gives a view into a file, which takes no memory of the process's own."""
        return self.checkpoints[name].stored(tensor)

    def shares_base(self, name: str, tensor: str) -> bool:
        """Say whether a tensor is known, without reading it, to be the base's bit for bit.

        True for the base itself and for what an adapter does not touch. False says nothing: a checkpoint may hold an
        equal copy.
        """
        return name == BASE or self.checkpoints[name].shares_base(tensor)

    def live_model(self, dtype: torch.dtype | str = torch.float32, device: torch.device | str = "cpu") -> Any:
        """Return a transformers model to materialize into; its weights are the base's until then.

        Args:
            dtype: dtype of the weights, a torch dtype or its name.
            device: where the weights live.

        Raises:
            InputError: if transformers does not know the architecture or its parameters do not match the tensors.
        """
        dtype = dtype_of(dtype) if isinstance(dtype, str) else dtype
        base = self.checkpoints[BASE]
        if self.layers:
            model = built_model(base.config, dtype, device)
            self.parameters(model)
            return model
        model = load_model(base.folder, dtype, device)
        if base.vocabulary != self._opened[BASE].vocabulary:
            model.resize_token_embeddings(base.vocabulary, mean_resizing=False)
        self.parameters(model)
        return model

    @property
    def joined(self) -> bool:
        """Whether the models that are made have a vocabulary that was put together, not the base's."""
        return self._matched.tokens is not None

    @property
    def tokenizer_folder(self) -> Path | None:
        """The folder whose tokenizer is that of all models made of the pool; None: tokens are to be added to one."""
        return self._matched.folder(self._opened)

    def tokens(self) -> dict[str, int] | None:
        """Return token -> row of the tokenizer of every model that is made of the pool; None if there is none.

        Raises:
            InputError: if there is one that cannot be read.
        """
        put_together = self._matched.tokens
        return token_list(self.checkpoints[BASE].folder) if put_together is None else put_together

    def tokenizer(self) -> Any:
        """Return the tokenizer of all models made of the pool: the base's, unless a vocabulary was put together.

        Raises:
            InputError: if there is none, or it cannot be loaded.
        """
        return self._matched.whole_tokenizer(self._opened)

    def parameters(self, model: nn.Module) -> dict[str, Tensor]:
        """Return tensor name -> its place in a live model, to be written with ``copy_``, in the pool's order.

        A place is a parameter, or a view into one where transformers fuses what the checkpoint holds apart: the experts
        of a mixture.

        Raises:
            InputError: naming parameters without a tensor and tensors without a parameter.
        """
        return places(model, [info.name for info in self.tensors])


def open_models(base: str, experts: Mapping[str, str], relative_to: Path | None = None) -> dict[str, ModelWeights]:
    """Open a base and experts, without comparing them; see `ExpertPool.open`.

    Raises:
        InputError: listing every model that cannot be opened.
    """
    if BASE in experts:
        raise InputError(f"experts: {BASE!r} names the base model; give the expert another name")
    opened: dict[str, ModelWeights] = {}
    faults = []
    for name, source in {BASE: base, **experts}.items():
        try:
            if name == BASE:
                opened[name] = _base(str(source), relative_to)
            else:
                weights = _expert(str(source), relative_to, opened.get(BASE))
                if weights is not None:
                    opened[name] = weights
        except InputError as error:
            faults.append(f"{name}: {error}")
    if faults:
        raise InputError(itemized("cannot open", faults))
    return opened


def _base(source: str, relative_to: Path | None) -> ModelWeights:
    if is_composed(source, relative_to):
        return Composed(source, relative_to)
    folder, _ = locate(source, relative_to)
    if is_adapter(folder):
        raise InputError(f"{folder}: expected a model, got an adapter; it can be an expert over its base")
    return Checkpoint(source, relative_to)


def _expert(source: str, relative_to: Path | None, base: ModelWeights | None) -> ModelWeights | None:
    """Open an expert; None for an adapter whose base could not be opened: nothing can be said of it."""
    if is_composed(source, relative_to):
        return Composed(source, relative_to)
    folder, _ = locate(source, relative_to)
    if not is_adapter(folder):
        return Checkpoint(source, relative_to)
    if isinstance(base, Composed):
        raise InputError(f"{folder}: an adapter over a base that has one itself; write model+adapter")
    return None if base is None else Adapter(source, cast(Checkpoint, base), relative_to)


def _in_order(models: Mapping[str, ModelWeights], layers: Mapping[str, Order]) -> dict[str, ModelWeights]:
    """Return the models with their layers in the orders given, as they are where that is how they lie."""
    if not layers:
        return dict(models)
    faults = []
    if len({len(order) for order in layers.values()}) != 1 or layers.keys() != models.keys():
        raise InputError(f"layers: expected as many for each of {', '.join(models)}, got {dict(layers)}")
    try:
        if all(list(layers[name]) == list(range(layer_count(model))) for name, model in models.items()):
            return dict(models)
        base = Relaid(models[BASE], _standing_in(layers, layer_count(models[BASE])))
    except InputError as error:
        raise InputError(itemized("the layers do not fit", [f"{BASE}: {error}"])) from error
    result: dict[str, ModelWeights] = {BASE: base}
    for name, model in models.items():
        try:
            if name != BASE:
                result[name] = Relaid(model, layers[name], base)
        except InputError as error:
            faults.append(f"{name}: {error}")
    if faults:
        raise InputError(itemized("the layers do not fit", faults))
    if parsed_config(base.folder) is not None:  # else its class is code of its own, which is not run
        check_places(base.config, {name: facts.shape for name, facts in base.tensors.items()})
    return result


def _standing_in(layers: Mapping[str, Order], count: int) -> list[int]:
    """Return the base's layers, where it has no part the same as another's has: likely it is of the same kind."""
    result = []
    for place, own in enumerate(layers[BASE]):
        others = (order[place] for order in layers.values() if order[place] is not None)
        result.append(min(next(others, 0) or 0, count - 1) if own is None else own)
    return result


def _is_prunable(name: str, shape: Sequence[int]) -> bool:
    return not name.endswith("bias") and (len(shape) == 2 or (len(shape) == 3 and bool(_STACKED.search(name))))


def _incompatible(checkpoints: Mapping[str, ModelWeights]) -> list[str]:
    base = checkpoints[BASE]
    faults = []
    for name, expert in checkpoints.items():
        odd = Counter(facts.dtype for facts in expert.tensors.values() if facts.dtype not in STORED_DTYPES)
        faults += [
            f"{name}: {n} tensors of dtype {dtype}; expected {', '.join(STORED_DTYPES)}" for dtype, n in odd.items()
        ]
        if name == BASE:
            continue
        kind, own = base.config.get("model_type"), expert.config.get("model_type")
        if own != kind:
            faults.append(f"{name}: architecture is {own}, the base's is {kind}")
            continue
        facts = [("head", *("tied to the embeddings" if each.tied else "of its own" for each in (base, expert)))]
        facts += [(f"{key} in config.json", ours, theirs) for key, ours, theirs in _behaviour(base, expert)]
        faults += [
            f"{name}: {what} is {theirs}, the base's is {ours}" for what, ours, theirs in facts if ours != theirs
        ]
        tensors = _other_tensors(name, base, expert)
        sizes = [(key, base.config.get(key), expert.config.get(key)) for key in SIZES]
        sizes = [(key, ours, theirs) for key, ours, theirs in sizes if ours != theirs and ours and theirs]
        told = [f"{name}: {key} in config.json is {theirs}, the base's is {ours}" for key, ours, theirs in sizes]
        faults += told if tensors and told else tensors
    return faults


def _other_tensors(name: str, base: ModelWeights, expert: ModelWeights) -> list[str]:
    missing = [tensor for tensor in base.tensors if tensor not in expert.tensors]
    extra = [tensor for tensor in expert.tensors if tensor not in base.tensors]
    shared = [tensor for tensor in base.tensors if tensor in expert.tensors]
    shapes = [(tensor, base.tensors[tensor].shape, expert.tensors[tensor].shape) for tensor in shared]
    return [
        *first_few([f"{name}: tensor {tensor} is missing" for tensor in missing]),
        *first_few([f"{name}: tensor {tensor} is not in the base" for tensor in extra]),
        *first_few(
            [
                f"{name}: {tensor} has shape {theirs}, expected {ours}"
                for tensor, ours, theirs in shapes
                if ours != theirs and not (has_a_row_per_token(tensor) and _other_rows(base, expert, ours, theirs))
            ]
        ),
    ]


def _other_rows(base: ModelWeights, expert: ModelWeights, ours: Sequence[int], theirs: Sequence[int]) -> bool:
    """Say whether shapes differ by the vocabulary's size and nothing else, which is reported once."""
    return ours[0] == base.vocabulary and theirs[0] == expert.vocabulary and ours[1:] == theirs[1:]


def _behaviour(base: ModelWeights, expert: ModelWeights) -> list[tuple[str, Any, Any]]:
    """Return the settings of `BEHAVIOUR` that differ: as written, then as transformers reads them.

    One release writes ``rope_theta``, another the same inside ``rope_parameters``; defaults are left out or not.
    """
    written = [(key, base.config.get(key), expert.config.get(key)) for key in BEHAVIOUR]
    written = [(key, ours, theirs) for key, ours, theirs in written if ours != theirs]
    if not written or base.config.get("model_type") != expert.config.get("model_type"):
        return written
    ours, theirs = parsed_config(base.folder), parsed_config(expert.folder)
    if ours is None or theirs is None:
        return written
    return [(key, ours.get(key), theirs.get(key)) for key in BEHAVIOUR if ours.get(key) != theirs.get(key)]


def _fingerprints(checkpoints: Mapping[str, ModelWeights]) -> dict[str, str]:
    found, faults = {}, []
    for name, checkpoint in checkpoints.items():
        try:
            found[name] = checkpoint.fingerprint
        except InputError as error:
            faults.append(f"{name}: {error}")
    if faults:
        raise InputError(itemized("cannot use", faults))
    return found
