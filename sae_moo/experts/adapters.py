"""LoRA adapters as experts: the base's weights plus products of two thin matrices, computed per tensor on load."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_moo.errors import InputError, first_few, itemized
from sae_moo.experts.checkpoint import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    Checkpoint,
    TensorFacts,
    digest_of,
    locate,
    opened,
    read_json,
    remember,
    remembered,
    stamp_of,
)
from sae_moo.experts.layout import HEADS, STORED_DTYPES, stored_turned

_PREFIX = "base_model.model."
_FACTOR = re.compile(
    r"(?P<module>.+)\.(?:lora_(?P<linear>[AB])\.weight|lora_embedding_(?P<embedding>[AB])"
    r"|lora_(?P<magnitude>magnitude_vector)(?:\.weight)?)"
)
_WRAPPER = re.compile(r"\.(?:base_layer|modules_to_save)(?=\.[^.]+$)")  # where a wrapped module keeps its own tensors
BAND = 1 << 20
"""Elements composed at a time."""
_EMPTY: tuple[Any, ...] = (None, False, [], {})
# What changes the weights in another way than LoRA's equation, or the base beneath them.
_UNKNOWN_MEANING = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "velora_config",
)
_KNOWN_SWITCHES = ("use_rslora", "use_dora")
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True, slots=True)
class _Factors:
    """Names in the adapter's file, and the numbers, of one adapted tensor: ``weight + scale * (b @ a)``."""

    a: str
    b: str
    magnitude: str | None
    scale: float
    transposed: bool


class Adapter:
    """A PEFT LoRA adapter over a base model, read as if it were a checkpoint of its own.

    A tensor it adapts is ``round(base + scale * (B @ A))``: float32 arithmetic in this order, rounded once to the dtype
    of the base's tensor (Hu et al. 2021, arXiv 2106.09685, section 4.1); scale is alpha / r, or alpha / sqrt(r) with
    ``use_rslora`` (Kalajdzievski 2023, arXiv 2312.03732). With DoRA its rows are then rescaled to the learnt magnitudes
    (Liu et al. 2024, arXiv 2402.09353, eq. 5). Whole tensors in the adapter (``modules_to_save``, biases) replace the
    base's. Every other tensor is the base's own, memory-mapped. Nothing merged is kept.

    LoRA on embeddings or head is refused where the base ties the two: it is trained as if they were apart, and adding
    it to the one matrix there is makes another model than the one that was trained.

    Args:
        source: as the user wrote it; see `locate`.
        base: the model it was trained on.
        relative_to: folder that relative paths start from.

    Raises:
        InputError: listing every setting that is not understood and every tensor that finds no place in the base.
    """

    def __init__(self, source: str, base: Checkpoint, relative_to: Path | None = None) -> None:
        self.source = source
        self.base = base
        self.folder, self.origin = locate(source, relative_to)
        self.config: Mapping[str, Any] = base.config
        self.tied = base.tied
        self._settings = read_json(self.folder / ADAPTER_CONFIG, "a PEFT adapter's settings")
        faults = list(_setting_faults(self._settings))
        if faults:
            title = f"{self.folder / ADAPTER_CONFIG}: not a LoRA adapter that is supported"
            raise InputError(itemized(title, first_few(faults), within=True))
        self._file = self.folder / ADAPTER_WEIGHTS
        if not self._file.is_file():
            raise InputError(f"{self.folder}: an adapter without {ADAPTER_WEIGHTS} (pickled ones are not read)")
        self._handle = opened(self._file)
        self._whole: dict[str, str] = {}
        self._factors: dict[str, _Factors] = {}
        faults = list(self._placed())
        self.tensors: Mapping[str, TensorFacts] = {
            name: self._facts(self._whole[name]) if name in self._whole else facts
            for name, facts in base.tensors.items()
        }
        faults = faults or list(self._unfit())
        if not faults and not self._whole and not self._factors:
            faults = [f"expected tensors named {_PREFIX}*.lora_A.weight, there are none"]
        if faults:
            title = f"{self.source}: the adapter does not fit its base {base.source}"
            raise InputError(itemized(title, first_few(faults), within=True))
        self.vocabulary = self.tensors[base.embeddings].shape[0] if base.embeddings else None

    def load(self, name: str) -> Tensor:
        """Return one tensor: the base's own if it is not adapted, else computed anew; do not write to it."""
        weight = self._read(self._whole[name]) if name in self._whole else self.base.load(name)
        if name not in self._factors:
            return weight
        factors = self._factors[name]
        a, b = self._read(factors.a).float(), self._read(factors.b).float()
        magnitudes = None if factors.magnitude is None else self._read(factors.magnitude).float().reshape(-1)
        result = torch.empty_like(weight, memory_format=torch.contiguous_format)
        # outputs x inputs, a band of outputs at a time: the whole product in float32 would be larger than the tensor
        stored, composed = (each.T if factors.transposed else each for each in (weight, result))
        bands = max(1, round(weight.numel() / BAND))
        for first, last in pairwise(len(b) * i // bands for i in range(bands + 1)):
            band = (b[first:last] @ a).mul_(factors.scale).add_(stored[first:last])
            if magnitudes is not None:
                band = (magnitudes[first:last] / torch.linalg.norm(band, dim=1)).unsqueeze(1) * band
            composed[first:last] = band
        return result

    def stored(self, name: str) -> bool:
        """Say whether a tensor is read as it lies in a file: the base's own, or one that the adapter replaces whole."""
        return name not in self._factors

    def shares_base(self, name: str) -> bool:
        """Say whether a tensor is the base's own."""
        return name not in self._factors and name not in self._whole

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of the adapter's tensors, where they go, their scales, and the base's fingerprint.

        Reads the adapter and composes every adapted tensor once: an overflow on the way is found here. Kept like a
        checkpoint's.

        Raises:
            InputError: naming the tensors that hold NaN or an infinity.
        """
        places = [
            [name, factors.scale, factors.transposed, factors.magnitude is not None]
            for name, factors in sorted(self._factors.items())
        ]
        stamp = stamp_of(self.folder, [self._file], [places, self.base.fingerprint])
        known = remembered(stamp)
        if known:
            return known
        parts = sorted(self._parts())
        own = ((place, self._read(name)) for place, name in parts)
        fingerprint = digest_of(self.source, own, "lora", places, self.base.fingerprint)
        broken = [name for name in sorted(self._factors) if not torch.isfinite(self.load(name)).all()]
        if broken:
            raise InputError(
                f"{self.source}: base and adapter add up to NaN or infinite weights in {', '.join(broken[:5])}"
            )
        remember(stamp, fingerprint)
        return fingerprint

    def _parts(self) -> Iterator[tuple[str, str]]:
        """Yield what a tensor of the adapter is for, in the base's names, and its own name."""
        yield from self._whole.items()
        for place, factors in self._factors.items():
            yield f"{place} A", factors.a
            yield f"{place} B", factors.b
            if factors.magnitude is not None:
                yield f"{place} magnitude", factors.magnitude

    def _read(self, name: str) -> Tensor:
        tensor: Tensor = self._handle.get_tensor(name)
        return tensor

    def _facts(self, name: str) -> TensorFacts:
        part = self._handle.get_slice(name)
        return TensorFacts(tuple(part.get_shape()), str(part.get_dtype()))

    def _placed(self) -> Iterator[str]:
        """Find the place of every tensor in the base; yield a fault for each that has none."""
        found: dict[tuple[str, str], dict[str, str]] = {}  # (module, kind) -> A, B, M -> name in the file
        for name in sorted(self._handle.keys()):
            dtype = self._facts(name).dtype
            inner = name.removeprefix(_PREFIX)
            factor = _FACTOR.fullmatch(inner)
            if dtype not in STORED_DTYPES:
                yield f"{name} has dtype {dtype}, expected {', '.join(STORED_DTYPES)}"
            elif inner == name:
                yield f"{name}: expected a name that begins with {_PREFIX}"
            elif factor:
                kind = "embedding" if factor["embedding"] else "linear"
                part = factor["linear"] or factor["embedding"] or "M"
                found.setdefault((factor["module"], kind), {})[part] = name
            else:
                bare = _WRAPPER.sub("", inner)
                place = None if ".lora_" in inner else _place(bare, self.base)
                if self.base.tied and bare in HEADS:
                    place = bare  # compared with the embeddings below
                if place is None:
                    yield f"{name} has no place in the base"
                else:
                    self._whole[place] = name
        for (module, kind), parts in found.items():
            place = _place(f"{module}.weight", self.base)
            if place is None and self.base.tied and f"{module}.weight" in HEADS:
                yield f"{parts[min(parts)]}: LoRA on a head tied to the embeddings, which would untie it"
            elif place is None:
                yield from (f"{name} has no place in the base" for name in parts.values())
            elif self.base.tied and place == self.base.embeddings:
                yield f"{parts[min(parts)]}: LoRA on embeddings tied to the head, which was trained as if untied"
            elif not {"A", "B"} <= parts.keys():
                yield f"{parts[min(parts)]}: expected both lora_A and lora_B of {module}"
            else:
                yield from self._fitted(module, place, kind == "embedding", parts)

    def _fitted(self, module: str, place: str, embedding: bool, parts: Mapping[str, str]) -> Iterator[str]:
        """Enter the factors of one tensor; yield what does not fit."""
        settings = self._settings
        rank = _of_module(settings.get("rank_pattern"), module, settings["r"])
        alpha = _of_module(settings.get("alpha_pattern"), module, settings.get("lora_alpha", 8))
        a, b = self._facts(parts["A"]).shape, self._facts(parts["B"]).shape
        shape = (self._facts(self._whole[place]) if place in self._whole else self.base.tensors[place]).shape
        if len(a) != 2 or len(b) != 2 or a[0] != rank or b[1] != rank:
            yield f"{parts['A']} and lora_B have shapes {a} and {b}, expected rank {rank}"
            return
        straight, turned = (b[0], a[1]), (a[1], b[0])
        if embedding:
            transposed = True
        elif straight == turned:
            like_the_base = stored_turned(self.config) or settings.get("fan_in_fan_out") is True
            transposed = like_the_base and place != self.base.head
        else:
            transposed = shape == turned
        if shape != (turned if transposed else straight):
            yield f"{parts['A']} and lora_B make a product of shape {straight}, {place} has {shape}"
            return
        if "M" in parts and (embedding or self._facts(parts["M"]).shape[-1:] != (b[0],)):
            yield f"{parts['M']}: expected one magnitude for each of the {b[0]} outputs of a linear layer"
            return
        scale = alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank
        self._factors[place] = _Factors(parts["A"], parts["B"], parts.get("M"), scale, transposed)

    def _unfit(self) -> Iterator[str]:
        """Yield that the adapter unties what the base ties; whole tensors' shapes are compared like a checkpoint's."""
        embeddings = self.base.embeddings
        if not self.tied or embeddings is None:
            return
        heads = [self._whole.pop(name) for name in HEADS if name in self._whole]
        if not heads and embeddings not in self._whole:
            return
        here, head = self.load(embeddings), self._read(heads[0]) if heads else self.base.load(embeddings)
        if here.shape != head.shape or not torch.equal(here, head):
            changed = heads[0] if heads else self._whole[embeddings]
            yield f"{changed} unties the head from the embeddings, which the base ties"


def _setting_faults(settings: Mapping[str, Any]) -> Iterator[str]:
    kind = settings.get("peft_type")
    if kind != "LORA":
        yield f"peft_type: expected 'LORA', got {kind!r}"
        return
    for key, value in settings.items():
        odd_switch = key.startswith("use_") and key not in _KNOWN_SWITCHES
        if (key in _UNKNOWN_MEANING or odd_switch) and value not in _EMPTY:
            yield f"{key}: expected it unset, got {value!r}; only plain LoRA and DoRA are read"
    if settings.get("init_lora_weights", True) not in _PLAIN_STARTS:
        yield (
            f"init_lora_weights: {settings['init_lora_weights']!r} starts from a changed base; save the adapter with "
            "path_initial_model_for_weight_conversion first"
        )
    if settings.get("bias", "none") not in ("none", "all", "lora_only"):
        yield f"bias: expected 'none', 'all' or 'lora_only', got {settings['bias']!r}"
    if not _is_number(settings.get("r"), 1) or not isinstance(settings["r"], int):
        yield f"r: expected a whole number of at least 1, got {settings.get('r')!r}"
    if not _is_number(settings.get("lora_alpha", 8)):
        yield f"lora_alpha: expected a number, got {settings['lora_alpha']!r}"
    for key, least in (("rank_pattern", 1), ("alpha_pattern", -math.inf)):
        patterns = settings.get(key) or {}
        if not isinstance(patterns, dict) or not all(_is_number(value, least) for value in patterns.values()):
            yield f"{key}: expected a mapping of patterns and numbers, got {patterns!r}"
            continue
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                yield f"{key}: {pattern!r} is not a regular expression: {error}"


def _is_number(value: Any, least: float = -math.inf) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= least


def _of_module(patterns: Mapping[str, float] | None, module: str, default: float) -> float:
    """Return the number of the first pattern that matches a module's name or its end, like peft's get_pattern_key."""
    for pattern, number in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return number
    return default


def _place(name: str, base: Checkpoint) -> str | None:
    """Return the base's name of a tensor that peft names as the live model does.

    Checkpoints may lack its first part (``transformer.`` in GPT-2's), or have one more, or name the head otherwise.
    """
    if name in base.tensors:
        return name
    without = name.partition(".")[2]
    if without in base.tensors and without.count("."):
        return without
    if name in HEADS:
        return base.head
    longer = [each for each in base.tensors if each.partition(".")[2] == name and name.count(".") > 1]
    return longer[0] if len(longer) == 1 else None
