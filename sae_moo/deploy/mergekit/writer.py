"""From a recipe to a mergekit configuration, where mergekit can say the same; proved by reading it back."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from sae_moo.deploy.mergekit.reading import parse
from sae_moo.deploy.mergekit.table import TABLE, WEIGHTS, Parameter, Row
from sae_moo.deploy.mergekit.translate import translate
from sae_moo.errors import InputError
from sae_moo.experts.aligned import Aligned
from sae_moo.experts.checkpoint import ZOO, is_adapter
from sae_moo.experts.composed import PLUS, is_composed
from sae_moo.experts.layout import BLOCK
from sae_moo.experts.pool import ExpertPool
from sae_moo.experts.vocabulary import KEEP_BASE, UNION
from sae_moo.materialization.check import check
from sae_moo.recipe import BASE, STORED, Cast, Expert, Merge, Prune, Recipe, Repair, children, rounded
from sae_moo.recipe.groups import in_block, is_submodel
from sae_moo.recipe.methods import METHODS, SEED
from sae_moo.recipe.rows import Rows

# Value of a setting for each tensor of the pool, in order.
Column = tuple[Any, ...]


def configuration_text(recipe: Recipe, pool: ExpertPool) -> tuple[str, list[str]]:
    """Return a recipe as a mergekit configuration, and what the user should know about it.

    Args:
        recipe: one merge of experts, perhaps cast; a pruning that asks for no zeros is passed over.
        pool: its experts.

    Raises:
        InputError: naming what mergekit has no words for.
    """
    check(recipe, pool)
    if pool.layers:
        raise InputError("mergekit cannot say this: a recipe over models whose layers are in another order")
    dtype, node = "float32", _plain(recipe)
    if isinstance(node, Cast):
        dtype, node = node.dtype, _plain(node.input)
    own = [] if dtype != STORED else ["no dtype: every tensor keeps its own, and mergekit computes in it"]
    document: dict[str, Any]
    if isinstance(node, Expert):
        document = {"merge_method": "passthrough", "models": [{"model": _source(node.name, pool)}]}
        return _text(document, dtype), own
    if not isinstance(node, Merge):
        raise InputError(f"mergekit cannot say this: {_called(node)} inside {type(recipe).__name__}")
    names = _experts(node)
    document, notes = _merge(node, names, pool)
    notes += own
    if any(isinstance(pool.checkpoints[name], Aligned) for name in names):
        if pool.vocabulary not in (KEEP_BASE, UNION) or document.get("base_model") != _source(BASE, pool):
            raise InputError("mergekit cannot say this: rows of embeddings matched otherwise than by its tokenizer")
        document["tokenizer"] = {"source": str(pool.vocabulary)}
        notes.append("mergekit leaves only rows of embeddings that are tokens")
    text = _text(document, dtype)
    _prove(text, node, names, pool)
    return text, notes


def _plain(node: Recipe) -> Recipe:
    """Pass over prunings that ask for no zeros; others are refused."""
    while isinstance(node, Prune):
        if any(Rows.of_places(node.sparsity).numbers) or any(node.counts or ()) or any(node.units or ()):
            raise InputError(f"mergekit cannot say this: it does not prune, this is {_called(node)}")
        node = node.input
    return node


def _called(node: Recipe) -> str:
    """Return what a node is, and what it is made from by their names alone."""
    made = Counter(child.name if isinstance(child, Expert) else type(child).__name__ for child in children(node))
    inputs = ", ".join(f"{count} x {name}" if count > 1 else name for name, count in made.items())
    match node:
        case Merge():
            return f"Merge by {node.method} of {inputs}"
        case Prune():
            asked = Rows.of_places(node.sparsity).numbers
            least, most = min(asked), max(asked)
            return (
                f"Prune to {most:.3g} of {inputs}"
                if least == most
                else f"Prune to {least:.3g} ... {most:.3g} of {inputs}"
            )
        case Repair():
            return f"Repair of {inputs}"
        case Cast():
            return f"Cast to {'the stored dtypes' if node.dtype == STORED else node.dtype} of {inputs}"
        case _:
            return type(node).__name__


def _source(name: str, pool: ExpertPool) -> str:
    """Return how mergekit finds an expert: a folder, a hub id, or the base with an adapter."""
    weights = pool.checkpoints[name]
    place = str(weights.folder) if weights.origin.startswith(ZOO) else weights.origin
    if is_composed(weights.source):
        return place
    if PLUS in place:
        raise InputError(f"mergekit would read {place} as a model with an adapter: move or rename it")
    return f"{_source(BASE, pool)}+{place}" if is_adapter(weights.folder) else place


def _experts(node: Merge) -> list[str]:
    names = []
    for child in node.inputs:
        inner = _plain(child)
        if not isinstance(inner, Expert):
            raise InputError(f"mergekit cannot say this: {_called(inner)} as an input of a merge, not an expert")
        names.append(inner.name)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"mergekit takes every model once: {twice[0]!r} is an input more than once")
    return names


def _merge(node: Merge, names: Sequence[str], pool: ExpertPool) -> tuple[dict[str, Any], list[str]]:
    row = TABLE.get(node.method)
    if row is None:
        raise InputError(f"mergekit has no merge method {node.method!r}; it has {', '.join(TABLE)}")
    method = METHODS.find(node.method)
    params: dict[str, Any] = method.filled(node.params)
    relative = bool(params.pop("relative", row.base == "required"))
    base = _base(node.method, row, names, relative)
    weights = _columns(Rows.of(node.weights), pool, len(names))
    own: list[dict[str, Any]] = [{} for _ in names]
    shared: dict[str, Any] = {}
    unused = set(params) - {SEED}
    for name, parameter in row.parameters.items():
        if parameter.setting is None:
            continue
        if parameter.setting == WEIGHTS:
            _put_weights(name, parameter, weights, own, shared, pool)
            continue
        unused.discard(parameter.setting)
        value = params[parameter.setting]
        if parameter.setting == "rescale":
            if value == "density":
                raise InputError(f"mergekit's {node.method} rescales to the norm, not by 1 / density")
            value = value != "none"
        if parameter.kind != "number":
            if isinstance(value, tuple):
                raise InputError(f"mergekit takes one {name} for all, not one per layer or tensor")
            if value != parameter.default:
                shared[name] = value
            continue
        _put_numbers(name, parameter, value, own, shared, pool)
    for name in sorted(unused):
        if params[name] != method.defaults[name]:
            raise InputError(f"mergekit's {node.method} has no {name}")
    if all(parameter.setting != WEIGHTS for parameter in row.parameters.values()) and method.weights != "unused":
        for column in zip(*weights, strict=True):
            if len(set(column)) > 1:
                raise InputError(f"mergekit's {node.method} has no weights: expected equal ones")
    notes = []
    if method.random and any(number < 1 for number in Rows.of(params["density"]).numbers):
        if params[SEED] != 0:
            raise InputError(f"mergekit's {node.method} has no seed: expected 0, got {params[SEED]}")
        notes.append(f"{node.method} drops at random: mergekit draws masks of its own")
    models = [
        {"model": _source(name, pool)} | ({"parameters": settings} if settings else {})
        for name, settings in zip(names, own, strict=True)
    ]
    document: dict[str, Any] = {"merge_method": node.method}
    if base is not None:
        document["base_model"] = _source(base, pool)
    if row.base == "first":
        models = models[1:]
    document["models"] = models
    if shared:
        document["parameters"] = shared
    return document, notes


def _base(method: str, row: Row, names: Sequence[str], relative: bool) -> str | None:
    """Return the expert that must be ``base_model``, None if there need be none."""
    if row.base == "first":
        return names[0]
    if row.base == "input":
        return BASE if BASE in names else None
    if not relative:
        return None
    if BASE in names:
        raise InputError(f"mergekit cannot say this: the base as an input of {method}, whose task vector is zero")
    return BASE


def _put_weights(
    name: str,
    parameter: Parameter,
    weights: Sequence[Column],
    own: Sequence[dict[str, Any]],
    shared: dict[str, Any],
    pool: ExpertPool,
) -> None:
    if parameter.each:
        for settings, column in zip(own, weights, strict=True):
            settings[name] = _setting(column, pool)
    else:
        shared[name] = _setting(tuple(b / (a + b) for a, b in zip(*weights, strict=True)), pool)


def _put_numbers(
    name: str,
    parameter: Parameter,
    value: Any,
    own: Sequence[dict[str, Any]],
    shared: dict[str, Any],
    pool: ExpertPool,
) -> None:
    columns = _columns(Rows.of(value), pool, len(own))
    if not parameter.each:
        if any(column != columns[0] for column in columns):
            raise InputError(f"mergekit takes one {name} for all models")
        if set(columns[0]) != {parameter.default}:
            shared[name] = _setting(columns[0], pool)
    elif all(set(column) == {parameter.default} for column in columns):
        return
    elif all(column == columns[0] for column in columns):
        shared[name] = _setting(columns[0], pool)
    else:
        for settings, column in zip(own, columns, strict=True):
            settings[name] = _setting(column, pool)


def _columns(rows: Rows, pool: ExpertPool, inputs: int) -> list[Column]:
    """Return, for each of so many inputs, the number at every tensor of the pool."""
    groups, tensors = len(pool.groups), len(pool.tensors)
    if not rows.fits(groups, tensors):
        raise InputError(f"expected rows for {groups} groups or {tensors} tensors, got {len(rows.rows)}")
    by_tensor = [rows.at(position, info.group, groups) for position, info in enumerate(pool.tensors)]
    return [tuple(float(row[i if len(row) > 1 else 0]) for row in by_tensor) for i in range(inputs)]


def _setting(column: Column, pool: ExpertPool) -> Any:
    """Return one number, a gradient over the layers, or filters with these.

    A gradient has a value per layer. Tensors outside the layers get its first value, unless a filter with their whole
    name comes before; so do tensors of a layer that differ from most of it. Sub-models have layers of their own, which
    mergekit would run the gradient over: a filter with what their names begin with comes before all others.
    """
    column = tuple(map(rounded, column))
    if len(set(column)) == 1:
        return column[0]
    layers = list(filter(in_block, pool.groups))
    kinds: dict[str, dict[int, float]] = {}
    outside: dict[str, float] = {}
    apart: dict[str, dict[str, float]] = {}
    for info, value in zip(pool.tensors, column, strict=True):
        group = pool.groups[info.group]
        if group in layers:
            kinds.setdefault(_kind(info.name), {})[layers.index(group)] = value
        elif is_submodel(group):
            apart.setdefault(group, {})[info.name] = value
        else:
            outside[info.name] = value
    gradients = {}
    for name, values in kinds.items():  # a tensor that some layers lack may have any value there
        some = next(iter(values.values()))
        gradients[name] = tuple(values.get(i, some) for i in range(len(layers)))
    default = Counter(gradients.values()).most_common(1)[0][0]
    conditions: list[dict[str, Any]] = []
    for values_apart in apart.values():
        conditions += _apart(values_apart, [info.name for info in pool.tensors])
    conditions += [{"filter": name, "value": value} for name, value in outside.items() if value != default[0]]
    conditions += [
        {"filter": name, "value": _gradient(values)} for name, values in gradients.items() if values != default
    ]
    if not conditions:
        return _gradient(default)
    return [*conditions, {"value": _gradient(default)}]


def _apart(values: Mapping[str, float], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return filters that give the tensors of one sub-model their values: one for all where that is possible."""
    first, last = min(values), max(values)
    shared = first[
        : next((i for i, pair in enumerate(zip(first, last, strict=False)) if len(set(pair)) > 1), len(first))
    ]
    others = any(shared in name for name in names if name not in values)
    if shared and not others and len(set(values.values())) == 1:
        return [{"filter": shared, "value": next(iter(values.values()))}]
    return [{"filter": name, "value": value} for name, value in values.items()]


def _kind(name: str) -> str:
    """Return what the names of one kind of tensor share: what stands behind the layer's number, from its dot on."""
    found = BLOCK.search(name)
    return name[found.end() - 1 :] if found else name


def _gradient(values: Sequence[float]) -> Any:
    return values[0] if len(set(values)) == 1 else list(values)


class _Dumper(yaml.SafeDumper):
    """Writes lists of numbers on one line."""


def _list(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.Node:
    flat = all(isinstance(value, (int, float)) for value in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=flat)


_Dumper.add_representer(list, _list)


def _text(document: dict[str, Any], dtype: str) -> str:
    if dtype != STORED:
        document = document | {"dtype": "float32"} | ({"out_dtype": dtype} if dtype != "float32" else {})
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


def _prove(text: str, node: Merge, names: Sequence[str], pool: ExpertPool) -> None:
    """Raise InputError unless what was written, read again, is the same merge of the same models."""
    document = parse(text, "what was written")
    again = translate(document, pool)
    assert isinstance(again, Cast)
    assert isinstance(again.input, Merge)
    read = again.input
    models = {name: model for model, name in document.names.items()}
    found = [models[child.name] for child in read.inputs if isinstance(child, Expert)]
    if read.method != node.method or found != [_source(name, pool) for name in names]:
        raise InputError("mergekit cannot say this: read again, it would be another merge")
    for was, now in zip(_numbers(node, pool), _numbers(read, pool), strict=True):
        if not (was == now if isinstance(was, (str, bool)) else math.isclose(was, now, rel_tol=1e-7, abs_tol=1e-12)):
            raise InputError(f"mergekit cannot say this: read again, {was} would be {now}; its filters cannot tell")


def _numbers(node: Merge, pool: ExpertPool) -> list[Any]:
    """Return every number of a merge at every tensor, in a fixed order; of weights between two, the second's share."""
    row, inputs = TABLE[node.method], len(node.inputs)
    weights = _columns(Rows.of(node.weights), pool, inputs)
    if row.base == "first":
        weights = [tuple(b / (a + b) for a, b in zip(*weights, strict=True))]
    if all(parameter.setting != WEIGHTS for parameter in row.parameters.values()):
        weights = []
    found: list[Any] = [number for column in weights for number in column]
    for name, value in sorted(METHODS.find(node.method).filled(node.params).items()):
        if isinstance(value, (str, bool)):
            found.append(value)
        elif name != SEED:
            found += [number for column in _columns(Rows.of(value), pool, inputs) for number in column]
    return found
