"""Whether a pool of experts and the catalogues can serve a recipe: asked before anything is written."""

from __future__ import annotations

import math
from collections.abc import Iterator

from sae_moo.errors import InputError, nearest
from sae_moo.experts.anatomy import Anatomy, anatomy, transposed
from sae_moo.experts.pool import ExpertPool
from sae_moo.materialization.ops import prune as pruning
from sae_moo.materialization.texts import held_texts
from sae_moo.recipe import BLOCKS, MOE_EXPERTS, STRUCTURED, Expert, Merge, Prune, Recipe, Repair, pattern, walk
from sae_moo.recipe.catalogue import check_implemented
from sae_moo.recipe.criteria import CRITERIA
from sae_moo.recipe.methods import METHODS, Method, Setting
from sae_moo.recipe.rows import Param, Rows
from sae_moo.recipe.structure import chain, removed_blocks, repair_of


def check(recipe: Recipe, pool: ExpertPool, *, texts: bool = True) -> None:
    """Raise InputError if the pool or the catalogues of methods and criteria cannot serve the recipe.

    Args:
        recipe: what is to be computed.
        pool: the experts.
        texts: whether the texts that a repair reads have to be at hand.
    """
    if not isinstance(recipe, Recipe):
        raise InputError(f"expected a recipe, such as Expert('math'), got {recipe!r}")
    for node in walk(recipe):
        match node:
            case Expert() if node.name not in pool.names:
                raise InputError(
                    f"no expert named {node.name!r}{nearest(node.name, pool.names)}; there are {', '.join(pool.names)}"
                )
            case Merge():
                _check_merge(node, pool)
            case Prune():
                _check_prune(node, pool)
            case Repair():
                _check_repair(node, recipe, pool)
                if texts:
                    _check_texts(node, pool)
    removed = len(removed_blocks(recipe))
    if removed and removed == anatomy(pool, BLOCKS).blocks:  # of what it merges, models of other candidates may be so
        raise InputError(
            f"Prune: scope {BLOCKS!r} would remove all {removed} blocks, and without them no model is left; expected "
            "units that leave one at least"
        )


def _check_prune(node: Prune, pool: ExpertPool) -> None:
    groups = len(pool.groups)
    prunable = [info for info in pool.tensors if info.prunable]
    if node.submodels != pool.pruned and (node.submodels or node.scope not in STRUCTURED):
        have, want = (", ".join(names) or "none" for names in (pool.pruned, node.submodels))
        raise InputError(f"Prune: prunes the sub-models {want}; the pool was opened with pruned: {have}")
    criterion = CRITERIA.find(node.criterion)
    if criterion.unavailable is not None:
        raise InputError(f"Prune: {criterion.unavailable}")
    check_implemented(CRITERIA, criterion, criterion.score)
    sparsity = Rows.of_places(node.sparsity)
    if sparsity.placed and node.scope == "global":
        raise InputError(f"Prune: scope {node.scope!r} takes one sparsity, got {len(sparsity.rows)}")
    alone = node.scope not in ("group", *STRUCTURED)  # tensors compete with nobody
    if not sparsity.fits(groups, *[len(pool.tensors)] * alone):
        each = f" or {len(pool.tensors)}, one per tensor," if alone else ""
        raise InputError(f"Prune: expected {groups} sparsities, one per group,{each} got {len(sparsity.rows)}")
    if node.counts is not None and len(node.counts) != len(prunable):
        raise InputError(f"Prune: expected {len(prunable)} counts, one per tensor, got {len(node.counts)}")
    for count, info in zip(node.counts or (), prunable, strict=False):
        if count > info.numel:
            raise InputError(f"Prune: expected counts of at most the tensor's size {info.numel}, got {count}")
    if criterion.calibrated != (node.calibration is not None):
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
        if node.scope == MOE_EXPERTS:
            _check_mixed_experts(node, whole)
    if node.calibration is not None:
        digest = node.calibration
        pool.remembered.get(("norms checked", digest), lambda: _check_norms(pool, digest))
    kept = pattern(node.scope)
    for position, info in enumerate(pool.tensors) if kept is not None or node.scope == "row" else ():
        if not info.prunable:
            continue
        (asked,) = sparsity.at(position, info.group, groups)
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


def _check_mixed_experts(node: Prune, whole: Anatomy) -> None:
    """Raise InputError unless as many experts go of every mixture, and as many stay as the router chooses."""
    if not isinstance(node.sparsity, float):
        raise InputError(
            f"Prune: scope {node.scope!r} takes one sparsity, got {len(node.sparsity)}: config.json has one number of "
            "experts for all mixtures"
        )
    going = {pruning.target_count(node.sparsity, whole.units)}
    if node.units is not None:
        going = {len(row) for block, row in enumerate(node.units) if block not in whole.bare}
        if len(going) > 1 or any(node.units[block] for block in whole.bare):
            counts = ", ".join(str(len(row)) for row in node.units)
            raise InputError(
                f"Prune: scope {node.scope!r} removes as many experts of every mixture, and none of the dense blocks; "
                f"got {counts}"
            )
    if max(going) > whole.units - whole.least:
        raise InputError(
            f"Prune: scope {node.scope!r} would remove {max(going)} of {whole.units} experts of every mixture; "
            f"{whole.least} have to stay, as many as the router chooses for a token: expected a sparsity up to "
            f"{math.floor(10_000 * (1 - whole.least / whole.units)) / 10_000:g}"
        )


def _check_repair(node: Repair, recipe: Recipe, pool: ExpertPool) -> None:
    if repair_of(recipe) is not node:
        raise InputError(
            "Repair: expected it directly under the outermost Cast, Cast(Repair(Prune(...)), dtype): what is repaired "
            "is not merged or pruned again; export it and open it as an expert"
        )
    if any(each.submodels for each in chain(recipe)):
        raise InputError("Repair: only the text model is repaired; this pruning names sub-models")
    mixture = next(
        (info for info in pool.tensors if info.prunable and (len(info.shape) != 2 or ".experts." in info.name)), None
    )
    if mixture is not None:
        raise InputError(
            f"Repair: {mixture.name} is an expert of a mixture, which reads only the tokens that are sent to it; "
            "mixtures are not repaired yet"
        )


def _check_texts(node: Repair, pool: ExpertPool) -> None:
    if held_texts(pool, node.calibration) is None:
        known = ", ".join(each[:12] for each in pool.texts) or "none"
        raise InputError(
            f"Repair: the pool holds no texts {node.calibration}; it holds {known}. sae_moo.calibration_texts makes "
            "them again from the same texts and tokens; sae_moo.load_calibration reads the file written beside an "
            "export"
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


def _check_merge(node: Merge, pool: ExpertPool) -> None:
    method = METHODS.find(node.method)
    check_implemented(METHODS, method, method.step)
    least, most = method.inputs
    if not method.takes(len(node.inputs)):
        bound = f"{least}" if least == most else f"at least {least}"
        raise InputError(f"{node.method}: expected {bound} inputs, got {len(node.inputs)}")
    for name, value in node.params:
        fault = _setting_fault(method, name, value, pool)
        if fault is not None:
            raise InputError(f"{node.method}: {fault}")
    if method.faults is not None:
        for settings in _each_settings(method, node, pool):
            for fault in method.faults(settings):
                raise InputError(f"{node.method}: {fault}")
    weights, groups, tensors = Rows.of(node.weights), len(pool.groups), len(pool.tensors)
    if not weights.fits(groups, tensors):
        raise InputError(
            f"{node.method}: expected {groups} rows of weights, one per group, or {tensors}, one per tensor, "
            f"got {len(weights.rows)}"
        )
    for row in weights.rows:
        fault = method.weights_fault(row, normalized=bool(method.filled(node.params).get("normalize", True)))
        if fault is not None:
            raise InputError(f"{node.method}: {fault}")


def _each_settings(method: Method, node: Merge, pool: ExpertPool) -> Iterator[dict[str, Param]]:
    """Yield the settings of every tensor and input, one value of each, without repeating them."""
    params = {name: Rows.of(value) for name, value in method.filled(node.params).items()}
    groups, seen = len(pool.groups), set[tuple[Param, ...]]()
    placed = any(rows.placed for rows in params.values())
    for position, info in enumerate(pool.tensors if placed else pool.tensors[:1]):
        rows = [each.at(position, info.group, groups) for each in params.values()]
        for i in range(len(node.inputs)):
            values = tuple(row[i if len(row) > 1 else 0] for row in rows)
            if values not in seen:
                seen.add(values)
                yield dict(zip(params, values, strict=True))


def _setting_fault(method: Method, name: str, value: Param, pool: ExpertPool) -> str | None:
    groups, tensors, rows = len(pool.groups), len(pool.tensors), Rows.of(value)
    if method.whole_model is not None and name == method.whole_model.setting:
        measured = rows.placed and len(rows.rows) == tensors
        return None if measured else f"{name}: expected {tensors} rows, one per tensor"
    if name not in method.settings:
        return method.unknown(name)
    setting = method.settings[name]
    fault = _rows_fault(setting, rows, groups, tensors) if isinstance(value, tuple) else setting.fault(value)
    return None if fault is None else f"{name}: {fault}"


def _rows_fault(setting: Setting, rows: Rows, groups: int, tensors: int) -> str | None:
    if not setting.numeric:
        return f"expected {type(setting.default).__name__}, got {rows.value!r}"
    if not rows.fits(groups, tensors):
        return f"expected {groups} rows, one per group, or {tensors}, one per tensor, got {len(rows.rows)}"
    for row in rows.rows:
        if not setting.per_input and len(set(row)) > 1:
            return f"expected one number for all inputs, got {row}"
    return next((fault for number in dict.fromkeys(rows.numbers) if (fault := setting.fault(number))), None)
