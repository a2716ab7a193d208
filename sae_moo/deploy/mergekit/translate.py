"""From a mergekit configuration to a recipe: every parameter looked up for every tensor, as mergekit does.

Layers have places from 0 to 1 in their slice (a lone one is at 1), gradients are interpolated between evenly spaced
values, and tensors outside the layers belong to the first slice (embeddings) or the last (final norm and head), at 0.
Layers are the text model's; a sub-model (a vision tower) has its own, all in the first slice, as in mergekit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sae_moo.deploy.mergekit.document import WHAT, Document, Scope, Setting, Slice, Source, identity, inputs_of
from sae_moo.deploy.mergekit.table import WEIGHTS, Parameter, Value
from sae_moo.experts.layout import BLOCK
from sae_moo.experts.pool import ExpertPool, TensorInfo
from sae_moo.files.marked_yaml import Key, refusal
from sae_moo.recipe import BASE, Cast, Expert, Merge, Param, Recipe, rounded
from sae_moo.recipe.groups import EMBEDDINGS, in_block, is_submodel
from sae_moo.recipe.methods import METHODS
from sae_moo.recipe.rows import Rows


@dataclass(frozen=True, slots=True)
class _Spot:
    """Where a tensor is: its slice, its place from 0 to 1 in the gradients there, and its layer, if it is in one."""

    name: str
    part: Slice
    t: float
    layer: int | None = None

    def named_in(self, source: Source | None) -> str:
        """Return the tensor's name in one of the models; of None its own."""
        if source is None or self.layer is None or source.first == self.part.start:
            return self.name
        found = BLOCK.search(self.name)
        assert found is not None
        return f"{self.name[: found.start(1)]}{source.first + self.layer - self.part.start}{self.name[found.end(1) :]}"


def translate(document: Document, pool: ExpertPool) -> Recipe:
    """Return the recipe of a mergekit configuration; it ends in a cast to the output's dtype.

    Numbers that differ by layer or tensor become rows per group where groups are alike inside, else rows per tensor.

    Args:
        document: the configuration.
        pool: its models by the names in `Document.sources`, layers in the orders of `Document.layers`.

    Raises:
        InputError: listing every fault: slices of other layers than the pool's, values missing for some tensors.
    """
    layers = list(filter(in_block, pool.groups))
    stop = document.slices[-1].stop
    if stop is not None and stop != len(layers):
        fault = f"the slices hold {stop} layers, the models have {len(layers)} in the order in which they lie"
        raise refusal(WHAT, [document.places.fault(document.slices[-1].key, fault)])
    apart = _places_apart(pool)
    spots = [_spot(info, pool, layers, document.slices, apart) for info in pool.tensors]
    inputs = _inputs(document)
    dtype = document.dtype or pool.rounding(pool.main_dtype)
    if not inputs:  # nothing but the base
        return Cast(Expert(BASE), dtype)
    faults: list[str] = []
    groups = [info.group for info in pool.tensors]
    weights: list[tuple[float, ...]] = [(1.0,) * len(inputs)] * len(spots)
    params: dict[str, Param] = {}
    for name, parameter in document.row.parameters.items():
        if parameter.setting is None:
            continue
        table = _table(document, name, parameter, spots, inputs, faults)
        if table is None:
            continue
        if parameter.setting != WEIGHTS:
            _set(document, params, name, parameter, Rows.gathered(table, groups), faults)
        else:  # one number for both inputs runs from the first, the base, to the other
            weights = [tuple(map(float, row)) if parameter.each else (1.0 - row[0], float(row[0])) for row in table]
    if faults:
        raise refusal(WHAT, faults)
    if document.row.base == "optional" and document.base is not None:
        params["relative"] = True
    if document.method == "passthrough":
        params["normalize"] = False
    nodes = tuple(Expert(document.named(*each)) for each in inputs)
    if document.row.base == "first":
        nodes = (Expert(BASE), *nodes)
    shared = Rows.gathered(weights, groups)
    if document.method == "passthrough" and len(nodes) == 1 and shared == Rows(((1.0,),), placed=False):
        return Cast(nodes[0], dtype)
    method = document.row.ours
    defaults = METHODS[method].defaults
    kept = {name: value for name, value in params.items() if value != defaults[name]}
    return Cast(Merge(method, nodes, shared.value, tuple(kept.items())), dtype)


def value_for(setting: Setting, name: str, t: float) -> Value | None:
    """Return a setting's value for a tensor: the first condition that its name meets; None if it meets none.

    Args:
        setting: conditions, each a number or a gradient.
        name: the tensor's name.
        t: place from 0 to 1 in gradients. Truth values are not interpolated: the last one reached counts.
    """
    for condition in setting:
        if condition.filter is not None and condition.filter not in name:
            continue
        values = condition.values
        if any(isinstance(value, bool) for value in values):
            return values[int(t * (len(values) - 1))]
        scaled = t * (len(values) - 1)
        below = int(scaled)
        share = scaled - below
        return (1 - share) * values[below] + share * values[min(len(values) - 1, below + 1)]
    return None


def look_up(scopes: Iterable[Scope], parameter: str, name: str, t: float) -> Value | None:
    """Return a parameter's value for a tensor from the first scope that has one; None if none has."""
    for scope in scopes:
        value = value_for(scope[parameter], name, t) if parameter in scope else None
        if value is not None:
            return value
    return None


def _spot(
    info: TensorInfo, pool: ExpertPool, layers: Sequence[str], slices: Sequence[Slice], apart: Mapping[str, float]
) -> _Spot:
    group = pool.groups[info.group]
    if is_submodel(group):
        return _Spot(info.name, slices[0], apart.get(info.name, 0.0))
    if group not in layers:
        return _Spot(info.name, slices[0 if group == EMBEDDINGS else -1], 0.0)
    layer = layers.index(group)
    part = next(part for part in slices if part.stop is None or layer < part.stop)
    count = (part.stop or len(layers)) - part.start
    return _Spot(info.name, part, (layer - part.start) / (count - 1) if count > 1 else 1.0, layer)


def _places_apart(pool: ExpertPool) -> dict[str, float]:
    """Return the places of sub-models' tensors among the layers of their own, as mergekit counts every module's."""
    layers: dict[str, dict[int, list[str]]] = {}  # what names begin with -> number of the layer -> names
    for info in pool.tensors:
        found = BLOCK.search(info.name) if is_submodel(pool.groups[info.group]) else None
        if found is not None:
            layers.setdefault(info.name[: found.start(1)], {}).setdefault(int(found[1]), []).append(info.name)
    return {
        name: i / (len(own) - 1) if len(own) > 1 else 1.0
        for own in layers.values()
        for i, number in enumerate(sorted(own))
        for name in own[number]
    }


def _inputs(document: Document) -> tuple[tuple[str, int], ...]:
    """Return the inputs of the merge: model and how many of the same come before, in order of appearance."""
    return tuple(
        dict.fromkeys(
            identity(source) for part in document.slices for source in inputs_of(part, document.row, document.base)
        )
    )


def _table(
    document: Document,
    name: str,
    parameter: Parameter,
    spots: Sequence[_Spot],
    inputs: Sequence[tuple[str, int]],
    faults: list[str],
) -> list[tuple[Value, ...]] | None:
    """Return a parameter's values: a row per tensor, of one value per input or one for all; None with a fault."""
    found: list[tuple[Value, ...]] = []
    missing: dict[Key, str] = {}
    for spot in spots:
        present = {identity(source): source for source in inputs_of(spot.part, document.row, document.base)}
        row: list[Value] = []
        sources: Sequence[Source | None] = [present.get(each) for each in inputs] if parameter.each else [None]
        for source in sources:
            if parameter.each and source is None:  # not in this slice: weight 0, and nothing else matters
                row.append(0.0 if parameter.setting == WEIGHTS else parameter.default or 0.0)
                continue
            value = look_up(document.chain(spot.part, source), name, spot.named_in(source), spot.t)
            if value is None:
                value = parameter.default
            if value is None:
                key = spot.part.key if source is None or source.key is None else source.key
                whose = "" if source is None else f" for {source.model}"
                missing.setdefault(key, f"expected a value of {name}{whose} for every tensor, {spot.name} has none")
                value = 0.0
            row.append(value if isinstance(value, bool) else rounded(value))
        found.append(tuple(row))
    faults += [document.places.fault(key, text) for key, text in missing.items()]
    return None if missing else found


def _set(
    document: Document,
    params: dict[str, Param],
    name: str,
    parameter: Parameter,
    rows: Rows,
    faults: list[str],
) -> None:
    """Add a setting as our methods take it."""
    assert parameter.setting is not None
    if all(len(set(row)) == 1 for row in rows.rows):  # one number serves all inputs
        rows = Rows(tuple(row[:1] for row in rows.rows), rows.placed)
    value: Any = rows.value if rows.placed or len(rows.rows[0]) > 1 else rows.rows[0][0]
    if parameter.kind == "flag" and not isinstance(value, bool):
        faults.append(document.places.fault((), f"{name}: expected one truth value for all layers and tensors"))
    elif parameter.kind == "whole" and any(number != int(number) for number in rows.numbers):
        faults.append(
            document.places.fault((), f"{name}: expected whole numbers at every layer, the gradient has others")
        )
    elif name == "rescale":
        params[parameter.setting] = "l1" if value else "none"
    elif parameter.kind == "whole" and not isinstance(value, tuple):
        params[parameter.setting] = int(value)
    else:
        params[parameter.setting] = value
