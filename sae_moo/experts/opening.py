"""Models are opened by what a user wrote of each: a folder, a model with an adapter, layers in another order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from sae_moo.errors import InputError, itemized
from sae_moo.experts.adapters import Adapter
from sae_moo.experts.built import check_places
from sae_moo.experts.checkpoint import Checkpoint, ModelWeights, is_adapter, locate
from sae_moo.experts.composed import PLUS, Composed, is_composed
from sae_moo.experts.layers import Order, Relaid, layer_count
from sae_moo.experts.live import parsed_config
from sae_moo.files.places import folder_at, rooted
from sae_moo.recipe import BASE


def open_models(
    base: str, experts: Mapping[str, str], relative_to: Path | None = None, roots: Sequence[str] = ()
) -> dict[str, ModelWeights]:
    """Open a base and experts, without comparing them; see `ExpertPool.open`.

    Raises:
        InputError: listing every model that cannot be opened; if one of the folders is a file.
    """
    if BASE in experts:
        raise InputError(f"experts: {BASE!r} names the base model; give the expert another name")
    for root in roots:
        try:
            folder_at(root, relative_to)
        except InputError as error:
            raise InputError(f"models.roots: {error}") from error
    opened: dict[str, ModelWeights] = {}
    faults = []
    for name, given in {BASE: base, **experts}.items():
        try:
            source = _rooted(str(given), roots, relative_to)
            if name == BASE:
                opened[name] = _base(source, relative_to)
            else:
                weights = _expert(source, relative_to, opened.get(BASE))
                if weights is not None:
                    opened[name] = weights
        except InputError as error:
            faults.append(f"{name}: {error}")
    if faults:
        raise InputError(itemized("cannot open", faults))
    return opened


def _rooted(source: str, roots: Sequence[str], relative_to: Path | None) -> str:
    """Return where a model lies in the first of the folders that has it; model and adapter each for itself."""
    whole = rooted(source, roots, relative_to)
    if whole != source or not is_composed(source, relative_to):
        return whole
    return PLUS.join(rooted(part, roots, relative_to) for part in source.split(PLUS))


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
        return Checkpoint(source, relative_to, tied=base is not None and base.tied)
    if isinstance(base, Composed):
        raise InputError(f"{folder}: an adapter over a base that has one itself; write model+adapter")
    return None if base is None else Adapter(source, cast(Checkpoint, base), relative_to)


def in_order(models: Mapping[str, ModelWeights], layers: Mapping[str, Order]) -> dict[str, ModelWeights]:
    """Return the models with their layers in the orders given, as they are where that is how they lie.

    Raises:
        InputError: if orders do not fit each other, or a model has no such layers.
    """
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
