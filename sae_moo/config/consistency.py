"""What does not fit together in a configuration: faults that concern several keys.

Parts of the wrong type were reported already, by what reads the single keys, and are passed over here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from sae_moo import zoo
from sae_moo.config.sections import PruningSection
from sae_moo.errors import InputError, nearest
from sae_moo.evaluate.kinds import KINDS
from sae_moo.files.marked_yaml import Key
from sae_moo.objectives import SPARSITY
from sae_moo.recipe import BASE, STRUCTURED, pattern_sparsity
from sae_moo.recipe.criteria import CRITERIA
from sae_moo.searchers.algorithms import ALGORITHMS, OPTUNA, SETTINGS
from sae_moo.searchers.schedule import ADAPTIVE

MOST_SPARSE = 0.95  # no candidate is ever asked to be sparser


def slug(name: str) -> str:
    """Return a method's name as part of a folder's."""
    return re.sub("[^A-Za-z0-9.]+", "-", name).strip("-.") or "method"


def cross_faults(raw: Mapping[str, Any], harness: Sequence[str]) -> Iterator[tuple[Key, str]]:
    """Yield the faults that concern several keys; parts of the wrong type were reported already and are passed over."""
    tasks = [task for task in _as(list, raw.get("tasks")) if isinstance(task, dict)]
    names = [task["name"] for task in tasks if isinstance(task.get("name"), str)]
    for i, task in enumerate(_as(list, raw.get("tasks"))):
        if not isinstance(task, dict) or not isinstance(task.get("name"), str):
            continue
        if names.count(task["name"]) > 1 and names.index(task["name"]) != i:
            yield ("tasks", i, "name"), f"expected every task once, {task['name']!r} came before"
        if task["name"] == SPARSITY:
            yield ("tasks", i, "name"), f"{SPARSITY!r} is an objective of its own; give the task another name"
        of_harness = [key for key in harness if task.get(key) not in (None, False, {})]
        if task.get("data") is None and task["name"].startswith("zoo_") and task["name"] not in zoo.TASKS:
            known = ", ".join(zoo.TASKS)
            yield (
                ("tasks", i, "name"),
                f"no built-in task {task['name']!r}{nearest(task['name'], zoo.TASKS)}; there are {known}",
            )
        if of_harness and task.get("data") is not None:
            yield ("tasks", i, of_harness[0]), "is for tasks of the harness; own items (data) have no such setting"
        if of_harness and task["name"] in zoo.TASKS and not {"task", "include"} & {*of_harness}:
            yield ("tasks", i, of_harness[0]), f"is for tasks of the harness; {task['name']} is built in"
        if task.get("multiturn") is True and task.get("chat_template") is not True:
            yield ("tasks", i, "multiturn"), "is for chat_template: true"
        if task.get("data") is not None and task.get("kind") is None:
            yield ("tasks", i), f"expected kind: {', '.join(KINDS)} beside data"
        if task.get("data") is None and task.get("kind") is not None:
            yield ("tasks", i, "kind"), "a built-in task has its own kind; leave it out, or give data: FILE"
    valid = [*names, SPARSITY]
    unnamed = not names or len(names) < len(_as(list, raw.get("tasks")))  # what tasks are called is not known then
    called: list[str] = []
    for i, entry in enumerate(_as(list, raw.get("objectives"))):
        if isinstance(entry, str):
            called.append(entry)
            if entry not in valid and not unnamed:
                yield ("objectives", i), f"expected a task or {SPARSITY!r}, got {entry!r}{nearest(entry, valid)}"
        elif isinstance(entry, dict):
            called += [entry["name"]] if isinstance(entry.get("name"), str) else []
            for j, task in enumerate(_as(list, entry.get("mean"))):
                if isinstance(task, str) and entry["mean"].index(task) != j:
                    yield ("objectives", i, "mean", j), f"expected every task once, {task!r} came before"
                if isinstance(task, str) and task not in names and not unnamed:
                    yield ("objectives", i, "mean", j), f"expected a task, got {task!r}{nearest(task, names)}"
            if isinstance(entry.get("name"), str) and entry["name"] in valid:
                yield ("objectives", i, "name"), f"expected a name of its own, {entry['name']!r} is taken"
    if isinstance(_as(dict, raw.get("evaluation")).get("racing"), dict) and called and set(called) == {SPARSITY}:
        yield ("evaluation", "racing"), "expected an objective that is scored on instances; sparsity is not"
    evaluation = _as(dict, raw.get("evaluation"))
    if evaluation.get("anchors") is not None and evaluation.get("generation") == "vllm":
        yield (
            ("evaluation", "anchors"),
            "not with generation: vllm; its memory holds one engine, choosing takes another",
        )
    for name in sorted({name for name in called if called.count(name) > 1}):
        yield ("objectives",), f"expected every objective once, {name!r} comes {called.count(name)} times"
    limited = [*valid, *called]
    for name, limit in _as(dict, raw.get("constraints")).items():
        if not isinstance(name, str):
            continue
        if name not in limited and not unnamed:
            yield (
                ("constraints", name),
                f"expected a task, an objective or {SPARSITY!r}, got {name!r}{nearest(name, limited)}",
            )
        if isinstance(limit, dict) and _both_numbers(limit, "min", "max") and limit["min"] > limit["max"]:
            yield ("constraints", name), f"expected min <= max, got {limit['min']} > {limit['max']}"
    experts, population = (
        _as(dict, _as(dict, raw.get("models")).get("experts")),
        _as(dict, raw.get("search")).get("population"),
    )
    if type(population) is int and 4 <= population <= len(experts):
        need = f"expected at least {len(experts) + 1}, room for the base and every expert in the first population"
        yield ("search", "population"), f"{need}; got {population}"
    storage = _as(dict, raw.get("study")).get("storage")
    if isinstance(storage, str) and ("://" not in storage or storage.endswith(("://", ":memory:"))):
        expected = "expected an Optuna URL that outlives the process, e.g. sqlite:///s.db, or null for a journal file"
        yield ("study", "storage"), f"{expected}; got {storage!r}"
    pruning = _as(dict, raw.get("pruning"))
    criterion = pruning.get("criterion", PruningSection.model_fields["criterion"].default)
    if pruning.get("calibration") is not None and not _calibrated(criterion):
        yield ("pruning", "calibration"), f"criterion: {criterion} is not calibrated; leave it out"
    if pruning.get("rescale") is True and pruning.get("scope") in STRUCTURED:
        yield ("pruning", "rescale"), f"scope: {pruning['scope']} is not rescaled; leave it out"
    calibrated = _as(dict, pruning.get("calibration")).get("model", BASE)
    if isinstance(calibrated, str) and calibrated not in (BASE, *experts):
        models = [BASE, *(name for name in experts if isinstance(name, str))]
        yield (
            ("pruning", "calibration", "model"),
            f"expected one of {', '.join(models)}, got {calibrated!r}{nearest(calibrated, models)}",
        )
    yield from _algorithm_faults(raw, called)
    yield from _compare_faults(raw)
    named = _as(dict, raw.get("search")).get("algorithm", "nsga2")
    own = ALGORITHMS.get(named) if isinstance(named, str) else None
    annealing = ({} if own is None else {"high": own.high}) | _set(_as(dict, raw.get("annealing")))
    if _both_numbers(annealing, "low", "high") and annealing["low"] > annealing["high"]:
        yield ("annealing", "low"), f"expected low <= high, got {annealing['low']} > {annealing['high']}"


def _algorithm_faults(raw: Mapping[str, Any], objectives: Sequence[str]) -> Iterator[tuple[Key, str]]:
    """Yield what the chosen algorithm does not read, or cannot do with."""
    search, space = _as(dict, raw.get("search")), _as(dict, raw.get("space"))
    name = search.get("algorithm", "nsga2")
    algorithm = ALGORITHMS.get(name) if isinstance(name, str) else None
    if algorithm is None:
        return  # reported already

    def readers(key: str) -> str:
        return ", ".join(each for each, row in ALGORITHMS.items() if key in row.reads)

    for key in SETTINGS:
        if search.get(key) is not None and key not in algorithm.reads:
            yield ("search", key), f"is for {readers(key)}; algorithm: {name} does not read it"
    kind = space.get("kind")
    if kind in ("lineage", "coefficients") and kind not in algorithm.spaces:
        own = " or ".join(algorithm.spaces)
        yield ("space", "kind"), f"algorithm: {name} " + (f"searches {own}; leave it out" if own else "has no space")
    over = algorithm.searched(kind)
    if search.get("operators") is not None and over != "lineage" and "operators" in algorithm.reads:
        yield ("search", "operators"), "is for space.kind: lineage"
    if space.get("sparsity") is not None and over != "coefficients":
        yield ("space", "sparsity"), "is for coefficients; lineages draw the sparsity of every child"
    sae = _as(dict, search.get("sae"))
    if sae.get("omega", 0.5) == 0 and sae.get("beta", 0.5) == 0:
        yield ("search", "sae", "omega"), "expected omega or beta above 0, got 0 for both"
    for key in sae if name == "m2n2" else ():
        if key not in ("alpha", "matchmaker"):
            yield ("search", "sae", key), "is for sae-global, sae-local; m2n2 reads alpha and matchmaker"
    scope = _as(dict, raw.get("pruning")).get("scope")
    given = pattern_sparsity(scope) if isinstance(scope, str) else None
    if given is not None and space.get("sparsity") not in (None, 0, given):
        yield ("space", "sparsity"), f"expected 0 or {given:g}, what scope: {scope} prunes to, got {space['sparsity']}"
    fixed, most = space.get("sparsity"), _as(dict, _as(dict, raw.get("constraints")).get(SPARSITY)).get("max")
    least = min([each for each in (most, MOST_SPARSE) if isinstance(each, (int, float))])
    if isinstance(fixed, (int, float)) and fixed > least:
        yield ("space", "sparsity"), f"expected at most {least:g}, got {fixed:g}"
    experts, population = _as(dict, _as(dict, raw.get("models")).get("experts")), search.get("population", 24)
    swarm = name == "pso" and _as(dict, search.get("pso")).get("flavour") == "pso-merging"
    if swarm and isinstance(population, int) and population < 2 * len(experts) + 1:
        need = f"expected at least {2 * len(experts) + 1}: base, experts and sparsified experts"
        yield ("search", "population"), f"{need}; got {population}"
    if _as(dict, raw.get("annealing")).get("schedule") == ADAPTIVE and not algorithm.annealed(kind):
        yield ("annealing", "schedule"), f"expected a fixed one; algorithm: {name} has no cycles that could adapt"
    if _as(dict, raw.get("evaluation")).get("racing") is not None and not algorithm.races:
        able = ", ".join(each for each, row in ALGORITHMS.items() if row.races)
        yield ("evaluation", "racing"), f"is for {able}; algorithm: {name} needs the scores of every candidate"
    weights = search.get("weights")
    if weights is not None and algorithm.scalar is False:
        single = ", ".join(each for each, row in ALGORITHMS.items() if row.scalar is not False)
        yield ("search", "weights"), f"is for what works on one number ({single}), not for {name}"
    for objective in weights if isinstance(weights, dict) else ():
        if isinstance(objective, str) and objective not in objectives:
            yield (
                ("search", "weights", objective),
                f"expected an objective, got {objective!r}{nearest(objective, objectives)}",
            )
    if isinstance(weights, dict) and not any(weights.values()):
        yield ("search", "weights"), "expected at least one weight above 0"
    if algorithm.scalar and weights is None and objectives and set(objectives) == {SPARSITY}:
        yield ("objectives",), f"algorithm: {name} needs one that is scored on tasks, or search.weights"
    if name == f"{OPTUNA}CmaEsSampler" and find_spec("cmaes") is None:
        yield ("search", "algorithm"), "Optuna's CMA-ES needs a package that is not installed: pip install cmaes"
    if name == "slerp" and len(_as(dict, _as(dict, raw.get("models")).get("experts"))) == 1:
        yield ("search", "algorithm"), "slerp merges pairs of experts; there is one expert"


def _compare_faults(raw: Mapping[str, Any]) -> Iterator[tuple[Key, str]]:
    """Yield what does not fit together in ``compare``."""
    section = _as(dict, raw.get("compare"))
    names: list[str] = []
    for i, entry in enumerate(_as(list, section.get("methods"))):
        key: Key = ("compare", "methods", i)
        name = _as(dict, entry).get("name", entry if isinstance(entry, str) else None)
        if isinstance(entry, str) and not 1 <= len(entry) <= 60:
            yield key, f"expected the name of an algorithm, got {entry!r}"
        if isinstance(name, str):
            if slug(name) in map(slug, names):
                yield key, f"expected every method once, with a name of its own, got {name!r} again"
            names.append(name)
        if "evaluations" in _as(dict, _as(dict, entry).get("search")):
            yield (*key, "search", "evaluations"), "every method has the same budget; set search.evaluations for all"
    reference = section.get("reference")
    if isinstance(reference, str) and names and reference not in names:
        yield ("compare", "reference"), f"expected a method, got {reference!r}{nearest(reference, names)}"
    if section and _as(dict, raw.get("study")).get("storage") is not None:
        yield ("study", "storage"), "a comparison keeps every search in a journal of its own; leave it out"
    for i, task in enumerate(_as(list, raw.get("tasks")) if section else []):
        if _as(dict, task).get("test") == 0:
            yield ("tasks", i, "test"), "a comparison judges on the test split; expected at least 1 instance"


def _calibrated(criterion: Any) -> bool:
    """Say whether a criterion weighs by activations; of one that there is not, the section says so."""
    try:
        return CRITERIA.find(criterion).calibrated
    except InputError:
        return True


def _both_numbers(section: Mapping[str, Any], *keys: str) -> bool:
    return all(isinstance(section.get(key), (int, float)) for key in keys)


def _set(section: dict[str, Any]) -> dict[str, Any]:
    """Return what of a section is not null."""
    return {key: value for key, value in section.items() if value is not None}


def _as(kind: type, value: Any) -> Any:
    return value if isinstance(value, kind) else kind()
