"""The pool of experts: checked against the base before anything runs, read tensor by tensor, grouped by block."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sae_moo.errors import InputError, first_few, itemized, nearest
from sae_moo.experts.built import built_model
from sae_moo.experts.checkpoint import ModelWeights
from sae_moo.experts.layers import Order, Relaid
from sae_moo.experts.layout import (
    BLOCK,
    KEPT_DTYPES,
    STORED_DTYPES,
    dtype_of,
    has_a_row_per_token,
    is_head,
    text_config,
)
from sae_moo.experts.live import load_model, parsed_config, places
from sae_moo.experts.memory import Remembered
from sae_moo.experts.opening import in_order, open_models
from sae_moo.experts.resident import Resident, budget_of
from sae_moo.experts.submodels import group_names
from sae_moo.experts.tokens import token_list
from sae_moo.experts.vocabulary import REFUSE, Policy, aligned, policy_of
from sae_moo.recipe import BASE, STORED
from sae_moo.recipe.groups import in_block, is_submodel, model_order

log = logging.getLogger(__name__)

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
            where the checkpoint holds one 3-D tensor of them instead of a matrix each); of the text model, and of
            `ExpertPool.pruned`.
        dtype: what the base stores it in.
        numel: number of elements.
    """

    name: str
    shape: tuple[int, ...]
    group: int
    prunable: bool
    dtype: torch.dtype = torch.float32
    numel: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "numel", math.prod(self.shape))

    def cast(self, dtype: str) -> torch.dtype:
        """Return what a recipe's `Cast` rounds it to: the dtype of that name, its own by ``stored``."""
        return self.dtype if dtype == STORED else dtype_of(dtype)


class ExpertPool:
    """A base model and the experts fine-tuned from it, all of one architecture; dtypes may differ.

    Build one with `open`.

    Args:
        checkpoints: name -> weights, the base under ``base``, first.
        vocabulary: what to do about experts whose vocabulary is not the base's; see `vocabulary.aligned`.
        layers: name -> for each layer of the models that are made, which of the expert's own it is; None: the base's.
            All models have them or none.
        pruned: sub-models whose blocks can be pruned too, and count in the sparsity, by their groups' names.

    Attributes:
        names: ``base`` first, then the experts in the order given.
        groups: group names in model order: embeddings, blocks, head; then sub-models, a group each.
        submodels: the last of these: vision towers, projectors and what else is not the text model.
        pruned: those that can be pruned too.
        tensors: every weight tensor once (a tied head is none), in model order; buffers that the checkpoints hold,
            such as the correction bias of a router, among them.
        kept: the base's tensors of whole numbers or truth values, by name: nothing is merged of them, every model made
            of the experts has the base's.
        fingerprints: name -> content fingerprint.
        vocabulary: the policy.
        layers: name -> the order of its layers, of models that do not have them as they lie.
        remembered: numbers about the experts' tensors that merge methods computed once.
        resident_bytes: most bytes of experts' tensors to keep on each device that is not the CPU; None: half of what is
            free there when the first one is asked for.
        norms: digest of a calibration -> tensor name -> norm of each input feature; see `calibration`.
        texts: digest of a calibration -> sequences of token ids; see `texts`.
        further_texts: adds those that are configured to `texts`; called where others are asked for than are held, and
            so only where something reads them. None: there are no others.
    """

    def __init__(
        self,
        checkpoints: Mapping[str, ModelWeights],
        vocabulary: Policy = REFUSE,
        layers: Mapping[str, Order] | None = None,
        pruned: Iterable[str] = (),
    ) -> None:
        self.vocabulary = policy_of(vocabulary) if isinstance(vocabulary, str) else vocabulary
        self.names = tuple(checkpoints)
        self._opened = in_order(checkpoints, layers or {})
        self.layers = {name: each.order for name, each in self._opened.items() if isinstance(each, Relaid)}
        self._matched = aligned(self._opened, self.vocabulary)
        self.checkpoints = self._matched.models
        faults = [*_incompatible(self.checkpoints), *self._matched.faults]
        if faults:
            raise InputError(itemized("the experts do not fit the base", faults))
        base = self.checkpoints[BASE]
        self.kept = {name: facts for name, facts in base.tensors.items() if facts.dtype in KEPT_DTYPES}
        named = group_names([name for name in base.tensors if name not in self.kept], base.config)
        self.groups = tuple(sorted(set(named.values()), key=model_order))
        self.submodels = tuple(filter(is_submodel, self.groups))
        self.pruned = tuple(sorted(set(pruned)))
        ordered = sorted(named, key=lambda name: (model_order(named[name]), name))
        self.tensors = tuple(
            TensorInfo(
                name,
                base.tensors[name].shape,
                self.groups.index(named[name]),
                self._counts(name, named[name]) and _is_prunable(name, base.tensors[name].shape),
                STORED_DTYPES[base.tensors[name].dtype],
            )
            for name in ordered
        )
        if not ordered:
            raise InputError(f"{base.source}: the checkpoint holds no tensors")
        self._check_pruned()
        if not any(tensor.prunable for tensor in self.tensors):
            raise InputError(
                f"{base.source}: found no 2-D weights inside transformer blocks; names such as {ordered[0]}"
            )
        self.fingerprints = _fingerprints(self.checkpoints)
        _tell_kept(self.checkpoints)
        self.remembered = Remembered()
        self._resident_bytes: int | None = None
        self._residents: dict[torch.device, Resident] = {}
        self.norms: dict[str, Mapping[str, Tensor]] = {}
        self.texts: dict[str, tuple[tuple[int, ...], ...]] = {}
        self.further_texts: Callable[[], object] | None = None

    @classmethod
    def open(
        cls,
        base: str,
        experts: Mapping[str, str],
        relative_to: Path | None = None,
        vocabulary: Policy = REFUSE,
        pruned: Iterable[str] = (),
        roots: Sequence[str] = (),
    ) -> ExpertPool:
        """Open and check the models; nothing is read into memory beyond headers and one pass for fingerprints.

        Args:
            base: the base model: ``zoo:NAME``, a folder, or a hub id (``owner/name@revision``).
            experts: name -> the same, or a PEFT LoRA adapter of the base; at least one; ``base`` is not a name for one.
            relative_to: folder that relative paths start from; None means the current one.
            vocabulary: ``refuse``, ``intersection``, ``base``, ``union``, ``position`` or a `vocabulary.Vocabulary`:
                what to do about experts whose vocabulary is not the base's; see `vocabulary.aligned`.
            pruned: sub-models that can be pruned beside the text model, such as ``vision_tower``.
            roots: folders in which relative paths are looked for first, in this order.

        Raises:
            InputError: listing every model that cannot be opened, or every difference from the base.
        """
        if not isinstance(experts, Mapping):
            raise InputError(f"experts: expected names and sources, {{'math': 'path'}}, got {type(experts).__name__}")
        for name, source in {BASE: base, **experts}.items():
            if not isinstance(name, str) or not isinstance(source, (str, Path)):
                raise InputError(f"{name}: expected the name of a model and a folder or hub id, got {source!r}")
        if not experts:
            raise InputError("experts: expected at least one, got none")
        return cls(open_models(base, experts, relative_to, roots), vocabulary, pruned=pruned)

    @property
    def left_alone(self) -> tuple[str, ...]:
        """Sub-models that are merged, and neither pruned nor counted in any sparsity."""
        return tuple(name for name in self.submodels if name not in self.pruned)

    @property
    def counted_words(self) -> str:
        """What a sparsity is a fraction of, for people."""
        if not self.left_alone:
            return "2-D weights in blocks"
        return f"2-D weights in blocks, those of {', '.join(self.left_alone)} left alone and not counted,"

    @property
    def prunable_sizes(self) -> tuple[tuple[int, int], ...]:
        """Parameter group and number of prunable weights of each tensor, in the pool's order."""
        return tuple((info.group, info.numel if info.prunable else 0) for info in self.tensors)

    def _counts(self, name: str, group: str) -> bool:
        return in_block(group) or (group in self.pruned and BLOCK.search(name) is not None)

    def _check_pruned(self) -> None:
        """Raise InputError if what is to be pruned is no sub-model, or one that holds nothing to prune."""
        prunable = {self.groups[info.group] for info in self.tensors if info.prunable}
        for name in self.pruned:
            if name not in self.submodels:
                known = ", ".join(self.submodels) or "the base has none"
                raise InputError(
                    f"pruning.submodels: expected sub-models of the base ({known}), got {name!r}"
                    f"{nearest(name, self.submodels)}"
                )
            if name not in prunable:
                raise InputError(f"pruning.submodels: {name} holds no 2-D weights in blocks, nothing of it is pruned")

    def load(self, name: str, tensor: str) -> Tensor:
        """Return one tensor of one expert in its own dtype, on the CPU: do not write to it.

        A checkpoint's is memory-mapped, as stored. An adapter's is computed anew by each call, unless the adapter does
        not touch it: then it is the base's.
        """
        return self.checkpoints[name].load(tensor)

    def load_on(self, name: str, tensor: str, device: torch.device | str) -> Tensor:
        """Return one tensor of one expert on a device: do not write to it.

        On the CPU that is `load`. Elsewhere tensors stay while they fit into `resident_bytes`, those of the experts
        used most (see `resident`): then a candidate costs no transfer. The others are sent anew each time, and the
        host waits; `feed.Feed` sends them while the device works.
        """
        device = torch.device(device)
        if device.type == "cpu":
            return self.load(name, tensor)
        name = self.owner(name, tensor)
        resident = self.resident(device)
        kept = resident.get(name, tensor)
        if kept is None:
            kept = resident.keep(name, tensor, self.load(name, tensor).to(device), own=True)
            resident.left()  # nobody works on them by their addresses alone
        return kept

    def resident(self, device: torch.device | str) -> Resident:
        """Return what of the experts stays on a device, the same object every time.

        On the CPU that is nothing, and its budget has no bound.
        """
        device = torch.device(device)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        if device not in self._residents:
            asked = self.resident_bytes
            bound = budget_of(device) if asked is None or device.type == "cpu" else asked
            self._residents[device] = Resident(bound)
        return self._residents[device]

    @property
    def resident_bytes(self) -> int | None:
        """Most bytes of experts' tensors to keep on each device that is not the CPU."""
        return self._resident_bytes

    @resident_bytes.setter
    def resident_bytes(self, most: int | None) -> None:
        self._resident_bytes = most
        for device, resident in self._residents.items():
            if device.type != "cpu":
                resident.budget = budget_of(device) if most is None else most

    def stored(self, name: str, tensor: str) -> bool:
        """Say whether `load` gives a view into a file, which takes no memory of the process's own."""
        return self.checkpoints[name].stored(tensor)

    def shares_base(self, name: str, tensor: str) -> bool:
        """Say whether a tensor is known, without reading it, to be the base's bit for bit.

        True for the base itself and for what an adapter does not touch. False says nothing: a checkpoint may hold an
        equal copy.
        """
        return name == BASE or self.checkpoints[name].shares_base(tensor)

    def owner(self, name: str, tensor: str) -> str:
        """Return whose tensor an expert has, so that it is sent to a device once: the base's, or its own.

        The base's is what is known, without reading it, to be the same in its bits, dtype and shape.
        """
        own, base = (self.checkpoints[each].tensors[tensor] for each in (name, BASE))
        return BASE if own == base and self.shares_base(name, tensor) else name

    def live_model(self, dtype: torch.dtype | str = torch.float32, device: torch.device | str = "cpu") -> Any:
        """Return a transformers model to materialize into; its weights are the base's until then.

        Args:
            dtype: dtype of the weights, a torch dtype or its name.
            device: where the weights live.

        Raises:
            InputError: if transformers does not know the architecture or its parameters do not match the tensors; for
                another dtype, or a device that is not there.
        """
        base = self.checkpoints[BASE]
        dtype = _float_dtype(dtype)
        if self.layers:
            model = built_model(base.config, dtype, device)
            parameters = self.parameters(model)
        else:
            model = load_model(base.folder, dtype, device)
            if base.vocabulary != self._opened[BASE].vocabulary:
                model.resize_token_embeddings(base.vocabulary, mean_resizing=False)
            parameters = self.parameters(model)
            for name in getattr(base, "doubled", ()):  # transformers takes another copy than the index says
                if name in parameters:
                    parameters[name].copy_(base.load(name))
        self._tell_rounded(parameters, dtype)
        return model

    def _tell_rounded(self, parameters: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        """Warn once of tensors that the live model rounds although its dtype is enough for most of the base."""
        main = dtype_of(self.main_dtype)
        lost = [
            info.name
            for info in self.tensors
            if info.name in parameters and not _holds(parameters[info.name].dtype, info.dtype)
        ]
        if lost and _holds(dtype, main):
            short = str(dtype).removeprefix("torch.")
            self.remembered.get(
                ("rounded in the live model", short),
                lambda: log.warning(
                    "the live model, as transformers builds it, has in %s what the base stores with more digits (%s): "
                    "scores are of the rounded ones, merges and exports keep every tensor's own dtype",
                    short,
                    ", ".join(lost[:3]) + (f" and {len(lost) - 3} more" if len(lost) > 3 else ""),
                ),
            )

    @property
    def main_dtype(self) -> str:
        """Name of the base's dtype: the one that most of its prunable weights are stored in."""
        sizes = Counter[torch.dtype]()
        for info in self.tensors:
            if info.prunable:
                sizes[info.dtype] += info.numel
        return str(max(sizes, key=lambda dtype: sizes[dtype])).removeprefix("torch.")

    def rounding(self, dtype: str) -> str:
        """Return what the `Cast` of a model of a dtype says, so that no tensor loses what the base keeps of it.

        Args:
            dtype: by its name.

        Returns:
            ``stored`` if that is the base's main dtype and some tensors have another; else the dtype.
        """
        mixed = any(info.dtype != self.tensors[0].dtype for info in self.tensors)
        return STORED if mixed and dtype == self.main_dtype else dtype

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

        A place is a parameter or a buffer, or a view into one where transformers fuses what the checkpoint holds apart:
        the experts of a mixture. A tensor of no elements, which needs none, has one of its own.

        What belongs to a sub-model may have none: heads for further tokens that transformers does not build.

        Raises:
            InputError: naming parameters without a tensor and tensors without a parameter.
        """
        unbuilt = {info.name for info in self.tensors if self.groups[info.group] in self.submodels}
        found = places(model, [info.name for info in self.tensors if info.numel], unbuilt)
        empty = next(iter(found.values())).new_empty(0)
        found |= {info.name: empty.view(info.shape) for info in self.tensors if not info.numel}
        return {info.name: found[info.name] for info in self.tensors if info.name in found}


def _holds(dtype: torch.dtype, other: torch.dtype) -> bool:
    """Say whether a dtype has every number of another."""
    return torch.promote_types(dtype, other) == dtype


def _is_prunable(name: str, shape: Sequence[int]) -> bool:
    return (
        not name.endswith("bias")
        and 0 not in shape
        and (len(shape) == 2 or (len(shape) == 3 and bool(_STACKED.search(name))))
    )


def _incompatible(checkpoints: Mapping[str, ModelWeights]) -> list[str]:
    base = checkpoints[BASE]
    faults = []
    for name, expert in checkpoints.items():
        odd = Counter(facts.dtype for tensor, facts in expert.tensors.items() if not _usable(tensor, facts.dtype))
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
        here, there = ({**model.config, **text_config(model.config)} for model in (base, expert))
        sizes = [(key, here.get(key), there.get(key)) for key in SIZES]
        sizes = [(key, ours, theirs) for key, ours, theirs in sizes if ours != theirs and ours and theirs]
        told = [f"{name}: {key} in config.json is {theirs}, the base's is {ours}" for key, ours, theirs in sizes]
        faults += told if tensors and told else tensors
    return faults


def _other_tensors(name: str, base: ModelWeights, expert: ModelWeights) -> list[str]:
    missing = [tensor for tensor in _weights(base) if tensor not in expert.tensors]
    extra = [tensor for tensor in _weights(expert) if tensor not in base.tensors]
    if base.tied and not expert.tied:  # told of as such
        extra = [tensor for tensor in extra if not is_head(tensor)]
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


def _usable(tensor: str, dtype: str) -> bool:
    """Say whether a tensor is weights, or whole numbers that are none: a counter, a table, a mask."""
    return dtype in STORED_DTYPES or (dtype in KEPT_DTYPES and "weight" not in tensor.rpartition(".")[2])


def _weights(model: ModelWeights) -> list[str]:
    """Return the names of the tensors that are merged: an expert may lack the others, or have its own."""
    return [tensor for tensor, facts in model.tensors.items() if facts.dtype not in KEPT_DTYPES]


def _tell_kept(checkpoints: Mapping[str, ModelWeights]) -> None:
    """Warn of whole numbers and truth values of experts that are not the base's: they are left out."""
    base = checkpoints[BASE]
    for name, expert in checkpoints.items():
        kept = [tensor for tensor, facts in expert.tensors.items() if facts.dtype in KEPT_DTYPES]
        other = [
            tensor
            for tensor in kept
            if base.tensors.get(tensor) != expert.tensors[tensor]
            or not torch.equal(base.load(tensor), expert.load(tensor))
        ]
        if name != BASE and other:
            log.warning(
                "%s: %d tensors of whole numbers or truth values (%s) are not the base's: nothing is merged of them, "
                "the base's are taken",
                name,
                len(other),
                ", ".join(other[:3]),
            )


def _float_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """Return the dtype of a live model.

    Raises:
        InputError: if weights cannot have it.
    """
    known = {str(each).removeprefix("torch."): each for each in STORED_DTYPES.values()}
    name = str(dtype).removeprefix("torch.")
    if name not in known:
        raise InputError(f"dtype: expected one of {', '.join(known)}, got {name!r}{nearest(name, known)}")
    return known[name]


def _other_rows(base: ModelWeights, expert: ModelWeights, ours: Sequence[int], theirs: Sequence[int]) -> bool:
    """Say whether shapes differ by the vocabulary's size and nothing else, which is reported once."""
    return ours[0] == base.vocabulary and theirs[0] == expert.vocabulary and ours[1:] == theirs[1:]


def _behaviour(base: ModelWeights, expert: ModelWeights) -> list[tuple[str, Any, Any]]:
    """Return the settings of `BEHAVIOUR` that differ: as written, then as transformers reads them.

    One release writes ``rope_theta``, another the same inside ``rope_parameters``; defaults are left out or not.
    """
    here, there = ({**model.config, **text_config(model.config)} for model in (base, expert))
    written = [(key, here.get(key), there.get(key)) for key in BEHAVIOUR]
    written = [(key, ours, theirs) for key, ours, theirs in written if ours != theirs]
    if not written or base.config.get("model_type") != expert.config.get("model_type"):
        return written
    ours, theirs = parsed_config(base.folder), parsed_config(expert.folder)
    if ours is None or theirs is None:
        return written
    ours, theirs = ({**each, **text_config(each)} for each in (ours, theirs))
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
