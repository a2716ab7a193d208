"""The settings of a PEFT adapter: which of them say something about the weights, and which are not understood."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_moo.errors import InputError, first_few, itemized
from sae_moo.experts.checkpoint import ADAPTER_CONFIG
from sae_moo.files.json_text import read_json

# What no weight depends on: who wrote it, what was trained (the file's tensors say it), what only training does.
_OF_ANY_KIND = {
    *("auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode", "init_weights", "layers_pattern"),
    *("layers_to_transform", "modules_to_save", "peft_type", "peft_version", "revision", "target_modules", "task_type"),
}
_LYCORIS = {
    *("alpha", "alpha_pattern", "decompose_both", "decompose_factor", "module_dropout", "r", "rank_dropout"),
    *("rank_dropout_scale", "rank_pattern", "use_effective_conv2d"),
}
_LORA = {
    *("alpha_pattern", "bias", "corda_config", "ensure_weight_tying", "eva_config", "fan_in_fan_out"),
    *("init_lora_weights", "loftq_config", "lora_alpha", "lora_bias", "lora_dropout", "lora_ga_config"),
    *("megatron_core", "qalora_group_size", "r", "rank_pattern", "runtime_config", "target_parameters"),
    *("trainable_token_indices", "use_dora", "use_rslora", "velora_config"),
}
KINDS: Mapping[str, set[str]] = {
    "LORA": _LORA,
    "ADALORA": {
        *(_LORA - {"use_dora", "use_rslora", "lora_bias", "target_parameters", "trainable_token_indices"}),
        *("beta1", "beta2", "deltaT", "init_r", "orth_reg_weight", "target_r", "tfinal", "tinit", "total_step"),
    },
    "IA3": {"fan_in_fan_out", "feedforward_modules", "init_ia3_weights"},
    "LN_TUNING": set(),
    "LOHA": _LYCORIS,
    "LOKR": _LYCORIS,
    "TRAINABLE_TOKENS": {"token_indices"},
    "VERA": {"bias", "d_initial", "fan_in_fan_out", "projection_prng_key", "r", "save_projection", "vera_dropout"},
}
"""Kinds of adapters that are read -> their own settings that are understood, or that no weight depends on.

Any other setting must be unset: what it means is not known, so what it does to the weights is not either.
"""
_REASONS = {
    "alora_invocation_tokens": "an activated LoRA changes some tokens' activations, no weights",
    "arrow_config": "Arrow routes between adapters, which no weights hold",
    "kasa_config": "KaSA starts from a truncated base",
    "layer_replication": "it gives the model other layers than the base has",
    "monteclora_config": "MonteCLoRA draws its weights at random",
    "use_qalora": "QA-LoRA is over quantized weights",
}
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")


@dataclass(frozen=True)
class AdapterSettings:
    """What ``adapter_config.json`` says, all of it understood.

    Args:
        folder: the adapter's folder.

    Attributes:
        kind: one of `KINDS`.
        values: the parsed file.

    Raises:
        InputError: if there is none, and naming every setting that is not understood.
    """

    folder: Path
    values: Mapping[str, Any] = field(init=False)
    kind: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", read_json(self.folder / ADAPTER_CONFIG, "a PEFT adapter's settings"))
        faults = list(_faults(self.values))
        if faults:
            title = f"{self.folder / ADAPTER_CONFIG}: not an adapter that is supported"
            raise InputError(itemized(title, first_few(faults), within=True))
        object.__setattr__(self, "kind", self.values["peft_type"])

    def says(self, switch: str) -> bool:
        """Say whether a switch is on."""
        return self.values.get(switch) is True

    def rank(self, name: str) -> int:
        """Return the rank at a module (or a parameter, where that is the target) as the live model names it."""
        return int(_of_name(self.values.get("rank_pattern"), name, self.values.get("r", 8)))

    def scale(self, name: str) -> float:
        """Return what the update at a module is multiplied by: alpha / r, or alpha / sqrt(r) with ``use_rslora``."""
        alpha = self.values.get("lora_alpha" if self.kind == "LORA" else "alpha", 8)
        alpha, rank = _of_name(self.values.get("alpha_pattern"), name, alpha), self.rank(name)
        return alpha / math.sqrt(rank) if self.says("use_rslora") else alpha / rank

    def targeted(self, parameter: str) -> bool:
        """Say whether a parameter itself, not its module, is adapted (``target_parameters``)."""
        targets = self.values.get("target_parameters") or ()
        return any(parameter == target or parameter.endswith(f".{target}") for target in targets)

    @property
    def _tokens(self) -> Any:
        return self.values.get("token_indices" if self.kind == "TRAINABLE_TOKENS" else "trainable_token_indices")

    def token_modules(self) -> Sequence[str]:
        """Return whose tokens are trained, ends of names; one that is empty stands for the embeddings."""
        rows = self._tokens
        return tuple(rows) if isinstance(rows, Mapping) else ("",) if rows else ()

    def token_rows(self, module: str) -> Sequence[int] | None:
        """Return which rows of a module's weight are trained, in the order they are stored; None if it is not said."""
        rows = self._tokens
        if isinstance(rows, Mapping):
            named = [indices for name, indices in rows.items() if module == name or module.endswith(f".{name}")]
            rows = named[0] if len(named) == 1 else None
        if not isinstance(rows, list) or not all(isinstance(row, int) and not isinstance(row, bool) for row in rows):
            return None
        return rows


def _faults(values: Mapping[str, Any]) -> Iterator[str]:
    kind = values.get("peft_type")
    if not isinstance(kind, str) or kind not in KINDS:
        yield f"peft_type: expected {', '.join(KINDS)}, got {kind!r}"
        return
    for key, value in values.items():
        if key not in _OF_ANY_KIND | KINDS[kind] and not _is_unset(key, value):
            reason = _REASONS.get(key, "what it does to the weights is not known")
            yield f"{key}: expected it unset, got {value!r}; {reason}"
    yield from _list_faults(values, "modules_to_save")
    if values.get("bias", "none") not in ("none", "all", f"{kind.lower()}_only", "lora_only"):
        yield f"bias: expected 'none', 'all' or '{kind.lower()}_only', got {values['bias']!r}"
    if kind in ("LORA", "ADALORA"):
        yield from _lora_faults(values)
    if kind == "ADALORA" and not (_is_number(values.get("init_r", 12), 1) and _is_number(values.get("lora_alpha", 8))):
        yield f"init_r, lora_alpha: expected numbers, got {values.get('init_r')!r} and {values.get('lora_alpha')!r}"
    if values.get("use_effective_conv2d"):
        yield "use_effective_conv2d: expected it unset; its tensors are not read"
    if kind in ("LORA", "LOHA", "LOKR"):
        yield from _rank_faults(values, "lora_alpha" if kind == "LORA" else "alpha")


def _lora_faults(values: Mapping[str, Any]) -> Iterator[str]:
    if values.get("init_lora_weights", True) not in _PLAIN_STARTS:
        yield (
            f"init_lora_weights: {values['init_lora_weights']!r} starts from a changed base; save the adapter with "
            "path_initial_model_for_weight_conversion first"
        )
    for key in ("use_rslora", "use_dora", "lora_bias", "fan_in_fan_out", "ensure_weight_tying"):
        if not (values.get(key) is None or isinstance(values[key], bool)):
            yield f"{key}: expected true or false, got {values[key]!r}"
    yield from _list_faults(values, "target_parameters")


def _list_faults(values: Mapping[str, Any], key: str) -> Iterator[str]:
    names = values.get(key)
    if names is not None and not (isinstance(names, list) and all(isinstance(each, str) for each in names)):
        yield f"{key}: expected a list of names, got {names!r}"


def _rank_faults(values: Mapping[str, Any], alpha: str) -> Iterator[str]:
    rank = values.get("r", None if alpha == "lora_alpha" else 8)
    if not _is_number(rank, 1) or not isinstance(rank, int):
        yield f"r: expected a whole number of at least 1, got {rank!r}"
    if not _is_number(values.get(alpha, 8)):
        yield f"{alpha}: expected a number, got {values[alpha]!r}"
    for key, least in (("rank_pattern", 1), ("alpha_pattern", -math.inf)):
        patterns = values.get(key) or {}
        if not isinstance(patterns, dict) or not all(_is_number(value, least) for value in patterns.values()):
            yield f"{key}: expected a mapping of patterns and numbers, got {patterns!r}"
            continue
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                yield f"{key}: {pattern!r} is not a regular expression: {error}"


def _is_unset(key: str, value: Any) -> bool:
    if value == {} and (key.startswith("use_") or key.endswith("_config")):
        return False  # settings of their own, all by default
    return value is None or value is False or value in ([], {}, "")


def _is_number(value: Any, least: float = -math.inf) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= least


def _of_name(patterns: Mapping[str, float] | None, name: str, default: float) -> float:
    """Return the number of the first pattern that matches a name or its end, like peft's get_pattern_key."""
    for pattern, number in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return number
    return default
