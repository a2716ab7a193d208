"""Whether a pool of experts and the tables of methods can serve a recipe: asked before anything is written."""

from __future__ import annotations

from typing import Any

from sae_moo.errors import InputError, nearest
from sae_moo.experts.anatomy import anatomy, transposed
from sae_moo.experts.pool import ExpertPool
from sae_moo.materialization.ops import prune as pruning
from sae_moo.materialization.ops.merge import METHODS, Method
from sae_moo.recipe import STRUCTURED, Expert, Merge, Prune, Recipe, pattern, walk


def check(recipe: Recipe, pool: ExpertPool) -> None:
    """Raise InputError if the pool or the tables of methods cannot serve the recipe."""
    groups = len(pool.groups)
    for node in walk(recipe):
        match node:
            case Expert() if node.name not in pool.names:
                raise InputError(
                    f"no expert named {node.name!r}{nearest(node.name, pool.names)}; there are {', '.join(pool.names)}"
                )
            case Merge():
                _check_merge(node, groups, len(pool.tensors))
            case Prune():
                _check_prune(node, pool)


def _check_prune(node: Prune, pool: ExpertPool) -> None:
    groups = len(pool.groups)
    prunable = [info for info in pool.tensors if info.prunable]
    if node.criterion not in pruning.CRITERIA:
        known = ", ".join(pruning.CRITERIA)
        raise InputError(
            f"no pruning criterion {node.criterion!r}{nearest(node.criterion, pruning.CRITERIA)}; there are {known}"
        )
    if isinstance(node.sparsity, tuple) and node.scope in ("global", *STRUCTURED):
        raise InputError(f"Prune: scope {node.scope!r} takes one sparsity, got one per group")
    if isinstance(node.sparsity, tuple) and len(node.sparsity) != groups:
        raise InputError(f"Prune: expected {groups} sparsities, one per group, got {len(node.sparsity)}")
    if node.counts is not None and len(node.counts) != len(prunable):
        raise InputError(f"Prune: expected {len(prunable)} counts, one per tensor, got {len(node.counts)}")
    for count, info in zip(node.counts or (), prunable, strict=False):
        if count > info.numel:
            raise InputError(f"Prune: expected counts of at most the tensor's size {info.numel}, got {count}")
    if pruning.CRITERIA[node.criterion].activations != (node.calibration is not None):
        raise InputError(
            f"Prune: criterion {node.criterion!r} weighs by activations: give it the digest that "
            "sae_moo.calibrate returns, calibration=..."
            if node.calibration is None
            else f"Prune: criterion {node.criterion!r} needs no calibration, got {node.calibration!r}"
        )
    if node.scope in STRUCTURED:
        whole = anatomy(pool, node.scope)
        if node.units is not None and (
            len(node.units) != whole.blocks or any(row and row[-1] >= whole.units for row in node.units)
        ):
            raise InputError(
                f"Prune: expected units below {whole.units} for each of {whole.blocks} blocks, got {len(node.units)} "
                f"rows up to {max((row[-1] for row in node.units if row), default=0)}"
            )
    if node.calibration is not None:
        digest = node.calibration
        pool.remembered.get(("norms checked", digest), lambda: _check_norms(pool, digest))
    kept = pattern(node.scope)
    for info in prunable if kept is not None or node.scope == "row" else ():
        asked = node.sparsity if isinstance(node.sparsity, float) else node.sparsity[info.group]
        if asked and len(info.shape) != 2:
            raise InputError(
                f"Prune: scope {node.scope!r} needs matrices, {info.name} has shape {info.shape}; tensor, group and "
                "global take any"
            )
        inputs = pruning.Grid(info.shape, transposed(pool)).inputs
        if kept is not None and asked and inputs % kept[1]:
            raise InputError(
                f"Prune: scope {node.scope!r} needs a number of inputs that {kept[1]} divides; {info.name} of shape "
                f"{info.shape} has {inputs}"
            )


def _check_norms(pool: ExpertPool, digest: str) -> bool:
    if digest not in pool.norms:
        known = ", ".join(each[:12] for each in pool.norms) or "none"
        raise InputError(
            f"Prune: the pool holds no activation norms {digest}; it holds {known}. sae_moo.calibrate makes them again "
            "from the same texts, tokens and model; sae_moo.load_calibration reads the file written beside an export"
        )
    for info in pool.tensors:
        if not info.prunable:
            continue
        norms = pool.norms[digest].get(info.name)
        inputs = pruning.Grid(info.shape, transposed(pool)).inputs
        if norms is None:
            raise InputError(
                f"Prune: no activation norms for {info.name}: in the live model it is not the weight of a linear layer "
                "of its own, or no token reached it; mixtures of experts are like that. Magnitude needs none"
            )
        if tuple(norms.shape) != (inputs,):
            raise InputError(f"Prune: expected {inputs} norms for {info.name}, got shape {tuple(norms.shape)}")
    return True


def _settings(node: Merge) -> dict[str, Any]:
    return {**METHODS[node.method].defaults, **dict(node.params)}


def _check_merge(node: Merge, groups: int, tensors: int) -> None:
    if node.method not in METHODS:
        raise InputError(
            f"no merge method {node.method!r}{nearest(node.method, METHODS)}; there are {', '.join(METHODS)}"
        )
    method = METHODS[node.method]
    least, most = method.inputs
    if len(node.inputs) < least or (most is not None and len(node.inputs) > most):
        bound = f"{least}" if least == most else f"at least {least}"
        raise InputError(f"{node.method}: expected {bound} inputs, got {len(node.inputs)}")
    for name, value in node.params:
        _check_setting(node.method, method, name, value, groups, tensors)
    if "epsilon" in method.defaults:
        _check_chances(node)
    per_group = isinstance(node.weights[0], tuple)
    if per_group and len(node.weights) not in (groups, tensors):
        raise InputError(
            f"{node.method}: expected {groups} rows of weights, one per group, or {tensors}, one per tensor, "
            f"got {len(node.weights)}"
        )
    for row in node.weights if per_group else (node.weights,):
        numbers = [float(value) for value in row]  # type: ignore[union-attr, arg-type]
        if max(map(abs, numbers)) > LARGEST:
            raise InputError(f"{node.method}: expected weights that float32 can hold, got {row}")
        if method.weights == "sum" and _settings(node).get("normalize", True) and sum(numbers) == 0:
            raise InputError(f"{node.method}: expected weights whose sum is not 0, got {row}")
        if method.weights == "mixing" and (min(numbers) < 0 or sum(numbers) <= 0):
            raise InputError(f"{node.method}: expected weights of at least 0 with a sum above 0, got {row}")


def _check_chances(node: Merge) -> None:
    """Refuse DELLA's chances to stay where they leave (0, 1)."""
    density, epsilon = (_rows(_settings(node)[name]) for name in ("density", "epsilon"))
    for i in range(max(len(density), len(epsilon))):
        densities, epsilons = density[i % len(density)], epsilon[i % len(epsilon)]
        for k in range(len(node.inputs)):
            d, e = densities[k % len(densities)], epsilons[k % len(epsilons)]
            if 0 < d < 1 and not 0 < d - e <= d + e < 1:
                what = "density - epsilon and density + epsilon in (0, 1)"
                raise InputError(f"{node.method}: expected {what}, got {d}, {e}")


def _rows(value: Any) -> tuple[tuple[float, ...], ...]:
    row = value if isinstance(value, tuple) else (value,)
    return row if isinstance(row[0], tuple) else (row,)


def _check_setting(name: str, method: Method, setting: str, value: Any, groups: int, tensors: int) -> None:
    if setting == "ranks" and name == "rankmean":
        if not isinstance(value, tuple) or len(value) != tensors or not isinstance(value[0], tuple):
            raise InputError(f"{name}: ranks: expected {tensors} rows, one per tensor")
        return
    if setting not in method.defaults:
        known = ", ".join(method.defaults) or "none"
        raise InputError(f"{name}: no setting {setting!r}{nearest(setting, method.defaults)}; there are: {known}")
    default = method.defaults[setting]
    if isinstance(value, tuple):
        rows = value if value and isinstance(value[0], tuple) else (value,)
        if isinstance(default, (bool, str)):
            raise InputError(f"{name}: {setting}: expected {type(default).__name__}, got {value!r}")
        if rows is value and len(rows) not in (groups, tensors):
            raise InputError(
                f"{name}: {setting}: expected {groups} rows, one per group, or {tensors}, one per tensor, "
                f"got {len(rows)}"
            )
        for row in rows:
            if setting not in EACH and len(set(row)) > 1:
                raise InputError(f"{name}: {setting}: expected one number for all inputs, got {row}")
        for number in {number for row in rows for number in row}:
            _check_number(name, setting, default, number)
        return
    if isinstance(default, bool) != isinstance(value, bool) or isinstance(value, str) != isinstance(default, str):
        raise InputError(f"{name}: {setting}: expected {type(default).__name__}, got {value!r}")
    if setting in method.choices and value not in method.choices[setting]:
        raise InputError(f"{name}: {setting}: expected one of {', '.join(method.choices[setting])}, got {value!r}")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        _check_number(name, setting, default, value)


LARGEST = 3.4e38
"""Arithmetic is float32; larger numbers would be infinite."""
SHARES = ("density", "gamma", "epsilon", "split", "select_topk")
EACH = ("density", "gamma", "epsilon")
"""Settings that may differ by input."""


def _check_number(name: str, setting: str, default: Any, value: float) -> None:
    if setting in SHARES and not 0 <= value <= 1:
        raise InputError(f"{name}: {setting}: expected a share in [0, 1], got {value}")
    if abs(value) > (2**53 if type(default) is int else LARGEST):
        raise InputError(f"{name}: {setting}: expected a smaller number, got {value}")
    if type(default) is int and value != int(value):
        raise InputError(f"{name}: {setting}: expected a whole number, got {value}")
    if setting in ("tol", "max_iter") and value <= 0:
        raise InputError(f"{name}: {setting}: expected a number above 0, got {value}")
