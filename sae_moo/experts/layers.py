"""A model whose layers are another's, in an order of one's own: some left out, moved or there more than once."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from torch import Tensor

from sae_moo.errors import InputError
from sae_moo.experts.checkpoint import ModelWeights, TensorFacts
from sae_moo.experts.layout import BLOCK, text_config
from sae_moo.experts.live import parsed_config
from sae_moo.experts.submodels import group_names
from sae_moo.recipe.groups import in_block

Order = Sequence[int | None]
"""For each layer of the result which layer of a model it is; None: of no interest, the base's stands there."""

_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
# Settings that say how many layers come before those of another kind.
_FIRST = ("first_k_dense_replace", "max_window_layers", "moe_layer_start_index", "num_dense_layers")
_LAST = "moe_layer_end_index"
_OVERRIDES = "per_layer_config"
# Settings by which every so many layers are of another kind, and which of these that is; the last where none says.
_PERIODS = {
    "attn_layer_period": "attn_layer_offset",
    "decoder_sparse_step": "",
    "expert_layer_period": "expert_layer_offset",
    "moe_layer_interval": "",
}
_BY_NUMBER = "scale_attn_by_inverse_layer_idx"
# Settings that list layers by number, where others have an entry for every layer.
_NUMBERED = (
    "attn_layer_indices",
    "cross_attention_layers",
    "full_attn_idxs",
    "hybrid_layer_ids",
    "mlp_only_layers",
    "moe_layers",
)
_NOT_OF_LAYERS = ("architectures", "eos_token_id", "bos_token_id", "pad_token_id", "bad_words_ids", "suppress_tokens")


class Relaid:
    """A model with its layers in another order.

    Args:
        weights: the model.
        order: its layer for each layer of the result.
        base: the base in its own order, which gives what is of no interest; None for the base itself.

    Raises:
        InputError: if the model has no such layers, keeps layers in several stacks, or a layer that moves computes
            something else by its number.
    """

    def __init__(self, weights: ModelWeights, order: Order, base: Relaid | None = None) -> None:
        self._weights, self._base = weights, base
        self.order = tuple(order)
        self.source, self.origin, self.folder = weights.source, weights.origin, weights.folder
        self.tied, self.vocabulary = weights.tied, weights.vocabulary
        count = layer_count(weights)
        wrong = [layer for layer in self.order if layer is not None and not 0 <= layer < count]
        if wrong:
            raise InputError(f"expected layers 0 to {count - 1}, those that {weights.source} has, got {wrong[0]}")
        settings = dict(text_config(parsed_config(weights.folder) or {})) | dict(text_config(weights.config))
        if (key := _misplaced(settings, self.order)) is not None:
            raise InputError(f"{weights.source}: what a layer computes depends on its number ({key}), so none can move")
        inside: dict[int, list[tuple[str, str]]] = {}
        self._own: dict[str, str | None] = {}  # name -> the model's own name of it; None: the base's tensor
        moved = _in_layers(weights)
        for name in weights.tensors:
            found = moved.get(name)
            if found is None:
                self._own[name] = name
            else:
                inside.setdefault(int(found[1]), []).append((name[: found.start(1)], name[found.end(1) :]))
        for place, layer in enumerate(self.order):
            if layer is not None:
                self._own |= {f"{a}{place}{b}": f"{a}{layer}{b}" for a, b in inside[layer]}
            elif base is not None:
                self._own |= dict.fromkeys(base.of_layer(place))
        self.tensors: Mapping[str, TensorFacts] = {name: self._facts(name) for name in sorted(self._own)}

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The ``config.json`` with as many layers, and with the settings of each in the new order."""
        kept = [0 if layer is None else layer for layer in self.order]
        return with_layers(self._weights.config, parsed_config(self._weights.folder) or {}, kept)

    @property
    def names(self) -> Mapping[str, str | None]:
        """Every tensor's name -> the name that the model itself has for it; None where it is the base's."""
        return self._own

    @property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of the model's fingerprint and the order, and of the base's where it gives layers."""
        parts = [self._weights.fingerprint, self.order, self._base and None in self.order and self._base.fingerprint]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def of_layer(self, place: int) -> list[str]:
        """Return the names of a layer's tensors."""
        return [name for name, found in _in_layers(self).items() if int(found[1]) == place]

    def load(self, name: str) -> Tensor:
        """Return one tensor."""
        weights, own = self._of(name)
        return weights.load(own)

    def stored(self, name: str) -> bool:
        """Say whether a tensor is read as it lies in a file."""
        weights, own = self._of(name)
        return weights.stored(own)

    def shares_base(self, name: str) -> bool:
        """Say whether a tensor is known to be the base's."""
        own = self._own[name]
        if own is None or self._base is None:
            return True
        return self._weights.shares_base(own) and self._base._own.get(name) == own

    def _of(self, name: str) -> tuple[ModelWeights, str]:
        own = self._own[name]
        if own is not None:
            return self._weights, own
        assert self._base is not None
        return self._base, name

    def _facts(self, name: str) -> TensorFacts:
        weights, own = self._of(name)
        return weights.tensors[own]


def _in_layers(weights: ModelWeights) -> dict[str, re.Match[str]]:
    """Return the tensors in the layers of the text model, each with where its name says the layer's number."""
    grouped = group_names(weights.tensors, weights.config)
    return {name: found for name, group in grouped.items() if in_block(group) and (found := BLOCK.search(name))}


def layer_count(weights: ModelWeights) -> int:
    """Return how many layers a model has; of several stacks, the text model's count.

    Raises:
        InputError: if they are not one stack, numbered from 0, as many as ``config.json`` says.
    """
    found = list(_in_layers(weights).values())
    stacks = sorted({match.string[: match.start(1)] for match in found})
    numbers = {int(match[1]) for match in found}
    settings = text_config(weights.config)
    said = next((settings[key] for key in _COUNTS if key in settings), None)
    if len(stacks) != 1 or numbers != set(range(len(numbers))) or said != len(numbers):
        held = f"{len(numbers)} in {', '.join(stacks) or 'no stack'}"
        raise InputError(
            f"{weights.source}: layers can be put in another order where they are one stack, as many as config.json "
            f"says ({said}); got {held}"
        )
    return len(numbers)


def with_layers(config: Mapping[str, Any], parsed: Mapping[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """Return a ``config.json`` for a model whose layers are in another order.

    The number of layers follows; lists with an entry for every layer, such as ``layer_types``, are drawn anew, those
    that transformers derives written out, because it would derive others for another number; so are lists of layers'
    numbers, settings of single layers (``per_layer_config``), and the number of dense layers that come before a
    mixture's, of layers without a sliding window before those that have one.

    Args:
        config: the content of ``config.json``.
        parsed: the same as transformers reads it, with what it derives.
        order: for each layer of the result which layer it was.
    """
    inner = text_config(config)
    if inner is not config:
        key = next(key for key, value in config.items() if isinstance(value, Mapping) and text_config(value) is inner)
        return dict(config) | {key: with_layers(config[key], parsed.get(key) or {}, order)}
    count = next(config[key] for key in _COUNTS if key in config)
    changed = dict(config) | {key: len(order) for key in _COUNTS if key in config}
    for key, value in {**parsed, **config}.items():
        if key in _NOT_OF_LAYERS or key.startswith("_") or not isinstance(value, list):
            continue
        if key in _NUMBERED:
            changed[key] = [place for place, layer in enumerate(order) if layer in value]
        elif len(value) == count:
            changed[key] = [value[layer] for layer in order]
    known = {**parsed, **config}
    for key in _FIRST:
        first = known.get(key)
        if isinstance(first, int) and not isinstance(first, bool):
            changed[key] = next((i for i, layer in enumerate(order) if layer >= first), len(order))
    last = known.get(_LAST)
    if isinstance(last, int) and last >= 0:
        before = [i for i, layer in enumerate(order) if layer <= last]
        changed[_LAST] = max(before, default=0)
        if not before:  # that none comes before the last cannot be said, only that none comes after the first
            changed["moe_layer_start_index"] = len(order)
    if config.get(_OVERRIDES):
        own = {int(layer): settings for layer, settings in config[_OVERRIDES].items()}
        changed[_OVERRIDES] = {str(place): own[layer] for place, layer in enumerate(order) if layer in own}
    return changed


def _misplaced(settings: Mapping[str, Any], order: Order) -> str | None:
    """Return the setting that makes something else of a layer that moves, by its number alone; None: there is none."""
    moved = [(place, layer) for place, layer in enumerate(order) if layer is not None and layer != place]
    if moved and settings.get(_BY_NUMBER):
        return _BY_NUMBER
    for key, offset in _PERIODS.items():
        period = settings.get(key)
        if isinstance(period, int) and period > 1:
            kind = settings.get(offset, period - 1)
            if any((place % period == kind) != (layer % period == kind) for place, layer in moved):
                return key
    return None
